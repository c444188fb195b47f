"""Images of which one window at a time is read: .npy, TIFF of any kind that is stored plainly, others as a whole."""

import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from densepred.data.tiff import BROKEN, NONE, SUFFIXES, TiffLayout, tiff_block, tiff_layout
from densepred.errors import DataError
from densepred.inference.photos import read_photo

_KEPT = 256 * 2**20


class ImageWindows(ABC):
    """An image as what a network takes, window by window.

    Args:
        path: The file.
        channels: What the network takes; see `read_photo` for what is done to grey, transparent and deep pictures.

    Attributes:
        size: Height and width of the image.
        notes: What was done to it, for people.
    """

    size: tuple[int, int]

    def __init__(self, path: Path, channels: int = 3) -> None:
        self.path = path
        self.channels = channels
        self.notes: dict[str, None] = {}

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """A window (1, C, rows, columns), uint8, or float32 in [0, 1].

        Raises:
            DataError: If it cannot be read.
        """
        try:
            photo = read_photo(self.pixels(rows, columns), self.channels)
        except DataError as error:
            where = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise DataError(f"{self.path}, {where}: {str(error).removeprefix('the image: ')}") from error
        self.notes.update(dict.fromkeys(photo.notes))
        return photo.image[None]

    @abstractmethod
    def pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """A window (rows, columns, bands) in the file's type of number."""


def image_windows(path: str | Path, channels: int = 3) -> ImageWindows:
    """The image of a file, window by window where its format allows.

    Arrays (`.npy`, (H, W) or (H, W, C)) and TIFF (strips and tiles, BigTIFF, lossless compression) are read window by
    window. Others, and TIFF that holds palettes, JPEG or an orientation, are decoded as a whole and held, which
    `notes` tells.

    Args:
        path: The file.
        channels: What the network takes.

    Raises:
        DataError: If it is missing, damaged or no image.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npy":
        return NpyWindows(path, channels)
    if path.suffix.lower() in SUFFIXES:
        layout = tiff_layout(path)
        if layout.plain and layout.orientation in (0, 1):
            return TiffWindows(path, layout, channels)
    return WholeImage(path, channels)


class NpyWindows(ImageWindows):
    """An array (H, W) or (H, W, C) in a `.npy` file.

    Args:
        path: The file.
        channels: What the network takes.

    Raises:
        DataError: If it holds no such array.
    """

    def __init__(self, path: Path, channels: int = 3) -> None:
        super().__init__(path, channels)
        shape = self._opened().shape
        if len(shape) not in (2, 3) or 0 in shape:
            raise DataError(f"{path}: expected an image (H, W) or (H, W, C); got an array of shape {shape}.")
        self.size = (shape[0], shape[1])

    def pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """A window of the array."""
        # opened anew: what is mapped counts as this process's memory for as long as it is open
        return np.array(self._opened()[rows, columns])

    def _opened(self) -> Any:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: there is no such file.") from error
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.path}: cannot be read as an array: {error}. Write it again.") from error


class TiffWindows(ImageWindows):
    """A TIFF file's first page.

    Of what is not compressed just the window's bytes are read. Compressed strips and tiles are kept, up to 256 MiB, for
    windows beside and below.

    Args:
        path: The file.
        layout: Its header; plain.
        channels: What the network takes.

    Raises:
        DataError: If blocks of pixels are missing.
    """

    def __init__(self, path: Path, layout: TiffLayout, channels: int = 3) -> None:
        super().__init__(path, channels)
        self.layout = layout
        self.size = (layout.height, layout.width)
        self._file = _FileBytes(path)
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        if min(len(layout.offsets), len(layout.sizes)) < layout.planes * layout.down * layout.across:
            raise DataError(f"{path}: cannot be read as TIFF: blocks of pixels are missing. Write it again.")

    def pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """A window, put together from the blocks that it touches."""
        layout = self.layout
        number = layout.number.newbyteorder("=")
        self._forget(rows.start)
        window = np.zeros((rows.stop - rows.start, columns.stop - columns.start, layout.bands), number)
        high, wide = layout.block
        for plane in range(layout.planes):
            for down in range(rows.start // high, -(-rows.stop // high)):
                for across in range(columns.start // wide, -(-columns.stop // wide)):
                    self._copy((plane * layout.down + down) * layout.across + across, window, rows, columns)
        return window

    def _forget(self, row: int) -> None:
        """Drops blocks that end above a row: windows follow each other downward, in each stripe of an image."""
        for index in [one for one in self._blocks if self.layout.place(one)[0] + self.layout.block[0] <= row]:
            del self._blocks[index]

    def _copy(self, index: int, window: np.ndarray, rows: slice, columns: slice) -> None:
        """What a block and the window share."""
        layout = self.layout
        top, left, bands = layout.place(index)
        above, below = max(rows.start, top), min(rows.stop, top + layout.block[0])
        before, behind = max(columns.start, left), min(columns.stop, left + layout.block[1])
        target = window[above - rows.start : below - rows.start, before - columns.start : behind - columns.start, bands]
        inside = slice(above - top, below - top), slice(before - left, behind - left)
        try:
            if layout.compression == NONE and layout.sizes[index]:
                self._copy_bytes(index, target, *inside)
            else:
                target[:] = self._block(index)[inside]
        except (*BROKEN, zlib.error, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: cannot be read as TIFF: {error}. Write it again.") from error

    def _copy_bytes(self, index: int, target: np.ndarray, rows: slice, columns: slice) -> None:
        number, depth = self.layout.number, target.shape[2]
        pixel = depth * number.itemsize
        for row in range(rows.start, rows.stop):
            begin = self.layout.offsets[index] + (row * self.layout.block[1] + columns.start) * pixel
            line = self._file[begin : begin + (columns.stop - columns.start) * pixel]
            target[row - rows.start] = np.frombuffer(line, number).reshape(-1, depth)

    def _block(self, index: int) -> np.ndarray:
        block = self._blocks.pop(index, None)
        if block is None:
            block = tiff_block(self._file, index, self.layout)
        self._blocks[index] = block
        while sum(kept.nbytes for kept in self._blocks.values()) > _KEPT and len(self._blocks) > 1:
            self._blocks.popitem(last=False)
        return block


class WholeImage(ImageWindows):
    """A picture that is decoded as a whole and held.

    Args:
        path: The file.
        channels: What the network takes.

    Raises:
        DataError: If it cannot be read, or is so large that it has to be stored otherwise.
    """

    def __init__(self, path: Path, channels: int = 3) -> None:
        super().__init__(path, channels)
        try:
            photo = read_photo(path, channels)
        except (DataError, MemoryError) as error:
            raise DataError(
                f"{error} (PNG, JPEG and the like are decoded as a whole. What is too large for that is read window by "
                "window as .npy, (H, W, C), or as TIFF with strips or tiles.)"
            ) from error
        self.image = photo.image
        self.size = (photo.image.shape[-2], photo.image.shape[-1])
        held = f"decoded as a whole, which takes {self.image.nbytes / 2**20:.0f} MiB (.npy and plain TIFF are not)"
        self.notes.update(dict.fromkeys((*photo.notes, held)))

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """A window (1, C, rows, columns)."""
        return self.image[None, :, rows, columns]

    def pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """A window (rows, columns, C)."""
        return self.image[:, rows, columns].permute(1, 2, 0).numpy()


class _FileBytes:
    """A file's bytes, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")

    def __getitem__(self, place: slice) -> bytes:
        self.file.seek(place.start)
        return self.file.read(place.stop - place.start)

    def __del__(self) -> None:
        self.file.close()
