"""The first scale of Eigen and Fergus's network: the whole image at one glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from densepred.encoders.base import Encoder
from densepred.encoders.loading import LoadReport, load_pretrained
from densepred.encoders.options import check_choice
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import kaiming_fan_in_

EigenName = Literal["vgg16", "vgg11", "vgg13", "vgg19", "alexnet"]
EigenStart = Literal["published", "kaiming"]

MARGIN = 4
"""Pixels that the canvas has around the image: the finer scales' first layers eat them."""
_STRIDE = 4
_GREY_MEAN, _GREY_STD = 109.31410628, 76.18328376  # of NYU's images in 0..255: what scales 2 and 3 see
_BYTES = 255.0
_TENT = (0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25)


class EigenEncoder(Encoder):
    """Scale 1 of Eigen & Fergus: two layers that see all of the image say 64 things about each cell of stride 4.

    The trunk, VGG or AlexNet, ends in a fully connected layer of `hidden` units, so it works at one size alone, the
    canvas. Every image is therefore resized to the canvas less 4 pixels a side (220 x 296), its border is repeated
    over these, and the 64 maps, which lie on stride 4 of the canvas' image, are resized to stride 4 of the given one.
    An image of 220 x 296 pixels (`Rescale` in the data) is the published network's, with no resizing at all; the
    release has 228 x 304 pixels of the picture there and predicts for the inner 218 x 294, here the border of 4 is
    repeated and planes cover the image.

    The second fully connected layer makes a map of 64 channels at stride 16, which is enlarged 4 times by a fixed tent
    kernel. The image itself, of zero mean and unit variance over NYU Depth v2, is the finest map, for the scales that
    look again: `EigenDecoder`.

    Args:
        name: Trunk: vgg16 or alexnet in the release; its first two convolutions are unpadded in a VGG.
        weights: Of a VGG trunk: "imagenet" or a file, see `VGGEncoder`; fully connected layers stay random, as in the
            release. None for random weights.
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1], for the trunk; ImageNet's, for alexnet 128 / 255.
        std: As `mean`. The release divides by nothing (std of 1 / 255).
        hidden: Units of the first fully connected layer; fewer make a network for small machines.
        channels: Channels of the maps.
        canvas: Height and width of what the trunk sees, in pixels, multiples of 4.
        dropout: Share of the hidden units that is dropped in training (0.5; for labels 0.8).
        rectified: Whether a ReLU follows the second fully connected layer; the release's networks of labels have none.
        scale: Factor of what the trunk hands to the fully connected layers, for images in 0..255; brought to `std`, so
            that it is 0.01 where std is 1 / 255 and 0.57 at ImageNet's.
        initialisation: Of the fully connected layers: N(0, 0.01) and N(0, 0.001) as published, or "kaiming", with
            which a network from random weights learns at rates such as Adam's.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: the image (B, in_channels, H, W), and maps (B, channels, H / 4, W / 4).

    Raises:
        ConfigurationError: If there is no such trunk, it has no weights to load, or the canvas is too small or no
            multiple of 4.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Eigen, Fergus. Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture. ICCV 2015. arXiv:1411.4734 (and the release, which this follows).

    Example:
        >>> encoder = EigenEncoder("vgg11", hidden=8, channels=4)
        >>> [tuple(planes.shape) for planes in encoder(torch.zeros(1, 3, 220, 296))]
        [(1, 3, 220, 296), (1, 4, 55, 74)]
    """

    kernel: Tensor

    def __init__(
        self,
        name: EigenName = "vgg16",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        hidden: int = 4096,
        channels: int = 64,
        canvas: tuple[int, int] = (228, 304),
        dropout: float = 0.5,
        rectified: bool = True,
        scale: float = 0.01,
        initialisation: EigenStart = "published",
    ) -> None:
        check_choice(type(self).__name__, "name", name, get_args(EigenName))
        check_choice(type(self).__name__, "initialisation", initialisation, get_args(EigenStart))
        if mean is None and name == "alexnet":
            mean = (128 / _BYTES,) * in_channels
        super().__init__(in_channels, mean, std)
        self.name = name
        self.canvas = (int(canvas[0]), int(canvas[1]))
        self.cells = self._cells()
        self.channels = channels
        self.rectified = rectified
        self.scale = scale
        self.features = _alexnet(in_channels) if name == "alexnet" else _vgg(name, in_channels)
        self.coarse = (-(-self.cells[0] // 4), -(-self.cells[1] // 4))
        self.full1 = nn.Linear(self._seen(), hidden)
        self.dropout = nn.Dropout(dropout)
        self.full2 = nn.Linear(hidden, channels * self.coarse[0] * self.coarse[1])
        for layer, spread in ((self.full1, 0.01), (self.full2, 0.001)):
            if initialisation == "kaiming":
                kaiming_fan_in_(layer.weight)
            else:
                nn.init.normal_(layer.weight, 0.0, spread)
            nn.init.zeros_(layer.bias)
        tent = torch.tensor(_TENT)
        self.register_buffer("kernel", (tent[:, None] * tent)[None, None])
        self.spec = FeatureSpec((in_channels, channels), (1, _STRIDE))
        self.load_report: LoadReport | None = None
        if weights is not None:
            self.load_report = self._load(weights)

    def _cells(self) -> tuple[int, int]:
        """Cells of stride 4 of the image on the canvas."""
        height, width = ((side - 2 * MARGIN) // _STRIDE for side in self.canvas)
        if any(side % _STRIDE for side in self.canvas) or min(height, width) < 8:
            raise ConfigurationError(
                f"{type(self).__name__}: canvas is {self.canvas[0]} x {self.canvas[1]} pixels. Expected multiples of 4 "
                "of at least 40; the release has 228 x 304."
            )
        return height, width

    def _seen(self) -> int:
        """How many numbers the trunk makes of the canvas."""
        shapes = {name: torch.empty_like(value, device="meta") for name, value in self.features.state_dict().items()}
        canvas = torch.empty(1, self.in_channels, *self.canvas, device="meta")
        return int(functional_call(self.features, shapes, canvas).numel())

    def _load(self, weights: str | Path) -> LoadReport:
        if self.name == "alexnet":
            raise ConfigurationError(
                f"{type(self).__name__}: weights is {weights}, but torchvision's AlexNet has other layers than this "
                "one (64 and 192 channels in place of 96 and 256). Take a VGG, or leave weights out."
            )
        own = ("full1.weight", "full1.bias", "full2.weight", "full2.bias", "kernel")
        return load_pretrained(self, weights, self.name, "features.0.weight", ("classifier.",), keep=own)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to itself, normalised, and the maps of scale 1."""
        normalised = self.normalise(image)
        pixels = (normalised * self.std + self.mean) * _BYTES
        size = (image.shape[-2] // _STRIDE, image.shape[-1] // _STRIDE)
        maps = F.interpolate(self.glance(normalised), size=size, mode="bilinear", align_corners=False)
        return [(pixels - _GREY_MEAN) / _GREY_STD, maps]

    def glance(self, normalised: Tensor) -> Tensor:
        """Scale 1 on the canvas: a normalised image of any size to maps at stride 4 of the canvas' image."""
        inner = [side - 2 * MARGIN for side in self.canvas]
        x = F.interpolate(normalised, size=inner, mode="bilinear", align_corners=False, antialias=True)
        x = self.features(F.pad(x, (MARGIN,) * 4, mode="replicate"))
        x = x.flatten(1) * (self.scale * _BYTES * self.std.mean())
        x = self.full2(self.dropout(F.relu(self.full1(x))))
        if self.rectified:
            x = F.relu(x)
        x = x.view(-1, self.channels, *self.coarse)
        kernel = self.kernel.to(x.dtype).expand(self.channels, 1, -1, -1)
        x = F.conv_transpose2d(x, kernel, stride=4, groups=self.channels)
        # the tent of cell 0 is centred on the fourth row: two of the rows before it are kept
        return x[..., 2 : 2 + self.cells[0], 2 : 2 + self.cells[1]]


def _vgg(name: str, in_channels: int) -> nn.Sequential:
    """torchvision's convolutions, the first two of them without padding."""
    features = VGGEncoder(name, in_channels=in_channels).features  # type: ignore[arg-type]
    for layer in [layer for layer in features if isinstance(layer, nn.Conv2d)][:2]:
        layer.padding = (0, 0)
    return features


def _alexnet(in_channels: int) -> nn.Sequential:
    """The convolutions of AlexNet in one column, ungrouped."""
    features = nn.Sequential(
        nn.Conv2d(in_channels, 96, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
    )
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            kaiming_fan_in_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return features
