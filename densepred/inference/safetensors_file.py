"""A trained network as safetensors: weights, and how to build what they belong to; no pickle, no training's state."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from densepred import __version__
from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.inference.extra import needed
from densepred.network import DenseNetwork
from densepred.recipe import Recorded, recipe
from densepred.resume import read_checkpoint
from densepred.starting_weights import without_starting_weights
from densepred.tasks.base import Task

SUFFIX = ".safetensors"
_KEY = "densepred"


def export_safetensors(
    network: DenseNetwork, tasks: Sequence[Task], path: str | Path, data: Mapping[str, Any] | None = None
) -> None:
    """Writes a network's tensors, with a recipe of its parts as metadata; `Predictor.load` reads it like a checkpoint.

    Args:
        network: Any; its auxiliary decoders, which run in training alone, are left out.
        tasks: What it predicts.
        path: The file, `.safetensors`; it is written whole or not at all.
        data: The `data` section of the run's configuration: from it, predictions know the size of the training images.

    Raises:
        ConfigurationError: If safetensors is missing, the file is called otherwise, or a part of the network did not
            record how it was built.
    """
    save_file = needed("safetensors.torch").save_file
    if Path(path).suffix != SUFFIX:
        raise ConfigurationError(f"{path}: a file of safetensors is called {SUFFIX}, by which it is known again.")
    tensors = {
        key: value.detach().cpu().contiguous().clone()  # tensors that share their memory are refused
        for prefix, module in {"network": network, "tasks": nn.ModuleList(tasks)}.items()
        for key, value in module.state_dict(prefix=f"{prefix}.").items()
        if not key.startswith("network.auxiliary_decoders.")
    }
    stored = {"version": __version__, "hyper_parameters": _described(network, tasks)}
    if data:
        stored["config"] = yaml.safe_dump({"data": recipe(dict(data), "data")})
    with whole_file(Path(path)) as temporary:
        save_file(tensors, str(temporary), metadata={_KEY: json.dumps(stored)})


def read_stored(path: Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors, from a file of safetensors or one that a run has written.

    Raises:
        ConfigurationError: If it is neither.
    """
    if path.suffix != SUFFIX:
        return read_checkpoint(path)
    safetensors = needed("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            stored = json.loads((file.metadata() or {})[_KEY])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if not isinstance(stored.get("hyper_parameters"), dict):
            raise TypeError("no hyper_parameters")
    except FileNotFoundError as error:
        raise ConfigurationError(f"There is no file {path}.") from error
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as a network of densepred: {type(error).__name__}: {error}. Expected a file of "
            "densepred export --format safetensors, or a checkpoint (.ckpt)."
        ) from error
    return {**stored, "state_dict": tensors}


def _described(network: DenseNetwork, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a checkpoint's hyperparameters say of a network."""
    decoder = next(iter(network.decoders.values()))
    plain = {
        "encoder": recipe(network.encoder, "encoder"),
        "decoder": _factory(decoder),
        "tasks": recipe(list(tasks), "tasks"),
        "share_decoder": network.share_decoder,
        "refine": recipe(network.refine, "refine"),
    }
    return without_starting_weights(plain)


def _factory(decoder: nn.Module) -> dict[str, Any]:
    if not isinstance(decoder, Recorded):
        raise ConfigurationError(
            f"{type(decoder).__name__} does not say how it was built: it is no densepred.decoders.base.Decoder. Derive "
            "it from that class."
        )
    plain: dict[str, Any] = recipe(decoder, "decoder")
    # known only when the encoder and the tasks are
    plain["init_args"] = {key: value for key, value in plain["init_args"].items() if key not in _LATER}
    return plain


_LATER = ("spec", "out_channels")
