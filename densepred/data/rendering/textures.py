"""Procedural textures: tileable patterns with their mip maps, made once a process, coloured for every surface."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]

SIDE = 256
LEVELS = 9  # 256, 128, ... 1


@dataclass(frozen=True)
class Material:
    """What a surface looks like: a pattern between two colours.

    Args:
        pattern: Name of a pattern of `PATTERNS`.
        scale: Metres that one tile of it covers.
        angle: Its turn on the surface, in radians.
        shift: Its origin, in tiles.
        dark: Linear RGB where the pattern is 0.
        light: Linear RGB where the pattern is 1.
        gloss: Strength of the highlight.
    """

    pattern: str
    scale: float
    angle: float
    shift: tuple[float, float]
    dark: Colour
    light: Colour
    gloss: float = 0.0

    def albedo(self, u: Floats, v: Floats, footprint: Floats) -> Floats:
        """Linear RGB (3, N) at coordinates u, v in metres, for pixels that are `footprint` metres wide there."""
        cos, sin = np.float32(np.cos(self.angle) / self.scale), np.float32(np.sin(self.angle) / self.scale)
        x = cos * u - sin * v + np.float32(self.shift[0])
        y = sin * u + cos * v + np.float32(self.shift[1])
        value = sample(mip_maps(self.pattern), x, y, footprint * np.float32(1 / self.scale))
        dark, light = np.array(self.dark, np.float32), np.array(self.light, np.float32)
        return dark[:, None] + (light - dark)[:, None] * value


def sample(maps: Floats, x: Floats, y: Floats, footprint: Floats) -> Floats:
    """Bilinear look-up in the mip map whose cells are about `footprint` (all in tiles; the pattern repeats)."""
    cells = np.maximum(footprint * np.float32(SIDE * np.sqrt(2)), np.float32(1))
    # the exponent of a float32 is the floor of its log2, twenty times faster than the logarithm
    level = np.minimum((cells.view(np.int32) >> 23) - 127, LEVELS - 1)
    side = np.int32(SIDE) >> level
    start = _STARTS[level]
    x, y = x * side.astype(np.float32) - np.float32(0.5), y * side.astype(np.float32) - np.float32(0.5)
    left, top = np.floor(x), np.floor(y)
    x -= left
    y -= top
    mask = side - 1
    column, row = left.astype(np.int32), top.astype(np.int32)
    column, following = column & mask, (column + 1) & mask
    here, below = start + (row & mask) * side, start + ((row + 1) & mask) * side
    upper = maps.take(here + column)
    upper += x * (maps.take(here + following) - upper)
    lower = maps.take(below + column)
    lower += x * (maps.take(below + following) - lower)
    upper += y * (lower - upper)
    return np.asarray(upper, np.float32)


_STARTS = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(LEVELS - 1)]).astype(np.int32)


@cache
def mip_maps(pattern: str) -> Floats:
    """A pattern at all its sizes, one after the other in one flat array."""
    tile = PATTERNS[pattern]().astype(np.float64)
    maps = [tile.ravel()]
    while len(tile) > 1:
        tile = tile.reshape(len(tile) // 2, 2, -1, 2).mean((1, 3))
        maps.append(tile.ravel())
    return np.concatenate(maps).astype(np.float32)


def noise(seed: int, coarsest: tuple[int, int] = (4, 4), octaves: int = 6, persistence: float = 0.6) -> Floats:
    """Tileable fractal noise in [0, 1]: octaves of smooth random lattices (rows, columns), each finer and weaker."""
    rng = np.random.Generator(np.random.PCG64(seed))
    total = np.zeros((SIDE, SIDE))
    for octave in range(octaves):
        lattice = [min(cells << octave, SIDE) for cells in coarsest]
        values = rng.random(lattice)
        for axis, cells in enumerate(lattice):
            values = _interpolated(values, axis, cells)
        total += persistence**octave * values
    low, high = np.percentile(total, [1, 99])
    return np.asarray(np.clip((total - low) / (high - low), 0, 1), np.float32)


def _interpolated(values: NDArray[np.float64], axis: int, cells: int) -> NDArray[np.float64]:
    position = np.arange(SIDE) * cells / SIDE
    left = np.floor(position).astype(int)
    weight = position - left
    weight = weight * weight * (3 - 2 * weight)
    shape = [-1 if i == axis else 1 for i in range(2)]
    weight = weight.reshape(shape)
    return np.asarray(
        values.take(left, axis) * (1 - weight) + values.take((left + 1) % cells, axis) * weight, np.float64
    )


def _grid() -> tuple[Floats, Floats]:
    """Coordinates (x, y) of the tile's cells, in [0, 1)."""
    line = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    x, y = np.meshgrid(line, line)
    return x.astype(np.float32), y.astype(np.float32)


def _smooth(edge: NDArray[np.floating], width: float = 0.01) -> Floats:
    return np.asarray(np.clip(edge / np.float32(width) + 0.5, 0, 1), np.float32)


