"""The state of a training before the step that it is in."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor


class BeforeStep:
    """What a forward pass changes: running statistics, and where the random numbers stand.

    Args:
        module: On the CPU.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._buffers = list(module.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]
        self._random: tuple[Any, ...] = ()

    def remember(self) -> None:
        """Takes a copy."""
        _copy(self._copies, self._buffers)
        self._random = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Puts the copy back."""
        _copy(self._buffers, self._copies)
        torch.set_rng_state(self._random[0])
        np.random.set_state(self._random[1])
        random.setstate(self._random[2])


def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    with torch.no_grad():
        for mine, theirs in zip(into, source, strict=True):
            mine.copy_(theirs)


def rewind(loop: dict[str, Any], again: int, validated: bool) -> None:
    """Sets a trainer's counters, within a batch, to before it and `again` further ones."""
    progress = loop["epoch_loop.batch_progress"]
    for counter in (progress["total"], progress["current"]):
        for name, counted in {"ready": 1, "started": 1, "processed": 0, "completed": 0}.items():
            counter[name] -= again + counted
    progress["is_last_batch"] = progress["is_last_batch"] and not again
    optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counter in (optimizer["step"]["total"], optimizer["step"]["current"]):
        counter["ready"] = counter["completed"]
    for counter in (optimizer["zero_grad"]["total"], optimizer["zero_grad"]["current"]):
        for name in ("ready", "started", "completed"):
            counter[name] -= 1
    if validated and not again:
        # a trainer that finds a validation due passes over it, and counts the step then
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
