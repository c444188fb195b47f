"""A network's stages in the order in which they run: sizes, channels, parameters, operations, memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.encoders.stages import tensors_in
from densepred.network import DenseNetwork
from densepred.refine.base import Refiner


@dataclass
class Stage:
    """One line of a network's description.

    Args:
        name: `encoder 2`, or the decoder of a task; it has a line for each size at which it works.
        tensor: What the stage ends with, (B, C, H, W).
        parameters: Numbers that are learned in it.
        macs: Multiply-accumulate operations of its convolutions and matrix products, for the whole batch.
        saved_bytes: What training keeps for the backward pass.
    """

    name: str
    tensor: Tensor
    parameters: int = 0
    macs: int = 0
    saved_bytes: int = 0


def trace(network: DenseNetwork, image: Tensor) -> list[Stage]:
    """Runs the network once and tells its stages apart.

    The encoder has a stage for each of its maps: what ran since the map before. A decoder has one for each size at
    which it works. On the meta device nothing is computed and only the figures are found; elsewhere the stages' tensors
    hold values, and gradients where the image or the parameters ask for them.

    Args:
        network: In training mode the auxiliary decoders are seen too.
        image: (B, C, H, W) of sizes that are multiples of the encoder's `multiple`, on the network's device.

    Example:
        >>> import torch
        >>> from densepred.decoders.pointwise import PointwiseDecoder
        >>> from densepred.encoders.vgg import VGGEncoder
        >>> with torch.device("meta"):
        ...     network = DenseNetwork(VGGEncoder("vgg11"), PointwiseDecoder, {"depth": 1})
        ...     stages = trace(network.eval(), torch.zeros(1, 3, 32, 32))
        >>> [(stage.name, tuple(stage.tensor.shape[1:]), stage.macs) for stage in stages][:2]
        [('encoder 1', (64, 32, 32), 1769472), ('encoder 2', (128, 16, 16), 18874368)]
    """
    with _Watch(network) as watch:
        features = network.encoder(image)
        stages = watch.encoder_stages(features)
        parts: list[tuple[str, nn.Module]] = [("decoder", network.decoders)]
        if network.training and network.auxiliary_decoders is not None:
            parts += [("auxiliary", decoders) for decoders in network.auxiliary_decoders]
        for unseen, (kind, decoders) in enumerate(parts):
            for name, decoder in decoders.named_children():
                planes = decoder(features[: len(features) - unseen])
                stages += watch.decoder_stages(f"{kind} {name}", planes)
        if network.refine is not None:
            stages += _refined(network, network.refine, image, features, watch)
    return stages


def _refined(
    network: DenseNetwork, refine: Refiner, image: Tensor, features: list[Tensor], watch: "_Watch"
) -> Iterator[Stage]:
    """The refiner's stage for each task that it refines."""
    size = (image.shape[-2], image.shape[-1])
    planes = network.planes_from(features, size)
    for name in network.refined_tasks:
        scores = F.interpolate(planes[name], size=size, mode="bilinear", align_corners=False)
        watch._take_calls([])  # what made the planes has its lines already
        (stage,) = watch.decoder_stages(f"refine {name}", refine.planes(scores, image))
        stage.parameters = sum(p.numel() for p in refine.parameters() if p.requires_grad)
        yield stage


class _Call(NamedTuple):
    """A module that ran, and what was spent since the one before it ended."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: int
    macs: int
    saved_bytes: int


class _Watch(ExitStack):
    """Listens to every module while it runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[_Call] = []
        self.counted: set[int] = set()
        self.own = {storage(p) for p in [*network.parameters(), *network.buffers()]}
        self.kept: set[int] = set()
        self.saved_bytes = self.saved_before = self.macs_before = 0
        self.flops = FlopCounterMode(display=False)

    def __enter__(self) -> Self:
        super().__enter__()
        for module in self.network.modules():
            self.callback(module.register_forward_hook(self._after).remove)
        self.enter_context(saved_tensors_hooks(self._keep, lambda tensor: tensor))
        self.enter_context(self.flops)
        return self

    def _keep(self, tensor: Tensor) -> Tensor:
        # what is kept stays alive with the graph, so that no storage's address comes twice
        if storage(tensor) not in self.own and storage(tensor) not in self.kept:
            self.kept.add(storage(tensor))
            self.saved_bytes += tensor.untyped_storage().nbytes()
        return tensor

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        new = [p for p in module.parameters() if id(p) not in self.counted and p.requires_grad]
        self.counted |= {id(p) for p in new}
        self._note(list(tensors_in(inputs)), list(tensors_in(output)), sum(p.numel() for p in new))

    def _note(self, inputs: list[Tensor], outputs: list[Tensor], parameters: int) -> None:
        macs = self.flops.get_total_flops() // 2
        spent = (macs - self.macs_before, self.saved_bytes - self.saved_before)
        self.calls.append(_Call(inputs, outputs, parameters, *spent))
        self.macs_before, self.saved_before = macs, self.saved_bytes

    def _take_calls(self, outputs: list[Tensor]) -> list[_Call]:
        """What ran since the last time, with what came after the last module."""
        self._note([], outputs, 0)
        calls, self.calls = self.calls, []
        return calls

    def encoder_stages(self, maps: list[Tensor]) -> list[Stage]:
        """A stage for each map: the calls up to the one that made it, or up to the first one that reads it."""
        calls = self._take_calls([])
        stages = []
        start = 0
        for i, feature in enumerate(maps):
            # of the modules that made it the innermost; what puts all maps into a list made none of them
            made = [k + 1 for k, call in enumerate(calls) if len(call.outputs) == 1 and call.outputs[0] is feature]
            read = [k for k, call in enumerate(calls) if any(tensor is feature for tensor in call.inputs)]
            # a map that no module made or read by itself takes nothing from the next one's share
            end = len(calls) if i == len(maps) - 1 else max([*made, *read, start][0], start)
            stages.append(_stage(f"encoder {i + 1}", feature, calls[start:end]))
            start = end
        return stages

    def decoder_stages(self, name: str, planes: Tensor) -> list[Stage]:
        """A stage for each size at which the decoder works, in the order in which they first come."""
        runs: dict[tuple[int, int], list[_Call]] = {}
        ends: dict[tuple[int, int], Tensor] = {}
        size = (planes.shape[-2], planes.shape[-1])
        for call in self._take_calls([planes]):
            for output in call.outputs:
                if output.ndim == 4:
                    size = (output.shape[-2], output.shape[-1])
                    ends[size] = output
            runs.setdefault(size, []).append(call)
        runs[size] = runs.pop(size)  # the size of the planes last
        return [_stage(name, ends[size], run) for size, run in runs.items()]


def _stage(name: str, tensor: Tensor, calls: list[_Call]) -> Stage:
    costs = [(call.parameters, call.macs, call.saved_bytes) for call in calls]
    return Stage(name, tensor, *(sum(cost) for cost in zip(*costs, strict=True)) if costs else ())


def storage(tensor: Tensor) -> int:
    """Which memory a tensor is a view of."""
    return int(tensor.untyped_storage()._cdata)
