"""Blocks whose inner maps are computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from densepred.callbacks.compiled import Compile
from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork
from densepred.recomputation import recomputed

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Recompute(pl.Callback):
    """Keeps only what enters and leaves a block for the backward pass, which computes the rest again.

    Activation checkpointing, by `torch.utils.checkpoint`: memory falls, a training step takes up to a third longer, and
    the numbers stay the same to the bit: random numbers are drawn as they were the first time, and the statistics of
    batch normalisation count every batch once. Evaluation and checkpoints are untouched. FC-DenseNet has an option of
    its own besides, `recompute`, which keeps its convolutions and repeats what is cheap.

    Args:
        patterns: Glob patterns of the modules' names: `encoder.layer*` for the stages of a ResNet, `encoder.layer?.?`
            for their blocks. None finds the blocks by itself: residual blocks, transformer layers, the two convolutions
            of a U-Net's level.

    Raises:
        ConfigurationError: If nothing is found, or `Compile` is there as well, which plans its own recomputation.

    Reference:
        Chen, Xu, Zhang, Guestrin. Training Deep Nets with Sublinear Memory Cost. 2016. arXiv:1604.06174.

    Example:
        >>> from densepred.decoders.fcn import FCNDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> network = DenseNetwork(ResNetEncoder("resnet18"), FCNDecoder, {"segmentation": 21})
        >>> list(Recompute().parts(network))[:3]
        ['encoder.layer1.0', 'encoder.layer1.1', 'encoder.layer2.0']
        >>> list(Recompute(["encoder.layer[34]"]).parts(network))
        ['encoder.layer3', 'encoder.layer4']
    """

    def __init__(self, patterns: list[str] | None = None) -> None:
        super().__init__()
        self.patterns = patterns
        self._changed: list[nn.Module] = []

    def parts(self, network: DenseNetwork) -> dict[str, nn.Module]:
        """The modules that are run again, by name; none lies within another."""
        if self.patterns is None:
            return {path: block for part, module in _parts(network) for path, block in _blocks(part, module)}
        found: dict[str, nn.Module] = {}
        for path, module in network.named_modules():
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if path and not inside and any(fnmatchcase(path, pattern) for pattern in self.patterns):
                # a pattern's * goes past dots, so it also meets lists, which never run themselves
                found |= {} if type(module) in (nn.ModuleList, nn.ModuleDict) else {path: module}
        return found

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Changes how the blocks run."""
        network = getattr(pl_module, "network", None)
        if stage != "fit" or not isinstance(network, DenseNetwork):
            return
        if any(isinstance(callback, Compile) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigurationError(
                "Recompute and Compile: a compiled network's memory is planned by the compiler, which would not see "
                "the blocks. Keep one of the two."
            )
        parts = self.parts(network)
        if not parts:
            names = [path for path, module in network.named_modules() if path and len(list(module.children()))]
            what = "no module runs as a block of several layers" if self.patterns is None else "nothing has a name like"
            raise ConfigurationError(
                f"Recompute: {what} {', '.join(self.patterns or [])}".rstrip()
                + f" in {type(network.encoder).__name__} and its decoders. Give patterns of names such as "
                f"{', '.join(names[:4])}."
            )
        self._restore()
        for module in parts.values():
            module.forward = partial(_run, module)
            self._changed.append(module)
        first, *_, last = [*parts, *parts]
        rank_zero_only(print)(f"recomputed in the backward pass: {len(parts)} modules, {first} to {last}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets them run as they did."""
        self._restore()

    def _restore(self) -> None:
        for module in self._changed:
            vars(module).pop("forward", None)
        self._changed = []


def _run(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    forward = type(module).forward
    if not (module.training and torch.is_grad_enabled()):
        return forward(module, *inputs, **options)
    return recomputed(forward, module, module, *inputs, **options)


def _parts(network: DenseNetwork) -> Iterator[tuple[str, nn.Module]]:
    yield "encoder", network.encoder
    for name, decoder in network.decoders.items():
        yield f"decoders.{name}", decoder


def _blocks(root: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost modules of at least two layers, and at most half of the whole, that no mere container is."""
    most = _layers(module) // 2

    def search(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
        layers = _layers(module)
        if layers < 2:
            return []
        fits = path != root and layers <= most
        if fits and type(module) not in _CONTAINERS:
            return [(path, module)]
        found = [block for name, child in module.named_children() for block in search(f"{path}.{name}", child)]
        return [(path, module)] if not found and fits and type(module) is nn.Sequential else found

    return search(root, module)


def _layers(module: nn.Module) -> int:
    return sum(isinstance(layer, _LAYERS) for layer in module.modules())
