"""Anyone's pictures as the image of a sample: upright and of the channels that a network takes."""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from densepred.data.images import read_bytes, refuse_damage, unreadable
from densepred.errors import DataError
from densepred.inference.cameras import film_focal

_ORIENTATION = 0x0112
_PAPER = 255
_DEEP = 65535


class Photo(NamedTuple):
    """A picture that a network can take.

    Args:
        image: (C, H, W), uint8, or float32 in [0, 1] where the picture has more than 8 bits.
        name: Of its file; empty without one.
        notes: What was done to it, for people.
        focal_on_film: As its EXIF data tell, see `film_focal`; 0 where they don't.
    """

    image: Tensor
    name: str = ""
    notes: tuple[str, ...] = ()
    focal_on_film: float = 0.0


def read_photo(source: Any, channels: int = 3) -> Photo:
    """A picture from a file, an array, a tensor or a Pillow image.

    Files are turned upright as their EXIF orientation says. Grey becomes three equal channels, colour becomes grey
    (ITU-R BT.601) where a network takes one channel, and what is transparent lies on white paper. Pictures of 16 bits
    are divided by 65535.

    Args:
        source: A path; an array (H, W) or (H, W, C); a tensor (C, H, W); a Pillow image. RGB, uint8, uint16, or
            floating point in [0, 1].
        channels: What the network takes.

    Raises:
        DataError: If it cannot be read, is no picture, or of other channels.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        pixels, notes, focal = _from_file(path)
        return _photo(pixels, channels, path.name, notes, str(path))._replace(focal_on_film=focal)
    if isinstance(source, Image.Image):
        return _from_pillow(source, channels)
    if isinstance(source, Tensor):
        if source.ndim != 3:
            raise DataError(f"Expected an image (C, H, W); got a tensor of shape {tuple(source.shape)}.")
        return _photo(source.detach().cpu().permute(1, 2, 0).numpy(), channels)
    if isinstance(source, np.ndarray):
        return _photo(source, channels)
    raise DataError(
        f"Expected a path, an array (H, W, C), a tensor (C, H, W) or a Pillow image; got {type(source).__name__}."
    )


def _from_pillow(picture: Image.Image, channels: int) -> Photo:
    try:
        pixels = np.asarray(_plain(ImageOps.exif_transpose(picture)))
        notes = _turned(picture.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # pixels are read now: damaged files make Pillow raise anything
        where = getattr(picture, "filename", "") or "The image"
        raise DataError(f"{where}: cannot be read: {str(error) or type(error).__name__}.") from error
    return _photo(pixels, channels, "", notes)._replace(focal_on_film=film_focal(picture))


def _from_file(path: Path) -> tuple[np.ndarray, tuple[str, ...], float]:
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        raise DataError(f"{path} is a folder; expected a picture's file.")
    content = read_bytes(path)
    refuse_damage(content, path)
    try:
        with Image.open(io.BytesIO(content)) as header:
            orientation = header.getexif().get(_ORIENTATION, 1)
            focal = film_focal(header)
            frames = getattr(header, "n_frames", 1)
            if header.mode in {"P", "1", "PA", "CMYK", "YCbCr", "LAB", "HSV"} or frames > 1:
                notes = (*_turned(orientation), *([f"the first of {frames} frames"] if frames > 1 else []))
                return np.asarray(_plain(ImageOps.exif_transpose(header))), notes, focal
    except Exception as error:  # damaged files make Pillow raise anything
        raise DataError(unreadable(path, str(error) or type(error).__name__)) from error
    # Pillow has no colour pictures of 16 bits
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(unreadable(path, str(error))) from error
    if pixels is None:
        raise DataError(unreadable(path, "it is truncated, damaged or no picture"))
    if pixels.ndim == 3:
        order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        pixels = cv2.cvtColor(pixels, order) if pixels.shape[2] in (3, 4) else pixels
    return _upright(pixels, orientation), _turned(orientation), focal


def _plain(image: Image.Image) -> Image.Image:
    """Palettes and other colour spaces as grey, RGB or RGBA."""
    if image.mode in {"L", "LA", "RGB", "RGBA", "I;16", "F"}:
        return image
    if image.mode == "1":
        return image.convert("L")
    transparent = image.mode == "PA" or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The eight EXIF orientations: mirrored in the even ones, then turned by quarters."""
    if orientation in (2, 4, 5, 7):
        pixels = np.fliplr(pixels)
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _turned(orientation: int) -> tuple[str, ...]:
    return () if orientation in (0, 1) else ("turned upright as its EXIF orientation says",)


def _photo(
    pixels: np.ndarray, channels: int, name: str = "", notes: tuple[str, ...] = (), where: str = "the image"
) -> Photo:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"{where}: expected an image (H, W) or (H, W, C); got an array of shape {pixels.shape}.")
    pixels, more = _in_range(pixels, where)
    pixels, yet_more = _with_channels(pixels, channels, where)
    image = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1).contiguous()
    return Photo(image, name, (*notes, *more, *yet_more))


def _in_range(pixels: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if pixels.dtype == np.uint8:
        return pixels, ()
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255, ()
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / _DEEP, ("16 bits, divided by 65535",)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{where}: expected uint8, uint16 or floating point; got {pixels.dtype}.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also where they are NaN
        raise DataError(
            f"{where}: floating point images are in [0, 1]; this one goes from {low:g} to {high:g}. Divide it by its "
            "range first."
        )
    return pixels.astype(np.float32), ()


def _with_channels(pixels: np.ndarray, channels: int, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    notes: list[str] = []
    if pixels.shape[2] in (2, 4) and channels in (1, 3):
        pixels, opaque = _on_paper(pixels)
        if not opaque:
            notes.append("what was transparent lies on white")
    found = pixels.shape[2]
    if found == channels:
        return pixels, tuple(notes)
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2), (*notes, "grey, as three equal channels")
    if found == 3 and channels == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], (*notes, "colour made grey")
    order = " Arrays are (H, W, C): transpose it, or give a tensor (C, H, W)." if pixels.shape[0] == channels else ""
    raise DataError(f"{where}: the network takes {channels} channels, the image has {found}.{order}")


def _on_paper(pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Colours over white paper, by alpha, the last channel; and whether all of it was opaque."""
    top = _PAPER if pixels.dtype == np.uint8 else 1
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    if (alpha == top).all():
        return colours, True
    share = alpha.astype(np.float32) / top
    mixed = colours * share + top * (1 - share)
    return (mixed.round().astype(np.uint8) if pixels.dtype == np.uint8 else mixed.astype(np.float32)), False
