"""TIFF rasters of any number of bands and any type of number; OpenCV and Pillow read a few kinds, some of them wrongly.

Strips and tiles, bands interleaved or apart, either byte order, BigTIFF, every lossless compression that Pillow's
libtiff knows, both predictors. The first page alone is read.
"""

import io
import mmap
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from densepred.errors import DataError

SUFFIXES = (".tif", ".tiff")
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, BANDS, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, FORMAT = 317, 322, 323, 324, 325, 339
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
NONE, OLD_JPEG, JPEG, DEFLATES = 1, 6, 7, (8, 32946)
PREDICTED = (5, *DEFLATES, 34925, 50000)
"""Compressions that have a predictor: LZW, Deflate, LZMA, Zstandard. With others libtiff ignores the entry, as here."""
RAW_COLOURS = (1, 2)
"""Photometric interpretations whose numbers are what they say: black is zero, RGB."""
LARGEST = 2**33
"""So many numbers are not in one image; a damaged header may claim them."""
BROKEN = (struct.error, KeyError, IndexError, ValueError, ZeroDivisionError, OverflowError, MemoryError, OSError)
"""What a damaged header or block ends in."""

Bytes = bytes | mmap.mmap


class Sliceable(Protocol):
    """Bytes, or what reads them from a file."""

    def __getitem__(self, place: slice, /) -> bytes:
        """The bytes from `place.start` to `place.stop`."""


