"""Losses of labels."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError, DataError
from densepred.losses.base import Loss
from densepred.losses.class_weights import ClassWeights, read_class_weights
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.sample import Kind, valid_segmentation


def known_labels(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Where labels are classes, and a number that is 0, or NaN where some label is neither a class nor missing.

    Labels on the CPU are checked here. Elsewhere reading an answer would make the host wait for the device at every
    step, and an index outside the planes would end the process with a device-side assertion; there such pixels count as
    missing and the number, added to the loss, shows them. (Data sets check their files, by name, before.)

    Args:
        labels: Class indices, any shape.
        classes: How many classes there are.

    Raises:
        DataError: If a label on the CPU is neither a class nor missing.

    Example:
        >>> known_labels(torch.tensor([0, 20, 255], dtype=torch.uint8), classes=21)
        (tensor([ True,  True, False]), tensor(0.))
    """
    known = valid_segmentation(labels, classes)
    strange = known & (labels >= classes)
    any_strange = strange.any()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and bool(any_strange):
        found = ", ".join(str(int(label)) for label in torch.unique(labels[strange])[:5])
        raise DataError(
            f"{int(strange.sum())} pixels of the target have labels that are no class: {found}. Expected "
            f"0 .. {classes - 1} for {classes} classes, or missing (255 in uint8, -1 in wider integers). Correct the "
            "label files or their mapping, or give the task as many classes as there are labels."
        )
    return known & ~strange, torch.where(any_strange, math.nan, 0.0)


