"""Focal losses of labels: cross-entropy that counts easy pixels less."""

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.class_weights import ClassWeights
from densepred.losses.masked import mean_over_valid, require_same_size
from densepred.losses.segmentation import known_labels, register_weights, require_label_size
from densepred.sample import Kind

_SMALLEST = 1e-7
"""What 1 - p is at least: its power below 1 has no finite slope at 0."""


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Cross-entropies -ln p to focal losses (1 - p)^gamma * -ln p, exact also where p is close to 1.

    Example:
        >>> focal(torch.tensor([2.0]).log(), gamma=2.0) / torch.tensor([2.0]).log()
        tensor([0.2500])
    """
    return (-torch.expm1(-cross_entropy)).clamp(min=_SMALLEST).pow(gamma) * cross_entropy


class FocalLoss(Loss):
    """Softmax cross-entropy that counts a pixel less, the surer the network is of its true class.

    With p the softmax probability of the true class: mean over the known pixels of (1 - p)^gamma * -ln p. With gamma 0
    it is `CrossEntropyLoss`; with gamma 2 a pixel with p = 0.9 counts a hundredth. With class weights w it is the
    weighted mean, sum w[t] * loss / sum w[t], as in `CrossEntropyLoss`. (The paper's loss is that of yes-or-no
    questions, `BinaryFocalLoss`, divided by the number of objects; dense prediction uses this form.)

    Missing labels (255 in uint8, negative in wider integers) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Args:
        gamma: How much easy pixels are counted less; at least 0.
        class_weights: One factor a class (the paper's alpha), or where they stand (`ClassWeights`); none means equal
            weights.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, H, W), class indices of any integer dtype.

    Raises:
        ConfigurationError: If gamma or a weight is negative.
        DataError: If a label is neither a class nor missing (as in `CrossEntropyLoss`).

    Reference:
        Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017. arXiv:1708.02002.

    Example:
        >>> FocalLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))  # 0.5^2 ln 2
        tensor(0.1733)
    """

    kind = Kind.LABEL
    exclusive = True
    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: ClassWeights | None = None) -> None:
        super().__init__()
        _require_gamma("FocalLoss", gamma)
        register_weights(self, "class_weights", class_weights)
        self.gamma = gamma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits and labels to a scalar."""
        require_label_size("FocalLoss", output, target)
        known, alarm = known_labels(target, output.shape[1])
        index = torch.where(known, target, 0).long()
        logits = torch.where(known.unsqueeze(1), full_precision(output), 0)
        loss = focal(F.cross_entropy(logits, index, reduction="none"), self.gamma)
        if self.class_weights is None:
            return mean_over_valid(torch.where(known, loss, 0), known) + alarm
        weight = torch.where(known, self.class_weights.to(loss)[index], 0)
        total = weight.sum()
        # not clamp: class weights may be small
        return (weight * loss).sum() / torch.where(total > 0, total, 1) + alarm


class BinaryFocalLoss(Loss):
    """Sigmoid cross-entropy that counts a pixel less, the surer the network is of its answer; the paper's form.

    Every plane is a yes-or-no question of its own. With p the probability of the true answer: mean over the known
    answers of a * (1 - p)^gamma * -ln p, where a is alpha for yes and 1 - alpha for no. Without alpha and with gamma 0
    it is `BinaryCrossEntropyLoss`. (The paper divides the sum by the number of objects.)

    Missing answers (255 in uint8, 255 or negative in wider integers) give exactly zero gradient; without any valid
    answer the loss is 0. Computed in float32 under autocast.

    Args:
        gamma: How much easy answers are counted less; at least 0.
        alpha: Factor of yes, from 0 to 1 (the paper: 0.25 with gamma 2); none means a = 1 for both.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, C, H, W), 0 or 1; or (B, H, W) where C is 1.

    Raises:
        ConfigurationError: If gamma is negative, or alpha no share.
        DataError: If an answer is neither 0, 1 nor missing (as in `CrossEntropyLoss`).

    Reference:
        Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017. arXiv:1708.02002.

    Example:
        >>> BinaryFocalLoss()(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 255]]]))  # 0.5^2 ln 2
        tensor(0.1733)
    """

    kind = Kind.LABEL
    exclusive = False

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        _require_gamma("BinaryFocalLoss", gamma)
        if alpha is not None and not 0 <= alpha <= 1:
            raise ConfigurationError(f"BinaryFocalLoss: alpha is the share of yes, from 0 to 1; got {alpha}.")
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits and answers to a scalar."""
        target = target.unsqueeze(1) if target.ndim == output.ndim - 1 else target
        require_same_size("BinaryFocalLoss", output, target)
        known, alarm = known_labels(target, classes=2)
        logits = torch.where(known, full_precision(output), 0)
        truth = torch.where(known, target, 0).to(logits.dtype)
        loss = focal(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), self.gamma)
        if self.alpha is not None:
            loss = loss * (truth * self.alpha + (1 - truth) * (1 - self.alpha))
        return mean_over_valid(torch.where(known, loss, 0), known) + alarm


def _require_gamma(loss: str, gamma: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise ConfigurationError(
            f"{loss}: gamma must be at least 0; got {gamma}. The paper's is 2, 0 is cross-entropy."
        )
