"""What an evaluation finds out: the mean losses, and the metrics of all tasks over the whole set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torchmetrics import Metric

from densepred.metrics.base import WeightedMean
from densepred.tasks.base import Batch, Task


class Scores(nn.Module):
    """Losses and metrics of one stage, summed up over batches and processes.

    Args:
        tasks: What is predicted.
        stage: "val" or "test"; the keys begin with it.

    Attributes:
        metrics: Of each task, by name.
    """

    def __init__(self, tasks: Iterable[Task], stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.shown: dict[str, Sequence[str]] = {task.name: task.shown for task in tasks}
        self.metrics = nn.ModuleDict({task.name: task.metrics(stage) for task in tasks})
        names = ["loss", *(f"{task.name}/loss" for task in tasks)]
        self.losses = nn.ModuleDict({name: WeightedMean() for name in names})

    def reset(self) -> None:
        """Forgets everything."""
        for metric in [*self.metrics.values(), *self.losses.values()]:
            cast(Metric, metric).reset()

    def add_loss(self, name: str, value: Tensor, images: int) -> None:
        """Adds the mean loss of some images."""
        cast(WeightedMean, self.losses[name]).update(value, images)

    def add(self, predictions: Mapping[str, Tensor], tasks: Iterable[Task], batch: Batch) -> None:
        """Compares a batch's predictions with its targets."""
        for task in tasks:
            cast(Metric, self.metrics[task.name]).update(predictions[task.name], task.target(batch))

    def compute(self, losses: bool = True) -> dict[str, tuple[Tensor, bool]]:
        """Values by key, and whether they stand in the progress bar."""
        means = self.losses.items() if losses else ()
        found = {f"{self.stage}/{name}": (cast(Metric, mean).compute(), False) for name, mean in means}
        for name, metric in self.metrics.items():
            for key, value in cast(Metric, metric).compute().items():
                found[f"{self.stage}/{name}/{key}"] = value.float(), key in self.shown[name]
        return found
