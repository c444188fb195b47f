"""The statistics of batch normalisation, measured anew for weights that no training step has used."""

from itertools import islice

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepred.errors import ConfigurationError

_RUNNING = ("running_mean", "running_var")


@torch.no_grad()
def measure_statistics(
    averaged: pl.LightningModule, trainer: pl.Trainer, trained: pl.LightningModule, batches: int
) -> None:
    """Replaces the running statistics by their plain mean over training batches.

    Only those that learn are replaced: a norm that is frozen, or that the network does not run in evaluation, keeps
    what it has. Everything else works as in evaluation, and no random number is drawn, so that the training goes on as
    without. The images are those of the current epoch as they were drawn and augmented; on several processes each
    measures on its own, and the mean is taken.

    Args:
        averaged: The weights to measure for.
        trainer: It trains.
        trained: The module that it trains.
        batches: How many, on each process, at most.

    Raises:
        ConfigurationError: If there is no datamodule.
    """
    modes = {path: module.training for path, module in trained.named_modules()}
    norms = [
        module
        for path, module in averaged.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and modes[path]
    ]
    if not norms:
        return
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise ConfigurationError(
            "SWA measures the statistics of batch normalisation on the training images of a datamodule; there is none. "
            "Give one to fit, or set batches to 0."
        )
    loader = data.train_dataloader()
    if hasattr(loader.sampler, "done"):
        loader.sampler.done = None  # a resumed run measures on the whole epoch too
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(trainer.current_epoch)
    before = [_begin(norm) for norm in norms]
    averaged.eval()
    for norm in norms:
        norm.train()
    for batch in islice(loader, batches):
        with trainer.precision_plugin.forward_context():
            averaged.network.planes(batch["image"].to(trained.device))  # type: ignore[union-attr, operator]
    for norm, state in zip(norms, before, strict=True):
        _end(norm, state, trainer)


def _begin(norm: _BatchNorm) -> dict[str, Tensor | float | None]:
    """Forgets the statistics, and counts all batches alike; what was there before."""
    state: dict[str, Tensor | float | None] = {name: value.clone() for name, value in norm.named_buffers()}
    state["momentum"] = norm.momentum
    norm.reset_running_stats()
    norm.momentum = None
    return state


def _end(norm: _BatchNorm, before: dict[str, Tensor | float | None], trainer: pl.Trainer) -> None:
    """Puts back what does not belong to the statistics, and the statistics where none were measured."""
    measured = norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0)
    norm.momentum = before.pop("momentum")  # type: ignore[assignment]
    for name, value in norm.named_buffers():
        if name not in _RUNNING or not measured:
            value.copy_(before[name])  # type: ignore[arg-type]
        elif trainer.world_size > 1:
            value.copy_(trainer.strategy.reduce(value.clone(), reduce_op="mean"))
    nn.Module.eval(norm)
