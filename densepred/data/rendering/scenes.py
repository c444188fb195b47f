"""What a rendered room is made of: its walls, things, lights and camera."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepred.data.rendering.decals import Decal
from densepred.data.rendering.shapes import Solid
from densepred.data.rendering.textures import Colour, Material
from densepred.geometry import intrinsics_matrix

CLASSES = ["wall", "floor", "ceiling", "door", "window", "picture", "rug", "table", "box", "sphere", "cylinder"]
WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, RUG, TABLE, BOX, SPHERE, CYLINDER = range(len(CLASSES))
FACE_LABELS = (WALL, WALL, WALL, WALL, FLOOR, CEILING)
"""Class of the room's faces: x low, x high, y low, y high, z low, z high."""
FACES = len(FACE_LABELS)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose intrinsics are relative to the image, so that one scene has any resolution.

    Args:
        position: In the world, metres.
        rotation: From the world to the camera frame, (3, 3): its rows are the camera's right, down and forward.
        focal: Focal length in image widths.
        aspect: fy / fx.
        middle: Where the optical axis meets the image, (x, y) as shares of its width and height.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    focal: float
    aspect: float
    middle: tuple[float, float]

    def intrinsics(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """K for an image of this size."""
        height, width = size
        fx = self.focal * width
        return intrinsics_matrix(fx, self.aspect * fx, self.middle[0] * width - 0.5, self.middle[1] * height - 0.5)


@dataclass(frozen=True)
class Light:
    """A ball of light: `colour` is what reaches a surface that faces it from one metre, linear RGB."""

    position: tuple[float, float, float]
    colour: Colour
    size: float


@dataclass(frozen=True)
class Scene:
    """A box room from the origin to `room` (x, y, z in metres), what stands in it, and the camera that sees it.

    Args:
        room: Width, depth and height.
        solids: What stands in it.
        decals: What is painted on its faces.
        faces: Material of each face: x low, x high, y low, y high, floor, ceiling.
        materials: Those of the solids, by their index.
        lights: Balls of light.
        ambient: Light from everywhere, linear RGB.
        camera: The camera.
        exposure: Factor on the camera's own exposure, around 1.
        grain: Where the picture's grain starts in its tile, and its strength in grey levels.
    """

    room: tuple[float, float, float]
    solids: tuple[Solid, ...]
    decals: tuple[Decal, ...]
    faces: tuple[Material, ...]
    materials: tuple[Material, ...]
    lights: tuple[Light, ...]
    ambient: Colour
    camera: Camera
    exposure: float
    grain: tuple[int, int, float]
