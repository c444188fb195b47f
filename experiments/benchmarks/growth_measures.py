"""What `growth.py` measures; each function runs in a process of its own, forked from one that has computed nothing."""

import contextlib
import io
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from densepred import cli
from densepred.callbacks.channels_last import ChannelsLast
from densepred.commands import predict  # noqa: F401  # imported here, it is no memory of what is measured
from densepred.data.folder import FolderDataModule
from densepred.data.loader import start_worker
from densepred.data.sampler import EpochSampler
from densepred.data.transforms import FlipLeftRight, ScaleCrop
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.half_precision import computes_bfloat16
from densepred.metrics.base import DenseMetric
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation

Measured = dict[str, float]
"""Numbers by their unit."""
Measure = Callable[[int, Path], Measured]
"""A size and the folder that was prepared for it to numbers; runs in a process of its own."""
FORK = multiprocessing.get_context("fork")
LINKS_OF_A_FILE = 30_000
MADE_UP = 100_000


def resident(key: str) -> float:
    """MiB of this process: at most so far (VmHWM), now without and with files (RssAnon, RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


class Peak:
    """The memory that is needed from here on."""

    def __init__(self) -> None:
        self.before = resident("RssAnon")

    def __call__(self) -> float:
        """MiB at most, above the level before."""
        return resident("VmHWM") - resident("RssFile") - self.before


def repeated(run: Callable[[], object], least: int = 3, seconds: float = 1.0) -> float:
    """Milliseconds of the processor: the median of several runs, after one that warms up."""
    run()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return 1000 * statistics.median(taken)


def unet(images: int, side: int, classes: int, training: bool) -> Measured:
    """A training step or a prediction of the ResNet-18 U-Net."""
    peak = Peak()
    torch.manual_seed(0)
    half = computes_bfloat16("cpu")
    module = DensePredictor(
        ResNetEncoder("resnet18"), partial(UNetDecoder, widths=(128, 64, 48, 32)), [Segmentation(classes)]
    ).train(training)
    for callback in [ChannelsLast()] * half:
        callback.setup(None, module, "fit")  # type: ignore[arg-type]
    image = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, classes, (images, side, side), dtype=torch.uint8 if classes < 256 else torch.int32)
    optimizer = module.build_optimizer()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module.training_step({"image": image, "segmentation": labels}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def answer() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            labels: Tensor = module(image)["segmentation"]
            return labels

    taken = repeated(step if training else answer)
    return {"ms": taken, "MiB": peak()}


def links(folder: Path, picture: Path, count: int) -> None:
    """Fills a new folder with hard links to a picture, of which a file system allows so many."""
    folder.mkdir()
    for index in range(count):
        if index % LINKS_OF_A_FILE == 0:
            first = folder / f"scene_{index:07d}{picture.suffix}"
            shutil.copy(picture, first)
        else:
            os.link(first, folder / f"scene_{index:07d}{picture.suffix}")


@contextlib.contextmanager
def pictures(size: tuple[int, int], count: int) -> Iterator[Path]:
    """A folder for `FolderDataModule`: JPEG images that are smooth noise, and labels."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        noise = np.random.default_rng(0).integers(0, 256, (*(side // 8 + 1 for side in size), 3), dtype=np.uint8)
        image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / "image.jpg"), image)
        cv2.imwrite(str(root / "labels.png"), image[..., 0] // 64)
        (root / "classes.txt").write_text("a\nb\nc\nd\n")
        real = 1 if count > MADE_UP else count
        links(root / "images", root / "image.jpg", real)
        links(root / "labels", root / "labels.png", real)
        yield root


def listed(count: int, root: Path, check: Literal["headers", "none"] = "none") -> FolderDataModule:
    """The data module, set up; of a made-up folder where the files would be too many."""
    if count > MADE_UP:
        suffixes = {"images": ".jpg", "labels": ".png"}

        def walk(folder: Path, followlinks: bool) -> Iterator[tuple[str, list[str], list[str]]]:
            yield str(folder), [], [f"scene_{index:07d}{suffixes[folder.name]}" for index in range(count)]

        os.walk = walk  # type: ignore[assignment]  # in this process only
    data = FolderDataModule(str(root), num_workers=0, check=check)
    data.setup("fit")
    return data


def setting_up(count: int, root: Path, check: Literal["headers", "none"]) -> Measured:
    """The listing, with or without a look at the headers."""
    if check != "none" and count > MADE_UP:
        return {"s": math.nan, "MiB": math.nan}
    peak, start = Peak(), time.process_time()
    listed(count, root, check)
    return {"s": time.process_time() - start, "MiB": peak()}


def order(count: int, root: Path) -> Measured:
    """The order of an epoch."""
    peak, start = Peak(), time.process_time()
    sampler = EpochSampler(count)
    sampler.set_epoch(1)
    for _ in sampler:
        pass
    return {"s": time.process_time() - start, "MiB": peak()}


def own_memory(process: int | None) -> float:
    """MiB that a forked process has written to, and so shares with none."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Private_Dirty")).split()[1]) / 1024


def worker(count: int, root: Path) -> Measured:
    """The start of a loading process, and its own memory once it has asked for every file."""
    dataset = listed(count, root).datasets["train"]
    receiver, sender = FORK.Pipe(duplex=False)

    def ask() -> None:
        start_worker(0)
        sender.send(time.perf_counter())
        before = own_memory(os.getpid())
        for index in range(len(dataset)):
            for path in dataset.files(index).values():
                str(path)
        sender.send(own_memory(os.getpid()) - before)

    start = time.perf_counter()
    process = FORK.Process(target=ask)
    process.start()
    began, own = receiver.recv(), receiver.recv()
    process.join()
    return {"s": began - start, "MiB": own}


def loading(workers: int, root: Path) -> Measured:
    """The second epoch, with so many processes beside this one."""
    peak = Peak()
    transforms = [ScaleCrop(size=(224, 224), scale=(0.75, 1.5)), FlipLeftRight()]
    data = FolderDataModule(str(root), num_workers=workers, check="none", train_transforms=transforms, val_share=0)
    loader = data.train_dataloader()
    for _ in loader:
        pass
    start, images = time.perf_counter(), sum(len(batch["image"]) for batch in loader)
    rate = images / (time.perf_counter() - start)
    return {"images/s": rate, "MiB": peak() + sum(own_memory(one.pid) for one in multiprocessing.active_children())}


def counting(images: int, folder: Path, metric: DenseMetric, prediction: Tensor, target: Tensor) -> Measured:
    """The last updates of so many images."""
    peak, taken = Peak(), []
    for _ in range(max(1, images // len(target))):
        start = time.process_time()
        metric.update(prediction, target)
        taken.append(time.process_time() - start)
    states = [getattr(metric, name) for name in metric._defaults]
    bytes_ = sum(state.numel() * state.element_size() for state in states)
    return {"ms": 1000 * statistics.median(taken[-100:]), "MiB": peak(), "KiB of states": bytes_ / 1024}


def predicting(count: int, root: Path) -> Measured:
    """The command, start and end of it left out: what every picture beyond the first takes."""
    module = DensePredictor(UNetEncoder(widths=(8, 16, 32)), partial(UNetDecoder, widths=(16, 8)), [Segmentation(4)])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(root / "network.ckpt")
    command = ["predict", "--device", "cpu", "--ckpt_path", str(root / "network.ckpt"), "--input"]
    (root / "one").mkdir()
    shutil.copy(root / "image.jpg", root / "one")

    def seconds(folder: str) -> float:
        start = time.process_time()
        if cli.main([*command, str(root / folder), "--output", str(root / f"{folder} predicted")]):
            raise SystemExit("predict failed")
        return time.process_time() - start

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seconds("one")
        alone, peak = seconds("one"), Peak()
        every = seconds("images")
    return {"ms an image": 1000 * (every - alone) / (count - 1), "MiB": peak()}
