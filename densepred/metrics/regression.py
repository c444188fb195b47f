"""Metrics of planes of numbers."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.metrics.base import DenseMetric


class RegressionMetrics(DenseMetric):
    """Mean absolute and root mean squared error of any planes of numbers, pooled over all valid values of the set.

    `mae` is the mean of |p - t|, `rmse` the root of the mean of (p - t)^2, over planes, pixels and images alike.

    A value is missing where the target is not finite (NaN) or where `valid` is False; it does not count. Without any
    valid value the measures are NaN.

    Args:
        planes: Number of planes, such as 2 for optical flow.

    Shape:
        prediction: (B, planes, H, W), in the target's unit.
        target: the same.
        valid: boolean, (B, H, W), (B, 1, H, W) or (B, planes, H, W).

    Example:
        >>> metrics = RegressionMetrics(planes=1)
        >>> metrics.update(torch.zeros(1, 1, 1, 3), torch.tensor([[[[3.0, 4.0, float("nan")]]]]))
        >>> metrics.compute()
        {'mae': tensor(3.5000), 'rmse': tensor(3.5355)}
    """

    total: Tensor
    total_square: Tensor
    values: Tensor

    def __init__(self, planes: int) -> None:
        super().__init__()
        if planes < 1:
            raise ConfigurationError(f"RegressionMetrics: expected at least one plane; got planes={planes}.")
        self.planes = planes
        self.add_sum("total", (), torch.float64)
        self.add_sum("total_square", (), torch.float64)
        self.add_sum("values")

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch of planes."""
        self.require_size(prediction, target, f"(B, {self.planes}, H, W)", None, self.planes, None, None)
        known = target.isfinite()
        if valid is not None:
            known = known & self._mask(valid, target)
        error = torch.where(known, full_precision(prediction) - full_precision(target), 0)
        # not in place: a state made under inference mode could not be changed outside it
        self.total = self.total + self.add_up(error.abs())
        self.total_square = self.total_square + self.add_up(error**2)
        self.values = self.values + known.sum()

    def _mask(self, valid: Tensor, target: Tensor) -> Tensor:
        mask = valid[:, None] if valid.ndim == 3 else valid
        size = (target.shape[0], mask.shape[1], *target.shape[2:])
        if mask.ndim != 4 or mask.shape != size or mask.shape[1] not in (1, self.planes):
            raise ConfigurationError(
                f"RegressionMetrics: valid has size {tuple(valid.shape)}, which does not fit the target's "
                f"{tuple(target.shape)}; expected (B, H, W), (B, 1, H, W) or (B, {self.planes}, H, W)."
            )
        return mask.bool()

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen so far."""
        return self.report({"mae": self.total / self.values, "rmse": (self.total_square / self.values).sqrt()})
