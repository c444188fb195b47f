"""Builds the reference pages from the docstrings: `python .docs/build.py FOLDER`. Any warning ends it with status 1.

pdoc reads what a package exports from `__all__`, but densepred's packages find their names when they are used. So each
package's page shows its files, and links every exported name to the page where it is documented.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import pdoc
import pdoc.docstrings
import pdoc.render

import densepred


def unfold(package: ModuleType) -> None:
    """Lets a package's page show its files, below the names that it exports."""
    names = {name: getattr(package, name) for name in package.__dict__.pop("__all__", [])}
    lines = [f"- `{name}`: `{home(found)}`" for name, found in sorted(names.items()) if home(found)]
    if lines:
        title = f"Names to import from `{package.__name__}`:"
        package.__doc__ = "\n\n".join([package.__doc__ or "", title, "\n".join(lines)])


def home(found: Any) -> str:
    """Where a class or function is documented; nothing for aliases of types."""
    module, name = getattr(found, "__module__", ""), getattr(found, "__qualname__", "")
    return f"{module}.{name}" if name and module.startswith("densepred.") else ""


def build(folder: Path) -> int:
    """Writes the pages; returns how many warnings there were, each of which is printed."""
    names = ["densepred", *(one.name for one in walk_packages(densepred.__path__, "densepred."))]
    modules = [import_module(name) for name in names if not name.endswith("__main__")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for module in modules:
            if hasattr(module, "__path__"):
                unfold(module)
        pdoc.docstrings.GOOGLE_LIST_SECTIONS.append("Shape")  # a line a tensor, as Args
        pdoc.render.configure(docformat="google", footer_text=f"densepred {densepred.__version__}")
        pdoc.pdoc("densepred", output_directory=folder)
    ours = [one for one in told if not issubclass(one.category, DeprecationWarning)]
    for one in ours:
        print(one.message, file=sys.stderr)
    print(f"{len(modules)} modules, {len(ours)} warnings: {folder / 'index.html'}")
    return len(ours)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .docs/build.py FOLDER")
    sys.exit(1 if build(Path(sys.argv[1])) else 0)
