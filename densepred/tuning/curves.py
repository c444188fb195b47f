"""The shape of a training curve, by the names that the lectures give to shapes."""

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]


class Shape(StrEnum):
    """What a curve looks like."""

    TOO_SHORT = "too short"
    RATE_TOO_HIGH = "rate too high"
    RATE_TOO_LOW = "rate too low"
    BAD_INITIALISATION = "bad initialisation"
    OVERFIT = "overfit"
    UNDERFIT = "underfit"
    FINE = "fine"


class Reading(NamedTuple):
    """A shape, and what it was read from."""

    shape: Shape
    reason: str


POINTS = 300
"""Points that are kept of a curve."""
GRID = 60
"""Points at which a curve is read, along its way."""
SHARE = 0.1
"""Part of a curve that is smoothed over."""


def read_curve(
    losses: Sequence[float],
    rates: Sequence[float] | None = None,
    validation: Sequence[float] = (),
    reference: float | None = None,
) -> Reading:
    """Names the shape of a run's curve.

    The curve is read against the sum of the learning rates so far instead of the steps, so that a warm-up does not look
    like a bad start, nor a decay like a plateau. In this order:

    ==================== ==============================================================================
    rate too high        not finite; or higher at the end than at the start; or a noisy plateau early on
    rate too low         no fall worth the name; or still half of the fall to come half way (a straight line)
    bad initialisation   a flat start: a tenth of the fall comes only after a third of the way
    overfit              validation has turned up while training still falls, or lies far above it
    underfit             a smooth plateau, little below what a constant predictor reaches
    fine                 none of these
    ==================== ==============================================================================

    Args:
        losses: Of the training steps, in order.
        rates: The learning rate of each; constant when None.
        validation: Losses after each epoch.
        reference: The loss of a network that knows nothing, the scale of all comparisons; the first loss when None.

    Example:
        >>> read_curve([2.4 - 0.002 * step for step in range(600)]).shape.value
        'rate too low'
    """
    raw = np.asarray(losses, float)
    if len(raw) == 0:
        return Reading(Shape.TOO_SHORT, "no step was made")
    if not np.isfinite(raw).all():
        return Reading(Shape.RATE_TOO_HIGH, f"not finite from step {int(np.argmin(np.isfinite(raw)))} on")
    if len(raw) < 5:
        return Reading(Shape.TOO_SHORT, f"{len(raw)} steps are too few to read a shape from")
    speed = np.ones(len(raw)) if rates is None else np.asarray(rates, float)
    raw, speed = np.asarray(thinned(raw)), np.asarray(thinned(speed))
    smooth = smoothed(raw)
    curve = np.interp(np.linspace(0, 1, GRID), _way(speed), smooth)
    scale = abs(reference if reference else curve[0]) or 1.0
    start, end = float(curve[0]), float(curve[-1])
    fall, noise = start - end, float(np.std(raw - smooth))
    doubt = 2 * noise * math.sqrt(2 / (2 * _reach(len(raw), SHARE) + 1))  # of a difference of two smoothed values
    if fall < -max(0.1 * scale, doubt):
        return Reading(Shape.RATE_TOO_HIGH, f"rises from {start:.3g} to {end:.3g}")
    if fall < max(0.02 * scale, doubt):
        reason = f"stays at {end:.3g}; where higher rates don't move it either, the initialisation is bad"
        return Reading(Shape.RATE_TOO_LOW, reason)
    tenth, half, most = (_when(curve, share) for share in (0.1, 0.5, 0.9))
    if tenth > 1 / 3:
        return Reading(Shape.BAD_INITIALISATION, f"flat for the first {tenth:.0%} of the way, then falls")
    overfit = _overfit(validation, end, fall, scale)
    if overfit is not None:
        return overfit
    if half >= 0.45:
        return Reading(
            Shape.RATE_TOO_LOW, f"falls in a straight line: half of the fall came after {half:.0%} of the way"
        )
    if end > 0.7 * scale and most <= 1 / 3:
        if noise > 0.2 * fall:
            return Reading(Shape.RATE_TOO_HIGH, f"falls at once, then swings around {end:.3g}")
        return Reading(Shape.UNDERFIT, f"settles at {end:.3g}, {end / scale:.0%} of what knowing nothing costs")
    return Reading(Shape.FINE, f"falls from {start:.3g} to {end:.3g}")


