"""Losses of depth that forgive, in part, a wrong scale of the whole picture."""

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.depth import depth_error
from densepred.losses.masked import mean_over_valid
from densepred.sample import Kind


def scale_invariant(error: Tensor, valid: Tensor, balance: float) -> Tensor:
    """Mean d^2 - balance * (mean d)^2 over the last dimension, as a variance and a rest: never negative.

    Shape:
        error: (..., N), 0 where not valid.
        valid: (..., N), boolean; returns (...).

    Example:
        >>> scale_invariant(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), balance=0.5)
        tensor(3.)
    """
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = error.sum(-1, keepdim=True) / count
    variance = torch.where(valid, error - mean, 0).square().sum(-1, keepdim=True) / count
    return (variance + (1 - balance) * mean.square()).squeeze(-1)


class SILogLoss(Loss):
    """Scaled root of the scale-invariant log error: factor * sqrt(mean d^2 - balance * (mean d)^2).

    d = ln output - ln target, means over all valid pixels of the batch together (as in BTS and its heirs). With balance
    0 it is the RMSE of logarithms, with 1 their standard deviation, which a wrong scale does not change.

    Where all is right the root has no slope: there the gradient is 0. Elsewhere that in ln output has a length of at
    most factor / sqrt(n). Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid
    pixel the loss is 0. It is computed in float32 under autocast.

    Args:
        balance: How much of a wrong scale is forgiven, from 0 (nothing) to 1 (all).
        factor: Of the whole.

    Shape:
        output: (B, 1, H, W), metres, above 0.
        target: the same.

    Raises:
        ConfigurationError: If the balance is out of range.

    Reference:
        Lee et al. From Big to Small: Multi-Scale Local Planar Guidance for Monocular Depth Estimation. 2019.
        arXiv:1907.10326 (BTS: 0.85 and 10; so AdaBins and NeWCRFs).

    Example:
        >>> SILogLoss()(torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 2, 2))  # 10 sqrt(0.15) ln 2
        tensor(2.6845)
    """

    kind = Kind.DEPTH

    def __init__(self, balance: float = 0.85, factor: float = 10.0) -> None:
        super().__init__()
        _require_balance("SILogLoss", balance)
        self.balance = balance
        self.factor = factor

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        error, valid = depth_error("SILogLoss", output, target, log=True)
        square = scale_invariant(error.flatten(), valid.flatten(), self.balance)
        # the square root's slope at 0 is infinite, and infinity times 0 is NaN
        return self.factor * torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)


class ScaleInvariantLoss(Loss):
    """The scale-invariant log error of Eigen 2014: mean d^2 - balance * (mean d)^2 of each image.

    d = ln output - ln target over the n valid pixels of an image. With balance 0 it is the squared error of logarithms,
    with 1 their variance, which a wrong scale of the image does not change; 0.5, for training, is between. Images are
    averaged with the square of their number of valid pixels as weight, as the authors' code of 2015 does; where all
    have as many, it is the plain mean.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast.

    Args:
        balance: How much of a wrong scale is forgiven, from 0 (nothing) to 1 (all).

    Shape:
        output: (B, 1, H, W), metres, above 0.
        target: the same.

    Raises:
        ConfigurationError: If the balance is out of range.

    Reference:
        Eigen, Puhrsch, Fergus. Depth Map Prediction from a Single Image using a Multi-Scale Deep Network. NIPS 2014.
        arXiv:1406.2283.

    Example:
        >>> ScaleInvariantLoss()(torch.full((1, 1, 2, 2), 2.0).exp(), torch.ones(1, 1, 2, 2).exp())  # d = 1
        tensor(0.5000)
    """

    kind = Kind.DEPTH

    def __init__(self, balance: float = 0.5) -> None:
        super().__init__()
        _require_balance(type(self).__name__, balance)
        self.balance = balance

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        error, valid = depth_error(type(self).__name__, output, target, log=True)
        return self.point_term(error, valid)

    def point_term(self, error: Tensor, valid: Tensor) -> Tensor:
        """The loss, from the errors of logarithms."""
        error, valid = error.flatten(1), valid.flatten(1)
        pixels = valid.sum(1)
        # relative to the largest, since squares of pixel counts are huge
        weight = (pixels / pixels.amax().clamp(min=1)).to(error.dtype).square()
        loss = (weight * scale_invariant(error, valid, self.balance)).sum()
        return loss / torch.where(weight.sum() > 0, weight.sum(), 1)


class ScaleInvariantGradientLoss(ScaleInvariantLoss):
    """The depth loss of Eigen and Fergus 2015: the scale-invariant log error plus the error of its slopes.

    mean d^2 - balance * (mean d)^2 + mean (dx d)^2 + mean (dy d)^2 with d = ln output - ln target. The slopes are
    differences of neighbouring pixels, or of those `step` pixels apart, which both must be valid; their means run over
    all such pairs of the batch. The first two terms are those of `ScaleInvariantLoss`. A constant d = 1 gives 0.5.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast.

    Args:
        balance: How much of a wrong scale is forgiven, from 0 (nothing) to 1 (all).
        step: Pixels between what slopes are differences of: 1, or the network's output stride where planes are enlarged
            to the image, as the paper compares them at their own size (2, and 4 for its scale 2 alone).

    Shape:
        output: (B, 1, H, W), metres, above 0.
        target: the same.

    Raises:
        ConfigurationError: If the balance is out of range, or the step less than 1.

    Reference:
        Eigen, Fergus. Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture. ICCV 2015. arXiv:1411.4734.

    Example:
        >>> ScaleInvariantGradientLoss()(torch.tensor([[[[1.0, 2.0]]]]).exp(), torch.ones(1, 1, 1, 2).exp())
        tensor(1.3750)
    """

    def __init__(self, balance: float = 0.5, step: int = 1) -> None:
        super().__init__(balance)
        if step < 1:
            raise ConfigurationError(f"{type(self).__name__}: step is {step}. Expected 1 or more pixels.")
        self.step = step

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        error, valid = depth_error(type(self).__name__, output, target, log=True)
        slopes = [_slope_term(error, valid, side, self.step) for side in (-1, -2)]
        return self.point_term(error, valid) + slopes[0] + slopes[1]


def _slope_term(error: Tensor, valid: Tensor, side: int, step: int) -> Tensor:
    """Mean squared difference of pixels `step` apart along a side, of those that are both valid."""
    length = max(error.shape[side] - step, 0)
    start = error.shape[side] - length
    both = valid.narrow(side, 0, length) & valid.narrow(side, start, length)
    slope = error.narrow(side, start, length) - error.narrow(side, 0, length)
    return mean_over_valid(torch.where(both, slope, 0).square(), both)


def _require_balance(loss: str, balance: float) -> None:
    if not 0 <= balance <= 1:
        raise ConfigurationError(f"{loss}: balance must be from 0 to 1; got {balance}.")
