"""Metrics of depth, by named protocols."""

import math
from typing import Literal

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.metrics.base import DenseMetric
from densepred.sample import valid_depth

Protocol = Literal["nyu_python", "nyu_toolbox", "eigen14", "none"]
Average = Literal["image", "pixel"]

KEYS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")

_CROPS = {
    "nyu_python": (slice(45, 471), slice(41, 601)),
    "nyu_toolbox": (slice(44, 471), slice(40, 601)),
    "eigen14": (slice(21, 460), slice(25, 616)),
    "none": (slice(None), slice(None)),
}
_NYU = (480, 640)


class DepthMetrics(DenseMetric):
    """Errors of depth in metres, with every choice that moves the numbers named.

    With g the true and p the predicted depth of a pixel and e = ln p - ln g, means over the valid pixels:

    - `abs_rel` mean |p - g| / g; `sq_rel` mean (p - g)^2 / g (metres); `rmse` sqrt mean (p - g)^2 (metres)
    - `rmse_log` sqrt mean e^2; `log10` mean |log10 p - log10 g|
    - `silog` 100 sqrt(mean e^2 - (mean e)^2)
    - `delta1..3` share with max(g/p, p/g) below 1.25, 1.25^2, 1.25^3

    A published NYU number is comparable only under the same crop, cap, clamp and averaging. What most code of the
    field does (BTS, ZoeDepth, the MDE toolbox) is `protocol="nyu_python"` with the defaults.

    Args:
        protocol: Which part of a 480 x 640 NYU picture counts, as 0-based [top:bottom, left:right]. "nyu_python":
            [45:471, 41:601] (426 x 560), the slice of BTS and its heirs, commonly called the Eigen crop. "nyu_toolbox":
            [44:471, 40:601] (427 x 561), what the official toolbox's 1-based inclusive projection mask 45:471, 41:601
            really is; the Python slice loses its first row and column. "eigen14": [21:460, 25:616] (439 x 591), the
            crop attributed to Eigen et al. 2014, used by DORN. "none": everything.
        min_depth: Valid is strictly deeper than this, in metres.
        max_depth: Valid is strictly nearer than this, in metres: 10 for NYU, 80 for KITTI.
        clamp: Bring predictions into [min_depth, max_depth], infinity to the far and NaN to the near end, as BTS does.
            Without it a prediction that is not positive gives NaN or infinity in the logarithmic measures.
        average: "image" computes every measure per image and averages over images, as BTS and its heirs; "pixel" pools
            all pixels of the set (before DORN).

    Missing pixels (0 or infinite) don't count. An image without a valid pixel is left out of the average and counted
    in the state `skipped`; `images` counts the others. Without any valid pixel the measures are NaN.

    Shape:
        prediction: (B, 1, H, W), metres along the optical axis.
        target: the same.

    Raises:
        ConfigurationError: If a NYU crop meets pictures that are not 480 x 640.

    Reference:
        Eigen, Puhrsch, Fergus. Depth Map Prediction from a Single Image using a Multi-Scale Deep Network. NIPS 2014.
        arXiv:1406.2283 (the measures).
        Lee et al. From Big to Small: Multi-Scale Local Planar Guidance for Monocular Depth Estimation. 2019.
        arXiv:1907.10326 (BTS: the evaluation code that others compare with; `silog` with factor 100).

    Example:
        >>> metrics = DepthMetrics()
        >>> metrics.update(torch.full((1, 1, 2, 2), 2.0), torch.tensor([[[[2.0, 2.0], [4.0, 0.0]]]]))
        >>> {key: round(float(value), 3) for key, value in metrics.compute().items() if key in ("rmse", "delta1")}
        {'rmse': 1.155, 'delta1': 0.667}
    """

    sums: Tensor
    pixels: Tensor
    images: Tensor
    skipped: Tensor

    def __init__(
        self,
        protocol: Protocol = "none",
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        clamp: bool = True,
        average: Average = "image",
    ) -> None:
        super().__init__()
        if protocol not in _CROPS:
            raise ConfigurationError(f"DepthMetrics: protocol={protocol!r}; expected one of {', '.join(_CROPS)}.")
        if average not in ("image", "pixel"):
            raise ConfigurationError(f"DepthMetrics: average={average!r}; expected image or pixel.")
        if not 0 < min_depth < max_depth:
            raise ConfigurationError(
                f"DepthMetrics: expected 0 < min_depth < max_depth (metres); got {min_depth} and {max_depth}."
            )
        self.protocol = protocol
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.clamp = clamp
        self.average = average
        self.add_sum("sums", (len(KEYS),), torch.float64)
        for name in ("pixels", "images", "skipped"):
            self.add_sum(name)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch of depth maps."""
        self.require_size(prediction, target, "(B, 1, H, W)", None, 1, None, None)
        prediction, target = self._crop(prediction), self._crop(target)
        valid = valid_depth(target) & (target > self.min_depth) & (target < self.max_depth)
        if self.clamp:
            prediction = prediction.nan_to_num(self.min_depth, self.max_depth, self.min_depth)
            prediction = prediction.clamp(self.min_depth, self.max_depth)
        terms = _terms(full_precision(prediction), full_precision(target), valid)
        sums = torch.stack([self.add_up(term, (1, 2, 3)) for term in terms], dim=1)
        pixels = valid.sum((1, 2, 3))
        seen = pixels > 0
        if self.average == "image":
            sums = torch.where(seen[:, None], _measures(sums, pixels), 0)
        # not in place: a state made under inference mode could not be changed outside it
        self.sums = self.sums + sums.sum(0)
        self.pixels = self.pixels + pixels.sum()
        self.images = self.images + seen.sum()
        self.skipped = self.skipped + (~seen).sum()

    def _crop(self, depth: Tensor) -> Tensor:
        if self.protocol != "none" and depth.shape[-2:] != _NYU:
            raise ConfigurationError(
                f"DepthMetrics: protocol {self.protocol} crops NYU pictures of 480 x 640; these are "
                f"{depth.shape[-2]} x {depth.shape[-1]}. Score predictions at the size of the ground truth on disk, "
                "or use protocol none."
            )
        rows, columns = _CROPS[self.protocol]
        return depth[..., rows, columns]

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen so far."""
        measures = self.sums / self.images if self.average == "image" else _measures(self.sums, self.pixels)
        return self.report(dict(zip(KEYS, measures, strict=True)))


def _terms(prediction: Tensor, target: Tensor, valid: Tensor) -> list[Tensor]:
    """What the measures are means of: nine planes (B, 1, H, W), 0 where a pixel is not valid."""
    # 1 metre on both sides makes every error vanish where the depth is unknown
    p, g = torch.where(valid, prediction, 1), torch.where(valid, target, 1)
    error, log_error = p - g, p.log() - g.log()
    ratio = torch.maximum(p / g, g / p)
    near = [(ratio < 1.25**k) & (p > 0) & valid for k in (1, 2, 3)]
    return [error.abs() / g, error**2 / g, error**2, log_error**2, log_error.abs() / math.log(10), log_error, *near]


def _measures(sums: Tensor, pixels: Tensor) -> Tensor:
    """Sums (..., 9) over a number of pixels (...) to the measures (..., 9), in the order of `KEYS`."""
    abs_rel, sq_rel, square, log_square, log10, log, *near = (sums / pixels[..., None]).unbind(-1)
    # rounding can push the variance of a constant below zero
    variance = (log_square - log**2).clamp(min=0)
    roots = [square.sqrt(), log_square.sqrt(), log10, 100 * variance.sqrt()]
    return torch.stack([abs_rel, sq_rel, *roots, *near], dim=-1)
