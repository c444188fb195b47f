"""Delta-m: what learning several tasks together gains or costs against a network for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from densepred.reports.groups import Group, flat

_MONITORS = {"miou": "max", "rmse": "min", "mean_angle": "min"}
"""The metric of each kind of task for runs without diagnostics."""


@dataclass(frozen=True)
class TaskChange:
    """One task of a multi-task run against its single-task run.

    Attributes:
        task: Its name.
        metric: By which both are measured.
        together: The multi-task run's.
        alone: The single-task run's.
        change: Signed so that above 0 is better, relative to `alone`.
    """

    task: str
    metric: str
    together: float
    alone: float
    change: float


def delta_m(changes: Sequence[TaskChange]) -> float:
    """The mean over tasks of the signed relative change.

    Reference:
        Vandenhende et al. Multi-Task Learning for Dense Prediction Tasks: A Survey. 2020. arXiv:2004.13379 (Eq. 10).
    """
    return fmean(change.change for change in changes)


def signed_change(together: float, alone: float, mode: str) -> float:
    """(together - alone) / alone, with the sign turned where less is better.

    Example:
        >>> signed_change(0.5, 0.4, "max"), signed_change(2.0, 1.6, "min")
        (0.24999999999999994, -0.24999999999999994)
    """
    change = (together - alone) / abs(alone)
    return change if mode == "max" else -change


def tasks_of(group: Group) -> dict[str, tuple[str, str]]:
    """The metric that each task is chosen by, and "max" or "min": from the diagnostics, else from what was logged."""
    run = group.runs[0]
    for found in run.diagnostics.values():
        monitors = {name: task.get("monitor") for name, task in found.get("tasks", {}).items()}
        if all(isinstance(monitor, list) and len(monitor) == 2 for monitor in monitors.values()):
            return {name: (monitor[0], monitor[1]) for name, monitor in monitors.items()}
    known: dict[str, tuple[str, str]] = {}
    for key in run.curves:
        stage, _, rest = key.partition("/")
        task, _, metric = rest.partition("/")
        if stage == "val" and metric in _MONITORS:
            known.setdefault(task, (metric, _MONITORS[metric]))
    return known


def changes_of(together: Group, groups: Sequence[Group]) -> tuple[list[TaskChange], list[str]]:
    """A multi-task group against the single-task groups of its tasks, and what makes the comparison unfair.

    Returns:
        The changes, one a task, or none where a task has no single-task run; and notes.
    """
    tasks = tasks_of(together)
    singles = {name: group for group in groups for name in _only_task(group)}
    if len(tasks) < 2 or not set(tasks) <= set(singles):
        return [], []
    changes, notes = [], []
    for task in tasks:
        alone = [group.name for group in groups if _only_task(group) == [task]]
        if len(alone) > 1:
            notes.append(f"{', '.join(alone)} all learn {task} alone; compared with {singles[task].name}.")
    for task, (metric, mode) in tasks.items():
        key = f"val/{task}/{metric}"
        mine, other = together.mean(key), singles[task].mean(key)
        if mine is None or other is None or other == 0:
            return [], [f"{key} was not logged by both sides."]
        changes.append(TaskChange(task, metric, mine, other, signed_change(mine, other, mode)))
        if _encoder(together) != _encoder(singles[task]):
            notes.append(
                f"{singles[task].name} has another encoder than {together.name}: not the comparison of Eq. 10."
            )
    return changes, notes


def _only_task(group: Group) -> list[str]:
    names = list(tasks_of(group))
    return names if len(names) == 1 else []


def _encoder(group: Group) -> dict[str, object]:
    options = flat(group.runs[0].config)
    return {key: value for key, value in options.items() if key.startswith("model.encoder.")}
