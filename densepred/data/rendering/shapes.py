"""Solids of a rendered room, in closed form: where rays cross them, their normals, their shadows.

The world is x right, y ahead, z up, in metres. Arrays of points and directions hold the component first: (3, ...).
Every solid is convex, so a ray enters and leaves it once, and all hits along it, hidden ones included, are known.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NEVER = 1e-20  # added to directions: a ray parallel to a face crosses it very far away, instead of at 0 * inf
TOUCH = 1e-3
CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), np.float32).reshape(3, 8)
SHARPEST = 0.006  # metres, the narrowest penumbra: thinner ones would only alias


@dataclass(frozen=True)
class Solid(ABC):
    """A convex solid that stands upright.

    Args:
        centre: Its middle, (x, y, z) in metres.
        yaw: Turn about the vertical, in radians.
        label: Its class.
        material: Index of its material in the scene.
    """

    centre: tuple[float, float, float]
    yaw: float
    label: int
    material: int

    @property
    @abstractmethod
    def extent(self) -> tuple[float, float, float]:
        """Half sizes along its own axes, of the box around it."""

    @abstractmethod
    def cross(self, origin: Floats, directions: Floats) -> tuple[Floats, Floats]:
        """Ray parameters where lines enter and leave it; they enter after they leave where they miss it.

        Shape:
            origin: (3, 1, ...) or the directions' own. directions: (3, ...). returns: two of (...).
        """

    @abstractmethod
    def face(self, local: Floats) -> Ints:
        """Which face points of its surface belong to. (3, N), in its own frame, to (N,)."""

    @abstractmethod
    def normals(self, local: Floats, face: Ints) -> Floats:
        """Outward unit normals in its own frame, (3, N)."""

    @abstractmethod
    def texture(self, local: Floats, face: Ints) -> tuple[Floats, Floats]:
        """Coordinates on the surface in metres, two of (N,)."""

    @abstractmethod
    def distance(self, local: Floats) -> Floats:
        """From points outside to its surface, metres. (3, N) to (N,)."""

    @abstractmethod
    def depth_inside(self, local: Floats, directions: Floats) -> tuple[Floats, Floats]:
        """How far it would have to shrink (metres, negative: grow) for the segment from `local` on to just miss it.

        Returns that, and the parameter along `directions` in the middle of the crossing; (N,) each.
        """

    @property
    def radius(self) -> float:
        """Of the ball around it."""
        return float(np.linalg.norm(self.extent))

    def local(self, points: Floats) -> Floats:
        """World points in its own frame."""
        centre = np.array(self.centre, np.float32).reshape(3, *[1] * (points.ndim - 1))
        return self.turned(points - centre, -self.yaw)

    def turned(self, vectors: Floats, by: float) -> Floats:
        """Vectors turned about the vertical."""
        if by == 0:
            return vectors
        cos, sin = np.float32(np.cos(by)), np.float32(np.sin(by))
        return np.stack([cos * vectors[0] - sin * vectors[1], sin * vectors[0] + cos * vectors[1], vectors[2]])

    def world(self, vectors: Floats) -> Floats:
        """Directions of its own frame in the world's."""
        return self.turned(vectors, self.yaw)

    def corners(self) -> Floats:
        """Of the box around it, in the world, (3, 8)."""
        offsets = self.world(CORNERS * np.array(self.extent, np.float32)[:, None])
        return offsets + np.array(self.centre, np.float32)[:, None]

    def shadow(self, points: Floats, light: Floats, size: float) -> Floats:
        """How much of a ball of light, of radius `size`, it hides from points: 0 to 1. (3, N) to (N,)."""
        local = self.local(points)
        towards = self.local(light[:, None]) - local
        inside, along = self.depth_inside(local, towards)
        # seen from the point, the ball is a cone that has grown to size * along where it passes the solid
        width = np.maximum(np.float32(size) * along, np.float32(SHARPEST))
        hidden = np.clip(0.5 + 0.5 * inside / width, 0, 1)
        smooth: Floats = hidden * hidden * (3 - 2 * hidden)
        return np.where((along > TOUCH) & (along < 1), smooth, np.float32(0))


