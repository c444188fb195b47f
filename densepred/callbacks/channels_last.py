"""Images and weights with the channels of a pixel side by side in memory."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from densepred.encoders.base import Encoder


class ChannelsLast(pl.Callback):
    """Lays images and the weights of convolutions out by pixels (NHWC) instead of by channels (NCHW).

    Shapes, checkpoints and what is computed stay the same; sums are added up in another order, so values differ in the
    last digits. On GPUs with tensor cores convolutions are faster under mixed precision, which otherwise rearranges
    their inputs; on a processor it depends on the network: measure a few steps (`speed/images_per_second`).

    Reference:
        PyTorch's tutorial "Channels Last Memory Format in PyTorch".
    """

    def __init__(self) -> None:
        super().__init__()
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Rearranges the weights in place, before an optimizer or another device sees them."""
        network = getattr(pl_module, "network", None)
        encoder = getattr(network, "encoder", None)
        if not isinstance(network, nn.Module) or not isinstance(encoder, Encoder):
            return
        network.to(memory_format=torch.channels_last)
        self._remove()
        self._hook = encoder.register_forward_pre_hook(_by_pixels)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Images come as they are again; the weights' order harms nobody."""
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _by_pixels(encoder: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Any, ...]:
    image, *others = arguments
    return (image.contiguous(memory_format=torch.channels_last), *others)
