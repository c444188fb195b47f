"""How pixels move: mirrored, cut out and resized, or turned. Nothing here knows what the planes mean.

Pixel centres have integer coordinates, so a picture of width W covers [-0.5, W - 0.5].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Planes = NDArray[Any]


class Resampling(ABC):
    """A map of pixels to pixels, with three ways to read between them.

    Attributes:
        matrix: 3x3, homogeneous, from a pixel (x, y, 1) of the source to its place in the result.
        size: (height, width) of the result.
        exact: True if pixels only change places, so that nothing is read between them.

    Shape:
        planes: (H, W) or (H, W, C), any C; returns the same with `size` in place of (H, W).
    """

    matrix: NDArray[np.float64]
    size: tuple[int, int]
    exact: bool

    @abstractmethod
    def colour(self, image: Planes) -> Planes:
        """For the image: averages what is shrunk, bilinear elsewhere; outside the picture its border is repeated."""

    @abstractmethod
    def nearest(self, planes: Planes, missing: int) -> Planes:
        """The nearest pixel's own value; `missing` outside the picture."""

    @abstractmethod
    def linear(self, planes: Planes) -> Planes:
        """Bilinear between the four pixels around; outside the picture its border is repeated."""


class Mirror(Resampling):
    """Left and right swapped."""

    exact = True

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.matrix = np.array([[-1.0, 0, size[1] - 1], [0, 1, 0], [0, 0, 1]])

    def colour(self, image: Planes) -> Planes:
        """For the image."""
        return by_channels(lambda part: cv2.flip(part, 1), image)

    def nearest(self, planes: Planes, missing: int) -> Planes:
        """The nearest pixel's value."""
        return self.colour(planes)

    def linear(self, planes: Planes) -> Planes:
        """Bilinear."""
        return self.colour(planes)


class Axis(NamedTuple):
    """One side of a window: source pixels [start, start + length) become `kept` pixels from `offset` on, of `size`."""

    start: int
    length: int
    kept: int
    offset: int
    size: int

    @property
    def scale(self) -> float:
        """Result pixels for a source pixel."""
        return self.kept / self.length

    @property
    def shift(self) -> float:
        """Where the centre of source pixel 0 comes to lie."""
        return (0.5 - self.start) * self.scale - 0.5 + self.offset

    @property
    def source(self) -> slice:
        """The pixels that are read."""
        return slice(self.start, self.start + self.length)

    @property
    def target(self) -> slice:
        """The pixels that are written."""
        return slice(self.offset, self.offset + self.kept)

    @property
    def nearest(self) -> NDArray[np.int64]:
        """The source pixel whose cell holds the centre of each kept pixel, counted from `start`.

        In whole numbers, because OpenCV's own rule (INTER_NEAREST) rounds down and shifts labels by up to half a
        source pixel for each pixel that it leaves out.
        """
        return (2 * np.arange(self.kept) + 1) * self.length // (2 * self.kept)

    @property
    def border(self) -> tuple[int, int]:
        """Pixels before and after the kept ones."""
        return self.offset, self.size - self.offset - self.kept


class Window(Resampling):
    """A rectangle cut out first, then resized, then put on a canvas: only what is kept is ever resized."""

    def __init__(self, rows: Axis, columns: Axis) -> None:
        self.rows, self.columns = rows, columns
        self.size = (rows.size, columns.size)
        self.kept = (rows.kept, columns.kept)
        self.exact = (rows.length, columns.length) == self.kept
        self.matrix = np.array([[columns.scale, 0, columns.shift], [0, rows.scale, rows.shift], [0, 0, 1]])

    def colour(self, image: Planes) -> Planes:
        """For the image."""
        cut = image[self.rows.source, self.columns.source]
        # two steps: where a side grows there is nothing to average, and OpenCV is faster for any type and channels
        smaller = (min(cut.shape[0], self.rows.kept), min(cut.shape[1], self.columns.kept))
        return self._extended(_resize(_averaged(cut, smaller), self.kept))

    def nearest(self, planes: Planes, missing: int) -> Planes:
        """The nearest pixel's value."""
        cut = planes[self.rows.source, self.columns.source]
        if not self.exact:
            # take: indexing by an array makes planes whose axes lie the wrong way round in memory
            cut = cut.take(self.columns.nearest, axis=1).take(self.rows.nearest, axis=0)
        if self.kept == self.size:
            return np.ascontiguousarray(cut)
        canvas = np.full((*self.size, *planes.shape[2:]), missing, planes.dtype)
        canvas[self.rows.target, self.columns.target] = cut
        return canvas

    def linear(self, planes: Planes) -> Planes:
        """Bilinear."""
        cut = planes[self.rows.source, self.columns.source]
        return self._extended(_resize(cut, self.kept))

    def _extended(self, planes: Planes) -> Planes:
        if self.kept == self.size:
            return np.ascontiguousarray(planes)
        border = (*self.rows.border, *self.columns.border)
        return by_channels(lambda part: cv2.copyMakeBorder(part, *border, cv2.BORDER_REPLICATE), planes)


class Warp(Resampling):
    """Any affine map, the size unchanged."""

    exact = False

    def __init__(self, matrix: NDArray[np.float64], size: tuple[int, int]) -> None:
        self.matrix, self.size = matrix, size

    def colour(self, image: Planes) -> Planes:
        """For the image."""
        return self._warp(image, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)

    def nearest(self, planes: Planes, missing: int) -> Planes:
        """The nearest pixel's value."""
        return self._warp(planes, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, missing)

    def linear(self, planes: Planes) -> Planes:
        """Bilinear."""
        return self._warp(planes, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)

    def _warp(self, planes: Planes, reading: int, border: int, missing: int = 0) -> Planes:
        def warp(part: Planes) -> Planes:
            return cv2.warpAffine(
                part,
                self.matrix[:2],
                self.size[::-1],
                flags=reading,
                borderMode=border,
                borderValue=(missing, missing, missing, missing),
            )

        return by_channels(warp, planes)


def _averaged(image: Planes, size: tuple[int, int]) -> Planes:
    """Shrunk as by Pillow and torchvision, with a triangle over all pixels that count.

    On bytes, which images are, a quarter of the time of OpenCV's INTER_AREA.
    """
    if image.shape[:2] == size:
        return image

    def average(part: Planes) -> Planes:
        # batch first, then channels behind: so torch takes it as it lies in memory
        pixels = torch.from_numpy(np.require(part, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
        result: Planes = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        return result

    # beyond four channels torch too is slow
    return by_channels(average, image)


def _resize(planes: Planes, size: tuple[int, int]) -> Planes:
    if planes.shape[:2] == size:
        return planes
    return by_channels(lambda part: cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR), planes)


def by_channels(function: Callable[[Planes], Planes], planes: Planes) -> Planes:
    """Applies a function to four channels at a time; OpenCV takes no more, and drops an axis of one."""
    if planes.ndim == 2:
        return function(planes)
    channels = planes.shape[2]
    if channels <= 4:
        result = function(planes)
        return result.reshape(*result.shape[:2], channels)
    parts = [function(np.ascontiguousarray(planes[..., i : i + 4])) for i in range(0, channels, 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)
