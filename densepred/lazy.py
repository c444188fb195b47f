"""Packages that re-export without importing (PEP 562), so that a command pays only for what it uses."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: dict[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """A package's `__getattr__` and `__all__`.

    Args:
        package: The package's `__name__`.
        modules: Where each public name lives: `{"ResNetEncoder": "resnet"}`.

    Example:
        >>> find, names = lazy_exports("densepred", {"FeatureSpec": "features"})
        >>> find("FeatureSpec").__name__, names
        ('FeatureSpec', ['FeatureSpec'])
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return find, sorted(modules)
