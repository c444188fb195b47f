"""Rays through a room: which the camera casts, and what they hit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepred.data.rendering.scenes import FACES, Scene
from densepred.data.rendering.shapes import NEVER, Floats

Owners = NDArray[np.int8]
"""Whose surface a ray met: 0 to 5 a face of the room, FACES + i solid i, -1 nothing."""
Rectangle = tuple[int, int, int, int]
"""Rows from, to, columns from, to."""
Region = tuple[Any, ...] | None
"""Which rays may hit a solid, as an index into them; None: no ray."""

CLOSEST = 0.02  # metres before the camera within which nothing is seen
CONTACT = 1e-3  # metres within which two surfaces touch


def camera_rays(scene: Scene, size: tuple[int, int], x: Floats, y: Floats) -> Floats:
    """World directions of pixels (x, y), with z = 1 in the camera frame: a ray's parameter is the depth.

    Shape:
        x, y: any that broadcast, float32. returns: (3, ...).
    """
    matrix = scene.camera.rotation.T @ np.linalg.inv(scene.camera.intrinsics(size).astype(np.float64))
    turn = matrix.astype(np.float32)
    return np.stack([turn[c, 0] * x + (turn[c, 1] * y + turn[c, 2]) for c in range(3)])


def trace(scene: Scene, directions: Floats, regions: list[Region]) -> tuple[Floats, Owners]:
    """Depth and owner of the nearest surface of every ray from the camera.

    Shape:
        directions: (3, ...). regions: one a solid, each an index into (...).
        returns: two of (...).
    """
    origin = scene.camera.position.astype(np.float32).reshape(3, *[1] * (directions.ndim - 1))
    depth, owner = _leave_room(scene, origin, directions)
    for index, (solid, region) in enumerate(zip(scene.solids, regions, strict=True)):
        if region is None:
            continue
        enter, leave = solid.cross(origin, directions[(slice(None), *region)])
        nearest, whose = depth[region], owner[region]
        first = (enter < leave) & (enter < nearest) & (enter > CLOSEST)
        np.copyto(nearest, enter, where=first)
        np.copyto(whose, np.int8(FACES + index), where=first)
        depth[region], owner[region] = nearest, whose
    return depth, owner


def hits(scene: Scene, origin: Floats, directions: Floats) -> tuple[Floats, Owners]:
    """Every surface that rays cross, hidden ones included, nearest first.

    Args:
        scene: The room.
        origin: Inside the room, in the world, metres.
        directions: In the world, of any length.

    Shape:
        origin: (3,). directions: (3, N).
        returns: ray parameters, (2 S + 1, N) for S solids, infinite where there are no more; and whose surface it is.
    """
    start, directions = origin.astype(np.float32)[:, None], directions.astype(np.float32)
    wall, face = _leave_room(scene, start, directions)
    along, owners = [wall], [face]
    for index, solid in enumerate(scene.solids):
        enter, leave = solid.cross(start, directions)
        for parameter in (enter, leave):
            met = (enter < leave) & (parameter > 0)
            along.append(np.where(met, parameter, np.float32(np.inf)))
            owners.append(np.where(met, FACES + index, -1).astype(np.int8))
    order = np.argsort(np.stack(along), axis=0, kind="stable")
    return np.take_along_axis(np.stack(along), order, 0), np.take_along_axis(np.stack(owners), order, 0)


def exposed_hits(scene: Scene, size: tuple[int, int], pixels: Floats, most: int) -> Floats:
    """The depths of the surfaces behind pixels that bound free space, hidden ones included, nearest first.

    As `hits`, without those where matter meets matter: where a ray leaves a box that stands on the floor, it enters the
    floor at once, and no camera anywhere would see either.

    Args:
        scene: The room.
        size: Of the image, (height, width).
        pixels: (x, y).
        most: How many of a ray; those behind are left out.

    Shape:
        pixels: (2, N). returns: (most, N), metres along the optical axis, infinite where there are no more.
    """
    origin = scene.camera.position.astype(np.float32)[:, None]
    directions = camera_rays(scene, size, pixels[0], pixels[1])
    where, step = [_leave_room(scene, origin, directions)[0]], [1]
    for solid in scene.solids:
        enter, leave = solid.cross(origin, directions)
        met = (enter < leave) & (enter > CLOSEST)
        where += [np.where(met, end, np.float32(np.inf)) for end in (enter, leave)]
        step += [1, -1]
    steps = np.array(step)[:, None]
    # all matter grown by half a contact, so that what touches overlaps; a ray enters and leaves the whole of it
    order = np.argsort(np.stack(where) - np.float32(CONTACT / 2) * steps, axis=0, kind="stable")
    along, steps = np.take_along_axis(np.stack(where), order, 0), np.take_along_axis(steps, order, 0)
    bodies = np.cumsum(steps, axis=0)  # that a ray is in, behind each of the hits
    exposed = np.where((steps > 0) & (bodies == 1) | (steps < 0) & (bodies == 0), along, np.float32(np.inf))
    exposed = np.sort(exposed, axis=0)[:most]
    lacking = np.full((max(most - len(exposed), 0), exposed.shape[1]), np.inf, np.float32)
    return np.concatenate([exposed, lacking])


def _leave_room(scene: Scene, origin: Floats, directions: Floats) -> tuple[Floats, Owners]:
    """Where rays from inside leave the room, and through which face."""
    away, ahead = [], []
    for axis, length in enumerate(scene.room):
        pace = 1 / (directions[axis] + np.float32(NEVER))
        # the two walls across this axis; the ray goes towards one, the other's parameter is negative
        away.append(np.maximum((np.float32(length) - origin[axis]) * pace, -origin[axis] * pace))
        ahead.append((pace > 0).view(np.int8))
    across = np.minimum(away[0], away[1])
    depth = np.minimum(across, away[2])
    vertical = (away[1] < away[0]).view(np.int8)
    face = ahead[0] + vertical * (2 + ahead[1] - ahead[0])
    face += (away[2] < across).view(np.int8) * (4 + ahead[2] - face)
    return depth, face


def rectangles(scene: Scene, size: tuple[int, int]) -> list[Rectangle | None]:
    """The part of the image within which the camera sees each solid; None where it does not."""
    if not scene.solids:
        return []
    camera = scene.camera
    corners = np.stack([solid.corners() for solid in scene.solids], 1).astype(np.float64)  # (3, S, 8)
    local = np.einsum("rc,csk->rsk", camera.rotation, corners - camera.position[:, None, None])
    behind = local[2] < CLOSEST
    pixels = np.einsum("rc,csk->rsk", camera.intrinsics(size)[:2], local) / np.where(behind, 1, local[2])
    limits = np.array([size[1], size[0]])[:, None]
    low = np.clip(np.floor(pixels.min(2)), 0, limits).astype(int)
    high = np.clip(np.ceil(pixels.max(2)) + 1, 0, limits).astype(int)
    # one that reaches behind the camera may be seen anywhere
    partly, hidden = behind.any(1), behind.all(1)
    low, high = np.where(partly, 0, low), np.where(partly, limits, high)
    hidden |= (low >= high).any(0)
    return [
        None if hidden[i] else (int(low[1, i]), int(high[1, i]), int(low[0, i]), int(high[0, i]))
        for i in range(len(scene.solids))
    ]
