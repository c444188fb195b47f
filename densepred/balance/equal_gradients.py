"""Tasks whose gradients on the encoder are of equal norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from densepred.balance.measured import MeasuredBalance
from densepred.errors import ConfigurationError
from densepred.tasks.base import Task


class EqualGradientBalance(MeasuredBalance):
    """Divides each task's loss by the running mean of its gradient's norm, so that all pull equally at the encoder.

    The factors are 1 / mean norm, scaled so that they sum to the number of tasks: where `GradNormBalance` with alpha 0
    comes to rest, without a learning rate on the way, and like there a factor can never exceed the number of tasks.
    Since a loss may be multiplied by anything without a change, units and reductions of losses no longer matter.

    Args:
        momentum: Share of the running means that stays at each measurement; 0 takes the last one alone.
        every: Steps from one measurement to the next.

    Raises:
        ConfigurationError: If `momentum` is not in [0, 1).

    Reference:
        Chen, Badrinarayanan, Lee, Rabinovich. GradNorm. ICML 2018. arXiv:1711.02257 (alpha = 0: equal norms). Lin et
        al. Dual-Balancing for Multi-Task Learning. 2023. arXiv:2308.12029 (gradients divided by their norms, running
        means; they average the gradients themselves, and take the logarithm of the losses as well). Sener, Koltun.
        Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018. arXiv:1810.04650 (gradients with regard to
        the encoder's output in place of its weights).

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> from densepred.tasks.normals import Normals
        >>> balance = EqualGradientBalance()
        >>> balance.begin([Depth(), Normals()])
        >>> balance.move(torch.tensor([3.0, 1.0]), torch.ones(2), torch.tensor([True, True]))
        >>> balance.weights()
        tensor([0.5000, 1.5000])
    """

    norms: Tensor
    seen: Tensor

    def __init__(self, momentum: float = 0.9, every: int = 10) -> None:
        super().__init__(every)
        if not 0 <= momentum < 1:
            raise ConfigurationError(f"EqualGradientBalance: momentum is {momentum}; expected 0 or more, below 1.")
        self.momentum = momentum

    def begin(self, tasks: Sequence[Task]) -> None:
        """Nothing is known of any task."""
        super().begin(tasks)
        self.register_buffer("norms", torch.zeros(len(tasks)))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def move(self, norms: Tensor, losses: Tensor, known: Tensor) -> None:
        """Running means, and their inverses as factors; a task that was never measured keeps 1."""
        mean = torch.where(self.seen, self.momentum * self.norms + (1 - self.momentum) * norms, norms)
        self.norms.copy_(torch.where(known, mean, self.norms))
        self.seen.logical_or_(known)
        inverse = torch.where(self.seen, 1 / self.norms, 0)
        self.factors.copy_(torch.where(self.seen, inverse * self.seen.sum() / inverse.sum(), 1))
