"""Planes upsampled a band of rows at a time, so that planes of full resolution never exist at once.

Bilinear interpolation is separable: a matrix for the rows, one for the columns. Both are narrow (a block of
neighbouring pixels reads a few neighbouring cells), so a block is a small matrix product. The columns are done first,
where there are still few rows; then every band of rows is one product, and so is its gradient, with the transposed
matrices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.largest import largest_plane
from densepred.losses.masked import without_autocast

_COLUMN_BLOCK = 64
_CACHE_ELEMENTS = 2**18
"""Elements of a band on the CPU: 1 MB in float32, so that it stays in the cache while it is worked on."""
_DEVICE_ELEMENTS = 2**24
"""Elements of a band elsewhere: 64 MB, so that few kernels are launched."""


class Block(NamedTuple):
    """Pixels `pixels`, which read cells `cells` with weights `weights` (pixels, cells)."""

    pixels: slice
    cells: slice
    weights: Tensor


def interpolation_matrix(cells: int, pixels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear weights (pixels, cells) of `F.interpolate(align_corners=False)` along one side.

    Example:
        >>> interpolation_matrix(2, 4, torch.float32, torch.device("cpu"))
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    return _weights(cells, pixels, slice(0, pixels), slice(0, cells), dtype, device)


def _weights(
    cells: int, pixels: int, some_pixels: slice, some_cells: slice, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A part of the interpolation matrix."""
    centres = torch.arange(some_pixels.start, some_pixels.stop, dtype=dtype, device=device) + 0.5
    places = (centres * (cells / pixels) - 0.5).clamp(0, cells - 1)
    distance = places[:, None] - torch.arange(some_cells.start, some_cells.stop, dtype=dtype, device=device)
    return (1 - distance.abs()).clamp(min=0)


def blocks(cells: int, pixels: int, step: int, like: Tensor) -> list[Block]:
    """The interpolation matrix cut into blocks of `step` pixels, each with the few cells that it reads."""
    scale = cells / pixels
    cut = []
    for start in range(0, pixels, step):
        stop = min(start + step, pixels)
        # a cell more on either side than needed: its weight is 0, and rounding cannot lose one whose weight is not
        first = max(0, int((start + 0.5) * scale - 0.5) - 1)
        last = min(cells, int((stop - 0.5) * scale - 0.5) + 3)
        read, read_by = slice(first, last), slice(start, stop)
        cut.append(Block(read_by, read, _weights(cells, pixels, read_by, read, like.dtype, like.device)))
    return cut


class Bands:
    """Upsamples planes a band of rows at a time, and takes gradients back the same way.

    Images are taken in groups of as many as fit into the budget at low height, rows in bands that fit into it at full
    width. Rows come first in memory, so that a band is one contiguous product.

    Args:
        planes: (B, C, h, w), float32 or float64.
        size: (H, W) to upsample to.
    """

    def __init__(self, planes: Tensor, size: tuple[int, int]) -> None:
        batch, channels, height, width = planes.shape
        self.planes = planes
        self.size = size
        budget = _CACHE_ELEMENTS if planes.device.type == "cpu" else _DEVICE_ELEMENTS
        group = min(batch, max(1, budget // (channels * height * size[1])))
        self.groups = [slice(start, min(start + group, batch)) for start in range(0, batch, group)]
        rows = min(size[0], max(1, budget // (group * channels * size[1])))
        # planes as high or as wide as the image need no product
        self.as_high = height == size[0]
        self.row_blocks = blocks(height, size[0], rows, planes)
        self.column_blocks = blocks(width, size[1], _COLUMN_BLOCK, planes) if width != size[1] else []

    def widen(self, images: slice) -> Tensor:
        """Planes of a group of images at full width, rows first: (h, G, C, W)."""
        planes = self.planes[images].permute(2, 0, 1, 3)
        if not self.column_blocks:
            return planes if self.as_high else planes.contiguous()
        wide = planes.new_empty(*planes.shape[:3], self.size[1])
        for block in self.column_blocks:
            wide[..., block.pixels] = planes[..., block.cells] @ block.weights.T
        return wide

    def over(self, wide: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Bands (r, G, C, W) of the planes at full size, each new in memory, with the rows that they are."""
        for block in self.row_blocks:
            if self.as_high:
                yield block, wide[block.pixels].clone(memory_format=torch.contiguous_format)
            else:
                yield block, (block.weights @ wide[block.cells].flatten(1)).view(-1, *wide.shape[1:])

    def collect(self, block: Block, band: Tensor, wide: Tensor) -> None:
        """The transpose of `over`: brings the gradient of a band (r, G, C, W) into that of the widened planes."""
        if self.as_high:
            wide[block.pixels] = band  # which no other band reads
        else:
            wide.flatten(1)[block.cells].addmm_(block.weights.T, band.flatten(1))

    def narrow(self, wide: Tensor) -> Tensor:
        """The transpose of `widen`: gradient (h, G, C, W) to gradient (G, C, h, w)."""
        if not self.column_blocks:
            return wide.permute(1, 2, 0, 3)
        planes = wide.new_zeros(*wide.shape[:3], self.planes.shape[3])
        for block in self.column_blocks:
            planes[..., block.cells] += wide[..., block.pixels] @ block.weights
        return planes.permute(1, 2, 0, 3)


@torch.no_grad()
def upsampled_labels(planes: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The plane that is largest at each pixel of the upsampled planes, found by bands.

    Equal to `F.interpolate(planes, size, mode="bilinear").argmax(1)` but for rounding, in a fraction of time and
    memory.

    Args:
        planes: (B, C, h, w), logits of any floating dtype.
        size: (H, W) of the labels.
        dtype: Of the labels.

    Shape:
        returns: (B, H, W).

    Example:
        >>> upsampled_labels(torch.tensor([[[[0.0, 1.0]], [[0.4, 0.4]]]]), (1, 4), torch.uint8)
        tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    """
    if planes.shape[2:] == tuple(size):
        return largest_plane(planes, dtype)
    labels = torch.empty((planes.shape[0], *size), dtype=dtype, device=planes.device)
    with without_autocast(planes):
        bands = Bands(full_precision(planes), size)
        for images in bands.groups:
            for block, band in bands.over(bands.widen(images)):
                labels[images, block.pixels] = largest_plane(band.permute(1, 2, 0, 3), dtype)
    return labels