def compared(reading: Reading, rate: float, end: float, best_rate: float, best_end: float, scale: float) -> Reading:
    """A curve that looks fine by itself beside that of a better run: one that ends much higher had another rate.

    Args:
        reading: Of the curve alone; only "fine" and "underfit" are read anew.
        rate: Its learning rate.
        end: Where it ended.
        best_rate: The better run's.
        best_end: Where that ended.
        scale: The loss of a network that knows nothing; a tenth of it is much.

    Example:
        >>> compared(Reading(Shape.FINE, ""), 1.0, 1.5, best_rate=0.01, best_end=0.8, scale=2.4).shape.value
        'rate too high'
    """
    if reading.shape not in (Shape.FINE, Shape.UNDERFIT) or end - best_end < 0.1 * scale:
        return reading
    reason = f"ends at {end:.3g}, where a rate of {best_rate:.2g} ends at {best_end:.3g}"
    if rate > 2 * best_rate:
        return Reading(Shape.RATE_TOO_HIGH, reason)
    return Reading(Shape.RATE_TOO_LOW, reason) if rate < best_rate / 2 else reading


def _way(speed: Curve) -> Curve:
    """How far each step is on the way from 0 to 1, measured by the learning rate."""
    done = np.cumsum(speed) - speed
    return np.asarray(done / done[-1] if done[-1] > 0 else np.linspace(0, 1, len(speed)))


def smoothed(values: Sequence[float] | Curve, share: float = SHARE) -> Curve:
    """A straight line fitted around each value: smooth up to the ends, lagging nowhere.

    Args:
        values: Equally far apart.
        share: How many of them the line is fitted to; at least five values where there are so many.

    Example:
        >>> smoothed([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).round(6).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    return np.asarray([value for value, _ in _lines(values, _reach(len(values), share))])


def slopes(values: Sequence[float] | Curve, reach: int) -> Curve:
    """The slope of the line fitted to each value and `reach` others on both sides, in units of a step."""
    return np.asarray([slope for _, slope in _lines(values, reach)])


def _reach(length: int, share: float) -> int:
    return max(2, round(length * share / 2))


def _lines(values: Sequence[float] | Curve, reach: int) -> Iterator[tuple[float, float]]:
    raw = np.asarray(values, float)
    for at in range(len(raw)):
        first, last = max(0, at - reach), min(len(raw), at + reach + 1)
        places, part = np.arange(first, last) - at, raw[first:last]
        middle = places.mean()
        spread = float(((places - middle) ** 2).sum())
        slope = float(((places - middle) * part).sum()) / spread if spread else 0.0
        yield float(part.mean()) - slope * float(middle), slope


def thinned(values: Sequence[float] | Curve) -> list[float]:
    """Means of equally many neighbours, at most `POINTS` of them."""
    raw = np.asarray(values, float)
    return [float(part.mean()) for part in np.array_split(raw, min(len(raw), POINTS))] if len(raw) else []


def _when(curve: Curve, share: float) -> float:
    """How far along the way this share of the fall has come."""
    reached = curve <= curve[0] - share * (curve[0] - curve[-1])
    return float(np.argmax(reached)) / (len(curve) - 1)


def _overfit(validation: Sequence[float], end: float, fall: float, scale: float) -> Reading | None:
    seen = np.asarray(validation, float)
    if len(seen) == 0 or not np.isfinite(seen).all():
        return None
    best, last = float(seen.min()), float(seen[-1])
    if len(seen) > 1 and last - best > 0.05 * scale:
        return Reading(Shape.OVERFIT, f"validation loss has risen from {best:.3g} to {last:.3g} while training fell")
    if last - end > max(fall, 0.1 * scale):
        return Reading(Shape.OVERFIT, f"validation loss {last:.3g} is far above training's {end:.3g}")
    return None
