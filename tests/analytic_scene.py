"""A box room with a sphere, known in closed form at every point of the picture, between pixels too."""

from typing import NamedTuple

import numpy as np

SIZE = (120, 160)
# off-centre, and fx differs from fy, so that no formula gets away with a square camera that looks at the middle
INTRINSICS = np.array([[140.0, 0, 70.3], [0, 155.0, 52.6], [0, 0, 1]], np.float32)
HOLE = (slice(30, 50), slice(90, 120))

# inward normal and offset of n . X = c: floor, left wall, right wall, ceiling, slanted back wall
PLANES = [((0, -1, 0), -1.2), ((1, 0, 0), -1.8), ((-1, 0, 0), -1.9), ((0, 1, 0), -1.3), ((0.2, -0.05, -1), -5.0)]
CENTRE, RADIUS = np.array([0.4, 0.3, 3.0]), 0.6
SPHERE = len(PLANES)


class Seen(NamedTuple):
    """What rays through some points of the picture meet."""

    depth: np.ndarray
    normals: np.ndarray
    label: np.ndarray
    points: np.ndarray


def look(x: np.ndarray, y: np.ndarray, intrinsics: np.ndarray = INTRINSICS) -> Seen:
    """Casts rays through the pixel coordinates (x, y)."""
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics.astype(np.float64)).T
    units = [np.array(normal) / np.linalg.norm(normal) for normal, _ in PLANES]
    distances = []
    for unit, (normal, offset) in zip(units, PLANES, strict=True):
        slope = rays @ unit
        distances.append(np.where(slope < 0, offset / np.linalg.norm(normal) / np.minimum(slope, -1e-9), np.inf))
    a, b, c = (rays**2).sum(-1), rays @ CENTRE, CENTRE @ CENTRE - RADIUS**2
    root = b**2 - a * c
    distances.append(np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf))
    stacked = np.stack(distances)
    label = stacked.argmin(0)
    depth = stacked.min(0)
    points = rays * depth[..., None]
    on_planes = np.stack([*units, np.zeros(3)])[label]
    normals = np.where((label == SPHERE)[..., None], (points - CENTRE) / RADIUS, on_planes)
    return Seen(depth, normals, label, points)


def grid(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y) of every pixel."""
    x, y = np.meshgrid(np.arange(size[1], dtype=np.float64), np.arange(size[0], dtype=np.float64))
    return x, y


def sample(hole: bool = True) -> dict[str, np.ndarray | str]:
    """The scene as a sample. Its image is (x, y, 1): it says of every later pixel where it came from."""
    x, y = grid()
    seen = look(x, y)
    made = {
        "image": np.stack([x, y, np.ones_like(x)], -1).astype(np.float32),
        "segmentation": seen.label.astype(np.uint8),
        "depth": seen.depth.astype(np.float32),
        "normals": seen.normals.astype(np.float32),
        "intrinsics": INTRINSICS.copy(),
        "name": "analytic",
    }
    if hole:
        made["segmentation"][HOLE] = 255
        made["depth"][HOLE] = 0
        made["normals"][HOLE] = 0
    return made


def one_surface(x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    """True where everything within `margin` pixels is the same surface, in the picture and outside the hole."""
    label = look(x, y).label
    same = (x > margin) & (x < SIZE[1] - 1 - margin) & (y > margin) & (y < SIZE[0] - 1 - margin)
    for dx in (-margin, 0, margin):
        for dy in (-margin, 0, margin):
            same &= look(x + dx, y + dy).label == label
    rows, columns = HOLE
    holed = (y > rows.start - 1 - margin) & (y < rows.stop + margin)
    holed &= (x > columns.start - 1 - margin) & (x < columns.stop + margin)
    return same & ~holed