def _plaster() -> Floats:
    return 0.7 * noise(1) + 0.3 * noise(2, (32, 32), 3)


def _blotches() -> Floats:
    return noise(3, (3, 3), 7, 0.7)


def _carpet() -> Floats:
    return 0.35 * noise(4, (4, 4), 5) + 0.65 * noise(5, (64, 64), 3, 0.9)


def _checker() -> Floats:
    x, y = _grid()
    signs = (np.floor(x * 4) + np.floor(y * 4)) % 2
    return (0.88 * signs + 0.12 * noise(6)).astype(np.float32)


def _stripes() -> Floats:
    x, _ = _grid()
    wave = np.abs((x * 6) % 1 - 0.5) - 0.25
    return (0.9 * _smooth(wave, 0.06) + 0.1 * noise(7)).astype(np.float32)


def _pinstripes() -> Floats:
    x, _ = _grid()
    line = 0.06 - np.abs((x * 8) % 1 - 0.5)
    return (0.8 * (1 - _smooth(line, 0.05)) + 0.2 * noise(8)).astype(np.float32)


def _dots() -> Floats:
    x, y = _grid()
    x, y = x * 6, y * 6
    shifted = x + 0.5 * (np.floor(y) % 2)
    away = np.hypot(shifted % 1 - 0.5, y % 1 - 0.5)
    return (0.9 * _smooth(0.27 - away, 0.06) + 0.1 * noise(9)).astype(np.float32)


def _zigzag() -> Floats:
    x, y = _grid()
    bent = y * 6 + np.abs((x * 6) % 1 - 0.5)
    return (0.9 * _smooth(np.abs(bent % 1 - 0.5) - 0.25, 0.08) + 0.1 * noise(10)).astype(np.float32)


def _tiles() -> Floats:
    x, y = _grid()
    return _laid(np.floor(x * 4), np.floor(y * 4), _rim(x * 4, y * 4, 0.03), 4, 0.25, noise(11, (8, 8)))


def _bricks() -> Floats:
    x, y = _grid()
    row = np.floor(y * 12)
    along = x * 4 + 0.5 * (row % 2)
    return _laid(np.floor(along) % 4, row, _rim(along, y * 12, 0.05, 3.0), 12, 0.45, noise(12, (16, 16)))


def _planks() -> Floats:
    x, y = _grid()
    row = np.floor(y * 10)
    along = x * 2 + (row * 0.37) % 1
    rim = _rim(along, y * 10, 0.03, 10.0)
    return _laid(np.floor(along) % 2, row, rim, 10, 0.55, noise(13, (40, 2), 4))


def _rim(x: NDArray[np.floating], y: NDArray[np.floating], width: float, aspect: float = 1.0) -> Floats:
    """0 in the joints of a unit lattice whose cells are `aspect` times as long as high, 1 inside."""
    along = (0.5 - np.abs(x % 1 - 0.5)) * aspect
    across = 0.5 - np.abs(y % 1 - 0.5)
    return _smooth(np.minimum(along, across) - width, 0.04)


def _laid(column: NDArray[np.floating], row: Floats, rim: Floats, rows: int, contrast: float, grain: Floats) -> Floats:
    """Pieces in rows, each with its own tone, in a frame of dark joints."""
    tones = np.random.Generator(np.random.PCG64(14)).random((rows, rows)).astype(np.float32)
    tone = tones[row.astype(int) % rows, column.astype(int) % rows]
    return np.asarray(rim * (1 - contrast * tone - 0.25 * grain), np.float32)


def _wood() -> Floats:
    _, y = _grid()
    rings = np.sin(2 * np.pi * (y * 7 + 1.2 * noise(15, (3, 1), 3)))
    return np.clip(0.35 + 0.3 * rings + 0.5 * (noise(16, (60, 2), 3) - 0.2), 0, 1).astype(np.float32)


def _marble() -> Floats:
    veins = np.abs(noise(17, (3, 3), 6, 0.55) - 0.5)
    return np.asarray(np.clip(veins * 9, 0, 1) * 0.8 + 0.2 * noise(18), np.float32)


def _weave() -> Floats:
    x, y = _grid()
    x, y = x * 24, y * 24
    over = (np.floor(x) + np.floor(y)) % 2
    thread = np.where(over > 0, np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1)))
    return np.asarray((0.75 * thread + 0.25 * noise(19)), np.float32)


PATTERNS: dict[str, Callable[[], Floats]] = {
    "plaster": _plaster,
    "blotches": _blotches,
    "carpet": _carpet,
    "checker": _checker,
    "stripes": _stripes,
    "pinstripes": _pinstripes,
    "dots": _dots,
    "zigzag": _zigzag,
    "tiles": _tiles,
    "bricks": _bricks,
    "planks": _planks,
    "wood": _wood,
    "marble": _marble,
    "weave": _weave,
}
"""Tiles of SIDE x SIDE in [0, 1], by name."""
