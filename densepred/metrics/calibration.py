"""Whether probabilities can be believed: of the pixels that are 80 % sure, are 80 % right?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from densepred.errors import ConfigurationError, DataError
from densepred.metrics.base import DenseMetric, count
from densepred.metrics.segmentation import Mode, class_names
from densepred.sample import valid_segmentation

_ONE = 2**24
"""Confidences are added up in these units, about the precision of float32, so that sums are exact integers."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: what is right among the pixels that are about as sure.

    Args:
        edges: Ends of the bins of confidence (bins + 1,).
        counts: Pixels in each bin (bins,).
        confidence: Their mean confidence; NaN in empty bins.
        accuracy: The share of them that is right; NaN in empty bins.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


class CalibrationMetrics(DenseMetric):
    """Expected calibration error of labels' probabilities, over the whole set.

    Pixels are sorted into bins of equal width by their confidence, the probability of the label that they are given;
    bin m holds ((m - 1) / bins, m / bins]. With n_m pixels in bin m of n:

    - `ece`: sum of n_m / n * |accuracy_m - confidence_m|;
    - `mce`: the largest |accuracy_m - confidence_m| of a bin with pixels;
    - `confidence`, `accuracy`: means over all pixels. Where confidence is the larger one, the network is too sure.

    Missing labels don't count. Only integers are added up (confidence in units of 2^-24), so that the result is the
    same for any order and number of processes.

    Args:
        classes: Names in the order of the labels, or how many there are.
        mode: As `Segmentation`'s: in binary mode confidence is that of the more probable answer, in multilabel mode
            each class's answer counts by itself.
        bins: How many.

    Shape:
        probabilities: (B, C, H, W), or (B, 1, H, W) in binary mode.
        target: (B, H, W), or (B, C, H, W) in multilabel mode.

    Raises:
        ConfigurationError: If sizes don't agree, or there is no bin.
        DataError: In `compute`, if there were labels outside the classes.

    Reference:
        Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017. arXiv:1706.04599 (15 bins);
        Naeini, Cooper, Hauskrecht. Obtaining Well Calibrated Probabilities Using Bayesian Binning. AAAI 2015.

    Example:
        >>> metric = CalibrationMetrics(2)
        >>> sure = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
        >>> metric.update(sure, torch.tensor([[[0, 1]]], dtype=torch.uint8))
        >>> round(metric.compute()["ece"].item(), 3)  # 90 % sure, half of them right
        0.4
    """

    pixels: Tensor
    right: Tensor
    sureness: Tensor
    strange: Tensor

    def __init__(self, classes: int | list[str], mode: Mode = "multiclass", bins: int = 15) -> None:
        super().__init__()
        if bins < 1:
            raise ConfigurationError(f"CalibrationMetrics wants at least one bin; got {bins}.")
        self.names = class_names(classes, mode)
        self.mode = mode
        self.bins = bins
        for name in ("pixels", "right", "sureness"):
            self.add_sum(name, (bins,))
        self.add_sum("strange")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Counts a batch."""
        target = target if self.mode == "multilabel" else target[:, None]
        planes = 1 if self.mode == "binary" else len(self.names)
        if probabilities.ndim != 4 or probabilities.shape[1] != planes:
            raise ConfigurationError(
                f"CalibrationMetrics: probabilities of size {tuple(probabilities.shape)}; expected (B, {planes}, H, W)."
            )
        if self.mode == "multilabel":
            self.require_size(probabilities, target, "(B, classes, H, W)", None, planes, None, None)
        else:
            self.require_size(probabilities[:, :1], target, "(B, H, W)", None, 1, None, None)
        if self.mode == "multiclass":
            confidence, label = probabilities.max(1, keepdim=True)
        else:
            confidence, label = torch.maximum(probabilities, 1 - probabilities), (probabilities > 0.5).long()
        labels = len(self.names) if self.mode == "multiclass" else 2
        known = valid_segmentation(target, labels)
        self.strange = self.strange + (known & (target >= labels)).sum()
        place = (confidence.double() * self.bins).ceil().long().sub_(1).clamp_(0, self.bins - 1)
        place = torch.where(known, place, self.bins)
        self.pixels = self.pixels + count(place, self.bins + 1)[:-1]
        self.right = self.right + count(torch.where(label == target, place, self.bins), self.bins + 1)[:-1]
        units = torch.where(known, (confidence.double() * _ONE).round(), 0).long()
        total = torch.zeros(self.bins + 1, dtype=torch.int64, device=units.device)
        self.sureness = self.sureness + total.index_add_(0, place.flatten(), units.flatten())[:-1]

    def diagram(self) -> Reliability:
        """What was counted, as a reliability diagram, on the CPU in float64."""
        if int(self.strange) > 0:
            raise DataError(
                f"CalibrationMetrics: {int(self.strange)} pixels of the targets are labelled outside "
                f"{len(self.names)} classes. Mark pixels without a label as 255 (uint8) or -1."
            )
        pixels = self.pixels.cpu()
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        confidence = self.sureness.cpu().double() / _ONE / pixels
        return Reliability(edges, pixels, confidence, self.right.cpu().double() / pixels)

    def compute(self) -> dict[str, Tensor]:
        """The errors of everything counted so far; NaN if nothing was."""
        found = self.diagram()
        filled, gap = found.counts > 0, (found.accuracy - found.confidence).abs()
        total = found.counts.sum().double()

        def mean(values: Tensor) -> Tensor:
            return torch.where(filled, found.counts * values, 0).sum() / total

        return self.report(
            {
                "ece": mean(gap),
                "mce": torch.where(filled.any(), torch.where(filled, gap, 0).max(), torch.nan),
                "confidence": mean(found.confidence),
                "accuracy": mean(found.accuracy),
            }
        )
