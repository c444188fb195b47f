"""The range search of learning rates: the rate grows every step, and the loss tells where it works."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl

from densepred.tasks.base import Batch
from densepred.tuning.bench import NO_FILES, ONE_DEVICE, QUIET, Bench, Config, changed, on_trainer
from densepred.tuning.curves import slopes, smoothed

LOWEST, HIGHEST = 1e-5, 10.0
WINDOW = 1.5
"""Decades of the rate over which a slope is measured: losses of single batches are noisy."""


class RateSearch(NamedTuple):
    """What a range search found.

    Args:
        suggested: The rate to train with, or None where the loss fell nowhere.
        steepest: Where the loss fell most for a given growth of the rate.
        diverged: Where it went up and away, or None where it did not.
        verdict: "good" or "bad".
        reason: What was seen, in words.
    """

    suggested: float | None
    steepest: float | None
    diverged: float | None
    verdict: str
    reason: str


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> RateSearch:
    """The steepest rate, but at most a tenth of the one at which the loss diverges.

    Args:
        rates: Growing geometrically.
        losses: One a rate; the last may be infinite or NaN.

    Reference:
        Smith. Cyclical Learning Rates for Training Neural Networks. WACV 2017. arXiv:1506.01186.

    Example:
        >>> rates = [10 ** (k / 20 - 4) for k in range(80)]
        >>> losses = [2 - 1 / (1 + (0.01 / rate) ** 3) for rate in rates]
        >>> found = suggest_rate(rates, losses)
        >>> round(found.steepest, 3), found.diverged
        (0.01, None)
    """
    finite = [math.isfinite(loss) for loss in losses]
    count = finite.index(False) if False in finite else len(losses)
    if count < 10:
        lowest = rates[0] if len(rates) else math.nan
        return RateSearch(None, None, lowest, "bad", f"the loss is not finite after {count} steps from {lowest:.2g} on")
    curve = smoothed(losses[:count], share=0.15)
    least = int(np.argmin(curve))
    above = np.flatnonzero(curve[least:] > curve[0])  # all that was learnt is lost again
    end = least + int(above[0]) if len(above) else count if count < len(losses) else None
    diverged = None if end is None else float(rates[min(end, len(rates) - 1)])
    noise = float(np.std(np.asarray(losses[: least + 1]) - curve[: least + 1]))
    reach = max(2, round(WINDOW / 2 / math.log10(rates[1] / rates[0])))
    if least < 2 or curve[0] - curve[least] < max(0.02 * abs(curve[0]), noise):
        reason = "the loss falls at no rate: look at the initialisation and the loss"
        return RateSearch(None, None, diverged, "bad", reason)
    # near the start there is too little on the left to tell a slope from noise
    first = min(reach, least - 1)
    steepest = float(rates[first + int(np.argmin(slopes(losses[:count], reach)[first : least + 1]))])
    suggested = steepest if diverged is None else min(steepest, diverged / 10)
    reason = f"falls most steeply at {steepest:.2g}, " + (
        "diverges nowhere" if diverged is None else f"diverges at {diverged:.2g}"
    )
    return RateSearch(float(f"{suggested:.2g}"), steepest, diverged, "good", reason)


class GrowRate(pl.Callback):
    """Lets the learning rate grow geometrically from step to step, and stops where the loss diverges.

    The groups of the optimizer keep their proportions.

    Args:
        steps: From the lowest rate to the highest.
        lowest: The first rate.
        highest: The last one.
    """

    def __init__(self, steps: int, lowest: float = LOWEST, highest: float = HIGHEST) -> None:
        super().__init__()
        self.schedule = np.geomspace(lowest, highest, steps).tolist()
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._base: list[float] = []
        self._reference = 1.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers the groups' proportions."""
        optimizer = trainer.optimizers[0]
        self._reference = optimizer.defaults["lr"]
        self._base = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Sets the rate of the step."""
        rate = self.schedule[min(trainer.global_step, len(self.schedule) - 1)]
        for group, base in zip(trainer.optimizers[0].param_groups, self._base, strict=True):
            group["lr"] = base * rate / self._reference

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Notes the loss that the rates before this one have led to."""
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.rates.append(self.schedule[min(max(trainer.global_step - 1, 0), len(self.schedule) - 1)])
        recent = self.losses[-3:]
        mean = sum(recent) / len(recent)
        first = self.losses[:5]
        start, lowest = sum(first) / len(first), min(self.losses)
        # beyond what the analysis calls divergence, and for losses that go below zero too
        if not mean <= start + max(start - lowest, 0.5 * abs(start)):
            trainer.should_stop = True


def search_rates(config: Config, steps: int) -> tuple[list[float], list[float]]:
    """Trains with a growing rate until the loss diverges, or for `steps` steps.

    Returns:
        The rates, and the loss at each.
    """
    options = {**ONE_DEVICE, **QUIET, **NO_FILES, "max_steps": steps}
    grow = GrowRate(steps)
    bench = Bench(changed(config, on_trainer(options)), [grow])
    bench.model.lr_scheduler = None
    bench.trainer.fit(bench.model, datamodule=bench.datamodule)
    return grow.rates, grow.losses
