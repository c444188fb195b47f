"""Anyone's image files as the image of a sample: 8 or 16 bits or floats, any number of bands, grey, alpha, EXIF."""

import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from densepred.data.images import read_bytes, read_image, read_npy, refuse_damage
from densepred.data.tiff import SUFFIXES, read_tiff, tiff_layout
from densepred.errors import ConfigurationError, DataError
from densepred.sample import valid_depth

ARRAYS = (*SUFFIXES, ".npy")
"""Files whose bands mean what the user says, not colours and alpha."""
JPEGS = (".jpg", ".jpeg")
ROTATED = (*JPEGS, ".webp")
"""Files that cameras write with an orientation."""
WHITE = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}


def read_raster(path: Path) -> np.ndarray:
    """The numbers of a picture, a TIFF or a .npy array as they are stored; colours as RGB, EXIF orientation ignored.

    Shape:
        returns: (H, W, bands), in the file's own type of number.

    Raises:
        DataError: If the file is missing, damaged, or no raster.
    """
    if path.suffix.lower() == ".npy":
        array = np.asarray(read_npy(path))
        if array.ndim > 3 or array.dtype.kind not in "buif":
            raise DataError(f"{path}: expected numbers (H, W) or (H, W, bands), got {array.dtype} of {array.shape}.")
        return array if array.ndim == 3 else array[..., None]
    content = read_bytes(path)
    if path.suffix.lower() in SUFFIXES:
        return read_tiff(content, path) if tiff_layout(path).plain else _by_pillow(content, path)
    refuse_damage(content, path)
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        return _by_pillow(content, path)
    if pixels.ndim == 2:
        return pixels[..., None]
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _by_pillow(content: bytes, path: Path) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            plain = picture.mode in {"L", "I;16", "F", "RGB", "RGBA"}
            pixels = np.array(picture if plain else picture.convert("L" if picture.mode == "1" else "RGB"))
    # Pillow raises nearly anything over damaged files
    except (Exception, Image.DecompressionBombError) as error:
        cause = "it is damaged from its start, or no picture" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be read: {cause}. Fetch it again, or take it out of the list.") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def orientation(path: Path) -> int:
    """The EXIF orientation of a JPEG or WebP, 1 (upright as stored) to 8; 1 where nothing says it."""
    if path.suffix.lower() not in ROTATED:
        return 1
    try:
        with Image.open(path) as picture:
            return int(picture.getexif().get(ExifTags.Base.Orientation, 1)) or 1
    except Exception:  # damaged files make Pillow raise anything; who reads the pixels tells it
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored, turned as an EXIF orientation says: mirrored in 2, 4, 5 and 7, then turned by quarters.

    Example:
        >>> upright(np.array([[1, 2, 3]]), 6).tolist()
        [[1], [2], [3]]
    """
    mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(mirrored, quarters))


class DepthReader(NamedTuple):
    """Reads depth in metres from grey PNG or TIFF of 16 bits, or from floats in TIFF or .npy.

    Args:
        scale: Metres of one unit of the file. None takes a millimetre for whole numbers, a metre for floats.
        missing: The file's number for missing depth, beside 0, numbers below it and those that are not finite.
    """

    scale: float | None = None
    missing: float | None = None

    def __call__(self, path: Path) -> np.ndarray:
        """Depth (H, W), float32 metres, 0 where missing."""
        stored = read_raster(path)
        if stored.shape[2] != 1:
            raise DataError(
                f"{path}: expected depth in one channel, but it has {stored.shape[2]}: pictures of depth in "
                "false colours hold no metres. Write the metric one."
            )
        if stored.dtype.kind not in "uif" or (stored.dtype == np.uint8 and self.scale is None):
            raise DataError(
                f"{path}: expected depth in 16 bits or floats, but it is {stored.dtype}. Depth of 8 bits is usually "
                "scaled for viewing; write the metric one, or set data.depth_scale to the metres of one unit."
            )
        scale = self.scale or (1.0 if stored.dtype.kind == "f" else 0.001)
        metres: np.ndarray = stored[..., 0].astype(np.float32) * np.float32(scale)
        known = valid_depth(metres)
        if self.missing is not None:
            known &= stored[..., 0] != self.missing
        return np.where(known, metres, np.float32(0))


class ImageReader:
    """Reads image files as one kind of image: of so many channels, in one range.

    Pictures of 8 bits stay uint8. All others become float32 with 1 as white: 16 bits divided by 65535, floats as they
    are, or divided by `white`, above which they are cut. Values that are not finite become 0.

    Args:
        channels: 3: RGB, of grey pictures the grey three times; 1: grey, of colour pictures their luminance; any other
            number: the bands of the file, as many. With 1 and 3, what is transparent lies on white paper.
        bands: The bands of the file to take, counted from 0, in this order; `channels` then says nothing.
        white: The file's number that becomes 1, such as 10000 for reflectance in ten-thousandths, 4095 for 12 bits.
        upright: Whether pictures are turned as their EXIF orientation says. None refuses those that have one.

    Raises:
        ConfigurationError: If a number is not above 0.
        DataError: On a call, if the file is broken, has other bands, values above white, or an orientation with
            `upright` not said.
    """

    def __init__(
        self,
        channels: int = 3,
        bands: tuple[int, ...] | None = None,
        white: float | None = None,
        upright: bool | None = None,
    ) -> None:
        if channels < 1 or (white is not None and white <= 0) or (bands is not None and min(bands, default=-1) < 0):
            raise ConfigurationError(
                f"channels must be at least 1, white above 0, bands counted from 0; got channels {channels}, white "
                f"{white}, bands {bands}."
            )
        self.channels = len(bands) if bands else channels
        self.bands = list(bands) if bands else None
        self.white = white
        self.upright = upright

    def __call__(self, path: Path, floating: bool | None = None) -> np.ndarray:
        """The image (H, W, C); `floating` makes it float32, or, when False, refuses one that is not of 8 bits."""
        turn = self.turn(path)
        photo = path.suffix.lower() in JPEGS and self.channels == 3 and self.bands is None
        image = read_image(path) if photo else self._with_channels(read_raster(path), path)
        image = self._in_range(image, floating, path)
        return np.ascontiguousarray(image) if turn == 1 else upright(image, turn)

    def turn(self, path: Path) -> int:
        """The orientation to turn a file from.

        Raises:
            DataError: If it has one and `upright` is not said.
        """
        found = orientation(path)
        if found != 1 and self.upright is None:
            raise DataError(
                f"{path}: its EXIF orientation is {found}: viewers show it turned, its pixels are stored otherwise, "
                "and labels may have been drawn on either. Set data.upright to true if the labels fit the picture as "
                "shown, to false if they fit it as stored."
            )
        return found if self.upright else 1

    def size(self, path: Path, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the image of a file, of that of the file."""
        return stored[::-1] if self.upright and orientation(path) >= 5 else stored

    def is_floating(self, path: Path) -> bool:
        """Whether the image of this file would be float32 by itself."""
        return self.white is not None or read_raster(path).dtype != np.uint8

    def _with_channels(self, image: np.ndarray, path: Path) -> np.ndarray:
        found = image.shape[2]
        if self.bands is not None:
            if max(self.bands) >= found:
                raise DataError(f"{path}: has {found} bands; bands {self.bands} (counted from 0) asks for more.")
            return image[..., self.bands]
        if found != self.channels and self.channels in (1, 3) and path.suffix.lower() not in ARRAYS:
            image = _on_paper(image) if image.shape[2] in (2, 4) else image
        if image.shape[2] == 1 and self.channels == 3:
            return image.repeat(3, axis=2)
        if image.shape[2] == 3 and self.channels == 1 and path.suffix.lower() != ".npy":
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        if image.shape[2] != self.channels:
            first = path.suffix.lower() == ".npy" and image.shape[0] == self.channels
            advice = "Store arrays as (height, width, bands). " if first else ""
            raise DataError(
                f"{path}: expected {self.channels} channels, but it has {found} (shape {image.shape}). {advice}Set "
                f"data.channels and the encoder's in_channels to {found} if all images have as many, choose some by "
                f"data.bands, or write all images alike."
            )
        return image

    def _in_range(self, image: np.ndarray, floating: bool | None, path: Path) -> np.ndarray:
        if image.dtype == np.bool_:
            image = image.astype(np.uint8) * np.uint8(255)
        eight = image.dtype == np.uint8 and self.white is None
        if eight and not floating:
            return image
        if not eight and floating is False:
            raise DataError(
                f"{path}: is {image.dtype}, but the first image of the set is of 8 bits. Set data.white to the number "
                "that is white, which makes all of them float32, or write all images alike."
            )
        white = self.white or WHITE.get(image.dtype.name)
        if white is None:
            raise DataError(f"{path}: is {image.dtype}, of which no number is white by itself. Set data.white.")
        scaled = image.astype(np.float32) * np.float32(1 / white)
        if not np.isfinite(scaled).all():
            scaled = np.nan_to_num(scaled, copy=False, nan=0, posinf=0, neginf=0)
        if self.white is None and scaled.size and (scaled.max() > 1 or scaled.min() < 0):
            raise DataError(
                f"{path}: expected floats from 0 to 1, but they go from {scaled.min():g} to {scaled.max():g}. Set "
                "data.white to the number that is white; what is above it is cut."
            )
        return np.clip(scaled, 0, 1, out=scaled)


def _on_paper(pixels: np.ndarray) -> np.ndarray:
    """Colours over white paper, by alpha, the last channel."""
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    if (alpha == top).all():
        return colours
    share = alpha.astype(np.float32) / top
    mixed: np.ndarray = colours * share + top * (1 - share)
    return mixed.round().astype(pixels.dtype) if pixels.dtype.kind == "u" else mixed
