"""A run's folder, read back: what is there, as much as there is."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from densepred.errors import ConfigurationError
from densepred.yaml_text import read_yaml

ENVIRONMENT = "environment.json"
DIAGNOSTICS = "diagnostics"


@dataclass(frozen=True)
class Curve:
    """A logged number over the steps of a training; what is not a number is NaN."""

    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Run:
    """One run; a file that is missing or unreadable, as an early kill leaves it, reads as nothing.

    Attributes:
        folder: `runs/<experiment>/version_<N>`.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The experiment and the version."""
        resolved = self.folder.resolve()
        return f"{resolved.parent.name}/{resolved.name}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What it was started with."""
        try:
            content = read_yaml(self.folder / "config.yaml", str(self.folder / "config.yaml"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The lines of `metrics.csv`; the last one may be cut short."""
        try:
            with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
        except OSError:
            return []

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """What the training logged, by key; an evaluation by itself, whose steps begin anew, is not part of it."""
        curves: dict[str, Curve] = {}
        for step, row in self._by_step:
            if step is None:
                continue
            for key, text in row.items():
                if key not in ("step", "epoch") and (value := number(text)) is not None and not key.startswith("test/"):
                    curve = curves.setdefault(key, Curve([], []))
                    curve.steps.append(step)
                    curve.values.append(value)
        return curves

    @cached_property
    def alone(self) -> dict[str, float]:
        """The last numbers of evaluations by themselves, after or between trainings: those whose steps begin anew."""
        found: dict[str, float] = {}
        for step, row in self._by_step:
            if step is None:
                found |= _numbers(row)
        return found

    @property
    def _by_step(self) -> Iterator[tuple[float | None, dict[str, str]]]:
        """Each line and the step of the training that wrote it; None for an evaluation by itself."""
        reached = -1.0
        for row in self.rows:
            step = number(row.get("step", ""))
            if step is None or math.isnan(step):
                continue
            yield (step if step >= reached else None), row
            reached = max(step, reached)

    @cached_property
    def latest(self) -> dict[str, float]:
        """The last number logged of each key, whoever logged it."""
        found: dict[str, float] = {}
        for row in self.rows:
            found |= _numbers(row)
        return found

    def metrics(self, stage: str) -> dict[str, list[str]]:
        """The metrics of each task, as their last parts: tasks and metrics as the network has them, the loss last."""
        logged: dict[str, list[str]] = {}
        for key in self.latest:
            parts = key.split("/")
            if parts[0] == stage and len(parts) == 3:  # val/depth/rmse; with four it is one class's
                logged.setdefault(parts[1], []).append(parts[2])
        known = {name: list(found.get("metrics", {})) for name, found in self._tasks(stage).items()}
        ordered = {name: logged[name] for name in dict.fromkeys([*known, *logged]) if name in logged}
        return {
            name: sorted(mine, key=lambda metric, name=name: (metric == "loss", _index(known.get(name, []), metric)))  # type: ignore[misc]
            for name, mine in ordered.items()
        }

    def _tasks(self, stage: str) -> dict[str, Any]:
        tasks = self.diagnostics.get(stage, {}).get("tasks", {})
        return tasks if isinstance(tasks, dict) else {}

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """What it ran on, an entry for each time it was started."""
        found = read_json(self.folder / ENVIRONMENT)
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    @cached_property
    def diagnostics(self) -> dict[str, dict[str, Any]]:
        """The latest evaluation of each stage: `val`, `test`."""
        found = {stage: read_json(self.folder / DIAGNOSTICS / f"{stage}.json") for stage in ("val", "test")}
        return {stage: content for stage, content in found.items() if isinstance(content, dict)}

    def results(self, stage: str) -> dict[str, Any]:
        """What `Results` wrote at the end: `network` and `constant`, by key."""
        found = read_json(self.folder / DIAGNOSTICS / f"{stage}_results.json")
        return found if isinstance(found, dict) else {}

    def panels(self) -> list[Path]:
        """Sheets of pictures, in the order they were drawn."""
        return sorted((self.folder / "panels").glob("epoch_*.png"))

    def worst(self, stage: str, task: str) -> Path | None:
        """The sheet of a task's worst images."""
        path = self.folder / DIAGNOSTICS / f"{stage}_worst_{task}.png"
        return path if path.is_file() else None

    def checkpoints(self) -> list[Path]:
        """The weights it kept."""
        return sorted((self.folder / "checkpoints").glob("*.ckpt"))


def find_run(path: Path) -> Run:
    """The run that a path means: its folder, a file in it, or an experiment's folder for the newest run there.

    Raises:
        ConfigurationError: If there is no run.
    """
    if path.is_file():
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if any((path / name).exists() for name in ("metrics.csv", "config.yaml", ENVIRONMENT)):
        return Run(path)
    versions = [found for found in path.glob("version_*") if found.name.removeprefix("version_").isdigit()]
    if not versions:
        raise ConfigurationError(
            f"{path} is no run. Expected a folder with metrics.csv or config.yaml, as densepred fit writes it "
            "(runs/<experiment>/version_0), or an experiment's folder with version_* in it."
        )
    return Run(max(versions, key=lambda found: int(found.name.removeprefix("version_"))))


def _numbers(row: dict[str, str]) -> dict[str, float]:
    return {k: v for k, text in row.items() if k not in ("step", "epoch") and (v := number(text)) is not None}


def _index(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def number(text: str) -> float | None:
    """A cell as a number; None for an empty or broken one.

    Example:
        >>> number("0.5"), number(""), number("nan")
        (0.5, None, nan)
    """
    try:
        return float(text)
    except ValueError:
        return None


def read_json(path: Path) -> Any:
    """A file's content; None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
