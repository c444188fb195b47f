"""How many VOC training samples a core can load a second, against torchvision's reference and plain albumentations.

    python experiments/benchmarks/loading.py data/VOCdevkit/VOC2012 [rounds] [images]

All three read image and labels, scale by 0.5 to 2, crop to 480 x 480 (padding what is too small) and flip. Ours and
albumentations scale relative to the image and hand over uint8. The reference scales relative to a shorter side of 520,
converts to float32 and int64, and normalises, all of it in the loading process, as its training script does.

One thread; the three take turns in a changing order, so that what else the machine does hits all alike. Counted is CPU
time; printed are the median, the lowest and the highest of the rounds.
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
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from densepred.data.transforms import FlipLeftRight, SampleTransforms, ScaleCrop
from densepred.data.voc import PascalVOC

SIZE = 480
Load = Callable[[int], object]


def ours(dataset: PascalVOC) -> Load:
    pipeline = [ScaleCrop(size=(SIZE, SIZE), scale=(0.5, 2.0)), FlipLeftRight()]
    dataset.transforms = SampleTransforms(pipeline)
    return lambda index: dataset[index]


def plain_albumentations(dataset: PascalVOC) -> Load:
    pipeline = A.Compose(
        [
            A.RandomScale((-0.5, 1.0), area_for_downscale="image", p=1.0),
            A.PadIfNeeded(SIZE, SIZE, fill_mask=255),
            A.RandomCrop(SIZE, SIZE),
            A.HorizontalFlip(),
        ]
    )

    def load(index: int) -> object:
        files = dataset.files(index)
        image = cv2.cvtColor(cv2.imread(str(files["image"])), cv2.COLOR_BGR2RGB)
        sample = pipeline(image=image, mask=np.array(Image.open(files["segmentation"])))
        return torch.from_numpy(np.ascontiguousarray(sample["image"].transpose(2, 0, 1))), torch.from_numpy(
            np.ascontiguousarray(sample["mask"])
        )

    return load


def torchvision_reference(dataset: PascalVOC) -> Load:
    """references/segmentation: presets.py and transforms.py of torchvision, PIL backend, base 520, crop 480."""

    def load(index: int) -> object:
        files = dataset.files(index)
        image, mask = Image.open(files["image"]).convert("RGB"), Image.open(files["segmentation"])
        shorter = random.randint(260, 1040)
        image = F.resize(image, [shorter], antialias=True)
        mask = F.resize(mask, [shorter], interpolation=v2.InterpolationMode.NEAREST)
        if random.random() < 0.5:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        short = [0, 0, max(0, SIZE - image.width), max(0, SIZE - image.height)]
        image, mask = F.pad(image, short, fill=0), F.pad(mask, short, fill=255)
        box = v2.RandomCrop.get_params(image, (SIZE, SIZE)) if hasattr(v2.RandomCrop, "get_params") else _box(image)
        image, mask = F.crop(image, *box), F.crop(mask, *box)
        labels = torch.as_tensor(np.array(mask), dtype=torch.int64)
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        return F.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), labels

    return load


def _box(image: Image.Image) -> tuple[int, int, int, int]:
    return random.randint(0, image.height - SIZE), random.randint(0, image.width - SIZE), SIZE, SIZE


def main(root: str, rounds: int = 5, images: int = 60) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    loads = {make.__name__: make(PascalVOC(Path(root))) for make in (ours, plain_albumentations, torchvision_reference)}
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(rounds + 1):
        for name in random.sample(list(loads), len(loads)):
            start = time.process_time()
            for index in range(images):
                loads[name](index)
            if turn:  # the first round warms caches
                rates[name].append(images / (time.process_time() - start))
    for name, measured in rates.items():
        ratio = statistics.median(rates["ours"]) / statistics.median(measured)
        spread = f"{min(measured):.0f} to {max(measured):.0f}"
        print(
            f"{name:24}{statistics.median(measured):7.0f} images/s of a core ({spread}); ours is {ratio:.1f} times it"
        )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
