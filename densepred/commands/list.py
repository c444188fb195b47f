"""`densepred list`: what can be named in a configuration, read from the sources without importing them."""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from densepred.errors import ConfigurationError

KINDS = {
    "encoders": "Encoder",
    "decoders": "Decoder",
    "refine": "Refiner",
    "tasks": "Task",
    "losses": "Loss",
    "balance": "Balance",
    "data": "DenseDataModule",
}
"""Room of the house, and the class that all parts of this kind derive from."""


class Part(NamedTuple):
    """A class that a configuration can name."""

    name: str
    source: ast.ClassDef

    @property
    def line(self) -> str:
        """The first line of its documentation."""
        return (ast.get_docstring(self.source) or "").partition("\n")[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One kind, or one class."""
    parser.add_argument(
        "what", nargs="?", metavar="KIND|CLASS", help=f"{', '.join(KINDS)}; or a class, to read its documentation"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the parts, a line each, or all about one of them."""
    everything = {kind: list(parts(kind)) for kind in KINDS}
    what = arguments.what
    if what in (None, *KINDS):
        print("\n\n".join(table(kind, everything[kind]) for kind in KINDS if what in (None, kind)))
        return 0
    found = [part for of_a_kind in everything.values() for part in of_a_kind if part.name == what]
    if not found:
        names = [part.name for of_a_kind in everything.values() for part in of_a_kind]
        near = get_close_matches(what, [*KINDS, *names])
        raise ConfigurationError(
            f"list: there is no {what!r}. Expected {', '.join(KINDS)}, or a class"
            + (f", such as {', '.join(near)}." if near else "; densepred list shows all.")
        )
    print(page(found[0]))
    return 0


def parts(kind: str) -> Iterator[Part]:
    """The classes of a kind, without those that are only there to be derived from."""
    base = KINDS[kind]
    spec = find_spec(f"densepred.{kind}")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(path for folder in folders or [] for path in Path(folder).rglob("*.py"))
    classes = {
        node.name: node
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    for name in sorted(classes):
        hidden = name == base or name.startswith("_") or _abstract(classes[name])
        if not hidden and base in _ancestors(name, classes):
            yield Part(name, classes[name])


def _abstract(node: ast.ClassDef) -> bool:
    methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
    return any(ast.unparse(mark) == "abstractmethod" for method in methods for mark in method.decorator_list)


def _ancestors(name: str, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    for parent in classes[name].bases if name in classes else []:
        if isinstance(parent, ast.Name):
            yield parent.id
            yield from _ancestors(parent.id, classes)


def table(kind: str, listed: list[Part]) -> str:
    """A line for each part."""
    width = max(len(part.name) for part in listed)
    return "\n".join([kind, *(f"  {part.name:<{width}}  {part.line}" for part in listed)])


def page(part: Part) -> str:
    """A part's options with their defaults, and its documentation."""
    constructor = next(
        (node for node in part.source.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None
    )
    options = [] if constructor is None else list(_options(constructor.args))
    text = inspect.cleandoc(ast.get_docstring(part.source) or "")
    return f"{part.name}\n{textwrap.indent(chr(10).join(options), '  ')}\n\n{text}"


def _options(arguments: ast.arguments) -> Iterator[str]:
    given = [*arguments.args, *arguments.kwonlyargs][1:]
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    padded = [None] * (len(given) - len(defaults)) + defaults
    for argument, default in zip(given, padded, strict=True):
        annotation = "" if argument.annotation is None else f": {ast.unparse(argument.annotation)}"
        yield f"{argument.arg}{annotation}" + ("" if default is None else f" = {ast.unparse(default)}")
