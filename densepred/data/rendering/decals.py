"""What is painted flat on the walls and the floor of a rendered room: doors, windows, pictures, rugs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepred.data.rendering.textures import Colour, Floats, Material


@dataclass(frozen=True)
class Decal(ABC):
    """A rectangle on a face of the room that has its own class and looks, and no thickness.

    Args:
        face: Of the room, as `densepred.data.rendering.scenes.Scene` numbers them.
        low: Its corner (u, v) on the face, in metres.
        size: Its (width, height) in metres.
        label: Its class.
        colour: Linear RGB of its frame.
        material: Of its inside.
    """

    face: int
    low: tuple[float, float]
    size: tuple[float, float]
    label: int
    colour: Colour
    material: Material

    glow = 0.0
    """How much of its albedo it shines with, instead of being lit."""

    def within(self, u: Floats, v: Floats) -> NDArray[np.intp]:
        """Indices of the points that lie in it."""
        left, bottom = np.float32(self.low[0]), np.float32(self.low[1])
        across = (u > left) & (u < left + np.float32(self.size[0]))
        return np.flatnonzero(across & (v > bottom) & (v < bottom + np.float32(self.size[1])))

    def albedo(self, u: Floats, v: Floats, footprint: Floats) -> Floats:
        """Linear RGB (3, N) at coordinates u, v of the face."""
        return self.paint(u - np.float32(self.low[0]), v - np.float32(self.low[1]), footprint)

    @abstractmethod
    def paint(self, x: Floats, y: Floats, footprint: Floats) -> Floats:
        """Linear RGB (3, N) at metres from its lower left corner."""

    def edge(self, x: Floats, y: Floats) -> Floats:
        """Metres from the nearest side."""
        width, height = np.float32(self.size[0]), np.float32(self.size[1])
        return np.asarray(np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)), np.float32)


def painted(paint: Floats, inside: Floats, footprint: Floats, colour: Colour) -> None:
    """Covers what is `inside` a border (metres, positive within) with a colour, smoothly over a pixel's footprint."""
    cover = np.clip(inside / footprint + np.float32(0.5), 0, 1)
    for channel in range(3):
        paint[channel] += cover * (np.float32(colour[channel]) - paint[channel])


def darkened(paint: Floats, inside: Floats, footprint: Floats, by: float) -> None:
    """Darkens what is inside a border, smoothly."""
    paint *= 1 - np.float32(by) * np.clip(inside / footprint + np.float32(0.5), 0, 1)


class Door(Decal):
    """A door with its frame, two panels and a knob."""

    def paint(self, x: Floats, y: Floats, footprint: Floats) -> Floats:  # noqa: D102
        paint = self.material.albedo(y, x, footprint)
        width, height = np.float32(self.size[0]), np.float32(self.size[1])
        sides = np.minimum(x, width - x)
        for bottom, top in ((0.14, 0.44), (0.52, 0.92)):
            panel = np.minimum(sides - 0.2 * width, np.minimum(y - bottom * height, top * height - y))
            darkened(paint, 0.012 - np.abs(panel), footprint, 0.5)
        edge = np.minimum(sides, height - y)
        painted(paint, 0.07 - edge, footprint, self.colour)
        darkened(paint, 0.006 - np.abs(edge - 0.07), footprint, 0.6)
        painted(paint, 0.032 - np.hypot(x - 0.86 * width, y - 0.48 * height), footprint, (0.75, 0.6, 0.25))
        return paint


class Window(Decal):
    """A window on a bright sky above trees, in its frame with bars."""

    glow = 0.85

    def paint(self, x: Floats, y: Floats, footprint: Floats) -> Floats:  # noqa: D102
        width, height = np.float32(self.size[0]), np.float32(self.size[1])
        up = np.clip(y / height, 0, 1)
        trees = self.material.albedo(x, y, footprint)
        treetops = 0.25 + 0.16 * np.sin(3 * x + np.float32(self.low[0])) + 0.07 * np.sin(11 * x)
        sky = (0.9 - 0.45 * up, 0.95 - 0.25 * up, 1.05)
        cover = np.clip((up - treetops) * height / footprint + np.float32(0.5), 0, 1)
        for channel in range(3):
            trees[channel] += cover * (sky[channel] - trees[channel])
        bars = np.minimum(np.abs(x - 0.5 * width), np.abs(y - 0.6 * height))
        painted(trees, 0.02 - bars, footprint, self.colour)
        painted(trees, 0.05 - self.edge(x, y), footprint, self.colour)
        return trees


class Picture(Decal):
    """A framed picture with a pale margin."""

    def paint(self, x: Floats, y: Floats, footprint: Floats) -> Floats:  # noqa: D102
        paint = self.material.albedo(x, y, footprint)
        edge = self.edge(x, y)
        painted(paint, 0.08 - edge, footprint, (0.8, 0.78, 0.72))
        painted(paint, 0.03 - edge, footprint, self.colour)
        return paint


class Rug(Decal):
    """A rug with a border."""

    def paint(self, x: Floats, y: Floats, footprint: Floats) -> Floats:  # noqa: D102
        paint = self.material.albedo(x, y, footprint)
        edge = self.edge(x, y)
        painted(paint, np.maximum(0.06 - edge, 0.015 - np.abs(edge - 0.115)), footprint, self.colour)
        return paint
