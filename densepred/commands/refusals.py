"""Options of Lightning's trainer that would give wrong numbers here, or take for ever, and what to take instead."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import StochasticWeightAveraging

from densepred.callbacks.checkpoints import refuse_shards
from densepred.errors import ConfigurationError
from densepred.half_precision import computes_bfloat16, default_device


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


def full_precision_where_half_is_slow(options: Any) -> str:
    """Sets a trainer's options to float32 where they ask a processor for a half precision that it has not.

    Args:
        options: `accelerator` and `precision`, as a configuration has them; changed in place.

    Returns:
        What was changed, for people; empty where nothing was.
    """
    precision, accelerator = str(options.get("precision")), options.get("accelerator")
    device = accelerator if isinstance(accelerator, str) and accelerator != "auto" else default_device()
    if precision not in ("bf16-mixed", "16-mixed", "bf16", "16") or computes_bfloat16(device):
        return ""
    options.precision = "32-true"
    return (
        f"trainer.precision {precision} would be hundreds of times slower on this processor, which has no arithmetic "
        "for it: 32-true is taken."
    )
