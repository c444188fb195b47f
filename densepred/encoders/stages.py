"""Which modules and parameters of an encoder make which of its maps."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call

from densepred.encoders.base import Encoder

_SIDE = 256  # pixels of the image that is traced: the fully connected window of an unpadded VGG needs 224


@dataclass
class EncoderStage:
    """What a map needs that no finer map needs.

    Args:
        modules: Modules whose output is seen by this map and by no finer one.
        parameters: Parameters likewise.
    """

    modules: list[nn.Module] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)


def encoder_stages(encoder: Encoder) -> list[EncoderStage]:
    """The stages of any encoder, one a map, finest first: of a ResNet the stem and its four layers.

    Nothing is declared by an encoder: it is run once on the meta device, where nothing is computed, and the graph of
    each map tells what the map depends on. What no map depends on counts to the last stage.

    Args:
        encoder: Its modes, gradients and numbers stay as they are.

    Example:
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> encoder = ResNetEncoder("resnet18")
        >>> stages = encoder_stages(encoder)
        >>> [sum(parameter.numel() for parameter in stage.parameters) for stage in stages]
        [9536, 147968, 525568, 2099712, 8393728]
        >>> encoder.bn1 in stages[0].modules, encoder.layer4 in stages[4].modules
        (True, True)
    """
    parameters = {name: p.detach().to("meta").requires_grad_() for name, p in encoder.named_parameters()}
    outputs: list[tuple[nn.Module, Node]] = []
    maps = _trace(encoder, parameters, outputs)
    last = len(maps) - 1
    nodes, leaves = _first_maps(maps)
    stages = [EncoderStage() for _ in maps]
    for name, parameter in encoder.named_parameters():
        stages[leaves.get(id(parameters[name]), last)].parameters.append(parameter)
    # a module that runs several times belongs to the last of its stages: it rests only when all of its work does
    place: dict[nn.Module, int] = {}
    for module, node in outputs:
        place[module] = max(place.get(module, 0), nodes.get(node, last))
    for module in encoder.modules():
        stages[place.get(module, last)].modules.append(module)
    return stages


def _trace(encoder: Encoder, parameters: dict[str, Tensor], outputs: list[tuple[nn.Module, Node]]) -> list[Tensor]:
    """The maps of an image without data; notes the graph's node of each module's outputs."""

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.extend((module, tensor.grad_fn) for tensor in tensors_in(output) if tensor.grad_fn is not None)

    state = {**parameters, **{name: buffer.to("meta") for name, buffer in encoder.named_buffers()}}
    side = -(-_SIDE // encoder.multiple) * encoder.multiple
    modes = {module: module.training for module in encoder.modules()}
    with ExitStack() as stack, torch.enable_grad():
        for module in modes:
            stack.callback(module.register_forward_hook(note).remove)
        # as in evaluation: a stage is not drawn by chance, and statistics of one cell are not asked for
        encoder.eval()
        try:
            image = torch.empty(1, encoder.in_channels, side, side, device="meta")
            maps: list[Tensor] = functional_call(encoder, state, image)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return maps


def _first_maps(maps: list[Tensor]) -> tuple[dict[Node, int], dict[int, int]]:
    """The first map that each node of the graph is reached from, and each parameter, by its id."""
    nodes: dict[Node, int] = {}
    leaves: dict[int, int] = {}
    for index, feature in enumerate(maps):
        waiting = [feature.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in nodes:
                continue
            nodes[node] = index
            if (leaf := getattr(node, "variable", None)) is not None:
                leaves[id(leaf)] = index
            waiting += [following for following, _ in node.next_functions]
    return nodes, leaves


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors that a module takes or gives, however its lists, tuples and dicts hold them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_in(item)
    elif isinstance(output, dict):
        yield from tensors_in(list(output.values()))
