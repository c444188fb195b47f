"""Learning-rate schedules built from an optimizer and the total number of steps, which the trainer knows."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from densepred.errors import ConfigurationError


class PolyLR(LambdaLR):
    """lr = base * (1 - step / total) ** power, after a linear warm-up.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        power: 0.9 in DeepLab and PSPNet; 1 is a straight line.
        warmup_steps: Steps of the linear rise from 0 to the base rate.

    Reference:
        Liu, Rabinovich, Berg. ParseNet: Looking Wider to See Better. 2015. arXiv:1506.04579.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 0.9, warmup_steps: int = 0) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return math.pow(max(0.0, 1.0 - done), power)

        super().__init__(optimizer, factor)


class ExponentialDecay(LambdaLR):
    """lr = base * factor ** floor(step / every): a staircase that ends where training does, not at a given rate.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer; not used.
        factor: What the rate is multiplied by.
        every: After so many steps, again and again; for a paper's epochs the steps of one (images / batch size).

    Reference:
        Jégou et al. The One Hundred Layers Tiramisu. CVPR Workshops 2017. arXiv:1611.09326 (0.995 an epoch).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = ExponentialDecay(optimizer, total_steps=100, factor=0.5, every=2)
        >>> [(optimizer.step(), schedule.step(), optimizer.param_groups[0]["lr"])[2] for _ in range(5)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, factor: float = 0.995, every: int = 1) -> None:
        if factor <= 0 or every < 1:
            raise ConfigurationError(
                f"ExponentialDecay: factor is {factor}, every {every}; expected a factor above 0, and 1 or more steps."
            )
        super().__init__(optimizer, lambda step: factor ** (step // every))


class OneCycle(LambdaLR):
    """Cosine from base / `start_div` up to the base rate, then cosine down to base / `end_div`.

    Unlike torch's, the top is each group's own rate, so that a smaller encoder rate stays smaller.

    Args:
        optimizer: Each group keeps its own base rate, the top of the cycle.
        total_steps: Given by the trainer.
        warmup: Share of the steps spent rising.
        start_div: How far below the top it starts.
        end_div: How far below the top it ends.

    Reference:
        Smith, Topin. Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates. 2018.
        arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.3,
        start_div: float = 25.0,
        end_div: float = 1e4,
    ) -> None:
        def factor(step: int) -> float:
            top = warmup * total_steps
            if step < top:
                low, rise = 1 / start_div, step / top
                return low + (1 - low) * (1 - math.cos(math.pi * rise)) / 2
            low, fall = 1 / end_div, min(1.0, (step - top) / max(1.0, total_steps - 1 - top))
            return low + (1 - low) * (1 + math.cos(math.pi * fall)) / 2

        super().__init__(optimizer, factor)
