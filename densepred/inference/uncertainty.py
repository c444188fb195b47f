"""How sure an answer is: entropy of labels, and how far several answers differ."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from densepred.inference.evidence import Evidence
from densepred.sample import Kind
from densepred.tasks.base import Task


@dataclass(frozen=True)
class Uncertainty:
    """What is said of images, and how sure it is.

    ============ ====================== ==============================================================================
    task         key                    value at every pixel
    ============ ====================== ==============================================================================
    labels       `entropy`              predictive entropy in nats: of the mean probabilities; 0 is sure
    labels       `mutual_information`   how much of it comes from answers that differ (BALD), in nats: the entropy of
                                        the mean less the mean entropy
    depth        `log_std`              standard deviation of the answers' log metres; 0.1 is about a tenth of the depth
    normals      `angle`                degrees: the angle whose cosine is the length of the mean of the unit vectors;
                                        if all are equally far from the mean, how far that is
    others       `std`                  standard deviation of the answers, root of the mean square over planes
    ============ ====================== ==============================================================================

    All but the entropy tell how answers differ, and are there only if there are several: of an ensemble, of samples
    of dropout, of sizes and mirror images, or of all of them, each counting once.

    Args:
        evidence: By task name (B, planes, H, W), as the evidence that was asked says.
        spread: By task name and key (B, 1, H, W).
        answers: How many there were.

    Reference:
        Houlsby, Huszar, Ghahramani, Lengyel. Bayesian Active Learning for Classification and Preference Learning.
        2011. arXiv:1112.5745 (BALD); Gal, Islam, Ghahramani. Deep Bayesian Active Learning with Image Data. ICML 2017.
        arXiv:1703.02910.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), "exclusive").item()  # ln 2
        0.693...
    """

    evidence: dict[str, Tensor]
    spread: dict[str, dict[str, Tensor]]
    answers: int

    @classmethod
    def of(cls, evidence: Evidence, image: Tensor) -> Self:
        """Asks about images (B, C, H, W).

        Of several answers no more is held at a time than their sums. Where the evidence is not the plain mean of its
        answers (logits or maxima merged, a CRF behind it), it is asked once more.
        """
        spreads = {task.name: _spread_of(task) for task in evidence.tasks}
        answers = 0
        for answer in evidence.answers(image):
            answers += 1
            for task in evidence.tasks:
                spreads[task.name].add(answer[task.name])
        mean = {name: spread.mean for name, spread in spreads.items()} if evidence.averages else evidence(image)
        return cls(mean, {name: spread.found() for name, spread in spreads.items()}, answers)


def entropy(probabilities: Tensor, distribution: Literal["exclusive", "independent"]) -> Tensor:
    """Entropy in nats of probabilities (B, planes, H, W), as (B, 1, H, W).

    Args:
        probabilities: Of classes.
        distribution: Whether one of them holds, or each by itself; then entropies of the classes add up.
    """
    own: Tensor = torch.special.entr(probabilities)
    if distribution == "independent":
        own = own + torch.special.entr(1 - probabilities)
    return own.sum(1, keepdim=True)


class _Spread(ABC):
    """Sums over the answers of one task."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())

    def add(self, answer: Tensor) -> None:
        self.count += 1
        # not a running sum: squared deviations of log depth would cancel in it
        step = answer - self.mean
        self.mean = self.mean + step / self.count
        self.observe(answer, step)

    @abstractmethod
    def observe(self, answer: Tensor, step: Tensor) -> None: ...

    @abstractmethod
    def found(self) -> dict[str, Tensor]: ...


class _OfLabels(_Spread):
    def __init__(self, distribution: Literal["exclusive", "independent"]) -> None:
        super().__init__()
        self.distribution = distribution
        self.entropies = torch.zeros(())

    def observe(self, answer: Tensor, step: Tensor) -> None:
        self.entropies = self.entropies + entropy(answer, self.distribution)

    def found(self) -> dict[str, Tensor]:
        whole = entropy(self.mean, self.distribution)
        if self.count == 1:
            return {"entropy": whole}
        # the entropy is concave: below 0 there are only rounding errors
        return {"entropy": whole, "mutual_information": (whole - self.entropies / self.count).clamp(min=0)}


class _OfNumbers(_Spread):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.squares = torch.zeros(())

    def observe(self, answer: Tensor, step: Tensor) -> None:
        self.squares = self.squares + step * (answer - self.mean)

    def found(self) -> dict[str, Tensor]:
        if self.count == 1:
            return {}
        return {self.key: (self.squares / self.count).mean(1, keepdim=True).sqrt()}


class _OfDirections(_Spread):
    def observe(self, answer: Tensor, step: Tensor) -> None:
        """The mean says it all."""

    def found(self) -> dict[str, Tensor]:
        if self.count == 1:
            return {}
        length = torch.linalg.vector_norm(self.mean, dim=1, keepdim=True)
        # the arc cosine of the length, in a form that is exact near 1
        return {"angle": (2 * ((1 - length).clamp(min=0) / 2).sqrt().asin()).rad2deg()}


def _spread_of(task: Task) -> _Spread:
    if task.distribution is not None:
        return _OfLabels(task.distribution)
    if task.kind is Kind.NORMALS:
        return _OfDirections()
    return _OfNumbers("log_std" if task.kind is Kind.DEPTH else "std")
