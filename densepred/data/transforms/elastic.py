"""The picture bent like rubber."""

from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from densepred.data.transforms.base import Move, SceneTransform
from densepred.data.transforms.resampling import Planes, by_channels
from densepred.errors import ConfigurationError
from densepred.sample import Kind, missing_value

UNBENDABLE = (Kind.DEPTH, Kind.NORMALS, Kind.INTRINSICS)


class ElasticDeformation(SceneTransform):
    """Bends the picture smoothly, as the U-Net's training on few microscope slices does.

    Each node of a coarse grid over the picture, its outermost nodes on the border pixels, gets a random displacement;
    between nodes it is bicubic. Images are read bilinearly, labels and weights from the nearest pixel. What is read
    from outside the picture is missing, and the image repeats its border there.

    Depth, normals and intrinsics are refused: no motion of a scene and no lens bends a picture so, and a depth or a
    focal length that would belong to the result does not exist. It is for flat things: slices, maps, documents.

    Args:
        sigma: Standard deviation, in pixels, of a node's displacement along either axis.
        grid: Nodes along a side, at least 2.
        p: Probability.

    Raises:
        ConfigurationError: When applied to a sample that holds depth, normals or intrinsics.

    Reference:
        Ronneberger, Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.
        arXiv:1505.04597, section 3.1 (3 x 3 nodes, Gaussian of 10 pixels, bicubic).
    """

    def __init__(self, sigma: float = 10.0, grid: int = 3, p: float = 1.0) -> None:
        super().__init__(p)
        if not 0 <= sigma < float("inf"):
            raise ConfigurationError(f"ElasticDeformation: sigma is {sigma}; expected pixels, at least 0.")
        if grid < 2:
            raise ConfigurationError(f"ElasticDeformation: grid is {grid}; expected at least 2 nodes along a side.")
        self.sigma = sigma
        self.grid = grid

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> Move:
        """A random displacement of every node."""
        bent = [kind.value for kind in UNBENDABLE if self.first(kind, data) is not None]
        if bent:
            raise ConfigurationError(
                f"ElasticDeformation: {data.get('name', 'the sample')!r} holds {', '.join(bent)}, which has no meaning "
                "in a bent picture: no scene and no camera would show it. Take Roll and ScaleCrop instead, or "
                "leave those targets out of the data set."
            )
        nodes = [self.py_random.gauss(0, self.sigma) for _ in range(2 * self.grid**2)]
        return partial(_bend, Displacement(np.array(nodes, np.float32).reshape(2, self.grid, self.grid), size))


class Displacement:
    """Every pixel read a little away from its place, by displacements (x, y) of nodes (2, n, n) over the picture.

    It is no `Resampling`: it has no matrix for intrinsics to follow.
    """

    def __init__(self, nodes: NDArray[np.float32], size: tuple[int, int]) -> None:
        self.size = size
        between = F.interpolate(torch.from_numpy(nodes)[None], size, mode="bicubic", align_corners=True)[0].numpy()
        self.x = between[0] + np.arange(size[1], dtype=np.float32)
        self.y = between[1] + np.arange(size[0], dtype=np.float32)[:, None]

    def linear(self, planes: Planes) -> Planes:
        """Bilinear; outside the picture its border is repeated."""
        return by_channels(
            lambda part: cv2.remap(part, self.x, self.y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), planes
        )

    def nearest(self, planes: Planes, missing: int) -> Planes:
        """The nearest pixel's value; `missing` outside the picture."""
        # not OpenCV's, which knows no 32-bit integers
        columns, rows = np.rint(self.x).astype(np.intp), np.rint(self.y).astype(np.intp)
        outside = (columns < 0) | (columns >= self.size[1]) | (rows < 0) | (rows >= self.size[0])
        result: Planes = planes[rows.clip(0, self.size[0] - 1), columns.clip(0, self.size[1] - 1)]
        result[outside] = missing
        return result


def _bend(displacement: Displacement, kind: Kind, planes: Planes) -> Planes:
    if kind is Kind.IMAGE:
        return displacement.linear(planes)
    return displacement.nearest(planes, missing_value(kind, planes.dtype))
