"""What is counted of images, labels, depth and normals; numbers of two samples add up to those of both."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from densepred.sample import VOID, valid_depth, valid_normals, valid_segmentation

Counts = NDArray[np.int64]

DEPTH_BINS = np.geomspace(1e-4, 1e5, 4097)
"""Edges, in metres, between which depths are counted: half a per cent wide, so that quantiles are that exact."""


class Sums(ABC):
    """Numbers that add up; arrays of different lengths as if the shorter one ended in zeros."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What they say, as plain values."""

    def __add__(self, other: Self) -> Self:
        added = {
            entry.name: _add(getattr(self, entry.name), getattr(other, entry.name))
            for entry in fields(self)  # type: ignore[arg-type]
        }
        return type(self)(**added)


def _add(one: Any, other: Any) -> Any:
    if not isinstance(one, np.ndarray):
        return one + other
    length = max(len(one), len(other))
    return np.pad(one, (0, length - len(one))) + np.pad(other, (0, length - len(other)))


class Range(NamedTuple):
    """From the least to the greatest; two of them add up to the one around both.

    Example:
        >>> Range(1.0, 2.0) + Range(5.0, 6.0)
        Range(low=1.0, high=6.0)
    """

    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of one value or more."""
        return cls(float(values.min()), float(values.max()))

    def __add__(self, other: Self) -> Self:  # type: ignore[override]
        return type(self)(min(self.low, other.low), max(self.high, other.high))


NOWHERE = Range()


def _resized(counts: Counts, length: int | None) -> Counts:
    """So many of the counts; without a length all but the zeros at the end."""
    if length is None:
        return np.trim_zeros(counts, "b").astype(np.int64)
    return np.pad(counts[:length], (0, max(0, length - len(counts)))).astype(np.int64)


def _counts() -> Counts:
    return np.zeros(0, np.int64)


def _floats() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class ImageSums(Sums):
    """Channels of images, in 0 to 1.

    Attributes:
        pixels: How many.
        sums: Of each channel's values.
        squares: Of their squares.
    """

    pixels: int = 0
    sums: NDArray[np.float64] = field(default_factory=_floats)
    squares: NDArray[np.float64] = field(default_factory=_floats)

    @classmethod
    def of(cls, image: np.ndarray) -> Self:
        """Of one image (H, W, C)."""
        channels = [image[..., channel].ravel() for channel in range(image.shape[-1])]
        if image.dtype == np.uint8:
            values = np.arange(256, dtype=np.float64)
            counts = np.stack([np.bincount(channel, minlength=256) for channel in channels])
            return cls(len(channels[0]), counts @ values / 255, counts @ values**2 / 255**2)
        exact = [channel.astype(np.float64) for channel in channels]
        return cls(
            len(exact[0]), np.array([one.sum() for one in exact]), np.array([np.square(one).sum() for one in exact])
        )

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation of each channel, over all pixels."""
        mean = self.sums / max(self.pixels, 1)
        deviation = np.sqrt(np.maximum(self.squares / max(self.pixels, 1) - mean**2, 0))
        return {"mean": mean.tolist(), "std": deviation.tolist()}


@dataclass(frozen=True)
class LabelSums(Sums):
    """How often classes occur.

    Attributes:
        pixels: Of each class.
        image_pixels: Known pixels of all images that contain the class.
        images: How many contain it.
        all: Pixels, known or not (of overlapping classes: answers).
        missing: Those of them that are not known.
        unlabelled: Images without any known pixel.
    """

    pixels: Counts = field(default_factory=_counts)
    image_pixels: Counts = field(default_factory=_counts)
    images: Counts = field(default_factory=_counts)
    all: int = 0
    missing: int = 0
    unlabelled: int = 0

    @classmethod
    def of(cls, labels: np.ndarray, classes: int | None) -> Self:
        """Of one image's labels (H, W), or answers for overlapping classes (H, W, C)."""
        if labels.ndim == 3:
            known = valid_segmentation(labels, classes)
            found, total = ((labels == 1) & known).sum((0, 1)), int(known.sum())
        elif labels.dtype == np.uint8:
            # of all 256 values at once: several times faster than with a mask
            found = np.bincount(labels.ravel(), minlength=VOID + 1)
            total = labels.size - int(found[VOID])
            found = found[:VOID]
        else:
            known = valid_segmentation(labels, classes)
            found, total = np.bincount(labels[known].ravel()), int(known.sum())
        found = _resized(found, classes)
        there = (found > 0).astype(np.int64)
        return cls(found, there * total, there, labels.size, labels.size - total, int(total == 0))

    def summary(self) -> dict[str, Any]:
        """Counts by class, and the share that is missing."""
        return {
            "pixels": self.pixels.tolist(),
            "image_pixels": self.image_pixels.tolist(),
            "images": self.images.tolist(),
            "missing_share": self.missing / max(self.all, 1),
            "unlabelled_images": self.unlabelled,
        }


