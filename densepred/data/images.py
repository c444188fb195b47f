"""Reading pictures, labels and depth from files; what cannot be read becomes one error that names file and cause."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from densepred.data.decoded import keeps_decoded
from densepred.data.jpeg import jpeg_fault
from densepred.data.png import png_fault
from densepred.errors import DataError, LabelError
from densepred.sample import VOID

MOST_PIXELS = "DENSEPRED_MAX_PIXELS"
"""The environment's variable for how many pixels a picture may have; by default as many as Pillow opens."""
LARGEST_FILE = 4 << 30

if os.environ.get(MOST_PIXELS, "").isdecimal():
    Image.MAX_IMAGE_PIXELS = (
        int(os.environ[MOST_PIXELS]) // 2
    )  # Pillow warns at that many, and refuses at twice as many


@keeps_decoded
def read_image(path: Path) -> np.ndarray:
    """A picture as RGB, as its pixels are stored: an EXIF orientation is ignored, for labels do not carry one.

    Shape:
        returns: (H, W, 3) uint8.

    Raises:
        DataError: If the file is missing, truncated, or no picture.
    """
    content = read_bytes(path)
    refuse_damage(content, path)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(unreadable(path, str(error))) from error
    if image is None:
        raise DataError(unreadable(path, "it is truncated, damaged or no picture"))
    return image


@keeps_decoded
def read_label(path: Path) -> np.ndarray:
    """Class indices, exactly as stored: of a palette image the indices, not its colours.

    Shape:
        returns: (H, W), uint8 or, from a 16-bit file, int32.

    Raises:
        DataError: If the file is missing, damaged, or holds colours.
    """
    # cv2 would expand a palette to its colours
    image = _open(io.BytesIO(read_bytes(path)), path)
    if image.mode not in {"P", "L", "1", "I", "I;16", "I;16B"}:
        raise DataError(
            f"{path}: expected class indices (an 8-bit palette or grey PNG, or 16-bit grey), but this is a "
            f"colour picture of mode {image.mode!r}. Convert it once to indices: one number for each class, "
            f"{VOID} where unlabelled."
        )
    labels = _pixels(image, path)
    return labels if labels.dtype == np.uint8 else labels.astype(np.uint8 if image.mode == "1" else np.int32)


@keeps_decoded
def read_depth(path: Path, metres: float = 0.001) -> np.ndarray:
    """Metric depth from a 16-bit PNG, 0 where missing.

    Args:
        path: The file.
        metres: What one step of the file is worth; the default is a millimetre.

    Shape:
        returns: (H, W) float32, metres.

    Raises:
        DataError: If the file is missing, damaged, or not of 16 bits.
    """
    image = _open(io.BytesIO(read_bytes(path)), path)
    if not image.mode.startswith("I"):
        raise DataError(
            f"{path}: expected depth as a 16-bit grey PNG in steps of {metres} m, but it is a picture of mode "
            f"{image.mode!r}. Depth of 8 bits is usually scaled for viewing; write the metric one."
        )
    depth: np.ndarray = _pixels(image, path).astype(np.float32) * np.float32(metres)
    return depth


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture or a .npy array, from its header alone.

    Raises:
        DataError: If there is no such file or its header is damaged.
    """
    if path.suffix == ".npy":
        shape = read_npy(path).shape
        return (shape[0], shape[1])
    with _open(path, path) as image:
        return (image.height, image.width)


def read_npy(path: Path) -> np.ndarray:
    """A .npy array, mapped rather than read.

    Raises:
        DataError: If the file is missing, truncated, no array, or one of less than two dimensions.
    """
    _refuse_special(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is evaluated, and ends in nearly anything
        raise DataError(unreadable(path, str(error) or type(error).__name__)) from error
    if not isinstance(array, np.ndarray):
        raise DataError(unreadable(path, "it is an archive of arrays (.npz); expected one array, as np.save writes it"))
    if array.ndim < 2:
        raise DataError(unreadable(path, f"expected an array (H, W, ...), got shape {array.shape}"))
    return array


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: If it cannot be read, or is empty.
    """
    _refuse_special(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(unreadable(path, error.strerror or str(error))) from error
    if not content:
        raise DataError(unreadable(path, "it is empty, 0 bytes"))
    return content


def _refuse_special(path: Path) -> None:
    """Raises a DataError for what is no file, as a folder or a pipe, and for one that no picture is as large as."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:  # names too long, or with a zero byte
        raise DataError(unreadable(path, str(error))) from error
    if not path.is_file():
        raise DataError(f"{path}: is a folder or a device; expected a file.")
    if size > LARGEST_FILE and path.suffix.lower() != ".npy":  # those are mapped, not read
        raise DataError(
            f"{path}: has {size:,} bytes; a picture's file has at most {LARGEST_FILE:,}. Cut it into parts."
        )


def refuse_damage(content: bytes, path: Path) -> None:
    """Raises a DataError where a picture must not be decoded.

    The structure of a JPEG or PNG is broken, so that decoders would fill the rest with grey; it is no picture; or it
    has more pixels than Pillow opens, which a file of some kilobytes may claim.
    """
    fault = jpeg_fault(content) or png_fault(content)
    if fault:
        raise DataError(unreadable(path, fault))
    _open(io.BytesIO(content), path).close()


def refuse_values(labels: np.ndarray, classes: int, path: Path) -> None:
    """Raises a LabelError where labels hold something else than 0 to `classes` - 1 or missing (255, or below 0)."""
    illegal = (labels >= classes) & (labels != VOID)
    if illegal.any():
        values, counts = np.unique(labels[illegal], return_counts=True)
        row, column = np.argwhere(illegal)[0].tolist()
        raise LabelError(
            f"{path}: label value {', '.join(map(str, values[:5]))} in {int(counts.sum())} pixels, first at row {row}, "
            f"column {column}. Expected 0 to {classes - 1} for the {classes} classes, or {VOID} where unlabelled."
        )


def _open(file: Path | io.BytesIO, path: Path) -> Image.Image:
    try:
        return Image.open(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except UnidentifiedImageError as error:
        cause = "it is empty, 0 bytes" if path.stat().st_size == 0 else "it is damaged from its start, or no picture"
        raise DataError(unreadable(path, cause)) from error
    except Image.DecompressionBombError as error:
        limit, size = 2 * (Image.MAX_IMAGE_PIXELS or 0), path.stat().st_size
        raise DataError(
            f"{path}: has more than {limit:,} pixels, which a file of {size:,} bytes may claim to fill the memory. Cut "
            f"it into parts, or, if you trust it, set {MOST_PIXELS} in the environment."
        ) from error
    except Exception as error:  # damaged files make Pillow raise anything
        raise DataError(unreadable(path, str(error) or type(error).__name__)) from error


def _pixels(image: Image.Image, path: Path) -> np.ndarray:
    try:
        with image:
            # a copy: the array that Pillow lends is read-only
            return np.array(image)
    except Exception as error:  # by where the damage is, Pillow raises anything
        raise DataError(unreadable(path, str(error) or type(error).__name__)) from error


def unreadable(path: Path, cause: str) -> str:
    """What to tell of a file that cannot be read."""
    return f"{path}: cannot be read: {cause}. Fetch it again, or take it out of the list."
