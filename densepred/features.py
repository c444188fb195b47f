"""What an encoder says about its maps."""

from typing import NamedTuple


class FeatureSpec(NamedTuple):
    """Channels and strides of an encoder's maps, finest first.

    A decoder is built from it, so nobody types a channel number twice.

    Example:
        >>> spec = FeatureSpec(channels=(64, 256), strides=(4, 8))
        >>> spec.channels[-1]
        256
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
