"""`densepred describe`: what a network is made of, a stage a line, and what a training step will take."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace

from densepred.anatomy.checkerboards import checkerboard
from densepred.anatomy.memory import StepMemory, step_memory
from densepred.anatomy.receptive_field import effective_receptive_fields, theoretical_receptive_fields
from densepred.anatomy.stages import Stage, trace
from densepred.commands.arguments import RunParser, import_parts, nulls_as_configs
from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.resume import checkpoint_config
from densepred.starting_weights import without_starting_weights
from densepred.vouched import add_allow, named_in, only_vouched
from densepred.yaml_text import read_yaml

PASSES_OPTIONS_ON = True
"""Options of the model may stand on the command line, as in `fit`."""

_SIZE = (256, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run's configuration or checkpoint, and the images to plan for."""
    parser.usage = "densepred describe CONFIG [--size H W] [--batch_size N] [--quick] [--model.OPTION VALUE ...]"
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a run's YAML file, or a checkpoint (.ckpt)")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="of the images (default: the training crop's)"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="default: the configuration's")
    add_allow(parser)
    parser.add_argument("--quick", action="store_true", help="leave the receptive fields and checkerboards out")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables."""
    vouched = [*arguments.allow, *named_in(arguments.options)]
    config = read_config(arguments.config, allow=vouched)
    size, batch_size = _images(config, arguments.size, arguments.batch_size)
    import_parts()
    with only_vouched(vouched if is_checkpoint(arguments.config) else None):
        return _describe(config, arguments, size, batch_size)


def _describe(config: dict[str, Any], arguments: argparse.Namespace, size: tuple[int, int], batch_size: int) -> int:
    with torch.device("meta"):
        module = build_module(config, arguments.options)
        network = module.network
        padded = network.padded_size(*size)
        images = torch.zeros(batch_size, network.encoder.in_channels, *padded)
        training = trace(network.train(), images)
        memory = step_memory(module, batch_size, size)
    fields: list[str] = []
    boards = ""
    if not arguments.quick:
        real = build_module(config, arguments.options).network
        fields = _fields(real, padded)
        boards = f"\n{checkerboard_table(real)}\n"
    parts = f"{type(network.encoder).__name__} + {type(next(iter(network.decoders.values()))).__name__}"
    print(f"{parts}; images of {size[0]} x {size[1]}, {batch_size} in a batch\n")
    print(stage_table(training, batch_size, fields))
    print(boards)
    print(memory_table(memory))
    return 0


def is_checkpoint(path: Path) -> bool:
    """Whether a configuration comes out of a checkpoint, which may be anyone's."""
    return path.suffix == ".ckpt"


