"""What rays met in a room: points, normals, classes and colours of surfaces, before any light falls on them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from densepred.data.rendering.casting import Owners
from densepred.data.rendering.decals import painted
from densepred.data.rendering.scenes import FACE_LABELS, FACES, WALL, Scene
from densepred.data.rendering.shapes import Floats

Bytes = NDArray[np.uint8]
Indices = NDArray[np.intp]

SKIRTING = 0.08  # metres
SKIRTING_COLOUR = (0.75, 0.73, 0.7)


@dataclass
class Fragments:
    """Points of surfaces, in the order of their owners, so that each surface's are one slice.

    Args:
        order: The ray that each belongs to.
        points: In the world, metres.
        owner: Whose they are.
        normals: Outward, in the world.
        albedo: Linear RGB.
        label: Class.
        piece: Which smooth, single-coloured-by-design surface it is: an edge of the picture lies between two pieces.
        exposed: Share of the light from everywhere that reaches it.
        glow: Those that shine, and how brightly.
        gloss: Those that reflect the lights, and how strongly.

    Shape:
        points, normals, albedo: (3, N). The others: (N,).
    """

    order: Indices
    points: Floats
    owner: Owners
    normals: Floats
    albedo: Floats
    label: Bytes
    piece: NDArray[np.int16]
    exposed: Floats
    glow: list[tuple[Indices, float]] = field(default_factory=list)
    gloss: list[tuple[Indices, float]] = field(default_factory=list)

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Every owner that has fragments, and where they lie."""
        owners, starts = np.unique(self.owner, return_index=True)
        for owner, start, stop in zip(owners, starts, [*starts[1:], len(self.owner)], strict=True):
            yield int(owner), slice(int(start), int(stop))

    def by_ray(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of the fragments, (..., N), in the order of the rays."""
        arranged = np.empty_like(values)
        for to, of in zip(arranged.reshape(-1, len(self.order)), values.reshape(-1, len(self.order)), strict=True):
            to[self.order] = of
        return arranged


def join(first: Fragments, second: Fragments) -> Fragments:
    """The fragments of two sets of rays."""
    count = len(first.order)

    def moved(parts: list[tuple[Indices, float]]) -> list[tuple[Indices, float]]:
        return [(which + count, strength) for which, strength in parts]

    return Fragments(
        order=np.concatenate([first.order, second.order + count]),
        points=np.concatenate([first.points, second.points], 1),
        owner=np.concatenate([first.owner, second.owner]),
        normals=np.concatenate([first.normals, second.normals], 1),
        albedo=np.concatenate([first.albedo, second.albedo], 1),
        label=np.concatenate([first.label, second.label]),
        piece=np.concatenate([first.piece, second.piece]),
        exposed=np.concatenate([first.exposed, second.exposed]),
        glow=first.glow + moved(second.glow),
        gloss=first.gloss + moved(second.gloss),
    )


def surfaces(scene: Scene, directions: Floats, depth: Floats, owner: Owners, size: tuple[int, int]) -> Fragments:
    """The fragments that camera rays meet.

    Shape:
        directions: (3, N). depth, owner: (N,), as `trace` gives them. size: the whole image's.
    """
    order = np.argsort(owner, kind="stable")
    offsets = directions.take(order, 1)
    offsets *= depth.take(order)
    count = len(order)
    found = Fragments(
        order=order,
        points=offsets + scene.camera.position.astype(np.float32)[:, None],
        owner=owner.take(order),
        normals=np.zeros((3, count), np.float32),
        albedo=np.empty((3, count), np.float32),
        label=np.empty(count, np.uint8),
        piece=np.empty(count, np.int16),
        exposed=np.empty(count, np.float32),
    )
    distance = np.sqrt(np.einsum("cn,cn->n", offsets, offsets))
    pixel = np.float32(1 / (scene.camera.focal * size[1]))  # its width, a metre from the camera
    for whose, group in found.groups():
        if whose < FACES:
            _face(scene, whose, group, found, distance[group], pixel)
        else:
            _solid(scene, whose - FACES, group, found, offsets[:, group], distance[group], pixel)
    return found


def _face(scene: Scene, face: int, group: slice, found: Fragments, distance: Floats, pixel: np.float32) -> None:
    """Fills in the fragments of a face of the room."""
    axis = face // 2
    across, up = (a for a in range(3) if a != axis)
    u, v = found.points[across, group], found.points[up, group]
    height = abs(scene.camera.position[axis] - (scene.room[axis] if face % 2 else 0))
    # a pixel covers distance x pixel, and 1 / cos = distance / height times that in one direction: between the two
    footprint = distance * np.sqrt(distance) * np.float32(pixel / np.sqrt(height))
    albedo = scene.faces[face].albedo(u, v, footprint)
    label, piece = found.label[group], found.piece[group]
    label[:], piece[:] = FACE_LABELS[face], face
    if FACE_LABELS[face] == WALL:
        low = np.flatnonzero(v < 2 * SKIRTING)
        board = albedo.take(low, 1)
        painted(board, SKIRTING - v[low], footprint[low], SKIRTING_COLOUR)
        albedo[:, low] = board
    for number, decal in enumerate(scene.decals):
        if decal.face == face and len(inside := decal.within(u, v)):
            albedo[:, inside] = decal.albedo(u[inside], v[inside], footprint[inside])
            label[inside], piece[inside] = decal.label, FACES + number
            if decal.glow:
                found.glow.append((inside + group.start, decal.glow))
    found.albedo[:, group] = albedo
    found.normals[axis, group] = -1 if face % 2 else 1
    found.exposed[group] = _corner(u, scene.room[across]) * _corner(v, scene.room[up])


def _corner(along: Floats, length: float) -> Floats:
    """Less light from everywhere reaches the edges of the room: about half of it at an edge."""
    nearer = along * (np.float32(length) - along)
    return np.asarray((nearer + np.float32(0.08 * length)) / (nearer + np.float32(0.15 * length)), np.float32)


def _solid(
    scene: Scene, index: int, group: slice, found: Fragments, offsets: Floats, distance: Floats, pixel: np.float32
) -> None:
    """Fills in the fragments of a solid."""
    solid = scene.solids[index]
    material = scene.materials[solid.material]
    local = solid.local(found.points[:, group])
    face = solid.face(local)
    normals = solid.world(solid.normals(local, face))
    facing = np.abs(np.einsum("cn,cn->n", normals, offsets)) / distance
    footprint = distance * pixel / np.sqrt(np.maximum(facing, np.float32(0.1)))
    found.normals[:, group] = normals
    found.albedo[:, group] = material.albedo(*solid.texture(local, face), footprint)
    found.label[group] = solid.label
    found.piece[group] = FACES * (index + 1) + len(scene.decals) + face
    # what looks down sees the floor's share only
    found.exposed[group] = 0.85 + 0.15 * normals[2]
    if material.gloss > 0:
        found.gloss.append((np.arange(group.start, group.stop), material.gloss))
