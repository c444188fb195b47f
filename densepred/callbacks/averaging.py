"""Averages of the weights over the training, which validation, checkpoints and the end of the training take."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from densepred.callbacks.norm_statistics import measure_statistics
from densepred.errors import ConfigurationError
from densepred.tasks.base import Batch


class _Averaging(WeightAveraging):
    """Lightning's WeightAveraging, that leaves everything as it is until there is an average.

    Lightning's own validates and saves the initial weights as long as averaging has not begun, and keeps the average in
    the processor's memory while a GPU trains.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=self._update)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what cannot be averaged."""
        if stage != "fit":
            return
        name = type(self).__name__
        averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
        if len(averages) > 1:
            raise ConfigurationError(
                f"{name}: trainer.callbacks has {len(averages)} averages of the weights "
                f"({', '.join(type(average).__name__ for average in averages)}), and a checkpoint holds one. Keep one."
            )
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigurationError(
                f"{name}: trainer.strategy {type(trainer.strategy).__name__} shares the weights out between devices, "
                "and an average needs them whole. Train by ddp or on one device, or leave it out."
            )
        self._latest_update_step = 0
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follows the weights to their device; how many were averaged is counted where nothing waits for it."""
        self._model.module.to(pl_module.device)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the average."""
        if self._begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives it back."""
        if self._begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the average in the module."""
        if self._begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average is what the checkpoint's weights are; those of the training stand beside them."""
        if self._begun:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continues the average, or begins one where the checkpoint has none."""
        if self._average_model is not None and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @property
    def _model(self) -> AveragedModel:
        if self._average_model is None:
            raise RuntimeError(f"{type(self).__name__} averages in fit alone.")
        return self._average_model

    @property
    def _begun(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def _share(self, averaged: int) -> float:
        """How much of the new weights goes into an average that has been updated so often."""
        raise NotImplementedError

    @torch.no_grad()
    def _update(self, averages: list[Tensor], current: list[Tensor], averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():
            # not the count that is passed, which has been moved to the device
            torch._foreach_lerp_(averages, current, self._share(int(self._model.n_averaged)))
        else:  # counters of batches
            torch._foreach_copy_(averages, current)


class EMA(_Averaging):
    """Exponential moving average of the weights: average = d * average + (1 - d) * weights, after optimizer steps.

    Validation, `best.ckpt`, `last.ckpt` and the module after the training have the average; the training goes on with
    its own weights, which a checkpoint holds too, so that a resumed run continues both to the bit. The statistics of
    batch normalisation are averaged alike. What is frozen stays as it is. It costs one more copy of the weights.

    Args:
        decay: d, in each update. The average reaches back about `every / (1 - decay)` steps; take 0.99 for a few
            hundred steps, 0.9999 for a hundred thousand.
        every: Optimizer steps from one update to the next.
        from_step: The first optimizer step, counted from 0, after which it may be updated; until there is an average,
            the weights themselves are validated and saved.
        warmup: Whether d rises as min(decay, (1 + n) / (10 + n)) with the number n of updates, so that the first
            weights do not weigh for long.

    Raises:
        ConfigurationError: If an argument is out of range, there is another average, or the weights are sharded.

    Reference:
        Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM J. Control Optim. 1992.
        Tarvainen, Valpola. Mean teachers are better role models. NeurIPS 2017. arXiv:1703.01780. The warm-up is
        TensorFlow's (`ExponentialMovingAverage(num_updates)`).

    Example:
        >>> ema = EMA(decay=0.999)
        >>> [round(1 - ema._share(updates), 3) for updates in (1, 10, 100, 10000)]
        [0.182, 0.55, 0.918, 0.999]
    """

    def __init__(self, decay: float = 0.999, every: int = 1, from_step: int = 0, warmup: bool = True) -> None:
        if not 0 <= decay < 1 or every < 1 or from_step < 0:
            raise ConfigurationError(
                f"EMA: decay is {decay}, every {every}, from_step {from_step}; expected a decay of at least 0 and "
                "below 1, 1 or more steps, and a step counted from 0."
            )
        super().__init__()
        self.decay = decay
        self.every = every
        self.from_step = from_step
        self.warmup = warmup

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether an optimizer step, counted from 0, is followed by an update."""
        return step_idx is not None and step_idx >= self.from_step and (step_idx - self.from_step) % self.every == 0

    def _share(self, averaged: int) -> float:
        decay = min(self.decay, (1 + averaged) / (10 + averaged)) if self.warmup else self.decay
        return 1 - decay


class SWA(_Averaging):
    """Stochastic weight averaging: the plain mean of the weights at the ends of the last epochs.

    Validation, checkpoints and the module after the training have the mean as soon as there is one. Batch normalisation
    then gets the statistics that the mean's own maps have: they are measured anew, on training images, whenever the
    mean changes (what is frozen keeps its own). That costs `batches` forward passes an epoch.

    The learning rate is the schedule's affair. It should stay large enough for the weights to travel: for the paper's
    constant rate, `Step` with `milestones: [0.75]`, or `Constant`. Lightning's StochasticWeightAveraging would replace
    the schedule by its own and average only at the very end, so it is refused.

    Args:
        start: The share of the training after which epochs are averaged.
        batches: How many training batches, on each process, the statistics of batch normalisation are measured on; 0
            averages the statistics of the weights instead, which fits them worse.

    Raises:
        ConfigurationError: If an argument is out of range, the training has no end, there is another average, or the
            weights are sharded.

    Reference:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson. Averaging Weights Leads to Wider Optima and Better
        Generalization. UAI 2018. arXiv:1803.05407.
    """

    def __init__(self, start: float = 0.75, batches: int = 100) -> None:
        if not 0 <= start < 1 or batches < 0:
            raise ConfigurationError(
                f"SWA: start is {start}, batches {batches}; expected a share of the training of at least 0 and below "
                "1, and 0 or more batches."
            )
        super().__init__()
        self.start = start
        self.batches = batches

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks how long the training is."""
        super().on_fit_start(trainer, pl_module)
        if trainer.estimated_stepping_batches == float("inf"):
            raise ConfigurationError(
                "SWA averages the last part of a training, which has no end: max_epochs and max_steps are both -1. Set "
                "trainer.max_epochs or trainer.max_steps."
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Averages at the end of an epoch, before it is validated."""
        total = trainer.estimated_stepping_batches
        if not trainer.is_last_batch and trainer.global_step < total:
            return
        if trainer.global_step <= max(self._latest_update_step, self.start * total):
            return
        self._model.update_parameters(pl_module)
        self._latest_update_step = trainer.global_step
        if self.batches:
            measure_statistics(self._model.module, trainer, pl_module, self.batches)  # type: ignore[arg-type]

    def _share(self, averaged: int) -> float:
        return 1 / (averaged + 1)
