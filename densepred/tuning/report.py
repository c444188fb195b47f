"""The page of a search: every check with its verdict, the trials' curves by their shape, and what to try next."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from densepred.reports.page import charts, code, folded, heading, note, page, paragraph, table, warning
from densepred.reports.svg import Series, chart
from densepred.tuning.bench import value_of
from densepred.tuning.budget import Budget, budget_of, comparison, winner_config, write_winner
from densepred.tuning.check_sections import overfitting_section, rates_section, start_section
from densepred.tuning.curves import Shape
from densepred.tuning.search import Search
from densepred.tuning.space import Space, refine
from densepred.tuning.trial import Trial

REPORT = "report.html"

ADVICE = {
    Shape.RATE_TOO_HIGH: "the loss rises, or falls at once and then swings: lower the learning rate",
    Shape.RATE_TOO_LOW: "a straight line, or none of a fall: raise the learning rate, or train longer",
    Shape.BAD_INITIALISATION: "flat at first, then falling: look at the initialisation, or warm up",
    Shape.OVERFIT: "training falls and validation does not follow: more data, augmentation or decay",
    Shape.UNDERFIT: "both settle high: a larger network, less regularisation, or a loss that fits the metric",
    Shape.FINE: "falls quickly and flattens",
    Shape.TOO_SHORT: "too few steps to read a curve from",
}

RECIPE = """from densepred.tuning import read_arguments, run_trial

config = read_arguments(["--config", "{config}"])

def objective(trial):  # Optuna's; under Ray Tune return {{"score": ...}} from a function of its config dict
    values = {{"lr": trial.suggest_float("lr", {low:.2g}, {high:.2g}, log=True)}}
    result = run_trial(config, values, f"runs/optuna/{{trial.number}}", epochs={epochs:g})
    if result.error:
        raise optuna.TrialPruned(result.error)
    return result.metrics["{metric}"]

storage = "sqlite:///tune.db"
study = optuna.create_study(storage=storage, study_name="tune", direction="{direction}", load_if_exists=True)
study.optimize(objective, n_trials=50)  # the same script on every machine: the storage shares the trials"""


def write_report(search: Search) -> Path:
    """Writes the winner's configuration and the page beside the search's other files; returns the page's path."""
    write_winner(search)
    budget = budget_of(search)
    sections = {
        "Result": _result(search, budget),
        "Before training": start_section(search.checks),
        "Learning rate": rates_section(search.rates),
        "A handful of images": overfitting_section(search.overfitting, search.blank),
        "Trials": _trials(search),
        "Next": _next(search),
        "Cost, and a fair comparison": _cost(search, budget),
        "Configuration": folded("The winner's, as YAML", code(yaml.safe_dump(winner_config(search), sort_keys=False))),
    }
    count = f"{len(search.trials)} trials in {len(search.rounds)} rounds, seed {search.plan.seed}"
    path = search.folder / REPORT
    path.write_text(page(f"Search: {search.folder}", sections, count), encoding="utf-8")
    return path


def _result(search: Search, budget: Budget) -> str:
    winner, first = search.winner, search.trials[0]
    rows: list[list[object]] = [[name, value_of(search.config, name), value] for name, value in winner.values.items()]
    rows.append(["score", first.score, winner.score])
    rows += [[key, first.metrics.get(key), winner.metrics.get(key)] for key in _monitors(search)]
    words = (
        f"Trial {winner.name} is the best after {_epochs(winner.epochs)}. The score is the mean over the tasks of how "
        "far the monitored metric came from the best constant predictor (0) to perfection (1)."
    )
    edges = [
        f"The best {name}, {value:.3g}, lies at the end of its range: better ones may lie beyond."
        for space, trials in search.rounds
        if any(trial is winner for trial in trials)
        for name, value in winner.values.items()
        if name in space and space[name].at_the_edge(value)
    ]
    if winner is first:
        words += " It is the configuration as it was: no trial did better."
    header = ["", f"as configured ({first.name})", f"winner ({winner.name})"]
    values = table(header, [[*map(_shown, row)] for row in rows])
    command = code(f"densepred fit --config {search.folder}/winner.yaml")
    return paragraph(words) + values + "".join(map(warning, edges)) + command


def _epochs(count: float) -> str:
    return f"{count:g} epoch" if count <= 1 else f"{count:g} epochs"


def _monitors(search: Search) -> list[str]:
    return [f"val/{name}/{metric}" for name, (metric, _) in search.checks["monitors"].items()]


def _shown(value: Any) -> Any:
    return "null" if value is None else value