@dataclass(frozen=True)
class Box(Solid):
    """A box; `half` is half its size along its own axes."""

    half: tuple[float, float, float]

    @property
    def extent(self) -> tuple[float, float, float]:  # noqa: D102
        return self.half

    def cross(self, origin: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        start, along = self.local(origin), self.turned(directions, -self.yaw)
        enter = leave = None
        for axis in range(3):
            pace = 1 / (along[axis] + np.float32(NEVER))
            middle, reach = start[axis] * pace, np.float32(self.half[axis]) * np.abs(pace)
            near, far = -middle - reach, reach - middle
            enter = near if enter is None else np.maximum(enter, near, out=enter)
            leave = far if leave is None else np.minimum(leave, far, out=leave)
        return np.asarray(enter), np.asarray(leave)

    def face(self, local: Floats) -> Ints:  # noqa: D102
        axis = np.argmax(np.abs(local) / np.array(self.half, np.float32)[:, None], axis=0)
        return np.asarray(2 * axis + (np.take_along_axis(local, axis[None], 0)[0] > 0), np.int64)

    def normals(self, local: Floats, face: Ints) -> Floats:  # noqa: D102
        table = np.repeat(np.eye(3, dtype=np.float32), 2, axis=1) * np.array([-1, 1] * 3, np.float32)
        return table[:, face]

    def texture(self, local: Floats, face: Ints) -> tuple[Floats, Floats]:  # noqa: D102
        return np.where(face < 2, local[1], local[0]), np.where(face < 4, local[2], local[1])

    def distance(self, local: Floats) -> Floats:  # noqa: D102
        out = np.maximum(np.abs(local) - np.array(self.half, np.float32)[:, None], 0)
        return np.asarray(np.sqrt(np.einsum("cn,cn->n", out, out)), np.float32)

    def depth_inside(self, local: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        pace = np.abs(1 / (directions + np.float32(NEVER)))
        middle = -local / (directions + np.float32(NEVER))
        reach = np.array(self.half, np.float32)[:, None] * pace
        near, far = middle - reach, middle + reach
        inside = np.full(local.shape[1], min(self.half), np.float32)
        for a in range(3):
            for b in range(3):
                if a != b:
                    np.minimum(inside, (far[b] - near[a]) / (pace[a] + pace[b]), out=inside)
        enter, leave = near.max(0), far.min(0)
        return np.where(leave > TOUCH, inside, -1), 0.5 * (np.maximum(enter, 0) + np.minimum(leave, 1))


@dataclass(frozen=True)
class Sphere(Solid):
    """A ball."""

    ball: float

    @property
    def extent(self) -> tuple[float, float, float]:  # noqa: D102
        return (self.ball, self.ball, self.ball)

    @property
    def radius(self) -> float:  # noqa: D102
        return self.ball

    def cross(self, origin: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        start, along = self.local(origin), self.turned(directions, -self.yaw)
        return _quadratic(start, along, self.ball)

    def face(self, local: Floats) -> Ints:  # noqa: D102
        return np.zeros(local.shape[1], np.int64)

    def normals(self, local: Floats, face: Ints) -> Floats:  # noqa: D102
        return np.asarray(local / np.sqrt(np.einsum("cn,cn->n", local, local)), np.float32)

    def texture(self, local: Floats, face: Ints) -> tuple[Floats, Floats]:  # noqa: D102
        height = np.clip(local[2] / np.float32(self.ball), -1, 1)
        return np.arctan2(local[1], local[0]) * np.float32(self.ball), np.arcsin(height) * np.float32(self.ball)

    def distance(self, local: Floats) -> Floats:  # noqa: D102
        return np.asarray(
            np.maximum(np.sqrt(np.einsum("cn,cn->n", local, local)) - np.float32(self.ball), 0), np.float32
        )

    def depth_inside(self, local: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        along = _nearest(local, directions)
        closest = local + np.clip(along, 0, 1) * directions
        return np.float32(self.ball) - np.sqrt(np.einsum("cn,cn->n", closest, closest)), along


@dataclass(frozen=True)
class Cylinder(Solid):
    """An upright cylinder: `disc` is its radius, `half` half its height."""

    disc: float
    half: float

    @property
    def extent(self) -> tuple[float, float, float]:  # noqa: D102
        return (self.disc, self.disc, self.half)

    def cross(self, origin: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        start, along = self.local(origin), self.turned(directions, -self.yaw)
        enter, leave = _quadratic(start[:2], along[:2], self.disc)
        pace = 1 / (along[2] + np.float32(NEVER))
        middle, reach = start[2] * pace, np.float32(self.half) * np.abs(pace)
        return np.maximum(enter, -middle - reach), np.minimum(leave, reach - middle)

    def face(self, local: Floats) -> Ints:  # noqa: D102
        # 0 the side, 1 the bottom, 2 the top
        to_side = np.abs(np.float32(self.disc) - np.hypot(local[0], local[1]))
        to_caps = np.abs(np.float32(self.half) - np.abs(local[2]))
        return np.where(to_caps < to_side, np.where(local[2] > 0, 2, 1), 0)

    def normals(self, local: Floats, face: Ints) -> Floats:  # noqa: D102
        across = np.maximum(np.hypot(local[0], local[1]), np.float32(NEVER))
        side = face == 0
        up = np.array([0, -1, 1], np.float32)[face]
        return np.stack([np.where(side, local[0] / across, 0), np.where(side, local[1] / across, 0), up])

    def texture(self, local: Floats, face: Ints) -> tuple[Floats, Floats]:  # noqa: D102
        around = np.arctan2(local[1], local[0]) * np.float32(self.disc)
        return np.where(face == 0, around, local[0]), np.where(face == 0, local[2], local[1])

    def distance(self, local: Floats) -> Floats:  # noqa: D102
        out = np.maximum(np.hypot(local[0], local[1]) - np.float32(self.disc), 0)
        return np.asarray(np.hypot(out, np.maximum(np.abs(local[2]) - np.float32(self.half), 0)), np.float32)

    def depth_inside(self, local: Floats, directions: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        pace = 1 / (directions[2] + np.float32(NEVER))
        middle, reach = -local[2] * pace, np.float32(self.half) * np.abs(pace)
        low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach, 1)
        along = np.clip(_nearest(local[:2], directions[:2]), low, np.maximum(low, high))
        across = np.float32(self.disc) - np.hypot(local[0] + along * directions[0], local[1] + along * directions[1])
        return np.minimum(across, 0.5 * (high - low) * np.abs(directions[2])), along


def _quadratic(start: Floats, along: Floats, radius: float) -> tuple[Floats, Floats]:
    """Where lines cross the ball (or, of two components, the infinite cylinder) around the origin."""
    a = sum(c * c for c in along)
    b = sum(s * c for s, c in zip(start, along, strict=True))
    c = sum(s * s for s in start) - np.float32(radius * radius)
    root = b * b - a * c
    missed = root <= 0
    root = np.sqrt(np.where(missed, 0, root))
    pace = 1 / (a + np.float32(NEVER))
    enter = np.where(missed, np.float32(np.inf), (-b - root) * pace)
    leave = np.where(missed, np.float32(-np.inf), (root - b) * pace)
    return enter, leave


def _nearest(local: Floats, directions: Floats) -> Floats:
    """Parameter at which lines pass the origin most closely."""
    along = -np.einsum("cn,cn->n", local, directions)
    return np.asarray(along / (np.einsum("cn,cn->n", directions, directions) + np.float32(NEVER)), np.float32)


def products(vectors: Floats, points: Floats) -> Floats:
    """Scalar products of a few vectors with many points: (S, 3) and (3, N) to (S, N).

    Without `@`, whose library spreads so thin a product over all cores and makes them wait for each other.
    """
    result: Floats = vectors[:, :1] * points[0]
    for axis in (1, 2):
        result += vectors[:, axis : axis + 1] * points[axis]
    return result
