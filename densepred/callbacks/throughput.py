"""What the machine does while a network trains: images a second, waiting for data, memory, size of the gradient."""

import sys
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from densepred.balance.task_losses import TaskLosses
from densepred.callbacks.data_wait import DataWait
from densepred.tasks.base import Batch


class Throughput(pl.Callback):
    """Logs, every `log_every_n_steps` of the trainer, over the steps since the last time:

    - `speed/images_per_second`: of all processes, validation not counted;
    - `speed/data_wait`: the share of the time in which there was no batch to work on (`DataWait`); far above 0, the
      loader is what limits the speed;
    - `memory/process` (the most this process held so far) and, on CUDA, `memory/device` (the most since the last time),
      in GiB;
    - `train/gradient_norm`: of all gradients, before clipping; and of several tasks each one's by itself,
      `train/<task>/gradient_norm`, with regard to the encoder's maps and with the factor that its loss has: what each
      sends into the encoder. Those take a backward pass through the decoders more, at the steps that log (and none
      where a balance measures them anyway).

    It never waits for the device, other than at the steps that log; times are those of the host, which a device that is
    behind holds up at the same steps.

    Args:
        gradient_norm: Log the norm of the gradients (left out where parameters are sharded: a shard's norm is not it).

    Attributes:
        clock: Of the training, and of what it waits; others may read it.
    """

    def __init__(self, gradient_norm: bool = True) -> None:
        super().__init__()
        self.gradient_norm = gradient_norm
        self.clock = DataWait(torch.device("cpu"))
        self._images = 0
        self._read = 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets up the clock."""
        self.clock = DataWait(pl_module.device)
        self._images, self._read = 0, (0.0, 0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock: starting workers is waiting too."""
        self.clock.begin(epoch=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self.clock.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets it run on."""
        self.clock.begin(epoch=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """A batch has come."""
        self.clock.came()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Measures the gradient of each task, at the steps that log."""
        step = getattr(pl_module, "step_losses", None)
        if not isinstance(step, TaskLosses) or len(step.losses) < 2 or not step.maps:
            return
        if not self._measures(trainer) or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        for (name, weight), norm in zip(step.weights.items(), step.gradient_norms.unbind(), strict=True):
            pl_module.log(f"train/{name}/gradient_norm", weight * norm)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient, at the steps that log."""
        if not self._measures(trainer):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def _measures(self, trainer: pl.Trainer) -> bool:
        return self.gradient_norm and _logs(trainer, trainer.global_step) and not _sharded(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Adds up, and logs when it is time."""
        self.clock.done()
        self._images += len(batch["image"])
        if not _logs(trainer, trainer.global_step - 1) or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        waited, total = self.clock.read()
        seconds = max(total - self._read[1], 1e-9)
        pl_module.log("speed/images_per_second", self._images * trainer.world_size / seconds)
        pl_module.log("speed/data_wait", (waited - self._read[0]) / seconds)
        self._images, self._read = 0, (waited, total)
        pl_module.log("memory/process", process_gibibytes())
        if pl_module.device.type == "cuda":
            pl_module.log("memory/device", torch.cuda.max_memory_allocated(pl_module.device) / 2**30)
            torch.cuda.reset_peak_memory_stats(pl_module.device)


def _logs(trainer: pl.Trainer, step: int) -> bool:
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (step + 1) % every == 0


def _sharded(trainer: pl.Trainer) -> bool:
    return not isinstance(trainer.strategy, pl.strategies.SingleDeviceStrategy | pl.strategies.DDPStrategy)


def process_gibibytes() -> float:
    """The most memory that this process has held; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20  # bytes there, KiB elsewhere
