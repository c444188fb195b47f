"""A trained network as one graph, from raw image to answers, that runs without densepred: torch.export."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork
from densepred.tasks.base import Task, upsample

Also = Literal["evidence", "planes"]
"""What an exported graph may answer beside predictions."""

# neither square nor a multiple of anything, two images, many cells in the coarsest map: sizes that look alike while the
# graph is traced, or like 1, would be taken for it for ever
_TRACED_SIZE = (2, 481, 610)


class DeployedNetwork(nn.Module):
    """A network with everything around it: a uint8 image goes in, what people want to know comes out.

    The image is padded to the encoder's `multiple`, normalised, run through the network; planes are upsampled,
    activated, turned into predictions and cropped to the image. Only tensor operations, so that it can be traced with
    free height, width and batch.

    Args:
        network: Is copied, in evaluation mode, on the CPU.
        tasks: What it predicts.
        also: More answers of each task: "evidence" (probabilities of the classes, logarithms of metres, unit vectors)
            as `<task>_evidence`, "planes" (what the decoder says, upsampled) as `<task>_planes`.

    Shape:
        image: (B, C, H, W), uint8, above 32 pixels a side.
        returns: by name: labels (B, H, W), metres (B, 1, H, W), unit vectors (B, 3, H, W); what `also` adds is
            (B, planes, H, W).

    Raises:
        ConfigurationError: If `also` asks for something else, or the network has a refiner.

    Example:
        >>> from densepred.decoders.fcn import FCNDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> from densepred.tasks.depth import Depth
        >>> network = DenseNetwork(ResNetEncoder("resnet18"), FCNDecoder, {"depth": 1})
        >>> answers = DeployedNetwork(network, [Depth()], also=["planes"])(torch.zeros(1, 3, 40, 50, dtype=torch.uint8))
        >>> {name: tuple(answer.shape) for name, answer in answers.items()}
        {'depth': (1, 1, 40, 50), 'depth_planes': (1, 1, 40, 50)}
    """

    def __init__(self, network: DenseNetwork, tasks: Sequence[Task], also: Sequence[Also] = ()) -> None:
        super().__init__()
        if unknown := set(also) - {"evidence", "planes"}:
            raise ConfigurationError(f"also: {', '.join(sorted(unknown))}; expected evidence or planes.")
        if network.refine is not None:
            raise ConfigurationError(
                f"{type(network.refine).__name__} cannot be exported: how large its lattice is depends on the colours "
                "of each image, which a graph cannot follow. Export with --format safetensors (densepred reads it), or "
                "the network without it (network.refine = None), and refine the probabilities where it runs."
            )
        # what runs in training alone is neither traced nor stored
        self.network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        self.network.auxiliary_decoders = None
        _replace_zero_padding(self.network)
        self.tasks = nn.ModuleList(copy.deepcopy(task).cpu().eval().requires_grad_(False) for task in tasks)
        self.also = tuple(also)

    @property
    def outputs(self) -> list[str]:
        """Names of the answers, in their order."""
        return [name for task in self._each() for name in (task.name, *(f"{task.name}_{more}" for more in self.also))]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """A raw image to answers by name."""
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        maps = self.network.encoder(_extended(image, size) if self.network.encoder.multiple > 1 else image)
        planes: dict[str, Tensor] = self.network._decode(self.network.decoders, maps)
        answers: dict[str, Tensor] = {}
        for task in self._each():
            answers |= self._answers(task, planes[task.name], size)
        rows, columns = torch.arange(height), torch.arange(width)
        # cropped last, and not by a view: torch.export would ask how a view lies in memory, and refuse all images for
        # which the answer is another than for the traced one
        return {name: answer.index_select(-2, rows).index_select(-1, columns) for name, answer in answers.items()}

    def _each(self) -> list[Task]:
        return cast(list[Task], list(self.tasks))

    def _answers(self, task: Task, planes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        if self.network.encoder.multiple == 1:  # stride 1 planes of encoders with sizes of their own may go beyond
            planes = planes[..., : size[0], : size[1]]
        output = task.output_from_planes(planes, size)
        answers = {task.name: task.predict(output)}
        if "evidence" in self.also:
            answers[f"{task.name}_evidence"] = task.evidence(output)
        if "planes" in self.also:
            answers[f"{task.name}_planes"] = upsample(planes, size)
        return answers


class _ZerosBehind(nn.Module):
    """Zero padding right and bottom by concatenation.

    onnxruntime fuses a padding with the pooling behind it, and then refuses dilated poolings, whose padding exceeds the
    window (1.31).
    """

    def __init__(self, right: int, bottom: int) -> None:
        super().__init__()
        self.right = right
        self.bottom = bottom

    def forward(self, values: Tensor) -> Tensor:
        values = torch.cat([values, torch.zeros_like(values[..., :1]).expand(-1, -1, -1, self.right)], -1)
        return torch.cat([values, torch.zeros_like(values[..., :1, :]).expand(-1, -1, self.bottom, -1)], -2)


def _replace_zero_padding(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.ZeroPad2d) and layer.padding[0] == layer.padding[2] == 0:
                setattr(parent, name, _ZerosBehind(layer.padding[1], layer.padding[3]))


def _extended(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image with its last row and column repeated; without a branch for sizes that need none."""
    rows = torch.arange(size[0]).clamp(max=image.shape[-2] - 1)
    columns = torch.arange(size[1]).clamp(max=image.shape[-1] - 1)
    return image.index_select(-2, rows).index_select(-1, columns)


def traced(deployed: DeployedNetwork) -> ExportedProgram:
    """The graph, with free batch, height and width.

    Raises:
        ConfigurationError: If a part of the network cannot be traced.
    """
    image = torch.zeros(_TRACED_SIZE[0], deployed.network.encoder.in_channels, *_TRACED_SIZE[1:], dtype=torch.uint8)
    free = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    with refusal("torch.export"), torch.no_grad():
        return torch.export.export(deployed, (image,), dynamic_shapes=free, strict=False)


def export_program(
    network: DenseNetwork, tasks: Sequence[Task], path: str | Path, also: Sequence[Also] = ()
) -> ExportedProgram:
    """Writes a network as a torch.export program (.pt2): `torch.export.load(path).module()(image)` needs PyTorch alone.

    Batch, height and width are free, but torch.export leaves out what it cannot prove: images so small that some map
    would be a single cell (with `DeconvNetDecoder` below some 450 pixels), and with unpadded FC-DenseNets all sizes but
    those of one pattern of odd and even maps. The program refuses those; ONNX files take them.

    Args:
        network: Any.
        tasks: What it predicts.
        path: The file; it is written whole or not at all.
        also: See `DeployedNetwork`.

    Raises:
        ConfigurationError: If the network cannot be traced.
    """
    program = traced(DeployedNetwork(network, tasks, also))
    write_program(program, Path(path))
    return program


def write_program(program: ExportedProgram, path: Path) -> None:
    """Writes a graph that was traced already."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


@contextmanager
def refusal(tool: str) -> Iterator[None]:
    """Says what a tool could not do with a network, in one message."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # these tools raise anything
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ConfigurationError(
            f"{tool} cannot express this network with free height and width: {type(error).__name__}: {reason}\n"
            "Format safetensors works for every network, with densepred; the encoders and decoders of densepred that "
            "can be exported are listed by experiments/benchmarks/export.py."
        ) from error
