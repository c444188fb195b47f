"""The page about one run."""

import math
from collections.abc import Iterator
from html import escape
from typing import Any

import yaml

from densepred.reports import page as html
from densepred.reports.diagnostics import angle_chart, class_table, confusion_chart, distance_chart
from densepred.reports.directions import best_marked
from densepred.reports.evaluations import protocol_told
from densepred.reports.groups import final
from densepred.reports.layout import Plot, layout
from densepred.reports.run import Run
from densepred.reports.svg import Series, chart

_SHEETS = 3


def run_page(run: Run) -> str:
    """All that a run left, as one HTML document; what is missing is said, not guessed.

    Args:
        run: Finished, running or killed.
    """
    drawn = curves(run)
    sections = {"Results": _results(run), "Losses": drawn.pop("Loss", "")}
    for stage, found in run.diagnostics.items():
        for task in found.get("tasks", {}):
            sections[f"{task.capitalize()} ({_words(stage)})"] = _task(run, stage, task)
    sections |= {
        "Panels": _panels(run),
        "Curves": "".join(html.heading(name) + body for name, body in drawn.items()) or _nothing_logged(run),
        "Protocol": _protocol(run),
        "Environment": environment(run),
        "Configuration": _configuration(run),
    }
    return html.page(run.name, sections, _subtitle(run))


def _words(stage: str) -> str:
    return {"val": "validation", "test": "test"}[stage]


def _subtitle(run: Run) -> str:
    model = (run.config.get("model") or {}).get("init_args") or {}
    parts = [_class(model.get(part)) for part in ("encoder", "decoder")]
    data = _class(run.config.get("data"))
    started = moment(run.starts[0].get("time", "")) if run.starts else ""
    shown = [" + ".join(filter(None, parts)), data, f"started {started}" if started else "", str(run.folder.resolve())]
    return " · ".join(filter(None, shown))


def moment(time: str) -> str:
    """An ISO time as people read it."""
    return str(time).replace("T", " ").replace("+00:00", " UTC")


def _class(part: Any) -> str:
    if not isinstance(part, dict):
        return ""
    name = str(part.get("class_path", "")).rpartition(".")[2]
    inner = (part.get("init_args") or {}).get("name")
    return f"{name} {inner}" if isinstance(inner, str) else name


def _results(run: Run) -> str:
    tables = [result_tables(run, stage) for stage in ("val", "test")]
    kept = ", ".join(path.name for path in run.checkpoints())
    told = html.note(f"Checkpoints: {kept}.") if kept else html.note("No checkpoint was kept.")
    told += html.note("Bold: the best of a row.") if 'best"' in "".join(tables) else ""
    for stage in ("val", "test"):
        if protocol := protocol_told(run.folder, stage):
            told += html.note(f"{_words(stage).capitalize()} by itself: {protocol}")
    missing = (
        [] if any(tables) else [html.warning("No evaluation is in metrics.csv: the run ended, or is, before one.")]
    )
    if any(tables) and not run.results("val"):
        missing.append(html.note("The run has not ended by itself, so no constant predictor was measured."))
    return "".join([*tables, *missing, told])


def result_tables(run: Run, stage: str) -> str:
    """The last metrics of a stage beside the constant predictor's, a table a task; per-class ones are left out."""
    constant = run.results(stage).get("constant", {})
    by_task: dict[str, list[list[Any]]] = {}
    apart = stage == "val" and any(key in run.alone for key in run.curves if key.startswith("val/"))
    checkpoint = run.diagnostics.get(stage, {}).get("checkpoint")
    for task, metrics in run.metrics(stage).items():
        for metric in metrics:
            key = f"{stage}/{task}/{metric}"
            # what the run was at its end; an evaluation by itself may have come later
            values = [_number(final(run, key))]
            values += [_number(run.alone.get(key))] if apart else []
            values += [_number(constant.get(key))] if constant else []
            by_task.setdefault(task, []).append([metric, *best_marked(metric, values, values)])
    header = ["", "last in training" if apart else "network"]
    header += [f"by itself, {checkpoint}" if checkpoint else "by itself"] if apart else []
    header += ["constant predictor"] if constant else []
    return html.side_by_side(*(html.table(header, rows, f"{task}, {_words(stage)}") for task, rows in by_task.items()))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _task(run: Run, stage: str, task: str) -> str:
    found = run.diagnostics[stage]["tasks"][task]
    parts: list[str] = []
    if found.get("confusion"):
        parts += [class_table(found), confusion_chart(found)]
    body = html.note(_evaluated(run.diagnostics[stage])) + html.side_by_side(*parts)
    if found.get("by_distance"):
        body += distance_chart(found)
    if found.get("angles"):
        body += html.charts(angle_chart(found))
    worst = [[entry["name"], entry["score"]] for entry in found.get("worst", [])]
    if worst:
        error = found.get("error", "error")
        path = run.worst(stage, task)
        body += html.heading(f"Worst images of {run.diagnostics[stage].get('images', '?')}")
        body += html.side_by_side(html.table(["image", error], worst), html.picture(path) if path else "")
    return body