class TiffLayout(NamedTuple):
    """What the header of the first page says."""

    height: int
    width: int
    bands: int
    dtype: np.dtype | None
    compression: int
    predictor: int
    photometric: int
    apart: bool
    block: tuple[int, int]
    tiled: bool
    offsets: list[int]
    sizes: list[int]
    orientation: int = 1

    @property
    def number(self) -> np.dtype:
        """The type of number, in the file's byte order."""
        return self.dtype or np.dtype(np.uint8)

    @property
    def planes(self) -> int:
        """How often the image's blocks follow each other: once a band where bands are apart."""
        return self.bands if self.apart else 1

    @property
    def down(self) -> int:
        """Blocks from top to bottom."""
        return -(-self.height // self.block[0])

    @property
    def across(self) -> int:
        """Blocks from left to right."""
        return -(-self.width // self.block[1])

    def place(self, index: int) -> tuple[int, int, slice]:
        """First row and column of a block, and its bands."""
        plane, place = divmod(index, self.down * self.across)
        top, left = (place // self.across) * self.block[0], (place % self.across) * self.block[1]
        return top, left, slice(plane, plane + 1) if self.apart else slice(0, self.bands)

    @property
    def plain(self) -> bool:
        """Whether `read_tiff` can read it; palettes, JPEG in TIFF and packed bits are left to Pillow."""
        lossless = self.compression not in (OLD_JPEG, JPEG)
        return self.dtype is not None and lossless and self.photometric in RAW_COLOURS


def tiff_layout(path: Path) -> TiffLayout:
    """The header of a TIFF file, without reading its pixels.

    Raises:
        DataError: If the file is missing, or its header is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _layout(content)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except BROKEN as error:
        raise DataError(_broken(path, error)) from error


def read_tiff(content: bytes, path: Path) -> np.ndarray:
    """The numbers of a TIFF whose layout is plain.

    Args:
        content: The file's bytes.
        path: Its name, for errors.

    Shape:
        returns: (H, W, bands), in the file's type of number.

    Raises:
        DataError: If it is damaged or truncated.
    """
    try:
        layout = _layout(content)
        if min(len(layout.offsets), len(layout.sizes)) < layout.planes * layout.down * layout.across:
            raise ValueError("blocks of pixels are missing")
        image = np.zeros((layout.height, layout.width, layout.bands), layout.number.newbyteorder("="))
        for index in range(layout.planes * layout.down * layout.across):
            top, left, bands = layout.place(index)
            block = tiff_block(content, index, layout)
            corner = image[top : top + block.shape[0], left : left + block.shape[1], bands]
            corner[:] = block[: corner.shape[0], : corner.shape[1]]
    except (*BROKEN, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(_broken(path, error)) from error
    return image


def tiff_block(content: Sliceable, index: int, layout: TiffLayout) -> np.ndarray:
    """One strip or tile (rows, columns, bands) in this machine's byte order; a tile may hang over the image's border.

    Args:
        content: The file's bytes.
        index: The block's place in the file's list.
        layout: Of the file; plain.

    Raises:
        Exception: One of `BROKEN`, or `zlib.error`, or Pillow's `DecompressionBombError`, if it is damaged.
    """
    top, left, bands = layout.place(index)
    rows, depth = min(layout.block[0], layout.height - top), bands.stop - bands.start
    begin, size = layout.offsets[index], layout.sizes[index]
    if size == 0:  # a tile that was never written holds zeros
        return np.zeros((rows, min(layout.block[1], layout.width - left), depth), layout.number.newbyteorder("="))
    shape = (layout.block[0] if layout.tiled else rows, layout.block[1], depth)
    return _block(content[begin : begin + size], shape, layout.number, layout)


def _layout(content: Bytes) -> TiffLayout:
    tags, order = _tags(content)
    bands = tags.get(BANDS, [1])[0]
    height, width = tags[HEIGHT][0], tags[WIDTH][0]
    if not height or not width or not bands or height * width * bands > LARGEST:
        raise ValueError(f"its header says {height} x {width} pixels, {bands} bands")
    tiled = TILE_OFFSETS in tags
    rows = min(tags.get(ROWS_PER_STRIP, [height])[0], height)
    return TiffLayout(
        height,
        width,
        bands,
        _dtype(set(tags.get(BITS, [1])), set(tags.get(FORMAT, [1])), order),
        tags.get(COMPRESSION, [NONE])[0],
        tags.get(PREDICTOR, [1])[0] if tags.get(COMPRESSION, [NONE])[0] in PREDICTED else 1,
        tags.get(PHOTOMETRIC, [1])[0],
        tags.get(PLANAR, [1])[0] == 2 and bands > 1,
        (tags[TILE_HEIGHT][0], tags[TILE_WIDTH][0]) if tiled else (rows, width),
        tiled,
        tags[TILE_OFFSETS if tiled else STRIP_OFFSETS],
        tags[TILE_BYTES if tiled else STRIP_BYTES],
        tags.get(ORIENTATION, [1])[0],
    )


def _tags(content: Bytes) -> tuple[dict[int, list[int]], str]:
    """The whole-number entries of the first page, by tag; and the byte order."""
    order = {b"II": "<", b"MM": ">"}[content[:2]]
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    count_code, place_code, inline = ("Q", "Q", 8) if big else ("H", "I", 4)
    (start,) = struct.unpack_from(f"{order}{place_code}", content, 8 if big else 4)
    (entries,) = struct.unpack_from(f"{order}{count_code}", content, start)
    position = start + struct.calcsize(count_code)
    tags: dict[int, list[int]] = {}
    for _ in range(entries):
        tag, kind, count = struct.unpack_from(f"{order}HH{place_code}", content, position)
        value, position = position + 4 + inline, position + 4 + 2 * inline
        if kind not in INTEGERS:
            continue
        code = f"{order}{count}{INTEGERS[kind]}"
        if struct.calcsize(code) > inline:
            (value,) = struct.unpack_from(f"{order}{place_code}", content, value)
        # before unpacking, which would make room for as many numbers as a damaged count asks for
        if value + struct.calcsize(code) > len(content):
            raise ValueError("it is truncated")
        tags[tag] = list(struct.unpack_from(code, content, value))
    return tags, order


def _dtype(bits: set[int], formats: set[int], order: str) -> np.dtype | None:
    if len(bits) > 1 or len(formats) > 1:
        return None
    (size,), (kind,) = bits, formats
    letter = {1: "u", 2: "i", 3: "f"}.get(kind)
    whole = size in (8, 16, 32, 64) and (letter != "f" or size > 8)
    return np.dtype(f"{order}{letter}{size // 8}") if letter and whole else None


def _block(data: bytes, shape: tuple[int, int, int], dtype: np.dtype, layout: TiffLayout) -> np.ndarray:
    """One strip or tile as (rows, columns, bands) in this machine's byte order."""
    rows, columns, bands = shape
    line = columns * bands * dtype.itemsize
    raw = _unpacked(data, rows, line, layout.compression)
    if len(raw) < rows * line:
        raise ValueError("a block of pixels is cut short: it is truncated")
    flat = np.frombuffer(raw, np.uint8, rows * line)
    if layout.predictor == 3:
        # differences of bytes; then all first bytes of a line, the most significant, all second ones, ...
        summed = np.cumsum(flat.reshape(rows, -1, bands), axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, -1)
        flat = np.ascontiguousarray(summed.transpose(0, 2, 1)).reshape(-1)
        return flat.view(dtype.newbyteorder(">")).reshape(shape).astype(dtype.newbyteorder("="))
    block = flat.view(dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if layout.predictor == 2:
        bits = block.view(f"u{dtype.itemsize}")
        return np.cumsum(bits, axis=1, dtype=bits.dtype).view(block.dtype)
    return block


def _unpacked(data: bytes, rows: int, line: int, compression: int) -> bytes:
    if compression == NONE:
        return data
    if compression in DEFLATES:
        return zlib.decompressobj().decompress(data, rows * line)
    # libtiff unpacks bytes whatever they mean: told that they are a grey picture, it knows every compression
    header = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    entries = [
        (WIDTH, line), (HEIGHT, rows), (BITS, 8), (COMPRESSION, compression), (PHOTOMETRIC, 1), (STRIP_OFFSETS, 8),
        (BANDS, 1), (ROWS_PER_STRIP, rows), (STRIP_BYTES, len(data)),
    ]  # fmt: skip
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    page = struct.pack("<H", len(entries)) + tags + bytes(4)
    with Image.open(io.BytesIO(header + page)) as picture:
        return picture.tobytes()


def _broken(path: Path, error: BaseException) -> str:
    return f"{path}: cannot be read as TIFF: {error}. Write it again, or take it out of the list."