@dataclass(frozen=True)
class DepthSums(Sums):
    """How far things are.

    Attributes:
        counts: Of known depths between `DEPTH_BINS`.
        all: Pixels, known or not.
        known: Those with depth.
        metres: Of the known pixels.
    """

    counts: Counts = field(default_factory=_counts)
    all: int = 0
    known: int = 0
    metres: Range = NOWHERE

    @classmethod
    def of(cls, depth: np.ndarray) -> Self:
        """Of one image's depth (H, W), metres."""
        values = depth[valid_depth(depth)]
        if not len(values):
            return cls(np.zeros(len(DEPTH_BINS) - 1, np.int64), depth.size)
        step = np.log(DEPTH_BINS[1] / DEPTH_BINS[0])
        bins = (np.log(values / DEPTH_BINS[0]) / step).clip(0, len(DEPTH_BINS) - 2).astype(np.int64)
        counts = np.bincount(bins, minlength=len(DEPTH_BINS) - 1)
        return cls(counts, depth.size, len(values), Range.of(values))

    def quantile(self, share: float) -> float:
        """The depth that a share of the known pixels does not exceed, to half a per cent."""
        ends = np.cumsum(self.counts)
        return float(np.sqrt(DEPTH_BINS[:-1] * DEPTH_BINS[1:])[np.searchsorted(ends, share * ends[-1])])

    def summary(self) -> dict[str, Any]:
        """Range and quantiles in metres, None where nothing is known, and the share that is missing."""
        names = {"p05": 0.05, "median": 0.5, "p95": 0.95}
        spread = {name: self.quantile(share) if self.known else None for name, share in names.items()}
        low, high = self.metres if self.known else (None, None)
        return {"min": low, **spread, "max": high, "missing_share": 1 - self.known / max(self.all, 1)}


_CERTAINLY_AWAY = 0.8
"""A normal with z above it cannot be seen by a camera whose view is narrower than 2 x 53 degrees."""


def _facing_away(normals: np.ndarray, rays: np.ndarray) -> int:
    along = np.einsum("nc,nc->n", normals, rays)
    # a surface seen from its edge is measured a little to either side
    return int((along > 0.05 * np.sqrt(np.einsum("nc,nc->n", rays, rays))).sum())


@dataclass(frozen=True)
class NormalsSums(Sums):
    """Normals: how many, how long, and where they point.

    Attributes:
        all: Pixels, known or not.
        known: Those with a normal.
        away: Those that do not face the camera.
        total: Sum of them.
        length: Of the known ones.
    """

    all: int = 0
    known: int = 0
    away: int = 0
    total: NDArray[np.float64] = field(default_factory=_floats)
    length: Range = NOWHERE

    @classmethod
    def of(cls, normals: np.ndarray, rays: np.ndarray | None) -> Self:
        """Of one image's normals (H, W, 3), and the direction of each pixel where the intrinsics tell it."""
        there = valid_normals(normals, axis=-1)
        known = normals[there]
        pixels = normals.shape[0] * normals.shape[1]
        if not len(known):
            return cls(pixels)
        length = np.sqrt(np.einsum("nc,nc->n", known, known, dtype=np.float64))
        away = int((known[:, 2] > _CERTAINLY_AWAY).sum() if rays is None else _facing_away(known, rays[there]))
        total = known.sum(0, dtype=np.float64)
        return cls(pixels, len(known), away, total, Range.of(length))

    def summary(self) -> dict[str, Any]:
        """Range of lengths, mean vector, and the shares missing and facing away."""
        return {
            "shortest": self.length.low if self.known else None,
            "longest": self.length.high if self.known else None,
            "mean": (self.total / max(self.known, 1)).tolist(),
            "facing_away_share": self.away / max(self.known, 1),
            "missing_share": 1 - self.known / max(self.all, 1),
        }
