"""The whole procedure: checks, range search, overfitting, random rounds; every step a file, so that it can go on."""

import json
import math
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from densepred.callbacks.results import constant_metrics
from densepred.errors import ConfigurationError
from densepred.tasks.base import Task
from densepred.tuning.bench import (
    NO_FILES,
    ONE_DEVICE,
    QUIET,
    Bench,
    Config,
    changed,
    freed,
    on_trainer,
    value_of,
    with_optimizer,
)
from densepred.tuning.curves import Reading, Shape, compared, smoothed
from densepred.tuning.initial import check_start
from densepred.tuning.overfit import overfit
from densepred.tuning.plan import Plan, write_json
from densepred.tuning.rates import search_rates, suggest_rate
from densepred.tuning.space import SearchRange, Space, draw, refine
from densepred.tuning.trial import Trial, run_trial, skill

CHECKS, RATES, OVERFIT = "checks.json", "rates.json", "overfit.json"
TRIALS = "trials"


class Search:
    """Runs a plan in a folder, or goes on with what is there.

    Each step writes one JSON file when it is done and is skipped when its file is there; a trial that was cut short
    starts again.

    Args:
        folder: Where everything goes.
        config: The run's whole configuration.
        plan: What to do.
        tell: Called with a line for each step.
    """

    def __init__(self, folder: Path, config: Config, plan: Plan, tell: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.config, self.decoupled = with_optimizer(config)
        self.plan = plan
        self.tell = tell
        self.user_space = {name: SearchRange.parse(text, name) for name, text in plan.search}
        for name in self.user_space:
            value_of(self.config, name)  # a misspelt option is refused before anything runs
        self.checks: dict[str, Any] = {}
        self.rates: dict[str, Any] = {}
        self.overfitting: dict[str, Any] = {}
        self.rounds: list[tuple[Space, list[Trial]]] = []

    def run(self) -> "Search":
        """Everything, in order."""
        self.checks = self._once(CHECKS, self._check)
        self._tell_checks()
        if self.plan.range_steps:
            self.rates = self._once(RATES, self._search_rates)
            self.tell(f"learning rate: {self.rates['verdict']}: {self.rates['reason']}")
        if self.plan.overfit_steps:
            self.overfitting = self._once(OVERFIT, self._overfit)
            count = self.overfitting["images"]
            self.tell(f"overfitting {count} images: {self.overfitting['verdict']}: {self.overfitting['reason']}")
        space = self.space()
        for number in range(self.plan.rounds):
            if number:
                space = refine(space, self.winner.values)
            self._round(number, space)
        self._compare_curves()
        return self

    @property
    def blank(self) -> float:
        """The loss of a network that knows nothing, summed over the tasks with their weights."""
        return float(sum(entry["weight"] * entry["blank"] for entry in self.checks["losses"]))

    @property
    def trials(self) -> list[Trial]:
        """Those of all rounds."""
        return [trial for _, trials in self.rounds for trial in trials]

    @property
    def winner(self) -> Trial:
        """The trial with the best score among those that were trained longest.

        Raises:
            ConfigurationError: If all have failed.
        """
        done = [trial for trial in self.trials if trial.error is None and trial.score is not None]
        if not done:
            first = self.trials[0].error if self.trials else "none was started"
            raise ConfigurationError(f"tune: every trial failed; the first one: {first}")
        longest = max(trial.epochs for trial in done)
        return max((trial for trial in done if trial.epochs == longest), key=lambda trial: trial.score or -math.inf)

    def space(self) -> Space:
        """The first round's ranges: a decade to both sides of what the range search suggests, and what the user names.

        The rate ends below the one at which the loss diverged. Weight decay runs from 1e-4 to 0.3 where it is
        decoupled, else from 1e-6 to 1e-2.
        """
        rate = self.rates.get("suggested") or value_of(self.config, "lr")
        diverged = self.rates.get("diverged")
        high = max(min(10 * rate, (diverged or math.inf) / 2), 2 * rate)
        space: Space = {"lr": SearchRange("log", (rate / 10, high))}
        try:
            value_of(self.config, "weight_decay")
            space["weight_decay"] = SearchRange("log", (1e-4, 0.3) if self.decoupled else (1e-6, 1e-2))
        except ConfigurationError:
            pass  # an optimizer without weight decay
        return {**space, **self.user_space}

    def _once(self, name: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step has found: from its file, or now."""
        path = self.folder / name
        if not path.is_file():
            with freed():
                write_json(path, step())
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _check(self) -> dict[str, Any]:
        bench = Bench(changed(self.config, on_trainer({**ONE_DEVICE, **QUIET, **NO_FILES})))
        found = check_start(bench)
        tasks = {task.name: task for task in bench.model.tasks if isinstance(task, Task)}
        loader = bench.datamodule.val_dataloader()
        count = _limited(len(loader), self.config["trainer"].get("limit_val_batches"))
        constant = constant_metrics(list(tasks.values()), lambda: islice(loader, count), "val")
        steps = len(bench.datamodule.train_dataloader())
        return {
            "losses": [{**vars(loss), "weight": tasks[loss.task].weight} for loss in found.losses],
            "layers": [layer._asdict() for layer in found.layers],
            "verdict": found.verdict,
            "reason": found.reason,
            "constant": {key: value for key, value in constant.items() if key.count("/") <= 2},
            "monitors": {name: list(task.monitor) for name, task in tasks.items()},
            "steps_per_epoch": _limited(steps, self.config["trainer"].get("limit_train_batches")),
            "batch_size": bench.datamodule.batch_size,
        }

    def _search_rates(self) -> dict[str, Any]:
        rates, losses = search_rates(self.config, self.plan.range_steps)
        return {"rates": rates, "losses": losses, **suggest_rate(rates, losses)._asdict()}

    def _overfit(self) -> dict[str, Any]:
        rate = self.rates.get("suggested") or value_of(self.config, "lr")
        return overfit(self.config, rate, self.blank, self.plan.overfit_steps)._asdict()

    def _round(self, number: int, space: Space) -> None:
        ranges = ", ".join(f"{name} {given}" for name, given in space.items())
        self.tell(f"round {number + 1} of {self.plan.rounds}: {ranges}")
        trials: list[Trial] = []
        self.rounds.append((space, trials))
        for index in range(self.plan.trials_of(number)):
            values = self._values(number, index, space)
            trial = self._trial(f"{number + 1}-{index + 1:02d}", values, self.plan.epochs_of(number))
            trials.append(trial)
            self.tell(_line(trial))

    def _values(self, number: int, index: int, space: Space) -> dict[str, Any]:
        """The first trial is the configuration's own, or the best so far where trials have become longer."""
        if index == 0 and number == 0:
            return {name: value_of(self.config, name) for name in space}
        if index == 0 and self.plan.epochs_of(number) != self.plan.epochs_of(number - 1):
            return dict(self.winner.values)
        return draw(space, self.plan.seed, number, index)

    def _trial(self, name: str, values: dict[str, Any], epochs: float) -> Trial:
        path = self.folder / TRIALS / f"{name}.json"
        if path.is_file():
            trial = Trial(**json.loads(path.read_text()))
            if trial.values == values and trial.epochs == epochs:
                return trial
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # what a killed search left of it
        trial = run_trial(self.config, values, path.with_suffix(""), epochs, self.blank)
        trial.score = None if trial.error else self._score(trial)
        if trial.error is None and trial.score is None:
            trial.error = "no score: its metrics are not finite"
        write_json(path, trial.plain())
        return trial

    def _compare_curves(self) -> None:
        """Reads each curve again beside the winner's; the files keep what a curve by itself looks like."""
        best = self.winner
        for trial in self.trials:
            rate, best_rate = trial.values.get("lr"), best.values.get("lr")
            if trial.error is None and trial.epochs == best.epochs and rate and best_rate:
                alone = Reading(Shape(trial.shape), trial.reason)
                ends = (float(smoothed(one.losses)[-1]) for one in (trial, best))
                beside = compared(alone, rate, next(ends), best_rate, next(ends), self.blank)
                trial.shape, trial.reason = beside.shape.value, beside.reason

    def _score(self, trial: Trial) -> float | None:
        """The mean skill of the tasks."""
        skills = []
        for name, (metric, mode) in self.checks["monitors"].items():
            key = f"val/{name}/{metric}"
            skills.append(skill(mode, trial.metrics.get(key, math.nan), self.checks["constant"].get(key, math.nan)))
        mean = sum(skills) / len(skills)
        return mean if math.isfinite(mean) else None

    def _tell_checks(self) -> None:
        for entry in self.checks["losses"]:
            self.tell(f"initial loss of {entry['task']}: {entry['verdict']}: {entry['loss']:.4g}; {entry['reason']}")
        self.tell(f"activations: {self.checks['verdict']}: {self.checks['reason']}")


def _line(trial: Trial) -> str:
    values = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in trial.values.items())  # fmt: skip
    if trial.error:
        return f"  {trial.name}  failed    {values}: {trial.error.splitlines()[0]}"
    return f"  {trial.name}  score {trial.score:.4f}  {values}  ({trial.shape})"


def _limited(batches: int, limit: float | None) -> int:
    """How many batches Lightning's `limit_*_batches` leave: a number of them, or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(limit * batches)
