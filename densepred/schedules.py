"""Learning-rate schedules built from an optimizer and the total number of steps, which the trainer knows."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from densepred.errors import ConfigurationError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def warmed_up(factor: Callable[[int], float], warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """A schedule's factor after a linear rise of the first steps, from 1 / (warmup_steps + 1) of the base rate to it.

    Args:
        factor: Multiple of the base rate at a step.
        warmup_steps: Steps of the rise.
        total_steps: Of the training.

    Raises:
        ConfigurationError: If training would end before the rise does.

    Reference:
        Goyal et al. Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. 2017. arXiv:1706.02677.

    Example:
        >>> [round(warmed_up(lambda step: 1.0, 3, 10)(step), 2) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if not 0 <= warmup_steps < max(total_steps, 1):
        raise ConfigurationError(
            f"lr_scheduler: warmup_steps is {warmup_steps}, but the training has {total_steps} steps. Give 0 to "
            f"{max(total_steps - 1, 0)}."
        )
    return lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else factor(step)


def _done(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of what follows the warm-up that is over, 0 to 1."""
    return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


class Constant(LambdaLR):
    """lr = base, after a linear warm-up.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        warmup_steps: Steps of the linear rise to the base rate.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> None:
        super().__init__(optimizer, warmed_up(lambda step: 1.0, warmup_steps, total_steps))


class PolyLR(LambdaLR):
    """lr = base * (1 - step / total) ** power, after a linear warm-up.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        power: 0.9 in DeepLab and PSPNet; 1 is a straight line.
        warmup_steps: Steps of the linear rise to the base rate; the curve begins after them.

    Reference:
        Liu, Rabinovich, Berg. ParseNet: Looking Wider to See Better. 2015. arXiv:1506.04579.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 0.9, warmup_steps: int = 0) -> None:
        def factor(step: int) -> float:
            return math.pow(1.0 - _done(step, warmup_steps, total_steps), power)

        super().__init__(optimizer, warmed_up(factor, warmup_steps, total_steps))


class Cosine(LambdaLR):
    """lr = base * (floor + (1 - floor) * (1 + cos(pi * step / total)) / 2), after a linear warm-up, without restarts.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        floor: Share of the base rate that it ends at.
        warmup_steps: Steps of the linear rise to the base rate; the curve begins after them.

    Reference:
        Loshchilov, Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. ICLR 2017. arXiv:1608.03983.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, floor: float = 0.0, warmup_steps: int = 0) -> None:
        def factor(step: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * _done(step, warmup_steps, total_steps))) / 2

        super().__init__(optimizer, warmed_up(factor, warmup_steps, total_steps))


class Step(LambdaLR):
    """lr = base * factor ** (milestones passed); milestones are shares of the training, after a linear warm-up.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        milestones: Shares of all steps, above 0 and below 1. For a fall every so many steps: `ExponentialDecay`.
        factor: What the rate is multiplied by at each.
        warmup_steps: Steps of the linear rise to the base rate; the milestones stay where they are.

    Raises:
        ConfigurationError: If a milestone is no share, or the factor is not positive.

    Reference:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. arXiv:1512.03385 (by 10, at about
        1/2 and 3/4).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = Step(optimizer, total_steps=4, milestones=(0.5, 0.75))
        >>> [(optimizer.step(), schedule.step(), round(optimizer.param_groups[0]["lr"], 4))[2] for _ in range(4)]
        [1.0, 0.1, 0.01, 0.01]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        milestones: tuple[float, ...] = (0.5, 0.75),
        factor: float = 0.1,
        warmup_steps: int = 0,
    ) -> None:
        if factor <= 0 or not all(0 < milestone < 1 for milestone in milestones):
            raise ConfigurationError(
                f"Step: milestones are {tuple(milestones)}, factor {factor}; expected shares of the training between 0 "
                "and 1, such as 0.5, and a factor above 0. For a fall every so many steps take ExponentialDecay."
            )

        def decay(step: int) -> float:
            return float(factor ** sum(step >= milestone * total_steps for milestone in milestones))

        super().__init__(optimizer, warmed_up(decay, warmup_steps, total_steps))


class ExponentialDecay(LambdaLR):
    """lr = base * max(floor, factor ** floor(step / every)): a staircase that ends where training does, or at a rate.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        factor: What the rate is multiplied by.
        every: After so many steps, again and again; for a paper's epochs the steps of one (images / batch size).
        warmup_steps: Steps of the linear rise to the base rate; the stairs stay where they are.
        floor: Share of the base rate that it does not fall below.

    Reference:
        Jégou et al. The One Hundred Layers Tiramisu. CVPR Workshops 2017. arXiv:1611.09326 (0.995 an epoch).
        Pohlen et al. Full-Resolution Residual Networks. CVPR 2017. arXiv:1611.08323; its release has 0.8 every 5000
        steps, and a floor of 0.05.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = ExponentialDecay(optimizer, total_steps=100, factor=0.5, every=2)
        >>> [(optimizer.step(), schedule.step(), optimizer.param_groups[0]["lr"])[2] for _ in range(5)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        factor: float = 0.995,
        every: int = 1,
        warmup_steps: int = 0,
        floor: float = 0.0,
    ) -> None:
        if factor <= 0 or every < 1:
            raise ConfigurationError(
                f"ExponentialDecay: factor is {factor}, every {every}; expected a factor above 0, and 1 or more steps."
            )
        if not 0 <= floor <= 1:
            raise ConfigurationError(f"ExponentialDecay: floor is {floor}; expected a share of the base rate, 0 to 1.")

        def decay(step: int) -> float:
            return max(floor, factor ** (step // every))

        super().__init__(optimizer, warmed_up(decay, warmup_steps, total_steps))


class InverseDecay(LambdaLR):
    """lr = base / (1 + decay * step): what Torch7's optimizers call `learningRateDecay`.

    Args:
        optimizer: Each group keeps its own base rate.
        total_steps: Given by the trainer.
        decay: After 1 / decay steps the rate has halved.
        warmup_steps: Steps of the linear rise to the base rate; the curve stays where it is.

    Raises:
        ConfigurationError: If the decay is negative.

    Reference:
        Fourure et al. Residual Conv-Deconv Grid Network for Semantic Segmentation. BMVC 2017. arXiv:1707.07958 (5e-7 in
        the release).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = InverseDecay(optimizer, total_steps=100, decay=1.0)
        >>> [(optimizer.step(), schedule.step(), optimizer.param_groups[0]["lr"])[2] for _ in range(3)]
        [0.5, 0.3333333333333333, 0.25]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, decay: float = 5e-7, warmup_steps: int = 0) -> None:
        if decay < 0:
            raise ConfigurationError(f"InverseDecay: decay is {decay}; expected 0 or more.")
        super().__init__(optimizer, warmed_up(lambda step: 1 / (1 + decay * step), warmup_steps, total_steps))


class OneCycle(LambdaLR):
    """Cosine from base / `start_div` up to the base rate, then cosine down to base / `end_div`: a warm-up of its own.

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


def planned_steps(trainer: "Trainer") -> int:
    """How many steps a trainer will take, which a schedule must know.

    Raises:
        ConfigurationError: If it is to train without end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ConfigurationError(
            "lr_scheduler needs to know when training ends: max_epochs and max_steps are both -1. Set "
            "trainer.max_epochs or trainer.max_steps, or lr_scheduler to null."
        )
    return int(steps)
