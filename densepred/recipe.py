"""Parts remember how they were built, as plain values, so that a checkpoint can build them again.

A recipe is what jsonargparse reads and a checkpoint may hold under `weights_only=True`:
`{"class_path": "densepred.decoders.unet.UNetDecoder", "init_args": {"widths": [256, 128]}}`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import numpy as np
from torch import nn

from densepred.errors import ConfigurationError

TRUSTED = ("densepred", "torch", "torchvision")
"""Packages whose classes a checkpoint may name without being asked."""

MOST_VALUES = 10_000_000
"""In a recipe, with shared lists written out in every place; the states of optimizers have many."""
DEEPEST = 100


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


def arguments_of(part: Recorded) -> dict[str, Any]:
    """All arguments that a part was built with, those left at their defaults included."""
    bound = inspect.signature(type(part).__init__).bind_partial(part, **part.init_args)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


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


def class_paths(plain: Any) -> Iterator[str]:
    """Every `class_path` in a recipe, at any depth."""
    if isinstance(plain, dict):
        if isinstance(path := plain.get("class_path"), str):
            yield path
        for value in plain.values():
            yield from class_paths(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from class_paths(value)


def refuse_foreign(plain: Any, where: str, allow: Sequence[str] = (), trusted: Sequence[str] = TRUSTED) -> None:
    """Refuses a recipe that names classes which neither densepred nor the user vouches for.

    A checkpoint comes from elsewhere; to build a class is to run its code.

    Args:
        plain: The recipe.
        where: The file it stands in.
        allow: Further packages, modules or classes: `mine`, `mine.MyDecoder`.
        trusted: Packages whose classes need no allowance.

    Raises:
        ConfigurationError: Naming the first such class; or if the recipe holds itself, or more than could be meant.
    """
    if (values := _expanded(plain, {}, where)) > MOST_VALUES:
        raise ConfigurationError(f"{where} describes {values:,} values; a network has at most {MOST_VALUES:,}.")
    known = (*trusted, *allow)
    for path in class_paths(plain):
        # a bare name can only mean a class that is imported already
        if "." in path and not any(path == name or path.startswith(f"{name}.") for name in known):
            raise ConfigurationError(
                f"{where} wants the class {path} built, which is none of {', '.join(trusted)}. Building it runs its "
                f"code: if you trust it, allow it by name: --allow {path} (in Python allow=[{path!r}])."
            )


def _expanded(plain: Any, known: dict[int, int], where: str, depth: int = 0) -> int:
    """How many values a recipe stands for: a pickle may hold one list in many places, and a list in itself."""
    if not isinstance(plain, dict | list | tuple):
        return 1
    if depth > DEEPEST or known.get(id(plain)) == 0:
        raise ConfigurationError(f"{where}: a value lies in itself, or more than {DEEPEST} deep.")
    if id(plain) not in known:
        known[id(plain)] = 0  # being counted
        inside = plain.values() if isinstance(plain, dict) else plain
        known[id(plain)] = 1 + sum(_expanded(value, known, where, depth + 1) for value in inside)
    return known[id(plain)]


def rebuilt(plain: Any, where: str = "value", expected: Any = Recorded) -> Any:
    """What a recipe describes: parts built, factories as `functools.partial`, plain values as they are.

    Args:
        plain: What `recipe` has made.
        where: How to name it in an error.
        expected: The annotation of the argument that it is for. A callable asks for a factory.

    Raises:
        ConfigurationError: If a class does not exist, is no part of a network, or refuses its arguments.

    Example:
        >>> rebuilt({"class_path": "densepred.tasks.depth.Depth", "init_args": {"typical": 3.0}}).typical
        3.0
    """
    if isinstance(plain, list | tuple):
        items = [rebuilt(item, f"{where}[{i}]", expected) for i, item in enumerate(plain)]
        return tuple(items) if _mentions(expected, tuple) else items
    if not isinstance(plain, dict):
        return plain
    if "class_path" not in plain:
        return {key: rebuilt(value, f"{where}[{key!r}]", expected) for key, value in plain.items()}
    part = _found(plain["class_path"], where, expected)
    hints = get_type_hints(part.__init__)
    arguments = {
        name: rebuilt(value, f"{where}.{name}", hints.get(name, Any))
        for name, value in (plain.get("init_args") or {}).items()
    }
    if _mentions(expected, get_origin(Callable[[], None])):
        return partial(part, **arguments)
    try:
        return part(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {plain['class_path']} refuses its arguments: {error}") from error


def _found(path: str, where: str, expected: Any) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{where}: there is no class {path} ({error}). A class of your own must be importable from here."
        ) from error
    # torch.hub.load and its like are reachable by name as well
    if not (inspect.isclass(found) and issubclass(found, nn.Module | Recorded)):
        raise ConfigurationError(f"{where}: {path} is no part of a network.")
    wanted = tuple(_parts(expected))
    if wanted and not issubclass(found, wanted):
        names = " or ".join(one.__name__ for one in wanted)
        raise ConfigurationError(f"{where}: expected a subclass of {names}; {path} is none.")
    return found


def _parts(annotation: Any) -> Iterator[type[Any]]:
    """The classes of parts that an annotation asks for; of a callable, those that it returns."""
    if inspect.isclass(annotation) and issubclass(annotation, nn.Module | Recorded):
        yield annotation
    inner = get_args(annotation)
    for one in inner[-1:] if get_origin(annotation) is get_origin(Callable[[], None]) else inner:
        yield from _parts(one)


def _mentions(annotation: Any, origin: Any) -> bool:
    """Whether an annotation is of that origin, or one of several that is."""
    return get_origin(annotation) is origin or any(_mentions(part, origin) for part in get_args(annotation))
