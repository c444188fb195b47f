"""Draws colours and materials from random numbers."""

import colorsys

import numpy as np

from densepred.data.rendering.textures import Colour, Material


def shaded(colour: Colour, share: float) -> Colour:
    """A colour made darker."""
    return share * colour[0], share * colour[1], share * colour[2]


class Looks:
    """Draws looks, one after the other, from one stream of random numbers.

    Everything is made of the generator's `random()`: of all its draws the least likely to change with numpy.

    Args:
        rng: The stream.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        """A number of an interval."""
        return low + (high - low) * float(self.rng.random())

    def below(self, number: int) -> int:
        """A whole number from 0 on."""
        return int(self.rng.random() * number)

    def one_of(self, *things: str) -> str:
        """One of some words."""
        return things[self.below(len(things))]

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return float(self.rng.random()) < probability

    def colour(self, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None) -> Colour:
        """Linear RGB; value and saturation are those of the picture, hence the squares."""
        hue = self.between(0, 1) if hue is None else hue % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, self.between(*saturation), self.between(*value))
        return red * red, green * green, blue * blue

    def tint(self, low: float, high: float) -> Colour:
        """Nearly white light, cool to warm."""
        strength, warmth = self.between(low, high), self.between(-0.08, 0.12)
        return strength * (1 + warmth), strength, strength * (1 - warmth)

    def made_of(self, pattern: str, scale: float, dark: Colour, light: Colour, gloss: float = 0.0) -> Material:
        """A pattern that lies along or across, at a random place."""
        return Material(
            pattern, scale, self.below(2) * np.pi / 2, (self.between(0, 1), self.between(0, 1)), dark, light, gloss
        )

    def wall(self) -> Material:
        """Of a wall: light plaster, a paper with a fine pattern, or bricks."""
        hue = self.between(0, 1)
        light = self.colour((0.02, 0.2), (0.72, 0.95), hue)
        pattern = self.one_of("plaster", "plaster", "plaster", "pinstripes", "dots", "bricks", "weave")
        if pattern == "bricks":
            dark, light = self.colour((0.05, 0.2), (0.75, 0.9), 0.08), self.colour((0.35, 0.6), (0.5, 0.75), 0.04)
            return Material("bricks", 0.95, 0.0, (self.between(0, 1), 0.0), dark, light)
        share = self.between(0.86, 0.94) if pattern == "plaster" else self.between(0.68, 0.9)
        dark = shaded(light, share)
        scale = self.between(1.5, 3.0) if pattern == "plaster" else self.between(0.4, 0.9)
        return Material(pattern, scale, 0.0, (self.between(0, 1), self.between(0, 1)), dark, light)

    def wooden(self) -> Material:
        """Wood, varnished or not."""
        hue = self.between(0.05, 0.1)
        dark, light = self.colour((0.5, 0.75), (0.25, 0.5), hue), self.colour((0.35, 0.6), (0.6, 0.85), hue)
        return self.made_of("wood", self.between(0.5, 0.9), dark, light, self.between(0.05, 0.2))

    def floor(self) -> Material:
        """Planks, carpet, tiles or marble."""
        pattern = self.one_of("planks", "planks", "carpet", "tiles", "checker", "marble")
        if pattern == "planks":
            hue = self.between(0.05, 0.1)
            dark, light = self.colour((0.5, 0.7), (0.15, 0.35), hue), self.colour((0.35, 0.6), (0.6, 0.85), hue)
            return self.made_of(pattern, self.between(1.0, 1.6), dark, light)
        hue = self.between(0, 1)
        dark, light = self.colour((0.1, 0.45), (0.3, 0.5), hue), self.colour((0.03, 0.3), (0.6, 0.85), hue)
        return self.made_of(pattern, self.between(1.2, 2.2), dark, light)

    def walls(self) -> list[Material]:
        """Of the four walls; sometimes one is unlike the others."""
        walls = [self.wall()] * 4
        if self.chance(0.4):
            walls[self.below(4)] = self.wall()
        return walls

    def ceiling(self) -> Material:
        """White, plastered or tiled."""
        white = self.colour((0.0, 0.06), (0.9, 0.97))
        return Material(self.one_of("plaster", "plaster", "tiles"), 2.4, 0.0, (0.0, 0.0), shaded(white, 0.9), white)

    def coloured(self) -> Material:
        """Of a thing: any pattern in any colour, or wood."""
        if self.chance(0.2):
            return self.wooden()
        pattern = self.one_of(
            "blotches", "plaster", "checker", "stripes", "dots", "zigzag", "weave", "marble", "carpet"
        )
        hue = self.between(0, 1)
        light = self.colour((0.25, 0.8), (0.5, 0.9), hue)
        if pattern in ("blotches", "plaster", "carpet", "weave"):
            share = self.between(0.55, 0.8)
            dark = shaded(light, share)
        else:
            dark = self.colour((0.1, 0.7), (0.2, 0.8), hue + self.between(0.1, 0.6))
        return self.made_of(pattern, self.between(0.35, 0.8), dark, light, self.between(0.0, 0.5))

    def pair(self, saturation: tuple[float, float], value: tuple[float, float]) -> tuple[Colour, Colour]:
        """A colour a little darker than another, and that other."""
        light = self.colour(saturation, value)
        return shaded(light, 0.85), light
