"""Stops a training whose loss is not finite or explodes, and says what was seen."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed
from torch.optim import Optimizer

from densepred.callbacks.checkpoints import LastCheckpoint, agree
from densepred.callbacks.failure import (
    Failure,
    advice,
    batch_names,
    learning_rates,
    look_at_batch,
    look_at_gradients,
    look_at_layers,
    look_at_parameters,
    not_finite,
)
from densepred.callbacks.loss_history import LossHistory
from densepred.callbacks.step_before import BeforeStep, rewind
from densepred.errors import ConfigurationError, TrainingError
from densepred.tasks.base import Batch

BEFORE = "before_failure"
"""Name of the checkpoint from before: `--ckpt_path before_failure`."""


@dataclass
class _Seen:
    """A batch whose losses have not been looked at."""

    step: int
    names: list[str]
    losses: dict[str, Tensor]


@dataclass
class _Verdict:
    """Where it went wrong, and how."""

    seen: _Seen
    what: str
    exploded: bool = False


class LossGuard(pl.Callback):
    """Stops when a loss or the gradient is NaN or infinite, or when a loss explodes, and says all there is to know.

    That is the step, each task's loss, the names of the batch's images, learning rates, gradient norm, the first layer
    that is not finite, whether parameters, inputs and targets are, what helps, and a checkpoint from before.

    On the CPU every step is looked at before the optimizer makes it, and the state before it goes to
    `before_failure.ckpt`: a run that continues from there begins with the very batch that failed. On other devices
    looking means waiting for them, so it is done every `log_every_n_steps`, before a validation and before anything is
    saved; a failure is then told with the step and the images where it began. No state with weights that are not finite
    is ever saved, so that `last.ckpt` and `best.ckpt` stay those from before. Several processes stop together.

    A loss explodes when it is `factor` times what it usually was for `patience` steps in a row (`LossHistory`); what
    `last.ckpt` held when that began is kept as `before_failure.ckpt`. With float16 the scaler skips steps whose
    gradients are not finite, which is no failure; losses that are not finite for `patience` steps in a row are.

    Args:
        factor: How many times the usual loss is exploding; infinity looks for losses that are not finite alone.
        patience: For how many steps in a row.

    Raises:
        ConfigurationError: If an argument is out of range.
        TrainingError: When the training went wrong.
    """

    def __init__(self, factor: float = 10.0, patience: int = 20) -> None:
        super().__init__()
        if factor <= 1 or patience < 1:
            raise ConfigurationError(
                f"LossGuard: factor is {factor}, patience {patience}; expected a factor above 1, and 1 step or more."
            )
        self.factor = factor
        self.patience = patience
        self._histories: dict[str, LossHistory] = {}
        self._pending: list[_Seen] = []
        self._bad_in_a_row = 0
        self._kept: Path | None = None
        self._batch: Batch = {}
        self._before: BeforeStep | None = None
        self._watched: list[torch.nn.Parameter] = []
        self._validated = False
        self._rewind: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins anew."""
        self._histories, self._pending, self._bad_in_a_row = {}, [], 0
        parameters = list(pl_module.parameters())
        # those of biases and norms are sums over all that flows back through their layer, and small; with the first
        # layer's weights a gradient that is not finite anywhere shows in them
        self._watched = [p for p in parameters if p.ndim <= 1] + [p for p in parameters if p.ndim > 1][:1]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remembers the batch, and on the CPU what its forward pass will change."""
        self._batch = batch
        if self._looks_at_every_step(pl_module) and batch_idx % trainer.accumulate_grad_batches == 0:
            if self._before is None:
                self._before = BeforeStep(pl_module)
            self._before.remember()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remembers the losses, without waiting for the device."""
        terms = getattr(getattr(pl_module, "step_losses", None), "losses", None)
        if terms is None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            terms = {"loss": loss if scaler is None else loss / scaler.get_scale()}
        losses = {name: value.detach() for name, value in terms.items()}
        self._pending.append(_Seen(trainer.global_step, batch_names(self._batch), losses))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks, before a bad step is made: on the CPU always, else at the steps that log."""
        if self._looks_at_every_step(pl_module):
            self._look(trainer, pl_module, self._gradient_is_finite())
        elif (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Lets the batch go."""
        self._batch = {}
        self._validated = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks: a network that went wrong is not worth measuring."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._look_between_steps(trainer, pl_module)
            self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks."""
        self._look_between_steps(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lets everything go."""
        self._batch, self._before, self._pending = {}, None, []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses to have a bad state saved; sets the counters of one from before to the moment it is of."""
        if self._rewind is not None:
            rewind(checkpoint["loops"]["fit_loop"], self._rewind, self._validated)
        elif trainer.state.fn == "fit" and (trainer.training or trainer.validating):
            self._look_between_steps(trainer, pl_module)
            bad = next(not_finite(pl_module), None) if _is_whole(trainer) else None
            verdict = _Verdict(_Seen(trainer.global_step - 1, [], {}), f"{bad} is not finite") if bad else None
            self._stop_where_any(trainer, pl_module, verdict)

    def _looks_at_every_step(self, module: pl.LightningModule) -> bool:
        return module.device.type == "cpu"  # others would be waited for

    def _look_between_steps(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._look(trainer, module)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule, gradient_is_finite: bool = True) -> None:
        pending, self._pending = self._pending, []
        verdict = self._judge(pending, getattr(trainer.precision_plugin, "scaler", None) is not None)
        if verdict is None and pending and not gradient_is_finite:
            verdict = _Verdict(pending[-1], "the losses are finite, their gradient is not")
        self._stop_where_any(trainer, module, verdict)
        self._keep_what_was(trainer)

    def _judge(self, pending: list[_Seen], scaled: bool) -> _Verdict | None:
        if not pending:
            return None
        values = iter(torch.stack([loss.float() for seen in pending for loss in seen.losses.values()]).tolist())
        for seen in pending:
            losses = {name: next(values) for name in seen.losses}
            bad = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
            self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
            if self._bad_in_a_row >= (self.patience if scaled else 1):
                return _Verdict(seen, " and ".join(f"{_loss_of(name)} is {loss}" for name, loss in bad.items()))
            for name, loss in losses.items() if not bad else ():
                history = self._histories.setdefault(name, LossHistory(self.factor))
                history.add(loss)
                if history.streak >= self.patience:
                    usual = f"{loss:.4g}, and was {history.usual:.4g}"
                    since = f"it has been {self.factor:g} times that for {history.streak} batches in a row"
                    return _Verdict(seen, f"{_loss_of(name)} exploded: it is {usual}; {since}", exploded=True)
        return None

    def _gradient_is_finite(self) -> bool:
        gradients = [p.grad for p in self._watched if p.grad is not None]
        return not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def _stop_where_any(self, trainer: pl.Trainer, module: pl.LightningModule, verdict: _Verdict | None) -> None:
        """Ends the training on all processes if it went wrong on any."""
        if not agree(trainer, verdict is not None)[0]:
            return
        there = bool(self._batch) and self._before is not None
        failure = self._look_closer(trainer, module, verdict, there) if verdict else None
        self._restore()
        exploded, broken = agree(
            trainer, bool(verdict and verdict.exploded), next(not_finite(module), None) is not None
        )
        path = self._save_before(trainer) if there and not exploded and not broken else None
        told = _first_of_all(failure)
        if not trainer.is_global_zero or told is None:
            raise SIGTERMException(0)  # the first process tells, and would be killed where another fails
        raise TrainingError(told.text(self._where(trainer, path, exploded)))

    def _look_closer(self, trainer: pl.Trainer, module: pl.LightningModule, verdict: _Verdict, there: bool) -> Failure:
        seen = verdict.seen
        losses = {name: float(loss) for name, loss in seen.losses.items()}
        failure = Failure(seen.step, verdict.what, losses, seen.names, learning_rates(trainer))
        if there:
            failure.findings["gradient norm"] = look_at_gradients(module)
            failure.findings["batch"] = look_at_batch(self._batch)
            self._restore()
            failure.findings["layers"] = look_at_layers(module, self._batch) if trainer.world_size == 1 else ""
            self._restore()
        failure.findings["parameters"] = look_at_parameters(module)
        failure.advice = advice(trainer, failure, verdict.exploded)
        return failure

    def _restore(self) -> None:
        """Takes back what the forward pass has changed, where the step is under way."""
        if self._before is not None and self._batch:
            self._before.restore()

    def _save_before(self, trainer: pl.Trainer) -> Path | None:
        """Writes what was before the step that failed; an epoch that has not begun was saved at the end of its last."""
        last = _last_checkpoint(trainer)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        again = done % trainer.accumulate_grad_batches
        if last is None or done == again:
            return None
        path = last.with_name(f"{BEFORE}.ckpt")
        self._rewind = again
        try:
            trainer.save_checkpoint(path)
        finally:
            self._rewind = None
        return path

    def _keep_what_was(self, trainer: pl.Trainer) -> None:
        """While a loss is far above the usual, what `last.ckpt` held before has a second name."""
        far = any(history.streak for history in self._histories.values())
        last = _last_checkpoint(trainer) if far != (self._kept is not None) and trainer.is_global_zero else None
        if last is None:
            return
        kept = last.with_name(f"{BEFORE}.ckpt")
        if not far:
            kept.unlink(missing_ok=True)
            self._kept = None
        elif last.is_file():
            kept.unlink(missing_ok=True)
            try:
                os.link(last, kept)  # the file is replaced when it is saved again, not written into
            except OSError:
                shutil.copyfile(last, kept)
            self._kept = kept

    def _where(self, trainer: pl.Trainer, path: Path | None, exploded: bool) -> str:
        if path is not None:
            return f"{path}, from before this step. Continue there: densepred fit --ckpt_path {path}"
        path = self._kept if exploded else _last_checkpoint(trainer)
        if path is not None and path.is_file():
            return f"{path}, the last from before. Continue there: densepred fit --ckpt_path {path}"
        return "none, nothing was saved before"


def _first_of_all(failure: Failure | None) -> Failure | None:
    """The failure of the first process that has one. All must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return failure
    failures: list[Failure | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(failures, failure)
    return next((one for one in failures if one is not None), None)


def _last_checkpoint(trainer: pl.Trainer) -> Path | None:
    """Where `last.ckpt` is, or will be."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LastCheckpoint) and callback.dirpath:
            return Path(callback.format_checkpoint_name({}))
        if isinstance(callback, ModelCheckpoint) and callback.last_model_path:
            return Path(callback.last_model_path)
    return None


def _is_whole(trainer: pl.Trainer) -> bool:
    """Whether each process has all parameters."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def _loss_of(name: str) -> str:
    return "the loss" if name == "loss" else f"the loss of {name!r}"
