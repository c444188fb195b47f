"""Fits the tensors of a file to an encoder, and reports what became of each."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from densepred.encoders.base import Encoder
from densepred.encoders.weights import read_state_dict, weights_file
from densepred.errors import WeightsError

_ROWS = 40  # of each section of a printed report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor when weights were loaded; print it for a table.

    Args:
        source: The file.
        target: What it was loaded into.
        loaded: Names of the tensors that were taken from the file, adapted ones included.
        adapted: What was done to those that had to be changed, by name.
        missing: Shapes of the tensors that the file lacks, by name. They stay as they were initialised, at random.
        skipped: Why a tensor of the file was left out, by name. The encoder's own of that name, if it has one, stays
            as it was initialised.
        unused: Names of the file's tensors that nobody needs, such as the classifier's.

    Example:
        >>> print(LoadReport("net.pth", "encoder", loaded=("a",), missing={"b": (8, 3, 7, 7)}, unused=("fc.bias",)))
        encoder: 1 tensors loaded from net.pth
          missing in the file, left as initialised (1):
            b  8 x 3 x 7 x 7
          in the file, not needed (1): fc.bias
    """

    source: str
    target: str
    loaded: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the encoder came from the file, and every tensor that looked meant for it fitted."""
        return not self.missing and not self.skipped

    def log(self) -> None:
        """Logs the table, as a warning where it is not complete."""
        logger.log(logging.INFO if self.complete else logging.WARNING, "%s", self)

    def __str__(self) -> str:
        lines = [f"{self.target}: {len(self.loaded)} tensors loaded from {self.source}"]
        shapes = {name: _shape(shape) for name, shape in self.missing.items()}
        for title, rows in (
            ("adapted", self.adapted),
            ("missing in the file, left as initialised", shapes),
            ("in the file, but skipped", self.skipped),
        ):
            lines += _section(title, rows)
        if self.unused:
            more = ", ..." if len(self.unused) > 4 else ""
            lines.append(f"  in the file, not needed ({len(self.unused)}): {', '.join(self.unused[:4])}{more}")
        return "\n".join(lines)


def _optional(key: str) -> bool:
    """Whether nothing is lost without it: torchvision's files have no mean and std, and its old ones no counters."""
    return key in ("mean", "std") or key.endswith("num_batches_tracked")


