"""Depth: metres along the optical axis at every pixel."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.depth import L2Loss
from densepred.losses.ordinal import OrdinalLoss, ordinal_depth
from densepred.metrics.depth import Average, DepthMetrics, Protocol
from densepred.sample import Kind, valid_depth
from densepred.tasks.base import Task, parts
from densepred.tasks.pictures import fixed_scale, heat, scale_of

_SOFTPLUS_OF_ONE = math.log(math.e - 1)
"""softplus of it is 1."""
_LOG_BOUND = 10.0
"""Log depths further than this from `typical` (a factor of 22000) are held there."""


class Depth(Task):
    """Metric depth from one plane, or from ordered questions.

    The output, which losses and metrics see, is in metres and above 0 in either form of the plane p:

    - in metres: typical * softplus(p + ln(e - 1)), close to linear above `typical` and never negative;
    - with `log`: typical * exp(log_scale * p), so p is the logarithm of depth, up to a constant and a factor. The
      default loss compares logarithms, and its gradient in p, with a factor of 1, is that of (p - ln(truth /
      typical))^2. Exponents are held within 10 of 0, so that nothing overflows, but the gradient passes, so that
      nothing gets stuck there.

    A plane of zeros, as a fresh decoder yields about, is a depth of `typical` everywhere, and changes of p of order 1
    are changes of depth of order `typical`: the same initialisation fits rooms and streets.

    With `bins` depth is ordinal: the range from `min_depth` to `max_depth` is cut into bins that grow with depth, plane
    k asks whether it is deeper than the end of bin k, the output is the planes themselves (logits), `OrdinalLoss` is
    the loss, and the prediction the middle of the bin that the answers lead to. `typical` then plays no part.

    Missing depth (0, negative, not finite) neither trains nor counts, and is drawn grey.

    Args:
        name: Sample key, output key and metric prefix.
        loss: Takes output and target in metres; squared error by default, of logarithms with `log`. With `bins` an
            `OrdinalLoss` of the same range, which is the default there.
        weight: Factor of its loss in the sum over tasks.
        log: The plane is log depth.
        typical: A depth in metres in the middle of what the data holds; 2.5 for rooms, about 15 for streets.
        min_depth: Metres; predictions are at least this, and true depth below it is not scored.
        max_depth: Metres; true depth beyond it is not scored (it does train), predictions beyond it are scored as it.
        protocol: Which part of a 480 x 640 NYU picture is scored, see `DepthMetrics`.
        average: Whether errors are averaged within images first, or over all pixels.
        bins: Number of bins, and planes, of ordinal depth (DORN: 68 for NYU, 80 for KITTI); none means metres.
        log_scale: What the plane is multiplied by before the exponential, with `log`: 0.45723134 in Eigen and Fergus's
            network, as far as logarithms of NYU's depths spread.

    Shape:
        planes: (B, 1, H, W), or (B, bins, H, W).
        output: the same; metres, or logits of the questions.
        prediction, target: (B, 1, H, W), metres.

    Raises:
        ConfigurationError: If the limits and `typical` are not in order, or bins and loss don't fit together.

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
        bins: int | None = None,
        log_scale: float = 1.0,
    ) -> None:
        if loss is None:
            loss = L2Loss(log=log) if bins is None else OrdinalLoss(min_depth, max_depth)
        _check_bins(bins, loss, log, (min_depth, max_depth))
        super().__init__(name, bins or 1, loss, weight)
        if not 0 < min_depth < typical < max_depth:
            raise ConfigurationError(
                f"Depth: expected 0 < min_depth < typical < max_depth (metres); got {min_depth}, {typical} and "
                f"{max_depth}."
            )
        if not log_scale > 0 or (log_scale != 1 and not log):
            raise ConfigurationError(
                f"Depth: log_scale is {log_scale} and log {str(log).lower()}. Expected a factor above 0, and where it "
                "is not 1 `log: true`."
            )
        self.log = log
        self.log_scale = log_scale
        self.bins = bins
        self.typical = typical
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.protocol = protocol
        self.average = average

    def activate(self, planes: Tensor) -> Tensor:
        """Planes to metres; with bins the planes themselves."""
        if self.bins is not None:
            return planes
        if not self.log:
            return self.typical * F.softplus(planes + _SOFTPLUS_OF_ONE)
        planes = self.log_scale * planes
        held = planes.clamp(-_LOG_BOUND, _LOG_BOUND)
        # the value of the clamp with the gradient of the identity
        return self.typical * (held.detach() + (planes - planes.detach())).exp()

    def predict(self, output: Tensor) -> Tensor:
        """Metres, at least `min_depth`, since 0 would read as missing."""
        if self.bins is not None:
            return ordinal_depth(output, self.min_depth, self.max_depth)
        return output.clamp(min=self.min_depth)

    def evidence(self, output: Tensor) -> Tensor:
        """Logarithms of metres: their mean is depth's geometric mean."""
        return self.predict(output).log()

    def decide(self, evidence: Tensor) -> Tensor:
        """Logarithms back to metres."""
        return evidence.exp()

    def unzoomed(self, evidence: Tensor, zoom: float) -> Tensor:
        """What looks `zoom` times as large is taken for `zoom` times as near."""
        return evidence + math.log(zoom)

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


def _check_bins(bins: int | None, loss: Loss, log: bool, limits: tuple[float, float]) -> None:
    ordinal = any(isinstance(part, OrdinalLoss) for part in parts(loss))
    if bins is None:
        if ordinal:
            raise ConfigurationError("Depth: OrdinalLoss answers one question a bin. Set `bins`, 80 say.")
        return
    if bins < 2:
        raise ConfigurationError(f"Depth: bins must be at least 2; got {bins}. Leave it out for depth in metres.")
    if log:
        raise ConfigurationError("Depth: bins and log exclude each other; bins already grow with depth. Leave log out.")
    if not isinstance(loss, OrdinalLoss):
        raise ConfigurationError(
            f"Depth: with bins the output is {bins} answers, not metres, which {type(loss).__name__} cannot compare. "
            "Leave `loss` out for OrdinalLoss, or leave `bins` out."
        )
    if (loss.min_depth, loss.max_depth) != limits:
        raise ConfigurationError(
            f"Depth: the bins of OrdinalLoss go from {loss.min_depth} to {loss.max_depth} metres, those of the task "
            f"from {limits[0]} to {limits[1]}. Give both the same min_depth and max_depth, or leave `loss` out."
        )
