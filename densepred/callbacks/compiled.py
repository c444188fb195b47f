"""Encoder and decoders as torch.compile makes them."""

from typing import Literal

import pytorch_lightning as pl

from densepred.network import DenseNetwork

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class Compile(pl.Callback):
    """Compiles the encoder and each decoder by `torch.compile`, in place.

    Parameters keep their names, so checkpoints are the same with and without it, and a run may be continued either way.
    Fused operations round otherwise, and so values differ in the last digits. Losses and metrics are not compiled.

    The first step waits for the compiler, one to several minutes for a large network, and so does the first batch of
    each further mode (training, evaluation) and, once or twice, of further image sizes: worth it for long trainings on
    crops of one size.

    Args:
        mode: torch.compile's: "reduce-overhead" records CUDA graphs, "max-autotune" tries kernels for minutes.
        dynamic: Whether one compilation serves all image sizes; None finds out, after the second size.
        backend: torch.compile's: "inductor", or "aot_eager" to look for errors without compiling kernels.
    """

    def __init__(
        self,
        mode: Mode = "default",
        dynamic: bool | None = None,
        backend: str = "inductor",
    ) -> None:
        super().__init__()
        self.mode = mode
        self.dynamic = dynamic
        self.backend = backend

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compilation itself waits for the first batch, when layers have been converted and wrapped."""
        network = getattr(pl_module, "network", None)
        if not isinstance(network, DenseNetwork):
            return
        # backends other than inductor know no mode
        mode = None if self.mode == "default" else self.mode
        for part in (network.encoder, *network.decoders.values()):
            part.compile(mode=mode, dynamic=self.dynamic, backend=self.backend)
        for decoders in network.auxiliary_decoders or ():
            for part in decoders.values():  # type: ignore[operator]
                part.compile(mode=mode, dynamic=self.dynamic, backend=self.backend)
