"""What can be found out about a training step that went wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from densepred.network import DenseNetwork
from densepred.tasks.base import Batch

_MOST_NAMES = 16
_MOST_FOUND = 3


@dataclass
class Failure:
    """A step that went wrong.

    Attributes:
        step: Its number, counted from 0 as in metrics.csv.
        what: What is wrong, such as "the loss of 'depth' is nan".
        losses: Each task's, as numbers.
        names: The batch's images.
        rates: The learning rate of each group.
        findings: What was looked at, and what was found.
        advice: What helps.
    """

    step: int
    what: str
    losses: dict[str, float]
    names: list[str]
    rates: dict[str, float] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def text(self, checkpoint: str) -> str:
        """All of it as lines, with where to continue from."""
        names = ", ".join(self.names[:_MOST_NAMES]) or "the batch has no names"
        if len(self.names) > _MOST_NAMES:
            names += f" and {len(self.names) - _MOST_NAMES} more"
        rows = {
            "losses": ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items()),
            "images": names,
            "learning rates": ", ".join(f"{name} {rate:.3g}" for name, rate in self.rates.items()),
            **self.findings,
            "checkpoint": checkpoint,
        }
        width = max(map(len, rows)) + 2
        lines = [f"Training stopped at step {self.step}: {self.what}."]
        lines += [f"  {key + ':':<{width}}{value}" for key, value in rows.items() if value]
        return "\n".join([*lines, "What helps:", *(f"  - {line}" for line in self.advice)])


def learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    """The current rate of each group of parameters, by its name."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {str(group.get("name", index)): float(group["lr"]) for index, group in enumerate(groups)}


def batch_names(batch: Batch) -> list[str]:
    """The images of a batch."""
    return [str(name) for name in batch.get("name", [])]


def look_at_batch(batch: Batch) -> str:
    """Which inputs and targets hold values that are not finite."""
    bad = {
        key: _not_finite(value)
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all()
    }
    if not bad:
        return "finite"
    names = batch_names(batch)
    parts = []
    for key, images in bad.items():
        where = [names[i] if i < len(names) else f"image {i} of the batch" for i in images]
        parts.append(f"{key} is not finite in {_some(where)}")
    return "; ".join(parts)


def _not_finite(value: Tensor) -> list[int]:
    return [index for index, one in enumerate(value) if not one.isfinite().all()]


def look_at_gradients(module: nn.Module) -> str:
    """The norm of the gradient, before clipping, and which parameters' gradients are not finite."""
    found = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
    if not found:
        return ""
    norm = torch.nn.utils.get_total_norm([gradient for _, gradient in found])
    bad = [name for name, gradient in found if not gradient.isfinite().all()]
    return f"{float(norm):.4g}" + (f", not finite in {_some(bad)} (of {len(found)})" if bad else "")


def look_at_parameters(module: nn.Module) -> str:
    """Which parameters and running statistics are not finite."""
    bad = list(not_finite(module))
    return f"not finite in {_some(bad)}" if bad else "finite"


def not_finite(module: nn.Module) -> Iterator[str]:
    """The names of parameters, and of batch norm's running statistics, that hold anything but finite numbers."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    tensors |= {name: value for name, value in module.named_buffers() if "running_" in name}
    for name, value in tensors.items():
        if not value.detach().isfinite().all():
            yield name


def look_at_layers(module: Any, batch: Batch) -> str:
    """The first layer whose output is not finite when the network sees the batch again."""
    network = getattr(module, "network", None)
    if not isinstance(network, DenseNetwork):
        return ""
    first: list[str] = []
    names = {layer: name for name, layer in network.named_modules() if not list(layer.children())}

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        if not first and any(not tensor.isfinite().all() for tensor in _tensors(output)):
            entered = all(bool(tensor.isfinite().all()) for tensor in _tensors(inputs))
            first.append(f"{names[layer]} ({type(layer).__name__}; its input is {'' if entered else 'not '}finite)")

    hooks = [layer.register_forward_hook(look) for layer in names]
    try:
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            planes = network.planes(batch["image"])
    finally:
        for hook in hooks:
            hook.remove()
    if first:
        return f"first output that is not finite: {first[0]}"
    bad = [name for name, value in planes.items() if not value.isfinite().all()]
    return f"planes that are not finite: {_some(bad)}" if bad else "all outputs are finite"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_FOUND
    return ", ".join(names[:_MOST_FOUND]) + (f" and {more} more" if more > 0 else "")


def advice(trainer: pl.Trainer, failure: Failure, exploded: bool) -> list[str]:
    """What helps against a failure, the likeliest first."""
    found = failure.findings
    lines: list[str] = []
    if "not finite" in found.get("batch", ""):
        lines.append(
            "Mend or leave out these images: values that are not known are 0 in depth, the zero vector in normals, 255 "
            "in labels, never NaN or infinite."
        )
    elif "not finite" in found.get("parameters", ""):
        lines.append("The weights were not finite before this step: an earlier one was too large, or they came so.")
    elif found.get("layers") == "all outputs are finite" and not exploded:
        lines.append(
            "The network's outputs are finite, so the loss or its gradient divides by zero, or takes the logarithm or "
            "root of it, on these targets: look at them, and at a loss of your own."
        )
    if str(trainer.precision).startswith(("16", "bf16")):
        lines.append(f"precision is {trainer.precision}: try --trainer.precision 32-true, which has the range for it.")
    rate = max(failure.rates.values(), default=0.0)
    lines.append(
        f"Learn more slowly: the highest rate is {rate:.3g}; try a tenth of it, or `densepred tune`, and a warm-up."
    )
    if not trainer.gradient_clip_val:
        lines.append("Clip the gradient: --trainer.gradient_clip_val 1.")
    return lines
