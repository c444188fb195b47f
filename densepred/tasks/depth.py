"""Depth: metres along the optical axis at every pixel."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.depth import L2Loss
from densepred.metrics.depth import Average, DepthMetrics, Protocol
from densepred.sample import Kind, valid_depth
from densepred.tasks.base import Task
from densepred.tasks.pictures import fixed_scale, heat, scale_of

_SOFTPLUS_OF_ONE = math.log(math.e - 1)
"""softplus of it is 1."""
_LOG_BOUND = 10.0
"""Log depths further than this from `typical` (a factor of 22000) are held there."""


class Depth(Task):
    """Metric depth from one plane.

    The output, which losses and metrics see, is in metres and above 0 in either form of the plane p:

    - in metres: typical * softplus(p + ln(e - 1)), close to linear above `typical` and never negative;
    - with `log`: typical * exp(p), so p is the logarithm of depth, up to a constant. The default loss compares
      logarithms, and its gradient in p is that of (p - ln(truth / typical))^2. Exponents are held within 10 of 0, so
      that nothing overflows, but the gradient passes, so that nothing gets stuck there.

    A plane of zeros, as a fresh decoder yields about, is a depth of `typical` everywhere, and changes of p of order 1
    are changes of depth of order `typical`: the same initialisation fits rooms and streets.

    Missing depth (0, negative, not finite) neither trains nor counts, and is drawn grey.

    Args:
        name: Sample key, output key and metric prefix.
        loss: Takes output and target in metres; squared error by default, of logarithms with `log`.
        weight: Factor of its loss in the sum over tasks.
        log: The plane is log depth.
        typical: A depth in metres in the middle of what the data holds; 2.5 for rooms, about 15 for streets.
        min_depth: Metres; predictions are at least this, and true depth below it is not scored.
        max_depth: Metres; true depth beyond it is not scored (it does train), predictions beyond it are scored as it.
        protocol: Which part of a 480 x 640 NYU picture is scored, see `DepthMetrics`.
        average: Whether errors are averaged within images first, or over all pixels.

    Shape:
        planes: (B, 1, H, W).
        output, prediction, target: (B, 1, H, W), metres.

    Raises:
        ConfigurationError: If the limits and `typical` are not in order.

    Example:
        >>> Depth().activate(torch.zeros(1, 1, 1, 1)).item()
        2.5
    """

    kind = Kind.DEPTH
    monitor = ("rmse", "min")
    shown = ("rmse", "delta1")

    def __init__(
        self,
        name: str = "depth",
        loss: Loss | None = None,
        weight: float = 1.0,
        log: bool = False,
        typical: float = 2.5,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        protocol: Protocol = "none",
        average: Average = "image",
    ) -> None:
        super().__init__(name, 1, L2Loss(log=log) if loss is None else loss, weight)
        if not 0 < min_depth < typical < max_depth:
            raise ConfigurationError(
                f"Depth: expected 0 < min_depth < typical < max_depth (metres); got {min_depth}, {typical} and "
                f"{max_depth}."
            )
        self.log = log
        self.typical = typical
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.protocol = protocol
        self.average = average

    def activate(self, planes: Tensor) -> Tensor:
        """Planes to metres."""
        if not self.log:
            return self.typical * F.softplus(planes + _SOFTPLUS_OF_ONE)
        held = planes.clamp(-_LOG_BOUND, _LOG_BOUND)
        # the value of the clamp with the gradient of the identity
        return self.typical * (held.detach() + (planes - planes.detach())).exp()

    def predict(self, output: Tensor) -> Tensor:
        """Metres, at least `min_depth`, since 0 would read as missing."""
        return output.clamp(min=self.min_depth)

    def known(self, target: Tensor) -> Tensor:
        """True where depth is known."""
        return valid_depth(target)

    def metrics(self, stage: str) -> Metric:
        """Depth errors by the task's protocol."""
        return DepthMetrics(self.protocol, self.min_depth, self.max_depth, average=self.average)

    def render(self, prediction: Tensor) -> Tensor:
        """Near is dark and far is bright (viridis), between each image's own nearest and farthest."""
        known = valid_depth(prediction)
        return heat(prediction, known, scale_of(prediction, known))

    def panel(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Target and prediction on the target's scale, and the error relative to the true depth."""
        known = valid_depth(target)
        scale = scale_of(target, known, otherwise=prediction)
        error = (prediction - target).abs() / torch.where(known, target, 1)
        return {
            "target": heat(target, known, scale),
            "prediction": heat(prediction, valid_depth(prediction), scale),
            "relative error 0 to 0.5": heat(error, known, fixed_scale(0.0, 0.5), "inferno"),
        }
