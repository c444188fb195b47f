"""Axes: where numbers lie on a chart, and which of them are written beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A range of numbers laid over a range of pixels, evenly or by their logarithms.

    Attributes:
        low: The number at `start`.
        high: The number at `end`; greater than `low`.
        start: Pixel.
        end: Pixel.
        log: Equal ratios, not equal differences, are equally far apart.

    Example:
        >>> Axis(1, 100, 0, 50, log=True).place(10)
        25.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a number."""
        low, high, at = (math.log10(v) for v in (self.low, self.high, value)) if self.log else self._even(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def _even(self, value: float) -> tuple[float, float, float]:
        return self.low, self.high, value

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the range."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high, about)


def axis_for(values: Iterable[float], start: float, end: float, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds all finite values (with `log`, all above 0) with a little room."""
    shown = [value for value in values if drawable(value, log)]
    if not shown:
        return Axis(1, 10, start, end, True) if log else Axis(0, 1, start, end)
    low, high = min(shown), max(shown)
    if from_zero:
        low, high = min(low, 0), max(high, 0)
    if log:
        room = (high / low) ** 0.04 if high > low else 2
        return Axis(low / room, high * room, start, end, True)
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1
    return Axis(low - (0 if from_zero and low == 0 else room), high + room, start, end)


def exact_axis(values: Iterable[float], start: float, end: float, log: bool = False) -> Axis:
    """As `axis_for`, from the least to the greatest value: for what runs along a chart, as steps do."""
    shown = [value for value in values if drawable(value, log)]
    if not shown or min(shown) == max(shown):
        return axis_for(shown, start, end, log)
    return Axis(min(shown), max(shown), start, end, log)


def drawable(value: float, log: bool) -> bool:
    """Whether a number has a place on an axis."""
    return math.isfinite(value) and (value > 0 or not log)


def _even_ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * index for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    if decades < 0.5:
        return _even_ticks(low, high, 4)
    every = max(1, math.ceil(decades / 7))
    factors = (1, 2, 5) if decades < 2 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**exponent for exponent in exponents if exponent % every == 0 for factor in factors]
    return [value for value in found if low <= value <= high]


def short(value: float) -> str:
    """A number as it stands beside an axis or in a table.

    Example:
        >>> short(12000), short(0.25), short(3e-05), short(0.1 + 0.2)
        ('12k', '0.25', '3e-05', '0.3')
    """
    if abs(value) >= 10_000 and value == round(value, -2) and abs(value) < 1e6:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
