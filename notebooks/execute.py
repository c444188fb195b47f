"""Runs a notebook from top to bottom without Jupyter, and keeps what its cells show.

python notebooks/execute.py notebooks/01_quickstart.ipynb --write     # and stores text and pictures in the file
python notebooks/execute.py notebooks/01_quickstart.ipynb scenes=16 epochs=1
"""

import argparse
import ast
import base64
import io
import json
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image


def execute(notebook: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code cells; the value of a cell's last expression is shown.

    Args:
        notebook: As a .ipynb file holds it.
        parameters: Put in place of the values of the same names that the cell tagged "parameters" gives.

    Raises:
        KeyError: If that cell gives no such name.
        RuntimeError: If a cell fails; it names the cell.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                value = _run("".join(cell["source"]), names, f"cell {index}")
        except Exception as error:
            raise RuntimeError(f"cell {index} failed: {error!r}\n\n{''.join(cell['source'])}") from error
        if "parameters" in cell["metadata"].get("tags", ()):
            unknown = parameters.keys() - names.keys()
            if unknown:
                raise KeyError(f"the parameters cell gives no {', '.join(sorted(unknown))}")
            names.update(parameters)
        cell["execution_count"] = count
        cell["outputs"] = _outputs(printed.getvalue(), value, count)
    return notebook


def _run(source: str, names: dict[str, Any], where: str) -> Any:
    tree = ast.parse(source, where)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, where, "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), where, "exec"), names)
    return eval(compile(ast.Expression(last.value), where, "eval"), names)


def _outputs(text: str, value: Any, count: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    if text:
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(True)})
    if value is None:
        return outputs
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("RGB").save(file, "PNG", optimize=True)
        data = {
            "image/png": base64.b64encode(file.getvalue()).decode(),
            "text/plain": [f"{value.width} x {value.height}"],
        }
    return [*outputs, {"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}}]


def main() -> None:
    """Runs the notebook in a folder of its own, which goes away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--write", action="store_true", help="store what the cells show in the notebook")
    arguments = parser.parse_args()
    path = arguments.notebook.resolve()
    given = dict(one.split("=", 1) for one in arguments.parameters)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        done = execute(json.loads(path.read_text()), {name: ast.literal_eval(value) for name, value in given.items()})
        os.chdir(path.parent)
    if arguments.write:
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
