"""What every decoder promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from densepred.features import FeatureSpec
from densepred.recipe import Recorded


class Decoder(Recorded, nn.Module, ABC):
    """Turns an encoder's maps into planes.

    A subclass takes `spec` and `out_channels` first and options with defaults last, so that the class itself is a
    `DecoderFactory`. It resizes to `skip.shape[-2:]` and never computes sizes.

    Args:
        spec: The encoder's maps.
        out_channels: Number of planes.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at any stride.
    """

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.out_channels = out_channels

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""


DecoderFactory = Callable[[FeatureSpec, int], Decoder]
"""A callable that builds a decoder once the encoder is known; a `Decoder` class is one."""
