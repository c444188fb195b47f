"""The images that a network gets most wrong, found in passing."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densepred.callbacks.pixel_errors import pixel_errors
from densepred.tasks.base import Batch, Task


@dataclass(frozen=True)
class Candidate:
    """One evaluated image: a batch of one with its prediction, on the CPU.

    Attributes:
        score: Its mean error.
        name: The sample's name.
        batch: As the data gave it.
        predictions: By task name.
    """

    score: float
    name: str
    batch: Batch
    predictions: dict[str, Tensor]


class WorstImages:
    """Scores every image of an evaluation, and keeps those with the greatest mean error for each task.

    Args:
        most: How many to keep for each task.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[str, list[Candidate]] = {}
        self.names: list[str] = []
        self.scores: dict[str, list[float]] = {}

    def add(self, tasks: list[Task], batch: Batch, predictions: dict[str, Tensor]) -> None:
        """Scores a batch; waits for the device once."""
        known = [task for task in tasks if task.name in batch and task.name in predictions]
        if not known:
            return
        errors = [pixel_errors(task, predictions[task.name], task.target(batch)).flatten(1) for task in known]
        means = torch.stack([error.nanmean(1) for error in errors]).cpu().tolist()
        names = [str(name) for name in batch.get("name", [""] * len(batch["image"]))]
        self.names += names
        for task in tasks:
            if task not in known:
                self.scores.setdefault(task.name, []).extend([math.nan] * len(names))
        for task, scores in zip(known, means, strict=True):
            self.scores.setdefault(task.name, []).extend(scores)
            for index, score in enumerate(scores):
                self._consider(task, score, names[index], batch, predictions, index)

    def _consider(
        self, task: Task, score: float, name: str, batch: Batch, predictions: dict[str, Tensor], index: int
    ) -> None:
        kept = self.kept.setdefault(task.name, [])
        if math.isnan(score) or (len(kept) == self.most and score <= kept[-1].score):
            return
        mine = {task.name: _one(predictions[task.name], index)}
        kept.append(Candidate(score, name, {key: _one(value, index) for key, value in batch.items()}, mine))
        kept.sort(key=lambda candidate: -candidate.score)
        del kept[self.most :]

    def gather(self) -> None:
        """Joins what several processes found; every process must ask."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, (self.kept, self.names, self.scores))
        self.names = [name for _, names, _ in found for name in names]
        self.scores = {key: [s for _, _, scores in found for s in scores.get(key, [])] for key in self.scores}
        for key in self.kept:
            everyone = [candidate for kept, _, _ in found for candidate in kept.get(key, [])]
            self.kept[key] = sorted(everyone, key=lambda candidate: -candidate.score)[: self.most]


def _one(values: Any, index: int) -> Any:
    if isinstance(values, Tensor):
        return values[index : index + 1].detach().cpu().clone()
    return values[index : index + 1] if isinstance(values, list) else values
