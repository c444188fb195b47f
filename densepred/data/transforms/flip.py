"""Left and right swapped."""

from typing import Any

import numpy as np

from densepred.data.transforms.base import SceneTransform
from densepred.data.transforms.resampling import Mirror
from densepred.data.transforms.view import View


class FlipLeftRight(SceneTransform):
    """Mirrors the scene left to right.

    Normals' x changes its sign and the principal point moves to W - 1 - cx; depth and focal lengths stay.

    Args:
        p: Probability.

    Example:
        >>> from densepred.data.transforms import SampleTransforms
        >>> normals = np.zeros((1, 2, 3), np.float32)
        >>> normals[0, 0] = (0.6, 0, -0.8)
        >>> image = np.zeros((1, 2, 3), np.uint8)
        >>> sample = SampleTransforms([FlipLeftRight(p=1.0)])({"image": image, "normals": normals})
        >>> [round(float(value), 1) for value in sample["normals"][0, 1]]
        [-0.6, 0.0, -0.8]
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """The mirror."""
        return View(Mirror(size), np.diag([-1.0, 1, 1]))
