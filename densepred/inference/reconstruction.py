"""A scene reconstructed from one picture: points on all its surfaces, hidden ones included."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError, DataError
from densepred.inference.points_file import points_ply
from densepred.rays.field import pixel_grid, rays_through
from densepred.rays.module import RayDistancePredictor

HIDDEN = ((230, 85, 13), (117, 107, 177), (49, 163, 84), (222, 45, 38))
"""Colours of a ray's second, third, fourth and further surfaces: a picture does not tell what hidden ones look like."""


@dataclass(frozen=True)
class Reconstruction:
    """Points on the surfaces of a scene.

    Args:
        points: In the camera's frame, metres: x right, y down, z forward.
        order: The how manyeth surface of its ray each point lies on; 0 is seen.
        colours: Of the picture where it is seen, of its order where it is hidden.

    Shape:
        points: (N, 3), float32. order: (N,), int64. colours: (N, 3), uint8.
    """

    points: np.ndarray
    order: np.ndarray
    colours: np.ndarray

    def write_ply(self, path: str | Path) -> int:
        """Writes a file that MeshLab, CloudCompare, Blender and Open3D open, whole or not at all; counts the points.

        Raises:
            DataError: If there is no point.
        """
        if len(self.points) == 0:
            raise DataError(f"{path}: no surface was found along any ray, so there is no point to write.")
        with whole_file(Path(path)) as temporary:
            temporary.write_bytes(points_ply(self.points, self.colours))
        return len(self.points)


@torch.no_grad()
def reconstruct(
    module: RayDistancePredictor,
    image: np.ndarray,
    intrinsics: np.ndarray,
    rays: tuple[int, int] | None = None,
) -> Reconstruction:
    """All surfaces along a grid of rays through a picture.

    Args:
        module: Trained; it is put into evaluation mode.
        image: The picture, of about the size that it was trained with.
        intrinsics: K of this very picture.
        rays: Rows and columns of the grid; None takes a ray a pixel.

    Shape:
        image: (H, W, 3), uint8 RGB. intrinsics: (3, 3).

    Raises:
        ConfigurationError: If the picture has another layout.

    Example:
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> module = RayDistancePredictor(ResNetEncoder("resnet18"), samples=16)
        >>> camera = np.array([[60, 0, 32], [0, 60, 24], [0, 0, 1]], np.float32)
        >>> reconstruct(module, np.zeros((48, 64, 3), np.uint8), camera, rays=(4, 5)).points.shape[1]
        3
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ConfigurationError(f"reconstruct: expected a uint8 picture (H, W, 3), got {image.dtype} {image.shape}.")
    module.eval()
    height, width = image.shape[:2]
    pixels = pixel_grid((height, width), *(rays or (height, width))).to(module.device)
    camera = torch.as_tensor(intrinsics, dtype=torch.float32, device=module.device)
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(module.device)
    found = module(planes[None], pixels[None], camera[None])[0]
    real = found.isfinite()
    places = rays_through(pixels[None], camera[None]).points(found.nan_to_num(posinf=0.0)[None])[0]
    order = torch.arange(found.shape[1], device=found.device).expand(found.shape)
    nearest = pixels.round().long().cpu().numpy()
    seen = image[nearest[:, 1].clip(0, height - 1), nearest[:, 0].clip(0, width - 1)]
    palette = np.array(HIDDEN, np.uint8)
    which = order[real].cpu().numpy()
    colours = np.broadcast_to(seen[:, None], (*found.shape, 3))[real.cpu().numpy()]
    colours = np.where(which[:, None] > 0, palette[np.clip(which - 1, 0, len(palette) - 1)], colours)
    return Reconstruction(places[real].cpu().numpy(), which, colours)
