"""Metrics of labels, all from one confusion matrix."""

from typing import Literal

import torch
from torch import Tensor

from densepred.errors import ConfigurationError, DataError
from densepred.metrics.base import DenseMetric, count
from densepred.sample import valid_segmentation

Mode = Literal["multiclass", "binary", "multilabel"]
Absent = Literal["skip", "zero", "one", "nan"]

_FILL = {"skip": float("nan"), "zero": 0.0, "one": 1.0, "nan": float("nan")}


class SegmentationMetrics(DenseMetric):
    """IoU and accuracies of labels, from one confusion matrix summed over the whole set.

    With n_ij pixels of class i predicted as j, t_i = sum_j n_ij and p_j = sum_i n_ij:

    - `iou/<class>`: n_ii / (t_i + p_i - n_ii)
    - `miou`: mean of the IoU over classes, background included
    - `pixel_accuracy`: sum_i n_ii / sum_i t_i
    - `mean_accuracy`: mean over classes of n_ii / t_i
    - `fw_iou`: mean of the IoU over classes weighted by t_i

    Protocol: that of the Pascal VOC devkit (`VOCevalseg`). Nothing is averaged over images or batches; a prediction is
    scored at the label's own size; missing labels (255 in uint8, negative in wider integers) are left out whatever is
    predicted there, everything else counts.

    In "binary" mode the classes are 0 and 1 and both count. In "multilabel" mode each class is a question of its own:
    n_ii is where it is rightly predicted, t_i where it is true, p_i where it is predicted, and `pixel_accuracy` is the
    share of right answers among all.

    Args:
        classes: Names of the classes in the order of their labels, or their number. Binary: two names, or only that of
            class 1.
        mode: One label a pixel, one yes or no a pixel, or a yes or no for every class.
        absent: What a class counts that is neither in the labels nor in the predictions, so that its ratio is 0/0 (the
            devkit has no guard: NaN). "skip" leaves it out of the mean and reports NaN for it, "nan" lets the mean be
            NaN too.

    Shape:
        prediction: (B, H, W), integer labels; multilabel (B, C, H, W), 0 or 1.
        target: the same size.

    Raises:
        DataError: In `compute`, if labels outside the classes were met: a wrong number of classes scores nothing.

    Reference:
        Everingham et al. The Pascal Visual Object Classes Challenge: A Retrospective. IJCV 2015 (IoU).
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038
        (the four measures).

    Example:
        >>> metrics = SegmentationMetrics(["floor", "wall"])
        >>> metrics.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]))
        >>> {key: round(float(value), 3) for key, value in metrics.compute().items()}
        {'miou': 0.5, 'iou/floor': 0.5, 'iou/wall': 0.5, 'pixel_accuracy': 0.667, 'mean_accuracy': 0.75, 'fw_iou': 0.5}
    """

    confusion: Tensor

    def __init__(self, classes: list[str] | int, mode: Mode = "multiclass", absent: Absent = "skip") -> None:
        super().__init__()
        if absent not in _FILL:
            raise ConfigurationError(f"SegmentationMetrics: absent={absent!r}; expected one of {', '.join(_FILL)}.")
        self.mode = mode
        self.absent = absent
        self.names = class_names(classes, mode)
        questions, labels = (len(self.names), 2) if mode == "multilabel" else (1, len(self.names))
        self.labels = labels
        # the last row and column count labels that are no class, so that they are neither lost nor mistaken
        self.add_sum("confusion", (questions, labels + 1, labels + 1))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts a batch of predicted labels."""
        if self.mode == "multilabel":
            self.require_size(prediction, target, "(B, classes, H, W)", None, len(self.names), None, None)
        else:
            self.require_size(prediction, target, "(B, H, W)", None, None, None)
            prediction, target = prediction[:, None], target[:, None]
        known = valid_segmentation(target, self.labels)
        side, bins = self.labels + 1, self.confusion.numel()
        question = torch.arange(target.shape[1], device=target.device, dtype=torch.int32)[:, None, None]
        cell = (question * side + self._label(target)) * side + self._label(prediction)
        counted = count(torch.where(known, cell, bins), bins + 1)[:bins]
        # not in place: a state made under inference mode could not be changed outside it
        self.confusion = self.confusion + counted.view_as(self.confusion)

    def _label(self, labels: Tensor) -> Tensor:
        # in 32 bits, which are counted several times as fast as 64
        if labels.dtype == torch.uint8:
            return labels.to(torch.int32).clamp(max=self.labels)
        labels = labels if labels.dtype == torch.int64 else labels.to(torch.int32)
        labels = labels.clamp(-1, self.labels).to(torch.int32)
        return torch.where(labels < 0, self.labels, labels)

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything counted so far."""
        counts = self.confusion.cpu().double()
        self._require_known(counts)
        counts = counts[:, :-1, :-1]
        right, total = counts.diagonal(dim1=1, dim2=2).sum(), counts.sum()
        if self.mode == "multilabel":
            hit, true, predicted = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
        else:
            hit, true, predicted = counts[0].diagonal(), counts[0].sum(1), counts[0].sum(0)
        union = true + predicted - hit
        iou = self._ratio(hit, union)
        named = {f"iou/{name}": value for name, value in zip(self.names, iou, strict=True)}
        return self.report(
            {
                "miou": self._mean(iou),
                **named,
                "pixel_accuracy": right / total,
                "mean_accuracy": self._mean(self._ratio(hit, true)),
                "fw_iou": (true * hit / union.clamp(min=1)).sum() / true.sum(),
            }
        )

    def _ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / whole, _FILL[self.absent])

    def _mean(self, values: Tensor) -> Tensor:
        return values.nanmean() if self.absent == "skip" else values.mean()

    def _require_known(self, counts: Tensor) -> None:
        for what, strange in (("targets", counts[:, -1].sum()), ("predictions", counts[:, :, -1].sum())):
            if strange > 0:
                raise DataError(
                    f"SegmentationMetrics: {int(strange)} pixels of the {what} are labelled outside "
                    f"0 .. {self.labels - 1}. Give as many classes as there are labels, and mark pixels without a "
                    "label as 255 (uint8) or -1."
                )


def class_names(classes: int | list[str], mode: Mode) -> list[str]:
    """The classes' names, made up where only their number is given.

    Example:
        >>> class_names(2, "multiclass"), class_names(["road"], "binary")
        (['class_0', 'class_1'], ['background', 'road'])
    """
    if mode == "binary" and classes in (1, 2):
        names = ["background", "foreground"]
    elif isinstance(classes, int):
        names = [f"class_{i}" for i in range(classes)]
    else:
        names = ["background", *classes] if mode == "binary" and len(classes) == 1 else list(classes)
    fits = {"multiclass": len(names) >= 2, "binary": len(names) == 2, "multilabel": len(names) >= 1}
    if mode not in fits:
        raise ConfigurationError(f"Segmentation: mode={mode!r}; expected one of {', '.join(fits)}.")
    if not fits[mode]:
        wanted = {"multiclass": "two classes or more", "binary": "two classes", "multilabel": "a class or more"}[mode]
        raise ConfigurationError(f"Segmentation: mode {mode} needs {wanted}; got classes={classes!r}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"Segmentation: classes named twice: {', '.join(twice)}.")
    return names
