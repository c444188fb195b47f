"""Answers within a budget: networks with several exits are left as soon as time is up or the answer is sure."""

import re
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, Self

import torch
from torch import Tensor

from densepred.anatomy.exit_costs import ExitCosts, exit_costs
from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.network import DenseNetwork
from densepred.tasks.base import Task

_UNITS = {"mac": 1, "kmac": 1e3, "mmac": 1e6, "gmac": 1e9, "tmac": 1e12, "us": 1e-6, "ms": 1e-3, "s": 1.0}


class Budget(NamedTuple):
    """What an answer may cost.

    Args:
        macs: Multiply-accumulate operations for an image.
        seconds: From a batch to its planes.

    Raises:
        ConfigurationError: Of `parse`, if the text is no amount.

    Example:
        >>> Budget.parse("0.5 gmac"), Budget.parse("200ms")
        (Budget(macs=500000000, seconds=None), Budget(macs=None, seconds=0.2))
    """

    macs: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """A number and its unit: mmac, gmac, ms, s."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt]?mac)s?|(us|ms|s))\s*", text.lower())
        number, unit = (found[1], found[2] or found[3]) if found else ("0", "")
        if float(number) == 0:
            raise ConfigurationError(
                f"budget {text!r}: expected operations, such as 0.5gmac or 300mmac, or a time, such as 200ms or 1.5s."
            )
        amount = float(number) * _UNITS[unit]
        return cls(macs=round(amount)) if unit.endswith("mac") else cls(seconds=amount)


class AnytimeEvidence(NetworkEvidence):
    """What a network with several exits says within a budget, or as soon as it is sure.

    What lies behind the exit that is taken is not computed, and neither are the heads of exits that are passed by
    unasked. With a budget of operations the last exit that it pays for answers. With a budget of time the network goes
    on while the next exit will be reached in time, going by how long the same step took the last time, and the first
    time by the operations so far; the first exit always answers. With thresholds each image leaves at the first exit
    that is at least as sure of it; those that are left go on, a smaller batch. How sure an exit is of an image is the
    mean over pixels (of the planes) of the probability of the label that it would give; of several tasks with
    probabilities the mean.

    Args:
        network: In evaluation mode, with several exits.
        tasks: Its tasks.
        budget: What an answer may cost; none for any.
        thresholds: How sure each exit but the last must be, or one number for all of them; empty: none is left early.

    Attributes:
        taken: How many images have left at each exit, counted from 1.
        macs: Operations for all of them.
        noted: How sure each exit but the last was, a row an image, of batches that none has left early: for
            `densepred.inference.budgeted.calibrated`.
        seen: How many images of each size there were.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If the network has one exit alone; if the thresholds are not one an exit, or no task has
            probabilities to be sure by; while it runs, if the first exit costs more operations than the budget has.

    Reference:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger. Multi-Scale Dense Networks for Resource Efficient Image
        Classification. ICLR 2018. arXiv:1703.09844 (of images; the mean over pixels is ours).
    """

    def __init__(
        self,
        network: DenseNetwork,
        tasks: Sequence[Task],
        budget: Budget | None = None,
        thresholds: Sequence[float] = (),
    ) -> None:
        super().__init__(network, tasks)
        self.thresholds = _checked(network, self.tasks, tuple(thresholds))
        self.budget = budget or Budget()
        self.taken: Counter[int] = Counter()
        self.macs = 0
        self.noted: list[list[float]] = []
        self.seen: Counter[tuple[int, int]] = Counter()
        self._costs: dict[tuple[int, int], ExitCosts] = {}
        self._seconds: dict[tuple[int, ...], float] = {}

    def planes(self, image: Tensor) -> dict[str, Tensor]:
        """Planes by task name, each image's from the exit at which it left."""
        size = (image.shape[-2], image.shape[-1])
        costs = self.costs(size)
        self.seen[size] += len(image)
        last = self._last(costs)
        here = torch.arange(len(image), device=image.device)
        answers: dict[str, Tensor] = {}
        sure: list[Tensor] = []
        clock = _Clock(image.device, self.budget.seconds is not None)
        for k, maps in enumerate(self.network.maps_at_exits(image)):
            place = (len(here), *size)
            if (seconds := clock.lap()) is not None:
                self._seconds[k, *place] = seconds
            ends = k == last or not self._reaches_next(k, costs, clock.elapsed, place)
            if not ends and not self.thresholds:
                continue
            planes = self.network.refined(self.network.planes_at_exit(k, maps, size), image[here])
            if ends:
                leaves = torch.ones_like(here, dtype=torch.bool)
            else:
                sure.append(self.sureness(planes, size))
                leaves = sure[-1] >= self.thresholds[k]
            for name, value in planes.items():
                whole = answers.setdefault(name, value.new_empty((len(image), *value.shape[1:])))
                whole[here[leaves]] = value[leaves]
            gone = int(leaves.sum())
            self.taken[k + 1] += gone
            self.macs += gone * (costs.on_the_way[k] if self.thresholds else costs.directly[k])
            if gone == len(here):
                break
            if gone:
                here = here[~leaves]
                maps[:] = [feature[~leaves] for feature in maps]
        if len(sure) == self.network.exits - 1 and all(len(row) == len(image) for row in sure):
            self.noted += torch.stack(sure, 1).tolist()
        return answers

    def sureness(self, planes: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """How sure an exit is of each image of that size (B,)."""
        padded = self.network.padded_size(*size)
        found = []
        for task in (task for task in self.tasks if task.distribution):
            value = planes[task.name]
            # without what was padded
            rows, columns = (-(-size[axis] * value.shape[axis - 2] // padded[axis]) for axis in (0, 1))
            evidence = task.evidence(task.activate(full_precision(value[..., :rows, :columns])))
            best = evidence if task.distribution == "exclusive" else torch.maximum(evidence, 1 - evidence)
            pixels = best.amax(1) if task.distribution == "exclusive" else best.amin(1)
            found.append(pixels.mean((-2, -1)))
        return torch.stack(found).mean(0)

    def costs(self, size: tuple[int, int]) -> ExitCosts:
        """What an answer costs at each exit, for an image of that size."""
        if size not in self._costs:
            self._costs[size] = exit_costs(self.network, size)
        return self._costs[size]

    def _last(self, costs: ExitCosts) -> int:
        """The last exit that the budget of operations pays for."""
        if self.budget.macs is None:
            return self.network.exits - 1
        spent = costs.on_the_way if self.thresholds else costs.directly
        paid = [k for k, cost in enumerate(spent) if cost <= self.budget.macs]
        if not paid:
            raise ConfigurationError(
                f"The budget is {self.budget.macs / 1e6:.1f} MMAC, but for an image of this size the first exit costs "
                f"{spent[0] / 1e6:.1f} (all: {', '.join(f'{cost / 1e6:.1f}' for cost in spent)}). Give more, or make "
                "images smaller (short_side)."
            )
        return paid[-1]

    def _reaches_next(self, k: int, costs: ExitCosts, elapsed: float, place: tuple[int, int, int]) -> bool:
        if self.budget.seconds is None:
            return True
        pace, step = elapsed / costs.encoder[k], (k + 1, *place)
        ahead = self._seconds.get(step, pace * (costs.encoder[k + 1] - costs.encoder[k]))
        reached = elapsed + ahead + pace * costs.heads[k + 1] <= self.budget.seconds
        if not reached and step in self._seconds:
            self._seconds[step] *= 0.9  # a step that was slow once is tried again some time
        return reached


class _Clock:
    """Seconds since it was made, at the end of the last step."""

    def __init__(self, device: torch.device, runs: bool) -> None:
        self.device = device
        self.runs = runs
        self.elapsed = 0.0
        self.started = self._now()

    def lap(self) -> float | None:
        """Seconds of the step that is done; None where it does not run."""
        if not self.runs:
            return None
        before, self.elapsed = self.elapsed, self._now() - self.started
        return self.elapsed - before

    def _now(self) -> float:
        if self.runs and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def _checked(network: DenseNetwork, tasks: Sequence[Task], thresholds: tuple[float, ...]) -> tuple[float, ...]:
    """A threshold for each exit but the last, or none."""
    if network.exits < 2:
        encoder, decoder = (type(part).__name__ for part in (network.encoder, next(iter(network.decoders.values()))))
        raise ConfigurationError(
            f"A budget or a confidence to stop at wants a network with exits; {encoder} with {decoder} answers at its "
            "end alone. Train AnytimeDecoder on an encoder with exits (MSDNetEncoder, not pruned), or leave them out."
        )
    if thresholds and not any(task.distribution for task in tasks):
        raise ConfigurationError(
            f"A confidence to stop at wants probabilities, but the tasks are {', '.join(task.name for task in tasks)}. "
            "Give a budget instead."
        )
    if len(thresholds) == 1:
        thresholds *= network.exits - 1
    if len(thresholds) not in (0, network.exits - 1) or any(value < 0 for value in thresholds):
        raise ConfigurationError(
            f"confidence is {thresholds}; expected one number, at least 0, or one for each exit but the last "
            f"({network.exits - 1} here)."
        )
    return thresholds


def within(evidence: Evidence, budget: Budget | None, thresholds: Sequence[float]) -> Evidence:
    """The evidence of a network, or of each one of several, within a budget."""
    if isinstance(evidence, NetworkEvidence):
        return AnytimeEvidence(evidence.network, evidence.tasks, budget, thresholds)
    if isinstance(evidence, MeanEvidence):
        return MeanEvidence([within(member, budget, thresholds) for member in evidence.members], evidence.merge)
    raise ConfigurationError(f"A budget is for networks themselves; {type(evidence).__name__} goes around them.")


def anytime_in(evidence: Evidence) -> list[AnytimeEvidence]:
    """The networks with a budget, however deep in evidence made of evidence."""
    if isinstance(evidence, AnytimeEvidence):
        return [evidence]
    return [found for part in evidence.parts() for found in anytime_in(part)]
