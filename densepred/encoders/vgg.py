"""VGG, with and without batch norm, with and without its fully connected layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from densepred.encoders.base import Encoder
from densepred.encoders.loading import LoadReport, load_pretrained
from densepred.encoders.options import OutputStride, check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec, Place

VGGName = Literal["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
VGGMaps = Literal["conv", "pool"]

_CHANNELS = (64, 128, 256, 512, 512)
_HIDDEN = 4096  # channels of fc6 and fc7
_WINDOW = 7  # fc6 reads 7 x 7 cells of the last pooling


class VGGEncoder(Encoder):
    """torchvision's VGG: its maps before or after each of the five poolings and, if asked for, fc6 and fc7.

    The tensors have torchvision's names, so any of its state dicts loads by keys; fc6 and fc7 are the convolutions
    `classifier.0` (7x7) and `classifier.3` (1x1), and the classifier's linear weights are read into them. Where
    `output_stride` takes a pooling's stride away, the pooling stays (2x2, stride 1) and whatever follows it is dilated,
    fc6 too: at the positions the strided network keeps, the responses are the same (of an image whose sides are
    multiples of 32).

    Args:
        name: torchvision's name of the network.
        weights: "imagenet" for torchvision's IMAGENET1K_V1; the path of any file with torchvision's keys; None for
            torchvision's random initialisation. Downloads go to torch.hub's cache. What was loaded, missing and
            skipped is logged and kept in `load_report`.
        in_channels: Channels of the image. Other than 3, the pretrained first convolution is adapted by
            `adapt_input_channels`: grey images keep their response.
        mean: Mean of each channel, of an image in [0, 1]; by default that of torchvision's IMAGENET1K_V1 weights.
        std: As `mean`.
        output_stride: Stride after the last pooling: 32, or 16 or 8 by dilation.
        maps: "conv" for the maps before each pooling, at strides 1 to 16 (what U-Net and unpooling decoders read: the
            switches are found again by pooling them); "pool" for those after it, at strides 2 to 32 (what FCN reads).
        fully_connected: Carries fc6 and fc7, each with ReLU and dropout, as convolutions; fc7 is the coarsest map. It
            takes the place of the fifth pooling's ("pool"), or follows the others ("conv"). 120 million parameters.
        padded: Whether fc6 is padded and keeps the size of its map. If not, its map has 6 cells less a side
            (a single one for a 224 x 224 image, the classifier's own fc7) and begins 3 cells from the image's corner,
            as `spec.origins` says: for decoders that know it, such as DeconvNet's.
        dropout: Share of the activations of fc6 and of fc7 that is dropped in training.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.
        window: The fewest cells a side that fc6 needs: 1 where it is padded.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: maps of 64, 128, 256, 512, 512 channels at 1, 1/2, 1/4, 1/8, 1/16 ("conv") or 1/2, 1/4, 1/8, 1/16, 1/32
            ("pool") of the size, rounded down, none coarser than `output_stride`; fc7 has 4096 channels.

    Raises:
        ConfigurationError: If there is no such network, output stride or kind of maps; if the image is too small for
            an fc6 without padding.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015.
        arXiv:1409.1556.
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038
        (fc6 and fc7 as convolutions; there the image is padded by 100 instead of fc6 by 3 cells).
        Yu, Koltun. Multi-Scale Context Aggregation by Dilated Convolutions. ICLR 2016. arXiv:1511.07122 (the dilation;
        there the poolings go altogether, and the pretrained responses change).

    Example:
        >>> VGGEncoder("vgg11").spec
        FeatureSpec(channels=(64, 128, 256, 512, 512), strides=(1, 2, 4, 8, 16))
        >>> VGGEncoder("vgg11", maps="pool", output_stride=8).spec
        FeatureSpec(channels=(64, 128, 256, 512, 512), strides=(2, 4, 8, 8, 8))
    """

    def __init__(
        self,
        name: VGGName = "vgg16",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output_stride: OutputStride = 32,
        maps: VGGMaps = "conv",
        fully_connected: bool = False,
        padded: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, mean, std)
        for option, value, choices in (
            ("name", name, get_args(VGGName)),
            ("output_stride", output_stride, get_args(OutputStride)),
            ("maps", maps, get_args(VGGMaps)),
        ):
            check_choice(type(self).__name__, option, value, choices)
        self.name = name
        self.maps = maps
        self.features = _features(name, in_channels)
        self.pools = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        dilation = _dilate(self.features, output_stride)
        self.classifier = _fully_connected(dilation, padded, dropout) if fully_connected else None
        self.window = 1 if padded else 1 + (_WINDOW - 1) * dilation
        self.spec = _spec(maps, output_stride, fully_connected)
        if fully_connected and not padded:
            self.spec = _without_padding(self.spec, dilation)
        self.load_report: LoadReport | None = None
        if weights is not None:
            keep = [key for key, given in (("mean", mean), ("std", std)) if given is not None]
            unneeded = ("classifier.6.",) if fully_connected else ("classifier.",)
            self.load_report = load_pretrained(self, weights, name, "features.0.weight", unneeded, keep)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the maps at the poolings and fc7's, finest first."""
        x = self.normalise(image)
        before, after = [], []
        for index, layer in enumerate(self.features):
            if index in self.pools:
                before.append(x)
            x = layer(x)
            if index in self.pools:
                after.append(x)
        if self.classifier is None:
            return before if self.maps == "conv" else after
        return [*(before if self.maps == "conv" else after[:-1]), self.classifier(self._large_enough(x))]

    def _large_enough(self, x: Tensor) -> Tensor:
        cells, stride = self.window, self.spec.strides[-1]
        if min(x.shape[-2:]) < cells:
            raise ConfigurationError(
                f"VGGEncoder(padded=False): fc6 reads {cells} x {cells} cells of {stride} pixels, the image has "
                f"{x.shape[-2]} x {x.shape[-1]}. Give at least {cells * stride} pixels a side, or set padded to true."
            )
        return x


def _features(name: str, in_channels: int) -> nn.Sequential:
    """torchvision's convolutions, initialised by its rule."""
    with torch.device("meta"):  # its classifier, 120 million numbers, need not be drawn to be thrown away
        features: nn.Sequential = get_model(name, weights=None, init_weights=False).features
        if in_channels != 3:
            features[0] = nn.Conv2d(in_channels, _CHANNELS[0], kernel_size=3, padding=1)
    features.to_empty(device=torch.get_default_device())
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return features


def _dilate(features: nn.Sequential, output_stride: int) -> int:
    """Takes the strides past `output_stride` from the poolings; returns the dilation after the last of them."""
    stride = dilation = 1
    for index, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (dilation, dilation)
        elif isinstance(layer, nn.MaxPool2d) and stride < output_stride:
            stride *= 2
        elif isinstance(layer, nn.MaxPool2d):
            # zeros never win: what is pooled has passed a ReLU
            pad, pool = nn.ZeroPad2d((0, dilation, 0, dilation)), nn.MaxPool2d(2, stride=1, dilation=dilation)
            features[index] = nn.Sequential(pad, pool)
            dilation *= 2
    return dilation


def _fully_connected(dilation: int, padded: bool, dropout: float) -> nn.Sequential:
    """fc6 and fc7 as convolutions, at the places they have in torchvision's classifier, initialised by its rule."""
    padding = dilation * (_WINDOW // 2) if padded else 0
    fc6 = nn.Conv2d(_CHANNELS[-1], _HIDDEN, _WINDOW, padding=padding, dilation=dilation)
    fc7 = nn.Conv2d(_HIDDEN, _HIDDEN, 1)
    for layer in (fc6, fc7):
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(
        fc6, nn.ReLU(inplace=True), nn.Dropout(dropout), fc7, nn.ReLU(inplace=True), nn.Dropout(dropout)
    )


def _spec(maps: VGGMaps, output_stride: int, fully_connected: bool) -> FeatureSpec:
    channels, strides = list(_CHANNELS), [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    if maps == "conv":
        strides = [1, *strides[:-1]]
    if fully_connected:
        keep = 5 if maps == "conv" else 4
        channels, strides = [*channels[:keep], _HIDDEN], [*strides[:keep], output_stride]
    return FeatureSpec(tuple(channels), tuple(strides))


def _without_padding(spec: FeatureSpec, dilation: int) -> FeatureSpec:
    """The same maps, the last of them by an fc6 without padding, with the places of their first cells."""
    *origins, last = ((stride - 1) / 2 for stride in spec.strides)
    fc6 = Place(last, spec.strides[-1]).after(_WINDOW, dilation=dilation)
    return spec._replace(origins=(*origins, fc6.origin))
