"""Training and scoring of `camvid.py`: frames in memory, and a budget of the processor's time."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densepred.data.camvid import CAMVID_CLASSES, CamVid
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.tasks.segmentation import Segmentation

TASK = Segmentation(CAMVID_CLASSES)
EVALUATED = 10  # frames at once: what batch statistics are of, as published


class Images(NamedTuple):
    """A split of the data: (N, 3, H, W) and (N, H, W), uint8; void is 255."""

    image: Tensor
    labels: Tensor


class Recipe(NamedTuple):
    """How a network is trained; `factor` gives the multiple of the rate at a share of the budget."""

    optimizer: torch.optim.Optimizer
    factor: Callable[[float], float]
    batch: int
    crop: tuple[int, int]
    clip: float
    half: bool


def read(root: Path, split: str, size: tuple[int, int], most: int | None) -> Images:
    """A split, shrunk; its first frames alone, if so many are told."""
    images, labels = [], []
    data = CamVid(root, split)
    for i in range(min(len(data), most or len(data))):
        raw = data[i]
        image = cv2.resize(raw["image"].permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_AREA)
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        target = cv2.resize(raw["segmentation"].numpy(), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        labels.append(torch.from_numpy(target))
    return Images(torch.stack(images), torch.stack(labels))


def batches(data: Images, recipe: Recipe, generator: torch.Generator) -> Iterator[Images]:
    """Without end: all frames in a new order, cropped and mirrored by chance."""

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    (height, width), (rows, columns) = recipe.crop, data.labels.shape[1:]
    while True:
        for chosen in torch.randperm(len(data.labels), generator=generator).split(recipe.batch):
            images, labels = [], []
            for i in chosen if len(chosen) == recipe.batch else ():
                y, x, flip = draw(rows - height + 1), draw(columns - width + 1), [-1] * draw(2)
                images.append(data.image[i, :, y : y + height, x : x + width].flip(flip))
                labels.append(data.labels[i, y : y + height, x : x + width].flip(flip))
            if images:
                yield Images(torch.stack(images).contiguous(memory_format=torch.channels_last), torch.stack(labels))


def step(network: Any, recipe: Recipe, batch: Images) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
        planes = network.planes(batch.image)[TASK.name]
    recipe.optimizer.zero_grad()
    TASK.loss_from_planes(planes, {"image": batch.image, TASK.name: batch.labels}).backward()
    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    recipe.optimizer.step()


@torch.inference_mode()
def score(network: Any, data: Images, half: bool) -> tuple[float, float]:
    """mIoU and pixel accuracy, at the size of the data."""
    metrics = SegmentationMetrics(CAMVID_CLASSES)
    network.eval()
    for image, labels in zip(data.image.split(EVALUATED), data.labels.split(EVALUATED), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            planes = network.planes(image.contiguous(memory_format=torch.channels_last))[TASK.name]
        metrics.update(TASK.predict_from_planes(planes, (labels.shape[-2], labels.shape[-1])), labels)
    values = metrics.compute()
    return float(values["miou"]), float(values["pixel_accuracy"])


def train(
    network: Any,
    recipe: Recipe,
    data: dict[str, Images],
    minutes: float,
    seed: int,
    validations: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0),
) -> tuple[int, float]:
    """So many minutes of the processor's time; leaves the weights that validated best.

    Args:
        network: Its `planes` gives logits by the name of the task.
        recipe: How.
        data: Splits "train" and "val".
        minutes: Validations' time does not count.
        seed: Of order, crops and mirroring.
        validations: Shares of the budget after which there is one; 1 is the last.

    Returns:
        Steps, and the best validation's mIoU.
    """
    rates = [group["lr"] for group in recipe.optimizer.param_groups]
    feed = batches(data["train"], recipe, torch.Generator().manual_seed(seed))
    to_come = list(validations)
    steps, spent, best, weights = 0, 0.0, -1.0, network.state_dict()
    while to_come:
        start = time.process_time()
        for group, full in zip(recipe.optimizer.param_groups, rates, strict=True):
            group["lr"] = full * recipe.factor(spent / minutes / 60)
        network.train()
        step(network, recipe, next(feed))
        steps, spent = steps + 1, spent + time.process_time() - start
        if spent / minutes / 60 >= to_come[0]:
            to_come = [share for share in to_come if share > spent / minutes / 60]
            miou, _ = score(network, data["val"], recipe.half)
            if miou > best:
                best, weights = miou, {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    return steps, best


def gmac(network: Any, size: tuple[int, int]) -> float:
    """Thousand million multiply-accumulates an image, in convolutions and matrix products."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        network.eval().planes(torch.zeros(1, 3, *size))
    return flops.get_total_flops() / 2e9
