"""`densepred export`: a checkpoint as files for elsewhere, each compared with the checkpoint."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepred import __version__
from densepred.data.collate import Collate
from densepred.errors import ConfigurationError
from densepred.inference.checkpoint import load_network
from densepred.inference.export import DeployedNetwork, export_program
from densepred.inference.export_parity import agreement, latencies, random_images, scores
from densepred.inference.export_quantised import quantise
from densepred.inference.export_runtimes import NetworkRuntime, OnnxRuntime, ProgramRuntime, Runtime, SafetensorsRuntime
from densepred.inference.extra import needed
from densepred.inference.onnx_file import OPSET, description, export_onnx
from densepred.inference.photos import read_photo
from densepred.inference.predictor import pictures_in
from densepred.inference.safetensors_file import export_safetensors, read_stored
from densepred.inference.trained_size import trained_short_side
from densepred.network import DenseNetwork
from densepred.resume import find_checkpoint
from densepred.tasks.base import Batch, Task
from densepred.tasks.names import missing_names
from densepred.yaml_text import read_yaml

PASSES_OPTIONS_ON = True
"""Options of the data may stand on the command line, as in `fit`."""

REPORT = "export.json"
FORMATS = ("onnx", "torch_export", "safetensors")
_CHECKPOINT = "checkpoint"
_CALIBRATION = 32
"""Images of which static ranges are measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, which files, and what they are compared on."""
    parser.usage = (
        "densepred export --ckpt_path FILE --output FOLDER [--format onnx torch_export safetensors] "
        "[--int8 dynamic|static] [--images PATH ...] [--data CLASS --data.OPTION VALUE ... | --config FILE]"
    )
    parser.epilog = (
        "Exit status: 0 where every file agrees with the checkpoint (1e-4, 99.99 % of labels), 1 where one does not. "
        "Files in 8 bits are less exact; how much is told."
    )
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="or best or last of the newest run")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--allow", action="append", default=[], metavar="NAME",
                        help="a package or class beside densepred's and torch's that it may build")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="written whole or not at all")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="default: onnx")
    parser.add_argument("--also", nargs="+", choices=("evidence", "planes"), default=[],
                        help="more outputs: probabilities (log depth, vectors), or what the decoder says")  # fmt: skip
    parser.add_argument("--opset", type=int, default=OPSET, metavar="N", help="of ONNX (default: %(default)s)")
    parser.add_argument("--int8", choices=("dynamic", "static"), nargs="+", default=[], help="ONNX in 8 bits, too")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="PATH", help="to compare on; or folders")
    parser.add_argument("--config", "-c", action="append", default=[], type=Path, metavar="FILE",
                        help="whose data are compared on, with metrics: a run's YAML, or the checkpoint")  # fmt: skip
    parser.add_argument("--split", choices=("val", "test"), default="val", help="of the data (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="samples of it (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"),
                        help="of the image that is timed (default: 480 640)")  # fmt: skip
    parser.add_argument("--calls", type=int, default=20, metavar="N", help="timed calls of each (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and the report; 0 where they agree with the checkpoint."""
    if arguments.int8 and "onnx" not in arguments.format:
        raise ConfigurationError("--int8 makes ONNX files: add onnx to --format.")
    checkpoint = find_checkpoint(arguments.ckpt_path, arguments.root)
    network, tasks = load_network(checkpoint, arguments.allow)
    images = real_images(arguments.images, network.encoder.in_channels)
    data = _data(arguments, tasks)
    batches = None if data is None else partial(_samples, data, arguments.split, arguments.limit)
    # 8 bits are not fitted to the samples that they are measured on
    typical = images or ([] if data is None else [batch["image"] for batch in _samples(data, "train", _CALIBRATION)])
    with whole_folder(arguments.output) as folder:
        files = _written(arguments, checkpoint, network, tasks, folder, typical)
        report = {
            **description(DeployedNetwork(network, tasks, arguments.also)),
            "checkpoint": str(checkpoint),
            "short_side": trained_short_side(checkpoint),
            "versions": {"torch": torch.__version__} | _versions(),
            "threads": torch.get_num_threads(),
            "timed_size": list(arguments.size),
            "files": compared(network, tasks, files, images, batches, tuple(arguments.size), arguments.calls),
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(table(report))
    exact = [entry for entry in report["files"].values() if entry["agreement"] and not entry["int8"]]
    holds = all(found["holds"] for entry in exact for sets in entry["agreement"].values() for found in sets.values())
    print(
        f"{'Every file agrees' if holds else 'NOT every file agrees'} with the checkpoint. Written: {arguments.output}"
    )
    return 0 if holds else 1


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to write to, which takes the place of `path` when the block ends without an error.

    Raises:
        ConfigurationError: If `path` holds something else than an export.
    """
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / REPORT).is_file())):
        raise ConfigurationError(f"--output {path} exists, and is no folder of densepred export. Give another one.")
    temporary = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def real_images(paths: Sequence[Path], channels: int) -> list[Tensor]:
    """Pictures (1, C, H, W), uint8, as an exported file takes them."""
    files = [file for path in paths for file in (pictures_in(path) if path.is_dir() else [path])]
    return [_uint8(read_photo(file, channels).image)[None] for file in files]


def _uint8(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)


def _data(arguments: argparse.Namespace, tasks: Sequence[Task]) -> Any:
    """The datamodule that the files are compared on, whose classes are those of the tasks; None where none is named."""
    if not arguments.config and not arguments.options:
        return None
    # Lightning takes seconds, and comparing without data needs none of it
    from densepred.commands.arguments import import_parts
    from densepred.commands.check_data import build_data
    from densepred.commands.describe import is_checkpoint, read_config
    from densepred.vouched import named_in, only_vouched

    import_parts()
    vouched = [*arguments.allow, *named_in(arguments.options)]
    configs = [read_config(path, "data", vouched) for path in arguments.config]
    with only_vouched(vouched if any(map(is_checkpoint, arguments.config)) else None):
        data = build_data(configs, arguments.options, "export")
    for task in tasks:
        if task.name in data.classes:
            missing_names(task, list(data.classes[task.name]), type(data).__name__)
    return data


def _samples(data: Any, split: str, limit: int) -> Iterator[Batch]:
    """The first samples of a split, one by one, as they are evaluated."""
    dataset, collate = data.dataset(split, data.eval_transforms), Collate(data.kinds)
    dataset.kinds = data.kinds
    for index in range(min(len(dataset), limit)):
        batch: Batch = collate([dataset[index]])
        yield {**batch, "image": _uint8(batch["image"])}


def _written(
    arguments: argparse.Namespace,
    checkpoint: Path,
    network: DenseNetwork,
    tasks: Sequence[Task],
    folder: Path,
    typical: Sequence[Tensor],
) -> dict[Path, Runtime]:
    """Writes the files; what runs each."""
    files: dict[Path, Runtime] = {}
    if "onnx" in arguments.format:
        needed("onnxruntime")  # before the work
        path = folder / "model.onnx"
        export_onnx(network, tasks, path, arguments.also, arguments.opset)
        files[path] = OnnxRuntime(path)
        for mode in arguments.int8:
            smaller = folder / f"model.int8_{mode}.onnx"
            quantise(path, smaller, mode, [image[0] for image in typical[:_CALIBRATION]])
            files[smaller] = OnnxRuntime(smaller)
    if "torch_export" in arguments.format:
        path = folder / "model.pt2"
        export_program(network, tasks, path, arguments.also)
        files[path] = ProgramRuntime(path)
    if "safetensors" in arguments.format:
        path = folder / "model.safetensors"
        export_safetensors(network, tasks, path, _data_section(checkpoint))
        files[path] = SafetensorsRuntime(path, arguments.allow)
    return files


def _data_section(checkpoint: Path) -> Mapping[str, Any] | None:
    config = read_yaml(str(read_stored(checkpoint).get("config") or "{}"), f"{checkpoint}: its configuration")
    return config.get("data") if isinstance(config, dict) else None


def _versions() -> dict[str, str]:
    found = {"densepred": __version__}
    for package in ("onnx", "onnxruntime", "onnxscript", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def compared(
    network: DenseNetwork,
    tasks: Sequence[Task],
    files: Mapping[Path, Runtime],
    images: Sequence[Tensor],
    batches: Callable[[], Iterator[Batch]] | None,
    size: tuple[int, int],
    calls: int,
) -> dict[str, dict[str, Any]]:
    """Size, agreement, metrics and latency of each file, and of the checkpoint, as plain values by name.

    Args:
        network: What is right.
        tasks: What it predicts.
        files: What runs each.
        images: Pictures, (1, C, H, W).
        batches: Samples with targets; None: no metrics.
        size: Of the image that is timed.
        calls: How often.
    """
    reference = NetworkRuntime(network, tasks)
    noise = random_images(network.encoder.in_channels, network.encoder.multiple)
    timed = torch.randint(0, 256, (1, network.encoder.in_channels, *size), dtype=torch.uint8)
    noise.append(timed)  # what a network does with small images alone must not be in the graph for ever
    speed = latencies({_CHECKPOINT: reference} | {path.name: one for path, one in files.items()}, timed, calls)
    real = images or [batch["image"] for batch in (batches or tuple)()]
    report: dict[str, dict[str, Any]] = {}
    for path, runtime in {Path(_CHECKPOINT): reference, **files}.items():
        sets = {} if runtime is reference else {"random": noise, "real": real}
        report[path.name] = {
            "bytes": path.stat().st_size if runtime is not reference else _bytes(network),
            "int8": ".int8_" in path.name,
            "latency": speed[path.name].plain(),
            "agreement": {
                which: {name: found.plain() for name, found in agreement(tasks, reference, runtime, some).items()}
                for which, some in sets.items()
                if some
            },
            "metrics": {} if batches is None else scores(tasks, runtime, batches()),
        }
    return report


def _bytes(network: DenseNetwork) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def table(report: Mapping[str, Any]) -> str:
    """The report for people: a line for each file, and below it how it agrees and its metrics.

    Args:
        report: As it is written.
    """
    height, width = report["timed_size"]
    lines = [f"{'':<26}{'MiB':>8}{'p50 ms':>9}{'p95 ms':>9}   image of {height} x {width}, {report['threads']} threads"]
    for name, entry in report["files"].items():
        speed = entry["latency"]
        lines.append(f"{name:<26}{entry['bytes'] / 2**20:>8.1f}{speed['p50_ms']:>9.1f}{speed['p95_ms']:>9.1f}")
        for which, tasks in entry["agreement"].items():
            told = ", ".join(
                f"{task} {found['equal']:.4%} equal" if "equal" in found else f"{task} within {found['worst']:.1e}"
                for task, found in tasks.items()
            )
            lines.append(f"  on {which} images: {told}")
            if refused := next(iter(tasks.values()))["refused"]:
                lines.append(f"  it takes no images of {', '.join(refused)}: torch.export tied it to other sizes")
        shown = {key: value for key, value in entry["metrics"].items() if key.rpartition("/")[2] in _SHOWN}
        if shown:
            lines.append("  " + ", ".join(f"{key} {value:.4f}" for key, value in shown.items()))
    if report["short_side"]:
        lines.append(
            f"The network was trained on images of a shorter side of {report['short_side']} pixels: bring photos to it "
            "before they are given to an exported file (densepred predict does so by itself)."
        )
    return "\n".join(lines)


_SHOWN = ("miou", "pixel_accuracy", "rmse", "abs_rel", "mean_angle")
