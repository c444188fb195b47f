"""Progress: a bar in a terminal, a line an epoch elsewhere."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from densepred.tasks.base import Batch, Task


class EpochProgress(TQDMProgressBar):
    """One line an epoch: time, images a second, training loss and the tasks' metrics that matter; a bar on terminals.

        epoch 3/20  0:41  38.2 images/s  train/loss 0.612  val/segmentation/miou 0.418  val/depth/rmse 0.573

    The loss is the mean over the epoch's steps, those before an interruption included; images a second are those of
    training, of all processes, validation not counted. The metrics are those that the tasks name in `shown`; they stand
    in the epochs that validated.

    Where standard output is a terminal there is a moving bar below the lines as well, with the loss of the current step
    and the latest metrics. Where it is a file or a pipe there is none: it would write thousands of carriage returns.

    Args:
        refresh_rate: The bar moves every so many batches.
        bar: Show the bar: True, False, or None for "if standard output is a terminal".
    """

    _loss: Tensor

    def __init__(self, refresh_rate: int = 1, bar: bool | None = None) -> None:
        super().__init__(refresh_rate)
        self.bar = bar
        self._start_epoch()

    @property
    def is_enabled(self) -> bool:
        """Whether the bar shows."""
        wanted = sys.stdout.isatty() if self.bar is None else self.bar
        return wanted and super().is_enabled

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss, and the metrics that the tasks show."""
        found = trainer.progress_bar_metrics
        loss = {"loss": found["train/loss"]} if "train/loss" in found else {}
        return {**loss, **{key: found[key] for key in shown_keys(pl_module) if key in found}}

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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Adds up images and losses, without waiting for the device."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._images += len(batch["image"])
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Lightning divides it among the batches whose gradients it accumulates
            self._loss = self._loss.to(loss.device) + loss.detach().float() * trainer.accumulate_grad_batches
            self._steps += 1

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
        line = self._line(trainer, pl_module)
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

    def _line(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        seconds = time.perf_counter() - self._began
        rate = self._images * trainer.world_size / max(seconds - self._validating, 1e-9)
        parts = [epoch_of(trainer), clock(seconds), f"{rate:.1f} images/s"]
        if self._steps:
            parts.append(f"train/loss {float(self._loss) / self._steps:.4g}")
        if self._validated:
            found = trainer.callback_metrics
            parts += [f"{key} {float(found[key]):.4g}" for key in shown_keys(module) if key in found]
        return "  ".join(parts)


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
