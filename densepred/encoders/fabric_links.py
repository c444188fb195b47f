"""The links of a convolutional neural fabric: which there are, which lie on a way through it, and what they cost."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from densepred.errors import ConfigurationError

Ending = Literal["finest", "coarsest"]
"""Where a fabric's last column is zipped to: the finest scale (segmentation) or the coarsest (classification)."""
Channels = Literal["dense", "sparse"]
"""What an output channel of a link reads: all channels, or its own and the two beside it."""
Cost = Literal["operations", "parameters"]
"""What a budget counts: multiply-adds or weights."""

_NAME = re.compile(r"(\d+)_(\d+)_to_(\d+)_(\d+)")


class Node(NamedTuple):
    """A map of the fabric: its column, from 1, and its scale, 0 being the finest."""

    column: int
    scale: int


START = Node(1, 0)
"""The node that reads the image."""


class Link(NamedTuple):
    """A 3x3 convolution from one node to another.

    Example:
        >>> Link(Node(1, 0), Node(2, 1)).name
        '1_0_to_2_1'
    """

    source: Node
    target: Node

    @property
    def name(self) -> str:
        """Column and scale of its two nodes, as in a fabric's `removed` and its state dict."""
        return f"{self.source.column}_{self.source.scale}_to_{self.target.column}_{self.target.scale}"

    def cost(self, channels: int, kind: Channels, of: Cost) -> float:
        """Its weights, or its multiply-adds for each pixel of the image; biases are not counted."""
        if of == "parameters":
            return 9.0 * (3 * channels - 2 if kind == "sparse" and channels > 3 else channels**2)
        # from a coarser node the zeros between its cells are not multiplied; those between sparse channels are
        return 9 * channels**2 * 0.25 ** max(self.source.scale, self.target.scale)


def link_named(name: str) -> Link:
    """The link of that name.

    Raises:
        ConfigurationError: If it is no name of a link.
    """
    if (found := _NAME.fullmatch(name)) is None:
        raise ConfigurationError(
            f"{name!r} names no link of a fabric. Expected column_scale_to_column_scale: 1_0_to_2_1."
        )
    numbers = [int(number) for number in found.groups()]
    return Link(Node(*numbers[:2]), Node(*numbers[2:]))


def end_of(columns: int, scales: int, ending: Ending) -> Node:
    """The node that is read at last."""
    return Node(columns, 0 if ending == "finest" else scales - 1)


def all_links(columns: int, scales: int, ending: Ending) -> list[Link]:
    """All links of a whole fabric, each after those that lead to its source.

    Column 1 is filled from the finest node downwards. A node of a later column reads the same scale and the two beside
    it of the column before. The last column has a zip besides: every node is read by its finer neighbour, or by its
    coarser one, up to the end.

    Example:
        >>> [link.name for link in all_links(2, 2, "finest")]
        ['1_0_to_1_1', '1_1_to_2_1', '1_0_to_2_1', '1_0_to_2_0', '1_1_to_2_0', '2_1_to_2_0']
    """
    links = [Link(Node(1, scale - 1), Node(1, scale)) for scale in range(1, scales)]
    for column in range(2, columns + 1):
        upward = column == columns and ending == "finest"
        for scale in reversed(range(scales)) if upward else range(scales):
            target = Node(column, scale)
            links += [
                Link(Node(column - 1, other), target) for other in (scale, scale - 1, scale + 1) if 0 <= other < scales
            ]
            other = scale + (1 if ending == "finest" else -1)
            if column == columns and 0 <= other < scales:
                links.append(Link(Node(column, other), target))
    return links


def on_a_way(links: Sequence[Link], end: Node) -> list[Link]:
    """Those links that lie on a way from the image to the end; others are computed for nothing, or from nothing.

    Args:
        links: Each after those that lead to its source, as `all_links` has them.
        end: The node that is read at last.
    """
    reached, leading = {START}, {end}
    for link in links:
        if link.source in reached:
            reached.add(link.target)
    for link in reversed(links):
        if link.target in leading:
            leading.add(link.source)
    return [link for link in links if link.source in reached and link.target in leading]


def without(links: Sequence[Link], removed: Iterable[str], end: Node) -> list[Link]:
    """What is left of a fabric without some links, and without those that are on no way any more.

    Raises:
        ConfigurationError: If nothing would lead from the image to the end, or a name is no link's of this fabric.
    """
    gone = set(removed)
    if unknown := sorted(gone - {link.name for link in links}):
        raise ConfigurationError(
            f"The fabric has no link {', '.join(map(repr, unknown))}. Names are column_scale_to_column_scale, such as "
            f"{links[-1].name!r}."
        )
    left = on_a_way([link for link in links if link.name not in gone], end)
    if not left:
        raise ConfigurationError(
            f"Without {', '.join(sorted(gone)) or 'any links'} nothing leads from the image to the fabric's end "
            f"(column {end.column}, scale {end.scale}). Remove fewer links."
        )
    return left
