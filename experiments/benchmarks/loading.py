"""How many VOC training samples a core can load a second, against torchvision's reference and plain albumentations.

    python experiments/benchmarks/loading.py data/VOCdevkit/VOC2012              # a few minutes
    python experiments/benchmarks/loading.py data/VOCdevkit/VOC2012 --quick      # does it run

All read JPEG and label PNG, bring the shorter side to 260 to 1040 pixels (torchvision's base size 520, times 0.5 to 2),
crop to 480 x 480, pad what is too small (labels with 255), flip half of them, and collate batches of 8.

- ours: ScaleCrop and FlipLeftRight, the scale's range relative to the mean shorter side of these images; it resizes
  only what it keeps, averages what shrinks, checks the JPEG's structure and the labels' values, and hands over uint8;
  the device normalises.
- ours_normalised: the same, normalised here: float32 images, as a device gets that shall do nothing but train.
- ours_decoded: ours with DENSEPRED_DECODED, from the second epoch on.
- torchvision_pil, torchvision_tensor: SegmentationPresetTrain of torchvision's references/segmentation, on either
  backend: resizes the whole image with antialiasing, normalises, and hands over float32 and int64.
- albumentations: SmallestMaxSize, PadIfNeeded, RandomCrop, HorizontalFlip, Normalize, ToTensorV2, all with their
  defaults (nothing is averaged); float32 images and uint8 labels.
- albumentations_uint8: the same without Normalize.

One thread; they take turns in a changing order, so that what else the machine does hits all alike. Counted is CPU time;
printed are the median, the lowest and the highest of the rounds, and the same of the ratios within a round.

A second table is of whole loaders, by the wall clock on all cores: images that come a second, without and with one
worker process, when nothing is done with them, and when ResNet-18 with a U-Net decoder (DensePredictor, bfloat16 and
ChannelsLast where the processor computes bfloat16) trains on them: ours, and torchvision's reference.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision import transforms as T
from torchvision.transforms import functional as F

from densepred.callbacks.channels_last import ChannelsLast
from densepred.data.collate import Collate
from densepred.data.decoded import DECODED
from densepred.data.images import read_size
from densepred.data.transforms import FlipLeftRight, SampleTransforms, ScaleCrop
from densepred.data.voc import PascalVOC, PascalVOCDataModule
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.half_precision import computes_bfloat16
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation

SIZE, BATCH = 480, 8
SHORTER = (260, 1040)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Load = Callable[[list[int]], Any]
"""Indices to a batch."""


def our_transforms(root: Path) -> list[A.BasicTransform]:
    dataset = PascalVOC(root)
    shorter = statistics.mean(min(read_size(dataset.files(index)["image"])) for index in range(len(dataset)))
    scale = (SHORTER[0] / shorter, SHORTER[1] / shorter)
    return [ScaleCrop(size=(SIZE, SIZE), scale=scale), FlipLeftRight()]


def ours(root: Path) -> Load:
    dataset = PascalVOC(root, transforms=SampleTransforms(our_transforms(root)))
    collate = Collate(dataset.kinds, training=True)
    return lambda indices: collate([dataset[index] for index in indices])


def ours_normalised(root: Path) -> Load:
    load, normalise = ours(root), ResNetEncoder("resnet18").normalise

    def normalised(indices: list[int]) -> object:
        batch = load(indices)
        return batch | {"image": normalise(batch["image"])}

    return normalised


def ours_decoded(root: Path) -> Load:
    load, folder = ours(root), tempfile.TemporaryDirectory()

    def from_decoded(indices: list[int], folder: tempfile.TemporaryDirectory = folder) -> object:
        os.environ[DECODED] = folder.name
        try:
            return load(indices)
        finally:
            del os.environ[DECODED]

    return from_decoded


def albumentations(root: Path, normalise: bool = True) -> Load:
    dataset = PascalVOC(root)
    steps = [
        A.SmallestMaxSize(list(range(SHORTER[0], SHORTER[1] + 1))),
        A.PadIfNeeded(SIZE, SIZE, fill_mask=255),
        A.RandomCrop(SIZE, SIZE),
        A.HorizontalFlip(),
        *([A.Normalize(MEAN, STD)] if normalise else []),
        A.ToTensorV2(),
    ]
    pipeline = A.Compose(steps)

    def sample(index: int) -> object:
        files = dataset.files(index)
        image = cv2.cvtColor(cv2.imread(str(files["image"])), cv2.COLOR_BGR2RGB)
        return pipeline(image=image, mask=np.array(Image.open(files["segmentation"])))

    return lambda indices: default_collate([sample(index) for index in indices])


def albumentations_uint8(root: Path) -> Load:
    return albumentations(root, normalise=False)


class Reference(Dataset):
    """Samples of torchvision's reference pipeline."""

    def __init__(self, root: Path, tensors: bool = False) -> None:
        self.files, self.tensors = PascalVOC(root), tensors

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        files = self.files.files(index)
        image, labels = Image.open(files["image"]).convert("RGB"), Image.open(files["segmentation"])
        if self.tensors:
            image, labels = to_tensors(image, labels)
            labels = labels[None]  # the reference forgets this axis, without which resize fails
        shorter = random.randint(*SHORTER)
        image = F.resize(image, shorter, antialias=True)
        labels = F.resize(labels, shorter, interpolation=T.InterpolationMode.NEAREST)
        if random.random() < 0.5:
            image, labels = F.hflip(image), F.hflip(labels)
        image, labels = padded(image, 0), padded(labels, 255)
        window = T.RandomCrop.get_params(image, (SIZE, SIZE))
        image, labels = F.crop(image, *window), F.crop(labels, *window)
        if not self.tensors:
            image, labels = to_tensors(image, labels)
        return F.normalize(F.convert_image_dtype(image, torch.float), MEAN, STD), labels.squeeze(0)


