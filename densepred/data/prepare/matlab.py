"""MATLAB files (v4 to v7) of a few kilobytes, read without trust."""

import io
import struct
import zlib

import numpy as np
from scipy.io import loadmat

HEADER = 128
COMPRESSED = 15
LARGEST = 64 << 20
"""Bytes, unpacked: the largest of the sets' files has some hundred thousand."""


def read_mat(content: bytes, name: str) -> np.ndarray:
    """A variable of a MATLAB file.

    Raises:
        ValueError: If the file is damaged, has no such variable, or unpacks to more than any of the data sets' does.
    """
    _refuse_bomb(content)
    try:
        found = loadmat(io.BytesIO(content), variable_names=[name])
    except Exception as error:  # the reader fails in a dozen ways on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
    if name not in found:
        raise ValueError(f"there is no {name} in it")
    return np.asarray(found[name])


def _refuse_bomb(content: bytes) -> None:
    """Unpacks each compressed element as far as is allowed: MATLAB's format says nowhere how large it becomes."""
    if len(content) > LARGEST:
        raise ValueError(f"it has {len(content):,} bytes, expected at most {LARGEST:,}")
    if content[126:128] not in (b"IM", b"MI"):
        return  # v4 does not compress
    order = "<" if content[126:128] == b"IM" else ">"
    position, total = HEADER, 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        if kind == COMPRESSED:
            unpacking = zlib.decompressobj()
            try:
                total += len(unpacking.decompress(content[position + 8 : position + 8 + size], LARGEST + 1 - total))
            except zlib.error:
                return  # the reader says what is damaged
            if total > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        position += 8 + size
