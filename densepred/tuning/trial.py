"""One trial: a short run of the whole training with some options changed, and what became of it."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from densepred.tasks.base import Batch
from densepred.tuning.bench import ONE_DEVICE, QUIET, Bench, Config, changed, freed, on_trainer
from densepred.tuning.curves import read_curve, thinned


class TrialFailedError(RuntimeError):
    """A trial that cannot go on."""


@dataclass
class Trial:
    """What became of a trial: plain values, written as one JSON file.

    Args:
        name: `<round>-<index>`, both counted from 1.
        values: The options that were changed.
        epochs: Its length.
        error: Why it failed; None if it did not.
        metrics: Of the last validation.
        losses: Of the training, thinned to means of equally many steps.
        rates: Learning rates at the same places.
        validation: The loss of each validation.
        steps: Steps that were made.
        images: Images that were trained on, those seen twice counted twice.
        seconds: Wall clock.
        score: How good it is, filled in by the search.
        shape: Name of the training curve's shape.
        reason: What the shape was read from.
    """

    name: str
    values: dict[str, Any]
    epochs: float
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    score: float | None = None
    shape: str = ""
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return asdict(self)


class Record(pl.Callback):
    """Notes losses, rates and metrics, and stops a run whose loss is no longer finite.

    Args:
        patience: The loss is looked at every so many steps: each look waits for the device.
    """

    def __init__(self, patience: int = 20) -> None:
        super().__init__()
        self.patience = patience
        self.losses: list[Tensor] = []
        self.rates: list[float] = []
        self.validation: list[float] = []
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self.images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Notes a step."""
        self.losses.append(outputs["loss"].detach().float() * trainer.accumulate_grad_batches)
        # the largest: a slower encoder is told by its own option
        self.rates.append(max(group["lr"] for group in trainer.optimizers[0].param_groups))
        self.steps = trainer.global_step
        self.images += len(batch["image"])
        if len(self.losses) % self.patience == 0 and not bool(torch.isfinite(self.losses[-1])):
            raise TrialFailedError("the loss is not finite")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the metrics."""
        found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        if found:
            self.metrics = {key: value for key, value in found.items() if key.count("/") <= 2}
            self.validation.append(found.get("val/loss", math.nan))


def run_trial(
    config: Config,
    values: Mapping[str, Any],
    folder: str | Path,
    epochs: float = 1,
    reference: float | None = None,
) -> Trial:
    """Trains for a while with some options changed, exactly as `fit` would, and says what came of it.

    Whatever goes wrong is told in the trial's `error`; only an interruption by the user is passed on. The run's own
    files (`config.yaml`, `metrics.csv`) go to `<folder>/version_0`.

    Args:
        config: A whole configuration (`read_arguments`).
        values: What to change, by option: `{"model.optimizer.lr": 0.01}`, or `lr` and `weight_decay` for short.
        folder: Where its files go; its name is the trial's.
        epochs: A whole number, or a part of one.
        reference: The loss of a network that knows nothing, to read the curve by.

    Example:
        Under Optuna, which brings its own samplers, pruners and many machines::

            config = read_arguments(["--config", "experiments/rooms_multitask.yaml"])

            def objective(trial: optuna.Trial) -> float:
                values = {
                    "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
                    "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
                }
                result = run_trial(config, values, f"runs/optuna/{trial.number}", epochs=2)
                if result.error:
                    raise optuna.TrialPruned(result.error)
                return result.metrics["val/segmentation/miou"]

            optuna.create_study(direction="maximize").optimize(objective, n_trials=50)
    """
    trial = Trial(Path(folder).name, dict(values), epochs)
    record = Record()
    started = time.perf_counter()
    with freed():
        try:
            bench = Bench(changed(config, {**_short_run(config, Path(folder), epochs), **values}), [record])
            bench.trainer.fit(bench.model, datamodule=bench.datamodule)
        except SystemExit as stop:
            if stop.code != 2:  # Lightning ends like this when it is interrupted
                raise
            trial.error = "ConfigurationError: the options are refused, as told above"
        except Exception as error:  # whatever it is: the other trials go on
            trial.error = f"{type(error).__name__}: {error}"
    trial.seconds = round(time.perf_counter() - started, 1)
    trial.steps, trial.images = record.steps, record.images
    raw = [float(loss) for loss in record.losses]
    trial.losses, trial.rates = thinned(raw), thinned(record.rates)
    trial.validation, trial.metrics = record.validation, record.metrics
    reading = read_curve(raw, record.rates, record.validation, reference)
    trial.shape, trial.reason = reading.shape.value, reading.reason
    if trial.error is None and not all(math.isfinite(loss) for loss in raw):
        trial.error = "TrialFailedError: the loss is not finite"
    return trial


def _short_run(config: Config, folder: Path, epochs: float) -> Config:
    """Options that make a run as long as a trial, validated after each epoch, on one device."""
    options = {**ONE_DEVICE, **QUIET, "default_root_dir": str(folder), "max_steps": -1, "min_epochs": None,
               "min_steps": None, "max_epochs": max(1, round(epochs)), "check_val_every_n_epoch": 1,
               "val_check_interval": None}  # fmt: skip
    if epochs < 1:
        options["limit_train_batches"] = float(epochs)
    changes = on_trainer(options)
    if "check" in config["data"].get("init_args", {}):
        changes["data.check"] = "none"  # the files have been looked at once
    return changes


def skill(mode: str, reached: float, constant: float) -> float:
    """How far a metric is on the way from the best constant predictor's (0) to perfection (1).

    For errors 1 - error / constant's, for scores (score - constant's) / (1 - constant's), so that tasks of different
    units can be averaged. Below 0 where a constant is better.

    Args:
        mode: "min" for errors, "max" for scores that end at 1.
        reached: The network's.
        constant: The constant predictor's.

    Example:
        >>> skill("min", 0.5, constant=2.0), skill("max", 0.75, constant=0.5)
        (0.75, 0.5)
    """
    if mode == "min":
        return 1 - reached / constant if constant > 0 else math.nan
    return (reached - constant) / (1 - constant) if constant < 1 else math.nan
