"""A trained network as an ONNX file that runs without densepred and without PyTorch."""

import json
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from densepred import __version__
from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.inference.export import Also, DeployedNetwork, refusal, traced
from densepred.inference.extra import needed
from densepred.network import DenseNetwork
from densepred.tasks.base import Task

OPSET = 18
"""The version of ONNX's operators that PyTorch writes by itself; others are converted from it."""
_LARGEST = 2**31 - 2**20
"""Bytes: protobuf cannot hold a file of 2 GiB."""


def export_onnx(
    network: DenseNetwork, tasks: Sequence[Task], path: str | Path, also: Sequence[Also] = (), opset: int = OPSET
) -> None:
    """Writes a network as ONNX: input `image`, uint8 (batch, channels, height, width), all but the channels free.

    Normalisation, padding, upsampling and the choice of labels are in the graph. Outputs are called as the tasks are.
    The file's metadata says what they are: `densepred`, a JSON of tasks, classes and units.

    Args:
        network: Any.
        tasks: What it predicts.
        path: The file; it is written whole or not at all.
        also: See `DeployedNetwork`.
        opset: Version of ONNX's operators.

    Raises:
        ConfigurationError: If onnx or onnxscript is missing, the network cannot be expressed, or is larger than ONNX's
            2 GiB.

    Example:
        >>> from densepred.inference import load_network
        >>> network, tasks = load_network("best.ckpt")  # doctest: +SKIP
        >>> export_onnx(network, tasks, "model.onnx")  # doctest: +SKIP
    """
    deployed = DeployedNetwork(network, tasks, also)
    write_onnx(traced(deployed), deployed, Path(path), opset)


def write_onnx(program: ExportedProgram, deployed: DeployedNetwork, path: Path, opset: int = OPSET) -> None:
    """Writes a graph that was traced already."""
    onnx = needed("onnx")
    needed("onnxscript")
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST:
        raise ConfigurationError(
            f"The weights take {size / 2**30:.1f} GiB; an ONNX file holds 2 GiB at most. Export torch_export."
        )
    with refusal("ONNX"), quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=deployed.outputs,
            custom_translation_table=_translations(),
            external_data=False,
            verbose=False,
        )
    model = exported.model_proto  # type: ignore[union-attr]
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise ConfigurationError(f"This network cannot be written in opset {opset}; PyTorch wrote {written}.")
    _name_dimensions(model, program)
    entry = model.metadata_props.add()
    entry.key, entry.value = "densepred", json.dumps(description(deployed))
    onnx.checker.check_model(model)
    with whole_file(path) as temporary:
        onnx.save_model(model, str(temporary))


def description(deployed: DeployedNetwork) -> dict[str, Any]:
    """What goes in and what comes out, as plain values."""
    return {
        "densepred": __version__,
        "input": {"name": "image", "dtype": "uint8", "channels": deployed.network.encoder.in_channels},
        "tasks": {task.name: _said(task) for task in deployed.tasks},
        "outputs": deployed.outputs,
    }


def _said(task: Any) -> dict[str, Any]:
    said = {"kind": str(task.kind), "planes": task.out_channels}
    return said | ({"classes": list(task.classes), "mode": task.mode} if hasattr(task, "classes") else {})


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that PyTorch's exporter writes wrongly, or not at all.

    Quotients of sizes: ONNX divides integers towards zero, Python downwards, so that -(-130 // 32) would be 4 instead
    of 5. Remainders by a size that is not known in advance.
    """
    op = needed("onnxscript").opset18

    def floor_divide(self: Any, other: Any) -> Any:
        return op.Div(op.Sub(self, op.Mod(self, other)), other)

    def remainder(self: Any, other: Any) -> Any:
        return op.Mod(self, op.CastLike(other, self))

    return {operator.floordiv: floor_divide, torch.ops.aten.remainder.Scalar: remainder}


def _name_dimensions(model: Any, program: ExportedProgram) -> None:
    """`batch`, `height` and `width` in place of PyTorch's symbols, wherever they occur."""
    shape = next(node for node in program.graph.nodes if node.name == "image").meta["val"].shape
    names = {str(shape[0]): "batch", str(shape[2]): "height", str(shape[3]): "width"}
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                renamed = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), dimension.dim_param)
                dimension.dim_param = renamed


@contextmanager
def quiet() -> Iterator[None]:
    """These tools warn of what concerns their authors."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
