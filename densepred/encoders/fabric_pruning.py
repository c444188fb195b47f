"""Which links of a fabric are weak, and which of them can go without cutting it through."""

from typing import Literal, cast, get_args

import torch

from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fabric_layers import FabricLink
from densepred.encoders.fabric_links import Node, without
from densepred.encoders.options import check_choice
from densepred.errors import ConfigurationError

Measure = Literal["weight", "share"]
"""How strong a link is: see `link_strengths`."""


@torch.no_grad()
def link_strengths(encoder: FabricEncoder, measure: Measure = "share") -> dict[str, float]:
    """The strength of each link that a fabric has, by name.

    "weight" is the mean of its squared weights, by which the authors draw the strength of connections; where it has a
    gate, times the square of the gate as it is in evaluation. The batch norm behind a node's sum makes the scale of all
    its weights together meaningless: "share" is a link's part of the sum over the links of its node, and of different
    nodes these can be compared.

    Args:
        encoder: Is left as it is.
        measure: "weight" or "share".

    Raises:
        ConfigurationError: If there is no such measure.

    Reference:
        Saxena, Verbeek. Convolutional Neural Fabrics. NeurIPS 2016. arXiv:1606.02492 (connection strengths).

    Example:
        >>> encoder = FabricEncoder(layers=2, scales=2, channels=1)
        >>> for value, link in enumerate(encoder.links.values()):
        ...     _ = link.weight.data.fill_(value)
        >>> link_strengths(encoder, "weight")["1_1_to_2_1"], round(link_strengths(encoder)["1_1_to_2_1"], 2)
        (1.0, 0.2)
    """
    check_choice("link_strengths", "measure", measure, get_args(Measure))
    strengths: dict[str, float] = {}
    totals: dict[Node, float] = {}
    present = encoder.present()
    for link in present:
        layer = cast(FabricLink, encoder.links[link.name])
        value = layer.weight.float().square().mean().item() * (layer.openness() ** 2)
        strengths[link.name] = value
        totals[link.target] = totals.get(link.target, 0.0) + value
    if measure == "share":
        return {link.name: strengths[link.name] / (totals[link.target] or 1.0) for link in present}
    return strengths


def closed_links(encoder: FabricEncoder) -> list[str]:
    """The links whose gates are closed in evaluation; none where there are no gates."""
    return [name for name, link in encoder.links.items() if cast(FabricLink, link).openness() == 0]


def weakest_links(encoder: FabricEncoder, share: float, measure: Measure = "share") -> list[str]:
    """The weakest links, up to a share of those that there are, without which the end can still be reached.

    One after the other goes, the weakest first, together with what then lies on no way to the end any more; a link that
    is the last way is kept, however weak, as is one that would take more along than are to go. Links behind closed
    gates go first, as many as there are.

    Args:
        encoder: Is left as it is; `FabricEncoder.remove` takes them away.
        share: Of the links that there are, from 0 up to 1.
        measure: See `link_strengths`.

    Raises:
        ConfigurationError: If the share is none.

    Example:
        >>> encoder = FabricEncoder(layers=3, scales=3, channels=4)
        >>> weak = weakest_links(encoder, share=0.5)
        >>> len(encoder.links), len(encoder.remove(weak))
        (18, 9)
    """
    if not 0 <= share < 1:
        raise ConfigurationError(f"share is {share}; expected a part of the links, from 0 up to, but without, 1.")
    strengths = link_strengths(encoder, measure)
    closed = set(closed_links(encoder))
    most = max(round(share * len(strengths)), len(closed))
    gone: list[str] = []
    for name in sorted(strengths, key=lambda name: (name not in closed, strengths[name])):
        if name in gone:
            continue
        try:
            left = {link.name for link in without(encoder.whole, [*encoder.removed, *gone, name], encoder.end)}
        except ConfigurationError:
            continue
        if len(strengths) - len(left) <= most:
            gone = [other for other in strengths if other not in left]
    return gone
