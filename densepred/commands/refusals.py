"""Options of Lightning's trainer that would give wrong numbers here, refused with what to take instead."""

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import StochasticWeightAveraging

from densepred.callbacks.checkpoints import refuse_shards
from densepred.errors import ConfigurationError


def refuse_what_misleads(trainer: pl.Trainer) -> None:
    """Looks at a trainer before it does anything.

    Raises:
        ConfigurationError: If checkpoints would be folders of shards; if all numbers would be halved, targets and
            metrics included; if batch normalisation is to be synchronised without a GPU; if Lightning would average
            weights behind the schedule's back.
    """
    refuse_shards(trainer)
    precision = str(trainer.precision)
    if precision in ("bf16-true", "16-true"):
        mixed = precision.replace("true", "mixed")
        raise ConfigurationError(
            f"trainer.precision {precision} would halve the targets as well, depth in metres to "
            f"{'two or three' if precision == 'bf16-true' else 'three'} digits, and the sums of losses and metrics. "
            f"Set trainer.precision to {mixed}: convolutions at half precision, weights, losses and metrics at full."
        )
    synchronised = getattr(trainer.strategy, "_layer_sync", None) is not None
    if synchronised and trainer.world_size > 1 and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigurationError(
            "trainer.sync_batchnorm: PyTorch synchronises batch normalisation between GPUs alone, and this run is on "
            "processors. Set sync_batchnorm to false, or give encoder and decoder norm: group, which knows no batch."
        )
    if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigurationError(
            "trainer.callbacks: StochasticWeightAveraging replaces the schedule by its own, adds an epoch, and leaves "
            "validation and best.ckpt without the average. Take SWA, which densepred has for it."
        )
