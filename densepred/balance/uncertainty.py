"""Tasks weighted by a learned uncertainty."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densepred.balance.base import Balance
from densepred.sample import Kind
from densepred.tasks.base import Task


class UncertaintyBalance(Balance):
    """Learns a variance for each task: the noise that its targets have, whatever the image.

    With s = log of the variance, a task that regresses contributes exp(-s) loss / 2 + s / 2, and one that classifies
    exp(-s) loss + s / 2: a large variance makes its loss count less, and s / 2 keeps it from growing without end. At
    rest s is the logarithm of the loss (of twice the loss in classification), so that every task's weighted loss is
    1/2. All s start at 0: regression with weight 1/2, classification with 1.

    The s are parameters of the group `rest`, which learns at the optimizer's rate and never decays. A task whose batch
    has no valid target leaves its s alone. The losses must not be negative: of one that can be, such as
    `VonMisesFisherLoss`, the weight would grow without end.

    Shape:
        losses: (T,).
        returns: (T,).

    Reference:
        Kendall, Gal, Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics.
        CVPR 2018. arXiv:1705.07115 (Eq. 7 and 10; Section 3.2 for s).

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> from densepred.tasks.segmentation import Segmentation
        >>> balance = UncertaintyBalance()
        >>> balance.begin([Segmentation(2), Depth()])
        >>> balance(torch.tensor([0.6, 0.6])).tolist()
        [0.6000000238418579, 0.30000001192092896]
    """

    factors: Tensor

    def __init__(self) -> None:
        super().__init__()

    def begin(self, tasks: Sequence[Task]) -> None:
        """A log variance for each task."""
        super().begin(tasks)
        factors = [1.0 if task.kind == Kind.LABEL else 0.5 for task in tasks]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)
        self.log_variances = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        """1 / variance, half of it for regression (T,)."""
        return self.factors * (-self.log_variances.detach()).exp()

    def forward(self, losses: Tensor) -> Tensor:
        """Losses (T,) to the terms of the total (T,)."""
        terms = self.factors * (-self.log_variances).exp() * losses + self.log_variances / 2
        # a loss without valid targets is exactly 0; its s would sink at each of them
        return torch.where(losses.detach() == 0, losses, terms)
