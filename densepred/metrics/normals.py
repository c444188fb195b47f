"""Metrics of surface normals."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.metrics.base import DenseMetric, count
from densepred.sample import valid_normals

THRESHOLDS = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}

_BINS_PER_DEGREE = 100
_BINS = 180 * _BINS_PER_DEGREE


class NormalsMetrics(DenseMetric):
    """Angles between predicted and true normals in degrees, pooled over all valid pixels of all images.

    `mean_angle`, `median_angle`, `rmse_angle` (the root of the mean *squared* angle), and `within_11_25`,
    `within_22_5`, `within_30`: the share of pixels *strictly* below the threshold.

    The angle is atan2(|p x t|, p . t), at least in float32: good to 1e-5 degrees, also near 0 and 180 degrees, where
    acos of a rounded product loses half its digits or is NaN, and independent of the vectors' lengths. Mean, RMSE and
    shares add up every pixel in float64 and int64. The median is exact to 0.005 degrees: it is read from a histogram
    with bins of 0.01 degrees, which, unlike the pixels themselves, fits into memory and is summed across processes.

    Missing normals (the zero vector) don't count. A predicted zero vector points nowhere and counts 90 degrees; one
    that is NaN makes mean and RMSE NaN. Without any valid pixel the measures are NaN.

    Protocol: that of `eval_pred_sn.m` of Bansal et al., used by DSINE and others; which ground truth was used decides
    the numbers and must be said beside them.

    Shape:
        prediction: (B, 3, H, W), vectors.
        target: the same, unit vectors.

    Reference:
        Fouhey, Gupta, Hebert. Data-Driven 3D Primitives for Single Image Understanding. ICCV 2013 (the measures).
        Bansal, Russell, Gupta. Marr Revisited: 2D-3D Alignment via Surface Normal Prediction. CVPR 2016.
        arXiv:1604.01347 (the evaluation code).

    Example:
        >>> metrics = NormalsMetrics()
        >>> target = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> metrics.update(torch.tensor([0.0, -1.0, -1.0]).view(1, 3, 1, 1), target)
        >>> metrics.compute()["mean_angle"]
        tensor(45.)
    """

    total: Tensor
    total_square: Tensor
    below: Tensor
    pixels: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total", (), torch.float64)
        self.add_sum("total_square", (), torch.float64)
        self.add_sum("below", (len(THRESHOLDS),))
        self.add_sum("pixels")
        self.add_sum("histogram", (_BINS,))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch of normals."""
        self.require_size(prediction, target, "(B, 3, H, W)", None, 3, None, None)
        valid = valid_normals(target)
        angle = angle_degrees(prediction, target)
        angle = torch.where(valid, angle, 0)
        below = torch.stack([((angle < threshold) & valid).sum() for threshold in THRESHOLDS.values()])
        bin_ = (angle.nan_to_num(180) * _BINS_PER_DEGREE).long().clamp(max=_BINS - 1)
        counted = count(torch.where(valid, bin_, _BINS), _BINS + 1)[:_BINS]
        # not in place: a state made under inference mode could not be changed outside it
        self.total = self.total + self.add_up(angle)
        self.total_square = self.total_square + self.add_up(angle**2)
        self.below = self.below + below
        self.pixels = self.pixels + valid.sum()
        self.histogram = self.histogram + counted

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen so far."""
        return self.report(
            {
                "mean_angle": self.total / self.pixels,
                "median_angle": self._median(),
                "rmse_angle": (self.total_square / self.pixels).sqrt(),
                **dict(zip(THRESHOLDS, self.below / self.pixels, strict=True)),
            }
        )

    def _median(self) -> Tensor:
        """The mean of the two middle angles (the same one twice if their number is odd), each its bin's centre."""
        reached = self.histogram.cpu().cumsum(0)
        pixels = int(reached[-1])
        if pixels == 0:
            return torch.tensor(float("nan"))
        middle = torch.tensor([(pixels - 1) // 2, pixels // 2])
        bins = torch.searchsorted(reached, middle, right=True)
        return (bins.double().mean() + 0.5) / _BINS_PER_DEGREE


def angle_degrees(first: Tensor, second: Tensor) -> Tensor:
    """The angle between vectors of any length, in degrees, at least in float32; 90 where one is zero.

    Shape:
        first, second: (B, 3, H, W); returns (B, H, W).

    Example:
        >>> angle_degrees(torch.tensor([0.0, 2, 0]).view(1, 3, 1, 1), torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        tensor([[[90.]]])
    """
    first, second = full_precision(first), full_precision(second)
    # several times faster than a norm over a dimension that is not the last
    across = torch.linalg.cross(first, second, dim=1).square().sum(1).sqrt()
    along = (first * second).sum(1)
    angle = torch.atan2(across, along).rad2deg()
    nowhere = (first == 0).all(1) | (second == 0).all(1)
    return torch.where(nowhere, 90, angle)
