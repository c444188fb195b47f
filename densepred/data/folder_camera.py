"""The camera of a folder's images: intrinsics in files, and where the axes of stored normals point to."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from densepred.errors import ConfigurationError, DataError
from densepred.geometry import intrinsics_matrix, resize_intrinsics

Axis = Literal["right", "left", "down", "up", "forward", "backward"]
AXES: tuple[Axis, Axis, Axis] = ("right", "down", "forward")
"""Ours: x right, y down, z forward, away from the camera."""
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "forward": (2, 1), "backward": (2, -1)}


def axes_matrix(axes: tuple[Axis, Axis, Axis]) -> np.ndarray:
    """The matrix that takes a vector in these axes to x right, y down, z forward.

    Raises:
        ConfigurationError: If two axes lie on one line.

    Example:
        >>> (axes_matrix(("right", "up", "backward")) @ [0, 0, 1]).tolist()
        [0.0, 0.0, -1.0]
    """
    matrix = np.zeros((3, 3), np.float32)
    for column, axis in enumerate(axes):
        row, sign = DIRECTIONS[axis]
        matrix[row, column] = sign
    if abs(np.linalg.det(matrix)) < 0.5:
        raise ConfigurationError(
            f"normals_axes {list(axes)}: expected one of right and left, one of down and up, one of forward and "
            "backward, in the order of the files' x, y, z."
        )
    return matrix


class Camera:
    """Gives the intrinsics of images: of all the same, or a file for each.

    Args:
        shared: K of all images; None reads files.
        folder: Where NAME.txt lies for each image.
        size: (height, width) K was measured at; None says that of the images.
    """

    def __init__(
        self, shared: np.ndarray | None = None, folder: Path | None = None, size: tuple[int, int] | None = None
    ) -> None:
        self.shared = shared
        self.folder = folder
        self.size = size

    @classmethod
    def find(
        cls, root: Path, given: tuple[float, float, float, float] | str | None, size: tuple[int, int] | None
    ) -> "Camera | None":
        """The camera that options name, or that lies below root as intrinsics.txt or intrinsics/NAME.txt.

        Raises:
            DataError: If what is named is not there, or is no intrinsics.
        """
        if given is not None and not isinstance(given, str):
            return cls(_checked(intrinsics_matrix(*given), "intrinsics"), size=size)
        for path in (root / "intrinsics.txt", root / "intrinsics") if given is None else (root / given,):
            if path.is_dir():
                return cls(folder=path, size=size)
            if path.is_file():
                return cls(read_intrinsics(path), size=size)
        if given is not None:
            raise DataError(f"{root / given}: there is no such file or folder of intrinsics.")
        return None

    def __call__(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """K (3, 3) float32 of an image of this (height, width)."""
        matrix = self.shared
        if matrix is None:
            matrix = read_intrinsics((self.folder or Path()) / f"{name}.txt")
        return matrix if self.size in (None, size) else resize_intrinsics(matrix, self.size or size, size)


def read_intrinsics(path: Path) -> np.ndarray:
    """K from a text file: fx fy cx cy, or the nine numbers of the matrix by rows; pixels, integer pixel centres.

    Raises:
        DataError: If it is missing or holds something else.
    """
    try:
        words = re.split(r"[\s,;]+", path.read_text(encoding="utf-8-sig").strip())
        numbers = [float(word) for word in words if word]
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file of intrinsics.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected fx fy cx cy, or 3 x 3 numbers: {error}") from error
    if len(numbers) == 9:
        return _checked(np.array(numbers, np.float32).reshape(3, 3), str(path))
    if len(numbers) != 4:
        raise DataError(f"{path}: expected fx fy cx cy, or 3 x 3 numbers, but it holds {len(numbers)} numbers.")
    return _checked(intrinsics_matrix(*numbers), str(path))


def _checked(matrix: np.ndarray, where: str) -> np.ndarray:
    last = np.array_equal(matrix[2], [0, 0, 1])
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or not last:
        raise DataError(
            f"{where}: expected focal lengths above 0 and, of a matrix, the last row 0 0 1; got {matrix.tolist()}."
        )
    return matrix
