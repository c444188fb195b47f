"""Pictures kept as they were decoded, so that only the first epoch pays for JPEG and PNG."""

import hashlib
import io
import mmap
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import numpy as np

from densepred.data.atomic import whole_file

DECODED = "DENSEPRED_DECODED"
"""The environment's variable for the folder to keep decoded pictures in; nothing is kept without it."""
_LONGEST_HEADER = 128
"""Bytes of the header that np.save writes for an array of few dimensions."""
_Options = ParamSpec("_Options")
_Reader = Callable[Concatenate[Path, _Options], np.ndarray]


def keeps_decoded(read: _Reader[_Options]) -> _Reader[_Options]:
    """Makes a reader of pictures keep what it decodes, in the folder that `DENSEPRED_DECODED` names.

    A picture is decoded again when its path, its size in bytes, its time of change or the reader's options differ; what
    a reader refuses is refused every time. Kept arrays are mapped, copy on write, so that a transform that crops first
    reads no more of them than it needs, and processes share them. They take as much room as the pixels: 0.75 MB for a
    photo of 375 x 500 with its labels. The folder may be deleted at any time; where it cannot be written, a warning
    says so and the pictures are decoded every time.
    """

    @wraps(read)
    def reading(path: Path, /, *args: _Options.args, **kwargs: _Options.kwargs) -> np.ndarray:
        folder = os.environ.get(DECODED)
        kept = _place(folder, path, read.__name__, args, kwargs) if folder else None
        if kept is None:
            return read(path, *args, **kwargs)
        with suppress(OSError, ValueError):  # not there yet, or damaged
            return _mapped(kept)
        array = read(path, *args, **kwargs)
        try:
            with whole_file(Path(kept), shared=True) as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            warnings.warn(f"{DECODED}={folder}: decoded pictures cannot be kept there: {error}", stacklevel=2)
        return array

    return reading


def _place(folder: str, path: Path, *how: object) -> str | None:
    """Where the decoded picture is kept; none for what is no file, which the reader refuses."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    key = repr((os.path.abspath(path), state.st_size, state.st_mtime_ns, *how))
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return os.path.join(folder, digest[:2], f"{digest[2:40]}.npy")


def _mapped(kept: str) -> np.ndarray:
    """As np.load(kept, mmap_mode="c"), which takes a third of a millisecond, more than a crop."""
    with open(kept, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    shape, dtype, start = _header(mapped[:_LONGEST_HEADER])
    return np.frombuffer(mapped, dtype, offset=start).reshape(shape)


@lru_cache
def _header(beginning: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of an array in a .npy file, and where its values begin."""
    file = io.BytesIO(beginning)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()
