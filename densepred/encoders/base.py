"""What every encoder promises."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.recipe import Recorded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(Recorded, nn.Module, ABC):
    """Turns an image into maps and describes them.

    Normalisation belongs to the encoder, because it goes with its weights: `mean` and `std` (of an image in [0, 1])
    are buffers, `forward` takes raw images, and subclasses call `normalise` first.

    Args:
        in_channels: Channels of the image.
        mean: One number a channel; of the ImageNet weights by default, repeated over the channels where there are
            more or fewer than three.
        std: As `mean`.

    Attributes:
        spec: Channels and strides of the maps, finest first.
        multiple: Image sizes should be multiples of it (default: the coarsest stride); the network pads to it. 1 where
            an encoder follows a paper's own sizes.

    Shape:
        image: (B, in_channels, H, W), uint8 in 0..255 or floating point in [0, 1].
        returns: a list of maps (B, C_i, about H / s_i, about W / s_i), finest first.

    Raises:
        ConfigurationError: If `mean` or `std` do not have a number a channel, or the image has other channels.
    """

    spec: FeatureSpec
    mean: Tensor
    std: Tensor

    def __init__(
        self, in_channels: int = 3, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        for name, given, default in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
            values = tuple(given) if given is not None else tuple(default[i % 3] for i in range(in_channels))
            if len(values) != in_channels:
                raise ConfigurationError(
                    f"{type(self).__name__}: {name} has {len(values)} numbers, the image has {in_channels} channels. "
                    f"Give {in_channels} numbers."
                )
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    @property
    def multiple(self) -> int:
        """Image sizes should be multiples of it."""
        return self.spec.strides[-1]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The least multiples that an image of this size fits into."""
        multiple = self.multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def normalise(self, image: Tensor) -> Tensor:
        """A raw image, uint8 or float in [0, 1], to zero mean and unit variance under the weights' statistics."""
        if image.shape[1] != self.in_channels:
            raise ConfigurationError(
                f"{type(self).__name__} was built for {self.in_channels} channels, the image has {image.shape[1]} "
                f"(shape {tuple(image.shape)}). Set encoder.in_channels to {image.shape[1]}."
            )
        values = image.to(self.mean.dtype)
        if not image.is_floating_point():
            values = values / 255
        return (values - self.mean) / self.std

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to maps, finest first."""

    def exits(self, image: Tensor) -> Iterator[list[Tensor]]:
        """The maps at each exit, finest first; what lies behind an exit runs only when the next one is asked for.

        The list is the encoder's own: whoever replaces its maps by those of some of the images goes on with these.
        Without exits on the way there is one, the end.
        """
        yield self(image)
