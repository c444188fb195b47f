"""Starting from another network's checkpoint: what fits is taken, and what became of each tensor is told."""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from densepred.encoders.loading import LoadReport, misfit
from densepred.encoders.weights import read_state_dict
from densepred.errors import WeightsError
from densepred.network import DenseNetwork

STARTING_WEIGHTS = ("weights", "init_from")
"""Arguments that say where weights come from at the start of a run."""


class _Named(Protocol):
    """What a dict and jsonargparse's Namespace share."""

    def __contains__(self, name: object, /) -> bool: ...

    def __setitem__(self, name: str, value: Any, /) -> None: ...

    def get(self, name: str, /) -> Any: ...


Arguments = TypeVar("Arguments", bound=_Named)

_PREFIX = "network."
_COUNTERS = "num_batches_tracked"


def load_fitting(network: DenseNetwork, file: str | Path) -> LoadReport:
    """Copies the tensors of a densepred checkpoint that fit into a network; the others stay as they were initialised.

    The checkpoint may be of another number of classes (the scores are left out), of other tasks, or of another decoder
    (the encoder is taken): FCN-16s starts from FCN-32s like this. A task that the checkpoint does not know takes the
    first decoder that it has.

    Args:
        network: What to load into.
        file: A checkpoint of densepred, or a state dict of a `DenseNetwork`.

    Raises:
        WeightsError: If the file cannot be read, or nothing in it fits.
    """
    tensors = {key.removeprefix(_PREFIX): value for key, value in read_state_dict(Path(file).expanduser()).items()}
    own = network.state_dict()
    loaded, missing, skipped, used = [], {}, {}, set()
    for key, value in own.items():
        source = _source(key, tensors)
        if source is None:
            if not key.endswith(_COUNTERS):
                missing[key] = tuple(value.shape)
            continue
        used.add(source)
        if problem := misfit(tensors[source], value):
            skipped[key] = problem
        else:
            with torch.no_grad():
                value.copy_(tensors[source])  # a state dict shares the parameters' memory
            loaded.append(key)
    if not loaded:
        raise WeightsError(
            f"init_from: no tensor of {file} fits the network. It has {', '.join(list(tensors)[:3])}, ...; expected "
            f"names such as {', '.join(list(own)[:3])}: a checkpoint of densepred, whose encoder is the same."
        )
    unused = tuple(key for key in tensors if key not in used and key.split(".")[0] in ("encoder", "decoders"))
    return LoadReport(str(file), type(network).__name__, tuple(loaded), {}, missing, skipped, unused)


def _source(key: str, tensors: dict[str, Tensor]) -> str | None:
    """The file's name for one of ours: the same, or that of the first decoder where ours has a task of its own."""
    if key in tensors:
        return key
    part, _, rest = key.partition(".")
    if part != "decoders":
        return None
    task, _, rest = rest.partition(".")
    theirs = list(dict.fromkeys(name.split(".")[1] for name in tensors if name.startswith("decoders.")))
    if not theirs or task in theirs:
        return None
    other = f"decoders.{theirs[0]}.{rest}"
    return other if other in tensors else None


def without_starting_weights(arguments: Arguments) -> Arguments:
    """The same arguments without what the module, its encoder and its decoders start from: a checkpoint has it all.

    Example:
        >>> without_starting_weights({"encoder": {"init_args": {"name": "vgg16", "weights": "imagenet"}}})
        {'encoder': {'init_args': {'name': 'vgg16', 'weights': None}}}
    """
    plain = copy(arguments)
    for name in STARTING_WEIGHTS:
        if name in plain:
            plain[name] = None
    for name in ("encoder", "decoder", "auxiliary"):
        if plain.get(name):
            plain[name] = _part_without(plain.get(name))
    if isinstance(priors := plain.get("priors"), list):  # networks inside of an encoder
        plain["priors"] = [_part_without(part) for part in priors]
    return plain


def _part_without(part: Any) -> Any:
    if not isinstance(inner := part.get("init_args"), Mapping) and not hasattr(inner, "items"):
        return part
    part = copy(part)
    part["init_args"] = without_starting_weights(inner)
    return part
