"""Panels: what the network sees and says, as pictures after every epoch."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image

from densepred.callbacks.dashboards import send_panels
from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import Shot, legends_of, row_of, shots_of
from densepred.errors import ConfigurationError
from densepred.tasks.base import Batch, Task


class Panels(pl.Callback):
    """Shows image, target, prediction and error of the first samples of the validation set.

    After a validation (the sanity check's apart) one sheet is written to `<run folder>/panels/epoch_<n>.png`, epochs
    counted from 1: a row a sample, and for each task the pictures that it draws (`Task.panel`). A validation or test by
    itself writes `validation.png` or `test.png`. A sheet is written beside and renamed, so it is never half there.

    The same pictures go to Weights & Biases (labels as masks over the image, to be switched on and off by class) and to
    TensorBoard, where those loggers are used. Only the first process writes.

    Args:
        every_n_epochs: How often; the last epoch is always shown.
        samples: How many.

    Raises:
        ConfigurationError: If the evaluation step does not return `{"predictions": {task name: prediction}}`.
    """

    def __init__(self, every_n_epochs: int = 1, samples: int = 4) -> None:
        super().__init__()
        if every_n_epochs < 1 or samples < 1:
            raise ConfigurationError(
                f"Panels: every_n_epochs={every_n_epochs} and samples={samples}; expected at least 1 of each. To have "
                "no panels, leave the callback out."
            )
        self.every_n_epochs = every_n_epochs
        self.samples = samples
        self._shots: list[Shot] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the previous samples."""
        self._shots = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the previous samples."""
        self._shots = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first samples."""
        self._collect(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first samples."""
        self._collect(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the sheet of an epoch, or of a validation by itself."""
        epoch = f"epoch {trainer.current_epoch + 1:03d}"
        self._write(trainer, pl_module, "val", epoch if trainer.state.fn == "fit" else "validation")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the sheet of a test."""
        self._write(trainer, pl_module, "test", "test")

    def _due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        epoch = trainer.current_epoch + 1
        return trainer.state.fn != "fit" or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _collect(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, dataloader_idx: int) -> None:
        missing = self.samples - len(self._shots)
        if missing <= 0 or dataloader_idx != 0 or not trainer.is_global_zero or not self._due(trainer):
            return
        if not isinstance(outputs, dict) or "predictions" not in outputs:
            raise ConfigurationError(
                f"Panels: {type(module).__name__}'s evaluation step returned {type(outputs).__name__} "
                "without predictions. Return {'predictions': {task name: prediction}}, or leave the callback out."
            )
        self._shots += shots_of(list(module.tasks), batch, outputs["predictions"], missing)

    def _write(self, trainer: pl.Trainer, module: Any, stage: str, title: str) -> None:
        if not self._due(trainer):
            return
        folder = run_folder(trainer)
        shots, self._shots = self._shots, []
        if not shots or not trainer.is_global_zero:
            return
        tasks: list[Task] = list(module.tasks)
        sheet = draw_sheet([row_of(shot, tasks) for shot in shots], title, legends_of(shots, tasks))
        write_whole(sheet, folder / "panels" / f"{title.replace(' ', '_')}.png")
        # the step at which Lightning logs the metrics of the same validation
        send_panels(trainer.loggers, stage, tasks, shots, max(trainer.global_step - 1, 0))


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run's files go. Every process must ask: the first one's answer is sent to the others."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def write_whole(sheet: Image.Image, path: Path) -> None:
    """Writes a picture beside its place and renames it, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sheet.save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
