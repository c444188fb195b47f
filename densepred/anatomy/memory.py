"""What a training step will hold in memory, without running one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from densepred.anatomy.stages import storage
from densepred.module import DensePredictor
from densepred.sample import Kind
from densepred.tasks.base import Task


class StepMemory(NamedTuple):
    """Bytes held at the end of a training step's forward pass, and by the optimizer's step.

    Args:
        weights: Parameters and buffers.
        gradients: One for each trained parameter.
        optimizer: Its state: momentum, second moments.
        activations: What the network and the losses keep for the backward pass.
        batch: Images and targets.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        """All of them. A device needs a little more: workspaces of convolutions, fragmentation."""
        return sum(self)


def step_memory(module: DensePredictor, batch_size: int, size: tuple[int, int]) -> StepMemory:
    """Plans a step in float32 by running it on the meta device, where nothing is computed.

    Under half precision about half the activations, and as much of the rest, since weights stay in float32.

    Args:
        module: On the meta device; its optimizer takes a step, so throw it away afterwards.
        batch_size: Images in a batch.
        size: Height and width of the images.
    """
    network = module.network.train()
    height, width = size
    images = torch.zeros(batch_size, network.encoder.in_channels, height, width, dtype=torch.uint8, device="meta")
    tasks = [task for task in module.tasks if isinstance(task, Task)]
    batch = {"image": images, **{task.name: _target(task, batch_size, network.padded_size(*size)) for task in tasks}}
    own = {storage(tensor) for tensor in [*module.parameters(), *module.buffers(), *batch.values()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        planes = network.planes(images)
        padded = {**batch, "image": images.new_empty(batch_size, images.shape[1], *network.padded_size(*size))}
        total = sum(
            task.loss_from_planes(value, padded)
            for task in tasks
            for key, value in planes.items()
            if key.split("/")[0] == task.name
        )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer = module.build_optimizer()
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    del total
    return StepMemory(
        _bytes([*module.parameters(), *module.buffers()]),
        _bytes(trained),
        _bytes([value for value in state if value.ndim]),
        sum(kept.values()),
        _bytes(list(batch.values())),
    )


def _target(task: Task, batch_size: int, size: tuple[int, int]) -> Tensor:
    if task.kind is Kind.LABEL and getattr(task, "mode", "multiclass") != "multilabel":
        return torch.zeros(batch_size, *size, dtype=torch.uint8, device="meta")
    channels = {Kind.DEPTH: 1, Kind.NORMALS: 3}.get(task.kind, task.out_channels)
    return torch.zeros(batch_size, channels, *size, device="meta")


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
