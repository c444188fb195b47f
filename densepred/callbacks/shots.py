"""Samples of a batch as pictures, each at its true size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densepred.callbacks.sheet import Key, Legend, Row
from densepred.palettes import VOID_COLOUR
from densepred.tasks.base import Batch, Task
from densepred.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Shot:
    """One evaluated sample, on the CPU, without the padding of its batch.

    Attributes:
        name: The sample's name.
        image: RGB, uint8 (3, H, W).
        predictions: By task name, (1, ..., H, W).
        targets: The same; a task whose target the batch lacks is left out.
        pictures: By task name and caption, RGB, uint8 (3, H, W).
    """

    name: str
    image: Tensor
    predictions: dict[str, Tensor]
    targets: dict[str, Tensor]
    pictures: dict[str, dict[str, Tensor]]


def shots_of(tasks: Sequence[Task], batch: Batch, predictions: dict[str, Tensor], most: int) -> list[Shot]:
    """The first samples of a batch, at most so many."""
    count = min(most, len(batch["image"]))
    whole = {task.name: task.target(batch) for task in tasks if task.name in batch}
    return [_shot(tasks, batch, predictions, whole, index) for index in range(count)]


def _shot(
    tasks: Sequence[Task], batch: Batch, predictions: dict[str, Tensor], targets: dict[str, Tensor], index: int
) -> Shot:
    size = (
        tuple(batch["image"].shape[-2:]) if "size" not in batch else tuple(int(side) for side in batch["size"][index])
    )

    def own(planes: Tensor) -> Tensor:
        return planes[index : index + 1, ..., : size[0], : size[1]].detach().cpu()

    mine = {task.name: own(predictions[task.name]) for task in tasks if task.name in predictions}
    true = {name: own(target) for name, target in targets.items() if name in mine}
    pictures: dict[str, dict[str, Tensor]] = {}
    for task in tasks:
        if task.name in true:
            drawn = task.panel(mine[task.name], true[task.name])
        elif task.name in mine:
            drawn = {"prediction": task.render(mine[task.name])}
        else:
            continue
        pictures[task.name] = {caption: picture[0] for caption, picture in drawn.items()}
    name = str(batch["name"][index]) if "name" in batch else ""
    return Shot(name, rgb(own(batch["image"])[0]), mine, true, pictures)


def rgb(image: Tensor) -> Tensor:
    """An image of any number of channels as people can see it: the first three, or the first one in grey.

    Shape:
        image: (C, H, W), uint8, or floating point in [0, 1]; returns (3, H, W), uint8.

    Example:
        >>> rgb(torch.full((2, 1, 1), 0.5)).flatten()
        tensor([128, 128, 128], dtype=torch.uint8)
    """
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if shown.is_floating_point():
        shown = (shown.float().nan_to_num(0).clamp(0, 1) * 255).round()
    return shown.to(torch.uint8)


def row_of(shot: Shot, tasks: Sequence[Task]) -> Row:
    """A sheet's row: the image and the tasks' pictures."""
    pictures: dict[Key, np.ndarray] = {("image", ""): array_of(shot.image)}
    for task in tasks:
        for caption, picture in shot.pictures.get(task.name, {}).items():
            pictures[task.name, caption] = array_of(picture)
    return Row(shot.name, pictures)


def array_of(picture: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(3, H, W) to (H, W, 3)."""
    return picture.permute(1, 2, 0).numpy()


def legends_of(shots: Sequence[Shot], tasks: Sequence[Task]) -> list[Legend]:
    """What the colours of label tasks mean: the classes that the shots show, each once."""
    return [_legend(shots, task) for task in tasks if isinstance(task, Segmentation)]


def _legend(shots: Sequence[Shot], task: Segmentation) -> Legend:
    present, void = set[int](), False
    for shot in shots:
        for labels in (shot.predictions.get(task.name), shot.targets.get(task.name)):
            if labels is None:
                continue
            known = task.known(labels)
            void = void or not bool(known.all())
            if task.mode == "multilabel":
                present |= set(((labels == 1) & known).any((0, 2, 3)).nonzero().flatten().tolist())
            else:
                present |= set(np.unique(labels[known].numpy()).tolist())
    entries = [
        (name, (colour[0], colour[1], colour[2]))
        for index, (name, colour) in enumerate(zip(task.classes, task.palette, strict=True))
        if index in present
    ]
    return Legend(task.name, [*entries, ("void", VOID_COLOUR)] if void else entries)
