"""Losses of planes of numbers that may have any sign."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import Kind


def value_error(loss: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output minus target in full precision, 0 where the target is not finite; and where it is.

    Args:
        loss: Who asks, for the error.
        output: What the network says.
        target: What is true.

    Raises:
        ConfigurationError: If the sizes differ.
    """
    require_same_size(loss, output, target)
    valid = target.isfinite()
    return torch.where(valid, full_precision(output), 0) - torch.where(valid, full_precision(target), 0), valid


def squared_error_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the finite values of the target; see `SquaredErrorLoss`.

    Example:
        >>> squared_error_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, float("nan")]))
        tensor(4.)
    """
    error, valid = value_error("SquaredErrorLoss", output, target)
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


def absolute_error_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the finite values of the target; see `AbsoluteErrorLoss`.

    Example:
        >>> absolute_error_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, float("nan")]))
        tensor(2.)
    """
    error, valid = value_error("AbsoluteErrorLoss", output, target)
    return mean_over_valid(error.abs(), valid)


class AbsoluteErrorLoss(Loss):
    """Mean absolute error over all values, of all planes, that are known: L1 for planes of any sign.

    Every value pulls equally, however wrong it is, so that a few wild ones (occlusions in optical flow, edges in
    disparity) draw less than with `SquaredErrorLoss`; where the target is uncertain it leads to the median instead of
    the mean. Depth, whose zeros are missing, has `L1Loss`.

    A value of the target is missing where it is not finite (NaN); it gives exactly zero gradient, and without any valid
    value the loss is 0. Zero and negative numbers are values like any other. The gradient is 0 where output and target
    are equal. Computed in float32 under autocast.

    Shape:
        output: (B, P, H, W).
        target: the same.

    Example:
        >>> AbsoluteErrorLoss()(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, float("nan")]))
        tensor(2.)
    """

    kind = Kind.WEIGHT

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Values and true values to a scalar."""
        return absolute_error_loss(output, target)
