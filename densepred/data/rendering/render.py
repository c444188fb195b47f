"""Draws a room: a picture with lights and soft shadows, and its exact labels, depth and normals.

Rays are cast through pixel centres; solids are tried only inside their rectangle of the image. Pixels on either side of
an edge are coloured at three more places and averaged; labels, depth and normals stay those of the pixel's centre.
"""

from functools import cache
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from densepred.data.memory import keep_memory
from densepred.data.rendering.casting import Rectangle, Region, camera_rays, rectangles, trace
from densepred.data.rendering.scenes import Scene
from densepred.data.rendering.shading import develop, shade
from densepred.data.rendering.shapes import Floats, products
from densepred.data.rendering.surfaces import Bytes, Fragments, join, surfaces
from densepred.data.rendering.textures import SIDE, noise

SUBPIXELS = ((-0.36, -0.12), (0.28, -0.3), (0.1, 0.38))
"""Where (x, y) a pixel on an edge is looked at, besides its centre."""
MIDDLE_GREY = 0.55
"""Mean linear light of a picture at exposure 1."""


class Rendering(NamedTuple):
    """What the camera of a scene sees.

    Shape:
        image: (H, W, 3) uint8. segmentation: (H, W) uint8. depth: (H, W) float32, metres. normals: (H, W, 3) float32.
        intrinsics: (3, 3) float32.
    """

    image: Bytes
    segmentation: Bytes
    depth: Floats
    normals: Floats
    intrinsics: Floats


def render(scene: Scene, size: tuple[int, int]) -> Rendering:
    """The scene in an image of this size (height, width).

    Example:
        >>> from densepred.data.rendering.architect import random_scene
        >>> view = render(random_scene(0, 0, 0), (60, 80))
        >>> view.image.shape, view.depth.dtype
        ((60, 80, 3), dtype('float32'))
    """
    keep_memory()
    rows, columns = (np.arange(length, dtype=np.float32) for length in size)
    directions = camera_rays(scene, size, columns[None, :], rows[:, None])
    boxes = rectangles(scene, size)
    depth, owner = trace(scene, directions, [box and np.s_[box[0] : box[1], box[2] : box[3]] for box in boxes])
    seen = surfaces(scene, directions.reshape(3, -1), depth.reshape(-1), owner.reshape(-1), size)
    edge = _edges(cast(NDArray[np.int16], seen.by_ray(seen.piece)).reshape(size))
    normals = products(scene.camera.rotation.astype(np.float32), seen.normals)
    return Rendering(
        image=_grainy(_picture(scene, seen, edge, boxes), scene.grain),
        segmentation=cast(Bytes, seen.by_ray(seen.label)).reshape(size),
        depth=depth,
        normals=np.ascontiguousarray(seen.by_ray(normals).T, np.float32).reshape(*size, 3),
        intrinsics=scene.camera.intrinsics(size),
    )


def _edges(piece: NDArray[np.int16]) -> NDArray[np.bool_]:
    """True on both sides of every border between pieces."""
    edge = np.zeros(piece.shape, np.bool_)
    across, down = piece[:, 1:] != piece[:, :-1], piece[1:] != piece[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _picture(scene: Scene, seen: Fragments, edge: NDArray[np.bool_], boxes: list[Rectangle | None]) -> Bytes:
    """Colours the fragments, and those on an edge at more places. Returns (H, W, 3)."""
    count = edge.size
    row, column = np.nonzero(edge)
    seen = join(seen, _between_pixels(scene, row, column, boxes, edge.shape))
    light = shade(scene, seen)
    # as a camera would, from a few thousand pixels
    average = float(light[:, : count : count // 2000 + 1].mean())
    colours = seen.by_ray(develop(light, scene.exposure * MIDDLE_GREY / max(average, 1e-3)))
    picture, extra = colours[:, :count], colours[:, count:].reshape(3, len(SUBPIXELS), -1)
    on_edge = row * edge.shape[1] + column
    total = extra.sum(1, dtype=np.int32) + picture[:, on_edge]
    picture[:, on_edge] = (total + 2) // (len(SUBPIXELS) + 1)
    return np.ascontiguousarray(picture.T).reshape(*edge.shape, 3)


def _between_pixels(
    scene: Scene,
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    boxes: list[Rectangle | None],
    size: tuple[int, int],
) -> Fragments:
    """What the pixels see beside their centres, one place after the other."""
    x = np.concatenate([column + right for right, _ in SUBPIXELS]).astype(np.float32)
    y = np.concatenate([row + down for _, down in SUBPIXELS]).astype(np.float32)
    directions = camera_rays(scene, size, x, y)
    regions: list[Region] = []
    for box in boxes:
        if box is None:
            regions.append(None)
            continue
        within = (row >= box[0] - 1) & (row <= box[1]) & (column >= box[2] - 1) & (column <= box[3])
        regions.append((np.flatnonzero(np.tile(within, len(SUBPIXELS))),))
    return surfaces(scene, directions, *trace(scene, directions, regions), size)


def _grainy(image: Bytes, grain: tuple[int, int, float]) -> Bytes:
    """The image with a camera's grain."""
    height, width = image.shape[:2]
    top, left, strength = grain
    tile = _grain(height, width)[top : top + height, left : left + width, None]
    noisy = image + (tile * np.float32(strength) + np.float32(0.5))  # bytes are cut, not rounded
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


@cache
def _grain(height: int, width: int) -> Floats:
    """Grain of unit strength, repeated so that an image of this size fits at any place of the tile."""
    tile = noise(20, (SIDE, SIDE), 1)
    tile = (tile - tile.mean()) / tile.std()
    return np.tile(tile, (height // SIDE + 2, width // SIDE + 2))
