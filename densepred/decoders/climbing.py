"""The steps of decoders that climb from the coarsest map to the finest, and on to the image."""

from itertools import pairwise
from typing import NamedTuple

from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec


class Rung(NamedTuple):
    """One step of a climb.

    Args:
        skip: Channels of the map that is joined; 0 where there is none.
        factor: How many times finer the step's result is; 1 between the equal maps of a dilated encoder.
    """

    skip: int
    factor: int


def rungs(owner: str, spec: FeatureSpec, option: str, numbers: tuple[int, ...]) -> list[Rung]:
    """A step to each map but the coarsest, coarsest first; each further one doubles the size without a map to join.

    Args:
        owner: Name of the decoder, for errors.
        spec: The encoder's maps.
        option: Name of the decoder's option that holds the numbers.
        numbers: One for each step.

    Raises:
        ConfigurationError: If there is a single map, a number is below 1, or there are too few numbers or so many that
            they lead past the image.

    Example:
        >>> rungs("UNetDecoder", FeatureSpec((8, 16, 32), (2, 4, 8)), "widths", (6, 4, 4))
        [Rung(skip=16, factor=2), Rung(skip=8, factor=2), Rung(skip=0, factor=2)]
    """
    skips = len(spec.strides) - 1
    if not skips:
        raise ConfigurationError(
            f"{owner} joins maps of several sizes; the encoder yields one, of stride {spec.strides[0]}. "
            "Use PointwiseDecoder, TransposedConvDecoder or DeepLabV3Decoder."
        )
    most = skips + spec.strides[0].bit_length() - 1
    if not skips <= len(numbers) <= most or min(numbers) < 1:
        expected = f"{skips}" if skips == most else f"{skips} (one for each skip) to {most} (up to the image's size)"
        raise ConfigurationError(
            f"{owner}: {len(numbers)} {option} {numbers} for an encoder with maps of strides {spec.strides}. "
            f"Give {expected} {option}, each at least 1."
        )
    further = len(numbers) - skips
    factors = [coarse // fine for coarse, fine in pairwise(spec.strides[::-1])]
    return [
        Rung(*rung) for rung in zip((*spec.channels[-2::-1], *[0] * further), (*factors, *[2] * further), strict=True)
    ]
