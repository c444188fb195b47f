"""How many VOC training samples a core can load a second, against torchvision's reference and plain albumentations.

    python experiments/benchmarks/loading.py data/VOCdevkit/VOC2012 [rounds] [images]

All read JPEG and label PNG, bring the shorter side to 260 to 1040 pixels (torchvision's base size 520, times 0.5 to 2),
crop to 480 x 480, pad what is too small (labels with 255), flip half of them, and collate batches of 8.

- ours: ScaleCrop and FlipLeftRight, the scale's range relative to the mean shorter side of these images; it resizes
  only what it keeps, averages what shrinks, checks the JPEG's structure and the labels' values, and hands over uint8.
- torchvision_pil, torchvision_tensor: SegmentationPresetTrain of torchvision's references/segmentation, on either
  backend: resizes the whole image with antialiasing, normalises, and hands over float32 and int64.
- albumentations: SmallestMaxSize, PadIfNeeded, RandomCrop, HorizontalFlip, Normalize, ToTensorV2, all with their
  defaults (nothing is averaged); float32 images and uint8 labels.
- albumentations_uint8: the same without Normalize.

One thread; they take turns in a changing order, so that what else the machine does hits all alike. Counted is CPU time;
printed are the median, the lowest and the highest of the rounds, and the median of the ratios within a round.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.transforms import functional as F

from densepred.data.collate import Collate
from densepred.data.images import read_size
from densepred.data.transforms import FlipLeftRight, SampleTransforms, ScaleCrop
from densepred.data.voc import PascalVOC

SIZE, BATCH = 480, 8
SHORTER = (260, 1040)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Load = Callable[[list[int]], object]
"""Indices to a batch."""


def ours(root: Path) -> Load:
    dataset = PascalVOC(root)
    shorter = statistics.mean(min(read_size(dataset.files(index)["image"])) for index in range(len(dataset)))
    scale = (SHORTER[0] / shorter, SHORTER[1] / shorter)
    dataset.transforms = SampleTransforms([ScaleCrop(size=(SIZE, SIZE), scale=scale), FlipLeftRight()])
    collate = Collate(dataset.kinds, training=True)
    return lambda indices: collate([dataset[index] for index in indices])


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


def torchvision_pil(root: Path, tensors: bool = False) -> Load:
    dataset = PascalVOC(root)

    def to_tensors(image: Image.Image, labels: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return F.pil_to_tensor(image), torch.as_tensor(np.array(labels), dtype=torch.int64)

    def padded(image: Image.Image | torch.Tensor, fill: int) -> Image.Image | torch.Tensor:
        _, height, width = F.get_dimensions(image)
        if min(height, width) >= SIZE:
            return image
        return F.pad(image, [0, 0, max(0, SIZE - width), max(0, SIZE - height)], fill=fill)

    def sample(index: int) -> object:
        files = dataset.files(index)
        image, labels = Image.open(files["image"]).convert("RGB"), Image.open(files["segmentation"])
        if tensors:
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
        if not tensors:
            image, labels = to_tensors(image, labels)
        return F.normalize(F.convert_image_dtype(image, torch.float), MEAN, STD), labels.squeeze(0)

    return lambda indices: default_collate([sample(index) for index in indices])


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


def lead(rates: dict[str, list[float]], name: str) -> float:
    """How many times as fast ours is: the median of the ratios within a round."""
    return statistics.median(ours / other for ours, other in zip(rates["ours"], rates[name], strict=True))


def main(root: str, rounds: int = 5, images: int = 64) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rates = measure(Path(root), rounds, images)
    for name, measured in rates.items():
        spread = f"{min(measured):.0f} to {max(measured):.0f}"
        print(
            f"{name:22}{statistics.median(measured):6.0f} images/s of a core ({spread}); "
            f"ours is {lead(rates, name):.1f} times it"
        )


CONTENDERS = (ours, albumentations_uint8, albumentations, torchvision_pil, torchvision_tensor)

if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
