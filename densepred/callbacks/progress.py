"""Progress: a bar in a terminal, a line an epoch elsewhere."""

import os
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from densepred.callbacks.data_wait import DataWait
from densepred.callbacks.throughput import Throughput
from densepred.tasks.base import Batch, Task

STARVED = 0.2
"""The share of the time above which waiting for data is told."""

SECONDS_BETWEEN_MOVES = 0.2


class EpochProgress(TQDMProgressBar):
    """One line an epoch: time, images a second, training loss and the tasks' metrics that matter; a bar on terminals.

        epoch 3/20  0:41  38.2 images/s  train/loss 0.612  val/segmentation/miou 0.418  val/depth/rmse 0.573

    The loss is the mean over the epoch's steps, those before an interruption included; images a second are those of
    training, of all processes, validation not counted. The metrics are those that the tasks name in `shown`; they stand
    in the epochs that validated.

    Where a network waits for its data more than a fifth of the time, the line ends with it, `waiting for data 43%`, and
    the first such line is followed by what helps. `Throughput` measures it.

    Where standard output is a terminal there is a moving bar below the lines as well, with the loss of the current step
    and the latest metrics. Where it is a file or a pipe there is none: it would write thousands of carriage returns.

    Args:
        refresh_rate: The bar moves every so many batches, at most five times a second: each time waits for the device.
        bar: Show the bar: True, False, or None for "if standard output is a terminal".
    """

    _loss: Tensor

    def __init__(self, refresh_rate: int = 1, bar: bool | None = None) -> None:
        super().__init__(refresh_rate)
        self.bar = bar
        self._moved = 0.0
        self._advised = False
        self._latest: Tensor | None = None
        self._start_epoch()

    @property
    def is_enabled(self) -> bool:
        """Whether the bar shows."""
        wanted = sys.stdout.isatty() if self.bar is None else self.bar
        return wanted and super().is_enabled

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss, and the metrics that the tasks show."""
        found = trainer.progress_bar_metrics
        loss = {} if self._latest is None else {"loss": float(self._latest)}
        share = self._waiting(trainer)[0]
        wait = {"waiting for data": f"{share:.0%}"} if share > STARVED else {}
        return {**loss, **{key: found[key] for key in shown_keys(pl_module) if key in found}, **wait}

    def _should_update(self, current: int, total: int) -> bool:
        if not super()._should_update(current, total):
            return False
        now = time.perf_counter()
        if current != total and now - self._moved < SECONDS_BETWEEN_MOVES:
            return False
        self._moved = now
        return True

    def init_train_tqdm(self) -> Tqdm:
        """A bar that goes away when the training ends: the lines stay."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the bar; a run that continues within an epoch is in the middle of it."""
        super().on_train_start(trainer, pl_module)
        if self._steps and trainer.fit_loop.restarted_mid_epoch:
            self.train_progress_bar.reset(trainer.num_training_batches)
            self.train_progress_bar.set_description(epoch_of(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Starts the clock."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(epoch_of(trainer))
        self._start_epoch()
        if (clock := _clock(trainer)) is not None:
            self._clock_began = (*clock.read(), clock.starting)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Adds up images and losses, without waiting for the device."""
        self._images += len(batch["image"])
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Lightning divides it among the batches whose gradients it accumulates
            self._latest = loss.detach().float() * trainer.accumulate_grad_batches
            self._loss = self._loss.to(loss.device) + self._latest
            self._steps += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the training's clock."""
        super().on_validation_start(trainer, pl_module)
        self._validation_began = time.perf_counter()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Names the bar below that of training."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0:
            number = f" {dataloader_idx + 1}" if dataloader_idx else ""
            what = "sanity check" if trainer.sanity_checking else "validation"
            self.val_progress_bar.set_description(what + number)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets the training's clock run on."""
        super().on_validation_end(trainer, pl_module)
        self._validating += time.perf_counter() - self._validation_began
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the epoch's line."""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        line = "\n".join([self._line(trainer, pl_module), *self._advice(trainer)])
        if self.train_progress_bar.disable:
            print(line, flush=True)
        else:
            self.train_progress_bar.write(line)

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far."""
        seconds = time.perf_counter() - self._began - self._validating
        return {"seconds": seconds, "images": self._images, "steps": self._steps, "loss": float(self._loss)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with an interrupted epoch; another one begins anew."""
        self._start_epoch()
        self._began -= state_dict["seconds"]
        self._images, self._steps = state_dict["images"], state_dict["steps"]
        self._loss = torch.tensor(state_dict["loss"])

    def _start_epoch(self) -> None:
        self._began = time.perf_counter()
        self._validation_began = self._began
        self._validating = 0.0
        self._validated = False
        self._images = 0
        self._steps = 0
        self._loss = torch.zeros(())
        self._clock_began = 0.0, 0.0, 0.0

    def _line(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        seconds = time.perf_counter() - self._began
        rate = self._images * trainer.world_size / max(seconds - self._validating, 1e-9)
        parts = [epoch_of(trainer), clock(seconds), f"{rate:.1f} images/s"]
        if self._steps:
            parts.append(f"train/loss {float(self._loss) / self._steps:.4g}")
        if self._validated:
            found = trainer.callback_metrics
            parts += [f"{key} {float(found[key]):.4g}" for key in shown_keys(module) if key in found]
        if (share := self._waiting(trainer)[0]) > STARVED:
            parts.append(f"waiting for data {share:.0%}")
        return "  ".join(parts)

    def _waiting(self, trainer: pl.Trainer) -> tuple[float, float]:
        """The share of the epoch's training that was spent waiting for data; and without its first batch."""
        clock = _clock(trainer)
        if clock is None:
            return 0.0, 0.0
        waited, total = (now - then for now, then in zip(clock.read(), self._clock_began[:2], strict=True))
        starting = clock.starting - self._clock_began[2]
        return waited / max(total, 1e-9), (waited - starting) / max(total - starting, 1e-9)

    def _advice(self, trainer: pl.Trainer) -> list[str]:
        if self._advised or self._waiting(trainer)[1] <= STARVED:
            return []
        self._advised = True
        workers = getattr(trainer.train_dataloader, "num_workers", 0)
        return [f"  {starvation_advice(workers, _cores() // trainer.num_devices - 1)}"]


def _clock(trainer: pl.Trainer) -> DataWait | None:
    throughput = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]  # type: ignore[attr-defined]
    return throughput[0].clock if throughput else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def starvation_advice(workers: int, most: int) -> str:
    """What helps a loader that is too slow.

    Args:
        workers: The processes that load now.
        most: How many this machine has cores for.

    Example:
        >>> print(starvation_advice(2, 7))
        The loader is what limits the speed: --data.num_workers 7 (now 2).
        >>> print(starvation_advice(7, 7).partition(":")[0])
        The loader is what limits the speed, and 7 workers use all cores
    """
    if workers < most:
        return f"The loader is what limits the speed: --data.num_workers {most} (now {workers})."
    cores = f"{workers} workers use all cores" if workers else "there is no core to spare for workers"
    return (
        f"The loader is what limits the speed, and {cores}: resize large images once, on disk; give up costly "
        "train_transforms; keep the files on a disk of this machine; or train a larger network, which costs no time."
    )


def shown_keys(module: Any) -> list[str]:
    """The validation metrics that a module's tasks want to be seen."""
    tasks: list[Task] = list(getattr(module, "tasks", []))
    return [f"val/{task.name}/{key}" for task in tasks for key in task.shown]


def epoch_of(trainer: pl.Trainer) -> str:
    """Which epoch of how many, counted from 1."""
    last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    number = trainer.current_epoch + 1
    return f"epoch {number}" if last is None else f"epoch {number:>{len(str(last))}}/{last}"


def clock(seconds: float) -> str:
    """A time as people read it.

    Example:
        >>> clock(41.3), clock(3725)
        ('0:41', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
