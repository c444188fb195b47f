"""The page about several runs."""

from collections.abc import Sequence

from densepred.reports import page as html
from densepred.reports.groups import Group, differences, groups_of
from densepred.reports.layout import Plot, layout
from densepred.reports.multitask import changes_of, delta_m, tasks_of
from densepred.reports.run import Run
from densepred.reports.run_page import spans_decades
from densepred.reports.svg import COLOURS, Series, chart

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
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.latest)
    body = ""
    for stage, words in (("val", "Validation, last value of each training"), ("test", "Test")):
        mine = sorted((k for k in keys if k.startswith(f"{stage}/") and k.count("/") <= 2), key=_by_task)
        rows = [[key.removeprefix(f"{stage}/"), *(_mean_text(group, key) for group in groups)] for key in mine]
        body += html.table(["", *(group.name for group in groups)], rows, words) if rows else ""
    several = any(len(group.runs) > 1 for group in groups)
    told = "Mean ± standard deviation over seeds (of a sample: divided by n - 1)." if several else ""
    return (body or html.warning("None of the runs has logged an evaluation.")) + (html.note(told) if told else "")


def _by_task(key: str) -> tuple[int, str]:
    return key.count("/"), key.split("/")[1]


def _mean_text(group: Group, key: str) -> str | float | None:
    mean, deviation = group.mean(key), group.deviation(key)
    if mean is None or deviation is None:
        return mean
    return f"{mean:.4g} ± {deviation:.2g}"


def _multitask(groups: Sequence[Group]) -> str:
    body = ""
    for group in groups:
        changes, notes = changes_of(group, groups)
        if changes:
            rows = [[c.task, c.metric, c.together, c.alone, f"{100 * c.change:+.2f} %"] for c in changes]
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
    return html.table(["option", *(group.name for group in groups)], rows)


def _curves(groups: Sequence[Group]) -> str:
    body = ""
    for section, plots in layout(key for group in groups for run in group.runs for key in run.curves).items():
        body += html.heading(section) + html.side_by_side(
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
    rows = []
    for group in groups:
        for run in group.runs:
            start = run.starts[-1] if run.starts else {}
            packages = start.get("packages") or {}
            git = start.get("git") or {}
            rows.append(
                [
                    run.name,
                    group.name,
                    str(run.config.get("seed_everything", "–")),
                    str(int(max((curve.steps[-1] for curve in run.curves.values()), default=-1) + 1)),
                    str(start.get("device", "–")),
                    str(git.get("commit", "–"))[:10] + ("*" if git.get("changed") else ""),
                    ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages) or "–",
                ]
            )
    return html.table(["run", "group", "seed", "steps", "device", "commit", "packages"], rows) + html.note(
        "A star: files differed from the commit."
    )
