"""Diagnostics: what an evaluation shows beyond its scalars, as plain files in the run's folder and on dashboards."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchmetrics import Metric

from densepred.callbacks.dashboards import send_diagnostics, send_layout, send_texts
from densepred.callbacks.panels import run_folder, write_whole
from densepred.callbacks.pixel_errors import error_name, pixel_errors
from densepred.callbacks.run_files import write_csv, write_json
from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import Shot, legends_of, row_of, shots_of
from densepred.callbacks.task_details import details, protocol
from densepred.callbacks.worst import Candidate, WorstImages
from densepred.errors import ConfigurationError
from densepred.metrics.depth_by_distance import DepthByDistance
from densepred.reports.run import DIAGNOSTICS, ENVIRONMENT
from densepred.tasks.base import Batch, Task
from densepred.tasks.depth import Depth
from densepred.tasks.pictures import heat, scale_of

_TEXTS = ("config.yaml", ENVIRONMENT)


class Diagnostics(pl.Callback):
    """Writes the confusion matrix, errors by distance, angles and the worst images of every validation and test.

    Into `<run folder>/diagnostics`, each whole or not at all, the latest evaluation over the one before it:

    - `<stage>.json`: for each task its metrics, how they are measured, and what it knows beyond them: the confusion
      matrix, the histogram of angles, the error of depth by distance;
    - `<stage>_images.csv`: the error of every image (`pixel_errors`, averaged over its pixels);
    - `<stage>_worst_<task>.png`: the images with the greatest error.

    The same goes to Weights & Biases and TensorBoard where they are used. Matrix and histogram are the metrics' own
    states; the rest costs one pass over the pixels. In several processes all contribute and the first one writes.

    Args:
        worst: How many images to show for each task; 0 leaves scores and images out.
        every_n_epochs: How often; the last epoch always counts.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    def __init__(self, worst: int = 4, every_n_epochs: int = 1) -> None:
        super().__init__()
        if worst < 0 or every_n_epochs < 1:
            raise ConfigurationError(
                f"Diagnostics: worst={worst}, every_n_epochs={every_n_epochs}; expected worst at least 0 and "
                "every_n_epochs at least 1."
            )
        self.worst = worst
        self.every_n_epochs = every_n_epochs
        self._images = WorstImages(worst)
        self._depth: dict[str, DepthByDistance] = {}
        self._layout_sent = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows what the run was made of and what it runs on also where a dashboard has no page for it."""
        folder = run_folder(trainer)
        texts = {path.stem: path.read_text(encoding="utf-8") for name in _TEXTS if (path := folder / name).is_file()}
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            send_texts(trainer.loggers, texts)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts from nothing."""
        self._start(pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts from nothing."""
        self._start(pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes and sends what was found."""
        self._finish(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes and sends what was found."""
        self._finish(trainer, pl_module, "test")

    def _due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or getattr(trainer, "fast_dev_run", False):
            return False
        epoch = trainer.current_epoch + 1
        return trainer.state.fn != "fit" or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _start(self, module: Any) -> None:
        self._images = WorstImages(self.worst)
        self._depth = {
            task.name: DepthByDistance(0.0, task.max_depth).to(module.device)
            for task in getattr(module, "tasks", [])
            if isinstance(task, Depth)
        }

    def _add(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch) -> None:
        predictions = outputs.get("predictions") if isinstance(outputs, dict) else None
        if predictions is None or not self._due(trainer):
            return
        tasks: list[Task] = list(module.tasks)
        if self.worst:
            self._images.add(tasks, batch, predictions)
        for task in tasks:
            if task.name in self._depth and task.name in batch:
                self._depth[task.name].update(predictions[task.name], task.target(batch))

    def _finish(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        if not self._due(trainer) or not (hasattr(module, "tasks") and hasattr(module, "scores")):
            return  # a module of another make
        folder = run_folder(trainer) / DIAGNOSTICS
        self._images.gather()
        tasks: list[Task] = list(module.tasks)
        found = {
            task.name: self._task(task, module.scores[stage].metrics[task.name], trainer.callback_metrics, stage)
            for task in tasks
        }
        if not trainer.is_global_zero:
            return
        step = max(trainer.global_step - 1, 0)
        shots = {task.name: self._shots(task) for task in tasks}
        self._write(folder, stage, tasks, found, shots, _when(trainer, stage, step))
        send_diagnostics(trainer.loggers, stage, tasks, found, shots, step)
        if not self._layout_sent:
            self._layout_sent = True
            send_layout(trainer.loggers, [*trainer.callback_metrics, *trainer.logged_metrics])

    def _task(self, task: Task, metric: Metric, reached: dict[str, Tensor], stage: str) -> dict[str, Any]:
        prefix = f"{stage}/{task.name}/"
        with metric.sync_context():
            own = details(metric)
        if task.name in self._depth:
            own |= details(self._depth[task.name])
        worst = self._images.kept.get(task.name, [])
        return {
            "metrics": {key.removeprefix(prefix): float(v) for key, v in reached.items() if key.startswith(prefix)},
            "monitor": list(task.monitor),
            "protocol": protocol(metric),
            **own,
            "error": error_name(task),
            "worst": [{"name": candidate.name, "score": candidate.score} for candidate in worst],
        }

    def _shots(self, task: Task) -> list[Shot]:
        return [_shot(task, candidate) for candidate in self._images.kept.get(task.name, [])]

    def _write(
        self,
        folder: Path,
        stage: str,
        tasks: list[Task],
        found: dict[str, Any],
        shots: dict[str, list[Shot]],
        when: dict[str, Any],
    ) -> None:
        write_json(folder / f"{stage}.json", {**when, "images": len(self._images.names), "tasks": found})
        if self.worst:
            columns = list(self._images.scores)
            rows = zip(self._images.names, *(self._images.scores[name] for name in columns), strict=True)
            write_csv(folder / f"{stage}_images.csv", ["name", *columns], rows)
        for task in tasks:
            if mine := shots[task.name]:
                title = f"greatest {error_name(task)}"
                sheet = draw_sheet([row_of(shot, [task]) for shot in mine], title, legends_of(mine, [task]))
                write_whole(sheet, folder / f"{stage}_worst_{task.name}.png")


def _when(trainer: pl.Trainer, stage: str, step: int) -> dict[str, Any]:
    if trainer.state.fn == "fit":
        return {"stage": stage, "epoch": trainer.current_epoch + 1, "step": step}
    return {"stage": stage, "checkpoint": Path(trainer.ckpt_path).name if trainer.ckpt_path else None}


def _shot(task: Task, candidate: Candidate) -> Shot:
    """A candidate's pictures under its score, with a map of its errors where the task draws none itself."""
    shot = shots_of([task], candidate.batch, candidate.predictions, 1)[0]
    mine = dict(shot.pictures.get(task.name, {}))
    if task.name in shot.targets and not any("error" in caption for caption in mine):
        errors = pixel_errors(task, shot.predictions[task.name], shot.targets[task.name])[:, None]
        known = errors.isfinite()
        mine["error"] = heat(errors, known, scale_of(errors, known), "inferno")[0]
    name = f"{candidate.score:.3g}  {shot.name}"
    return Shot(name, shot.image, shot.predictions, shot.targets, {**shot.pictures, task.name: mine})
