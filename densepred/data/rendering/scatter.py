"""Points spread evenly over all surfaces of a room that the camera's frustum holds, hidden ones included."""

from functools import singledispatch
from typing import NamedTuple

import numpy as np

from densepred.data.rendering.casting import CLOSEST, CONTACT, exposed_hits
from densepred.data.rendering.scenes import Scene
from densepred.data.rendering.shapes import Box, Cylinder, Floats, Solid, Sphere
from densepred.errors import DataError

BEHIND = 0.005  # metres of depth behind what the camera sees, from which on a point is hidden


class Scatter(NamedTuple):
    """Points on surfaces.

    Args:
        points: In the camera's frame, metres.
        pixels: (x, y) where they are, or would be, seen.
        hidden: Whether something stands before them.

    Shape:
        points: (3, N). pixels: (2, N). hidden: (N,).
    """

    points: Floats
    pixels: Floats
    hidden: np.ndarray


def scatter(
    scene: Scene, size: tuple[int, int], count: int, rng: np.random.Generator, farthest: float = 8.0
) -> Scatter:
    """Random points on the surfaces of a room and of all that stands in it, as many to a square metre everywhere.

    Where matter meets matter, as where a box stands on the floor, is no surface: no camera anywhere would see it.

    Args:
        scene: The room.
        size: Of the image, (height, width).
        count: How many points.
        rng: Draws them.
        farthest: Depth up to which the frustum reaches, metres.

    Raises:
        DataError: If there is no surface within the frustum.
    """
    camera = scene.camera
    matrix, turn = camera.intrinsics(size).astype(np.float64), camera.rotation.astype(np.float64)
    kept_points, kept_pixels, left = [], [], count
    for _ in range(200):
        local = turn @ (_anywhere(scene, 4 * count, rng) - camera.position[:, None])
        local = local[:, (local[2] > CLOSEST) & (local[2] <= farthest)]
        pixels = (matrix @ local / local[2])[:2]
        inside = (pixels > -0.5).all(0) & (pixels < np.array([[size[1]], [size[0]]]) - 0.5).all(0)
        kept_points.append(local[:, inside][:, :left])
        kept_pixels.append(pixels[:, inside][:, :left])
        left -= kept_points[-1].shape[1]
        if left == 0:
            break
    else:
        raise DataError(
            f"scatter: the frustum up to {farthest} m holds {count - left} points of surfaces, not {count}."
        )
    points, pixels = np.concatenate(kept_points, 1), np.concatenate(kept_pixels, 1)
    first = exposed_hits(scene, size, pixels.astype(np.float32), 1)[0]
    hidden = points[2] > first + BEHIND
    return Scatter(points.astype(np.float32), pixels.astype(np.float32), hidden)


def _anywhere(scene: Scene, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the world, spread over all that is there; somewhat fewer than `count`, as contacts fall out."""
    room = np.array(scene.room)
    middle = Box((room[0] / 2, room[1] / 2, room[2] / 2), 0.0, 0, 0, (room[0] / 2, room[1] / 2, room[2] / 2))
    bodies: list[Solid] = [middle, *scene.solids]
    areas = np.array([area(body) for body in bodies])
    shares = rng.multinomial(count, areas / areas.sum())
    found = []
    for index, (body, share) in enumerate(zip(bodies, shares, strict=True)):
        local = spread(body, int(share), rng).astype(np.float32)
        points = body.world(local) + np.array(body.centre, np.float32)[:, None]
        free = np.ones(points.shape[1], np.bool_)
        for other in (solid for i, solid in enumerate(scene.solids, start=1) if i != index):
            free &= other.distance(other.local(points)) > CONTACT
        if index:
            free &= ((points > CONTACT) & (points < room.astype(np.float32)[:, None] - CONTACT)).all(0)
        found.append(points[:, free])
    everywhere = np.concatenate(found, 1).astype(np.float64)
    return everywhere[:, rng.permutation(everywhere.shape[1])]


@singledispatch
def area(solid: Solid) -> float:
    """Of its whole surface, square metres."""
    raise NotImplementedError(type(solid).__name__)


@area.register
def _(solid: Box) -> float:
    x, y, z = solid.half
    return 8 * (x * y + y * z + z * x)


@area.register
def _(solid: Sphere) -> float:
    return 4 * np.pi * solid.ball**2


@area.register
def _(solid: Cylinder) -> float:
    return 2 * np.pi * solid.disc * (2 * solid.half + solid.disc)


@singledispatch
def spread(solid: Solid, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points on its surface, as many to a square metre everywhere, in its own frame. (3, count)."""
    raise NotImplementedError(type(solid).__name__)


@spread.register
def _(solid: Box, count: int, rng: np.random.Generator) -> np.ndarray:
    half = np.array(solid.half)
    faces = half.prod() / half  # of the two across each axis
    axis = rng.choice(3, size=count, p=faces / faces.sum())
    points = rng.uniform(-1, 1, (3, count))
    points[axis, np.arange(count)] = rng.choice([-1.0, 1.0], size=count)
    return np.asarray(points * half[:, None])


@spread.register
def _(solid: Sphere, count: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.normal(size=(3, count))
    return np.asarray(solid.ball * points / np.linalg.norm(points, axis=0))


@spread.register
def _(solid: Cylinder, count: int, rng: np.random.Generator) -> np.ndarray:
    turn = rng.uniform(0, 2 * np.pi, count)
    cap = rng.random(count) < solid.disc / (2 * solid.half + solid.disc)
    away = solid.disc * np.where(cap, np.sqrt(rng.random(count)), 1)
    height = solid.half * np.where(cap, rng.choice([-1.0, 1.0], size=count), rng.uniform(-1, 1, count))
    return np.stack([away * np.cos(turn), away * np.sin(turn), height])
