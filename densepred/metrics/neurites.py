"""The scores of the ISBI 2012 challenge: which cells a proposal of membranes splits and merges."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepred.metrics.base import DenseMetric
from densepred.sample import valid_segmentation

Segments = NDArray[np.int32]


class NeuriteMetrics(DenseMetric):
    """Foreground-restricted Rand and information scores, and pixel errors, of slices with membranes and cells.

    Segments are the connected pieces of cell, of the labels and of the prediction. Each slice is scored by itself
    (`neurite_scores`) and the scores are averaged over slices: `v_rand` and `v_info` with the prediction's membranes
    as they are, `v_rand_thinned` and `v_info_thinned` with membranes thinned to lines (`thinned`), the challenge's
    final measures, which do not depend on how thick membranes are drawn. `pixel_error` is the share of wrong pixels of
    all slices; `cell_f1` the F-score of the pixels of cells, of which the challenge's "pixel error" is 1 minus.

    Probabilities are cut into labels first. The challenge scores at thresholds from 0 to 1 in steps of 0.1 and takes
    the best; whoever reports on other data than a threshold was chosen on keeps a metric for each.

    Args:
        cell: The class whose pieces are segments; all others are membrane.

    Shape:
        prediction: (B, H, W), class indices.
        target: the same.

    Missing pixels are no cell of the labels, and no pixel of the errors. Slices without a true cell count in the
    pixel measures alone; where nothing counts a measure is NaN. Unlike other metrics this one waits for the device:
    pieces are found on the processor.

    Raises:
        ConfigurationError: If prediction and target differ in size.

    Reference:
        Arganda-Carreras et al. Crowdsourcing the Creation of Image Segmentation Algorithms for Connectomics. Frontiers
        in Neuroanatomy 2015, and their Fiji scripts (Trainable Weka Segmentation: RandError, VariationOfInformation,
        PixelError). The scores before thinning are pooled over slices there, where we average those too.

    Example:
        >>> metrics = NeuriteMetrics()
        >>> labels = torch.tensor([[[1, 1, 0, 1, 1]]])
        >>> metrics.update(torch.ones_like(labels), labels)  # both cells in one piece
        >>> {name: round(float(value), 3) for name, value in metrics.compute().items() if "thinned" not in name}
        {'v_rand': 0.667, 'v_info': 0.0, 'pixel_error': 0.2, 'cell_f1': 0.889}
    """

    scores: Tensor
    slices: Tensor
    hits: Tensor
    cells: Tensor
    known: Tensor

    def __init__(self, cell: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.add_sum("scores", (4,), torch.float64)
        self.add_sum("slices")
        self.add_sum("hits")
        self.add_sum("cells", (2,))  # proposed and true
        self.add_sum("known")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds slices."""
        self.require_size(prediction, target, "(B, H, W)", None, None, None)
        known = valid_segmentation(target)
        proposed, true = (prediction == self.cell) & known, (target == self.cell) & known
        self.hits = self.hits + (proposed & true).sum()
        self.cells = self.cells + torch.stack([proposed.sum(), true.sum()])
        self.known = self.known + known.sum()
        for guess, truth in zip((prediction == self.cell).cpu().numpy(), true.cpu().numpy(), strict=True):
            if truth.any():
                pieces, cells = segments(guess), segments(truth)
                found = (*neurite_scores(pieces, cells), *neurite_scores(thinned(pieces), cells))
                self.scores = self.scores + torch.tensor(found, dtype=self.sum_dtype).to(self.scores)
                self.slices = self.slices + 1

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen so far."""
        names = ("v_rand", "v_info", "v_rand_thinned", "v_info_thinned")
        scores = dict(zip(names, self.scores / self.slices, strict=True))
        claimed = self.cells.sum()
        pixels = {"pixel_error": (claimed - 2 * self.hits) / self.known, "cell_f1": 2 * self.hits / claimed}
        return self.report(scores | pixels)


def segments(cells: NDArray[np.bool_]) -> Segments:
    """The pieces of a mask, connected by edges, not corners: 1, 2, ..., and 0 outside of it.

    Shape:
        cells: (H, W); returns the same.
    """
    numbers = cv2.connectedComponents(cells.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)[1]
    return numbers.astype(np.int32, copy=False)


def thinned(pieces: Segments) -> Segments:
    """Segments grown into what lies between them, all at the same speed, until lines of one pixel keep them apart.

    It is the watershed of a picture with two heights. Where a border is an even number of pixels wide its line may lie
    one pixel beside the one that the challenge's program draws, which visits pixels in another order.

    Shape:
        pieces: (H, W), 0 between segments; returns the same.
    """
    framed = cv2.copyMakeBorder(pieces, 1, 1, 1, 1, cv2.BORDER_CONSTANT)  # OpenCV draws a line around the picture
    grown = cv2.watershed(np.zeros((*framed.shape, 3), np.uint8), framed)[1:-1, 1:-1]
    return np.maximum(grown, 0)


def neurite_scores(proposed: Segments, true: Segments) -> tuple[float, float]:
    """V_Rand and V_Info over the pixels within true segments: 1 if proposed and true segments are the same there.

    Of p(i, j), the share of pixels in proposed segment i and true segment j, and its sums s(i) and t(j):
    V_Rand = sum p^2 / (0.5 sum s^2 + 0.5 sum t^2), V_Info = I / (0.5 H(s) + 0.5 H(t)). They are the harmonic means of a
    score that splits lower (by t) and one that mergers lower (by s). A proposed border within a true segment is, as in
    the challenge's program, a segment of its own at every pixel. Where there is one segment on both sides nothing is
    left to tell, and V_Info is 1 (there: 0).

    Shape:
        proposed: (H, W), 0 at borders. true: the same. Both NaN without a true segment.

    Example:
        >>> true = np.array([[1, 1, 0, 2, 2]], np.int32)
        >>> neurite_scores(2 * true, true), neurite_scores(np.ones_like(true), true)
        ((1.0, 1.0), (0.6666666666666666, 0.0))
    """
    within = true > 0
    guess, truth = proposed[within].astype(np.int64), true[within].astype(np.int64)
    if not len(truth):
        return float("nan"), float("nan")
    inside = guess > 0
    alone = np.ones(len(guess) - np.count_nonzero(inside))
    joint = np.concatenate([_counts(guess[inside] * (truth.max() + 1) + truth[inside]), alone]) / len(guess)
    s = np.concatenate([_counts(guess[inside]), alone]) / len(guess)
    t = _counts(truth) / len(truth)
    rand = (joint @ joint) / (0.5 * (s @ s) + 0.5 * (t @ t))
    entropies = _entropy(s) + _entropy(t)
    info = 2 * (entropies - _entropy(joint)) / entropies if entropies > 0 else 1.0
    return float(rand), float(info)


def _counts(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.unique(numbers, return_counts=True)[1].astype(np.float64)


def _entropy(shares: NDArray[np.float64]) -> float:
    return float(-(shares @ np.log(shares)))
