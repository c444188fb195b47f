"""What every balance between tasks promises."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from densepred.balance.task_losses import TaskLosses
from densepred.errors import ConfigurationError
from densepred.recipe import Recorded
from densepred.tasks.base import Task

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Balance(Recorded, nn.Module, ABC):
    """Decides in training how much each task counts, from what it sees of their losses.

    A step goes: `forward` turns the losses into the terms of the total, `observe` may look at the losses before the
    backward pass, and `update` follows it, once a step of the optimizer, however many batches and processes the step
    has. What it knows is in parameters, learned with the network's, and buffers; both are in checkpoints.

    A task's fixed `weight` stands before its term: a balance evens tasks out, and a task of weight 2 gets twice the
    even share.

    Args:
        every: Steps from one look at the losses to the next.

    Raises:
        ConfigurationError: If there is one task only.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ConfigurationError(f"{type(self).__name__}: every is {every}; expected 1 or more steps.")
        self.every = every

    def begin(self, tasks: Sequence[Task]) -> None:
        """Learns which tasks there are; called once, before anything else."""
        if len(tasks) < 2:
            raise ConfigurationError(
                f"{type(self).__name__}: there is nothing to balance with {len(tasks)} task. Add one, or leave "
                "`balance` out."
            )

    def check(self, trainer: "Trainer") -> None:
        """Refuses, before training, a trainer with which the method does not work."""

    @abstractmethod
    def weights(self) -> Tensor:
        """The factor of each task's loss as it is now, detached (T,)."""

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Losses (T,) to the terms of the total (T,)."""

    def observe(self, step: TaskLosses) -> None:
        """Looks at the losses of a batch before its backward pass; nothing by default."""

    def update(self) -> None:
        """Draws conclusions for the next step; nothing by default."""
