"""The directed ray distance function, and the rays it is defined along.

Everywhere here: pixels are (x, y), integers at pixel centres; a ray starts at the camera; distances are metres along
it; hits are the distances of all surfaces that it crosses, infinite where there are no more.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def directed_ray_distance(distances: Tensor, hits: Tensor) -> Tensor:
    """How far ahead of each point of a ray the nearest surface is: s - z, for the hit s with the least |s - z|.

    Positive before a surface, negative behind it: it falls through 0 at each surface, and jumps from - to + half way
    between two. Half way exactly, the nearer to the camera counts. Without any surface it is infinite.

    Args:
        distances: z, of the points.
        hits: Of all surfaces, in any order; infinite for none.

    Shape:
        distances: (..., P). hits: (..., K). returns: (..., P).

    Reference:
        Kulkarni, Johnson, Fouhey. Directed Ray Distance Functions for 3D Scene Reconstruction. ECCV 2022.
        arXiv:2112.04481.

    Example:
        >>> directed_ray_distance(torch.tensor([0.0, 1.5, 2.5, 3.75, 5.25]), torch.tensor([2.0, 5.0]))
        tensor([ 2.0000,  0.5000, -0.5000,  1.2500, -0.2500])
    """
    ahead = hits.unsqueeze(-2) - distances.unsqueeze(-1)
    nearest = ahead.abs().argmin(-1, keepdim=True)  # the first of two that are equally near
    return ahead.gather(-1, nearest).squeeze(-1)


class Rays(NamedTuple):
    """Rays from a camera through pixels.

    Args:
        directions: Unit vectors in the camera's frame: x right, y down, z forward.

    Shape:
        directions: (..., 3).
    """

    directions: Tensor

    @property
    def forward(self) -> Tensor:
        """Metres of depth that a metre along the ray gains, (..., 1)."""
        return self.directions[..., 2:]

    def points(self, distances: Tensor) -> Tensor:
        """Points in the camera's frame. (..., P) to (..., P, 3)."""
        return distances.unsqueeze(-1) * self.directions.unsqueeze(-2)


def rays_through(pixels: Tensor, intrinsics: Tensor) -> Rays:
    """The rays through pixels.

    Shape:
        pixels: (B, R, 2), (x, y). intrinsics: (B, 3, 3). returns: of (B, R).

    Example:
        >>> camera = torch.tensor([[[10.0, 0, 4], [0, 10, 3], [0, 0, 1]]])
        >>> rays_through(torch.tensor([[[4.0, 3.0]]]), camera).directions
        tensor([[[0., 0., 1.]]])
    """
    flat = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    # by hand: a triangular solve would run in float64 nowhere, and Apple's GPUs have no inverse
    y = (flat[..., 1] - intrinsics[:, None, 1, 2]) / intrinsics[:, None, 1, 1]
    x = (flat[..., 0] - intrinsics[:, None, 0, 2] - intrinsics[:, None, 0, 1] * y) / intrinsics[:, None, 0, 0]
    return Rays(torch.nn.functional.normalize(torch.stack([x, y, flat[..., 2]], -1), dim=-1))


def pixel_grid(size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The centres of `rows` x `columns` equal parts of an image, (rows * columns, 2) as (x, y), row by row.

    Example:
        >>> pixel_grid((4, 6), 1, 2)
        tensor([[1.0000, 1.5000],
                [4.0000, 1.5000]])
    """
    y = (torch.arange(rows) + 0.5) * (size[0] / rows) - 0.5
    x = (torch.arange(columns) + 0.5) * (size[1] / columns) - 0.5
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1).reshape(-1, 2)
