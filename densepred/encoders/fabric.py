"""Convolutional neural fabrics: a grid of scales and layers in which architectures lie as paths."""

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import BatchNormOfFew
from densepred.encoders.base import Encoder
from densepred.encoders.fabric_layers import FabricLink
from densepred.encoders.fabric_links import START, Channels, Cost, Ending, Link, Node, all_links, end_of, without
from densepred.encoders.options import check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import caffe_xavier_, gaussian_, shift_norms
from densepred.penalties import Penalised


class FabricEncoder(Encoder, Penalised):
    """A convolutional neural fabric: layers x scales of maps, each the sum of 3x3 convolutions of its neighbours.

    A node of a layer adds up what comes from the layer before, from the same scale, from the next finer one (stride 2)
    and from the next coarser one (enlarged by zeros, then convolved), each through a convolution of its own; then batch
    norm and ReLU. The image enters the finest node of the first layer, whose other nodes are filled downwards. In the
    last layer every node is also read by its finer neighbour, up to the finest scale: one map at stride 1, for
    `PointwiseDecoder`. Chain-like networks of any order of pooling and enlarging are paths of the fabric, so training
    it weighs exponentially many of them against each other instead of choosing one.

    **Pruned**: links that turn out weak can be taken away and the rest be trained on: `densepred.encoders.
    fabric_pruning` has the functions, `PruneLinks` does it in a training. `removed` records what is gone, and a state
    dict of a pruned fabric, loaded into the whole one, prunes it alike.

    **Budgeted**: with a `budget` each link gets a gate that is open with a learned probability, and what is expected to
    be spent above the budget is added to the training loss: budget_weight * max(0, E[cost] / whole cost - budget). The
    objective is that of Budgeted Super Networks, which estimate its gradient by REINFORCE; here the gates are hard
    concrete ones, through which it is differentiated. Closed gates are 0 exactly, and `PruneLinks` removes their links.

    Args:
        layers: Columns of the grid, 2 or more.
        scales: Rows; each is half as wide and high as the one before. Published: down to 1x1 (9 at 256 pixels).
        channels: Channels of every map.
        kind: "dense", or "sparse": each output channel reads 3 neighbouring channels (see `FabricLink`).
        ending: "finest" zips the last layer up to stride 1; "coarsest" down, as published for classification.
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; by default 0: published without normalisation.
        std: As `mean`; by default 1.
        removed: Names of links that this fabric lacks, such as "1_0_to_2_1" (layer 1, scale 0 to layer 2, scale 1).
            What no longer lies on a way from the image to the end is left out as well.
        budget: Share of the whole fabric's cost that the open links may have, above 0 and up to 1; None: no gates.
        budget_weight: Weight of the budget in the training loss.
        cost: What the budget counts: "operations" (multiply-adds of the links) or "parameters" (their weights).

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1]; the network pads to multiples of
            2 ** (scales - 1).
        returns: one map (B, channels, H, W), or (B, channels, H / 2 ** (scales - 1), ...) for the ending "coarsest".

    Raises:
        ConfigurationError: If there are too few layers, scales or channels, the budget is none, a removed link does not
            exist, or without those removed nothing leads to the end; if the image's sizes are not multiples.

    Reference:
        Saxena, Verbeek. Convolutional Neural Fabrics. NeurIPS 2016. arXiv:1606.02492. Weights, biases and zips are
        counted as the release has them; the paper's numbers (27 * layers * scales * channels^2, sparse 81 * ...) also
        count links beyond the grid's borders. A map of a single cell is normalised by running statistics where it is
        the batch's only value.
        Veniat, Denoyer. Learning Time/Memory-Efficient Deep Architectures with Budgeted Super Networks. CVPR 2018.
        arXiv:1706.00046 (the budget; for `HardConcreteGate` see there).

    Example:
        >>> encoder = FabricEncoder(layers=3, scales=4, channels=8)
        >>> encoder(torch.zeros(1, 3, 40, 64))[0].shape
        torch.Size([1, 8, 40, 64])
        >>> len(encoder.links), encoder.remove(["1_3_to_2_3"]), len(encoder.links)
        (26, ['1_3_to_2_3'], 25)
    """

    def __init__(
        self,
        layers: int = 8,
        scales: int = 9,
        channels: int = 64,
        kind: Channels = "dense",
        ending: Ending = "finest",
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        removed: Sequence[str] = (),
        budget: float | None = None,
        budget_weight: float = 1.0,
        cost: Cost = "operations",
    ) -> None:
        super().__init__(
            in_channels, (0.0,) * in_channels if mean is None else mean, (1.0,) * in_channels if std is None else std
        )
        name = type(self).__name__
        check_choice(name, "kind", kind, get_args(Channels))
        check_choice(name, "ending", ending, get_args(Ending))
        check_choice(name, "cost", cost, get_args(Cost))
        if layers < 2 or min(scales, channels) < 1:
            raise ConfigurationError(
                f"{name}: {layers} layers, {scales} scales, {channels} channels; expected 2 or more layers, as the "
                "first is filled downwards and the last is zipped, and 1 or more scales and channels."
            )
        if (budget is not None and not 0 < budget <= 1) or budget_weight < 0:
            raise ConfigurationError(
                f"{name}: budget is {budget}, budget_weight {budget_weight}; expected a share of the whole fabric's "
                "cost above 0 and up to 1, or null for no budget, and a weight of 0 or more."
            )
        self.channels, self.kind, self.cost_of = channels, kind, cost
        self.budget, self.budget_weight = budget, budget_weight
        self.end = end_of(layers, scales, ending)
        self.whole = all_links(layers, scales, ending)
        self.removed: list[str] = []
        self.grid = [START]
        self.image = nn.Conv2d(in_channels, channels, 3, padding=1)
        (caffe_xavier_ if kind == "sparse" else gaussian_)(self.image.weight)
        nn.init.zeros_(self.image.bias)  # type: ignore[arg-type]
        self.links = nn.ModuleDict({n.name: FabricLink(n, channels, kind, budget is not None) for n in self.whole})
        nodes = [START, *dict.fromkeys(link.target for link in self.whole)]
        self.norms = nn.ModuleDict({_key(node): BatchNormOfFew(channels) for node in nodes})
        shift_norms(self.norms, 0.001)
        self.spec = FeatureSpec((channels,), (2**self.end.scale,))
        self._scales = scales
        self.remove(removed)

    @property
    def multiple(self) -> int:
        """The stride of the coarsest scale, which the map read at the end need not have."""
        return 1 << self._scales - 1

    def present(self) -> list[Link]:
        """The links that there are, each after those that lead to its source."""
        return [link for link in self.whole if link.name in self.links]

    def remove(self, names: Sequence[str]) -> list[str]:
        """Takes links away, and what then lies on no way to the end; returns the names of all that go.

        `removed`, also among the arguments that a checkpoint rebuilds it with, holds all that are gone. The remaining
        parameters are the same objects; an optimizer has to forget the others (`PruneLinks` sees to that).

        Raises:
            ConfigurationError: If there is no such link, or nothing would lead to the end; all is left as it was then.
        """
        left = {link.name for link in without(self.whole, [*self.removed, *names], self.end)}
        gone = [link.name for link in self.present() if link.name not in left]
        for name in gone:
            del self.links[name]
        self.removed = [link.name for link in self.whole if link.name not in left]
        if self.removed:
            self.init_args["removed"] = list(self.removed)
        self.grid = [START, *dict.fromkeys(link.target for link in self.present())]
        alive = {_key(node) for node in self.grid}
        for key in [key for key in self.norms if key not in alive]:
            del self.norms[key]
        return gone

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the map at the end."""
        height, width = image.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ConfigurationError(
                f"{type(self).__name__}: the image is {height} x {width}; with {self._scales} scales its sizes must be "
                f"multiples of {self.multiple}. Pad it (a DenseNetwork does), or give fewer `scales`."
            )
        incoming: dict[Node, list[Link]] = {}
        for link in self.present():
            incoming.setdefault(link.target, []).append(link)
        maps = {START: self._node(START, self.image(self.normalise(image)))}
        for node in self.grid[1:]:
            terms = [self.links[link.name](maps[link.source]) for link in incoming[node]]
            maps[node] = self._node(node, sum(terms[1:], terms[0]))
            # without gradients, what no later column reads need not be kept
            maps = {other: value for other, value in maps.items() if other.column >= node.column - 1}
        return [maps[self.end]]

    def _node(self, node: Node, total: Tensor) -> Tensor:
        return F.relu(self.norms[_key(node)](total), inplace=True)

    def spent(self) -> Tensor:
        """The share of the whole fabric's cost that its links have, those with gates by their chance of being open."""
        known = {link: link.cost(self.channels, self.kind, self.cost_of) for link in self.whole}
        shares: list[Tensor] = []
        for link in self.present():
            gate = cast(FabricLink, self.links[link.name]).gate
            chance = self.mean.new_ones(()) if gate is None else gate.open_probability()
            shares.append(chance * (known[link] / sum(known.values())))
        return torch.stack(shares).sum()

    def penalties(self) -> dict[str, Tensor]:
        """What is spent above the budget, weighted."""
        if self.budget is None:
            return {}
        return {"budget": self.budget_weight * F.relu(self.spent() - self.budget)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a run is resumed with the whole fabric of its configuration: what the state lacks was pruned. Only if exactly
        # those links are missing that pruning takes away; other states are none of this fabric, and are told as such
        start = f"{prefix}links."
        found = {key[len(start) :].split(".")[0] for key in state_dict if key.startswith(start)}
        missing = [name for name in self.links if name not in found]
        if found and missing and found <= set(self.links):
            left = {link.name for link in self.whole if link.name in found}
            try:
                expected = {link.name for link in without(self.whole, [*self.removed, *missing], self.end)}
            except ConfigurationError:
                expected = set()
            if left == expected:
                self.remove(missing)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _key(node: Node) -> str:
    return f"{node.column}_{node.scale}"
