"""Which checkpoints a run keeps: the best by each task's own monitor, and the last; written whole or not at all."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from densepred.tasks.base import Task


def run_checkpoints(tasks: Sequence[Task]) -> list[ModelCheckpoint]:
    """`best.ckpt` by the first task's monitor, `best-<task>.ckpt` by each further task's, and `last.ckpt`.

    `last.ckpt` is written at the end of every epoch and, within long ones, every five minutes.
    """
    best = [
        ModelCheckpoint(
            filename=f"best-{task.name}" if index else "best",
            monitor=f"val/{task.name}/{task.monitor[0]}",
            mode=task.monitor[1],
            enable_version_counter=False,
        )
        for index, task in enumerate(tasks)
    ]
    epoch = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    clock = ModelCheckpoint(
        filename="last", enable_version_counter=False, train_time_interval=timedelta(minutes=5), every_n_epochs=0
    )
    return [*best, epoch, clock]


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
