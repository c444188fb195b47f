"""What every task promises: all that differs between labels, depth and normals."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError, DataError
from densepred.losses.base import Loss
from densepred.recipe import Recorded
from densepred.sample import Kind, pad_planes

Batch = dict[str, Any]


class Task(Recorded, nn.Module, ABC):
    """One thing predicted at every pixel. Owns its planes, activation, loss, metrics and picture.

    *planes* are raw; `activate` makes them the *output*, which losses see; `predict` makes that the *prediction*, which
    metrics and people see. The task's name is its key in the sample and in the network's answer, and the prefix of its
    metrics (`val/depth/abs_rel`).

    Args:
        name: Sample key, output key and metric prefix.
        out_channels: Number of planes.
        loss: Takes output and target.
        weight: Factor of its loss in the sum over tasks.

    Shape:
        planes, output: (B, out_channels, H, W).
        prediction, target: (B, ..., H, W), as the sample says.

    Raises:
        ConfigurationError: If the loss, or a part of it, compares targets of another kind.
        DataError: If a batch lacks the task's key.
    """

    monitor: tuple[str, str]
    """The metric by which checkpoints are chosen, and "min" or "max"."""
    kind: Kind
    """How its target is padded, and what its loss must be able to compare."""
    shown: tuple[str, ...] = ()
    """Keys of the metrics that stand in the progress bar."""
    distribution: Literal["exclusive", "independent"] | None = None
    """What its evidence is: probabilities of which one holds, or each by itself; None where it is no probabilities."""

    def __init__(self, name: str, out_channels: int, loss: Loss, weight: float = 1.0) -> None:
        super().__init__()
        for part in parts(loss):
            if part.kind not in (None, self.kind):
                raise ConfigurationError(
                    f"{type(self).__name__}: {type(part).__name__} compares {part.kind} targets; those of the task "
                    f"{name!r} are of kind {self.kind}. `densepred list losses` shows all; leave `loss` out for the "
                    "task's own."
                )
            if part.task not in (None, *(base.__name__ for base in type(self).__mro__)):
                raise ConfigurationError(
                    f"{type(self).__name__}: {type(part).__name__} is what the task {part.task} learns by, which makes "
                    f"it itself. Take {part.task}, or leave `loss` out."
                )
        self.name = name
        self.out_channels = out_channels
        self.loss = loss
        self.weight = weight

    @property
    def refinable(self) -> bool:
        """Whether its planes say which one label holds, so that a dense CRF can refine them; a single plane may."""
        return self.distribution == "exclusive" or (self.distribution == "independent" and self.out_channels == 1)

    @abstractmethod
    def activate(self, planes: Tensor) -> Tensor:
        """Planes (B, out_channels, H, W) to output of the same size."""

    @abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """Output to prediction: labels (B, H, W), metres (B, 1, H, W) or unit vectors (B, 3, H, W)."""

    def evidence(self, output: Tensor) -> Tensor:
        """Output to planes of which a mean makes sense, for averages over networks, flips, zooms and tiles.

        By default the output itself.
        """
        return output

    def decide(self, evidence: Tensor) -> Tensor:
        """Evidence to prediction; of one output's evidence, the same as `predict` of the output."""
        return self.predict(evidence)

    def unflipped(self, evidence: Tensor) -> Tensor:
        """The evidence of an image, from that of its mirror image (left and right swapped)."""
        return evidence.flip(-1)

    def unzoomed(self, evidence: Tensor, zoom: float) -> Tensor:
        """The evidence of an image, from that of the image enlarged by `zoom`, as planes of the same size."""
        return evidence

    @abstractmethod
    def metrics(self, stage: str) -> Metric:
        """A metric for "val" or "test": updated with (prediction, target), computes a dict of scalars by key."""

    @abstractmethod
    def render(self, prediction: Tensor) -> Tensor:
        """Prediction (or target) to a picture, uint8 RGB (B, 3, H, W)."""

    def panel(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Pictures by caption, uint8 RGB (B, 3, H, W), drawn on one scale; a task may add an error map."""
        return {"target": self.render(target), "prediction": self.render(prediction)}

    def target(self, batch: Batch) -> Tensor:
        """What is true, from a batch, with what is missing marked in it; losses and metrics see this."""
        if self.name not in batch:
            raise DataError(
                f"Task {self.name!r} looks for {self.name!r} in the sample, which holds {', '.join(map(repr, batch))}. "
                "Rename the task, or let the data yield that key."
            )
        target: Tensor = batch[self.name]
        return target

    def pad(self, batch: Batch, size: tuple[int, int]) -> Batch:
        """This task's entries of a batch, padded right and bottom to `size` with "missing"."""
        return {self.name: pad_planes(self.target(batch), size, self.kind)}

    def known(self, target: Tensor) -> Tensor:
        """True where the target is known; the target's size, or broadcast to it."""
        return target.isfinite()

    def constant_statistic(self, target: Tensor) -> Tensor:
        """What the best constant prediction of a set is made of; add it up over batches.

        By default sums and counts of the known values (2, planes). On the CPU, in float64.
        """
        known = self.known(target).expand_as(target)
        sums = torch.where(known, target.float(), 0).sum((0, 2, 3))
        return torch.stack([sums, known.sum((0, 2, 3)).to(sums.dtype)]).cpu().double()

    def constant_prediction(self, statistic: Tensor, target: Tensor) -> Tensor:
        """The same answer at every pixel, the best of its kind, as a prediction of the target's size: a baseline.

        By default each plane's mean.
        """
        mean = statistic[0] / statistic[1].clamp(min=1)
        return mean.to(target).view(1, -1, 1, 1).expand(target.shape)

    def compute_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Output at the image's size to a scalar."""
        loss: Tensor = self.loss(output, self.target(batch))
        return loss

    def output_from_planes(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """Planes at the decoder's own stride to output at `size`, which they cover exactly: upsampled, activated."""
        return self.activate(upsample(planes, size))

    def loss_from_planes(self, planes: Tensor, batch: Batch) -> Tensor:
        """Planes at the decoder's own stride to a scalar; they cover exactly the batch's image."""
        return self.compute_loss(self.output_from_planes(planes, batch["image"].shape[-2:]), batch)

    def predict_from_planes(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """Planes at the decoder's own stride to a prediction at `size`, which they cover exactly."""
        return self.predict(self.output_from_planes(planes, size))


def parts(loss: Loss) -> list[Loss]:
    """The loss and, where it is a sum, all that it adds up."""
    return [part for part in loss.modules() if isinstance(part, Loss)]


def upsample(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear (cell edges aligned), at least in float32 so that losses and metrics are exact under autocast."""
    planes = full_precision(planes)
    if planes.shape[-2:] == tuple(size):
        return planes
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
