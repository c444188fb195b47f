"""What a network says before the first step: its losses against those of knowing nothing, and its activations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densepred.module import DensePredictor
from densepred.sample import Kind, pad_planes
from densepred.tasks.base import Batch, Task
from densepred.tuning.bench import Bench

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish)
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class InitialLoss:
    """A task's loss before the first step, and what it is measured against.

    Args:
        task: Its name.
        loss: Of the network as it is initialised, weights of the tasks not applied.
        blank: Of planes that are zero everywhere: ln C for cross-entropy over C classes, a right angle for normals.
        constant: Of the best constant answer, where the loss can compare one (the mean predictor of a regression).
        spread: Standard deviation of the planes.
        planes: Their number.
        verdict: "good", "explained" or "bad".
        reason: In words.
    """

    task: str
    loss: float
    blank: float
    constant: float | None
    spread: float
    planes: int
    verdict: str
    reason: str


def judge_initial_loss(loss: float, blank: float, spread: float, planes: int) -> tuple[str, str]:
    """Compares the first loss with that of planes of zeros.

    Planes drawn at random are overconfident: independent normal scores of variance s² cost s²/2 more than zeros under
    cross-entropy (exactly so in the limit of many classes), which explains a moderate excess.

    Args:
        loss: Of the network.
        blank: Of zeros.
        spread: Standard deviation of its planes.
        planes: Their number.

    Example:
        >>> judge_initial_loss(2.41, math.log(11), 0.0, 11)
        ('good', 'ln 11 = 2.398, as it should be (the scores start at zero)')
    """
    if not math.isfinite(loss):
        return "bad", "not finite before the first step: look at the initialisation, the loss and the targets"
    expected = _name(blank, planes)
    room = 0.1 * max(abs(blank), 1e-3)
    if abs(loss - blank) <= room:
        return "good", f"{expected}, as it should be" + (" (the scores start at zero)" if spread < 1e-6 else "")
    if loss < blank:
        return "explained", f"below {expected}: the network knows something already (weights it starts from, a prior)"
    excess = spread**2 / 2
    if loss <= blank + excess + room:
        return "explained", (
            f"{expected}, and {loss - blank:.3g} more: scores of standard deviation {spread:.2g} cost up to "
            f"{excess:.3g}; scores that start at zero would not"
        )
    return "bad", (
        f"{loss / blank:.2g} times what knowing nothing costs ({expected}), and scores of standard deviation "
        f"{spread:.2g} don't explain it: look at the initialisation of the last layers and at the targets' unit"
    )


def _name(blank: float, planes: int) -> str:
    for count in dict.fromkeys((planes, 2)):
        if count > 1 and math.isclose(blank, math.log(count), rel_tol=1e-3):
            return f"ln {count} = {blank:.4g}"
    return f"{blank:.4g}"


@torch.no_grad()
def initial_losses(module: DensePredictor, batches: Sequence[Batch]) -> list[InitialLoss]:
    """Each task's loss before the first step, over some batches, in training mode as the first step sees it."""
    module.train()
    rows: dict[str, list[tuple[float, ...]]] = {}
    tasks = [task for task in module.tasks if isinstance(task, Task)]
    for batch in batches:
        size = module.network.padded_size(batch["image"].shape[-2], batch["image"].shape[-1])
        padded = {**batch, "image": pad_planes(batch["image"], size, Kind.IMAGE)}
        for task in tasks:
            padded |= task.pad(batch, size)
        planes = module.network.planes(batch["image"])
        for task in tasks:
            mine = planes[task.name]
            found = task.loss_from_planes(mine, padded), task.loss_from_planes(torch.zeros_like(mine), padded)
            constant = _constant_loss(task, batch, batches)
            row = (*map(float, found), math.nan if constant is None else constant, float(mine.float().std()))
            rows.setdefault(task.name, []).append(row)
    result = []
    for task in tasks:
        loss, blank, constant, spread = (sum(column) / len(column) for column in zip(*rows[task.name], strict=True))
        verdict = judge_initial_loss(loss, blank, spread, task.out_channels)
        best = None if math.isnan(constant) else constant
        result.append(InitialLoss(task.name, loss, blank, best, spread, task.out_channels, *verdict))
    return result


def _constant_loss(task: Task, batch: Batch, batches: Sequence[Batch]) -> float | None:
    """The loss of the batches' mean, where a prediction is also what the loss sees."""
    target = task.target(batch)
    statistic = torch.stack([task.constant_statistic(task.target(one)) for one in batches]).sum(0)
    prediction = task.constant_prediction(statistic, target)
    if prediction.shape[:2] != (len(target), task.out_channels) or not prediction.is_floating_point():
        return None
    return float(task.compute_loss(prediction, batch))


