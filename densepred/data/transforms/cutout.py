"""Parts of the picture painted over."""

from functools import partial
from typing import Any

from densepred.data.transforms.base import Move, SceneTransform
from densepred.data.transforms.resampling import Planes
from densepred.errors import ConfigurationError
from densepred.sample import Kind, missing_value


class CutoutMissing(SceneTransform):
    """Paints random rectangles with the image's mean colour and makes the targets under them missing.

    What cannot be seen is not asked for. With `keep_targets` the targets stay, and the network has to infer from the
    surroundings what is hidden. Images of all keys are painted at the same place.

    Args:
        holes: Fewest and most rectangles.
        size: Smallest and largest side of a rectangle, as a share of the picture's side.
        keep_targets: Leave labels, depth, normals and weights as they are.
        p: Probability.

    Reference:
        DeVries, Taylor. Improved Regularization of Convolutional Neural Networks with Cutout. 2017. arXiv:1708.04552
        (one square, the dataset's mean; classification, so nothing is said of dense targets).
    """

    def __init__(
        self,
        holes: tuple[int, int] = (1, 3),
        size: tuple[float, float] = (0.1, 0.3),
        keep_targets: bool = False,
        p: float = 0.5,
    ) -> None:
        super().__init__(p)
        if len(holes) != 2 or not 0 <= holes[0] <= holes[1]:
            raise ConfigurationError(f"CutoutMissing: holes is {holes}; expected [fewest, most], none negative.")
        if len(size) != 2 or not 0 < size[0] <= size[1] <= 1:
            raise ConfigurationError(f"CutoutMissing: size is {size}; expected [smallest, largest] share of a side.")
        self.holes = (holes[0], holes[1])
        self.size = (float(size[0]), float(size[1]))
        self.keep_targets = keep_targets

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> Move:
        """Random rectangles."""
        count = self.py_random.randint(*self.holes)
        boxes = [(self._side(size[0]), self._side(size[1])) for _ in range(count)]
        return partial(_cut, boxes, self.keep_targets)

    def _side(self, length: int) -> slice:
        side = max(1, round(length * self.py_random.uniform(*self.size)))
        start = self.py_random.randint(0, length - side)
        return slice(start, start + side)


def _cut(boxes: list[tuple[slice, slice]], keep_targets: bool, kind: Kind, planes: Planes) -> Planes:
    if kind is Kind.INTRINSICS or (keep_targets and kind is not Kind.IMAGE):
        return planes
    value = _mean_colour(planes) if kind is Kind.IMAGE else missing_value(kind, planes.dtype)
    result = planes.copy()
    for box in boxes:
        result[box] = value
    return result


def _mean_colour(image: Planes) -> Planes:
    mean = image.mean(axis=(0, 1))
    colour: Planes = (mean.round() if image.dtype.kind in "ui" else mean).astype(image.dtype)
    return colour
