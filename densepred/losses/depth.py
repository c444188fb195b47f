"""Losses of depth."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import Kind, valid_depth

_SMALLEST = 1e-6
"""Metres below which a depth's logarithm is not followed further."""


def depth_error(loss: str, output: Tensor, target: Tensor, log: bool) -> tuple[Tensor, Tensor]:
    """Output minus target, or the same of their logarithms, 0 where depth is missing; and where it is known.

    Args:
        loss: Who asks, for the error.
        output: Depth in metres.
        target: True depth in metres.
        log: Compare logarithms; that of a depth below a micrometre is taken as that of a micrometre.

    Raises:
        ConfigurationError: If the sizes differ.
    """
    require_same_size(loss, output, target)
    valid = valid_depth(target)
    output = torch.where(valid, full_precision(output), 1)
    target = torch.where(valid, full_precision(target), 1)
    if log:
        output, target = output.clamp(min=_SMALLEST).log(), target.log()
    return output - target, valid


def l2_loss(output: Tensor, target: Tensor, log: bool = False) -> Tensor:
    """Mean squared error over the pixels whose depth is known; see `L2Loss`.

    Example:
        >>> l2_loss(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
        tensor(4.)
    """
    error, valid = depth_error("L2Loss", output, target, log)
    return mean_over_valid(error.square(), valid)


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
        arXiv:1406.2283 (squared error in log space, there with a scale-invariant term: `ScaleInvariantLoss`).

    Example:
        >>> L2Loss()(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
        tensor(4.)
    """

    kind = Kind.DEPTH

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        return l2_loss(output, target, self.log)


class L1Loss(Loss):
    """Mean absolute error of depth in metres, or of its logarithm: sum |d - t| / n over the n valid pixels.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast.

    Args:
        log: Compare logarithms.

    Shape:
        output: (B, 1, H, W), metres; above 0 where `log`.
        target: the same.

    Example:
        >>> L1Loss()(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
        tensor(2.)
    """

    kind = Kind.DEPTH

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        error, valid = depth_error("L1Loss", output, target, self.log)
        return mean_over_valid(error.abs(), valid)


def berhu(error: Tensor, threshold: Tensor) -> Tensor:
    """Absolute errors up to a threshold c, (x^2 + c^2) / 2c above it, where it is steeper (the reverse of Huber).

    Example:
        >>> berhu(torch.tensor([0.5, -1.0, 3.0]), torch.tensor(1.0))
        tensor([0.5000, 1.0000, 5.0000])
    """
    error = error.abs()
    # a threshold of 0 means that there is no error at all
    safe = torch.where(threshold > 0, threshold, 1)
    return torch.where(error <= threshold, error, (error.square() + safe.square()) / (2 * safe))


class BerHuLoss(Loss):
    """The reverse Huber loss of depth: small errors count as they are, large ones squared.

    With x = d - t in metres (or of logarithms), mean over the valid pixels of |x| where |x| <= c, else
    (x^2 + c^2) / 2c, which continues it with the same slope. c is `share` times the largest |x| of the batch's valid
    pixels; it is taken as a constant, so no pixel's gradient is above 1 / share.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast.

    Args:
        share: c as a share of the batch's largest error, above 0 up to 1.
        log: Compare logarithms.

    Shape:
        output: (B, 1, H, W), metres; above 0 where `log`.
        target: the same.

    Raises:
        ConfigurationError: If `share` is out of range.

    Reference:
        Laina, Rupprecht, Belagiannis, Tombari, Navab. Deeper Depth Prediction with Fully Convolutional Residual
        Networks. 3DV 2016. arXiv:1606.00373.

    Example:
        >>> BerHuLoss()(torch.tensor([[[[1.5, 6.0]]]]), torch.tensor([[[[1.0, 1.0]]]]))  # c = 1: (0.5 + 13) / 2
        tensor(6.7500)
    """

    kind = Kind.DEPTH

    def __init__(self, share: float = 0.2, log: bool = False) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ConfigurationError(f"BerHuLoss: share must be above 0 and at most 1; got {share}.")
        self.share = share
        self.log = log

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Depth and true depth, in metres, to a scalar."""
        error, valid = depth_error("BerHuLoss", output, target, self.log)
        return mean_over_valid(berhu(error, self.share * error.detach().abs().amax()), valid)
