"""GradNorm: gradients of equal norm, larger for the tasks that learn more slowly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from densepred.balance.measured import MeasuredBalance
from densepred.errors import ConfigurationError
from densepred.tasks.base import Task

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class GradNormBalance(MeasuredBalance):
    """Learns factors w that bring the norm of each task's gradient to a common one, times its lag to the power alpha.

    With G_t = w_t times the gradient's norm and L_t(0) the first loss, the lag of a task is its L_t / L_t(0) divided by
    the mean of that over tasks: above 1 where it has learned less than the others. A step reduces the sum of
    |G_t - mean(G) lag_t ** alpha|, the goal held fixed, by w alone; then w is scaled to sum to the number of tasks.

    As published, w has an optimizer of its own (Adam), whatever the network's: its state is in buffers. Gradients are
    taken with regard to the encoder's maps instead of the weights of one layer, as decoders read several maps. A loss
    that is not above zero at first has no ratio, and counts as neither slow nor fast. No w sinks below 0.001.

    Args:
        alpha: How much slower tasks are favoured; 0 makes all norms equal. 1.5 was published for NYU (semantics,
            depth, normals), 0.12 for tasks that are much alike.
        learning_rate: Of the factors.
        every: Steps from one measurement, and step of the factors, to the next.

    Raises:
        ConfigurationError: If `alpha` is negative or `learning_rate` not positive.

    Reference:
        Chen, Badrinarayanan, Lee, Rabinovich. GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks. ICML 2018. arXiv:1711.02257 (Algorithm 1).

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> from densepred.tasks.normals import Normals
        >>> balance = GradNormBalance()
        >>> balance.begin([Depth(), Normals()])
        >>> balance.move(torch.tensor([3.0, 1.0]), torch.ones(2), torch.tensor([True, True]))
        >>> balance.weights()
        tensor([0.9750, 1.0250])
    """

    seen: Tensor
    initial: Tensor
    steps: Tensor
    first_moment: Tensor
    second_moment: Tensor

    def __init__(self, alpha: float = 1.5, learning_rate: float = 0.025, every: int = 1) -> None:
        super().__init__(every)
        if alpha < 0 or learning_rate <= 0:
            raise ConfigurationError(
                f"GradNormBalance: alpha is {alpha}, learning_rate {learning_rate}; expected 0 or more, and above 0."
            )
        self.alpha = alpha
        self.learning_rate = learning_rate

    def begin(self, tasks: Sequence[Task]) -> None:
        """Nothing is known of any task."""
        super().begin(tasks)
        for name in ("initial", "steps", "first_moment", "second_moment"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def move(self, norms: Tensor, losses: Tensor, known: Tensor) -> None:
        """A step of the factors of those tasks that were measured."""
        self.initial.copy_(torch.where(known & ~self.seen, losses, self.initial))
        self.seen.logical_or_(known)
        ratios = torch.where(self.initial > 0, losses.clamp(min=0) / self.initial, 1)
        lags = ratios / _mean(ratios, known).clamp(min=_EPSILON)
        scaled = self.factors * norms
        goals = _mean(scaled, known) * lags**self.alpha
        self._step((scaled - goals).sign() * norms, known)
        self._renormalise(known)

    def _renormalise(self, known: Tensor) -> None:
        """All factors sum to the number of tasks again; those of unknown tasks stay."""
        moved = torch.where(known, self.factors.clamp(min=1e-3), 0)
        kept = torch.where(known, 0, self.factors)
        share = (len(self.factors) - kept.sum()) / moved.sum().clamp(min=1e-3)
        self.factors.copy_(moved * share + kept)

    def _step(self, gradient: Tensor, known: Tensor) -> None:
        """Adam, on the tasks that are known."""
        self.steps.add_(known)
        moments = (self.first_moment, gradient, _BETAS[0]), (self.second_moment, gradient.square(), _BETAS[1])
        for moment, value, beta in moments:
            moment.copy_(torch.where(known, moment.lerp(value, 1 - beta), moment))
        first, second = (moment / (1 - beta**self.steps) for moment, _, beta in moments)
        step = self.learning_rate * first / (second.sqrt() + _EPSILON)
        self.factors.sub_(torch.where(known, step, 0))


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)
