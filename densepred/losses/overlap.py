"""Losses of labels that measure the overlap of regions: Dice and Lovasz-softmax."""

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.class_weights import ClassWeights
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.losses.segmentation import known_labels, register_weights, require_label_size
from densepred.sample import Kind


def regions(loss: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities, truth and what is known, a region a plane; which of the three modes it is, the sizes say.

    Labels (B, H, W) of several planes: each pixel is in one region, probabilities are a softmax. Answers (B, C, H, W),
    or (B, H, W) of a single plane: each plane is a question of its own, probabilities are a sigmoid.

    Args:
        loss: Who asks, for the error.
        output: Logits.
        target: Labels or answers.

    Shape:
        output: (B, C, H, W).
        target: (B, H, W) or (B, C, H, W).
        returns: probability, truth and known (boolean), each (B, C, H, W), the first two 0 where nothing is known; and
            a scalar to add to the loss, NaN where some label is neither a class nor missing.
    """
    planes = output.shape[1]
    if target.ndim == output.ndim - 1 and planes > 1:
        require_label_size(loss, output, target)
        known, alarm = known_labels(target, planes)
        known = known.unsqueeze(1)
        probability = torch.where(known, full_precision(output), 0).softmax(1)
        classes = torch.arange(planes, device=target.device).view(-1, 1, 1)
        truth = torch.where(known, target.unsqueeze(1).long(), -1) == classes
        known = known.expand_as(output)
    else:
        target = target.unsqueeze(1) if target.ndim == output.ndim - 1 else target
        require_same_size(loss, output, target)
        known, alarm = known_labels(target, classes=2)
        probability = torch.where(known, full_precision(output), 0).sigmoid()
        truth = known & (target == 1)
    return torch.where(known, probability, 0), truth, known, alarm


class DiceLoss(Loss):
    """One minus the Dice overlap of predicted and true region, averaged over the classes.

    With p the predicted probability of a class and t the truth (1 or 0) of a pixel, sums over the known pixels:
    1 - (2 sum p t + smooth) / (sum p + sum t + smooth). The sums run over the whole batch, or over each image (then the
    loss is the mean over classes and images); the mean is over the classes that occur in the truth, since the overlap
    with an empty region says nothing. Segmentation's three modes are told apart by the sizes: softmax for labels of
    several classes, a sigmoid for a single plane and for answers of every plane.

    Missing labels (255 in uint8, negative in wider integers) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Args:
        smooth: Added to numerator and denominator, in pixels; keeps the gradient of tiny regions small.
        per_image: Overlap in each image rather than in the batch.
        count_absent: Average over the classes that do not occur, too; their loss, 1 - smooth / (sum p + smooth),
            punishes predicting them.
        class_weights: One factor a class in the mean over classes, or where they stand (`ClassWeights`); none means
            equal weights.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, H, W), class indices of any integer dtype (0 or 1 where C is 1); or (B, C, H, W), 0 or 1.

    Raises:
        ConfigurationError: If `smooth` or a weight is negative.
        DataError: If a label is neither a class nor missing (as in `CrossEntropyLoss`).

    Reference:
        Milletari, Navab, Ahmadi. V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation.
        3DV 2016. arXiv:1606.04797 (with squares in the denominator; this is the form without them of most code).

    Example:
        >>> sure = torch.tensor([[[[50.0, -50.0, -50.0]]]])
        >>> DiceLoss(smooth=0)(sure, torch.tensor([[[1, 1, 255]]]))  # 1 - 2 * 1 / (1 + 2)
        tensor(0.3333)
    """

    kind = Kind.LABEL
    class_weights: Tensor | None

    def __init__(
        self,
        smooth: float = 1.0,
        per_image: bool = False,
        count_absent: bool = False,
        class_weights: ClassWeights | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= smooth < float("inf"):
            raise ConfigurationError(f"DiceLoss: smooth is a number of pixels, at least 0; got {smooth}.")
        register_weights(self, "class_weights", class_weights)
        self.smooth = smooth
        self.per_image = per_image
        self.count_absent = count_absent

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits and labels to a scalar."""
        probability, truth, known, alarm = regions("DiceLoss", output, target)
        sides = (2, 3) if self.per_image else (0, 2, 3)
        common = torch.where(truth, probability, 0).sum(sides)
        true, seen = truth.sum(sides), known.any(3).any(2) if self.per_image else known.any(3).any(2).any(0)
        both = probability.sum(sides) + true + self.smooth
        # only where there is neither truth nor probability nor smoothing
        loss = 1 - (2 * common + self.smooth) / torch.where(both > 0, both, 1)
        counted = seen if self.count_absent else true > 0
        return _mean_over_classes(loss, counted, self.class_weights) + alarm


