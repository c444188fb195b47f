"""Rooms whose walls, floor and ceiling stand at right angles: their directions from vanishing points."""

from collections.abc import Sequence

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.largest import largest_plane
from densepred.sample import valid_normals


def normal_of_plane(first: tuple[float, float], second: tuple[float, float], focal: float) -> Tensor:
    """The normal of planes that hold the lines of two vanishing points.

    With the points (x1, y1) and (x2, y2) and the focal length f: n is the direction of (p, q, 1) with
    p = f (y1 - y2) / (x1 y2 - x2 y1) and q = f (x2 - x1) / (x1 y2 - x2 y1), computed without the division, which fails
    where the horizon of the plane passes the middle of the picture. It is turned to face the camera (z <= 0).

    Args:
        first: A vanishing point, pixels right of and below the principal point.
        second: Another.
        focal: Focal length in pixels.

    Shape:
        returns: (3,), x right, y down, z forward.

    Raises:
        ConfigurationError: If both points are the same.

    Example:
        >>> normal_of_plane((0.0, 0.0), (1e6, 0.0), focal=500.0)  # straight ahead and to the right: the floor
        tensor([ 0., -1.,  0.])
    """
    (x1, y1), (x2, y2) = first, second
    vector = torch.tensor([focal * (y1 - y2), focal * (x2 - x1), x1 * y2 - x2 * y1], dtype=torch.float64)
    length = torch.linalg.vector_norm(vector)
    if length == 0:
        raise ConfigurationError(f"normal_of_plane: two vanishing points are expected, but both are {first}.")
    vector = vector / length
    # planes seen edge-on face up (the floor) and left
    facing = next((float(vector[i]) for i in (2, 1, 0) if abs(float(vector[i])) > 1e-9), 0.0)
    normal: Tensor = -vector if facing > 0 else vector
    return normal.float() + 0.0  # no negative zeros


def room_directions(points: Sequence[tuple[float, float]], focal: float) -> Tensor:
    """The normals of a room's walls, floor and ceiling, from its three vanishing points, both signs of each.

    Args:
        points: Three vanishing points of lines at right angles, pixels right of and below the principal point.
        focal: Focal length in pixels.

    Shape:
        returns: (6, 3).

    Raises:
        ConfigurationError: If there are not three.
    """
    if len(points) != 3:
        raise ConfigurationError(f"room_directions: expected three vanishing points; got {len(points)}.")
    pairs = ((0, 1), (0, 2), (1, 2))
    normals = torch.stack([normal_of_plane(points[i], points[j], focal) for i, j in pairs])
    return torch.cat([normals, -normals])


def rectified(normals: Tensor, directions: Tensor) -> Tensor:
    """Each normal replaced by the direction of the greatest dot product; missing normals stay missing.

    Shape:
        normals: (B, 3, H, W).
        directions: (N, 3), for all images, or (B, N, 3).

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958.

    Example:
        >>> axes = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> rectified(torch.tensor([0.2, -0.1, -0.97]).view(1, 3, 1, 1), axes).flatten() + 0.0
        tensor([ 0.,  0., -1.])
    """
    batch = directions.expand(len(normals), *directions.shape[-2:]).to(normals)
    nearest = largest_plane(torch.einsum("bchw,bnc->bnhw", normals, batch), torch.int64)
    chosen = torch.stack([own[index] for own, index in zip(batch, nearest, strict=True)]).permute(0, 3, 1, 2)
    return torch.where(valid_normals(normals)[:, None], chosen, 0)


def layout_normals(layouts: Tensor, templates: Tensor) -> Tensor:
    """The normals of the room layout that is thought most likely at the whole image.

    Args:
        layouts: Scores of the layouts, planes (B, L, h, w) of any size; they are averaged over the image.
        templates: The normals that each layout renders to, (L, 3, H, W).

    Shape:
        returns: (B, 3, H, W).
    """
    return templates[layouts.mean((2, 3)).argmax(1)]
