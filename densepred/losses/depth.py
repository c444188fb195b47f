"""Losses of depth."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import valid_depth

_SMALLEST = 1e-6
"""Metres below which a depth's logarithm is not followed further."""


def l2_loss(output: Tensor, target: Tensor, log: bool = False) -> Tensor:
    """Mean squared error over the pixels whose depth is known; see `L2Loss`.

    Example:
        >>> l2_loss(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
        tensor(4.)
    """
    require_same_size("L2Loss", output, target)
    valid = valid_depth(target)
    output = torch.where(valid, full_precision(output), 1)
    target = torch.where(valid, full_precision(target), 1)
    if log:
        output, target = output.clamp(min=_SMALLEST).log(), target.log()
    return mean_over_valid((output - target).square(), valid)


class L2Loss(Loss):
    """Mean squared error of depth in metres, or of its logarithm.

    With depth d and truth t over n valid pixels: sum (d - t)^2 / n, in square metres; with `log`,
    sum (ln d - ln t)^2 / n, which weighs errors relative to the depth.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast. For planes that may be negative or zero take `SquaredErrorLoss`.

    Args:
        log: Compare logarithms.

    Shape:
        output: (B, 1, H, W), metres; above 0 where `log`.
        target: the same.

    Reference:
        Eigen, Puhrsch, Fergus. Depth Map Prediction from a Single Image using a Multi-Scale Deep Network. NIPS 2014.
        arXiv:1406.2283 (squared error in log space, there with a scale-invariant term).

    Example:
        >>> L2Loss()(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
        tensor(4.)
    """

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        return l2_loss(output, target, self.log)
