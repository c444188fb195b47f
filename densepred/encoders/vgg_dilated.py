"""Yu and Koltun's front-end: VGG without padding and without its last two poolings."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from densepred.encoders.mirror import mirror
from densepred.encoders.vgg import VGGEncoder, VGGMaps, VGGName
from densepred.features import FeatureSpec, Place

_POOLINGS = 3  # those that stay
_STRIDE = 2**_POOLINGS


class DilatedVGGEncoder(VGGEncoder):
    """The dilated front-end: VGG of stride 8 whose convolutions are all unpadded, on a mirrored image.

    The fourth and the fifth pooling are gone, the fifth block is dilated by 2, fc6 by 4. Nothing is padded inside the
    network: the image is extended by reflection instead, by the 186 pixels on each side that fc7's receptive field of
    380 reaches beyond (mirrored repeatedly where the image is smaller), so that borders look like images. fc7's cell i
    is then centred between the middle pixels 8i + 3 and 8i + 4 of the 8 that it covers (the authors count it at pixel
    8i). The other maps reach further out; they are cropped to the image, so that every decoder can read them.

    Weights of VGG load by their names, but the missing poolings change the responses: it is meant to be trained on.

    Args:
        name: torchvision's name of the network; vgg16 in the paper.
        weights: As in `VGGEncoder`: "imagenet", the path of any file with torchvision's keys, or None.
        in_channels: As in `VGGEncoder`.
        mean: As in `VGGEncoder`.
        std: As in `VGGEncoder`. (The paper subtracts each data set's mean colour and divides by nothing.)
        maps: Which maps come before fc7's: "pool" for those after the first three poolings and that of the fourth
            block, "conv" for those of the five blocks.
        dropout: Share of the activations of fc6 and of fc7 that is dropped in training.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.
        margin: Pixels by which the image is mirrored on each side.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: maps of 64, 128, 256, 512 channels at 1/2, 1/4, 1/8, 1/8 ("pool") or of 64, 128, 256, 512, 512 at 1,
            1/2, 1/4, 1/8, 1/8 of the size ("conv"), then fc7's 4096 at 1/8. Sizes that are no multiples of 8 are
            mirrored up to one.

    Raises:
        ConfigurationError: If there is no such network or kind of maps.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Yu, Koltun. Multi-Scale Context Aggregation by Dilated Convolutions. ICLR 2016. arXiv:1511.07122.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     encoder = DilatedVGGEncoder(maps="pool")
        >>> encoder.margin, encoder.spec
        (186, FeatureSpec(channels=(64, 128, 256, 512, 4096), strides=(2, 4, 8, 8, 8)))
    """

    def __init__(
        self,
        name: VGGName = "vgg16",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        maps: VGGMaps = "pool",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            name, weights, in_channels, mean, std, _STRIDE, maps, fully_connected=True, padded=False, dropout=dropout
        )
        # an identity in their place: the names of what follows stay torchvision's
        for index in self.pools[_POOLINGS:]:
            self.features[index] = nn.Identity()
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)
        # what is yielded begins at the image's corner, unlike the unpadded VGG's fc7
        self.spec = FeatureSpec(self.spec.channels, self.spec.strides)
        self.read = _read(self.pools, maps)
        places = _places([*self.features, *(self.classifier or ())])
        self.margin = round(places[-1].origin - (_STRIDE - 1) / 2)
        # cell i of a map of stride s is centred on pixel s * i + (s - 1) / 2 once so many cells are cropped
        self.crops = [
            round((self.margin + (stride - 1) / 2 - places[index].origin) / stride)
            for index, stride in zip(self.read, self.spec.strides, strict=False)
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to maps, finest first, fc7's last."""
        height, width = (-(-size // _STRIDE) * _STRIDE for size in image.shape[-2:])
        rows, columns = (
            (self.margin, self.margin + size - own) for size, own in zip((height, width), image.shape[-2:], strict=True)
        )
        x = self.normalise(mirror(image, rows, columns))
        maps: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.read:
                crop, stride = self.crops[len(maps)], self.spec.strides[len(maps)]
                maps.append(x[..., crop : crop + height // stride, crop : crop + width // stride])
        for layer in self.classifier or ():
            x = layer(x)
        return [*maps, x]


def _read(pools: list[int], maps: VGGMaps) -> list[int]:
    """After which layers the maps are read."""
    if maps == "conv":
        return [index - 1 for index in pools]
    return pools[: _POOLINGS + 1]


def _places(layers: list[nn.Module]) -> list[Place]:
    """Where the cells after each layer lie in the mirrored image."""
    place, places = Place(), []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            place = place.after(layer.kernel_size[0], dilation=layer.dilation[0])
        elif isinstance(layer, nn.MaxPool2d):
            place = place.after(2, stride=2)
        places.append(place)
    return places