def _evaluated(found: dict[str, Any]) -> str:
    if "epoch" in found:
        return f"As evaluated after epoch {found['epoch']} (step {found['step']})."
    return f"As evaluated by itself, {found.get('checkpoint') or 'without a checkpoint'}."


def curves(run: Run) -> dict[str, str]:
    """Every number that was logged during training, over its steps, by section of the layout."""
    return {
        section: html.charts(*(_plot(run, plot) for plot in plots))
        for section, plots in layout(_tasks_first_to_last(run)).items()
    }


def _tasks_first_to_last(run: Run) -> list[str]:
    """The keys of the curves, tasks in the network's order; a CSV file has them by the alphabet."""
    tasks = list(run.metrics("val"))
    places = {key: tasks.index(part) for key in run.curves for part in key.split("/")[1:2] if part in tasks}
    return sorted(run.curves, key=lambda key: places.get(key, -1))


def _nothing_logged(run: Run) -> str:
    return "" if run.curves else html.warning("metrics.csv is missing or empty: nothing was logged.")


def _plot(run: Run, plot: Plot) -> str:
    alike: dict[tuple[Any, ...], list[str]] = {}
    for key in plot.keys:
        # rates of several groups are often one line, which would hide all but the last
        curve = run.curves[key]
        alike.setdefault((tuple(curve.steps), tuple(map(str, curve.values))), []).append(key)
    series = [
        Series(", ".join(_short(key, plot) for key in keys), run.curves[keys[0]].steps, run.curves[keys[0]].values)
        for keys in alike.values()
    ]
    return chart(series, plot.title, "step", log_y=spans_decades(series) if "loss" in plot.title else False)


def spans_decades(series: list[Series]) -> bool:
    """Whether the values are all above 0 and so far apart that a logarithmic axis shows them better."""
    values = [value for one in series for value in one.y if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)


def _short(key: str, plot: Plot) -> str:
    """The part of a key that the plot's title does not say."""
    parts = key.split("/")
    tasks = {other.split("/")[1] for other in plot.keys if other.count("/") == 2}
    if len(tasks) > 1:
        return parts[1]
    return parts[-1] if len(parts) > 3 or key.startswith("lr-") else parts[0]


def _panels(run: Run) -> str:
    sheets = run.panels()
    if not sheets:
        return ""
    # the last, and some from before, evenly in time
    earlier = sheets[:-1]
    some = [earlier[round(i * (len(earlier) - 1) / max(_SHEETS - 2, 1))] for i in range(min(_SHEETS - 1, len(earlier)))]
    before = html.folded(
        "Earlier epochs", "".join(html.picture(path, _epoch(path.stem)) for path in dict.fromkeys(some))
    )
    return html.picture(sheets[-1], _epoch(sheets[-1].stem)) + before


def _epoch(stem: str) -> str:
    return f"epoch {int(stem.rpartition('_')[2])}" if stem.rpartition("_")[2].isdigit() else stem


def _protocol(run: Run) -> str:
    body = ""
    for stage, found in run.diagnostics.items():
        rows: list[list[Any]] = []
        for task, details in found.get("tasks", {}).items():
            protocol = details.get("protocol", {})
            settings = ", ".join(f"{key}={value}" for key, value in protocol.get("settings", {}).items())
            monitor = " ".join(details.get("monitor", []))
            rows.append([task, protocol.get("metric", ""), protocol.get("about", ""), settings or "none", monitor])
        images = f"{_words(stage).capitalize()}: {found.get('images')} images"
        body += html.table(["task", "metric", "what it measures", "settings", "checkpoints by"], rows, images)
    return body


def environment(run: Run) -> str:
    """What the run ran on, the latest start first."""
    if not run.starts:
        return html.note("environment.json is missing.")
    tables = [html.table([], list(_facts(start))) for start in reversed(run.starts)]
    return tables[0] + html.folded("Earlier starts", "".join(tables[1:]))


def _facts(start: dict[str, Any]) -> Iterator[list[str]]:
    yield ["command", " ".join(map(str, start.get("command", [])))]
    yield ["started", moment(start.get("time", ""))]
    if start.get("continues"):
        yield ["continues", str(start["continues"])]
    git = start.get("git")
    if git:
        yield ["commit", str(git.get("commit")) + (" with changed files" if git.get("changed") else "")]
    for key in ("densepred", "python"):
        yield [key, str(start.get(key, ""))]
    if packages := start.get("packages"):
        yield ["packages", ", ".join(f"{package} {version}" for package, version in packages.items())]
    for key in ("platform", "device", "processes", "threads", "cpus", "precision"):
        yield [key, str(start.get(key, ""))]


def _configuration(run: Run) -> str:
    if not run.config:
        return html.warning("config.yaml is missing or cannot be read.")
    text = yaml.safe_dump(run.config, sort_keys=False, default_flow_style=None, width=110)
    return (
        f"<p>The whole configuration, as <code>{escape('densepred fit --config')}</code> reads it.</p>"
        + html.folded("config.yaml", html.code(text))
    )
