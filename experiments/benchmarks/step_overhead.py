"""What a training step of `densepred fit` costs beyond the bare PyTorch loop of the same network.

    python experiments/benchmarks/step_overhead.py [rounds] [steps] [threads]

ResNet-18 with a U-Net decoder, 21 classes, batches of 4 x 3 x 128 x 128 from a training set that lies in memory, AdamW,
on the CPU. Each contender has a network, an optimizer and a loader of its own, all made alike:

- bare: fetch the batch, the network's planes, the task's loss, zero_grad, backward, step. Nothing is logged.
- lightning: a plain LightningModule of the same parts in a plain Trainer: progress bar, CSV logger every 50 steps, the
  loss, and torchmetrics' accuracy and mean IoU of every training batch.
- ours: `densepred fit` as it comes: all its callbacks (panels, diagnostics, guards, checkpoints, throughput, learning
  rates), its loggers every 50 steps, and the progress bar, which writes to a terminal that is not there.

Each is a process of its own, and they take turns: after every `steps` steps the next one goes on, so that what else
the machine does hits all alike. The allocator keeps what is freed: whether it gives memory back to the system, to come
back page by page in the next step, depends on sizes and order by chance, and costs more than what is to be measured.
Printed are the CPU time of a step (median over the turns), and how much more than the bare loop's it is: the median of
the ratios within a round, and their quartiles. The first round warms up and is not counted. A validation, with its
metrics and panels, comes after the steps and is not part of one.
"""

import contextlib
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.segmentation import MeanIoU

from densepred.cli import main as densepred
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset, Transforms
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from densepred.tasks.base import Batch
from densepred.tasks.segmentation import Segmentation

CLASSES, BATCH, SIDE = 21, 4, 128
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_ARENA_MAX": "1"}
"""For glibc; the same for all."""


class Memory(DenseDataset):
    """Noise with labels, as if it had been read."""

    def __init__(self, length: int, transforms: Transforms | None, seed: int) -> None:
        super().__init__(transforms, seed)
        numbers = np.random.default_rng(0)
        self.images = numbers.integers(0, 256, (16, SIDE, SIDE, 3), np.uint8)
        self.labels = numbers.integers(0, CLASSES, (16, SIDE, SIDE)).astype(np.uint8)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> dict[str, np.ndarray | str]:
        return {"image": self.images[index % 16], "segmentation": self.labels[index % 16], "name": str(index)}


class MemoryDataModule(DenseDataModule):
    """`steps` batches an epoch, and two of validation."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__(batch_size=BATCH, num_workers=0)
        self.steps = steps

    def dataset(self, split: str, transforms: Transforms | None) -> Memory:
        return Memory(BATCH * (self.steps if split == "train" else 2), transforms, self.seed)


class Turns:
    """Lets a process work when it is told to, so many steps at a time, and measures them.

    Args:
        line: To who tells it, and hears the CPU seconds of a step.
        rounds: How many turns there are.
        steps: Of a turn.
    """

    def __init__(self, line: Connection, rounds: int, steps: int) -> None:
        self.line, self.steps = line, steps
        self.total = rounds * steps  # one more begins, so that the last one is whole
        self._taken = 0
        self._began = 0.0

    def between_steps(self) -> None:
        """Called before every step; after the last turn too it goes on when told, so as not to disturb the others."""
        if self._taken % self.steps == 0:
            if self._taken:
                self.line.send((time.process_time() - self._began) / self.steps)
            self.line.recv()
            self._began = time.process_time()
        self._taken += 1


class TakesTurns(pl.Callback):
    """A trainer that takes part."""

    turns: Turns

    def on_train_batch_start(self, *arguments: object) -> None:
        """The batch is there, as in the bare loop."""
        self.turns.between_steps()


def network() -> DensePredictor:
    """The same for all; the others use its parts alone."""
    torch.manual_seed(0)
    return DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, [Segmentation(CLASSES)])


def loader(turns: Turns) -> Iterator[Batch]:
    """As the trainers'."""
    return iter(MemoryDataModule(turns.total + 1).train_dataloader())


