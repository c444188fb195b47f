"""The sample: its keys, what kind each key is, and what "missing" looks like. The only place that knows the sentinels.

Every key has a *kind*, which says how it is transformed, padded and collated:

========== ====================== ================= =========================================
kind       one sample             dtype             missing
========== ====================== ================= =========================================
image      (C, H, W)              uint8 or float32  none (padded by replication)
label      (H, W)                 uint8 or int32    255 in uint8, -1 in signed integers
depth      (1, H, W)              float32, metres   0
normals    (3, H, W)              float32, unit     zero vector
weight     (1, H, W)              float32           0
intrinsics (3, 3)                 float32, pixels   none
name       str                                      none
========== ====================== ================= =========================================
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = TypeVar("Array", Tensor, np.ndarray)


class Kind(StrEnum):
    """How a key of the sample is transformed, padded and collated."""

    IMAGE = "image"
    LABEL = "label"
    DEPTH = "depth"
    NORMALS = "normals"
    WEIGHT = "weight"
    INTRINSICS = "intrinsics"
    RAYS = "rays"
    NAME = "name"


SAMPLE_KINDS: dict[str, Kind] = {
    "image": Kind.IMAGE,
    "segmentation": Kind.LABEL,
    "depth": Kind.DEPTH,
    "normals": Kind.NORMALS,
    "intrinsics": Kind.INTRINSICS,
    "name": Kind.NAME,
}
"""The keys that are their own kind; a datamodule may declare more."""

VOID = 255
"""Missing label in uint8."""

FILLER = "(filler)"
"""The name of a sample that is there only so that all processes take equally many steps, and counts nowhere."""


def missing_value(kind: Kind, dtype: torch.dtype | np.dtype) -> int:
    """The number that stands for "missing" in planes of this kind and dtype."""
    if kind is Kind.LABEL:
        return VOID if str(dtype).endswith("uint8") else -1
    return 0


def valid_segmentation(labels: Array, classes: int | None = None) -> Array:
    """True where a label is known.

    Missing is 255 in uint8 and any negative value in wider integers; there, 255 is missing too when `classes` says
    that it cannot be a class.

    Shape:
        labels: any; returns the same shape, boolean.
    """
    if str(labels.dtype).endswith("uint8"):
        return labels != VOID  # type: ignore[no-any-return]
    known = labels >= 0
    if classes is not None and classes <= VOID:
        known = known & (labels != VOID)
    return known


def valid_depth(depth: Array) -> Array:
    """True where depth (metres) is known: finite and above 0. Same shape as `depth`, boolean."""
    return (depth > 0) & (depth < float("inf"))


def valid_normals(normals: Array, axis: int = -3) -> Array:
    """True where the normal is known: not the zero vector (and finite).

    Shape:
        normals: (..., 3, H, W) with `axis` -3; returns (..., H, W), boolean.
    """
    return (normals != 0).any(axis) & (abs(normals) < float("inf")).all(axis)  # type: ignore[no-any-return]


def pad_planes(planes: Tensor, size: tuple[int, int], kind: Kind) -> Tensor:
    """Pads the last two dimensions right and bottom to `size`, with "missing" (images: by replicating their border)."""
    bottom, right = size[0] - planes.shape[-2], size[1] - planes.shape[-1]
    if bottom == 0 and right == 0:
        return planes
    if kind is not Kind.IMAGE:
        return F.pad(planes, (0, right, 0, bottom), value=missing_value(kind, planes.dtype))
    # replicate padding is not implemented for uint8 or for 3-D integer input; indexing is, and is exact
    rows = torch.arange(size[0], device=planes.device).clamp_(max=planes.shape[-2] - 1)
    columns = torch.arange(size[1], device=planes.device).clamp_(max=planes.shape[-1] - 1)
    return planes.index_select(-2, rows).index_select(-1, columns)


def without_targets(sample: Mapping[str, Tensor | str], kinds: Mapping[str, Kind]) -> dict[str, Tensor | str]:
    """The sample as a filler: the image as it is, every target missing, named `FILLER`."""
    kept = (Kind.IMAGE, Kind.INTRINSICS, Kind.RAYS, Kind.NAME)
    missing = {
        key: torch.full_like(value, missing_value(kinds[key], value.dtype))
        for key, value in sample.items()
        if isinstance(value, Tensor) and kinds[key] not in kept
    }
    return {**sample, **missing, "name": FILLER}


def counted(batch: Mapping[str, Any]) -> int:
    """How many samples of a batch count: all but fillers.

    Example:
        >>> counted({"image": torch.zeros(1, 3, 8, 8), "name": [FILLER]})
        0
    """
    return len(batch["image"]) - list(batch.get("name", ())).count(FILLER)
