"""The page about several runs."""

import math
from collections.abc import Sequence

from densepred.reports import page as html
from densepred.reports.directions import best_marked
from densepred.reports.groups import ABSENT, Group, differences, groups_of
from densepred.reports.layout import Plot, layout
from densepred.reports.multitask import changes_of, delta_m, tasks_of
from densepred.reports.run import Run
from densepred.reports.run_page import moment, spans_decades
from densepred.reports.svg import COLOURS, Series, chart

_WORDS = {"val": "validation", "test": "test"}
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy")


def comparison_page(runs: Sequence[Run]) -> str:
    """Runs side by side: those that differ by their seed alone are averaged, mean and standard deviation.

    Args:
        runs: Two or more.
    """
    groups = groups_of(runs)
    sections = {
        "Results": _results(groups),
        "Multi-task gain": _multitask(groups),
        "Differences": _differences(groups),
        "Curves": _curves(groups),
        "Panels": _panels(groups),
        "Runs": _runs(groups),
    }
    return html.page(f"{len(runs)} runs compared", sections, ", ".join(group.name for group in groups))


def _results(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    header = ["", *(group.name for group in groups)]
    body = ""
    for stage, words in (("val", "Validation, last value of each training"), ("test", "Test")):
        per_task: dict[str, dict[str, None]] = {}
        for run in runs:
            for task, metrics in run.metrics(stage).items():
                per_task.setdefault(task, {}).update(dict.fromkeys(metrics))
        keys = [f"{stage}/{task}/{metric}" for task, metrics in per_task.items() for metric in metrics]
        if any(f"{stage}/loss" in run.latest for run in runs):
            keys.append(f"{stage}/loss")
        body += html.table(header, [_row(groups, key) for key in keys], words) if keys else ""
        if stage == "val" and any(set(keys) & set(run.alone) for run in runs):
            rows = [_row(groups, key, alone=True) for key in keys]
            body += html.table(header, rows, "Validation by itself, after training")
        classes = dict.fromkeys(
            key for run in runs for key in run.latest if key.startswith(f"{stage}/") and key.count("/") > 2
        )
        rows = [_row(groups, key) for key in classes]
        body += html.folded(f"By class, {_WORDS[stage]}", html.table(header, rows)) if rows else ""
    several = any(len(group.runs) > 1 for group in groups)
    told = "Bold: the best mean of a row." if len(groups) > 1 else ""
    if several:
        told += " Mean ± standard deviation over seeds (of a sample: divided by n - 1)."
    return (
        body + html.note(told.strip()) + _lacking(groups)
        if body
        else html.warning("None of the runs has logged an evaluation.")
    )


def _lacking(groups: Sequence[Group]) -> str:
    """Which runs leave their group without a mean."""
    told = ""
    for group in groups:
        keys = {key for run in group.runs for key in run.latest if key.startswith(("val/", "test/"))}
        names = [run.name for run in group.runs if not keys <= set(run.latest)]
        if names:
            told += html.warning(f"{group.name} has no mean of what {', '.join(names)} did not log, or not yet.")
    return told


def _row(groups: Sequence[Group], key: str, alone: bool = False) -> list[object]:
    """A metric of all groups, the best in bold."""
    parts = key.split("/")[1:]
    metric = parts[1] if len(parts) > 1 else parts[0]
    means = [group.mean(key, alone) for group in groups]
    return ["/".join(parts), *best_marked(metric, means, [_mean_text(group, key, alone) for group in groups])]


def _mean_text(group: Group, key: str, alone: bool) -> str | float | None:
    mean, deviation = group.mean(key, alone), group.deviation(key, alone)
    if mean is None or deviation is None:
        return mean
    return with_deviation(mean, deviation)


def with_deviation(mean: float, deviation: float) -> str:
    """A mean to the digit that its deviation, of two figures, leaves it.

    Example:
        >>> with_deviation(0.739124, 0.00141), with_deviation(24.74, 1.04), with_deviation(1234.5, 160)
        ('0.7391 ± 0.0014', '24.7 ± 1.0', '1234 ± 160')
    """
    if not (math.isfinite(mean) and math.isfinite(deviation)) or deviation == 0:
        return f"{mean:.4g} ± {deviation:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def _multitask(groups: Sequence[Group]) -> str:
    body = ""
    for group in groups:
        changes, notes = changes_of(group, groups)
        if changes:
            rows: list[list[object]] = [
                [c.task, c.metric, c.together, c.alone, f"{100 * c.change:+.2f} %"] for c in changes
            ]
            rows.append(["delta-m", "mean over tasks", None, None, f"{100 * delta_m(changes):+.2f} %"])
            header = ["task", "metric", "together", "alone", "change (above 0 is better)"]
            body += html.table(header, rows, f"{group.name} against a network for each task")
        body += "".join(html.warning(text) for text in dict.fromkeys(notes))
    several = [group.name for group in groups if len(tasks_of(group)) > 1]
    if several and not body and len(groups) > 1:
        return html.note(
            f"To see what {several[0]} gains or costs, give a single-task run for each of its tasks as well."
        )
    return body


def _differences(groups: Sequence[Group]) -> str:
    rows = differences(groups)
    if len(groups) < 2:
        return html.note("The configurations differ by seeds alone.")
    if not rows:
        return html.note("No configuration could be read.")
    header = ["option", *(group.name for group in groups)]
    # another part brings options of its own, which say little beside its name
    own = [row for row in rows if ABSENT in row and not row[0].endswith("class_path")]
    common = [row for row in rows if row not in own]
    if not common:
        return html.table(header, own)
    return html.table(header, common) + html.folded(
        "Options that not every run has", html.table(header, own) if own else ""
    )


def _curves(groups: Sequence[Group]) -> str:
    body = ""
    for section, plots in layout(key for group in groups for run in group.runs for key in run.curves).items():
        body += html.heading(section) + html.charts(
            *(_plot(groups, key, plot) for plot in plots if not plot.title.endswith("by class") for key in plot.keys)
        )
    return body


def _plot(groups: Sequence[Group], key: str, plot: Plot) -> str:
    series = []
    for index, group in enumerate(groups):
        found = group.curve(key)
        if found is None:
            continue
        curve, spread = found
        low = [value - s for value, s in zip(curve.values, spread, strict=True)] if len(group.runs) > 1 else None
        high = [value + s for value, s in zip(curve.values, spread, strict=True)] if len(group.runs) > 1 else None
        # a group keeps its colour also where another one has no such curve
        series.append(Series(group.name, curve.steps, curve.values, low, high, colour=COLOURS[index % len(COLOURS)]))
    return chart(series, key, "step", log_y="loss" in plot.title and spans_decades(series)) if series else ""


def _panels(groups: Sequence[Group]) -> str:
    shown = [(group, sheets[-1]) for group in groups if (sheets := group.runs[0].panels())]
    return "".join(
        html.folded(f"{group.name}, {path.stem.replace('_', ' ')}", html.picture(path)) for group, path in shown
    )


def _runs(groups: Sequence[Group]) -> str:
    rows = [_facts(group, run) for group in groups for run in group.runs]
    header = ["run", "group", "seed", "steps", "started", "device", "commit", "packages"]
    told = "A star: files differed from the commit." if any(str(row[6]).endswith("*") for row in rows) else ""
    # what all share is said once
    for column in (7, 5):
        if len({row[column] for row in rows}) == 1 and rows[0][column] != ABSENT:
            told += f" All on {rows[0][column]}."
            header.pop(column)
            rows = [[*row[:column], *row[column + 1 :]] for row in rows]
    return html.table(header, rows) + (html.note(told.strip()) if told else "")


def _facts(group: Group, run: Run) -> list[object]:
    start = run.starts[-1] if run.starts else {}
    packages = start.get("packages") or {}
    git = start.get("git") or {}
    return [
        run.name,
        group.name,
        str(run.config.get("seed_everything", ABSENT)),
        int(max((curve.steps[-1] for curve in run.curves.values()), default=-1) + 1),
        moment(start.get("time", ABSENT)),
        str(start.get("device", ABSENT)),
        str(git.get("commit", ABSENT))[:10] + ("*" if git.get("changed") else ""),
        ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages) or ABSENT,
    ]
