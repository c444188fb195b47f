"""One sample, looked at: what is wrong with it, and what is counted of it."""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densepred.checking.fingerprint import Fingerprint, fingerprint
from densepred.checking.numbers import DepthSums, ImageSums, LabelSums, NormalsSums, Sums
from densepred.data.check import file_faults
from densepred.data.dataset import DenseDataset, Raw
from densepred.errors import DataError, LabelError
from densepred.geometry import pixel_rays
from densepred.sample import VOID, Kind, valid_normals, valid_segmentation

TOLERANCE = 0.01
"""So much may the length of a normal differ from 1."""


class Remark(NamedTuple):
    """Something that whoever trains should know.

    Attributes:
        what: In a word, for counting: unreadable, size, labels, depth, normals, duplicate, ...
        text: A sentence that names the file or the sample.
        unsafe: Whether training would stop, or its numbers not mean what they say.
    """

    what: str
    text: str
    unsafe: bool = True


@dataclass(frozen=True)
class Look:
    """What was found in one sample.

    Attributes:
        name: Its name.
        remarks: What is wrong with it.
        size: Height and width of its image; none where it cannot be read.
        sums: What was counted, by key.
        fingerprint: By which its picture is found again.
        overlapping: Keys of labels that are answers for every class, (H, W, C).
    """

    name: str
    remarks: list[Remark] = field(default_factory=list)
    size: tuple[int, int] | None = None
    sums: dict[str, Sums] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    overlapping: tuple[str, ...] = ()


def look_at(dataset: DenseDataset, index: int, classes: dict[str, int]) -> Look:
    """Reads a sample without transforms, and tells what is wrong with it.

    Args:
        dataset: Whose sample.
        index: Which.
        classes: How many classes there are, by key of labels, where that is known.
    """
    try:
        files = dataset.files(index)
        faults = [Remark(fault.what, fault.text) for fault in file_faults(dataset, index)] if files else []
        if faults:
            return Look(_name_of(files, index), faults)
        sample = dataset.read(index)
    except DataError as error:
        return Look(str(index), [Remark("labels" if isinstance(error, LabelError) else "unreadable", str(error))])
    except Exception as error:  # a reader of the user's own may raise anything, and the other samples are to be seen
        return Look(str(index), [Remark("unreadable", _raised(dataset, index, error))])
    return _look_into(dataset, sample, files, classes, index)


def _name_of(files: dict[str, Path], index: int) -> str:
    return files["image"].stem if "image" in files else str(index)


