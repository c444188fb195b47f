"""The table at the end: what the network reached, beside the best constant predictor of the same set."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from densepred.callbacks.panels import run_folder
from densepred.callbacks.run_files import write_json
from densepred.reports.run import DIAGNOSTICS
from densepred.tasks.base import Task


class Results(pl.Callback):
    """Prints the metrics of the last validation, or of the test, and where the run's files are.

    The same numbers go to `<run folder>/diagnostics/<stage>_results.json`.

    Args:
        baseline: Add the best constant predictor's column (most frequent class, mean depth, mean normal of the very
            set). It reads the set twice more, without the network; single-process runs only.
    """

    def __init__(self, baseline: bool = True) -> None:
        super().__init__()
        self.baseline = baseline

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the last validation's table."""
        self._report(trainer, pl_module, "val", trainer.val_dataloaders, trainer.num_val_batches)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the test's table."""
        self._report(trainer, pl_module, "test", trainer.test_dataloaders, trainer.num_test_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table of a validation run by itself."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val", trainer.val_dataloaders, trainer.num_val_batches)

    def _report(self, trainer: pl.Trainer, module: Any, stage: str, loader: Any, batches: Sequence[float]) -> None:
        folder = run_folder(trainer)
        if (
            not trainer.is_global_zero
            or trainer.interrupted
            or loader is None
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        tasks: list[Task] = list(module.tasks)
        reached = {k: float(v) for k, v in trainer.callback_metrics.items()}
        limit = None if batches[0] == float("inf") else int(batches[0])
        constant = (
            constant_metrics(tasks, lambda: islice(loader, limit), stage, _metrics(module, stage))
            if self.baseline and trainer.world_size == 1
            else {}
        )
        print(results_table(tasks, stage, reached, constant), flush=True)
        write_json(
            folder / DIAGNOSTICS / f"{stage}_results.json",
            {
                "network": {key: value for key, value in reached.items() if key.startswith(f"{stage}/")},
                "constant": constant,
            },
        )
        for line in _files(folder):
            print(line, flush=True)


def _metrics(module: Any, stage: str) -> dict[str, Metric]:
    """Fresh copies of the metrics that the network was measured by, which a protocol may have brought."""
    scores = getattr(module, "scores", None)
    found = {} if scores is None else {name: deepcopy(metric).cpu() for name, metric in scores[stage].metrics.items()}
    for metric in found.values():
        metric.reset()
    return found


def constant_metrics(
    tasks: Sequence[Task], batches: Any, stage: str, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Metrics of the best constant predictor of a set.

    Args:
        tasks: Whose targets to predict.
        batches: Called twice, gives the batches of the set each time.
        stage: Prefix of the keys.
        metrics: By task, where others measure than the tasks' own.
    """
    statistics: dict[str, Tensor] = {}
    with _fixed_randomness():
        for batch in batches():
            for task in tasks:
                statistic = task.constant_statistic(task.target(batch))
                statistics[task.name] = statistics.get(task.name, torch.zeros_like(statistic)) + statistic
        measured = {task.name: (metrics or {}).get(task.name) or task.metrics(stage) for task in tasks}
        for batch in batches():
            for task in tasks:
                target = task.target(batch)
                measured[task.name].update(task.constant_prediction(statistics[task.name], target), target)
    return {
        f"{stage}/{name}/{key}": float(value)
        for name, metric in measured.items()
        for key, value in metric.compute().items()
    }


def results_table(tasks: Sequence[Task], stage: str, reached: dict[str, float], constant: dict[str, float]) -> str:
    """A plain text table: a line a metric (per-class ones left out), the network's column and the constant's."""
    name = {"val": "validation", "test": "test"}[stage]
    lines = ["", f"{name:<34}{'network':>10}" + (f"{'constant predictor':>21}" if constant else "")]
    for task in tasks:
        prefix = f"{stage}/{task.name}/"
        for key in (k for k in reached if k.startswith(prefix) and k.count("/") == 2 and k != f"{prefix}loss"):
            line = f"  {key.removeprefix(f'{stage}/'):<32}{reached[key]:>10.4f}"
            lines.append(line + (f"{constant[key]:>21.4f}" if key in constant else ""))
    return "\n".join(lines)


def _files(folder: Path) -> Iterable[str]:
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    panels = sorted((folder / "panels").glob("*.png"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        yield f"checkpoints: {checkpoints[0].parent} ({', '.join(path.stem for path in checkpoints)})"
    if (folder / "metrics.csv").is_file():
        yield f"metrics:     {folder / 'metrics.csv'}"
    if panels:
        yield f"panels:      {panels[-1]}"


class _fixed_randomness:  # noqa: N801 - used like a function
    """Leaves the global generator as it was: a loader draws a seed from it each time it is iterated."""

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()

    def __exit__(self, *error: object) -> None:
        torch.set_rng_state(self.state)
