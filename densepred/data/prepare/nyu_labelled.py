"""The official NYU Depth v2 files: the labelled frames (HDF5, MATLAB v7.3), the split and the class mapping."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from densepred.data.prepare.download import is_web_page, size_text
from densepred.data.prepare.matlab import read_mat
from densepred.errors import ConfigurationError, DataError
from densepred.sample import VOID

OFFICIAL_BYTES = 2_972_037_809
RAW_CLASSES = 894
DEPTH_DATASETS = {"raw": "rawDepths", "filled": "depths"}
BLOCK_BYTES = 256 << 20
MOST_PIXELS, MOST_FRAMES = 1 << 24, 1_000_000
"""More is a damaged header, or meant to fill the memory."""


@dataclass(frozen=True)
class Frame:
    """One labelled frame as it goes to disk.

    Args:
        number: Counted from 1, as in `splits.mat`.
        rgb: (H, W, 3), uint8.
        millimetres: (H, W), uint16; 0 where the sensor saw nothing.
        label40: (H, W), uint8, 0 to 39; 255 where unlabelled.
    """

    number: int
    rgb: np.ndarray
    millimetres: np.ndarray
    label40: np.ndarray


class LabelledFile:
    """`nyu_depth_v2_labeled.mat`, read a few frames at a time: its 2.8 GB are never in memory.

    MATLAB stores columns first, so HDF5 shows every array with its axes reversed: `images` is (N, 3, W, H).

    Args:
        path: The file.
        depth: `raw` reads `rawDepths`, with the sensor's holes; `filled` reads `depths`.

    Raises:
        DataError: If the file is missing, cut short, or another one.
        ConfigurationError: If `depth` is neither.
    """

    def __init__(self, path: Path, depth: str) -> None:
        if depth not in DEPTH_DATASETS:
            raise ConfigurationError(f"NYU depth: expected one of {', '.join(DEPTH_DATASETS)}, got {depth!r}")
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected nyu_depth_v2_labeled.mat")
        self.path = path
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path}: {_why_not_opened(path, error)}") from error
        try:
            self._find_arrays(DEPTH_DATASETS[depth])
        except (OSError, RuntimeError, KeyError) as error:  # a damaged table of contents
            self.close()
            raise self._unreadable("what it holds", error) from error
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self.file.close()

    def blocks(self, numbers: set[int], classes: np.ndarray) -> Iterator[list[Frame]]:
        """The frames with these numbers, in order, as many at a time as one chunk of the file holds.

        A chunk is compressed as a whole: to read its frames one by one would unpack it as often as it has frames.

        Args:
            numbers: Counted from 1.
            classes: The class of each label of the file, as `read_mapping` gives it.
        """
        for first in range(0, len(self), self.block):
            wanted = [n for n in range(first + 1, min(first + self.block, len(self)) + 1) if n in numbers]
            if wanted:
                yield self._read(wanted, classes)

    def _find_arrays(self, depth: str) -> None:
        arrays = {}
        for name in ("images", depth, "labels"):
            found = self._member(name)
            if not isinstance(found, h5py.Dataset):
                raise DataError(
                    f"{self.path}: holds no array {name!r}, only {', '.join(sorted(self.file)) or 'nothing'}; expected "
                    "nyu_depth_v2_labeled.mat with images, depths, rawDepths and labels"
                )
            arrays[name] = found
        self.images, self.depths, self.labels = arrays.values()
        frames, planes, width, height = self.images.shape if self.images.ndim == 4 else (0, 0, 0, 0)
        flat = (frames, width, height)
        if width * height > MOST_PIXELS or frames > MOST_FRAMES:
            raise DataError(
                f"{self.path}: {frames:,} frames of {height:,} x {width:,} pixels; the official file has 1,449 of "
                "480 x 640"
            )
        if planes != 3 or frames == 0 or self.depths.shape != flat or self.labels.shape != flat:
            shapes = ", ".join(f"{name} {found.shape}" for name, found in arrays.items())
            raise DataError(
                f"{self.path}: expected images (N, 3, W, H) and, of the same N, W, H, {depth} and labels (N, W, H), as "
                f"MATLAB's v7.3 files show them; got {shapes}"
            )
        deepest = max((array.chunks or (1,))[0] for array in arrays.values())
        self.block = max(1, min(deepest, BLOCK_BYTES // (9 * width * height)))

    def _member(self, name: str) -> Any:
        try:
            return self.file.get(name)
        except (OSError, RuntimeError) as error:
            raise self._unreadable(name, error) from error

    def _read(self, numbers: list[int], classes: np.ndarray) -> list[Frame]:
        span = slice(numbers[0] - 1, numbers[-1])
        try:
            images, depths, labels = self.images[span], self.depths[span], self.labels[span]
        except (OSError, RuntimeError) as error:
            raise self._unreadable(f"frames {numbers[0]} to {numbers[-1]}", error) from error
        places = [(number, number - numbers[0]) for number in numbers]
        return [
            Frame(
                n,
                images[i].transpose(2, 1, 0),
                self._millimetres(depths[i].T, n),
                self._label40(labels[i].T, n, classes),
            )
            for n, i in places
        ]

    def _millimetres(self, metres: np.ndarray, number: int) -> np.ndarray:
        known = np.isfinite(metres) & (metres > 0)
        millimetres = np.rint(np.where(known, metres, 0).astype(np.float64) * 1000)
        if millimetres.max() > np.iinfo(np.uint16).max:
            raise DataError(f"{self.path}: frame {number} has a depth of {metres[known].max():g}; expected metres")
        return millimetres.astype(np.uint16)

    def _label40(self, label: np.ndarray, number: int, classes: np.ndarray) -> np.ndarray:
        if label.max() >= len(classes):
            raise DataError(
                f"{self.path}: frame {number} has the label {label.max()}, the class mapping ends at {len(classes) - 1}"
            )
        return np.asarray(classes[label])

    def _unreadable(self, what: str, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: {what} could not be read ({error}); the file is damaged. It has "
            f"{size_text(self.path.stat().st_size)}, the official one {OFFICIAL_BYTES:,} bytes and the MD5 checksum "
            "520609c519fba3ba5ac58c8fefcc3530. Get it again; frames that are done stay done"
        )


def read_mapping(path: Path) -> np.ndarray:
    """Which of the 40 classes, from 0, each label of the labelled file is; 255 for 0, unlabelled.

    Shape:
        returns: (895,), uint8.

    Raises:
        DataError: If the file is missing or does not map 894 classes to 1 to 40.
    """
    found = _load(path, "mapClass", "classMapping40.mat").ravel()
    if len(found) != RAW_CLASSES or found.min() < 1 or found.max() > 40:
        raise DataError(
            f"{path}: expected mapClass with {RAW_CLASSES} classes from 1 to 40, got {len(found)} from {found.min()} "
            f"to {found.max()}"
        )
    return np.concatenate([[VOID], found.astype(np.int64) - 1]).astype(np.uint8)


def read_splits(path: Path, frames: int) -> dict[str, list[int]]:
    """The numbers, from 1, of the training and the test frames, ascending.

    Raises:
        DataError: If the file is missing, names a frame twice or one that is not among the `frames`.
    """
    lists = {
        split: sorted(int(number) for number in _load(path, key, "splits.mat").ravel())
        for split, key in (("train", "trainNdxs"), ("test", "testNdxs"))
    }
    both = lists["train"] + lists["test"]
    if len(set(both)) < len(both):
        raise DataError(f"{path}: names a frame twice among its training and test frames")
    if min(both) < 1 or max(both) > frames:
        raise DataError(f"{path}: names the frames {min(both)} to {max(both)}; the labelled file has 1 to {frames}")
    return lists


def _load(path: Path, key: str, expected: str) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    try:
        found = read_mat(path.read_bytes(), key)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {key} could not be read ({error}); expected the official {expected}") from error
    if found.size == 0 or found.dtype.kind not in "uif":
        raise DataError(f"{path}: {key} is empty or holds no numbers; expected the official {expected}")
    return found


def _why_not_opened(path: Path, error: OSError) -> str:
    size = path.stat().st_size
    if is_web_page(path):
        return "a web page, not a .mat file: the address it was downloaded from no longer holds the file"
    if "truncated" in str(error):
        return f"cut short at {size:,} bytes (the official file has {OFFICIAL_BYTES:,}); get it again"
    return f"not an HDF5 file as MATLAB v7.3 writes them ({error}); expected nyu_depth_v2_labeled.mat"
