"""Pictures that are the same, or nearly, found by fingerprints."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]

NEAR = 10
"""Pictures whose perceptual hashes differ in so many of the 128 bits, or fewer, are nearly the same. Compressed anew or
halved they differ in 5 at most; those of different splits of CamVid, VOC, NYU and ISBI in 19 at least."""
_FLAT = 12
"""Hashes with fewer bits set (or unset) are of pictures without structure, which all look alike."""
_ROWS = 4096


class Fingerprint(NamedTuple):
    """By what a picture is found again.

    Attributes:
        file: Digest of its file's bytes; empty where there is no file.
        pixels: Digest of its pixels.
        bits: Perceptual hash (128,): where brightness grows to the right, and downwards, on a grid of eight by eight.
            It hardly changes when a picture is resized or compressed.
    """

    file: bytes
    pixels: bytes
    bits: Bits


def fingerprint(path: Path | None, image: np.ndarray) -> Fingerprint:
    """Of an image (H, W, C), and the file it was read from."""
    file = _digest(path.read_bytes()) if path is not None and path.is_file() else b""
    pixels = _digest(np.ascontiguousarray(image).data, str(image.shape).encode())
    return Fingerprint(file, pixels, perceptual_bits(image))


def perceptual_bits(image: np.ndarray) -> Bits:
    """The difference hash, in both directions.

    Reference:
        Krawetz. Kind of Like That. The Hacker Factor Blog, 2013.

    Example:
        >>> ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None]
        >>> perceptual_bits(ramp).reshape(2, 64).sum(1).tolist()
        [64, 0]
    """
    small = cv2.resize(np.ascontiguousarray(image[..., :4]), (36, 36), interpolation=cv2.INTER_AREA)
    grey = np.nan_to_num(small.reshape(36, 36, -1).mean(-1, dtype=np.float32))
    right = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    down = cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA)
    return np.concatenate([(right[:, 1:] > right[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])


def nearest(those: Bits, among: Bits) -> Iterator[tuple[int, int, int]]:
    """For each picture that has a near one among others: its place, the nearest's place, and how many bits differ.

    Shape:
        those: (N, 128).
        among: (M, 128).
    """
    if not len(those) or not len(among):
        return
    # of vectors of -1 and 1 the scalar product counts bits that agree less those that differ
    signs = 2 * among.astype(np.float32) - 1
    structured = [_structured(bits) for bits in (those, among)]
    for start in range(0, len(those), _ROWS):
        rows = 2 * those[start : start + _ROWS].astype(np.float32) - 1
        apart = (rows.shape[1] - rows @ signs.T) / 2
        apart[:, ~structured[1]] = np.inf
        found = apart.argmin(1)
        for row, place in enumerate(found.tolist()):
            if apart[row, place] <= NEAR and structured[0][start + row]:
                yield start + row, place, int(apart[row, place])


def _structured(bits: Bits) -> Bits:
    count = bits.sum(1)
    return np.asarray((count >= _FLAT) & (count <= bits.shape[1] - _FLAT))


def _digest(content: bytes | memoryview, also: bytes = b"") -> bytes:
    digest = blake2b(also, digest_size=16)
    digest.update(content)
    return digest.digest()
