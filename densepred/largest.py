"""Which of several planes is the largest: labels from logits or probabilities."""

import torch
from torch import Tensor

_FEW = 2**18
"""Elements (1 MB in float32) that lie near enough for one operation to be as fast as several."""
_BAND = 2**20
"""Elements of a band, for every thread: 4 MB in float32, which are read again from the cache."""


def largest_plane(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """The number of the plane that is largest at each pixel; the first of equal ones, as `argmax(1)` has it.

    argmax and max go through the planes pixel by pixel, and what they do next depends on the last value. Of many pixels
    on processors, the largest value and then the first plane that equals it are found instead, by operations on all
    pixels of a band of rows at once. Elsewhere, and while a graph is traced, it is one operation, which does not wait
    for the device.

    NaN counts as larger than all numbers.

    Args:
        planes: (B, C, H, W), of any layout.
        dtype: Of the numbers; uint8 holds those of 256 planes.

    Shape:
        returns: (B, H, W), without gradient.

    Example:
        >>> largest_plane(torch.tensor([0.1, 2.0, 2.0]).view(1, 3, 1, 1), torch.uint8)
        tensor([[[1]]], dtype=torch.uint8)
    """
    if not _worth_bands(planes):
        return _in_one(planes).to(dtype)
    batch, count, height, width = planes.shape
    narrow = torch.uint8 if count <= 256 else torch.int32
    rank = torch.arange(count - 1, -1, -1, dtype=narrow).view(-1, 1, 1)  # the first plane's is the largest
    labels = torch.empty(batch, height, width, dtype=dtype)
    rows = max(1, _BAND * torch.get_num_threads() // (batch * count * width))
    for band, label in zip(torch.split(planes, rows, 2), torch.split(labels, rows, 1), strict=True):
        largest = band.amax(1, keepdim=True)
        if largest.isnan().any():  # which equals nothing
            label.copy_(_in_one(band))
            continue
        equal = torch.eq(band, largest, out=torch.empty_like(band, dtype=narrow))
        label.copy_(count - 1 - equal.mul_(rank).amax(1))
    return labels


def _worth_bands(planes: Tensor) -> bool:
    if torch.compiler.is_compiling() or planes.device.type != "cpu":
        return False
    # where the planes of a pixel are neighbours (channels_last), max reads them as they lie
    return planes.numel() > _FEW and planes.stride(1) != 1


def _in_one(planes: Tensor) -> Tensor:
    # max gives the same indices as argmax several times faster
    return planes.max(dim=1).indices
