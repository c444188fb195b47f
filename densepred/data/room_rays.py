"""Rooms with all surfaces along rays, hidden ones included: what a reconstruction of the whole scene learns from."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset, Filler, Raw, Transforms, to_tensor
from densepred.data.rendering.architect import random_scene
from densepred.data.rendering.casting import exposed_hits
from densepred.data.rendering.render import render
from densepred.data.rendering.scatter import scatter
from densepred.data.rendering.scenes import Scene
from densepred.data.rendering.shapes import Floats
from densepred.data.rooms import STREAMS, Rooms
from densepred.errors import ConfigurationError
from densepred.geometry import flip_intrinsics
from densepred.sample import SAMPLE_KINDS, Kind, without_targets

RAYS = 5
"""Stream of random numbers for the rays, apart from that of the scenes."""
KINDS = SAMPLE_KINDS | dict.fromkeys(("pixels", "hits", "surface", "hidden"), Kind.RAYS)
MOST = 16
"""Hits kept of a ray, the nearest; rays through more than seven things at once are cut there."""


class RoomRays(DenseDataset):
    """The scenes of `Rooms` with rays through the image, all surfaces along them, and points on all surfaces.

    In training the rays go through random points on surfaces, hidden ones included, and are others in every epoch;
    elsewhere through random places of the image, always the same, and `surface` and `hidden` are there as well. A
    surface bounds free space: where a box stands on the floor there is none.

    Args:
        split: "train", "val" or "test".
        count: Number of scenes.
        size: Of the images, (height, width).
        seed: Of the scenes and the rays.
        rays: How many through each image.
        points: How many points on surfaces; none in training.
        flip: Show a training scene as in a mirror in half of the epochs.

    Shape:
        image: (3, H, W) uint8. depth: (1, H, W). intrinsics: (3, 3). pixels: (rays, 2), (x, y). hits: (rays, 16),
            metres along the ray, nearest first, infinite where there are no more. surface: (points, 3) in the camera's
            frame, metres. hidden: (points,), 1 where the camera does not see it.

    Raises:
        ConfigurationError: As `Rooms`, and if there are no rays.

    Example:
        >>> sample = RoomRays("train", count=1, size=(48, 64), rays=7)[0]
        >>> sample["hits"].shape, bool((sample["hits"][:, 1:] >= sample["hits"][:, :-1]).all())
        (torch.Size([7, 16]), True)
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        count: int = 1000,
        size: tuple[int, int] = (256, 256),
        seed: int = 0,
        rays: int = 20,
        points: int = 10_000,
        flip: bool = True,
    ) -> None:
        super().__init__(None, seed)
        self.kinds = KINDS
        if rays < 1 or points < 1:
            raise ConfigurationError(f"RoomRays: rays is {rays} and points {points}; expected 1 or more of each.")
        self.rooms = Rooms(split, count, size, seed)
        self.rays = rays
        self.points = points
        self.flip = flip

    def __len__(self) -> int:
        return len(self.rooms)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor | str]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        tensors = {key: to_tensor(value, self.kinds[key]) for key, value in self.read(number, epoch).items()}
        return without_targets(tensors, self.kinds) if isinstance(index, Filler) else tensors

    def read(self, index: int, epoch: int = 0) -> Raw:
        """The scene with the rays of an epoch."""
        rooms, training = self.rooms, self.rooms.split == "train"
        scene = self._scene(index)
        view = render(scene, rooms.size)
        rng = np.random.default_rng([rooms.scene_seed, RAYS, STREAMS[rooms.split], index, epoch if training else 0])
        height, width = rooms.size
        sample: Raw = {"image": view.image, "depth": view.depth, "intrinsics": view.intrinsics}
        found = scatter(scene, rooms.size, self.rays if training else self.points, rng)
        pixels = found.pixels if training else rng.uniform([[0], [0]], [[width], [height]], (2, self.rays)) - 0.5
        sample |= {"pixels": pixels.T, "hits": _along(scene, rooms.size, pixels.astype(np.float32)).T}
        if not training:
            sample |= {"surface": found.points.T, "hidden": found.hidden.astype(np.float32)}
        elif self.flip and rng.random() < 0.5:
            sample["image"] = view.image[:, ::-1]
            sample["depth"] = view.depth[:, ::-1]
            sample["intrinsics"] = flip_intrinsics(view.intrinsics, width)
            sample["pixels"] = np.array([[width - 1, 0]], np.float32) + pixels.T * np.array([[-1, 1]], np.float32)
        return {**sample, "name": f"rooms/{rooms.split}/{index:06d}"}

    def hits(self, index: int, pixels: Tensor) -> Tensor:
        """All surfaces along rays of one's own through a scene.

        Shape:
            pixels: (R, 2), (x, y). returns: (R, 16), metres along the rays, as in the samples.
        """
        along = _along(self._scene(index), self.rooms.size, pixels.numpy().T.astype(np.float32))
        return torch.from_numpy(along.T.copy())

    def _scene(self, index: int) -> Scene:
        rooms = self.rooms
        if not 0 <= index < rooms.count:
            raise IndexError(f"RoomRays: {rooms.split} has scenes 0 to {rooms.count - 1}, asked for {index}.")
        return random_scene(rooms.scene_seed, STREAMS[rooms.split], index)


def _along(scene: Scene, size: tuple[int, int], pixels: Floats) -> Floats:
    """Metres along the rays through pixels (2, N) to all surfaces, (MOST, N)."""
    flat = np.concatenate([pixels, np.ones_like(pixels[:1])])
    directions = np.linalg.inv(scene.camera.intrinsics(size).astype(np.float64)) @ flat
    lengths = np.linalg.norm(directions, axis=0).astype(np.float32)
    return np.asarray(exposed_hits(scene, size, pixels, MOST) * lengths, np.float32)


class RoomRaysDataModule(DenseDataModule):
    """Serves `RoomRays`: rooms with all surfaces along rays, for `RayDistancePredictor`, with no download.

    Args:
        size: Of the images, (height, width).
        train: Number of training scenes.
        val: Number of validation scenes.
        test: Number of test scenes.
        seed: Of the scenes, the order and the rays.
        rays: Through each training image.
        eval_rays: Through each image of the other splits.
        points: On the surfaces of each scene of the other splits.
        flip: Show training scenes as in a mirror in half of the epochs.
        batch_size: Of training.
        eval_batch_size: Of validation and test; `batch_size` when None.
        num_workers: Processes that render; None takes one fewer than this process's share of the cores.

    Raises:
        ConfigurationError: As `RoomRays` and `DenseDataModule`.
    """

    kinds = KINDS

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        train: int = 2000,
        val: int = 50,
        test: int = 200,
        seed: int = 0,
        rays: int = 20,
        eval_rays: int = 2000,
        points: int = 10_000,
        flip: bool = True,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        self.size = size
        self.counts = {"train": train, "val": val, "test": test}
        self.rays = {"train": rays, "val": eval_rays, "test": eval_rays}
        self.points = points
        self.flip = flip
        self.dataset("train", None)  # options that cannot work are refused here, not in a worker

    def dataset(self, split: Literal["train", "val", "test"], transforms: Transforms | None) -> RoomRays:
        """The scenes of a split. Transforms know nothing of rays: there are none."""
        if transforms is not None:
            raise ConfigurationError("RoomRaysDataModule: transforms would leave the rays of a sample behind.")
        return RoomRays(split, self.counts[split], self.size, self.seed, self.rays[split], self.points, self.flip)
