"""Overfitting a handful of images: a network that cannot learn these by heart will not learn the rest either."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from densepred.tasks.base import Batch
from densepred.tuning.bench import NO_FILES, ONE_DEVICE, QUIET, Bench, Config, changed, on_trainer
from densepred.tuning.curves import smoothed
from densepred.tuning.initial import training_batches

LEAST, MOST = 4, 8
LEARNT = 0.1
"""Share of the first loss below which images count as learnt."""
ENOUGH = 0.05
"""Share of it at which there is no need to go on."""


class Overfitting(NamedTuple):
    """How far the loss of a handful of images came down.

    Args:
        images: How many.
        losses: Of the steps.
        rate: The learning rate.
        verdict: "good", "unclear" or "bad".
        reason: In words.
    """

    images: int
    losses: list[float]
    rate: float
    verdict: str
    reason: str


def judge_overfitting(losses: Sequence[float], blank: float) -> tuple[str, str]:
    """Whether the loss came down to the end, is still on its way, or is stuck.

    Args:
        losses: Of the steps, in order.
        blank: The loss of a network that knows nothing; of a loss that may go below zero only the fall is judged.
    """
    if not losses or not all(math.isfinite(loss) for loss in losses):
        return "bad", "not finite: the learning rate is too high, or the loss breaks on these targets"
    curve = smoothed(losses)
    end, last_quarter = float(curve[-1]), float(curve[-max(2, len(curve) // 4)])
    share = end / blank if blank > 0 else math.nan
    if share <= LEARNT or end < 0:
        return "good", f"down to {end:.3g}, {share:.0%} of what knowing nothing costs, in {len(losses)} steps"
    if last_quarter - end > 0.05 * (float(curve[0]) - end) and end < curve[0]:
        return "unclear", f"at {end:.3g} ({share:.0%}) and still falling after {len(losses)} steps: give it more"
    if share > 0.7:
        return "bad", (
            f"stays at {end:.3g} ({share:.0%}): nothing is learnt. Look at targets, loss and initialisation; is all of "
            "the network trained?"
        )
    return "unclear", (
        f"settles at {end:.3g} ({share:.0%}): dropout, frozen layers or planes too coarse for the targets may keep it "
        "there; otherwise something limits the network"
    )


class Memorise(pl.Callback):
    """A constant learning rate without weight decay; ends as soon as the images are learnt by heart.

    Args:
        rate: The learning rate; the optimizer's groups keep their proportions.
        enough: The loss at which to end.
        every: How many steps see all images.
    """

    def __init__(self, rate: float, enough: float, every: int) -> None:
        super().__init__()
        self.rate = rate
        self.enough = enough
        self.every = every
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the rate, and leaves the weight decay out."""
        optimizer = trainer.optimizers[0]
        for group in optimizer.param_groups:
            group["lr"] *= self.rate / optimizer.defaults["lr"]
            if "weight_decay" in group:
                group["weight_decay"] = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Notes the loss."""
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        recent = self.losses[-self.every :]
        if not math.isfinite(recent[-1]) or (len(recent) == self.every and max(recent) <= self.enough):
            trainer.should_stop = True


def overfit(config: Config, rate: float, blank: float, steps: int) -> Overfitting:
    """Trains on a handful of images, drawn and augmented once, until they are known by heart.

    Args:
        config: A whole configuration.
        rate: The learning rate; one that a range search has found, so that a failure is not the rate's.
        blank: The loss of knowing nothing, summed over the tasks with their weights.
        steps: At most so many.
    """
    options = {**ONE_DEVICE, **QUIET, **NO_FILES, "max_steps": steps}
    memorise = Memorise(rate, ENOUGH * blank if blank > 0 else -math.inf, 1)
    bench = Bench(changed(config, on_trainer(options)), [memorise])
    bench.model.lr_scheduler = None
    batches = handful(bench)
    memorise.every = len(batches)
    torch.manual_seed(0)
    bench.trainer.fit(bench.model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    images = sum(len(batch["image"]) for batch in batches)
    return Overfitting(images, memorise.losses, rate, *judge_overfitting(memorise.losses, blank))


def handful(bench: Bench) -> list[Batch]:
    """Four to eight training images, in batches of the configuration's size where that is less."""
    size = bench.datamodule.batch_size
    batches = training_batches(bench, max(1, LEAST // size))
    return [{key: value[:MOST] for key, value in batch.items()} for batch in batches]
