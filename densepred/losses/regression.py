"""Losses of planes of numbers that may have any sign."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import Kind


def squared_error_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the finite values of the target; see `SquaredErrorLoss`.

    Example:
        >>> squared_error_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, float("nan")]))
        tensor(4.)
    """
    require_same_size("SquaredErrorLoss", output, target)
    valid = target.isfinite()
    error = torch.where(valid, full_precision(output), 0) - torch.where(valid, full_precision(target), 0)
    return mean_over_valid(error.square(), valid)


class SquaredErrorLoss(Loss):
    """Mean squared error over all values, of all planes, that are known.

    A value of the target is missing where it is not finite (NaN); it gives exactly zero gradient, and without any valid
    value the loss is 0. Zero and negative numbers are values like any other. Computed in float32 under autocast.

    Shape:
        output: (B, P, H, W).
        target: the same.

    Example:
        >>> SquaredErrorLoss()(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, float("nan")]))
        tensor(4.)
    """

    kind = Kind.WEIGHT

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Values and true values to a scalar."""
        return squared_error_loss(output, target)
