"""Extending an image by its mirror image, where unpadded convolutions need a margin."""

import torch
from torch import Tensor


def mirror(image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Extends an image by reflection about the centres of its border pixels, again and again where it is too small.

    What OpenCV calls REFLECT_101 and NumPy `pad(mode="reflect")`: the border pixel itself is not repeated. PyTorch's
    own reflection refuses margins as large as the image, and 8-bit images.

    Args:
        image: Any planes.
        rows: How many to add above and below.
        columns: How many to add left and right.

    Shape:
        image: (..., H, W); returns (..., rows[0] + H + rows[1], columns[0] + W + columns[1]).

    Example:
        >>> mirror(torch.tensor([[1, 2, 3]]), rows=(0, 0), columns=(5, 1))
        tensor([[2, 1, 2, 3, 2, 1, 2, 3, 2]])
    """
    for dimension, (before, after) in ((-2, rows), (-1, columns)):
        if before or after:
            image = image.index_select(dimension, source_pixels(image.shape[dimension], before, after, image.device))
    return image


def source_pixels(size: int, before: int, after: int, device: torch.device | None = None) -> Tensor:
    """The pixel that each pixel of an extended row shows: there and back with a period of twice the size less two."""
    last = size - 1
    place = torch.arange(-before, size + after, device=device).remainder(max(2 * last, 1))
    return torch.minimum(place, 2 * last - place)
