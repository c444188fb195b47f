"""Which parameters learn at which rate, and which decay: the groups that an optimizer is built over."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import AdamW, Optimizer

from densepred.errors import ConfigurationError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Builds an optimizer from parameters, or from groups of them."""

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# names that wrappers put between a module and its parts
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PLACES = ("encoder", "decoder", "rest")
_REST = 2


class RateScales(NamedTuple):
    """Multiples of the optimizer's learning rate; those that concern a parameter are multiplied.

    Args:
        encoder: Of the encoder.
        decoder: Of all decoders, auxiliary ones too.
        bias: Of the biases of convolutions and linear layers; those of normalisations are not meant.
        by_name: Further multiples, by glob patterns of the parameters' names; each pattern makes groups of its own.
        decay_by_name: Multiples of the optimizer's weight decay, likewise.
    """

    encoder: float = 1.0
    decoder: float = 1.0
    bias: float = 1.0
    by_name: Mapping[str, float] = MappingProxyType({})
    decay_by_name: Mapping[str, float] = MappingProxyType({})


_AS_IT_IS = RateScales()


@dataclass
class ParameterGroup:
    """Parameters that learn alike.

    Args:
        name: What dashboards call it: `encoder`, `decoder-biases`, ...
        lr_scale: Multiple of the optimizer's learning rate.
        decays: Whether weight decay applies.
        names: Of the parameters.
        parameters: The parameters, in the order of the names.
        decay_scale: Multiple of the optimizer's weight decay, where it applies.
    """

    name: str
    lr_scale: float
    decays: bool
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    decay_scale: float = 1.0

    def apply(self, optimizer: Optimizer, index: int) -> None:
        """Scales the rate and the decay of the optimizer's group of that index."""
        group = optimizer.param_groups[index]
        group["lr"] *= self.lr_scale
        if "weight_decay" in group:
            group["weight_decay"] *= self.decay_scale if self.decays else 0.0


def parameter_groups(
    module: nn.Module, scales: RateScales = _AS_IT_IS, decay_norms_and_biases: bool = True
) -> list[ParameterGroup]:
    """Groups all parameters of a module that has a `network` of an encoder and decoders.

    There is one group for the encoder, one for the decoders and, where a refiner, a loss or a balance of tasks learns
    something itself, one for the rest, which never decays. Where norms or biases are treated otherwise, they have
    groups of their own. Order and names depend on the network and the arguments alone. Parameters that are frozen are
    in their group as well: optimizers skip what has no gradient, and what is frozen for a while keeps its place in a
    checkpoint.

    Args:
        module: A DensePredictor, also one that is wrapped for several devices.
        scales: Multiples of the learning rate, and of the weight decay.
        decay_norms_and_biases: Whether weight decay applies to the parameters of normalisations and to all biases.

    Raises:
        ConfigurationError: If a pattern of `scales` matches no parameter.

    Reference:
        Caffe's `lr_mult: 2, decay_mult: 0` for biases, which FCN and DeepLab were trained with; He et al. Bag of Tricks
        for Image Classification with Convolutional Neural Networks. CVPR 2019. arXiv:1812.01187 (no bias decay).

    Example:
        >>> module = nn.Module()
        >>> module.network = nn.ModuleDict({"encoder": nn.Conv2d(1, 1, 1), "decoders": nn.Conv2d(1, 1, 1)})
        >>> [(group.name, group.lr_scale) for group in parameter_groups(module, RateScales(decoder=10, bias=2))]
        [('encoder', 1.0), ('encoder-biases', 2.0), ('decoder', 10), ('decoder-biases', 20)]
    """
    groups: dict[tuple[int, int, str], ParameterGroup] = {}
    wanted = {**scales.by_name, **scales.decay_by_name}  # in their order, each once
    unmatched = set(wanted)
    known = list(_parameters(module))
    for name, kind, parameter in known:
        place = _place(name)
        patterns = [pattern for pattern in wanted if fnmatchcase(name, pattern)]
        unmatched -= set(patterns)
        lr_scale = (scales.encoder, scales.decoder, 1.0)[place]
        apart = "norms" if kind == "norms" and not decay_norms_and_biases else ""
        if kind == "biases":
            lr_scale *= scales.bias
            apart = "biases" if scales.bias != 1 or not decay_norms_and_biases else ""
        decay_scale = 1.0
        for pattern in patterns:
            lr_scale *= scales.by_name.get(pattern, 1.0)
            decay_scale *= scales.decay_by_name.get(pattern, 1.0)
        decays = place != _REST and (kind == "weights" or decay_norms_and_biases)
        words = [_PLACES[place], *(_plain(pattern, _PLACES[place]) for pattern in patterns), apart]
        label = "-".join(word for word in words if word)
        order = place, ("", "norms", "biases").index(apart), label
        group = groups.setdefault(order, ParameterGroup(label, lr_scale, decays, decay_scale=decay_scale))
        group.names.append(name)
        group.parameters.append(parameter)
    if unmatched:
        raise ConfigurationError(
            f"{_options(unmatched, scales)}: no parameter's name matches {', '.join(map(repr, sorted(unmatched)))}. "
            f"Names are such as {', '.join(name for name, _, _ in (known[0], known[-1]))}; * stands for anything."
        )
    return [groups[order] for order in sorted(groups)]


