"""What every data set promises: samples by index, the same numbers for the same (seed, epoch, index)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from densepred.data.images import read_bytes, read_label, read_size, refuse_damage, refuse_values
from densepred.errors import ConfigurationError
from densepred.sample import SAMPLE_KINDS, VOID, Kind, without_targets

Raw = dict[str, Any]
"""A sample as arrays: planes (H, W) or (H, W, C), intrinsics (3, 3), and its name."""
Transforms = Callable[[Raw, tuple[int, ...] | None], Raw]
"""`densepred.data.transforms.SampleTransforms` is one: sample and seed to sample."""


class Filler(int):
    """The index of a sample that is read for its size only: all that is known about it is missing, it counts nowhere.

    A process that has no sample left, while others have, takes its step with one (see `EvaluationSampler`).
    """

    def __repr__(self) -> str:
        return f"Filler({int(self)})"


class DenseDataset(Dataset[dict[str, Tensor | str]], ABC):
    """A data set of images with something known at every pixel.

    A new one writes `__len__` and `read`; one made of files also `files`, by which they are checked before the first
    step. An index is a number, or (epoch, number) as `EpochSampler` draws it: the transforms are seeded from (seed,
    epoch, number), whichever worker serves it.

    Args:
        transforms: Sample and seed to sample; none leaves it as read.
        seed: Of the transforms' random numbers.

    Shape:
        returns: the sample of `densepred.sample`: image (C, H, W) uint8, labels (H, W), depth (1, H, W), normals
            (3, H, W), intrinsics (3, 3), name.
    """

    kinds: dict[str, Kind] = SAMPLE_KINDS
    """What kind each key of a sample is."""
    classes_on_disk: Mapping[str, int] = MappingProxyType({})
    """How many classes the label files of a key count, before any remapping; other values in them are errors."""
    advice: str = ""
    """What an error about its files says at the end: the expected layout and the ways out."""

    def __init__(self, transforms: Transforms | None = None, seed: int = 0) -> None:
        self.transforms = transforms
        self.seed = seed

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int) -> Raw:
        """The sample as read or made, with no transform.

        Shape:
            image: (H, W, 3) uint8, RGB. segmentation: (H, W) uint8 or int32. depth: (H, W) float32, metres.
            normals: (H, W, 3) float32. intrinsics: (3, 3) float32. name: its stable identity.
        """

    def files(self, index: int) -> dict[str, Path]:
        """The files a sample is read from, by key; none for a set that is made on the fly."""
        return {}

    def file_size(self, key: str, path: Path) -> tuple[int, int]:
        """(height, width) of a file of a sample, from its header alone."""
        return read_size(path)

    def check_file(self, key: str, path: Path) -> None:
        """Reads a file of a sample to its end and refuses a broken one; of labels also values that are no classes.

        Raises:
            DataError: If it is damaged; a LabelError of labels that hold what is no class.
        """
        if self.kinds[key] is Kind.LABEL:
            refuse_values(read_label(path), self.classes_on_disk.get(key, VOID), path)
        else:
            refuse_damage(read_bytes(path), path)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor | str]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        sample = self.read(number)
        if self.transforms is not None:
            sample = self.transforms(sample, (self.seed, epoch, number))
        unknown = [key for key in sample if key not in self.kinds]
        if unknown:
            raise ConfigurationError(
                f"{type(self).__name__}: read() gave {unknown}, whose kind is not declared. Declared are "
                f"{sorted(self.kinds)}; add the others to `kinds` of the datamodule, such as "
                f"kinds = SAMPLE_KINDS | {{{unknown[0]!r}: Kind.LABEL}}."
            )
        tensors = {key: to_tensor(value, self.kinds[key]) for key, value in sample.items()}
        return without_targets(tensors, self.kinds) if isinstance(index, Filler) else tensors


def to_tensor(value: Any, kind: Kind) -> Tensor | str:
    """An array as the tensor that travels: channels first, contiguous, as small as it was read.

    Example:
        >>> to_tensor(np.zeros((4, 5, 3), np.uint8), Kind.IMAGE).shape
        torch.Size([3, 4, 5])
    """
    if kind is Kind.NAME:
        return str(value)
    array = np.asarray(value)
    if kind is Kind.LABEL:
        return _tensor(array if array.dtype == np.uint8 else array.astype(np.int32))
    if kind is not Kind.IMAGE or array.dtype != np.uint8:
        array = array.astype(np.float32, copy=False)
    if kind not in (Kind.INTRINSICS, Kind.RAYS):
        array = array[None] if array.ndim == 2 else _channels_first(array)
    return _tensor(array)


def _channels_first(array: np.ndarray) -> np.ndarray:
    # a tenth of the time of a transposed copy
    planes = np.empty((array.shape[2], *array.shape[:2]), array.dtype)
    cv2.split(array, list(planes))
    return planes


def _tensor(array: np.ndarray) -> Tensor:
    # torch shares the memory, which must therefore be in order and ours to write
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
