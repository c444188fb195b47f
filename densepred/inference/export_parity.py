"""How far an exported file answers as its network does, what it costs, and what 8 bits cost."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densepred.inference.export_runtimes import Runtime, SizeRefusedError
from densepred.sample import Kind
from densepred.tasks.base import Batch, Task

TOLERANCE = 1e-4
"""Of numbers: metres (relative beyond one metre), components of vectors, planes."""
EQUAL_LABELS = 0.9999
"""The share of labels that must be the same."""


@dataclass
class Agreement:
    """How far answers are from the network's, gathered image by image.

    Args:
        task: Whose answers.

    Attributes:
        worst: The largest difference of numbers, divided by the network's number where that is above 1.
        differing: Pixels whose labels differ.
        pixels: Pixels seen.
        refused: Sizes of images that the file does not take.

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> agreement = Agreement(Depth())
        >>> agreement.update(torch.tensor([[[[2.0, 0.5]]]]), torch.tensor([[[[2.2, 0.5]]]]))
        >>> round(agreement.worst, 3), agreement.holds
        (0.1, False)
    """

    task: Task
    worst: float = 0.0
    differing: int = 0
    pixels: int = 0
    refused: list[str] = field(default_factory=list)

    def update(self, network: Tensor, exported: Tensor) -> None:
        """One more image, or batch."""
        self.pixels += network.numel()
        if network.shape != exported.shape or network.dtype != exported.dtype:
            self.worst, self.differing = float("inf"), self.differing + network.numel()
        elif self.task.kind is Kind.LABEL:
            self.differing += int((network != exported).sum())
        else:
            distance = (network - exported).abs() / network.abs().clamp(min=1)
            # NaN compares as neither larger nor smaller
            self.worst = max(self.worst, float(distance.nan_to_num(float("inf")).max()))

    @property
    def equal(self) -> float:
        """The share of pixels whose labels are equal."""
        return 1 - self.differing / max(self.pixels, 1)

    @property
    def holds(self) -> bool:
        """Whether the exported file may stand for the network."""
        return self.pixels > 0 and self.equal >= EQUAL_LABELS and self.worst <= TOLERANCE

    def plain(self) -> dict[str, Any]:
        """For the report."""
        measure = {"equal": self.equal} if self.task.kind is Kind.LABEL else {"worst": self.worst}
        return {**measure, "pixels": self.pixels, "holds": self.holds, "refused": self.refused}


def agreement(
    tasks: Sequence[Task], network: Runtime, exported: Runtime, images: Iterable[Tensor]
) -> dict[str, Agreement]:
    """How far an exported file agrees with its network, by task name.

    Args:
        tasks: What both predict.
        network: What is right.
        exported: What is compared.
        images: (B, C, H, W), uint8, of any sizes.
    """
    found = {task.name: Agreement(task) for task in tasks}
    for image in images:
        try:
            ours = exported(image)
        except SizeRefusedError:
            for one in found.values():
                one.refused.append(f"{image.shape[-2]} x {image.shape[-1]}")
            continue
        right = network(image)
        for task in tasks:
            found[task.name].update(right[task.name], ours[task.name])
    return found


def random_images(channels: int, multiple: int, seed: int = 0) -> list[Tensor]:
    """Noise of sizes that are and are not multiples of what the encoder wants, wide and tall, one and two at once."""
    generator = torch.Generator().manual_seed(seed)
    step = max(multiple, 8)
    sides = [(4 * step, 4 * step), (4 * step - 1, 3 * step + 1), (3 * step + step // 2, 7 * step - 3)]
    shapes = [(1 + i % 2, channels, max(h, 64), max(w, 64)) for i, (h, w) in enumerate(sides)]
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


def scores(tasks: Sequence[Task], runtime: Runtime, batches: Iterable[Batch]) -> dict[str, float]:
    """Metrics of what a runtime predicts, by `<task>/<metric>`.

    Args:
        tasks: Their metrics are taken; batches may lack the targets of some.
        runtime: Predicts.
        batches: With `image`, uint8, and targets.
    """
    metrics = {task.name: task.metrics("test") for task in tasks}
    seen: set[str] = set()
    for batch in batches:
        answers = runtime(batch["image"])
        for task in tasks:
            if task.name in batch:
                metrics[task.name].update(answers[task.name], task.target(batch))
                seen.add(task.name)
    return {
        f"{name}/{key}": float(value)
        for name, metric in metrics.items()
        if name in seen
        for key, value in metric.compute().items()
    }


@dataclass(frozen=True)
class Latency:
    """How long one image takes, in milliseconds.

    Args:
        p50: Half the calls take at most this.
        p95: 19 of 20 calls do.
        calls: How many were timed.
    """

    p50: float
    p95: float
    calls: int

    def plain(self) -> dict[str, float]:
        """For the report."""
        return {"p50_ms": self.p50, "p95_ms": self.p95, "calls": self.calls}


def latencies(runtimes: Mapping[str, Runtime], image: Tensor, calls: int = 20) -> dict[str, Latency]:
    """Times runtimes in turns, so that what else the machine does meets all of them alike.

    Args:
        runtimes: By name.
        image: What they are asked about.
        calls: Of each; two more come before, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for call in range(calls + 2):
        for name, runtime in runtimes.items():
            start = time.perf_counter()
            runtime(image)
            if call >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: _latency(measured) for name, measured in seconds.items()}


def _latency(seconds: Sequence[float]) -> Latency:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
    return Latency(round(float(p50), 2), round(float(p95), 2), len(seconds))
