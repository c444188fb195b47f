"""The networks of Wang, Fouhey and Gupta: the whole image at a glance, and windows one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.encoders.base import IMAGENET_MEAN, Encoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise

WINDOW = 55
"""Pixels a side of what the convolutions see."""
STRIDE = 13
"""Pixels a side of the patch in the middle of a window that is answered for."""

PUBLISHED = (64, 192, 384, 256)
"""Widths of the four convolutions."""
_FIRST, _POOLED = 5, 3  # cells a side of the first convolution and of pooling
_SIDE = 12  # of the last map
_GROUPS = 2


class WangTrunk(nn.Sequential):
    """Four convolutions on 55 x 55 pixels: AlexNet's third to fifth behind a first and second for small images.

    A 5x5 convolution without padding, max pooling 3x3 of stride 2, local response normalisation; a 3x3 convolution, the
    same pooling and normalisation; two 3x3 convolutions in two groups. ReLU after each. Pooling rounds up, which makes
    no difference at this size: 51, 25, 12 cells.

    Initialised as the authors' code: N(0, 0.01), biases 1, 0, 1, 1. Behind convolutions narrower than published the
    deviation is larger by the root of the ratio, so that what is passed on is of the published size: at 0.01 narrow
    networks learn no more than how frequent the codewords are.

    Args:
        in_channels: Channels of the image.
        widths: Channels of the convolutions, even.

    Shape:
        (B, in_channels, 55, 55) -> (B, widths[3] * 12 * 12, 1, 1).
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int]) -> None:
        first, second, third, fourth = widths
        convolutions = [
            nn.Conv2d(in_channels, first, _FIRST),
            nn.Conv2d(first, second, 3, padding=1),
            nn.Conv2d(second, third, 3, padding=1, groups=_GROUPS),
            nn.Conv2d(third, fourth, 3, padding=1, groups=_GROUPS),
        ]
        for convolution, bias in zip(convolutions, (1.0, 0.0, 1.0, 1.0), strict=True):
            initialise(convolution, "gaussian", bias)
        with torch.no_grad():
            for convolution, width, published in zip(convolutions[1:], widths, PUBLISHED, strict=False):
                convolution.weight.mul_((published / width) ** 0.5)
        layers: list[nn.Module] = []
        for i, convolution in enumerate(convolutions):
            layers += [convolution, nn.ReLU(inplace=True)]
            if i < 2:
                layers += [
                    nn.MaxPool2d(_POOLED, 2, ceil_mode=True),
                    nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
                ]
        super().__init__(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Images of 55 x 55 pixels to all that is seen in them."""
        seen: Tensor = super().forward(image)  # type: ignore[no-untyped-call]
        return seen.flatten(1)[..., None, None]


class _WangEncoder(Encoder):
    """The trunk, and what both networks are told."""

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int, int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        # the initialisation is meant for colours of 0 to 255 less their mean
        mean = [IMAGENET_MEAN[i % 3] for i in range(in_channels)] if mean is None else mean
        super().__init__(in_channels, mean, (1 / 255,) * in_channels if std is None else std)
        if len(widths) != 4 or any(width < 1 for width in widths) or any(width % _GROUPS for width in widths[1:]):
            raise ConfigurationError(
                f"{type(self).__name__}: widths are {tuple(widths)}; expected four numbers, the last three even (two "
                "groups). Published: 64, 192, 384, 256."
            )
        self.trunk = WangTrunk(in_channels, widths)
        self.features = widths[3] * _SIDE**2


class WangGlobalEncoder(_WangEncoder):
    """Wang, Fouhey and Gupta's global network up to its fully connected layer: the whole image at 55 x 55 pixels.

    The image, of whatever size, is shrunk to 55 x 55 pixels, and all that the convolutions see in it is one cell of
    36,864 channels. `PatchDecoder(cells=20)` makes 20 x 20 places of it, each with scores of 20 codewords
    (`CodebookNormals`); with `single=(300,)` there and a task of 300 classes, the room's layout is learned beside it,
    a label map that is the same all over an image. An image of 32 pixels a side or fewer is taken as well.

    Args:
        in_channels: Channels of the image.
        widths: Channels of the four convolutions; smaller ones for smaller machines.
        mean: Mean of each channel, of an image in [0, 1]; by default ImageNet's.
        std: As `mean`; by default 1/255, so that colours are of the size that the initialisation is made for.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: one map (B, 144 * widths[3], 1, 1).

    Raises:
        ConfigurationError: If there are not four widths, or the last three are odd.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958.

    Example:
        >>> import torch
        >>> encoder = WangGlobalEncoder(widths=(4, 4, 4, 2))
        >>> [tuple(feature.shape) for feature in encoder(torch.zeros(1, 3, 90, 120))]
        [(1, 288, 1, 1)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = PUBLISHED,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, widths, mean, std)
        self.spec = FeatureSpec((self.features,), (1,), patches=True)

    @property
    def multiple(self) -> int:
        """1: the image is resized here."""
        return 1

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to what is seen in all of it."""
        values = self.normalise(image)
        small = F.interpolate(values, (WINDOW, WINDOW), mode="bilinear", align_corners=False, antialias=True)
        return [self.trunk(small)]


class WangLocalEncoder(_WangEncoder):
    """Wang, Fouhey and Gupta's local network up to its fully connected layers: windows of 55 x 55 pixels.

    Each patch of 13 x 13 pixels is seen in a window that goes 21 pixels further on every side, and what the
    convolutions see in it is one cell of 36,864 channels. Published on images of 195 x 260 pixels, 15 x 20 windows;
    any size will do. Beyond the image its border is repeated. `PatchDecoder(cells=13, hidden=4096)` makes 13 x 13
    pixels of each cell, so that the planes have the image's size, with scores of 40 codewords (`CodebookNormals`); with
    `single=(37,)` there and a task of 37 classes, kinds of edges are learned beside it, one a window.

    With 9 channels, or 18, it is the fusion network, which sees the answers of other networks beside the image
    (`FusionEncoder`).

    Args:
        in_channels: Channels of the image.
        widths: Channels of the four convolutions; smaller ones for smaller machines.
        mean: Mean of each channel, of an image in [0, 1]; by default ImageNet's.
        std: As `mean`; by default 1/255, so that colours are of the size that the initialisation is made for.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: one map (B, 144 * widths[3], H / 13, W / 13), rounded up.

    Raises:
        ConfigurationError: If there are not four widths, or the last three are odd.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958.

    Example:
        >>> import torch
        >>> encoder = WangLocalEncoder(widths=(2, 2, 2, 2))
        >>> [tuple(feature.shape) for feature in encoder(torch.zeros(1, 3, 195, 260))]
        [(1, 288, 15, 20)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = PUBLISHED,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, widths, mean, std)
        self.spec = FeatureSpec((self.features,), (STRIDE,), patches=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to what is seen in the window around each patch."""
        around = (WINDOW - STRIDE) // 2
        missing = [-size % STRIDE for size in image.shape[-2:]]
        padding = (around, around + missing[1], around, around + missing[0])
        padded = F.pad(self.normalise(image), padding, mode="replicate")
        # windows overlap: the first layers, which pad nothing, see the image once and pool around every pixel, of which
        # a window takes every second one
        first, activation, _, norm, *rest = self.trunk
        once = norm(F.max_pool2d(activation(first(padded)), _POOLED, 1))
        side = WINDOW - (_FIRST - 1) - (_POOLED - 1)
        windows = once.unfold(2, side, STRIDE).unfold(3, side, STRIDE)[..., ::2, ::2]
        batch, channels, rows, columns, height, width = windows.shape
        flat = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, height, width)
        for layer in rest:
            flat = layer(flat)
        return [flat.reshape(batch, rows, columns, self.features).permute(0, 3, 1, 2)]
