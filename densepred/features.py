"""What an encoder says about its maps."""

from typing import NamedTuple


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

    def without_coarsest(self, count: int) -> "FeatureSpec":
        """What is left of the maps without the `count` coarsest."""
        left = max(len(self.strides) - count, 0)
        return FeatureSpec(self.channels[:left], self.strides[:left], self.origins[:left])

    def __repr__(self) -> str:
        places = f", origins={self.origins}" if self.origins else ""
        return f"FeatureSpec(channels={self.channels}, strides={self.strides}{places})"
