"""Parts remember how they were built, as plain values, so that a checkpoint can build them again.

A recipe is what jsonargparse reads and a checkpoint may hold under `weights_only=True`:
`{"class_path": "densepred.decoders.unet.UNetDecoder", "init_args": {"widths": [256, 128]}}`.
"""

import inspect
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from densepred.errors import ConfigurationError


class Recorded:
    """Remembers the arguments an object was built with, in `init_args`.

    Example:
        >>> class Part(Recorded):
        ...     def __init__(self, width: int, depth: int = 2) -> None: ...
        >>> Part(3).init_args
        {'width': 3}
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102 - documented on the class
        part = super().__new__(cls)
        # bind_partial: unpickling and copying call __new__ without arguments and restore the record afterwards
        bound = inspect.signature(cls.__init__).bind_partial(part, *args, **kwargs).arguments
        # nn.Module refuses attributes before its __init__; the instance's dict does not
        part.__dict__["init_args"] = dict(list(bound.items())[1:])
        return part


def class_path(of: type[Any] | Any) -> str:
    """The dotted path of a class, or of a function."""
    return f"{of.__module__}.{of.__qualname__}"


def recipe(value: Any, where: str = "value") -> Any:
    """Plain values that rebuild `value`: numbers, strings, lists, dicts and `class_path` + `init_args`.

    Args:
        value: A plain value, a container of them, a `Recorded` part, a class, or a `functools.partial` of a class.
        where: How to name the value in an error.

    Raises:
        ConfigurationError: If it holds something that cannot be written down, such as a lambda.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    # after NumPy's numbers: its float64 is a float too, but not one that a checkpoint may hold
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return [recipe(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: recipe(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Recorded):
        arguments = {key: recipe(item, f"{where}.{key}") for key, item in value.init_args.items()}
        return {"class_path": class_path(type(value)), "init_args": arguments}
    if isinstance(value, partial):
        # jsonargparse's factories are partial(<its instantiators>, Class, **arguments)
        built = (value.func, *value.args)[-1]
        if inspect.isclass(built):
            arguments = {key: recipe(item, f"{where}.{key}") for key, item in value.keywords.items()}
            return {"class_path": class_path(built), "init_args": arguments}
    if inspect.isclass(value) or (inspect.isfunction(value) and "<" not in value.__qualname__):
        return {"class_path": class_path(value)}
    raise ConfigurationError(
        f"{where} = {value!r} cannot be written into a checkpoint. Expected a plain value, a class, a part of "
        "densepred, or functools.partial(Class, option=...)."
    )
