"""Losses of surface normals."""

from collections.abc import Callable

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import Kind, valid_normals


def known_normals(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output and target in full precision, (0, 0, -1) where the target is missing; and where it is known (B, H, W)."""
    valid = valid_normals(target)
    facing = torch.tensor([0.0, 0.0, -1.0], device=target.device).view(3, 1, 1)
    known = valid.unsqueeze(-3)
    return torch.where(known, full_precision(output), facing), torch.where(known, full_precision(target), facing), valid


def mean_error(loss: str, output: Tensor, target: Tensor, error: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean of an error over the pixels whose normal is known, in full precision.

    Args:
        loss: Who asks, for the error's message.
        output: Normals.
        target: True normals.
        error: From vectors and true vectors (..., 3, H, W) to numbers (..., H, W).

    Raises:
        ConfigurationError: If the sizes differ.
    """
    require_same_size(loss, output, target)
    output, target, valid = known_normals(output, target)
    return mean_over_valid(torch.where(valid, error(output, target), 0), valid)


def _shortened(output: Tensor) -> Tensor:
    """Vectors of at most length 1: a shorter one is left as it is.

    Dividing by a length near 0 would make the gradient explode.
    """
    # several times faster than a norm over a dimension that is not the last
    return output / output.square().sum(-3, keepdim=True).clamp(min=1).sqrt()


def angle_between(output: Tensor, target: Tensor) -> Tensor:
    """Angles in radians, 2 atan2(|o - t|, |o + t|), to unit vectors t (..., 3, H, W); see `AngularLoss`.

    Example:
        >>> right, down = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
        >>> angle_between(right, down).rad2deg().flatten()
        tensor([90.])
    """
    output = _shortened(output)
    return 2 * torch.atan2(_length(output - target), _length(output + target))


def _length(vectors: Tensor) -> Tensor:
    """Lengths (..., H, W), with a gradient of 0 where they are 0 (the square root's is infinite there)."""
    square = vectors.square().sum(-3)
    return torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)


def _one_minus_cosine(output: Tensor, target: Tensor) -> Tensor:
    return 1 - (_shortened(output) * target).sum(-3)


def _squared_distance(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(-3)


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos(angle) over the pixels whose normal is known; see `CosineLoss`.

    Example:
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> float(cosine_loss(facing, facing)), float(cosine_loss(-facing, facing))
        (0.0, 2.0)
    """
    return mean_error("CosineLoss", output, target, _one_minus_cosine)


class CosineLoss(Loss):
    """One minus the cosine of the angle between predicted and true normal: 0 aligned, 1 orthogonal, 2 opposite.

    For unit vectors it is half their squared distance, smooth at every angle, where the angle itself (acos) has an
    infinite gradient at 0 and 180 degrees. The task makes unit vectors; a longer output is shortened to length 1, a
    shorter one is taken as it is, so that no gradient is ever longer than 1 / (number of valid pixels). Dividing by the
    length there too, as `torch.nn.functional.cosine_similarity` does, gives gradients of 1e8 at a zero output.

    Missing normals (the zero vector, or one that is not finite) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Shape:
        output: (B, 3, H, W), unit vectors.
        target: the same.

    Example:
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> CosineLoss()(-facing, facing)
        tensor(2.)
    """

    kind = Kind.NORMALS

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Normals and true normals to a scalar."""
        return cosine_loss(output, target)


class AngularLoss(Loss):
    """Mean angle between predicted and true normal, in radians: 0 aligned, pi / 2 orthogonal, pi opposite.

    What `mean_angle` measures (there in degrees). Its gradient is as long for a small error as for a large one, so it
    is more robust than `CosineLoss`, and less smooth at the end.

    acos of the cosine has an infinite gradient at 0 and 180 degrees and no digits near them. The angle is
    2 atan2(|o - t|, |o + t|) instead (Kahan): exact at every angle, with a gradient of 0 where output and target are
    aligned or opposite, and of at most 2 / (number of valid pixels) anywhere, a zero output included. As in
    `CosineLoss` a longer output is shortened to length 1, and a shorter one, which the task does not make, is taken as
    it is: its angle is drawn towards 90 degrees.

    Missing normals (the zero vector, or one that is not finite) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Shape:
        output: (B, 3, H, W), unit vectors.
        target: the same.

    Example:
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> AngularLoss()(-facing, facing)
        tensor(3.1416)
    """

    kind = Kind.NORMALS

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Normals and true normals to a scalar."""
        return mean_error("AngularLoss", output, target, angle_between)


class NormalsL2Loss(Loss):
    """Mean squared distance |o - t|^2 between predicted and true normal, over the valid pixels.

    Summed over x, y and z: 0 aligned, 2 orthogonal, 4 opposite. For unit vectors it is twice `CosineLoss`; of other
    lengths it says that they should be units.

    Missing normals (the zero vector, or one that is not finite) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Shape:
        output: (B, 3, H, W), unit vectors.
        target: the same.

    Example:
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> NormalsL2Loss()(-facing, facing)
        tensor(4.)
    """

    kind = Kind.NORMALS

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Normals and true normals to a scalar."""
        return mean_error("NormalsL2Loss", output, target, _squared_distance)
