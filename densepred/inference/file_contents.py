"""Predictions as the content of files: labels with a palette, millimetres, normals as colours, arrays."""

import io
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densepred.errors import DataError
from densepred.palettes import VOID_COLOUR
from densepred.sample import VOID
from densepred.tasks.base import Task


def entropy_share(probabilities: Tensor, task: Task) -> Tensor:
    """Entropy (H, W) of class probabilities (planes, H, W), as a share of the largest possible one.

    Of labels that hold each by itself the mean over the questions.

    Example:
        >>> from densepred.tasks.segmentation import Segmentation
        >>> entropy_share(torch.full((4, 1, 1), 0.25), Segmentation(4)).item()
        1.0
    """
    if task.distribution == "exclusive":
        nats: Tensor = torch.special.entr(probabilities).sum(0)
        return nats / float(np.log(len(probabilities)))
    nats = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    return nats.mean(0) / float(np.log(2))


def confidence(probabilities: Tensor, task: Task) -> Tensor:
    """Probability (H, W) of the label that is predicted; of labels that hold each by itself the least sure answer's."""
    if task.distribution == "exclusive":
        return probabilities.amax(0)
    return torch.maximum(probabilities, 1 - probabilities).amin(0)


def label_bytes(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> bytes:
    """Labels (H, W) as a PNG: uint8 as indices into the palette (255 is void), wider ones as grey of 16 bits."""
    if labels.dtype != np.uint8:
        return png_bytes(labels.astype(np.uint16))
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(label_palette(palette))
    content = io.BytesIO()
    # deflating harder makes flat maps a tenth smaller and takes three times as long
    image.save(content, format="PNG", compress_level=3)
    return content.getvalue()


def label_palette(palette: Sequence[Sequence[int]]) -> list[int]:
    """256 colours in a row: the classes', black, and void at its place."""
    colours = [list(colour) for colour in palette[:VOID]]
    colours += [[0, 0, 0]] * (VOID - len(colours)) + [list(VOID_COLOUR)]
    return [part for colour in colours for part in colour]


def depth_bytes(metres: np.ndarray) -> bytes:
    """Depth (H, W) as a PNG of 16 bits in millimetres; what is known is 1 to 65535, 0 is missing."""
    return png_bytes(millimetres(metres))


def millimetres(metres: np.ndarray) -> np.ndarray:
    """Depth as uint16; what is known is 1 to 65535, 0 is missing."""
    known = np.isfinite(metres) & (metres > 0)
    values = np.where(known, np.where(known, metres, 1).astype(np.float64) * 1000, 0)
    return np.where(known, values.round().clip(1, 65535), 0).astype(np.uint16)


def normals_bytes(normals: np.ndarray) -> bytes:
    """Unit vectors (H, W, 3) as a PNG of 8 bits, n = 2 v / 255 - 1; the zero vector, missing, becomes 128."""
    return png_bytes(normals_colours(normals))


def normals_colours(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3) as uint8, n = 2 v / 255 - 1; the zero vector, missing, becomes 128."""
    values = ((normals.astype(np.float32) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    values[~normals.any(-1)] = 128
    return values


def array_bytes(array: np.ndarray) -> bytes:
    """An array as .npy."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array))
    return content.getvalue()


def png_bytes(pixels: np.ndarray) -> bytes:
    """Grey (H, W) or RGB (H, W, 3), of 8 or 16 bits, as a PNG."""
    return _encoded(".png", pixels, [])


def jpeg_bytes(picture: Tensor) -> bytes:
    """A picture (3, H, W), uint8 RGB, as a JPEG of quality 92 for people to look at."""
    return _encoded(".jpg", picture.permute(1, 2, 0).numpy(), [cv2.IMWRITE_JPEG_QUALITY, 92])


def _encoded(ending: str, pixels: np.ndarray, options: list[int]) -> bytes:
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else np.ascontiguousarray(pixels)
    try:
        return bytes(cv2.imencode(ending, ordered, options)[1])
    except cv2.error as error:
        height, width = pixels.shape[:2]
        raise DataError(f"A picture of {height} x {width} is too large for a {ending} file: {error}") from error