def _trials(search: Search) -> str:
    names = list(dict.fromkeys(name for trial in search.trials for name in trial.values))
    best_first = sorted(search.trials, key=lambda t: -math.inf if t.score is None else t.score, reverse=True)
    rows = [
        [trial.name, trial.score, *(_shown(trial.values.get(name)) for name in names),
         *(trial.metrics.get(key) for key in _monitors(search)), trial.steps, trial.shape,
         trial.error.splitlines()[0] if trial.error else trial.reason]
        for trial in best_first
    ]  # fmt: skip
    whole = table(["trial", "score", *names, *_monitors(search), "steps", "shape", "what was seen"], rows)
    shapes = []
    for shape in Shape:
        mine = [trial for trial in search.trials if trial.shape == shape and trial.losses]
        if mine:
            shapes.append(_curves(shape, mine))
    return (
        whole
        + heading("Learning rate and the other options")
        + charts(*_scatters(search, names))
        + heading("Training losses, by shape")
        + charts(*shapes)
    )


def _curves(shape: Shape, trials: Sequence[Trial]) -> str:
    series = [
        Series(
            f"{trial.name} (lr {trial.values['lr']:.2g})" if "lr" in trial.values else trial.name,
            [trial.steps * (place + 1) / len(trial.losses) for place in range(len(trial.losses))],
            trial.losses,
        )
        for trial in trials
    ]
    return chart(series, f"{shape.value.capitalize()}: {len(trials)}", "step", ADVICE[shape])


COLOURS = (("best", "#440154"), ("upper third", "#31688e"), ("middle third", "#35b779"), ("lower third", "#d9c400"))


def _scatters(search: Search, names: Sequence[str]) -> list[str]:
    """The rate against every other option that is a number, dots coloured by the score."""
    others = [name for name in names if name != "lr" and _numeric(search.trials, name)]
    if "lr" not in names or not _numeric(search.trials, "lr"):
        return []
    drawn = [_scatter(search, "lr", other) for other in others]
    scored = [trial for trial in search.trials if trial.score is not None]
    score = Series(
        "score", [trial.values["lr"] for trial in scored], [trial.score or 0.0 for trial in scored], dots=True
    )
    return [*drawn, chart([score], "Score by learning rate", "lr", "score", True)]


def _numeric(trials: Sequence[Trial], name: str) -> bool:
    values = [trial.values.get(name) for trial in trials]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _scatter(search: Search, across: str, upward: str) -> str:
    ranked = sorted((t for t in search.trials if t.score is not None), key=lambda t: t.score or 0.0, reverse=True)
    third = max(1, math.ceil((len(ranked) - 1) / 3))
    groups = [ranked[:1], *(ranked[1 + k * third : 1 + (k + 1) * third] for k in range(3))]
    series = [
        Series(label, [t.values[across] for t in group], [t.values[upward] for t in group], dots=True, colour=colour)
        for (label, colour), group in zip(COLOURS, groups, strict=True)
        if group
    ]
    if failed := [trial for trial in search.trials if trial.score is None]:
        where = [t.values[across] for t in failed], [t.values[upward] for t in failed]
        series.append(Series("failed", *where, dots=True, colour="#c8413f"))
    # a configuration may start from no decay at all, which the legend then counts
    log = [2 * sum(trial.values[name] > 0 for trial in search.trials) > len(search.trials) for name in (across, upward)]
    return chart(series, f"{upward} against {across}, by score", across, upward, log[0], log[1])


def next_space(search: Search) -> Space:
    """The ranges of a round after the last, around the winner."""
    return refine(search.rounds[-1][0], search.winner.values)


def _next(search: Search) -> str:
    space = next_space(search)
    options = " ".join(f"--search {name}={given}" for name, given in space.items())
    rows = [[name, str(given)] for name, given in space.items()]
    rate = space.get("lr")
    low, high = rate.values if rate is not None and rate.scale == "log" else (1e-4, 1e-1)
    metric, direction = next(iter(search.checks["monitors"].values()))
    recipe = RECIPE.format(
        config=search.folder / "config.yaml",
        low=low,
        high=high,
        epochs=search.winner.epochs,
        metric=_monitors(search)[0] if metric else "",
        direction="maximize" if direction == "max" else "minimize",
    )
    return (
        paragraph("The ranges of the next round: a third as wide, the winner in their middle.")
        + table(["option", "range"], rows)
        + code(f"densepred tune --config {search.folder}/winner.yaml {options}")
        + folded("On many machines, with Optuna", code(recipe))
    )


def _cost(search: Search, budget: Budget) -> str:
    rows: list[list[object]] = [[name.removesuffix(".json"), steps] for name, steps in budget.search.items()]
    rows.append(["the whole search", budget.spent])
    if budget.planned is not None:
        rows.append(["a run as configured", budget.planned])
    commands = comparison(search, budget)
    devices = search.config["trainer"].get("devices")
    words = [
        paragraph("Optimizer steps; the batch is the configuration's."),
        table(["part", "steps"], rows),
        paragraph("The same number of steps for both, the search counted on the winner's side:") if commands else "",
        code("\n".join(commands)) if commands else "",
    ]
    if devices not in (1, "auto", [0]):
        words.append(
            note(f"The search ran on one device; the configuration says {devices}: its global batch is larger.")
        )
    return "".join(words)
