"""torchvision's published segmentation networks, loaded into a `DenseNetwork`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from densepred.encoders.loading import LoadReport, adapt_input_channels, misfit
from densepred.encoders.weights import read_state_dict
from densepred.errors import ConfigurationError, WeightsError
from densepred.network import DenseNetwork

# torchvision's name for each part of a head, and ours
_FCN = {"0": "hidden.0", "1": "hidden.1", "4": "score"}
_DEEPLAB = {"0": "aspp", "1": "refine.0", "2": "refine.1", "4": "score"}

_INPUT = "backbone.conv1.weight"
# torchvision's files have no mean and std (they are ImageNet's), and its old ones no counter
_OPTIONAL = ("encoder.mean", "encoder.std", "num_batches_tracked")


def load_torchvision_segmentation(
    network: DenseNetwork,
    weights: Mapping[str, Tensor] | str | Path,
    task: str | None = None,
) -> LoadReport:
    """Loads the weights of torchvision's `fcn_resnet*` or `deeplabv3_resnet*`, and logs a report of every tensor.

    The network is a `ResNetEncoder(..., output_stride=8)` with a `TorchvisionFCNDecoder` or a
    `TorchvisionDeepLabV3Decoder`, and a `TorchvisionFCNDecoder` as the auxiliary one or none: the file's auxiliary
    classifier is then not needed. Nothing is changed unless everything fits but, to fine-tune for other classes, the
    scores: last layers of another number of classes are skipped, and stay as they were initialised.

    Its planes are torchvision's, on images whose sides are multiples of 8. Other images torchvision neither pads nor
    crops: it stretches a map of ceil(H / 8) cells over the H pixels, which shifts labels by up to 7 pixels at the right
    and bottom; densepred pads the image, so that cells keep their place.

    Args:
        network: What to load into.
        weights: A state dict, or a file that holds one (as torchvision publishes it, or under `model`).
        task: The task whose decoder takes the classifier; by default the first.

    Raises:
        ConfigurationError: If the network has no such task.
        WeightsError: If the file cannot be read or does not fit; it names every tensor that does not.

    Example:
        >>> from torchvision.models.segmentation import fcn_resnet50
        >>> from densepred.decoders.fcn import TorchvisionFCNDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> encoder = ResNetEncoder("resnet50", output_stride=8)
        >>> network = DenseNetwork(encoder, TorchvisionFCNDecoder, {"segmentation": 5})
        >>> theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
        >>> report = load_torchvision_segmentation(network, theirs.state_dict())
        >>> print(report)
        DenseNetwork: 324 tensors loaded from a state dict
          in the file, but skipped (2):
            classifier.4.weight  21 x 512 x 1 x 1 in the file, 5 x 512 x 1 x 1 here: other classes
            classifier.4.bias    21 in the file, 5 here: other classes
    """
    source = str(weights) if isinstance(weights, str | Path) else "a state dict"
    tensors = read_state_dict(Path(weights).expanduser()) if isinstance(weights, str | Path) else weights
    decoder = _decoder_name(network, task)
    own, names = network.state_dict(), _names(tensors, network, decoder)
    skipped = {
        key: f"{misfit(tensors[key], own[name])}: other classes"
        for key, name in names.items()
        if _is_score(name) and name in own and len(tensors[key]) != len(own[name])
    }
    adapted = _adapted_input(tensors, own)
    fitting = {
        names[key]: value for key, value in {**tensors, **adapted}.items() if key in names and key not in skipped
    }
    missing = {
        name: tuple(value.shape)
        for name, value in own.items()
        if name not in names.values() and not name.endswith(_OPTIONAL)
    }
    problems = {key: misfit(fitting[name], own.get(name)) for key, name in names.items() if name in fitting}
    wanted = ("encoder.", f"decoders.{decoder}.")
    problems |= {name: "missing in the file" for name in missing if name.startswith(wanted)}
    problems = {key: problem for key, problem in problems.items() if problem}
    if problems:
        raise WeightsError(_explain(problems, source, network))
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    changes = {names[key]: f"3 input channels to {value.shape[1]}" for key, value in adapted.items()}
    unused = tuple(key for key in tensors if key not in names)
    report = LoadReport(source, type(network).__name__, tuple(fitting), changes, missing, skipped, unused)
    report.log()
    return report


def _decoder_name(network: DenseNetwork, task: str | None) -> str:
    tasks = list(network.out_channels)
    if task is not None and task not in tasks:
        raise ConfigurationError(
            f"load_torchvision_segmentation: the network has no task {task!r}. Name one of: {', '.join(tasks)}."
        )
    return "shared" if network.share_decoder else task or tasks[0]


def _names(tensors: Mapping[str, Tensor], network: DenseNetwork, decoder: str) -> dict[str, str]:
    """Our name for each of the file's tensors that the network needs."""
    classifier = _DEEPLAB if any(key.startswith("classifier.0.convs.") for key in tensors) else _FCN
    parts: dict[str, tuple[str, dict[str, str]]] = {
        "backbone": ("encoder", {}),
        "classifier": (f"decoders.{decoder}", classifier),
    }
    if network.auxiliary_decoders is not None:
        parts["aux_classifier"] = (f"auxiliary_decoders.0.{decoder}", _FCN)
    names = {}
    for key in tensors:
        part, _, rest = key.partition(".")
        if part in parts:
            ours, layers = parts[part]
            layer, _, tensor = rest.partition(".")
            names[key] = f"{ours}.{layers.get(layer, layer)}.{tensor}"
    return names


def _adapted_input(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first convolution for an image that is not RGB, by its name in the file; nothing for one that is."""
    value, wanted = tensors.get(_INPUT), own.get("encoder.conv1.weight")
    if value is None or wanted is None or value.shape[1] != 3 or wanted.shape[1] == 3:
        return {}
    return {_INPUT: adapt_input_channels(value, wanted.shape[1])}


def _is_score(name: str) -> bool:
    return name.split(".")[-2] == "score"


def _explain(problems: dict[str, str], source: str, network: DenseNetwork) -> str:
    rows = [f"  {key}: {problem}" for key, problem in problems.items()]
    more = [f"  ... and {len(rows) - 12} more"] if len(rows) > 12 else []
    decoder = next(iter(network.decoders.values()))
    way_out = (
        f"The network has {type(network.encoder).__name__} and {type(decoder).__name__}. Expected torchvision's "
        "fcn_resnet* or deeplabv3_resnet*: a ResNetEncoder of the same name with output_stride=8, and "
        "TorchvisionFCNDecoder or TorchvisionDeepLabV3Decoder."
    )
    return "\n".join([f"{source} does not fit the network:", *rows[:12], *more, way_out])
