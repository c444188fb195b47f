"""What an evaluation found and how, as plain values for metrics.json and as lines for people."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torchmetrics import Metric

from densepred import __version__
from densepred.callbacks.environment import device_name, git_state
from densepred.inference.options import InferenceOptions
from densepred.resume import read_checkpoint

_COUNTS = ("pixels", "values", "images", "skipped")


def counts(metric: Metric) -> dict[str, int]:
    """What a metric has counted: pixels (or values), and images where it knows them. Every process must ask."""
    with metric.sync_context():
        if hasattr(metric, "confusion"):
            return {"pixels": int(metric.confusion.sum())}  # type: ignore[operator]
        return {name: int(value) for name in _COUNTS if (value := getattr(metric, name, None)) is not None}


def options_stated(options: InferenceOptions) -> dict[str, Any]:
    """Every option and its value."""
    return {field.name: _plain(getattr(options, field.name)) for field in fields(options)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value)


def provenance(trainer: pl.Trainer) -> dict[str, Any]:
    """Which weights, which code, on what, and when."""
    return {
        "checkpoint": _checkpoint(trainer.ckpt_path),
        "densepred": __version__,
        "git": git_state(Path.cwd()),
        "device": device_name(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _checkpoint(path: Any) -> dict[str, Any] | None:
    if not path or not Path(path).is_file():
        return None
    found = read_checkpoint(Path(path))
    return {"file": str(path), "epoch": found.get("epoch"), "step": found.get("global_step")}


def lines(report: Mapping[str, Any]) -> Sequence[str]:
    """The protocol, for people: a line a task, then how the images were asked about."""
    data, told = report["data"], []
    for name, task in report["tasks"].items():
        measured = ", ".join(f"{key} {value}" for key, value in task["measured_by"]["settings"].items())
        pixels = ", ".join(f"{value:,} {key}" for key, value in task["counts"].items())
        told.append(f"  {name:<16}{task['protocol']}: {task['size']}" + (f"; {measured}" if measured else ""))
        told.append(f"{'':<18}{pixels}" + (f"; truth: {task['truth']}" if task.get("truth") else ""))
    told.append(f"  {'images':<16}{data['images']:,} of {data['class'] or 'a loader'}, {data['split']}")
    asked = [f"{key} {value}" for key, value in report["inference"].items() if key != "seen"]
    told.append(f"  {'asked about':<16}{report['inference']['seen']}" + (f"; {', '.join(asked)}" if asked else ""))
    return ["", "protocol", *told]