def optimizer_over(
    module: nn.Module, factory: OptimizerFactory | None, scales: RateScales, decay_norms_and_biases: bool
) -> Optimizer:
    """An optimizer over the groups of a module's parameters, each at its rate and with its decay.

    Args:
        module: As in `parameter_groups`.
        factory: Builds the optimizer; None takes AdamW at a rate of 3e-4 with decay 0.01.
        scales: Multiples of the learning rate.
        decay_norms_and_biases: Whether weight decay applies to the parameters of normalisations and to biases.
    """
    groups = parameter_groups(module, scales, decay_norms_and_biases)
    options = [{"params": group.parameters, "name": group.name, "names": group.names} for group in groups]
    # not a default of the module's constructor: its weight decay would leak into the SGD of a config
    optimizer = AdamW(options, lr=3e-4, weight_decay=0.01) if factory is None else factory(options)
    for index, group in enumerate(groups):
        group.apply(optimizer, index)
    return optimizer


class LinearScaling(NamedTuple):
    """The linear rule: a learning rate grows with the images of a step.

    Args:
        reference: Images of a step that the configured rate is meant for.
        batch_size: Images of a batch of one process.
        accumulated: Batches whose gradients a step sums up.
        processes: Processes that train together.

    Reference:
        Goyal et al. Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. 2017. arXiv:1706.02677.

    Example:
        >>> print(LinearScaling(256, 8, 4, 1))
        learning rate x 0.125: configured for 256 images a step, here 32 (8 x 4 accumulated x 1 process)
    """

    reference: int
    batch_size: int
    accumulated: int
    processes: int

    @property
    def images(self) -> int:
        """Images of a step."""
        return self.batch_size * self.accumulated * self.processes

    @property
    def factor(self) -> float:
        """What the configured rate is multiplied by."""
        return self.images / self.reference

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return (
            f"learning rate x {self.factor:g}: configured for {self.reference} images a step, here {self.images} "
            f"({self.batch_size} x {self.accumulated} accumulated x {processes})"
        )


def linear_scaling(trainer: "Trainer", reference_batch: int | None) -> LinearScaling:
    """The linear rule for the batches, accumulation and processes of a trainer.

    Raises:
        ConfigurationError: If the reference is not a number of images, or the data have no batch size.
    """
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not reference_batch or reference_batch < 1 or batch_size is None:
        raise ConfigurationError(
            f"reference_batch {reference_batch} scales the learning rate to the batch size: expected 1 or more images, "
            f"and a datamodule with a batch_size, which is {batch_size}. Give both, or leave reference_batch out."
        )
    return LinearScaling(reference_batch, batch_size, trainer.accumulate_grad_batches, trainer.world_size)


def _options(unmatched: set[str], scales: RateScales) -> str:
    named = {"lr_scales": scales.by_name, "decay_scales": scales.decay_by_name}
    return " and ".join(option for option, patterns in named.items() if unmatched & set(patterns))


def _place(name: str) -> int:
    part = name.split(".")[0]
    return 0 if part == "encoder" else 1 if part in ("decoders", "auxiliary_decoders") else _REST


def _plain(pattern: str, place: str) -> str:
    """A pattern as a part of a metric's name, without the place that stands before it."""
    return re.sub(rf"^{place}s?(-|$)", "", re.sub(r"\W+", "-", pattern).strip("-"))


def _parameters(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, kind ("weights", "norms" or "biases") and parameter, each once; the network's without its prefix."""
    seen: set[int] = set()
    for path, layer in module.named_modules():
        # by type, as shapes say nothing of parameters that are sharded
        norm = isinstance(layer, _NORMS) or "Norm" in type(layer).__name__
        for name, parameter in layer.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = "norms" if norm else "biases" if name.endswith("bias") else "weights"
            yield _WRAPPERS.sub("", f"{path}.{name}".lstrip(".")).removeprefix("network."), kind, parameter
