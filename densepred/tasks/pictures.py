"""Planes of numbers as pictures, uint8 RGB (B, 3, H, W)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from densepred.palettes import MISSING_COLOUR, ColourMap, colour_table


class Scale(NamedTuple):
    """The numbers that stand for the first and last colour, one pair an image.

    Shape:
        low, high: (B, 1, 1, 1).
    """

    low: Tensor
    high: Tensor

    def place(self, values: Tensor) -> Tensor:
        """Where values lie between low and high, within 0 and 1; not a number lies at 0."""
        span = (self.high - self.low).clamp(min=1e-12)
        return ((values.float() - self.low) / span).nan_to_num(0).clamp(0, 1)


def fixed_scale(low: float, high: float) -> Scale:
    """The same scale for every image."""
    return Scale(torch.tensor(low).view(1, 1, 1, 1), torch.tensor(high).view(1, 1, 1, 1))


def scale_of(values: Tensor, known: Tensor, otherwise: Tensor | None = None) -> Scale:
    """The least and greatest known value of each image; of `otherwise`'s finite values where an image has none known.

    Shape:
        values: (B, P, H, W).
        known: the same, or broadcast to it.
    """
    known = known.expand_as(values)
    if otherwise is not None:
        some = known.flatten(1).any(1).view(-1, 1, 1, 1)
        values, known = torch.where(some, values, otherwise), torch.where(some, known, otherwise.isfinite())
    flat, mask = values.float().flatten(1), known.flatten(1)
    low = torch.where(mask, flat, math.inf).amin(1)
    high = torch.where(mask, flat, -math.inf).amax(1)
    empty = low > high
    low, high = torch.where(empty, 0, low), torch.where(empty, 1, high)
    return Scale(low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1))


def heat(values: Tensor, known: Tensor, scale: Scale, colours: ColourMap = "viridis") -> Tensor:
    """One plane in colours, what is not known in grey.

    Shape:
        values: (B, 1, H, W).
        known: (B, 1, H, W), boolean.
    """
    table = torch.tensor(colour_table(colours), dtype=torch.uint8, device=values.device)
    scale = Scale(scale.low.to(values.device), scale.high.to(values.device))
    index = (scale.place(values) * 255).round().long()
    return grey_where_missing(table[index[:, 0]].permute(0, 3, 1, 2), known)


def shades(values: Tensor, known: Tensor) -> Tensor:
    """Three planes in 0 .. 1 as red, green and blue.

    Example:
        >>> shades(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool)).flatten()
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return grey_where_missing((values.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8), known)


def wheel(vectors: Tensor, known: Tensor, longest: Tensor) -> Tensor:
    """Vectors of two planes: the direction as hue, the length, up to `longest`, as saturation; zero is white.

    Shape:
        vectors: (B, 2, H, W).
        longest: (B, 1, 1, 1).
    """
    vectors = torch.where(known, vectors.float(), 0).nan_to_num(0, 0, 0)
    x, y = vectors[:, :1], vectors[:, 1:]
    saturation = (torch.hypot(x, y) / longest.clamp(min=1e-12)).clamp(max=1)
    sextant = torch.atan2(y, x) / (math.pi / 3)
    steps = [(sextant + offset) % 6 for offset in (5, 3, 1)]
    planes = [1 - saturation * torch.minimum(step, 4 - step).clamp(0, 1) for step in steps]
    return shades(torch.cat(planes, dim=1), known)


def grey_where_missing(picture: Tensor, known: Tensor) -> Tensor:
    """The picture (B, 3, H, W), grey where `known` (B, 1, H, W) is false."""
    grey = torch.tensor(MISSING_COLOUR, dtype=torch.uint8, device=picture.device).view(1, 3, 1, 1)
    return torch.where(known, picture, grey)
