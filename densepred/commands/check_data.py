"""`densepred check-data`: every sample of a data set looked at before it is trained on."""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from densepred.callbacks.panels import write_whole
from densepred.checking.contact import contact_sheet
from densepred.checking.inspection import SPLITS, Inspection, inspect_data
from densepred.checking.report import as_json, remark_lines, tables
from densepred.commands.arguments import ROOT, RunParser, import_parts, nulls_as_configs
from densepred.commands.describe import is_checkpoint, read_config
from densepred.data.atomic import whole_file
from densepred.data.datamodule import DenseDataModule
from densepred.errors import ConfigurationError
from densepred.metrics.segmentation import class_names
from densepred.vouched import add_allow, named_in, only_vouched

PASSES_OPTIONS_ON = True
"""Options of the data may stand on the command line, as in `fit`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run's configuration, or a datamodule by its options; and where the report goes."""
    parser.usage = (
        "densepred check-data [--config FILE] [--data CLASS] [--data.OPTION VALUE ...] [--output NAME] [--splits ...] "
        "[--limit N]"
    )
    parser.epilog = "Exit status: 0 where training is safe (warnings are told), 1 where it is not."
    parser.add_argument(
        "--config", "-c", action="append", default=[], type=Path, metavar="FILE", help="a run's YAML, or a checkpoint"
    )
    add_allow(parser)
    parser.add_argument(
        "--output", type=Path, metavar="NAME", help="NAME.json and NAME.png; default: runs/check/ and the data's name"
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N samples of each split, evenly spread")
    parser.add_argument(
        "--samples", type=int, default=12, metavar="N", help="on the contact sheet (default: %(default)s)"
    )
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes (default: one for each core)")


def run(arguments: argparse.Namespace) -> int:
    """Looks at the data, prints and writes what was found; 0 where training is safe."""
    import_parts()
    vouched = [*arguments.allow, *named_in(arguments.options)]
    configs = [read_config(path, "data", vouched) for path in arguments.config]
    tasks = [task for config in configs for task in _label_tasks(config)]
    with only_vouched(vouched if any(map(is_checkpoint, arguments.config)) else None):
        data = build_data(configs, arguments.options)
    named = {task["name"]: class_names(task["classes"], task["mode"]) for task in tasks}
    workers = arguments.num_workers
    # by --data alone no run is described: what its transforms will be is not known
    found = inspect_data(data, named, arguments.splits, arguments.limit, workers, as_configured=bool(configs))
    output = arguments.output or Path(ROOT) / "check" / found.datamodule.removesuffix("DataModule").lower()
    print(tables(found) + "\n")
    print("\n".join(remark_lines(found)))
    print(_written(found, output, arguments.samples, tasks))
    print(_verdict(found))
    return 0 if found.safe else 1


def build_data(configs: list[dict[str, Any]], options: list[str], verb: str = "check-data") -> DenseDataModule:
    """The datamodule of configurations, the later ones above the earlier, and the command line's options above all.

    Args:
        configs: With a section `data` each.
        options: `--data` and its options.
        verb: Who asks, for errors.

    Raises:
        ConfigurationError: If neither names one.
    """
    foreign = [word for word in options if word.startswith("--") and not word.startswith("--data")]
    if foreign:
        raise ConfigurationError(f"{verb}: unrecognized arguments: {' '.join(foreign)}. See densepred {verb} --help.")
    if not configs and not any(word.split("=")[0] == "--data" for word in options):
        raise ConfigurationError(
            f"{verb}: no data are named. Give --config FILE, or --data CLASS with its options, such as --data "
            "CamVidDataModule --data.root FOLDER. `densepred list data` shows all."
        )
    parser = RunParser(prog=f"densepred {verb}", usage=f"densepred {verb} [--config FILE] [--data.OPTION VALUE]")
    parser.add_lightning_class_args(DenseDataModule, "data", subclass_mode=True, required=True)
    parser.add_argument("--config", action="config")
    given = [f"--config={yaml.safe_dump({'data': config['data']})}" for config in configs]
    given += nulls_as_configs([verb, *options])[1:]
    data: DenseDataModule = parser.instantiate(parser.parse_args(given)).data
    return data


def _label_tasks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run's tasks say of classes and colours, without building them: their class weights may not be there."""
    tasks = ((config.get("model") or {}).get("init_args") or {}).get("tasks") or []
    options = [task.get("init_args") or {} for task in tasks if isinstance(task, dict)]
    default = {"name": "segmentation", "mode": "multiclass", "palette": None}
    return [default | given for given in options if given.get("classes") is not None]


def _written(found: Inspection, output: Path, samples: int, tasks: list[dict[str, Any]]) -> str:
    paths = [output.with_name(f"{output.name}.json")]
    with whole_file(paths[0]) as temporary:
        temporary.write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False), encoding="utf-8")
    sheet = contact_sheet(found, samples, tasks) if samples > 0 else None
    if sheet is not None:
        paths.append(output.with_name(f"{output.name}.png"))
        write_whole(sheet, paths[1])
    count = sum(numbers.looked_at for numbers in found.splits.values())
    return (
        f"{count:,} samples in {found.seconds:.1f} s ({count / max(found.seconds, 1e-3):.0f} a second). "
        f"Written: {', '.join(map(str, paths))}"
    )


def _verdict(found: Inspection) -> str:
    faults = sum(remark.unsafe for _, remark in found.remarks)
    warnings = len(found.remarks) - faults
    told = f"{warnings:,} warning{'s' * (warnings != 1)}"
    if found.safe:
        return f"Safe to train on ({told})." if warnings else "Safe to train on."
    return f"Not safe to train on: {faults:,} fault{'s' * (faults != 1)}, {told}."
