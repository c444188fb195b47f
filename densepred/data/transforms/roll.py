"""The camera turned about its optical axis."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepred.data.transforms.base import SceneTransform
from densepred.data.transforms.resampling import Planes, Warp
from densepred.data.transforms.view import View
from densepred.errors import ConfigurationError
from densepred.sample import Kind


class Roll(SceneTransform):
    """Turns the scene about the optical axis, through the principal point, by a random angle.

    Pixels move by K Rz inverse(K), a true rotation also where fx differs from fy; normals' (x, y) turn by Rz; depth and
    intrinsics stay. Positive angles turn the picture clockwise. The size stays too: corners that come from outside the
    picture are missing. Without intrinsics it turns about the centre.

    Args:
        limit: Largest angle in degrees, either way; drawn uniformly.
        p: Probability.
    """

    def __init__(self, limit: float = 5.0, p: float = 0.5) -> None:
        super().__init__(p)
        if not 0 <= limit <= 180:
            raise ConfigurationError(f"Roll: limit is {limit}; expected degrees from 0 to 180.")
        self.limit = limit

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """A turn by a random angle."""
        angle = math.radians(self.py_random.uniform(-self.limit, self.limit))
        turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        camera = _camera(size, self.first(Kind.INTRINSICS, data))
        return View(Warp(camera @ turn @ np.linalg.inv(camera), size), turn)


def _camera(size: tuple[int, int], intrinsics: Planes | None) -> NDArray[np.float64]:
    """The camera's intrinsics or, where none are given, those of square pixels around the picture's centre."""
    if intrinsics is not None:
        return intrinsics.astype(np.float64)
    return np.array([[1.0, 0, (size[1] - 1) / 2], [0, 1, (size[0] - 1) / 2], [0, 0, 1]])
