"""Random zoom and random crop in one step."""

import math
from typing import Any, Literal

import cv2
import numpy as np

from densepred.data.transforms.base import SceneTransform, checked_size
from densepred.data.transforms.resampling import Axis, Planes, Window
from densepred.data.transforms.view import View
from densepred.errors import ConfigurationError
from densepred.sample import VOID, Kind, valid_segmentation

TRIES = 10


class ScaleCrop(SceneTransform):
    """Zooms by a random factor s and cuts out a random window of fixed size; only what is kept is ever resized.

    A side of the zoomed picture that is shorter than the window lies at a random place in it; the rest is "missing"
    (the image repeats its border).

    What a zoom means for depth:

    - `divide` (default): focal lengths stay and depth becomes depth / s: things that look s times larger are s times
      nearer. This is what a network that sees no intrinsics must answer. The scene is squeezed along the optical axis,
      so normals become (nx, ny, s nz), renormalised.
    - `focal`: depth and normals stay and the focal lengths grow by s: a longer lens. Right where the network, or
      whatever uses its answer, reads the intrinsics.

    Sides are whole pixels, so the two sides' factors may differ by a fraction of a percent; the intrinsics hold what
    was done exactly.

    Args:
        size: (height, width) of the result.
        scale: Smallest and largest zoom, relative to the picture's own pixels; drawn uniformly.
        cat_max_ratio: Draw the window anew while one class fills this share of its known labels or more (0.75 is
            usual), and take the tenth whatever it shows; None takes the first. Only labels are looked at: pictures are
            cut once.
        depth: What a zoom does to depth: `divide` or `focal`.
        p: Probability.

    Reference:
        Eigen, Puhrsch, Fergus. Depth Map Prediction from a Single Image using a Multi-Scale Deep Network. NeurIPS 2014.
        arXiv:1406.2283 (depth divided by the scale). Eigen, Fergus. ICCV 2015. arXiv:1411.4734 (normals).
        `cat_max_ratio` is that of mmsegmentation's RandomCrop.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float | None = None,
        depth: Literal["divide", "focal"] = "divide",
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.size = checked_size(size, "ScaleCrop")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigurationError(f"ScaleCrop: scale is {scale}; expected [smallest, largest], both above 0.")
        if cat_max_ratio is not None and not 0 < cat_max_ratio <= 1:
            raise ConfigurationError(f"ScaleCrop: cat_max_ratio is {cat_max_ratio}; expected a share above 0, up to 1.")
        if depth not in ("divide", "focal"):
            raise ConfigurationError(f"ScaleCrop: depth is {depth!r}; expected 'divide' or 'focal'.")
        self.scale = (float(scale[0]), float(scale[1]))
        self.cat_max_ratio = cat_max_ratio
        self.depth = depth

    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> View:
        """A random zoom and a random window."""
        scale = self.py_random.uniform(*self.scale)
        window = self._window(size, scale)
        label = None if self.cat_max_ratio is None else self.first(Kind.LABEL, data)
        if label is not None and self.cat_max_ratio is not None:
            for _ in range(TRIES - 1):
                if _largest_share(label[window.rows.source, window.columns.source]) < self.cat_max_ratio:
                    break
                window = self._window(size, scale)
        if self.depth == "focal":
            return View(window)
        zoom = math.sqrt(window.rows.scale * window.columns.scale)
        return View(window, np.diag([1, 1, 1 / zoom]))

    def _window(self, size: tuple[int, int], scale: float) -> Window:
        rows, columns = (self._axis(length, side, scale) for length, side in zip(size, self.size, strict=True))
        return Window(rows, columns)

    def _axis(self, length: int, side: int, scale: float) -> Axis:
        kept = max(1, round(length * scale))
        if kept <= side:
            return Axis(0, length, kept, self.py_random.randint(0, side - kept), side)
        read = min(length, max(1, round(side / scale)))
        return Axis(self.py_random.randint(0, length - read), read, side, 0, side)


def _largest_share(label: Planes) -> float:
    """Share of the most frequent class among known labels; 1 where none is known."""
    if label.dtype == np.uint8:
        # a fifth of the time of numpy's, which makes 64-bit integers of the labels first
        counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [VOID + 1], [0, VOID + 1]).ravel()[:VOID]
    else:
        counts = np.bincount(label[valid_segmentation(label)])
    known = counts.sum()
    return float(counts.max() / known) if known else 1.0