def bare(turns: Turns) -> None:
    module = network()
    task = module.tasks[0]
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=3e-4, weight_decay=0.01)
    for batch in loader(turns):
        turns.between_steps()
        loss = task.loss_from_planes(module.network.planes(batch["image"])["segmentation"], batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class PlainModule(pl.LightningModule):
    """What a user of Lightning and torchmetrics writes."""

    def __init__(self) -> None:
        super().__init__()
        module = network()
        self.network, self.task = module.network, module.tasks[0]
        self.accuracy = MulticlassAccuracy(CLASSES, ignore_index=255)
        self.iou = MeanIoU(CLASSES, input_format="index")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss, accuracy and mean IoU of the batch."""
        planes = self.network.planes(batch["image"])["segmentation"]
        loss = self.task.loss_from_planes(planes, batch)
        target = batch["segmentation"].long()
        predicted = F.interpolate(planes, target.shape[-2:], mode="bilinear").argmax(1)
        self.accuracy(predicted, target)
        self.iou(predicted, target)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", self.accuracy)
        self.log("iou", self.iou)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As the others."""
        return torch.optim.AdamW(self.network.parameters(), lr=3e-4, weight_decay=0.01)


def lightning(turns: Turns) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, log_every_n_steps=50, default_root_dir=folder,
            logger=pl.loggers.CSVLogger(folder), callbacks=[TakesTurns()], enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(PlainModule(), train_dataloaders=MemoryDataModule(turns.total + 1).train_dataloader())


def ours(turns: Turns) -> None:
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(configuration(turns, folder)))
        os.chdir(folder)
        try:
            status = densepred(["fit", "--config", str(config)])
        finally:
            os.chdir(here)
    if status:
        raise RuntimeError("densepred fit failed")


def configuration(turns: Turns, folder: str) -> dict[str, object]:
    """Nothing but what the comparison fixes; the rest is as densepred has it."""
    own = f"{__name__}."
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder,
            "callbacks": [{"class_path": own + "TakesTurns"},
                          {"class_path": "EpochProgress", "init_args": {"bar": True}}],
        },
        "model": {
            "class_path": "DensePredictor",
            "init_args": {
                "encoder": {"class_path": "ResNetEncoder", "init_args": {"name": "resnet18"}},
                "decoder": {"class_path": "UNetDecoder"},
                "tasks": [{"class_path": "Segmentation", "init_args": {"classes": CLASSES}}],
            },
        },
        "data": {"class_path": own + "MemoryDataModule", "init_args": {"steps": turns.total + 1}},
    }  # fmt: skip


def work(contender: Callable[[Turns], None], turns: Turns, threads: int) -> None:
    """A process."""
    torch.set_num_threads(threads)
    TakesTurns.turns = turns
    terminal = io.StringIO()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        contender(turns)


def measure(rounds: int, steps: int, threads: int = 1) -> dict[str, list[float]]:
    """CPU seconds of a step in every turn, by contender."""
    os.environ |= KEEP_MEMORY
    context = multiprocessing.get_context("spawn")
    lines, workers = {}, []
    for contender in (bare, lightning, ours):
        lines[contender.__name__], theirs = context.Pipe()
        turns = Turns(theirs, rounds + 1, steps)
        workers.append(context.Process(target=work, args=(contender, turns, threads), daemon=True))
        workers[-1].start()
        theirs.close()  # so that the end of the process is the end of the line
    measured: dict[str, list[float]] = {name: [] for name in lines}
    for turn in range(rounds + 1):
        for name, line in lines.items():
            line.send(None)
            seconds = line.recv()
            measured[name] += [seconds] if turn else []  # the first round warms up
    for line in lines.values():
        line.send(None)
    for worker in workers:
        worker.join()
    return measured


def overheads(measured: dict[str, list[float]], name: str) -> list[float]:
    """How much more than the bare loop's a step costs, in each round."""
    return [mine / bare - 1 for mine, bare in zip(measured[name], measured["bare"], strict=True)]


def main(rounds: int = 10, steps: int = 50, threads: int = 1) -> None:
    measured = measure(rounds, steps, threads)
    for name, seconds in measured.items():
        first, middle, third = statistics.quantiles(overheads(measured, name), n=4)
        more = f"{middle:+.1%} ({first:+.1%} to {third:+.1%})" if name != "bare" else ""
        print(f"{name:10}{1000 * statistics.median(seconds):8.1f} ms a step  {more}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
