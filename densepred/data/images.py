"""Reading pictures, labels and depth from files; what cannot be read becomes one error that names file and cause."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from densepred.data.jpeg import jpeg_fault
from densepred.data.png import png_fault
from densepred.errors import DataError, LabelError
from densepred.sample import VOID


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
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(unreadable(path, str(error))) from error
    if array.ndim < 2:
        raise DataError(unreadable(path, f"expected an array (H, W, ...), got shape {array.shape}"))
    return array


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: If it cannot be read, or is empty.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise DataError(unreadable(path, error.strerror or str(error))) from error
    if not content:
        raise DataError(unreadable(path, "it is empty, 0 bytes"))
    return content


def refuse_damage(content: bytes, path: Path) -> None:
    """Raises a DataError where the structure of a JPEG or PNG is broken; decoders would fill the rest with grey."""
    fault = jpeg_fault(content) or png_fault(content)
    if fault:
        raise DataError(unreadable(path, fault))


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(unreadable(path, str(error))) from error


def _pixels(image: Image.Image, path: Path) -> np.ndarray:
    try:
        with image:
            # a copy: the array that Pillow lends is read-only
            return np.array(image)
    # Pillow raises any of these, by where the damage is
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(unreadable(path, str(error))) from error


def unreadable(path: Path, cause: str) -> str:
    """What to tell of a file that cannot be read."""
    return f"{path}: cannot be read: {cause}. Fetch it again, or take it out of the list."
