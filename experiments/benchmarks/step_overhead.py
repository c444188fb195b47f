"""What a training step of `densepred fit` costs beyond the bare PyTorch loop of the same network.

    python experiments/benchmarks/step_overhead.py [rounds] [steps] [threads]

ResNet-18 with a U-Net decoder, 21 classes, batches of 4 x 3 x 128 x 128 from a training set that lies in memory, AdamW,
on the CPU. Each contender has a network, an optimizer and a loader of its own, all made alike:

- bare: fetch the batch, the network's planes, the task's loss, zero_grad, backward, step. Nothing is logged.
- lightning: a plain LightningModule of the same parts in a plain Trainer: progress bar, CSV logger every 50 steps, the
  loss, and torchmetrics' accuracy and mean IoU of every training batch.
- ours: `densepred fit` as it comes: all its callbacks (panels, diagnostics, guards, checkpoints, throughput, learning
  rates), its loggers every 50 steps, and the progress bar, which writes to a terminal that is not there.

They take turns: after every `steps` steps the next one goes on, so that what else the machine does hits all alike.
Printed are the CPU time of a step (median over the turns), and how much more than the bare loop's it is: the median of
the ratios within a round, and their quartiles. The first round warms up and is not counted. A validation, with its
metrics and panels, comes after the steps and is not part of one.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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
    """Lets threads work one after another, so many steps each, and measures every turn.

    Args:
        names: Who takes turns, in this order.
        rounds: How many turns each has.
        steps: Of a turn.
    """

    def __init__(self, names: list[str], rounds: int, steps: int) -> None:
        self.names, self.rounds, self.steps = names, rounds, steps
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.failed: BaseException | None = None
        self._whose = names[0]
        self._taken = dict.fromkeys(names, 0)
        self._changed = threading.Condition()
        self._began = 0.0

    @property
    def total(self) -> int:
        """Steps of each; one more must begin, so that the last one is whole."""
        return self.rounds * self.steps

    def between_steps(self, name: str) -> None:
        """Called before every step: where a turn is over, the others go first; after the last one, all of them."""
        taken, self._taken[name] = self._taken[name], self._taken[name] + 1
        if taken % self.steps:
            return
        with self._changed:
            if taken:
                self.seconds[name].append((time.process_time() - self._began) / self.steps)
                self._whose = self.names[(self.names.index(name) + 1) % len(self.names)]
                self._changed.notify_all()
            over = taken == self.total
            self._changed.wait_for(lambda: self.failed or (self._all_done() if over else self._whose == name))
        if self.failed:
            raise RuntimeError("Another contender failed.") from self.failed
        self._began = time.process_time()

    def fail(self, error: BaseException) -> None:
        """Nobody waits any longer."""
        with self._changed:
            self.failed = self.failed or error
            self._changed.notify_all()

    def _all_done(self) -> bool:
        return all(len(measured) == self.rounds for measured in self.seconds.values())


class TakesTurns(pl.Callback):
    """A trainer that takes part."""

    turns: Turns

    def __init__(self, name: str = "ours") -> None:
        self.name = name

    def on_train_batch_start(self, *arguments: object) -> None:
        """The batch is there, as in the bare loop."""
        self.turns.between_steps(self.name)


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
        turns.between_steps("bare")
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
            logger=pl.loggers.CSVLogger(folder), callbacks=[TakesTurns("lightning")], enable_model_summary=False,
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


def measure(rounds: int, steps: int, threads: int = 1) -> dict[str, list[float]]:
    """CPU seconds of a step in every turn, by contender."""
    turns = TakesTurns.turns = Turns(["bare", "lightning", "ours"], rounds + 1, steps)

    def work(contender: Callable[[Turns], None]) -> None:
        torch.set_num_threads(threads)
        try:
            contender(turns)
        except BaseException as error:
            turns.fail(error)
            raise

    others = [threading.Thread(target=work, args=(contender,), daemon=True) for contender in (bare, lightning)]
    for other in others:
        other.start()
    work(ours)
    for other in others:
        other.join()
    return {name: seconds[1:] for name, seconds in turns.seconds.items()}  # the first round warms up


def overheads(measured: dict[str, list[float]], name: str) -> list[float]:
    """How much more than the bare loop's a step costs, in each round."""
    return [mine / bare - 1 for mine, bare in zip(measured[name], measured["bare"], strict=True)]


def main(rounds: int = 10, steps: int = 50, threads: int = 1) -> None:
    terminal = io.StringIO()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        measured = measure(rounds, steps, threads)
    for name, seconds in measured.items():
        first, middle, third = statistics.quantiles(overheads(measured, name), n=4)
        more = f"{middle:+.1%} ({first:+.1%} to {third:+.1%})" if name != "bare" else ""
        print(f"{name:10}{1000 * statistics.median(seconds):8.1f} ms a step  {more}")


if __name__ == "__main__":
    sys.modules["step_overhead"] = sys.modules["__main__"]
    main(*map(int, sys.argv[1:]))
