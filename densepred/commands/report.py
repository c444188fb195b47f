"""`densepred report`: a run as one HTML page that opens offline, or several runs compared."""

import argparse
import json
import os
from pathlib import Path

from densepred.errors import ConfigurationError
from densepred.reports.comparison_page import comparison_page
from densepred.reports.run import Run, find_run
from densepred.reports.run_page import run_page
from densepred.reports.workspace import save_workspace, workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and where the page goes."""
    parser.usage = "densepred report RUN [RUN ...] [--output FILE] [--wandb_workspace [ENTITY/PROJECT]]"
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="runs/<experiment>/version_N, or runs/<experiment> for its last",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run, or in the folder that holds all runs",
    )
    parser.add_argument(
        "--wandb_workspace",
        nargs="?",
        const="",
        metavar="ENTITY/PROJECT",
        help="also write the layout of a Weights & Biases workspace (.json), and with a project save it there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and says where."""
    runs = _without_repeats([find_run(path) for path in arguments.runs])
    output = arguments.output or _default_output(runs)
    text = run_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    write(output, text)
    print(f"{output} ({len(text) / 2**20:.1f} MiB; it needs no network and no other file)")
    if arguments.wandb_workspace is not None:
        _write_workspace(runs, output.with_name("wandb_workspace.json"), arguments.wandb_workspace)
    return 0


def _without_repeats(runs: list[Run]) -> list[Run]:
    return list({run.folder.resolve(): run for run in runs}.values())


def _default_output(runs: list[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder / "report.html"
    return Path(os.path.commonpath([run.folder.resolve().parent for run in runs])) / "report.html"


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        ConfigurationError: If the place cannot be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"report: {path} cannot be written: {error}. Give another place with --output."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _write_workspace(runs: list[Run], path: Path, project: str) -> None:
    keys = dict.fromkeys(key for run in runs for key in run.curves)
    tasks = dict.fromkeys(key.split("/")[1] for key in keys if key.startswith("val/") and key.count("/") >= 2)
    spec = workspace(keys, tasks)
    write(path, json.dumps(spec, indent=1) + "\n")
    print(path)
    if project:
        print(f"saved as a view of the project: {save_workspace(project, spec)}")
