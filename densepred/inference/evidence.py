"""What networks say of an image, in a form of which means can be taken."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork
from densepred.tasks.base import Task

Merge = Literal["mean", "logit", "max"]


class Evidence(ABC):
    """Turns images into evidence: for each task planes that may be averaged, at the image's size.

    Of labels these are probabilities, of depth logarithms, of normals unit vectors (see `Task.evidence`). Averages over
    networks, flips, zooms, dropout and tiles are evidence made of evidence, so that all of them combine.

    Args:
        tasks: What is predicted.

    Shape:
        image: (B, C, H, W), uint8, or floating point in [0, 1].
        returns: by task name (B, planes, H, W), float32.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = list(tasks)

    @abstractmethod
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name."""

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """The single answers that the evidence is the mean of, one after the other; how they differ is uncertainty."""
        yield self(image)

    def parts(self) -> list["Evidence"]:
        """The evidence that it is made of, one step down."""
        return [value for value in vars(self).values() if isinstance(value, Evidence)]

    @property
    def averages(self) -> bool:
        """Whether it is the plain mean of its `answers`."""
        return all(part.averages for part in self.parts())

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task name: labels (B, H, W), metres (B, 1, H, W), unit vectors (B, 3, H, W)."""
        evidence = self(image)
        return {task.name: task.decide(evidence[task.name]) for task in self.tasks}


class NetworkEvidence(Evidence):
    """What one network says.

    Args:
        network: In evaluation mode.
        tasks: Its tasks.
    """

    def __init__(self, network: DenseNetwork, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.network = network

    def planes(self, image: Tensor) -> dict[str, Tensor]:
        """The network's raw planes, by task name."""
        return self.network.planes(image)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name."""
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        planes = self.planes(image)
        return {
            task.name: task.evidence(task.output_from_planes(planes[task.name], size)[..., :height, :width])
            for task in self.tasks
        }

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions, without evidence at full resolution where the task can do without."""
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        planes = self.planes(image)
        return {
            task.name: task.predict_from_planes(planes[task.name], size)[..., :height, :width] for task in self.tasks
        }


class Mixture:
    """Adds evidence up, one answer after the other, for their mean.

    Args:
        tasks: What the evidence is about.
        merge: How answers on labels are joined: the mean of probabilities, of logits (the normalised geometric mean of
            probabilities), or their maximum, normalised. Other tasks take the mean.

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> mixture = Mixture([Depth()])
        >>> for metres in (1.0, 4.0):
        ...     mixture.add({"depth": torch.full((1, 1, 1, 1), metres).log()})
        >>> mixture.mean()["depth"].exp().item()
        2.0
    """

    def __init__(self, tasks: Sequence[Task], merge: Merge = "mean") -> None:
        if merge not in ("mean", "logit", "max"):
            raise ConfigurationError(f"merge is {merge!r}; expected mean, logit or max.")
        self.tasks = list(tasks)
        self.merge = merge
        self.count = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, evidence: dict[str, Tensor]) -> None:
        """One more answer."""
        self.count += 1
        for task in self.tasks:
            new = self._before(task, evidence[task.name])
            old = self._sums.get(task.name)
            if old is None:
                self._sums[task.name] = new.clone()
            elif self.merge == "max" and task.distribution:
                torch.maximum(old, new, out=old)
            else:
                old += new

    def mean(self) -> dict[str, Tensor]:
        """The joint evidence of all that was added."""
        return {task.name: self._after(task, self._sums[task.name]) for task in self.tasks}

    def _before(self, task: Task, evidence: Tensor) -> Tensor:
        if task.distribution is None or self.merge != "logit":
            return evidence
        tiny = torch.finfo(evidence.dtype).tiny
        return evidence.clamp(min=tiny).log() if task.distribution == "exclusive" else evidence.logit(1e-7)

    def _after(self, task: Task, total: Tensor) -> Tensor:
        if task.distribution is None or self.merge == "mean":
            return total / self.count
        if self.merge == "max":
            return total / total.sum(1, keepdim=True) if task.distribution == "exclusive" else total
        mean = total / self.count
        return mean.softmax(1) if task.distribution == "exclusive" else mean.sigmoid()


class MeanEvidence(Evidence):
    """The joint evidence of several networks (an ensemble), or of anything else that gives evidence of the same tasks.

    Args:
        members: At least one.
        merge: See `Mixture`.

    Raises:
        ConfigurationError: If the members do not predict the same.
    """

    def __init__(self, members: Sequence[Evidence], merge: Merge = "mean") -> None:
        super().__init__(members[0].tasks)
        asked = [[(task.name, task.out_channels, getattr(task, "classes", None)) for task in m.tasks] for m in members]
        if any(other != asked[0] for other in asked):
            raise ConfigurationError(
                f"An ensemble averages networks of the same tasks and classes; the first has {asked[0]}, another "
                f"{next(other for other in asked if other != asked[0])}."
            )
        self.members = list(members)
        self.merge = merge

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name."""
        mixture = Mixture(self.tasks, self.merge)
        for member in self.members:
            mixture.add(member(image))
        return mixture.mean()

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Those of each member."""
        for member in self.members:
            yield from member.answers(image)

    def parts(self) -> list[Evidence]:
        """The members."""
        return self.members

    @property
    def averages(self) -> bool:
        """Whether it is the plain mean of its `answers`."""
        return self.merge == "mean" and super().averages
