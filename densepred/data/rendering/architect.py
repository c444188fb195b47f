"""Draws rooms from random numbers: the camera, what stands where, what it looks like, and the light."""

import numpy as np

from densepred.data.rendering.decals import Decal, Door, Picture, Rug, Window
from densepred.data.rendering.looks import Looks
from densepred.data.rendering.scenes import (
    BOX,
    CYLINDER,
    DOOR,
    FACE_LABELS,
    FLOOR,
    PICTURE,
    RUG,
    SPHERE,
    TABLE,
    WALL,
    WINDOW,
    Camera,
    Light,
    Scene,
)
from densepred.data.rendering.shapes import Box, Cylinder, Solid, Sphere
from densepred.data.rendering.textures import Material


def random_scene(seed: int, stream: int, index: int) -> Scene:
    """The scene of (seed, stream, index): the same on every machine, and unlike that of any other triple."""
    return _Architect(np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, index])))).scene()


class _Architect(Looks):
    """Draws the parts of a scene, one after the other, from one stream of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.room = (self.between(3.4, 6.0), self.between(3.4, 6.5), self.between(2.4, 3.0))
        self.solids: list[Solid] = []
        self.materials: list[Material] = []
        self.taken: list[tuple[float, float, float]] = []  # discs of the floor: x, y, radius

    def scene(self) -> Scene:
        camera = self.camera()
        self.pillar()
        self.furnish(camera)
        decals, windows = self.decals()
        return Scene(
            room=self.room,
            solids=tuple(self.solids),
            decals=tuple(decals),
            faces=(*self.walls(), self.floor(), self.ceiling()),
            materials=tuple(self.materials),
            lights=self.lights(windows),
            ambient=self.tint(0.22, 0.38),
            camera=camera,
            exposure=self.between(0.85, 1.2),
            grain=(self.below(256), self.below(256), self.between(0.5, 2.5)),
        )

    # the camera

    def camera(self) -> Camera:
        width, depth, _ = self.room
        while True:
            x, y = self.between(0.35, width - 0.35), self.between(0.35, depth - 0.35)
            aim_x, aim_y = self.between(0.3, 0.7) * width, self.between(0.3, 0.7) * depth
            if np.hypot(aim_x - x, aim_y - y) > 0.4 * min(width, depth):
                break
        position = np.array([x, y, self.between(1.1, 1.75)])
        ahead = np.array([aim_x - x, aim_y - y]) / np.hypot(aim_x - x, aim_y - y)
        pitch = np.radians(self.between(-26, 3))
        forward = np.array([*(ahead * np.cos(pitch)), np.sin(pitch)])
        right = np.array([forward[1], -forward[0], 0]) / np.hypot(forward[0], forward[1])
        down = np.cross(forward, right)
        roll = np.radians(self.between(-2.5, 2.5))
        rotation = np.stack(
            [np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right, forward]
        )
        focal = 0.5 / np.tan(np.radians(self.between(58, 74)) / 2)
        middle = (self.between(0.48, 0.52), self.between(0.48, 0.52))
        return Camera(position, rotation, float(focal), self.between(0.99, 1.01), middle)

    # what stands in the room

    def pillar(self) -> None:
        """Sometimes a corner of the room is built over, from floor to ceiling."""
        if not self.chance(0.25):
            return
        width, depth, height = self.room
        half = (self.between(0.15, 0.4), self.between(0.15, 0.4), height / 2)
        x = half[0] if self.chance(0.5) else width - half[0]
        y = half[1] if self.chance(0.5) else depth - half[1]
        self.add(Box((x, y, height / 2), 0.0, WALL, self.material(self.wall()), half))
        self.taken.append((x, y, float(np.hypot(half[0], half[1]))))

    def furnish(self, camera: Camera) -> None:
        self.taken.append((float(camera.position[0]), float(camera.position[1]), 0.75))
        if self.chance(0.65):
            self.table(camera)
        for _ in range(3 + self.below(4)):
            self.thing(camera)

    def table(self, camera: Camera) -> None:
        half_x, half_y, height, thick = self.between(0.5, 0.8), self.between(0.3, 0.45), self.between(0.55, 0.78), 0.025
        place = self.place(camera, float(np.hypot(half_x, half_y)))
        if place is None:
            return
        x, y, yaw = *place, self.yaw()
        wood = self.material(self.wooden())
        self.add(Box((x, y, height - thick), yaw, TABLE, wood, (half_x, half_y, thick)))
        for side in (-1, 1):
            away = side * (half_x - 0.08)
            centre = (x + away * float(np.cos(yaw)), y + away * float(np.sin(yaw)), height / 2 - thick)
            self.add(Box(centre, yaw, TABLE, wood, (0.02, half_y - 0.04, height / 2 - thick)))
        for _ in range(1 + self.below(3)):
            self.put_on((x, y, height), yaw, (half_x, half_y))

    def thing(self, camera: Camera) -> None:
        """A box, sphere or cylinder on the floor, perhaps with something on it."""
        kind = self.one_of("box", "box", "sphere", "cylinder")
        if kind == "box":
            half = (self.between(0.15, 0.42), self.between(0.15, 0.42), self.between(0.12, 0.5))
            radius = float(np.hypot(half[0], half[1]))
        else:
            radius = self.between(0.14, 0.38)
            half = (radius, radius, self.between(0.15, 0.55))
        place = self.place(camera, radius)
        if place is None:
            return
        if kind == "sphere":
            self.add(Sphere((*place, radius), self.yaw(), SPHERE, self.material(self.coloured()), radius))
            return
        yaw, material = self.yaw(), self.material(self.coloured())
        if kind == "cylinder":
            self.add(Cylinder((*place, half[2]), yaw, CYLINDER, material, radius, half[2]))
            half = (0.7 * radius, 0.7 * radius, half[2])
        else:
            self.add(Box((*place, half[2]), yaw, BOX, material, half))
        if self.chance(0.45):
            self.put_on((*place, 2 * half[2]), yaw, (half[0], half[1]))

    def put_on(self, top: tuple[float, float, float], yaw: float, half: tuple[float, float]) -> None:
        """Something small on a top whose half sizes are given."""
        radius = min(self.between(0.06, 0.17), 0.9 * min(half))
        across = self.between(-1, 1) * max(half[0] - radius, 0), self.between(-1, 1) * max(half[1] - radius, 0)
        x = top[0] + across[0] * float(np.cos(yaw)) - across[1] * float(np.sin(yaw))
        y = top[1] + across[0] * float(np.sin(yaw)) + across[1] * float(np.cos(yaw))
        # two things on one top may not run into each other
        if any(
            np.hypot(x - other.centre[0], y - other.centre[1]) < radius + other.extent[0]
            for other in self.solids
            if other.centre[2] > top[2] and other.extent[0] < 0.2
        ):
            return
        kind, material, tall = (
            self.one_of("box", "sphere", "cylinder"),
            self.material(self.coloured()),
            self.between(0.6, 1.6),
        )
        if kind == "sphere":
            self.add(Sphere((x, y, top[2] + radius), self.yaw(), SPHERE, material, radius))
        elif kind == "cylinder":
            self.add(Cylinder((x, y, top[2] + radius * tall), self.yaw(), CYLINDER, material, radius, radius * tall))
        else:
            side = 0.7 * radius
            self.add(Box((x, y, top[2] + side * tall), self.yaw(), BOX, material, (side, side, side * tall)))

    def place(self, camera: Camera, radius: float) -> tuple[float, float] | None:
        """A free place of the floor, most often in sight; None if none was found."""
        forward = camera.rotation[2]
        for _ in range(12):
            if self.chance(0.8):
                turn = np.arctan2(forward[1], forward[0]) + np.radians(self.between(-32, 32))
                away = self.between(1.3, 5.0)
                x = float(camera.position[0] + away * np.cos(turn))
                y = float(camera.position[1] + away * np.sin(turn))
            else:
                x, y = self.between(0, self.room[0]), self.between(0, self.room[1])
            inside = radius < x < self.room[0] - radius and radius < y < self.room[1] - radius
            if inside and all(np.hypot(x - a, y - b) > radius + r + 0.03 for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y
        return None

    def yaw(self) -> float:
        return self.between(0, 2 * np.pi)

    def add(self, solid: Solid) -> None:
        self.solids.append(solid)

    def material(self, material: Material) -> int:
        self.materials.append(material)
        return len(self.materials) - 1

    # what is painted on the faces

    def decals(self) -> tuple[list[Decal], list[Window]]:
        decals: list[Decal] = []
        windows: list[Window] = []
        doors = self.below(4), self.below(6)
        for face in range(4):
            length = self.room[1] if face < 2 else self.room[0]
            start = 0.3 + self.between(0, 0.5)
            while start < length - 0.8:
                kind = "door" if face in doors and not any(d.face == face for d in decals) else ""
                decal = self.on_wall(kind or self.one_of("window", "picture", "picture", "none"), face, start)
                if decal is None or start + decal.size[0] > length - 0.2:
                    start += self.between(0.5, 1.2)
                    continue
                decals.append(decal)
                windows += [decal] if isinstance(decal, Window) else []
                start += decal.size[0] + self.between(0.3, 1.4)
        if self.chance(0.5):
            decals.append(self.rug())
        return decals, windows

    def on_wall(self, kind: str, face: int, start: float) -> Decal | None:
        height = self.room[2]
        if kind == "door":
            size = (self.between(0.85, 1.0), self.between(1.98, min(2.12, height - 0.2)))
            wood = self.wooden()
            leaf = wood if self.chance(0.6) else self.made_of("plaster", 1.5, *self.pair((0.0, 0.4), (0.6, 0.95)))
            return Door(face, (start, 0.0), size, DOOR, self.colour((0.0, 0.2), (0.6, 0.95)), leaf)
        if kind == "window":
            bottom = self.between(0.8, 1.05)
            size = (self.between(0.9, 1.7), self.between(1.0, height - 0.25 - bottom))
            leaves = self.made_of("blotches", 0.7, (0.03, 0.1, 0.02), (0.3, 0.5, 0.12))
            return Window(face, (start, bottom), size, WINDOW, self.colour((0.0, 0.05), (0.75, 0.95)), leaves)
        if kind == "picture":
            size = (self.between(0.4, 0.95), self.between(0.35, 0.8))
            pattern = self.one_of("blotches", "marble", "zigzag", "dots", "checker", "stripes")
            art = self.made_of(
                pattern,
                self.between(0.5, 1.2),
                self.colour((0.2, 0.8), (0.15, 0.6)),
                self.colour((0.2, 0.7), (0.5, 0.95)),
            )
            bottom = self.between(1.3, 1.6) - size[1] / 2
            return Picture(face, (start, bottom), size, PICTURE, self.colour((0.0, 0.7), (0.1, 0.5), 0.1), art)
        return None

    def rug(self) -> Rug:
        size = (self.between(1.2, 2.4), self.between(1.0, 1.8))
        middle = [self.room[i] / 2 + self.between(-0.4, 0.4) for i in range(2)]
        low = (max(middle[0] - size[0] / 2, 0.05), max(middle[1] - size[1] / 2, 0.05))
        light, dark = self.colour((0.3, 0.9), (0.4, 0.9)), self.colour((0.3, 0.9), (0.2, 0.6))
        weave = self.made_of(
            self.one_of("weave", "carpet", "zigzag", "stripes", "dots"), self.between(0.4, 0.9), dark, light
        )
        return Rug(FACE_LABELS.index(FLOOR), low, size, RUG, self.colour((0.2, 0.9), (0.2, 0.8)), weave)

    # light

    def lights(self, windows: list[Window]) -> tuple[Light, ...]:
        width, depth, height = self.room
        lamp = self.tint(1.2, 2.2)
        place = (self.between(0.3, 0.7) * width, self.between(0.3, 0.7) * depth, height - self.between(0.15, 0.5))
        lights = [Light(place, lamp, self.between(0.06, 0.2))]
        for window in windows[:1]:
            along, up = window.low[0] + window.size[0] / 2, window.low[1] + window.size[1] / 2
            inward = 0.25
            places = [
                (inward, along, up),
                (width - inward, along, up),
                (along, inward, up),
                (along, depth - inward, up),
            ]
            sky = self.between(1.0, 2.2)
            lights.append(Light(places[window.face], (0.92 * sky, sky, 1.1 * sky), 0.35))
        return tuple(lights)
