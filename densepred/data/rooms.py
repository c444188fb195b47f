"""Rooms: procedurally rendered indoor scenes with exact labels, depth, normals and intrinsics. Needs no download."""

from typing import Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.rendering.architect import random_scene
from densepred.data.rendering.render import Rendering, render
from densepred.data.rendering.scenes import CLASSES
from densepred.data.rendering.textures import noise
from densepred.errors import ConfigurationError
from densepred.sample import VOID

STREAMS = {"train": 0, "val": 1, "test": 2}
HOLES, BORDERS = 3, 4
"""Streams of random numbers for what goes missing, apart from those of the scenes."""


class Rooms(DenseDataset):
    """Indoor rooms drawn from random numbers and rendered when they are read.

    A box room with textured walls, doors, windows, pictures and a rug, in which a table, boxes, spheres and cylinders
    stand on the floor and on each other, lit by a lamp and a window, seen by a camera at a random place. Everything is
    known in closed form: labels, depth and normals are exact at every pixel's centre. Sample `index` of a split is a
    function of (seed, split, index) alone; splits never share a scene, and `count` may grow without changing any. The
    same scene at another size is the same view.

    Args:
        split: "train", "val" or "test".
        count: Number of scenes.
        size: Of the images, (height, width).
        seed: Of the scenes, and of the transforms' random numbers.
        missing: Share of the pixels whose depth and normals are missing as a depth sensor would miss them: in patches,
            and first where depth jumps or the surface is seen at a grazing angle.
        void: Share of the pixels that are not labelled, along the borders between classes.
        transforms: Sample and seed to sample.

    Shape:
        image: (H, W, 3) uint8. segmentation: (H, W) uint8. depth: (H, W) float32, metres. normals: (H, W, 3) float32,
            facing the camera. intrinsics: (3, 3) float32.

    Raises:
        ConfigurationError: If the split is unknown, the size below 16 pixels, or a share not in [0, 1).

    Example:
        >>> sample = Rooms("val", count=2, size=(48, 64)).read(1)
        >>> sample["name"], sample["image"].shape
        ('rooms/val/000001', (48, 64, 3))
    """

    classes = CLASSES

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        count: int = 1000,
        size: tuple[int, int] = (240, 320),
        seed: int = 0,
        missing: float = 0.0,
        void: float = 0.0,
        transforms: Transforms | None = None,
    ) -> None:
        super().__init__(transforms, seed)
        if split not in STREAMS:
            raise ConfigurationError(f"Rooms: split must be one of {list(STREAMS)}, got {split!r}.")
        if min(size) < 16:
            raise ConfigurationError(f"Rooms: size (height, width) must be at least 16 x 16 pixels, got {tuple(size)}.")
        if count < 0 or seed < 0:
            raise ConfigurationError(f"Rooms: count and seed must be 0 or above, got count {count}, seed {seed}.")
        for name, share in {"missing": missing, "void": void}.items():
            if not 0 <= share < 1:
                raise ConfigurationError(f"Rooms: {name} is a share of the pixels in [0, 1), got {share}.")
        self.split = split
        self.count = count
        self.size = (int(size[0]), int(size[1]))
        self.scene_seed = seed
        self.missing = missing
        self.void = void

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Raw:
        """Renders a scene."""
        if not 0 <= index < self.count:
            raise IndexError(f"Rooms: {self.split} has scenes 0 to {self.count - 1}, asked for {index}.")
        view = render(random_scene(self.scene_seed, STREAMS[self.split], index), self.size)
        if self.missing:
            holes = _largest(_hard_to_measure(view) + self._patches(HOLES, index), self.missing)
            view.depth[holes] = 0
            view.normals[holes] = 0
        if self.void:
            view.segmentation[_largest(_near_borders(view.segmentation) + self._patches(BORDERS, index), self.void)] = (
                VOID
            )
        return {**view._asdict(), "name": f"rooms/{self.split}/{index:06d}"}

    def _patches(self, stream: int, index: int) -> NDArray[np.float32]:
        """Smooth noise in [0, 1] over the image, of its own for every scene."""
        entropy = np.random.SeedSequence([self.scene_seed, stream, STREAMS[self.split], index])
        return np.asarray(
            cv2.resize(noise(int(entropy.generate_state(1)[0])), self.size[::-1], interpolation=cv2.INTER_LINEAR),
            np.float32,
        )


def _hard_to_measure(view: Rendering) -> NDArray[np.float32]:
    """How likely a depth sensor is to fail, around 0 to 2: beside jumps of the depth, at grazing angles, far away."""
    jump = cv2.morphologyEx(view.depth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0.05 * view.depth
    beside = cv2.GaussianBlur(jump.astype(np.float32), (0, 0), 2.0)
    grazing = 1 - np.abs(view.normals[..., 2])
    score: NDArray[np.float32] = beside + 0.5 * grazing**4 + 0.05 * view.depth
    return score


def _near_borders(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """2 on the border between classes, falling to 0 within about ten pixels."""
    border = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    away = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 3)
    score: NDArray[np.float32] = 2 * np.exp(-away / 4)
    return score


def _largest(score: NDArray[np.float32], share: float) -> NDArray[np.bool_]:
    """The given share of the pixels, those of the highest score."""
    kept = min(round((1 - share) * score.size), score.size - 1)
    return np.asarray(score >= np.partition(score, kept, axis=None)[kept], np.bool_)


class RoomsDataModule(DenseDataModule):
    """Serves `Rooms`: labels, depth and normals on scenes rendered on the fly, with no download.

    Args:
        size: Of the images, (height, width).
        train: Number of training scenes.
        val: Number of validation scenes.
        test: Number of test scenes.
        seed: Of the scenes, the order and the transforms' random numbers.
        missing: Share of the pixels without depth and normals, as `Rooms` punches them; in every split.
        void: Share of the pixels without a label; in every split.
        batch_size: Of training.
        eval_batch_size: Of validation, test and prediction; `batch_size` when None.
        num_workers: Processes that render; None takes one fewer than this process's share of the cores.
        train_transforms: As in `DenseDataModule`.
        eval_transforms: As in `DenseDataModule`.

    Raises:
        ConfigurationError: As `Rooms` and `DenseDataModule`.
    """

    def __init__(
        self,
        size: tuple[int, int] = (240, 320),
        train: int = 2000,
        val: int = 100,
        test: int = 200,
        seed: int = 0,
        missing: float = 0.0,
        void: float = 0.0,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            seed=seed,
        )
        self.classes = {"segmentation": list(CLASSES)}
        self.size = size
        self.counts = {"train": train, "val": val, "test": test}
        self.missing = missing
        self.void = void
        self.dataset("train", None)  # options that cannot work are refused here, not in a worker

    def dataset(self, split: Literal["train", "val", "test"], transforms: Transforms | None) -> Rooms:
        """The scenes of a split."""
        return Rooms(split, self.counts[split], self.size, self.seed, self.missing, self.void, transforms)
