"""Regression: any planes of numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from densepred.errors import ConfigurationError, DataError
from densepred.losses.base import Loss
from densepred.losses.regression import SquaredErrorLoss
from densepred.metrics.regression import RegressionMetrics
from densepred.sample import Kind
from densepred.tasks.base import Batch, Task
from densepred.tasks.pictures import Scale, heat, scale_of, shades, wheel


class Regression(Task):
    """Any number of planes of real numbers: optical flow, saliency, heat maps, disparity.

    The output is the planes as they are. What is missing is said in either way, or both:

    - NaN (or infinity) in the target;
    - a sample key `<name>_valid`, above 0 where the target is known.

    A datamodule declares both keys as of kind "weight" (float32, moved with the image, values unchanged). Transforms
    that pad or roll write 0, which is a value in the target but "missing" in `<name>_valid`; so give the mask where
    they are used. Where images of different sizes were padded to one batch, its `size` says what is missing.
    `target(batch)` joins them all: losses and metrics see NaN wherever something is missing.

    Args:
        planes: Number of planes, 2 for optical flow.
        name: Sample key, output key and metric prefix.
        loss: Takes output and target, whose missing values are NaN; squared error by default. Losses of depth are
            unfit: they take zero and negative numbers for missing.
        weight: Factor of its loss in the sum over tasks.

    Shape:
        planes, output, prediction, target: (B, planes, H, W).
        `<name>_valid`: (B, H, W), (B, 1, H, W) or (B, planes, H, W).

    Raises:
        ConfigurationError: If there is no plane.
        DataError: If the mask is of another size than the target.

    Example:
        >>> flow = Regression(planes=2, name="flow")
        >>> batch = {"flow": torch.ones(1, 2, 1, 2), "flow_valid": torch.tensor([[[[1.0, 0.0]]]])}
        >>> flow.target(batch)[0, 0]
        tensor([[1., nan]])
    """

    kind = Kind.WEIGHT
    monitor = ("rmse", "min")
    shown = ("rmse",)

    def __init__(self, planes: int, name: str = "regression", loss: Loss | None = None, weight: float = 1.0) -> None:
        if planes < 1:
            raise ConfigurationError(f"Regression: expected at least one plane; got planes={planes}.")
        super().__init__(name, planes, SquaredErrorLoss() if loss is None else loss, weight)

    def target(self, batch: Batch) -> Tensor:
        """The target, NaN where it is missing."""
        target = super().target(batch)
        if (sizes := batch.get("size")) is not None:
            target = torch.where(_inside(sizes, target), target, math.nan)
        if (valid := batch.get(f"{self.name}_valid")) is None:
            return target
        valid = valid.unsqueeze(1) if valid.ndim == target.ndim - 1 else valid
        if valid.shape not in (target.shape, (target.shape[0], 1, *target.shape[2:])):
            raise DataError(
                f"{self.name}_valid has size {tuple(valid.shape)}, {self.name} {tuple(target.shape)}. Expected one "
                "mask for all planes, (B, 1, H, W), or one for each."
            )
        return torch.where(valid > 0, target, math.nan)

    def pad(self, batch: Batch, size: tuple[int, int]) -> Batch:
        """The target padded with NaN, which also says what `<name>_valid` says."""
        target = self.target(batch)
        padding = (0, size[1] - target.shape[-1], 0, size[0] - target.shape[-2])
        return {self.name: F.pad(target, padding, value=math.nan), f"{self.name}_valid": None}

    def activate(self, planes: Tensor) -> Tensor:
        """The planes themselves."""
        return planes

    def predict(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def metrics(self, stage: str) -> Metric:
        """Mean absolute and root mean squared error."""
        return RegressionMetrics(self.out_channels)

    def render(self, prediction: Tensor) -> Tensor:
        """One plane in viridis, two as a colour wheel (direction as hue, length as saturation), three as RGB.

        More as the root of their mean square. The scale runs between each image's own extremes.
        """
        return self._picture(prediction, scale_of(prediction, prediction.isfinite()))

    def panel(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Target and prediction on the target's scale, and the error on that of its span."""
        scale = scale_of(target, target.isfinite(), otherwise=prediction)
        error = _magnitude(prediction - target)
        span = Scale(torch.zeros_like(scale.low), (scale.high - scale.low) / 2)
        return {
            "target": self._picture(target, scale),
            "prediction": self._picture(prediction, scale),
            "error 0 to half the span": heat(error, error.isfinite(), span, "inferno"),
        }

    def _picture(self, values: Tensor, scale: Scale) -> Tensor:
        known = values.isfinite().all(1, keepdim=True)
        if self.out_channels == 2:
            return wheel(values, known, torch.maximum(scale.low.abs(), scale.high.abs()))
        if self.out_channels == 3:
            return shades(scale.place(values), known)
        if self.out_channels == 1:
            return heat(values, known, scale)
        return heat(_magnitude(values), known, Scale(torch.zeros_like(scale.low), scale.high.abs()))


def _inside(sizes: Tensor, planes: Tensor) -> Tensor:
    """True within each image's own height and width (B, 2) of a padded batch (B, 1, H, W)."""
    heights, widths = sizes.to(planes.device).view(-1, 2, 1, 1, 1).unbind(1)
    rows, columns = (torch.arange(side, device=planes.device) for side in planes.shape[-2:])
    return (rows[:, None] < heights) & (columns < widths)


def _magnitude(values: Tensor) -> Tensor:
    """Root of the mean square over planes (B, 1, H, W)."""
    return values.square().mean(1, keepdim=True).sqrt()
