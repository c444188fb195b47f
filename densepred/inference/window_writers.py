"""Files that are written window by window, and are there whole or not at all: .npy and tiled BigTIFF."""

import math
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from densepred.data import tiff
from densepred.data.atomic import whole_file
from densepred.errors import DataError

CELL = 256
"""Height and width of a TIFF file's tiles; windows begin at multiples of it, and end there or with the image."""

_SHORT, _LONG, _LONG8 = 3, 4, 16
_PALETTE, _COLOUR_MAP = 3, 320
_EXTRA_SAMPLES = 338


class WindowWriter(ABC):
    """Writes an image window by window, as a context: another name until it ends, and nothing after an error.

    Args:
        path: The file.
        shape: (H, W), or (H, W, bands).
        number: The type of number.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], number: np.dtype) -> None:
        self.path = path
        self.shape = shape
        self.number = number
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(whole_file(self.path))
            self._file = stack.enter_context(temporary.open("wb"))
            self.begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self.end()

    @abstractmethod
    def begin(self) -> None:
        """Writes what comes first."""

    @abstractmethod
    def write(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Writes a window (rows, columns) or (rows, columns, bands); each pixel once, in any order."""

    @abstractmethod
    def end(self) -> None:
        """Writes what comes last."""


class NpyWriter(WindowWriter):
    """An array in a `.npy` file. Its room on the disk is taken at once, so that a full disk shows before the work.

    Args:
        path: The file.
        shape: (H, W), or (H, W, bands).
        number: The type of number.
    """

    def begin(self) -> None:
        """Writes the header and takes the room."""
        header = {"descr": np.lib.format.dtype_to_descr(self.number), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        length = math.prod(self.shape) * self.number.itemsize
        if hasattr(os, "posix_fallocate"):
            self._file.flush()
            os.posix_fallocate(self._file.fileno(), self._start, length)
        else:
            self._file.truncate(self._start + length)

    def write(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Writes a window, row by row."""
        values = np.ascontiguousarray(values, self.number)
        pixel = math.prod(self.shape[2:]) * self.number.itemsize
        for row, line in zip(range(rows.start, rows.stop), values, strict=True):
            self._file.seek(self._start + (row * self.shape[1] + columns.start) * pixel)
            self._file.write(line.tobytes())

    def end(self) -> None:
        """Leaves nothing in Python's own memory, where a full disk would not show."""
        self._file.flush()


class TiffWriter(WindowWriter):
    """A BigTIFF of deflated tiles of 256 x 256 pixels, as GDAL, QGIS, libvips, OpenCV and Pillow read.

    Args:
        path: The file.
        shape: (H, W), or (H, W, bands); of bytes, three bands are red, green and blue.
        number: The type of number.
        palette: 256 colours in a row (red, green, blue), for indices of one byte.
        threads: That deflate.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        number: np.dtype,
        palette: Sequence[int] | None = None,
        threads: int = 2,
    ) -> None:
        super().__init__(path, shape, number)
        self.bands = shape[2] if len(shape) == 3 else 1
        self.palette = palette
        self.threads = threads
        self.across = -(-shape[1] // CELL)
        tiles = -(-shape[0] // CELL) * self.across
        self.offsets, self.sizes = [0] * tiles, [0] * tiles
        # differences of neighbours deflate better, but not those of indices or of floating point
        self.differences = palette is None and number.kind in "iu"

    def begin(self) -> None:
        """Leaves room for the header, which tells where the directory lies and is known at the end."""
        self._file.write(bytes(16))

    def write(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Writes the tiles of a window."""
        values = values.reshape(*values.shape[:2], self.bands)
        places = [(top, left) for top in range(*_range(rows)) for left in range(*_range(columns))]
        with ThreadPoolExecutor(self.threads) as pool:
            corners = ((top - rows.start, left - columns.start) for top, left in places)
            deflated = pool.map(lambda corner: self._deflated(values, *corner), corners)
            for (top, left), data in zip(places, deflated, strict=True):
                index = top // CELL * self.across + left // CELL
                self.offsets[index], self.sizes[index] = self._file.tell(), len(data)
                self._file.write(data)

    def end(self) -> None:
        """Writes the directory, and the header that points to it."""
        bits, kind = self.number.itemsize * 8, {"u": 1, "i": 2, "f": 3}[self.number.kind]
        colours = self.palette is None and self.bands == 3 and bits == 8
        entries = {
            tiff.WIDTH: (_LONG, [self.shape[1]]),
            tiff.HEIGHT: (_LONG, [self.shape[0]]),
            tiff.BITS: (_SHORT, [bits] * self.bands),
            tiff.COMPRESSION: (_SHORT, [tiff.DEFLATES[0]]),
            tiff.PHOTOMETRIC: (_SHORT, [_PALETTE if self.palette else 2 if colours else 1]),
            tiff.BANDS: (_SHORT, [self.bands]),
            tiff.PLANAR: (_SHORT, [1]),
            tiff.PREDICTOR: (_SHORT, [2 if self.differences else 1]),
            tiff.TILE_WIDTH: (_SHORT, [CELL]),
            tiff.TILE_HEIGHT: (_SHORT, [CELL]),
            tiff.TILE_OFFSETS: (_LONG8, self.offsets),
            tiff.TILE_BYTES: (_LONG8, self.sizes),
            tiff.FORMAT: (_SHORT, [kind] * self.bands),
        }
        if self.palette:
            parts = [self.palette[band::3] for band in range(3)]
            entries[_COLOUR_MAP] = (_SHORT, [part * 257 for band in parts for part in band])
        elif self.bands > 1 and not colours:
            entries[_EXTRA_SAMPLES] = (_SHORT, [0] * (self.bands - 1))
        directory = self._directory(entries)
        self._file.seek(0)
        self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, directory))

    def _directory(self, entries: dict[int, tuple[int, list[int]]]) -> int:
        """Writes the entries, and says where; values that don't fit into one lie before them."""
        rows = []
        for tag, (kind, values) in sorted(entries.items()):
            data = struct.pack(f"<{len(values)}{tiff.INTEGERS[kind]}", *values)
            if len(data) > 8:
                self._file.write(bytes(-self._file.tell() % 8))
                place = self._file.tell()
                self._file.write(data)
                data = struct.pack("<Q", place)
            rows.append(struct.pack("<HHQ", tag, kind, len(values)) + data.ljust(8, b"\0"))
        self._file.write(bytes(-self._file.tell() % 8))
        start = self._file.tell()
        self._file.write(struct.pack("<Q", len(rows)) + b"".join(rows) + bytes(8))
        return start

    def _deflated(self, values: np.ndarray, top: int, left: int) -> bytes:
        tile = np.zeros((CELL, CELL, self.bands), self.number.newbyteorder("<"))
        part = values[top : top + CELL, left : left + CELL]
        tile[: part.shape[0], : part.shape[1]] = part
        if self.differences:
            tile[:, 1:] -= tile[:, :-1].copy()
        return zlib.compress(tile.tobytes(), 4)


def window_writer(
    path: Path, shape: tuple[int, ...], number: np.dtype, palette: Sequence[int] | None = None
) -> WindowWriter:
    """A writer of the format that the file's name says.

    Args:
        path: Ends in .npy, .tif or .tiff.
        shape: (H, W), or (H, W, bands).
        number: The type of number.
        palette: 256 colours in a row, for labels in TIFF.

    Raises:
        DataError: If the ending is another.
    """
    match path.suffix.lower():
        case ".npy":
            return NpyWriter(path, shape, number)
        case ".tif" | ".tiff":
            return TiffWriter(path, shape, number, palette)
    raise DataError(f"{path}: large images are written window by window as .npy, .tif or .tiff; no other format can.")


def _range(part: slice) -> tuple[int, int, int]:
    return part.start, part.stop, CELL
