"""The protocols that the command line knows, by name."""

from collections.abc import Sequence

from densepred.errors import ConfigurationError
from densepred.evaluation.nyu import NYUDepth, NYUNormals
from densepred.evaluation.protocol import OwnSizeProtocol, Protocol
from densepred.evaluation.voc import VOC

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        VOC(),
        NYUDepth(),
        NYUDepth("nyu_depth_toolbox", "nyu_toolbox"),
        NYUDepth("nyu_depth_eigen14", "eigen14"),
        NYUDepth("nyu_depth_whole", "none"),
        NYUDepth("nyu_depth_pooled", average="pixel"),
        NYUDepth("nyu_depth_toolbox_pooled", "nyu_toolbox", "pixel"),
        NYUDepth("nyu_depth_eigen14_pooled", "eigen14", "pixel"),
        NYUDepth("nyu_depth_whole_pooled", "none", "pixel"),
        NYUNormals(),
        OwnSizeProtocol(),
    )
}
"""Depth under each crop, averaged over images or, `_pooled`, over all pixels."""


def named(names: Sequence[str]) -> list[Protocol]:
    """The protocols of these names.

    Raises:
        ConfigurationError: If there is no protocol of a name.

    Example:
        >>> [protocol.name for protocol in named(["voc"])]
        ['voc']
    """
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ConfigurationError(f"protocol {', '.join(unknown)}: expected some of {', '.join(PROTOCOLS)}, or none.")
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]
