"""The size of the images that a network was trained for, as its checkpoint's configuration says."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from densepred.errors import ConfigurationError
from densepred.inference.safetensors_file import read_stored
from densepred.yaml_text import read_yaml


def trained_short_side(checkpoint: str | Path) -> int | None:
    """The shorter side, in pixels, to which the run's data bring pictures for evaluation.

    That of the last `Rescale` of its `data.eval_transforms` (the smaller side where it sets both), else of the `size`
    of data that are made or stored at one. None where pictures keep their own sizes, or the run was none of the command
    line.

    Args:
        checkpoint: A file that `densepred fit` has written.
    """
    text = read_stored(Path(checkpoint).expanduser()).get("config")
    try:
        config = read_yaml(text, f"{checkpoint}: its configuration") if isinstance(text, str) else None
    except (ValueError, yaml.YAMLError):
        return None
    data = config.get("data") if isinstance(config, dict) else None
    options = (data.get("init_args") if isinstance(data, dict) else None) or {}
    rescaled = [_shorter(arguments) for arguments in _rescales(options.get("eval_transforms"))]
    return rescaled[-1] if rescaled else _shorter(options)


def common_short_side(checkpoints: Sequence[str | Path]) -> int | None:
    """The shorter side of several checkpoints, see `trained_short_side`.

    Raises:
        ConfigurationError: If they were trained at different ones.
    """
    sides = {str(file): trained_short_side(file) for file in checkpoints}
    if len(set(sides.values())) > 1:
        told = ", ".join(f"{file} at {side or 'the own size of pictures'}" for file, side in sides.items())
        raise ConfigurationError(
            f"The checkpoints were trained at different sizes (shorter side in pixels): {told}. Say at which they are "
            "to predict: --short_side N, or none for the pictures' own (in Python InferenceOptions(short_side=N), or "
            "as_trained=False)."
        )
    return next(iter(sides.values()))


def _rescales(plain: Any) -> Iterator[dict[str, Any]]:
    """The arguments of every Rescale in a recipe, at any depth."""
    if isinstance(plain, list):
        for value in plain:
            yield from _rescales(value)
    elif isinstance(plain, dict):
        arguments = plain.get("init_args")
        if str(plain.get("class_path", "")).rpartition(".")[2] == "Rescale" and isinstance(arguments, dict):
            yield arguments
        else:
            yield from _rescales(list(plain.values()))


def _shorter(arguments: dict[str, Any]) -> int | None:
    size, side = arguments.get("size"), arguments.get("short_side")
    if isinstance(size, list) and len(size) == 2 and all(isinstance(part, int) for part in size):
        return int(min(size))
    return side if isinstance(side, int) else None
