"""Small files of a run, each written whole or not at all."""

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Plain values as JSON; a number that is not finite becomes null, which every reader of JSON knows."""
    _write(path, json.dumps(_finite(value), indent=1) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a line of names."""
    part = _beside(path)
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    part = _beside(path)
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
