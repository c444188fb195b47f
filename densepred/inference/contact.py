"""A sheet of the first predictions, to be looked at: the pictures, what is predicted, and what the colours mean."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densepred.callbacks.sheet import Key, Legend, Row, draw_sheet
from densepred.callbacks.shots import Shot, array_of, legends_of
from densepred.inference.prediction import Prediction
from densepred.sample import Kind
from densepred.tasks.base import Task

_SIDE = 640


class ContactSheet:
    """Collects predictions, small, and draws them.

    Args:
        tasks: What is predicted.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = list(tasks)
        self._rows: list[Row] = []
        self._shots: list[Shot] = []

    def add(self, name: str, prediction: Prediction) -> None:
        """One more row."""
        pictures: dict[Key, np.ndarray] = {("image", ""): array_of(smaller(prediction.shown_image()))}
        for task in self.tasks:
            pictures[task.name, _caption(task)] = array_of(smaller(prediction.picture(task.name)))
        height, width = prediction.image.shape[-2:]
        words = [name, f"{height} x {width}", *(_range(prediction, task) for task in self.tasks)]
        self._rows.append(Row(", ".join(filter(None, words)), pictures))
        labels = {task.name: _kinds(prediction[task.name]) for task in self.tasks if task.kind is Kind.LABEL}
        self._shots.append(Shot(name, torch.empty(0), labels, {}, {}))

    def draw(self, title: str) -> Image.Image:
        """The sheet; two rows stand side by side where the tasks are few."""
        legends: list[Legend] = legends_of(self._shots, self.tasks)
        across = max(1, math.floor(6 / (1 + len(self.tasks)))) if len(self._rows) > 1 else 1
        return draw_sheet(self._rows, title, legends, across)

    def __len__(self) -> int:
        return len(self._rows)


def smaller(picture: Tensor, side: int = _SIDE) -> Tensor:
    """A picture (3, H, W), uint8, reduced where its longer side is beyond `side`."""
    height, width = picture.shape[-2:]
    if max(height, width) <= side:
        return picture
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]


def _caption(task: Task) -> str:
    return {Kind.DEPTH: "dark near, bright far", Kind.NORMALS: "red right, green up, blue to us"}.get(task.kind, "")


def _range(prediction: Prediction, task: Task) -> str:
    if task.kind is not Kind.DEPTH:
        return ""
    metres = prediction[task.name]
    return f"{metres.min():.3g} to {metres.max():.3g} m"


def _kinds(labels: Tensor) -> Tensor:
    """The labels that occur, in the fewest pixels that a legend can be made of."""
    return (
        torch.from_numpy(np.unique(labels.numpy()))[None]
        if labels.ndim == 2
        else labels.amax((1, 2))[None, :, None, None]
    )
