"""Weak links of a fabric that go while it trains."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from densepred.callbacks.freeze import wrap_again
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fabric_pruning import Measure, link_strengths, weakest_links
from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork


class PruneLinks(pl.Callback):
    """Removes the weakest links of a `FabricEncoder` at the start of given epochs, and lets the training go on.

    Links whose gates are closed (a fabric with a `budget`) go first. The optimizer forgets the parameters of what is
    gone and keeps its state of the others. Checkpoints describe what is left: they reload and resume as any other, also
    with a configuration that describes the whole fabric. Logged: `train/fabric/links`, how many there are, and
    `train/fabric/cost`, the share of the whole fabric's cost that they have (expected, where they have gates).

    Args:
        epochs: Epochs, counted from 0, at whose start links are removed.
        share: Part of the links that there are then; 0 removes those behind closed gates alone.
        measure: What makes a link weak, see `link_strengths`.

    Raises:
        ConfigurationError: If the encoder is no fabric, epochs or share are none, the weights are averaged as well, or
            the strategy shares them out between devices.

    Reference:
        Han, Pool, Tran, Dally. Learning both Weights and Connections for Efficient Neural Networks. NeurIPS 2015.
        arXiv:1506.02626 (train, prune, train on; of single weights).

    Example:
        >>> from densepred.encoders.fabric import FabricEncoder
        >>> encoder = FabricEncoder(layers=3, scales=3, channels=4)
        >>> len(encoder.links), len(PruneLinks(epochs=[20, 30], share=0.25).prune(encoder)), len(encoder.links)
        (18, 4, 14)
    """

    def __init__(self, epochs: Sequence[int], share: float = 0.2, measure: Measure = "share") -> None:
        if not epochs or min(epochs) < 0 or not 0 <= share < 1:
            raise ConfigurationError(
                f"PruneLinks: epochs are {list(epochs)}, share is {share}; expected at least one epoch, counted from "
                "0, and a part of the links, from 0 up to, but without, 1."
            )
        self.epochs = sorted(set(epochs))
        self.share = share
        self.measure: Measure = measure
        self.done: list[int] = []

    def prune(self, encoder: FabricEncoder) -> list[str]:
        """Removes once; returns the names of what is gone."""
        return encoder.remove(weakest_links(encoder, self.share, self.measure))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what cannot be pruned."""
        if stage != "fit":
            return
        link_strengths(_fabric(pl_module), self.measure)
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.epochs[-1]:
            rank_zero_warn(
                f"PruneLinks: epochs are {self.epochs}, counted from 0, but the run ends after {trainer.max_epochs} "
                "(trainer.max_epochs): links stay that were to go. Prune earlier, or train longer."
            )
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigurationError(
                f"PruneLinks: trainer.strategy {type(trainer.strategy).__name__} shares the weights out between "
                "devices, and links are measured whole. Train by ddp or on one device."
            )
        averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
        if averages:
            raise ConfigurationError(
                f"PruneLinks: {type(averages[0]).__name__} averages the weights of a network that must not change. "
                "Train the pruned checkpoint on with it, in a run without PruneLinks."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run has the links of its checkpoint, whatever the configuration says."""
        _record(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes links where the epoch asks for it."""
        encoder = _fabric(pl_module)
        epoch = trainer.current_epoch
        if epoch in self.epochs and epoch not in self.done:
            self.done.append(epoch)
            before = {name: list(link.parameters()) for name, link in encoder.links.items()}
            norms = {name: list(norm.parameters()) for name, norm in encoder.norms.items()}
            for name in self.prune(encoder):
                _forget(trainer, before[name])
            for name in norms.keys() - set(encoder.norms):
                _forget(trainer, norms[name])
            _record(pl_module)
            if isinstance(trainer.strategy, DDPStrategy):
                wrap_again(trainer.strategy)
        pl_module.log("train/fabric/links", float(len(encoder.links)), on_step=False, on_epoch=True)
        pl_module.log("train/fabric/cost", encoder.spent().detach(), on_step=False, on_epoch=True)

    def state_dict(self) -> dict[str, Any]:
        """In which epochs it has removed links."""
        return {"done": list(self.done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict`."""
        self.done = list(state_dict["done"])


def _fabric(module: pl.LightningModule) -> FabricEncoder:
    network = getattr(module, "network", None)
    if not isinstance(network, DenseNetwork) or not isinstance(network.encoder, FabricEncoder):
        found = type(getattr(network, "encoder", module)).__name__
        raise ConfigurationError(f"PruneLinks removes links of a FabricEncoder; this encoder is a {found}.")
    return network.encoder


def _record(module: pl.LightningModule) -> None:
    """What a checkpoint rebuilds the encoder with."""
    plain = module.hparams.get("encoder")
    if isinstance(plain, dict) and (removed := _fabric(module).removed):
        plain["init_args"] = {**(plain.get("init_args") or {}), "removed": list(removed)}


def _forget(trainer: pl.Trainer, parameters: Sequence[nn.Parameter]) -> None:
    """Takes parameters out of the optimizers, with their state and their names."""
    gone = {id(parameter) for parameter in parameters}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
            if len(kept) < len(group["params"]):
                if "names" in group:
                    group["names"] = [group["names"][index] for index in kept]
                group["params"] = [group["params"][index] for index in kept]
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