def cross_entropy(
    output: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Mean of -ln softmax(output)[target] over the known labels; see `CrossEntropyLoss`.

    Example:
        >>> cross_entropy(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]])).exp()
        tensor(4.)
    """
    require_label_size("CrossEntropyLoss", output, target)
    known, alarm = known_labels(target, output.shape[1])
    index = torch.where(known, target.long(), -1)
    output = full_precision(output)
    weight: Tensor = known
    if class_weights is not None:
        class_weights = class_weights.to(output)
        weight = torch.where(known, class_weights[index.clamp(min=0)], 0)
    reduction = "sum" if pixel_weights is None else "none"
    loss = F.cross_entropy(
        output, index, class_weights, ignore_index=-1, reduction=reduction, label_smoothing=label_smoothing
    )
    if pixel_weights is not None:
        pixel_weights = known_weights("CrossEntropyLoss", pixel_weights, known, output)
        loss, weight = (loss * pixel_weights).sum(), weight * pixel_weights
    total_weight = weight.sum()
    # not clamp: class weights may be small
    return loss / torch.where(total_weight > 0, total_weight, 1) + alarm


def known_weights(loss: str, weights: Tensor, known: Tensor, like: Tensor) -> Tensor:
    """Weights of the pixels whose label is known, 0 elsewhere, as floating point as `like`.

    Raises:
        ConfigurationError: If the weights are not one for each label.
    """
    if weights.shape != known.shape:
        raise ConfigurationError(
            f"{loss}: expected one weight for each label; the labels have size {tuple(known.shape)}, the weights "
            f"{tuple(weights.shape)}."
        )
    return torch.where(known, weights.to(like), 0)


def require_label_size(loss: str, output: Tensor, target: Tensor) -> None:
    """Refuses labels that are not one for each pixel of the output."""
    if target.shape != (output.shape[0], *output.shape[2:]):
        raise ConfigurationError(
            f"{loss}: the output has size {tuple(output.shape)}, so labels of size "
            f"{(output.shape[0], *output.shape[2:])} are expected; got {tuple(target.shape)}."
        )


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy of labels: mean of -ln p(true class) over the known pixels.

    With class weights w it is the weighted mean, sum w[t] * -ln p(t) / sum w[t], as in torch. With label smoothing e
    the truth is 1 - e the true class and e the mean over all C classes, also as in torch: a pixel's loss is
    (1 - e) w[t] * -ln p(t) + e / C * sum over classes c of w[c] * -ln p(c). With pixel weights v, such as the U-Net's
    of borders between cells, every pixel's loss is multiplied by its v, and its part in the sum of weights too.

    Missing labels (255 in uint8, negative in wider integers) give exactly zero gradient; without any valid pixel the
    loss is 0, where torch's is NaN. Computed in float32 under autocast.

    Args:
        class_weights: One factor a class, or where they stand (`ClassWeights`); none means equal weights.
        label_smoothing: Share of the truth that is spread over all classes, from 0 to 1.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, H, W), class indices of any integer dtype.
        pixel_weights: (B, H, W), at least 0; optional.

    Raises:
        ConfigurationError: If a weight is negative or not finite, or the smoothing is no share.
        DataError: If a label is neither a class nor missing (labels on the CPU; on an accelerator, where looking would
            stall every step, the loss is NaN and its gradient that of the other pixels).

    Reference:
        Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016. arXiv:1512.00567 (label
        smoothing).

    Example:
        >>> CrossEntropyLoss()(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]])).exp()
        tensor(4.)
    """

    kind = Kind.LABEL
    exclusive = True
    takes_pixel_weights = True
    class_weights: Tensor | None

    def __init__(self, class_weights: ClassWeights | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ConfigurationError(
                f"CrossEntropyLoss: label_smoothing is a share, from 0 to 1; got {label_smoothing}."
            )
        register_weights(self, "class_weights", class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, output: Tensor, target: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
        """Logits and labels to a scalar."""
        return cross_entropy(output, target, self.class_weights, self.label_smoothing, pixel_weights)


def binary_cross_entropy(
    output: Tensor, target: Tensor, positive_weights: Tensor | None = None, pixel_weights: Tensor | None = None
) -> Tensor:
    """Mean of the cross-entropy of independent yes-or-no questions; see `BinaryCrossEntropyLoss`.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 255]]])).exp()
        tensor(2.)
    """
    target = target.unsqueeze(1) if target.ndim == output.ndim - 1 else target
    require_same_size("BinaryCrossEntropyLoss", output, target)
    known, alarm = known_labels(target, classes=2)
    output = torch.where(known, full_precision(output), 0)
    truth = torch.where(known, target, 0).to(output.dtype)
    weights = None if positive_weights is None else positive_weights.to(output).view(-1, 1, 1)
    loss = F.binary_cross_entropy_with_logits(output, truth, reduction="none", pos_weight=weights)
    loss = torch.where(known, loss, 0)
    if pixel_weights is None:
        return mean_over_valid(loss, known) + alarm
    pixel_weights = pixel_weights.unsqueeze(1) if pixel_weights.ndim == output.ndim - 1 else pixel_weights
    factor = known_weights("BinaryCrossEntropyLoss", pixel_weights.expand_as(known), known, output)
    total = factor.sum()
    return (loss * factor).sum() / torch.where(total > 0, total, 1) + alarm


class BinaryCrossEntropyLoss(Loss):
    """Sigmoid cross-entropy: every plane is a yes-or-no question of its own.

    Missing answers (255 in uint8, 255 or negative in wider integers) give exactly zero gradient; without any valid
    answer the loss is 0. Computed in float32 under autocast.

    Args:
        positive_weights: One factor a plane for the loss where the answer is yes (torch's `pos_weight`), for things
            that are rare.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, C, H, W), 0 or 1; or (B, H, W) where C is 1.
        pixel_weights: (B, H, W), or as the target; optional. The loss is then the weighted mean.

    Raises:
        DataError: If an answer is neither 0, 1 nor missing (as in `CrossEntropyLoss`).

    Example:
        >>> BinaryCrossEntropyLoss()(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 255]]])).exp()
        tensor(2.)
    """

    kind = Kind.LABEL
    exclusive = False
    takes_pixel_weights = True
    positive_weights: Tensor | None

    def __init__(self, positive_weights: list[float] | None = None) -> None:
        super().__init__()
        register_weights(self, "positive_weights", positive_weights)

    def forward(self, output: Tensor, target: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
        """Logits and answers to a scalar."""
        return binary_cross_entropy(output, target, self.positive_weights, pixel_weights)


def register_weights(loss: Loss, name: str, weights: ClassWeights | None) -> None:
    """A buffer that follows the loss to its device; checkpoints hold the argument, not the buffer.

    Weights that stand in a file are read, and become the argument: a checkpoint does not need the file. Weights by name
    are kept in `loss.named_weights`, for the task to bring into the order of its classes.
    """
    if isinstance(weights, str):
        weights = read_class_weights(weights)
        if name in loss.init_args:  # a derived class may fill it in itself
            loss.init_args[name] = weights
    loss.named_weights = weights if isinstance(weights, dict) else None
    numbers = list(weights.values()) if isinstance(weights, dict) else weights
    if numbers is not None and not all(math.isfinite(weight) and weight >= 0 for weight in numbers):
        raise ConfigurationError(f"{type(loss).__name__}: {name} must be finite and at least 0; got {numbers}.")
    loss.register_buffer(name, None if numbers is None else torch.tensor(numbers), persistent=False)
