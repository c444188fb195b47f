"""Which checkpoints a run keeps: the best by each task's own monitor, and the last; written whole or not at all."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from densepred.callbacks.stop_signals import StopSignals
from densepred.errors import ConfigurationError
from densepred.tasks.base import Batch


class Measured(Protocol):
    """What is measured under a name: a task, or what a module of another make has in its place."""

    @property
    def name(self) -> str:
        """Prefix of its metrics."""

    @property
    def monitor(self) -> tuple[str, str]:
        """The metric by which checkpoints are chosen, and "min" or "max"."""


LONG_VALIDATION = 10.0
"""Seconds; before a validation that takes longer, or whose time is not known yet, the training is saved."""


def checkpoints_beside(own: Sequence[pl.Callback], tasks: Sequence[Measured]) -> list[ModelCheckpoint]:
    """What a run keeps, beside the checkpoints that its configuration names.

    `last.ckpt`, unless they write it, and, unless they name others, `best.ckpt` by the first task's monitor and
    `best-<task>.ckpt` by each further task's.
    """
    theirs = [callback for callback in own if isinstance(callback, ModelCheckpoint)]
    best = [] if any(not isinstance(callback, LastCheckpoint) for callback in theirs) else best_checkpoints(tasks)
    kept = any(isinstance(callback, LastCheckpoint) or callback.save_last for callback in theirs)
    return best if kept else [*best, LastCheckpoint()]


def best_checkpoints(tasks: Sequence[Measured]) -> list[ModelCheckpoint]:
    """`best.ckpt` by the first task's monitor and `best-<task>.ckpt` by each further task's."""
    return [
        ModelCheckpoint(
            filename=f"best-{task.name}" if index else "best",
            monitor=f"val/{task.name}/{task.monitor[0]}",
            mode=task.monitor[1],
            enable_version_counter=False,
        )
        for index, task in enumerate(tasks)
    ]


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, from which a run continues as if it had never stopped.

    It is written at the end of every epoch; within one every so many minutes, between two optimizer steps, when the
    rows of the last one are logged; before a long validation; and when the process is told to end by SIGTERM or by
    SLURM's requeue signal, which then ends the training with status 128 + signal on the first process. A validation
    that has been saved before is left at once; a short one is finished first.

    Whatever happens, the file is the previous checkpoint or the new one, never a part of one.

    Args:
        minutes: How much training at most a power cut may cost.

    Raises:
        SIGTERMException: When the training was told to end and the checkpoint is written.
    """

    def __init__(self, minutes: float = 5.0) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        if minutes < 0:
            raise ConfigurationError(f"LastCheckpoint: minutes is {minutes}; expected 0 (every step) or more.")
        self.seconds = 60 * minutes
        self._signals = StopSignals()
        self._saved_at = time.monotonic()
        self._validation_began = self._saved_at
        self._validation_seconds = float("inf")
        self._validation_may_stop = False
        self._validated = False
        self._moment = ""

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to signals."""
        self._signals.install(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to signals, and starts the clock."""
        self._signals.install(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Saves between two steps where it is time to, or where the training is to end."""
        validated, self._validated = self._validated, False
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are under way, which no checkpoint holds
        stop, due = agree(trainer, self._signals.received, time.monotonic() - self._saved_at >= self.seconds)
        # an epoch that has not begun was saved at the end of the one before
        if batch_idx and (stop or due):
            self._write(trainer, "after validation" if validated else "between batches")
        if stop:
            self._signals.end(trainer, self.last_model_path)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Nothing: what the step logs is not written yet."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves before a long validation."""
        self._validation_may_stop = False
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validation_began = time.monotonic()
        if trainer.fit_loop._should_accumulate():
            return
        stop, long = agree(trainer, self._signals.received, self._validation_seconds > LONG_VALIDATION)
        if stop or long:
            self._write(trainer, "before validation")
            self._validation_may_stop = True
        if stop:
            self._signals.end(trainer, self.last_model_path)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leaves a validation that was saved before; several processes ask each other at every tenth batch."""
        if not self._validation_may_stop or (trainer.world_size > 1 and batch_idx % 10):
            return
        if agree(trainer, self._signals.received)[0]:
            self._signals.end(trainer, self.last_model_path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers how long it took."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._validation_may_stop = False
            self._validation_seconds = time.monotonic() - self._validation_began
            self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves."""
        self._write(trainer, "after the epoch")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens no more."""
        self._signals.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listens no more. What an exception has left half done is not saved."""
        self._signals.restore()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sets the trainer's counters in the checkpoint to the moment between two batches that was meant."""
        loops = checkpoint["loops"]["fit_loop"]
        if self._moment in ("between batches", "after validation"):
            for counter in ("total", "current"):
                loops["epoch_loop.batch_progress"][counter]["ready"] -= 1  # the batch that was fetched, not trained
        if self._moment == "after validation":
            # a trainer that finds a validation due passes over it, and counts the step then
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        if self._moment == "before validation":
            for count in ("ready", "started"):
                loops["epoch_loop.val_loop.batch_progress"]["total"][count] += 1  # begun, so it will be done again

    def _write(self, trainer: pl.Trainer, moment: str) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.save()  # rows of steps that a resumed run does not repeat
        self._moment = moment
        self.last_model_path = self.best_model_path = self.format_checkpoint_name({})
        self._save_checkpoint(trainer, self.last_model_path)
        self._moment = ""
        self._saved_at = time.monotonic()


def agree(trainer: pl.Trainer, *wishes: bool) -> list[bool]:
    """For each wish whether any process has it; the same answer on all."""
    if trainer.world_size == 1:
        return list(wishes)
    counts = trainer.strategy.reduce(
        torch.tensor(wishes, dtype=torch.float32, device=trainer.strategy.root_device), reduce_op="sum"
    )
    return [count > 0 for count in counts.tolist()]


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames: a killed run leaves the previous file or the new one.

    Lightning's own writes to the system's temporary folder and moves, which copies where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves to a local path, or, for a remote one (`s3://...`), as Lightning does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def refuse_shards(trainer: pl.Trainer) -> None:
    """Refuses strategies that write a checkpoint as a folder of shards: `last` and `best` are single files here.

    Raises:
        ConfigurationError: It says which option makes the strategy write whole files.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if getattr(strategy, "_state_dict_type", "full") != "full":
        option = "state_dict_type: full"
    elif getattr(strategy, "_save_distributed_checkpoint", False):
        option = "save_distributed_checkpoint: false"
    else:
        return
    raise ConfigurationError(
        f"trainer.strategy: {name} writes a checkpoint as a folder of shards; expected whole files, which --ckpt_path, "
        f"densepred validate, test and predict read on any machine. Set {option} in the init_args of trainer.strategy."
    )