class LovaszSoftmaxLoss(Loss):
    """Surrogate of one minus the intersection over union, averaged over the classes: trains the mIoU itself.

    For each class the errors |t - p| of all known pixels (truth t is 1 or 0, p the predicted probability) are sorted,
    greatest first; the loss is their sum, each weighted by how much 1 - IoU grows when that pixel is wrong besides
    those before it (the Lovasz extension of the Jaccard loss). Where every p is 0 or 1 it is the mean over classes of
    1 - IoU. Taken over the whole batch, or over each image (then the mean is over classes and images). The mean is over
    the classes that occur in the truth (`classes="present"` in the release). Segmentation's three modes are told apart
    by the sizes: softmax for labels of several classes, a sigmoid for a single plane and for answers of every plane.

    The increments of the Jaccard loss are taken in closed form: the release's difference of neighbouring values
    loses its digits in float32 where there are many pixels.

    Missing labels (255 in uint8, negative in wider integers) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast. It sorts B * C * H * W numbers; where that is too slow, crop.

    Args:
        per_image: Lovasz loss of each image rather than of the batch.
        count_absent: Average over the classes that do not occur, too; their loss is the greatest probability that any
            pixel gives them (`classes="all"` in the release).
        class_weights: One factor a class in the mean over classes, or where they stand (`ClassWeights`); none means
            equal weights.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, H, W), class indices of any integer dtype (0 or 1 where C is 1); or (B, C, H, W), 0 or 1.

    Raises:
        ConfigurationError: If a weight is negative.
        DataError: If a label is neither a class nor missing (as in `CrossEntropyLoss`).

    Reference:
        Berman, Rannen Triki, Blaschko. The Lovasz-Softmax Loss: A Tractable Surrogate for the Optimization of the
        Intersection-over-Union Measure in Neural Networks. CVPR 2018. arXiv:1705.08790.

    Example:
        >>> sure = torch.tensor([[[[50.0, -50.0, -50.0]]]])
        >>> LovaszSoftmaxLoss()(sure, torch.tensor([[[1, 1, 255]]]))  # 1 - 1 / 2
        tensor(0.5000)
    """

    kind = Kind.LABEL
    class_weights: Tensor | None

    def __init__(
        self, per_image: bool = False, count_absent: bool = False, class_weights: ClassWeights | None = None
    ) -> None:
        super().__init__()
        register_weights(self, "class_weights", class_weights)
        self.per_image = per_image
        self.count_absent = count_absent

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits and labels to a scalar."""
        probability, truth, known, alarm = regions("LovaszSoftmaxLoss", output, target)
        if self.per_image:
            probability, truth, known = (planes.flatten(2) for planes in (probability, truth, known))
        else:
            probability, truth, known = (planes.transpose(0, 1).flatten(1) for planes in (probability, truth, known))
        error = torch.where(truth, 1 - probability, probability)
        # missing pixels stand at the end, among those without error, whose weight is of no account: their slope is 0
        ordered, order = error.sort(-1, descending=True)
        loss = (ordered * jaccard_increments(truth.gather(-1, order))).sum(-1)
        counted = known.any(-1) if self.count_absent else truth.any(-1)
        return _mean_over_classes(loss, counted, self.class_weights) + alarm


def jaccard_increments(truth: Tensor) -> Tensor:
    """How much 1 - IoU grows with each pixel (in the order given) that is wrong besides those before it.

    With P true pixels, of which I are still right, and U pixels in the union: a wrong true pixel adds 1 / U; a wrong
    other pixel makes the union U instead of U - 1 and adds I / U / (U - 1).

    Shape:
        truth: (..., N), boolean; returns (..., N).

    Example:
        >>> jaccard_increments(torch.tensor([True, False, True]))
        tensor([0.5000, 0.1667, 0.3333])
    """
    found = truth.cumsum(-1)
    positives = found[..., -1:]
    intersection = positives - found
    union = positives + torch.arange(1, truth.shape[-1] + 1, device=truth.device) - found
    # without a true pixel the first wrong one makes everything wrong
    grown = torch.where(union > 1, intersection / (union * (union - 1)).clamp(min=1), 1)
    return torch.where(truth, 1 / union, grown)


def _mean_over_classes(loss: Tensor, counted: Tensor, class_weights: Tensor | None) -> Tensor:
    """Weighted mean of the losses (C,) or (B, C) that count; 0 where none does."""
    if class_weights is None:
        return mean_over_valid(torch.where(counted, loss, 0), counted)
    weights = torch.where(counted, class_weights.to(loss), 0)
    total = weights.sum()
    return (weights * loss).sum() / torch.where(total > 0, total, 1)
