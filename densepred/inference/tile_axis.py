"""Where tiles lie along one side of an image, and how much each of them says about every pixel."""

from typing import NamedTuple

import torch
from torch import Tensor

SIGMAS = 8
"""A tile is so many standard deviations of its weights long."""


class Tile(NamedTuple):
    """One tile, along one side of the image.

    Args:
        start: Its first pixel; below 0 where it begins with the mirror image.
        stop: The pixel behind its last one; beyond the image where it ends with the mirror image.
        first: The first pixel of the image that it answers for.
        last: The pixel behind the last one that it answers for.
        weights: Its share in the answer at the pixels from `first` to `last`; the shares of all tiles add up to 1.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor


def blended_tiles(size: int, tile: int, overlap: int, align: int = 1, mirror: tuple[int, int] = (0, 0)) -> list[Tile]:
    """Tiles of which each says most about its middle: weights are a Gaussian, an eighth of the tile its deviation.

    Tiles start at multiples of `align`; the last one ends with the image, and may be shorter by up to `align - 1`.

    Args:
        size: Pixels of the image.
        tile: Pixels of a tile.
        overlap: Pixels that neighbours share, at least.
        align: Pixels of a cell of the network's coarsest map.
        mirror: Pixels of mirror image before and behind the image.

    Example:
        >>> [(tile.start, tile.stop) for tile in blended_tiles(100, tile=48, overlap=16, align=16)]
        [(0, 48), (32, 80), (64, 100)]
    """
    before, whole = mirror[0], sum(mirror) + size
    spans = _spans(whole, tile, max(align, (tile - overlap) // align * align), align)
    total = torch.zeros(whole, dtype=torch.float64)
    bells = [_bell(stop - start) for start, stop in spans]
    for (start, stop), bell in zip(spans, bells, strict=True):
        total[start:stop] += bell
    tiles = []
    for (start, stop), bell in zip(spans, bells, strict=True):
        first, last = max(start, before), min(stop, before + size)
        if first < last:
            weights = bell[first - start : last - start] / total[first:last]
            tiles.append(Tile(start - before, stop - before, first - before, last - before, weights.float()))
    return tiles


def cropped_tiles(size: int, tile: int, margin: int, align: int = 1, mirror: tuple[int, int] = (0, 0)) -> list[Tile]:
    """Tiles of which each answers alone for its middle, and for what lies between it and the image's border.

    Args:
        size: Pixels of the image.
        tile: Pixels of a tile.
        margin: Pixels at either end of a tile for which its neighbour answers.
        align: Pixels of a cell of the network's coarsest map.
        mirror: Pixels of mirror image before and behind the image.

    Example:
        >>> [(tile.first, tile.last) for tile in cropped_tiles(100, tile=48, margin=8, align=16)]
        [(0, 40), (40, 72), (72, 100)]
    """
    before, whole = mirror[0], sum(mirror) + size
    spans = _spans(whole, tile, (tile - 2 * margin) // align * align, align)
    seams = [0, *(start + margin for start, _ in spans[1:]), whole]
    tiles = []
    for (start, stop), left, right in zip(spans, seams, seams[1:], strict=False):
        first, last = max(left, before), min(right, before + size)
        if first < last:
            tiles.append(Tile(start - before, stop - before, first - before, last - before, torch.ones(last - first)))
    return tiles


def _spans(size: int, tile: int, step: int, align: int) -> list[tuple[int, int]]:
    """From and to of tiles that cover all of a side."""
    last = max(0, -(-(size - tile) // align) * align)
    return [(start, min(start + tile, size)) for start in (*range(0, last, step), last)]


def _bell(length: int) -> Tensor:
    # at its ends, four deviations from the middle, e^-8: nothing that sums are divided by is ever 0
    place = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-0.5 * (place * SIGMAS / length) ** 2)
