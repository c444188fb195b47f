"""The U-Net's contracting path."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.encoders.base import Encoder
from densepred.encoders.mirror import mirror
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec, Place
from densepred.initialisers import Initialisation, initialise

_DROPPED = 2  # the deepest levels end with dropout


class UNetEncoder(Encoder):
    """The U-Net's contracting path: two 3x3 convolutions a level, and max pooling by two between the levels.

    With `UNetDecoder(upsampling="transposed", widths=(512, 256, 128, 64))` on top it is the U-Net: padded with batch
    norm, the form in use today, or with `padded=False, norm="none"` here and `norm="none"` there the published one.
    That one mirrors the image by the margin its unpadded convolutions eat (92 pixels on each side for five levels,
    mirrored repeatedly where the image is smaller, and a few more at the right and the bottom up to the next size at
    which every pooling finds an even map), so its planes have the image's size. Whoever
    predicts large images by windows cuts them at multiples of 16 pixels: from 112 pixels inside its border on, where
    nothing mirrored is seen, a window's planes are the whole image's.

    Args:
        in_channels: Channels of the image.
        widths: Channels of each level, finest first.
        padded: Whether the convolutions keep the size. If not, maps have margins (`spec.origins`), which `UNetDecoder`
            crops.
        norm: See `densepred.blocks.normalisation`.
        activation: See `densepred.blocks.nonlinearity`.
        bias: Whether the convolutions have biases; by default where no normalisation with its own follows.
        dropout: Probability of dropping an activation at the end of the two deepest levels (the release: 0.5).
        initialisation: Rule for the weights; "kaiming" is the paper's: normal with deviation sqrt(2 / N), N the
            incoming connections.
        mean: Mean of each channel, of an image in [0, 1]. There are no pretrained weights whose statistics would have
            to be kept: by default 0.5, with `std` 0.5, so that the network sees numbers from -1 to 1.
        std: As `mean`.

    Attributes:
        margin: Pixels by which the image is mirrored on each side; 0 where padded.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: a map a level, at 1, 1/2, 1/4, ... of the size; without padding they are larger, by the mirrored
            margin, or, the deepest, smaller than that.

    Raises:
        ConfigurationError: If there are fewer than two levels; if the image has other channels.

    Reference:
        Ronneberger, Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.
        arXiv:1505.04597.

    Example:
        >>> import torch
        >>> encoder = UNetEncoder(in_channels=1, widths=(2, 2, 2, 2, 2), padded=False, norm="none")
        >>> [tuple(feature.shape[-2:]) for feature in encoder(torch.rand(1, 1, 388, 388))]
        [(568, 568), (280, 280), (136, 136), (64, 64), (28, 28)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        padded: bool = True,
        norm: Norm = "batch",
        activation: Activation = "relu",
        bias: bool | None = None,
        dropout: float = 0.0,
        initialisation: Initialisation = "kaiming",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        neutral = (0.5,) * in_channels
        super().__init__(in_channels, neutral if mean is None else mean, neutral if std is None else std)
        if len(widths) < 2:
            raise ConfigurationError(
                f"UNetEncoder: widths {tuple(widths)} make {len(widths)} levels. Give at least two, such as 64, 128."
            )
        self.padded = padded
        self.levels = nn.ModuleList()
        for i, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            convs = [
                ConvNormAct(channels, width, norm=norm, activation=activation, padded=padded, bias=bias)
                for channels in (before, width)
            ]
            deep = i >= len(widths) - _DROPPED
            self.levels.append(nn.Sequential(*convs, nn.Dropout(dropout if deep else 0.0)))
        initialise(self.levels, initialisation)
        origins, self.margin = ([], 0) if padded else _geometry(len(widths))
        self.spec = FeatureSpec(
            tuple(widths),
            tuple(2**i for i in range(len(widths))),
            tuple(origin - self.margin for origin in origins),
        )

    @property
    def multiple(self) -> int:
        """The coarsest stride; 1 without padding, where the encoder mirrors the image to the sizes it needs."""
        return self.spec.strides[-1] if self.padded else 1

    def valid_size(self, size: int) -> int:
        """Height or width of the mirrored image, for an image of that height or width, without padding.

        It is the margin on both sides, and what the next size needs at which every pooling finds an even map: 12 more
        than a multiple of 16, and 188 at least, for five levels.
        """
        levels = len(self.levels)
        stride, eaten = 1 << (levels - 1), 4 * ((1 << levels) - 1)
        cells = -(-(size + 2 * self.margin - eaten) // stride)
        return stride * cells + eaten

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the map of each level, finest first."""
        x = self.normalise(image if self.padded else self._mirrored(image))
        features = []
        for i, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if i else x)
            features.append(x)
        return features

    def _mirrored(self, image: Tensor) -> Tensor:
        rows, columns = (
            (self.margin, self.valid_size(size) - size - self.margin) for size in (image.shape[-2], image.shape[-1])
        )
        return mirror(image, rows, columns)


def _geometry(levels: int) -> tuple[list[float], int]:
    """Where each map's first cell is centred, in pixels of the mirrored image, and the margin the whole U-Net eats.

    Example:
        >>> _geometry(5)
        ([2.0, 6.5, 15.5, 33.5, 69.5], 92)
    """
    place, origins = Place(), []
    for level in range(levels):
        place = (place.after(2, stride=2) if level else place).after(3).after(3)
        origins.append(place.origin)
    for _ in range(levels - 1):
        place = place.enlarged(2, factor=2).after(3).after(3)
    return origins, round(place.origin)
