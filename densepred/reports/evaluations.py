"""What `densepred test` and `validate` say of how their numbers were made, read back."""

from pathlib import Path
from typing import Any

from densepred.reports.run import read_json

FILES = {"test": "metrics.json", "val": "metrics_val.json"}
"""In a run's folder, by stage."""


def protocol_told(folder: Path, stage: str) -> str:
    """The protocol of the latest evaluation by itself, in a sentence; empty where there was none.

    Args:
        folder: The run's.
        stage: test or val.
    """
    found = read_json(folder / FILES[stage])
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        return ""
    tasks = "; ".join(f"{name} by {_task(task)}" for name, task in found["tasks"].items() if isinstance(task, dict))
    asked: dict[str, Any] = found.get("inference") or {}
    chosen = {key: value for key, value in asked.items() if key != "seen" and value not in (None, False)}
    options = "".join(f", {key} {value}" for key, value in chosen.items())
    images = (found.get("data") or {}).get("images")
    return f"{images} images, {tasks}. Asked about {asked.get('seen', 'images')}{options}."


def _task(task: dict[str, Any]) -> str:
    return f"protocol {task.get('protocol', 'none')} at {task.get('size', 'an unknown size')}"
