"""Losses of surface normals."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import valid_normals


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos(angle) over the pixels whose normal is known; see `CosineLoss`.

    Example:
        >>> facing = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
        >>> float(cosine_loss(facing, facing)), float(cosine_loss(-facing, facing))
        (0.0, 2.0)
    """
    require_same_size("CosineLoss", output, target)
    valid = valid_normals(target)
    known = valid.unsqueeze(-3)
    output = torch.where(known, full_precision(output), 0)
    target = torch.where(known, full_precision(target), 0)
    # an output that is no longer than 1 is left as it is: dividing by a length near 0 would make the gradient explode
    length = torch.linalg.vector_norm(output, dim=-3, keepdim=True).clamp(min=1)
    cosine = (output / length * target).sum(-3)
    return mean_over_valid(torch.where(valid, 1 - cosine, 0), valid)


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

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Normals and true normals to a scalar."""
        return cosine_loss(output, target)
