"""What every decoder promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn

from densepred.errors import ConfigurationError
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
        returns: (B, out_channels, h, w) at any stride, covering what the maps cover. Planes of stride 1 may go beyond
            the image on the right and at the bottom; the network crops them.

    Raises:
        ConfigurationError: If the maps do not start at the image's corner (`FeatureSpec.origins`) and the decoder is
            not one that crops them; if their cells describe patches (`FeatureSpec.patches`) and it is not one that
            reads these.
    """

    reads_origins: bool = False
    """Whether it reads maps with margins, by `FeatureSpec.origins`."""
    reads_patches: bool = False
    """Whether it reads maps whose cells describe patches, see `FeatureSpec.patches`."""

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        if spec.origins and not self.reads_origins:
            raise ConfigurationError(
                f"{type(self).__name__} needs maps that start at the image's corner; this encoder's unpadded "
                f"convolutions leave margins (the first cells are centred on pixels {spec.origins}). Set the encoder's "
                "`padded` to true, or take the decoder that was published with it."
            )
        if spec.patches and not self.reads_patches:
            raise ConfigurationError(
                f"{type(self).__name__} goes by strides; each cell of this encoder's map describes a patch, or the "
                "whole image, with all that fully connected layers need. Take PatchDecoder, or another encoder."
            )
        self.spec = spec
        self.out_channels = out_channels

    @property
    def exits(self) -> int:
        """At how many places on the encoder's way it can answer, the end included."""
        return 1

    def divide(self, planes: Mapping[str, int]) -> None:
        """Told, once it is built for several tasks, how many planes each has, in their order.

        By default a decoder makes no difference between planes. One that does may rebuild its layers.
        """

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""

    def at_exit(self, features: list[Tensor], exit: int) -> Tensor:
        """Planes from what there is at one of the exits, counted from 0; later maps hold it too."""
        return cast(Tensor, self(features))


DecoderFactory = Callable[[FeatureSpec, int], Decoder]
"""A callable that builds a decoder once the encoder is known; a `Decoder` class is one."""