def read_config(path: Path, part: str = "model", allow: Sequence[str] = ()) -> dict[str, Any]:
    """A run's configuration, from its YAML file or from a checkpoint.

    Args:
        path: The file.
        part: What must be in it: model, data.
        allow: Packages or classes that a checkpoint may name beside those of a run.

    Raises:
        ConfigurationError: If there is no such file, or no such part in it, or a checkpoint names other classes.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}. Expected a run's YAML file or a checkpoint.")
    try:
        config = checkpoint_config(path, allow) if is_checkpoint(path) else read_yaml(path, str(path))
    except ConfigurationError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict) or part not in config:
        raise ConfigurationError(f"{path}: no `{part}` in it. Expected a configuration as `densepred fit` reads it.")
    return config


def configured_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """The size of the images that a configuration trains on, where it says so."""
    data = (config.get("data") or {}).get("init_args") or {}
    transforms = data.get("train_transforms") or []
    sizes = [(entry.get("init_args") or {}).get("size") for entry in transforms if isinstance(entry, dict)]
    found = [value for value in [*sizes, data.get("size")] if isinstance(value, list | tuple) and len(value) == 2]
    return (int(found[0][0]), int(found[0][1])) if found else None


def _images(config: dict[str, Any], size: list[int] | None, batch_size: int | None) -> tuple[tuple[int, int], int]:
    """The size and number of images to plan for: as told, or as the configuration trains on."""
    data = (config.get("data") or {}).get("init_args") or {}
    height, width = size or configured_size(config) or _SIZE
    return (int(height), int(width)), int(batch_size or data.get("batch_size") or 1)


def build_module(config: dict[str, Any], options: list[str]) -> DensePredictor:
    """The module, without pretrained weights: their shapes are those of random ones."""
    parser = RunParser(prog="densepred describe", usage="densepred describe CONFIG [--model.OPTION VALUE ...]")
    parser.add_lightning_class_args(DensePredictor, "model", subclass_mode=True, required=True)
    parser.add_argument("--config", action="config")
    model = {**config["model"], "init_args": without_starting_weights(config["model"].get("init_args") or {})}
    given = [f"--config={yaml.safe_dump({'model': model})}", *nulls_as_configs(["describe", *options])[1:]]
    built: Namespace = parser.instantiate(parser.parse_args(given))
    module: DensePredictor = built.model
    return module


def _fields(network: DenseNetwork, size: tuple[int, int]) -> list[str]:
    possible = theoretical_receptive_fields(network)
    noise = torch.randn(1, network.encoder.in_channels, *size)
    looked = effective_receptive_fields(network, noise)
    return [
        f"{'image' if side is None else side:>6} {round(seen) if seen else '-':>6}"
        for side, seen in zip(possible, looked, strict=True)
    ]


def stage_table(stages: list[Stage], batch_size: int, fields: list[str]) -> str:
    """A line for each stage; operations for one image, memory for the batch.

    Args:
        stages: Of a batch, in training mode.
        batch_size: Images in it.
        fields: Receptive fields of the first stages, theoretical and effective; none leaves the columns out.
    """
    width = max(len(stage.name) for stage in stages) + 2
    titles = f"{'stage':<{width}}{'size':>11}{'channels':>10}{'parameters':>14}{'GMAC':>9}{'MiB kept':>10}"
    lines = [titles + (f"{'sees':>9}{'looks':>7}" if fields else "")]
    for i, stage in enumerate(stages):
        channels, height, rest = stage.tensor.shape[1:]
        line = f"{stage.name:<{width}}{f'{height} x {rest}':>11}{channels:>10}" + _costs([stage], batch_size)
        lines.append(line + (f"   {fields[i]}" if i < len(fields) else ""))
    lines.append(f"{'all':<{width}}{'':>21}" + _costs(stages, batch_size))
    lines.append("GMAC: thousand million multiply-accumulates an image. MiB kept: for the backward pass, whole batch.")
    if fields:
        lines.append(
            "sees: side in pixels of what a cell depends on; looks: side of what most of its gradient comes from,\n"
            "with random weights and noise (- where scores start at zero)."
        )
    return "\n".join(lines)


def _costs(stages: list[Stage], batch_size: int) -> str:
    parameters = sum(stage.parameters for stage in stages)
    macs = sum(stage.macs for stage in stages) / batch_size / 1e9
    return f"{parameters:>14,}{macs:>9.2f}{_mebibytes(sum(stage.saved_bytes for stage in stages)):>10}"


def checkerboard_table(network: DenseNetwork) -> str:
    """A line for each decoder: how strong a pattern it draws over flat maps, from 0 to 1."""
    lines = [f"{'checkerboard over flat maps':<34}{'built in':>9}{'at first':>10}"]
    for name, decoder in network.decoders.items():
        measures = [_checkerboard(cast(Decoder, decoder), equal_weights) for equal_weights in (True, False)]
        lines.append(f"  {f'decoder {name}':<32}{measures[0]:>9}{measures[1]:>10}")
    lines.append(
        "0: none, 1: nothing else. built in: with equal weights; at first: as initialised; -: planes are cropped."
    )
    return "\n".join(lines)


def _checkerboard(decoder: Decoder, equal_weights: bool) -> str:
    try:
        return f"{checkerboard(decoder, decoder.spec, equal_weights, cells=8):.3f}"
    except ConfigurationError:
        return "-"


def memory_table(memory: StepMemory) -> str:
    """What a training step holds, in MiB.

    Example:
        >>> print(memory_table(StepMemory(2 << 20, 2 << 20, 4 << 20, 8 << 20, 1 << 20)))
        a training step in float32            MiB
          weights                               2
          gradients                             2
          optimizer                             4
          activations                           8
          batch                                 1
          all                                  17
        In half precision about half the activations. Workspaces of convolutions come on top.
    """
    rows = [*zip(StepMemory._fields, memory, strict=True), ("all", memory.total)]
    lines = [f"{'a training step in float32':<34}{'MiB':>7}"]
    lines += [f"  {name:<32}{_mebibytes(value):>7}" for name, value in rows]
    lines.append("In half precision about half the activations. Workspaces of convolutions come on top.")
    return "\n".join(lines)


def _mebibytes(size: int) -> str:
    value = size / 2**20
    return f"{value:.1f}" if 0 < value < 9.95 and value != round(value) else f"{value:,.0f}"
