"""Light in a room: ambient light that corners and near things hold back, lamps, soft shadows, highlights, a film."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from densepred.data.rendering.scenes import FACES, Light, Scene
from densepred.data.rendering.shapes import Floats, products
from densepred.data.rendering.surfaces import Bytes, Fragments

CONTACT = 0.22  # metres over which a solid darkens what is near it
TONES = 4096
BRIGHTEST = 4.0  # linear light that is white at gain 1


def shade(scene: Scene, seen: Fragments) -> Floats:
    """Light that leaves the fragments towards the camera, linear RGB (3, N)."""
    radiance = np.array(scene.ambient, np.float32)[:, None] * (seen.exposed * _contacts(scene, seen))
    for light in scene.lights:
        strength = _illuminate(scene, light, seen)
        for channel in range(3):
            radiance[channel] += np.float32(light.colour[channel]) * strength
    for which, glow in seen.glow:
        radiance[:, which] = np.float32(glow) + np.float32(0.15) * radiance[:, which]
    radiance *= seen.albedo
    if seen.gloss:
        _highlight(scene, seen, radiance)
    return radiance


def _contacts(scene: Scene, seen: Fragments) -> Floats:
    """Share of the ambient light that the solids let through to points near them."""
    points, owner = seen.points, seen.owner
    share = np.ones(owner.shape, np.float32)
    if not scene.solids:
        return share
    centres = np.array([solid.centre for solid in scene.solids], np.float32)
    reach = [min(CONTACT, 0.5 * solid.radius + 0.05) for solid in scene.solids]
    # |p - c|^2 < r^2, with the products of all points and centres taken at once
    nearness = products(2 * centres, points)
    nearness -= np.einsum("cn,cn->n", points, points)
    for index, solid in enumerate(scene.solids):
        bound = float(centres[index] @ centres[index]) - (solid.radius + 2 * reach[index]) ** 2
        which = np.flatnonzero((nearness[index] > np.float32(bound)) & (owner != FACES + index))
        if len(which):
            gap = solid.distance(solid.local(points.take(which, 1)))
            share[which] *= 1 - np.float32(0.5) * np.exp(gap * np.float32(-1.6 / reach[index]))
    return share


def _illuminate(scene: Scene, light: Light, seen: Fragments) -> Floats:
    """How strongly a light falls on the fragments, by Lambert's law, less what the solids hide of it."""
    points, owner = seen.points, seen.owner
    place = np.array(light.position, np.float32)
    towards = place[:, None] - points
    square = np.einsum("cn,cn->n", towards, towards)
    facing = np.einsum("cn,cn->n", towards, seen.normals)
    np.maximum(facing, 0, out=facing)
    distance = np.sqrt(square)
    # softer than the square of the distance: the room's bounces fill in
    strength = facing / (distance * (np.float32(0.35) * square + np.float32(0.65)))
    if not scene.solids:
        return np.asarray(strength, np.float32)
    axes, cosines = _cones(scene, light)
    inside = products(axes, towards)
    lit = facing > 0
    for index, solid in enumerate(scene.solids):
        which = np.flatnonzero((inside[index] > cosines[index] * distance) & lit & (owner != FACES + index))
        if len(which):
            strength[which] *= 1 - solid.shadow(points.take(which, 1), place, light.size)
    return np.asarray(strength, np.float32)


def _cones(scene: Scene, light: Light) -> tuple[Floats, Floats]:
    """Axes (S, 3), pointing to the light, and cosines (S,) of the cones that hold the solids and their penumbras."""
    axes = np.array(light.position) - np.array([solid.centre for solid in scene.solids])
    lengths = np.linalg.norm(axes, axis=1)
    widths = np.array([solid.radius for solid in scene.solids]) + 0.5 * light.size
    sines = np.minimum(widths / lengths, 0.999)
    return (axes / lengths[:, None]).astype(np.float32), np.sqrt(1 - sines**2).astype(np.float32)


def _highlight(scene: Scene, seen: Fragments, radiance: Floats) -> None:
    """Adds the lights' reflections on glossy solids (Blinn-Phong, exponent 32)."""
    which = np.concatenate([indices for indices, _ in seen.gloss])
    gloss = np.concatenate([np.full(len(indices), 0.4 * strength, np.float32) for indices, strength in seen.gloss])
    points, normals = seen.points.take(which, 1), seen.normals.take(which, 1)
    view = _unit(scene.camera.position.astype(np.float32)[:, None] - points)
    for light in scene.lights:
        half = view + _unit(np.array(light.position, np.float32)[:, None] - points)
        shine = np.maximum(np.einsum("cn,cn->n", _unit(half), normals), 0)
        for _ in range(5):
            shine *= shine
        shine *= gloss
        for channel in range(3):
            radiance[channel][which] += np.float32(light.colour[channel]) * shine


def _unit(vectors: Floats) -> Floats:
    vectors /= np.sqrt(np.einsum("cn,cn->n", vectors, vectors))
    return vectors


def develop(light: Floats, gain: float) -> Bytes:
    """Linear light to the bytes of a picture, by a film's curve."""
    step = light * np.float32(gain * TONES / BRIGHTEST)
    return np.asarray(_film().take(np.minimum(step, np.float32(TONES - 1), out=step).astype(np.int32)), np.uint8)


@cache
def _film() -> NDArray[np.uint8]:
    light = np.arange(TONES) * BRIGHTEST / TONES
    curve = (1 - np.exp(-1.15 * light)) / (1 - np.exp(-1.15 * BRIGHTEST))
    return np.asarray(np.round(255 * curve ** (1 / 2.1)), np.uint8)
