"""Images and evidence at other sizes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.sample import Kind
from densepred.tasks.base import Task

Size = tuple[int, int]

_LONGEST = 16  # times the shorter side


def scaled_size(size: Size, scale: float) -> Size:
    """Height and width times `scale`, each rounded to the nearest pixel (halves up), at least 1.

    Example:
        >>> scaled_size((375, 500), 0.5)
        (188, 250)
    """
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def short_side_size(size: Size, short_side: int) -> Size:
    """The size whose shorter side is `short_side`, in the image's proportions; the longer side is rounded.

    A strip is not enlarged so far that its longer side is above sixteen times `short_side`: of a line of pixels that
    would be more than memory holds.

    Example:
        >>> short_side_size((480, 640), 240), short_side_size((640, 480), 240)
        ((240, 320), (320, 240))
        >>> short_side_size((1, 10_000), 240), short_side_size((10, 480), 240)
        ((1, 10000), (80, 3840))
    """
    longest = max(max(size), _LONGEST * short_side)
    return scaled_size(size, min(short_side / min(size), longest / max(size)))


def resized_image(image: Tensor, size: Size) -> Tensor:
    """An image (B, C, H, W) at another size, bilinear, and averaged over what a pixel covers where it shrinks.

    What changes its size becomes float32 in [0, 1].
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def resized_evidence(evidence: Mapping[str, Tensor], tasks: Sequence[Task], size: Size) -> dict[str, Tensor]:
    """Evidence at another size, bilinear. Probabilities stay probabilities.

    Of normals direction and length are interpolated each by itself: the length says how far several answers agree,
    not how far neighbours do.
    """
    return {task.name: _resized(evidence[task.name], task, size) for task in tasks}


def _resized(planes: Tensor, task: Task, size: Size) -> Tensor:
    if tuple(planes.shape[-2:]) == tuple(size):
        return planes
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    if task.kind is not Kind.NORMALS:
        return resized
    length = torch.linalg.vector_norm(planes, dim=1, keepdim=True)
    return task.decide(resized) * F.interpolate(length, size=size, mode="bilinear", align_corners=False)
