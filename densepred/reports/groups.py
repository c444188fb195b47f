"""Runs that differ by their seed alone, averaged; and what tells the others apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from densepred.reports.run import Curve, Run

_OF_NO_EFFECT = ("trainer.default_root_dir", "trainer.logger", "trainer.enable_", "ckpt_path", "config", "verbose")
_MISSING = object()

ABSENT = "–"
"""What stands in a table for an option that a run does not have."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration.

    Attributes:
        runs: At least one, in the order they were given.
        name: What sets them apart from the other groups.
    """

    runs: tuple[Run, ...]
    name: str

    def mean(self, key: str, alone: bool = False) -> float | None:
        """The mean over the runs of the last value of the training; None where a run lacks it.

        Args:
            key: Of the number.
            alone: Take what an evaluation by itself found instead.
        """
        values = self._values(key, alone)
        return fmean(values) if values else None

    def deviation(self, key: str, alone: bool = False) -> float | None:
        """The standard deviation over runs (of a sample: divided by their number less 1); None for a single run."""
        values = self._values(key, alone)
        return stdev(values) if len(values) > 1 else None

    def _values(self, key: str, alone: bool) -> list[float]:
        found = [run.alone.get(key) if alone else final(run, key) for run in self.runs]
        return [value for value in found if value is not None] if None not in found else []

    def curve(self, key: str) -> tuple[Curve, list[float]] | None:
        """The mean curve and its deviation, at the steps that all runs logged; None where there are none."""
        curves = [run.curves[key] for run in self.runs if key in run.curves]
        if len(curves) != len(self.runs):
            return None
        tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
        steps = sorted(set.intersection(*map(set, tables)))
        columns = [[table[step] for table in tables] for step in steps]
        spread = [_deviation(column) for column in columns]
        return (Curve(steps, [fmean(column) for column in columns]), spread) if steps else None


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def final(run: Run, key: str) -> float | None:
    """The number that a run ended with: of a training its last, of a test the test's."""
    if key in run.curves:
        return run.curves[key].values[-1]
    return run.latest.get(key)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs whose configurations differ by no more than seeds and places, put together; each named by what is its own.

    A run without a readable configuration stands alone.
    """
    flats = [flat(run.config) for run in runs]
    gathered: list[list[int]] = []
    for index, of_run in enumerate(flats):
        like = next((mine for mine in gathered if of_run and _effective(flats[mine[0]]) == _effective(of_run)), None)
        if like is None:
            gathered.append([index])
        else:
            like.append(index)
    names = _names([runs[mine[0]] for mine in gathered], [flats[mine[0]] for mine in gathered])
    return [
        Group(tuple(runs[i] for i in mine), name + (f" ({len(mine)} seeds)" if len(mine) > 1 else ""))
        for mine, name in zip(gathered, names, strict=True)
    ]


def _names(runs: Sequence[Run], flats: Sequence[dict[str, Any]]) -> list[str]:
    """Folder names where they differ; else the version."""
    parents = [run.folder.resolve().parent.name for run in runs]
    return [parent if parents.count(parent) == 1 else run.name for run, parent in zip(runs, parents, strict=True)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as dotted keys; `init_args` left out of them, lists counted.

    Example:
        >>> flat({"model": {"init_args": {"tasks": [{"class_path": "Depth"}]}}})
        {'model.tasks.0.class_path': 'Depth'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        items = {str(index): item for index, item in enumerate(value)} if isinstance(value, list) else value
        if isinstance(items, Mapping) and items:
            found |= flat(items, path)
        else:
            found[path] = value
    return found


def _effective(flattened: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flattened.items() if not _is_seed(key) and not _of_no_effect(key)}


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] in ("seed", "seed_everything")


def _of_no_effect(key: str) -> bool:
    return key.startswith(_OF_NO_EFFECT)


def differences(groups: Sequence[Group]) -> list[list[str]]:
    """Options that are not the same everywhere: the option, and each group's value; a dash where it has none."""
    flats = [_effective(flat(group.runs[0].config)) for group in groups]
    keys = list(dict.fromkeys(key for of_group in flats for key in of_group))
    rows = []
    for key in keys:
        values = [of_group.get(key, _MISSING) for of_group in flats]
        if any(value != values[0] for value in values):
            rows.append([key, *(ABSENT if value is _MISSING else str(value) for value in values)])
    return rows
