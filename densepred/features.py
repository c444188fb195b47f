"""What an encoder says about its maps, and where their cells lie."""

from typing import NamedTuple


class Place(NamedTuple):
    """Where the cells of a map lie along an axis, followed through layers that need not be padded.

    Args:
        origin: The pixel on which the first cell is centred.
        stride: Pixels between the cells.

    Example:
        >>> Place().after(3).after(2, stride=2)
        Place(origin=1.5, stride=2)
        >>> Place(origin=1.5, stride=2).enlarged(2, factor=2)
        Place(origin=1.0, stride=1)
    """

    origin: float = 0.0
    stride: int = 1

    def after(self, kernel_size: int, stride: int = 1, dilation: int = 1) -> "Place":
        """Behind an unpadded convolution or pooling: a cell lies in the middle of what it reads."""
        return Place(self.origin + self.stride * dilation * (kernel_size - 1) / 2, self.stride * stride)

    def enlarged(self, kernel_size: int, factor: int) -> "Place":
        """Behind an unpadded transposed convolution: a cell lies in the middle of what it is spread over."""
        stride = self.stride // factor
        return Place(self.origin - stride * (kernel_size - 1) / 2, stride)


class FeatureSpec(NamedTuple):
    """Channels, strides and places of an encoder's maps, finest first.

    A decoder is built from it, so nobody types a channel number twice.

    Args:
        channels: Channels of each map.
        strides: Pixels between the cells of each map.
        origins: Where the centre of each map's first cell lies, in pixels of the image (the first pixel's centre is 0,
            negative is outside). Empty where cell i of a map of stride s covers pixels [s*i, s*(i+1)), that is, for
            every encoder but those whose unpadded convolutions leave a margin around or eat the border. Only decoders
            that say so (`reads_origins`) read such maps; they crop by these numbers.
        exits: Of an encoder on whose way answers can be given: how many channels of each map are there at each exit;
            they are the first channels of the last maps, and the last exit has them all. Empty for every other encoder.
        patches: Whether each cell of the one map describes a patch of the image by itself, or the whole image whatever
            its size (one cell, whose stride means nothing), for fully connected layers. Only decoders that say so
            (`reads_patches`) read such maps.

    Example:
        >>> spec = FeatureSpec(channels=(64, 256), strides=(4, 8))
        >>> spec.channels[-1]
        256
        >>> spec.without_coarsest(1)
        FeatureSpec(channels=(64,), strides=(4,))
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    origins: tuple[float, ...] = ()
    exits: tuple[tuple[int, ...], ...] = ()
    patches: bool = False

    def without_coarsest(self, count: int) -> "FeatureSpec":
        """What is left of the last maps without the `count` coarsest."""
        left = max(len(self.strides) - count, 0)
        return FeatureSpec(self.channels[:left], self.strides[:left], self.origins[:left])

    def __repr__(self) -> str:
        places = f", origins={self.origins}" if self.origins else ""
        exits = f", exits={self.exits}" if self.exits else ""
        patches = ", patches=True" if self.patches else ""
        return f"FeatureSpec(channels={self.channels}, strides={self.strides}{places}{exits}{patches})"
