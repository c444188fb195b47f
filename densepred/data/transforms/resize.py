"""Resizing, padding and cropping without chance."""

from typing import Any

from densepred.data.transforms.base import SceneTransform, checked_size
from densepred.data.transforms.resampling import Axis, Window
from densepred.data.transforms.view import View
from densepred.errors import ConfigurationError


class Rescale(SceneTransform):
    """Resizes the picture; the scene stays where it is.

    Intrinsics follow the pixels (fx' = s fx, cx' = (cx + 0.5) s - 0.5); depth and normals keep their values. An image
    that shrinks is averaged. Give exactly one of `size`, `short_side` and `factor`.

    Args:
        size: (height, width) of the result, whatever the shape before.
        short_side: Length of the shorter side in pixels; the shape is kept.
        factor: Result pixels for a pixel; the shape is kept.
        p: Probability.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        short_side: int | None = None,
        factor: float | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        given = {"size": size, "short_side": short_side, "factor": factor}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ConfigurationError(
                f"Rescale: {' and '.join(names) or 'nothing'} given; expected exactly one of size, short_side, factor."
            )
        if (short_side is not None and short_side < 1) or (factor is not None and factor <= 0):
            raise ConfigurationError(f"Rescale: {names[0]} is {given[names[0]]}; expected a number above 0.")
        self.size = None if size is None else checked_size(size, "Rescale")
        self.short_side = short_side
        self.factor = factor

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """The whole picture at another size."""
        height, width = self.resized(size)
        return View(Window(Axis(0, size[0], height, 0, height), Axis(0, size[1], width, 0, width)))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that a picture of this (height, width) gets."""
        if self.size is not None:
            return self.size
        factor = self.factor if self.short_side is None else self.short_side / min(size)
        if factor is None:
            raise ConfigurationError("Rescale: expected exactly one of size, short_side, factor.")
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


class PadTo(SceneTransform):
    """Pads right and bottom with "missing"; the image repeats its border. A side that is long enough stays.

    Give exactly one of `size` and `multiple`.

    Args:
        size: (height, width) that the result has at least.
        multiple: Both sides become the next multiple of it.
        p: Probability.
    """

    def __init__(self, size: tuple[int, int] | None = None, multiple: int | None = None, p: float = 1.0) -> None:
        super().__init__(p)
        if (size is None) == (multiple is None):
            raise ConfigurationError(f"PadTo: size is {size}, multiple is {multiple}; expected exactly one of them.")
        if multiple is not None and multiple < 1:
            raise ConfigurationError(f"PadTo: multiple is {multiple}; expected a number of pixels, at least 1.")
        self.size = None if size is None else checked_size(size, "PadTo")
        self.multiple = multiple

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """The picture on a larger canvas."""
        least = self.size or (1, 1)
        unit = self.multiple or 1
        rows, columns = (
            Axis(0, length, length, 0, max(-(-length // unit) * unit, side))
            for length, side in zip(size, least, strict=True)
        )
        return View(Window(rows, columns))


class CentreCrop(SceneTransform):
    """Cuts out the middle; a side that is too short is padded on both ends, with "missing".

    A random crop is `ScaleCrop(size, scale=(1.0, 1.0))`.

    Args:
        size: (height, width) of the result.
        p: Probability.
    """

    def __init__(self, size: tuple[int, int], p: float = 1.0) -> None:
        super().__init__(p)
        self.size = checked_size(size, "CentreCrop")

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """The middle."""
        rows, columns = (self._middle(length, side) for length, side in zip(size, self.size, strict=True))
        return View(Window(rows, columns))

    @staticmethod
    def _middle(length: int, side: int) -> Axis:
        kept = min(length, side)
        return Axis((length - kept) // 2, kept, kept, (side - kept) // 2, side)
