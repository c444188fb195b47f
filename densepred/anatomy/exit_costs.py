"""What an answer costs at each exit of a network."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densepred.network import DenseNetwork


class ExitCosts(NamedTuple):
    """Multiply-accumulate operations for one image, in convolutions and matrix products.

    Args:
        encoder: Of the encoder up to each exit.
        heads: Of each exit's answer.

    Example:
        >>> costs = ExitCosts(encoder=(10, 25), heads=(2, 3))
        >>> costs.directly, costs.on_the_way
        ((12, 28), (12, 30))
    """

    encoder: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def directly(self) -> tuple[int, ...]:
        """Of an answer at each exit, where it was clear that no earlier one would be asked for."""
        return tuple(way + head for way, head in zip(self.encoder, self.heads, strict=True))

    @property
    def on_the_way(self) -> tuple[int, ...]:
        """Of an answer at each exit, where all earlier ones have answered too."""
        return tuple(way + sum(self.heads[: k + 1]) for k, way in enumerate(self.encoder))


def exit_costs(network: DenseNetwork, size: tuple[int, int]) -> ExitCosts:
    """Counts what each exit costs, without computing anything.

    Args:
        network: Any; without exits there is one, the end.
        size: Height and width of the image.

    Example:
        >>> from densepred.decoders.anytime import AnytimeDecoder
        >>> from densepred.encoders.msdnet import MSDNetEncoder
        >>> encoder = MSDNetEncoder(blocks=(1, 1), growth=4, width=8, factors=(1, 2), bottlenecks=(1, 2))
        >>> exit_costs(DenseNetwork(encoder, AnytimeDecoder, {"depth": 1}), (64, 64)).encoder
        (1367040, 1468416)
    """
    # nothing of the network is copied but its shape
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in network.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in network.buffers()}
    shape = copy.deepcopy(network, memo).eval()
    for module in shape.modules():
        module._forward_hooks.clear()  # whoever listens to the network hears nothing
    image = torch.zeros(1, network.encoder.in_channels, *size, device="meta")
    ways, heads = [], []
    spent = 0
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        for k, maps in enumerate(shape.maps_at_exits(image)):
            ways.append(flops.get_total_flops() // 2 - spent)
            shape.planes_at_exit(k, maps, size)
            heads.append(flops.get_total_flops() // 2 - spent - ways[-1])
            spent += heads[-1]
    return ExitCosts(tuple(ways), tuple(heads))
