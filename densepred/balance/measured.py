"""What balances share that weigh tasks by the gradients they send into the encoder."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from densepred.balance.base import Balance
from densepred.balance.task_losses import TaskLosses
from densepred.errors import ConfigurationError
from densepred.tasks.base import Task

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class MeasuredBalance(Balance):
    """Factors that follow the norms of the tasks' gradients with regard to the encoder's maps.

    The maps are what all tasks share last, also where decoders see several of them, and their gradients cost no pass
    through the encoder. What the batches and processes of a step measure is put together as if they were one batch, so
    the factors are equal on all processes, and they hold from the next step on; in the first one all are 1.

    What measuring costs is a second backward pass through the decoders and losses, a further one for each task where
    `share_decoder` is set (three tasks, UNet/resnet18, 4 x 120 x 160 on one CPU core: a step takes 29 % longer, with a
    shared decoder 46 %); `every` makes it rarer. A task whose batch has no valid target is not measured and keeps its
    factor, and while the encoder is frozen all do.

    Args:
        every: Steps from one measurement to the next.

    Raises:
        ConfigurationError: If parameters are sharded (FSDP), where single gradients cannot be taken.
    """

    factors: Tensor

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._measured: list[Tensor] = []

    def begin(self, tasks: Sequence[Task]) -> None:
        """Factors of 1."""
        super().begin(tasks)
        self.register_buffer("factors", torch.ones(len(tasks)))

    def check(self, trainer: "Trainer") -> None:
        """Refuses sharded parameters."""
        from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy  # 4 s, for verbs that do not train

        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            strategy = type(trainer.strategy).__name__
            raise ConfigurationError(
                f"{type(self).__name__} takes the gradient of each task by itself, which {strategy} does not allow. "
                "Train by trainer.strategy ddp or on one device, or take UncertaintyBalance."
            )

    def weights(self) -> Tensor:
        """The factors as they are now (T,)."""
        return self.factors.clone()

    def forward(self, losses: Tensor) -> Tensor:
        """Losses (T,) to the terms of the total (T,)."""
        return self.factors * losses

    def observe(self, step: TaskLosses) -> None:
        """Measures the gradients of a batch."""
        norms, losses = step.gradient_norms, step.values
        known = norms.isfinite() & (norms > 0) & losses.isfinite()
        self._measured.append(torch.stack([torch.where(known, of, 0) for of in (norms.square(), losses, known)]))

    def update(self) -> None:
        """Puts together what was measured since the last step."""
        if not self._measured:
            return
        sums = torch.stack(self._measured).sum(0)
        self._measured.clear()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        squares, losses, batches = sums.unbind()
        count = batches.clamp(min=1)
        # one batch of all images would have a mean of the losses, and 1 / count of each gradient side by side
        self.move(squares.sqrt() / count, losses / count, batches > 0)

    @abstractmethod
    def move(self, norms: Tensor, losses: Tensor, known: Tensor) -> None:
        """Sets the factors from what a step measured.

        Args:
            norms: Of the gradients of the losses as they are, without factors (T,).
            losses: As they are (T,).
            known: Which tasks were measured (T,); the others keep what they have.
        """
