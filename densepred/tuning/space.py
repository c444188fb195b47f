"""What a search draws from: ranges of values, random draws, and the narrower ranges of the next round."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml

from densepred.errors import ConfigurationError

NARROWING = 3.0
"""A round's ranges are this many times narrower than those of the round before."""

Scale = Literal["log", "uniform", "choice"]


@dataclass(frozen=True)
class SearchRange:
    """The values that one option may take.

    Args:
        scale: "log" (log-uniform between two positive bounds), "uniform", or "choice".
        values: The bounds (low, high); of a choice all that may be chosen.

    Example:
        >>> SearchRange.parse("log:1e-4:0.1", "lr")
        SearchRange(scale='log', values=(0.0001, 0.1))
        >>> SearchRange.parse("choice:imagenet,null", "model.encoder.weights").values
        ('imagenet', None)
    """

    scale: Scale
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> "SearchRange":
        """A range from `log:LOW:HIGH`, `uniform:LOW:HIGH` or `choice:A,B,...`.

        Args:
            text: As written by the user.
            name: The option's, for errors.

        Raises:
            ConfigurationError: If it is written in another way, or the bounds are not in order.
        """
        scale, _, rest = text.partition(":")
        if scale == "choice" and rest:
            return cls("choice", tuple(yaml.safe_load(word) for word in rest.split(",")))
        try:
            low, high = (float(word) for word in rest.split(":"))
        except ValueError:
            low = high = math.nan
        if scale not in ("log", "uniform") or not low < high or (scale == "log" and low <= 0):
            raise ConfigurationError(
                f"--search {name}={text}: expected log:LOW:HIGH with 0 < LOW < HIGH, uniform:LOW:HIGH, or "
                "choice:A,B,..., such as lr=log:1e-4:1e-1."
            )
        return cls("log" if scale == "log" else "uniform", (low, high))

    def __str__(self) -> str:
        if self.scale == "choice":
            return "choice:" + ",".join(yaml.safe_dump(value).removesuffix("\n...\n").strip() for value in self.values)
        return f"{self.scale}:{self.values[0]:.3g}:{self.values[1]:.3g}"

    def draw(self, random: np.random.Generator) -> Any:
        """A value, four digits of it: what a report prints is what was used."""
        if self.scale == "choice":
            return self.values[int(random.integers(len(self.values)))]
        low, high = self._line
        return float(f"{self._value(low + (high - low) * random.random()):.4g}")

    def around(self, best: Any) -> "SearchRange":
        """The range of the next round: a third as wide, the best value in its middle.

        A best value near an end thus moves the range beyond that end, as it should be moved. Zero, which has no place
        on a logarithmic range (a configuration's own weight decay, say), counts as its low end.

        Example:
            >>> SearchRange("log", (1e-3, 1.0)).around(1e-3)
            SearchRange(scale='log', values=(0.000316..., 0.00316...))
        """
        if self.scale == "choice":
            return SearchRange("choice", (best,))
        low, high = self._line
        half = (high - low) / (2 * NARROWING)
        middle = self._place(best)
        return SearchRange(self.scale, (self._value(middle - half), self._value(middle + half)))

    def at_the_edge(self, best: Any) -> bool:
        """Whether a value lies in the outer tenth of either end: better ones may lie beyond."""
        if self.scale == "choice":
            return False
        low, high = self._line
        return not 0.1 <= (self._place(best) - low) / (high - low) <= 0.9

    @property
    def _line(self) -> tuple[float, float]:
        low, high = self.values
        return (math.log(low), math.log(high)) if self.scale == "log" else (low, high)

    def _place(self, value: float) -> float:
        if self.scale == "uniform":
            return value
        return math.log(value) if value > 0 else self._line[0]

    def _value(self, place: float) -> float:
        return math.exp(place) if self.scale == "log" else place


Space = dict[str, SearchRange]


def draw(space: Space, seed: int, number: int, index: int) -> dict[str, Any]:
    """The values of a trial, a function of (seed, round, index) alone: more trials leave the first ones as they were.

    Args:
        space: A range for each option.
        seed: Of the search.
        number: The round's.
        index: Of the trial in its round.
    """
    random = np.random.default_rng([seed, number, index])
    return {name: axis.draw(random) for name, axis in space.items()}


def refine(space: Space, best: Mapping[str, Any]) -> Space:
    """The space of the next round, around the best values."""
    return {name: axis.around(best[name]) if name in best else axis for name, axis in space.items()}