def to_tensors(image: Image.Image, labels: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    return F.pil_to_tensor(image), torch.as_tensor(np.array(labels), dtype=torch.int64)


def padded(image: Image.Image | torch.Tensor, fill: int) -> Image.Image | torch.Tensor:
    _, height, width = F.get_dimensions(image)
    if min(height, width) >= SIZE:
        return image
    return F.pad(image, [0, 0, max(0, SIZE - width), max(0, SIZE - height)], fill=fill)


def torchvision_pil(root: Path, tensors: bool = False) -> Load:
    samples = Reference(root, tensors)
    return lambda indices: default_collate([samples[index] for index in indices])


def torchvision_tensor(root: Path) -> Load:
    return torchvision_pil(root, tensors=True)


def measure(root: Path, rounds: int, images: int) -> dict[str, list[float]]:
    """Samples for a second of CPU time in every round, by contender."""
    loads = {make.__name__: make(root) for make in CONTENDERS}
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(rounds + 1):
        for name in random.sample(list(loads), len(loads)):
            start = time.process_time()
            for first in range(0, images, BATCH):
                loads[name](list(range(first, min(first + BATCH, images))))
            if turn:  # the first round warms caches
                rates[name].append(images / (time.process_time() - start))
    return rates


def leads(rates: dict[str, list[float]], name: str) -> list[float]:
    """How many times as fast as the contender ours is, in each round."""
    return [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]


def spread(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def loaders(root: Path, workers: int, images: int) -> dict[str, DataLoader]:
    """Ours as its datamodule makes it, and torchvision's as its reference does."""
    data = PascalVOCDataModule(
        root, batch_size=BATCH, num_workers=workers, train_transforms=our_transforms(root), train_limit=images,
        check="none",
    )  # fmt: skip
    data.setup("fit")
    reference = Subset(Reference(root), range(images))
    theirs = DataLoader(
        reference, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return {"ours": data.train_dataloader(), "torchvision_pil": theirs}


def trainer() -> Callable[[Any], None]:
    """What takes one training step with a batch, of either kind."""
    module = DensePredictor(
        ResNetEncoder("resnet18"), partial(UNetDecoder, widths=(128, 64, 48, 32)), [Segmentation(21)]
    )
    half = computes_bfloat16("cpu")
    if half:
        ChannelsLast().setup(None, module, "fit")
    optimizer = module.build_optimizer()

    def step(batch: Any) -> None:
        if not isinstance(batch, dict):
            batch = {"image": batch[0].clamp(0, 1), "segmentation": batch[1].to(torch.uint8)}  # a legal sample
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def end_to_end(root: Path, rounds: int, images: int, quick: bool) -> list[tuple[str, int, str, list[float]]]:
    """Contender, workers, what is done with the batches, and images a second in every round."""
    uses: dict[str, Callable[[Any], object]] = {"nothing": lambda batch: None}
    if not quick:
        uses["training"] = trainer()
    found = []
    for workers in (0, 1):
        served = loaders(root, workers, images)
        cells: dict[tuple[str, str], list[float]] = {(use, name): [] for use in uses for name in served}
        for turn in range(rounds + 1):
            for use, name in random.sample(list(cells), len(cells)):
                start = time.perf_counter()
                count = sum(BATCH for batch in served[name] if [uses[use](batch)])
                if turn:  # workers start in the first round
                    cells[use, name].append(count / (time.perf_counter() - start))
        found += [(name, workers, use, rates) for (use, name), rates in cells.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder VOC2012")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    options = parser.parse_args()
    rounds, images = (1, 32) if options.quick else (options.rounds, options.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.filterwarnings("ignore", message=".*self.log.*")
    rates = measure(options.root, rounds, images)
    print("| pipeline | images/s of a core | ours is so many times as fast |\n|---|---|---|")
    for name, measured in rates.items():
        print(f"| `{name}` | {spread(measured, 0)} | {spread(leads(rates, name), 2)} |")
    torch.set_num_threads(threads)
    print("\n| loader | workers | done with batches | images/s |\n|---|---|---|---|")
    for name, workers, use, measured in end_to_end(options.root, min(rounds, 3), images // 2, options.quick):
        print(f"| `{name}` | {workers} | {use} | {spread(measured, 1)} |")


CONTENDERS = (
    ours, ours_normalised, ours_decoded, albumentations_uint8, albumentations, torchvision_pil, torchvision_tensor,
)  # fmt: skip

if __name__ == "__main__":
    main()
