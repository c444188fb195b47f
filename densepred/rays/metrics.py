"""How well a reconstruction agrees with a scene: as sets of points, and along rays."""

from collections.abc import Sequence

import torch
from torch import Tensor

from densepred.metrics.base import DenseMetric

THRESHOLDS = (0.05, 0.1, 0.2, 0.5)
TINY = 1e-4
CHUNK = 1024


def f_score(precision: Tensor, recall: Tensor) -> Tensor:
    """2 P R / (P + R + 0.0001), as the authors' code has it."""
    return 2 * precision * recall / (precision + recall + TINY)


def distances_to(points: Tensor, others: Tensor) -> Tensor:
    """From each point to the nearest of the others; infinite where there are none. (N, 3), (M, 3) to (N,)."""
    if len(others) == 0:
        return points.new_full((len(points),), float("inf"))
    # not by products, which lose half of the digits
    mode = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, others, compute_mode=mode).amin(1) for part in torch.split(points, CHUNK)]
    return torch.cat(parts) if parts else points.new_zeros(0)


class SceneScore(DenseMetric):
    """Precision, recall and F-score of points, averaged over images; and those of hidden surfaces apart.

    Precision is the share of predicted points within a threshold of a true one, recall the share of true points within
    it of a predicted one. Of hidden surfaces, precision is that of the points which are not the first of their ray, and
    recall that of the true points which the camera does not see, both against all points of the other set. Where
    nothing is predicted, precision is 0; an image without hidden surface does not count there.

    Args:
        thresholds: Metres.

    Shape:
        points: (N, 3), behind: (N,), boolean, whether it is not the first of its ray.
        surface: (M, 3), hidden: (M,), boolean.
        computes: `scene_precision_0.1`, `scene_recall_0.1`, `scene_f_0.1`, `hidden_precision_0.1`, ...

    Reference:
        Kulkarni, Johnson, Fouhey. ECCV 2022. arXiv:2112.04481: 10,000 points each, 0.05 to 0.5 m. (Hidden surfaces
        apart are ours.)
    """

    scene: Tensor
    hidden: Tensor
    images: Tensor

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        super().__init__()
        self.thresholds = tuple(thresholds)
        self.add_sum("scene", (3, len(self.thresholds)), self.sum_dtype)
        self.add_sum("hidden", (3, len(self.thresholds)), self.sum_dtype)
        self.add_sum("images", (2,))

    def update(self, points: Tensor, behind: Tensor, surface: Tensor, hidden: Tensor) -> None:
        """Adds an image."""
        limits = points.new_tensor(self.thresholds)
        right = distances_to(points, surface)[:, None] <= limits
        found = distances_to(surface, points)[:, None] <= limits
        self.scene += _scores(right, found)
        self.images[0] += 1
        if hidden.any():
            self.hidden += _scores(right[behind], found[hidden])
            self.images[1] += 1

    def compute(self) -> dict[str, Tensor]:
        """All scores, by key."""
        values: dict[str, Tensor] = {}
        for index, name in enumerate(("scene", "hidden")):
            mean = (self.scene, self.hidden)[index] / self.images[index]
            for score, row in zip(("precision", "recall", "f"), mean, strict=True):
                values |= {f"{name}_{score}_{t:g}": row[i] for i, t in enumerate(self.thresholds)}
        return self.report(values)


def _scores(right: Tensor, found: Tensor) -> Tensor:
    """Precision, recall and F-score, (3, T), of (N, T) and (M, T)."""
    precision, recall = (x.double().sum(0) / max(len(x), 1) for x in (right, found))
    return torch.stack([precision, recall, f_score(precision, recall)])


class RayScore(DenseMetric):
    """Precision, recall and F-score of surfaces along rays, counted over all rays of all images.

    On each ray as many predicted surfaces as possible are matched to true ones, one to one, within a threshold.
    "occluded" drops each ray's first surface on both sides: what remains is hidden.

    Args:
        thresholds: Metres along the ray.

    Shape:
        prediction: (..., M), truth: (..., K), metres along the ray, sorted, infinite where there are no more.
        computes: `ray_precision_0.1`, `ray_recall_0.1`, `ray_f_0.1`, `occluded_precision_0.1`, ...

    Reference:
        Kulkarni, Johnson, Fouhey. ECCV 2022. arXiv:2112.04481: 2,000 rays an image.

    Example:
        >>> score = RayScore([0.5])
        >>> score.update(torch.tensor([[2.0, 4.75]]), torch.tensor([[2.25, 4.0, 5.0]]))
        >>> {key: round(float(value), 2) for key, value in score.compute().items() if "recall" in key}
        {'ray_recall_0.5': 0.67, 'occluded_recall_0.5': 0.5}
    """

    matched: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        super().__init__()
        self.thresholds = tuple(thresholds)
        self.add_sum("matched", (2, len(self.thresholds)))
        self.add_sum("predicted", (2,))
        self.add_sum("true", (2,))

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Adds rays."""
        for first in (0, 1):
            mine, theirs = prediction[..., first:], truth[..., first:]
            self.predicted[first] += mine.isfinite().sum()
            self.true[first] += theirs.isfinite().sum()
            for index, threshold in enumerate(self.thresholds):
                self.matched[first, index] += matches(mine, theirs, threshold).sum()

    def compute(self) -> dict[str, Tensor]:
        """All scores, by key."""
        values: dict[str, Tensor] = {}
        for first, name in enumerate(("ray", "occluded")):
            precision = self.matched[first].double() / self.predicted[first].clamp(min=1)
            recall = self.matched[first].double() / self.true[first].clamp(min=1)
            for score, row in zip(("precision", "recall", "f"), (precision, recall, f_score(precision, recall)),
                                  strict=True):  # fmt: skip
                values |= {f"{name}_{score}_{t:g}": row[i] for i, t in enumerate(self.thresholds)}
        return self.report(values)


def matches(prediction: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """The greatest number of pairs within the threshold, one to one, on each ray.

    Taken nearest first, each surface with the nearest to the camera that is left: on a line no matching has more.

    Shape:
        prediction: (..., M), truth: (..., K), sorted. returns: (...), int64.

    Example:
        >>> matches(torch.tensor([1.0, 2.0]), torch.tensor([1.5]), 0.5)
        tensor(1)
    """
    free = truth.isfinite()
    count = torch.zeros(prediction.shape[:-1], dtype=torch.int64, device=prediction.device)
    for one in prediction.unbind(-1):
        within = free & ((truth - one.unsqueeze(-1)).abs() <= threshold)
        hit, place = within.any(-1), within.int().argmax(-1, keepdim=True)
        free = free.scatter(-1, place, free.gather(-1, place) & ~hit.unsqueeze(-1))
        count += hit
    return count