def _section(title: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    width = max(map(len, rows))
    lines = [f"  {title} ({len(rows)}):"]
    lines += [f"    {name:<{width}}  {text}" for name, text in list(rows.items())[:_ROWS]]
    return lines + ([f"    ... and {len(rows) - _ROWS} more"] if len(rows) > _ROWS else [])


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def load_pretrained(
    encoder: Encoder,
    weights: str | Path,
    name: str,
    input_layer: str,
    classifier: tuple[str, ...],
    keep: Collection[str] = (),
    rename: Callable[[str], str] = str,
) -> LoadReport:
    """Loads pretrained weights into an encoder whose tensors have torchvision's names, and logs the report.

    Args:
        encoder: What to load into.
        weights: "imagenet", or the path of a file that `read_state_dict` reads.
        name: torchvision's name of the network.
        input_layer: Name of the first convolution's weight, which is adapted to the image's channels.
        classifier: What the names of tensors begin with that a file has and the encoder does not need.
        keep: Names of tensors that the file does not override.
        rename: From a name in the file to the encoder's.

    Raises:
        WeightsError: If there is no such file, it cannot be read, or nothing in it fits.
    """
    file = weights_file(weights, name)
    tensors = {rename(key): value for key, value in read_state_dict(file).items()}
    target = f"{type(encoder).__name__} ({name})"
    report = fit_tensors(encoder, tensors, str(file), target, input_layer, classifier, keep)
    report.log()
    return report


def fit_tensors(
    encoder: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    target: str,
    input_layer: str,
    classifier: tuple[str, ...],
    keep: Collection[str] = (),
) -> LoadReport:
    """Copies the tensors that fit into the encoder, or into any layers; the arguments are `load_pretrained`'s.

    Names may stand behind a common prefix, as `backbone.` in torchvision's segmentation networks, `module.` after
    data-parallel training or `network.encoder.` in a checkpoint of densepred; what stands outside of it is not needed.
    """
    own = {key: value for key, value in encoder.state_dict().items() if key not in keep}
    prefix = _prefix(tensors, own, input_layer)
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    surplus = {key: value for key, value in found.items() if key not in own}
    unneeded = [key for key in surplus if key.startswith(classifier) or key in keep or _optional(key)]
    skipped = {key: misfit(value, None) for key, value in surplus.items() if key not in unneeded}
    loaded: list[str] = []
    adapted: dict[str, str] = {}
    for key in [key for key in own if key in found]:
        value, change = _adapt(found[key], own[key].shape, key == input_layer)
        problem = misfit(value, own[key])
        if not problem:
            own[key].copy_(value)  # a state dict shares the parameters' memory
            loaded.append(key)
            adapted |= {key: change} if change else {}
        elif not _optional(key):
            skipped[key] = problem
    if all(_optional(key) for key in loaded):
        raise WeightsError(
            f"weights: no tensor of {source} fits {target}. It has {_examples(tensors)}; expected torchvision's keys: "
            f"{_examples(own)}. Give the file of the same network, or null for random weights."
        )
    missing = {key: tuple(value.shape) for key, value in own.items() if key not in found and not _optional(key)}
    unused = [key for key in tensors if not key.startswith(prefix)] + [prefix + key for key in unneeded]
    return LoadReport(source, target, tuple(loaded), adapted, missing, skipped, tuple(unused))


def _prefix(tensors: dict[str, Tensor], own: dict[str, Tensor], input_layer: str) -> str:
    """What stands before the encoder's names in the file: the prefix under which most of them are found."""
    candidates = ["", *(key.removesuffix(input_layer) for key in tensors if key.endswith("." + input_layer))]
    return max(candidates, key=lambda prefix: sum(prefix + key in tensors for key in own))


def _adapt(value: Tensor, shape: torch.Size, is_input: bool) -> tuple[Tensor, str]:
    """The tensor in the shape that is wanted here, where a rule says how, and what was done to it."""
    if value.shape == shape or value.ndim < 2 or value.shape[0] != shape[0]:
        return value, ""
    if is_input and value.shape[1] == 3 and value.shape[2:] == shape[2:]:
        return adapt_input_channels(value, shape[1]), f"3 input channels to {shape[1]}"
    if value.ndim == 2 and len(shape) == 4 and value.numel() == shape.numel():
        return value.reshape(shape), f"linear {_shape(value.shape)} as a convolution {_shape(shape)}"
    return value, ""


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight of a first convolution on RGB, for an image of any number of channels.

    The channels after the first three take the mean of the RGB filters (Long et al.'s rule for depth beside RGB); where
    there are fewer than three, all of them do. Everything is scaled by 3 / channels, so that a normalised image that is
    the same in all its channels (grey) gives exactly the response it gave in RGB.

    Shape:
        weight: (filters, 3, h, w); returns (filters, channels, h, w).

    Reference:
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038.

    Example:
        >>> weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
        >>> adapt_input_channels(weight, 1).flatten(), adapt_input_channels(weight, 4).flatten()
        (tensor([9.]), tensor([0.7500, 1.5000, 4.5000, 2.2500]))
    """
    mean = weight.mean(1, keepdim=True)
    colours = weight if channels >= 3 else weight[:, :0]
    extra = mean.expand(-1, channels - colours.shape[1], -1, -1)
    return torch.cat([colours, extra], 1) * (3 / channels)


def misfit(value: Tensor, own: Tensor | None) -> str:
    """Why a tensor of a file cannot be loaded into our own of its name; nothing if it can."""
    if own is None:
        return f"{_shape(value.shape)} in the file, no tensor of that name here"
    if value.shape != own.shape:
        return f"{_shape(value.shape)} in the file, {_shape(own.shape)} here"
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return "holds NaN or infinite numbers"
    return ""


def _examples(tensors: dict[str, Tensor]) -> str:
    rows = [f"{key} ({_shape(value.shape)})" for key, value in tensors.items() if not _optional(key)]
    return ", ".join(rows[:3]) + (", ..." if len(rows) > 3 else "")