class Activation(NamedTuple):
    """What one layer puts out at initialisation.

    Args:
        layer: Its name; `#2` is its second use.
        kind: Its class.
        mean: Of all its values.
        std: Their standard deviation.
        zeros: The share of values that are zero; of rectifiers only, else None.
        dead: The share of channels that are zero at every pixel of every image; of rectifiers only, else None.
    """

    layer: str
    kind: str
    mean: float
    std: float
    zeros: float | None
    dead: float | None


@torch.no_grad()
def activations(network: nn.Module, image: Tensor) -> list[Activation]:
    """Mean, spread and dead channels of every convolution, linear layer and rectifier, in the order in which they run.

    Args:
        network: Called with the image; its batch statistics move, so give one that is not needed afterwards.
        image: (B, C, H, W).
    """
    seen: list[Activation] = []
    uses: dict[str, int] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        uses[name] = uses.get(name, 0) + 1
        label = name if uses[name] == 1 else f"{name}#{uses[name]}"
        values = output.float()
        zeros = dead = None
        if isinstance(module, RECTIFIERS):
            channels = (values == 0).movedim(1 if values.ndim == 4 else -1, 0).flatten(1)
            zeros, dead = float(channels.float().mean()), float(channels.all(1).float().mean())
        seen.append(Activation(label, type(module).__name__, float(values.mean()), float(values.std()), zeros, dead))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in network.named_modules()
        if isinstance(module, WEIGHTED + RECTIFIERS)
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def judge_activations(layers: Sequence[Activation]) -> tuple[str, str]:
    """Whether signals neither vanish nor explode on their way, and most rectifiers answer.

    Layers that put out nothing but zero are left aside: scores and the last norms of residual blocks often start there.

    Args:
        layers: In the order in which they run.

    Example:
        >>> judge_activations([Activation(f"conv{k}", "Conv2d", 0.0, 0.1**k, None, None) for k in range(6)])[0]
        'bad'
    """
    if not all(math.isfinite(layer.std) for layer in layers):
        worst = next(layer.layer for layer in layers if not math.isfinite(layer.std))
        return "bad", f"{worst} puts out values that are not finite"
    alive = [layer for layer in layers if layer.std > 0]
    silent = len(layers) - len(alive)
    rest = f"; {silent} put out zero only, as scores and last norms of blocks may" if silent else ""
    if not alive:
        return "bad", "every layer puts out zero"
    dead = [layer for layer in alive if (layer.dead or 0) > 0.4]
    if dead:
        return "bad", f"{dead[0].layer} has {dead[0].dead:.0%} dead channels" + (
            f", {len(dead) - 1} more layers above 40 %" if len(dead) > 1 else ""
        ) + rest
    spreads = [layer.std for layer in alive if layer.kind in {kind.__name__ for kind in WEIGHTED}]
    least, most = min(spreads, default=1.0), max(spreads, default=1.0)
    if spreads and most / spreads[0] > 1e3:
        return "bad", f"the spread grows {most / spreads[0]:.0f}-fold from the first layer: activations explode{rest}"
    if spreads and least / spreads[0] < 1e-3:
        return "bad", f"the spread shrinks to {least / spreads[0]:.1g} of the first layer's: activations vanish{rest}"
    worst_dead = max((layer.dead or 0 for layer in alive), default=0)
    return "good", f"standard deviations from {least:.2g} to {most:.2g}, at most {worst_dead:.0%} dead channels{rest}"


class Checks(NamedTuple):
    """What was seen before the first step."""

    losses: list[InitialLoss]
    layers: list[Activation]
    verdict: str
    reason: str


def check_start(bench: Bench, batches: int = 4) -> Checks:
    """Initial losses and activations of a network on its own training batches.

    Args:
        bench: A run that has not begun; its batch statistics move.
        batches: Over how many the losses are averaged.
    """
    device = bench.trainer.strategy.root_device
    seen = [moved(batch, device) for batch in training_batches(bench, batches)]
    module = bench.model.to(device)
    losses = initial_losses(module, seen)
    layers = activations(module.network.train(), seen[0]["image"])
    return Checks(losses, layers, *judge_activations(layers))


def training_batches(bench: Bench, count: int) -> list[Batch]:
    """The first training batches, loaded in this process."""
    data = bench.datamodule
    data.num_workers = 0
    data.setup("fit")
    batches: list[Batch] = []
    for batch, _ in zip(data.train_dataloader(), range(count), strict=False):
        batches.append(batch)
    return batches


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
