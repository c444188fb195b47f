"""Errors of depth by how far away things are."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.metrics.base import DenseMetric, count
from densepred.sample import valid_depth


class DepthByDistance(DenseMetric):
    """Mean absolute and mean relative error of depth in equal intervals of the true depth, pooled over all pixels.

    One number for a set hides that far things are few and wrong by much; this shows where the error is made.

    Args:
        min_depth: Metres, where the first interval begins.
        max_depth: Metres, where the last one ends.
        intervals: How many.

    Missing pixels, and true depth outside the range, don't count. An interval without a pixel has NaN.

    Shape:
        prediction: (B, 1, H, W), metres along the optical axis.
        target: the same.

    Raises:
        ConfigurationError: If the range is empty or there is no interval.

    Example:
        >>> metric = DepthByDistance(0.0, 4.0, intervals=2)
        >>> metric.update(torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[[1.0, 4.0]]]]))
        >>> metric.update(torch.tensor([[[[3.0, 3.0]]]]), torch.tensor([[[[3.0, 0.0]]]]))
        >>> metric.compute()["absolute"], metric.compute()["pixels"]
        (tensor([1., 0.]), tensor([1., 1.]))
    """

    absolute: Tensor
    relative: Tensor
    pixels: Tensor

    def __init__(self, min_depth: float = 0.0, max_depth: float = 10.0, intervals: int = 10) -> None:
        super().__init__()
        if not 0 <= min_depth < max_depth or intervals < 1:
            raise ConfigurationError(
                f"DepthByDistance: expected 0 <= min_depth < max_depth (metres) and at least one interval; got "
                f"{min_depth}, {max_depth} and {intervals}."
            )
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.intervals = intervals
        self.add_sum("absolute", (intervals,), torch.float64)
        self.add_sum("relative", (intervals,), torch.float64)
        self.add_sum("pixels", (intervals,))

    @property
    def edges(self) -> list[float]:
        """Where the intervals begin and the last one ends, in metres."""
        step = (self.max_depth - self.min_depth) / self.intervals
        return [self.min_depth + step * index for index in range(self.intervals + 1)]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch of depth maps."""
        self.require_size(prediction, target, "(B, 1, H, W)", None, 1, None, None)
        prediction, target = full_precision(prediction), full_precision(target)
        counts = valid_depth(target) & (target >= self.min_depth) & (target < self.max_depth)
        place = (target - self.min_depth) / (self.max_depth - self.min_depth) * self.intervals
        # one more interval takes what does not count
        interval = torch.where(counts, place, self.intervals).long().clamp(max=self.intervals).flatten()
        error = torch.where(counts, (prediction - target).abs(), 0).flatten()
        relative = error / torch.where(counts, target, 1).flatten()
        # not in place: a state made under inference mode could not be changed outside it
        self.absolute = self.absolute + self._added(interval, error)
        self.relative = self.relative + self._added(interval, relative)
        self.pixels = self.pixels + count(interval, self.intervals + 1)[:-1]

    def _added(self, interval: Tensor, error: Tensor) -> Tensor:
        sums = torch.zeros(self.intervals + 1, dtype=self.sum_dtype, device=error.device)
        return sums.index_add_(0, interval, error.to(self.sum_dtype))[:-1]

    def compute(self) -> dict[str, Tensor]:
        """`absolute` (metres), `relative` and the number of `pixels`, each (intervals,)."""
        return self.report(
            {
                "absolute": self.absolute / self.pixels,
                "relative": self.relative / self.pixels,
                "pixels": self.pixels,
            }
        )