def _raised(dataset: DenseDataset, index: int, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    try:
        files = ", ".join(map(str, dataset.files(index).values()))
    except Exception:  # it may be the one that failed
        files = ""
    of = f" of {files}" if files else ""
    return (
        f"{type(dataset).__name__}: sample {index}{of} cannot be read: {type(error).__name__}: {error}{place}. "
        "Look at its file, or take it out of the list."
    )


def _look_into(dataset: DenseDataset, sample: Raw, files: dict[str, Path], classes: dict[str, int], index: int) -> Look:
    name = str(sample.get("name", index))
    remarks: list[Remark] = []
    sums: dict[str, Sums] = {}
    overlapping = []
    unknown = sorted(set(sample) - set(dataset.kinds))
    if unknown:
        remarks.append(Remark("keys", f"{name}: read() gave {', '.join(unknown)}, whose kind is not declared. Add it "
                                      "to `kinds` of the datamodule."))  # fmt: skip
    if "image" not in sample:
        return Look(name, [*remarks, Remark("keys", f"{name}: read() gave no image; expected the key 'image'.")])
    image = _planes(sample["image"])
    size = (image.shape[0], image.shape[1])
    for key in (key for key in sample if key not in unknown):
        where = str(files.get(key, f"{key} of {name}"))
        kind = dataset.kinds[key]
        if kind in (Kind.NAME, Kind.RAYS):  # rays have no place in the image
            continue
        array = np.asarray(sample[key])
        if kind is Kind.INTRINSICS:
            remarks += _look_at_intrinsics(array, where)
            continue
        if array.shape[:2] != size or array.ndim not in (2, 3):
            remarks.append(Remark("size", f"{where}: its size is {array.shape}, but that of its image is {size}."))
            continue
        if kind is Kind.LABEL and array.ndim == 3:
            overlapping.append(key)
        if kind is Kind.NORMALS and array.shape[-1] == 3:
            remarks += _look_at_normals(array, where)
            sums[key] = NormalsSums.of(array, _rays(sample, size))
            continue
        found, counted = _look_at_planes(kind, array, where, classes.get(key))
        remarks += found
        sums |= {key: counted} if counted is not None else {}
    return Look(name, remarks, size, sums, fingerprint(files.get("image"), image), tuple(overlapping))


def _rays(sample: Raw, size: tuple[int, int]) -> np.ndarray | None:
    matrix = np.asarray(sample.get("intrinsics", 0))
    return None if _look_at_intrinsics(matrix, "") else pixel_rays(matrix, size)


def _planes(array: Any) -> np.ndarray:
    planes = np.asarray(array)
    return planes[..., None] if planes.ndim == 2 else planes


def _look_at_planes(kind: Kind, array: np.ndarray, where: str, classes: int | None) -> tuple[list[Remark], Sums | None]:
    if kind is Kind.LABEL:
        return _look_at_labels(array, where, classes)
    planes = _planes(array)
    if kind is Kind.IMAGE:
        remarks = _look_at_image(planes, where)
        return remarks, None if remarks else ImageSums.of(planes)
    if kind is Kind.DEPTH:
        return _look_at_depth(planes[..., 0], where), DepthSums.of(planes[..., 0])
    if kind is Kind.NORMALS:
        return [Remark("normals", f"{where}: {planes.shape[-1]} planes; expected 3: x, y and z.")], None
    if not np.isfinite(planes).all() or (planes < 0).any():
        return [Remark("weight", f"{where}: weights below 0 or not finite; expected 0 or more.")], None
    return [], None


def _look_at_image(image: np.ndarray, where: str) -> list[Remark]:
    if image.dtype == np.uint8:
        return []
    if image.dtype.kind != "f":
        return [Remark("image", f"{where}: dtype {image.dtype}; expected uint8, or floating point from 0 to 1.")]
    low, high = float(np.nan_to_num(image, nan=-np.inf).min()), float(np.nan_to_num(image, nan=np.inf).max())
    if low < 0 or high > 1:
        return [Remark("image", f"{where}: values from {low:g} to {high:g}; expected 0 to 1 (or uint8).")]
    return []


def _look_at_labels(labels: np.ndarray, where: str, classes: int | None) -> tuple[list[Remark], LabelSums | None]:
    if labels.dtype.kind == "f" and not (labels % 1 == 0).all():
        return [Remark("labels", f"{where}: labels that are no whole numbers; expected class indices.")], None
    if labels.dtype.kind not in "iub":
        labels = labels.astype(np.int64)
    elif labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    limit = 2 if labels.ndim == 3 else classes
    if limit is not None and (remark := _illegal(labels, limit, where)):
        return [remark], None
    return [], LabelSums.of(labels, labels.shape[-1] if labels.ndim == 3 else classes)


def _illegal(labels: np.ndarray, classes: int, where: str) -> Remark | None:
    illegal = valid_segmentation(labels, classes) & (labels >= classes)
    if not illegal.any():
        return None
    values = ", ".join(map(str, np.unique(labels[illegal])[:5]))
    row, column = np.argwhere(illegal)[0][:2].tolist()
    return Remark(
        "labels",
        f"{where}: label value {values} in {int(illegal.sum())} pixels, first at row {row}, column {column}. Expected "
        f"0 to {classes - 1}, or missing ({VOID} in uint8, -1 in wider integers).",
    )


def _look_at_depth(depth: np.ndarray, where: str) -> list[Remark]:
    remarks = []
    strange = {"not finite": int((~np.isfinite(depth)).sum()), "negative": int((depth < 0).sum())}
    if any(strange.values()):
        found = " and ".join(f"{count} {what}" for what, count in strange.items() if count)
        remarks.append(Remark("depth", f"{where}: {found} depths; they count as missing.", unsafe=False))
    if not ((depth > 0) & np.isfinite(depth)).any():
        remarks.append(Remark("depth", f"{where}: no pixel has a depth.", unsafe=False))
    return remarks


def _look_at_normals(normals: np.ndarray, where: str) -> list[Remark]:
    remarks = []
    if infinite := int((~np.isfinite(normals).all(-1)).sum()):
        remarks.append(Remark("normals", f"{where}: {infinite} normals are not finite; they count as missing.", False))
    known = normals[valid_normals(normals, axis=-1)]
    length = np.sqrt(np.square(known, dtype=np.float64).sum(-1))
    off = np.abs(length - 1) > TOLERANCE
    if off.any():
        example = length[off][np.abs(length[off] - 1).argmax()]
        text = f"{where}: {int(off.sum())} of {len(known)} normals have another length than 1, such as {example:.3g}. "
        remarks.append(Remark("normals", f"{text}Expected unit vectors, or zero where missing."))
    elif not len(known):
        remarks.append(Remark("normals", f"{where}: no pixel has a normal.", unsafe=False))
    return remarks


def _look_at_intrinsics(matrix: np.ndarray, where: str) -> list[Remark]:
    fine = matrix.shape == (3, 3) and np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
    if fine and np.allclose(matrix[2], [0, 0, 1]):
        return []
    return [Remark("intrinsics", f"{where}: {matrix.tolist()}; expected 3 x 3 pixels with positive focal lengths, and "
                                 "0, 0, 1 in the last row.")]  # fmt: skip
