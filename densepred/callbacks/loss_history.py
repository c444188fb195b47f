"""When a loss counts as exploding."""

import math
import statistics
from collections import deque

_FEWEST = 20
_MOST = 100
_EVERY = 10


class LossHistory:
    """Follows one loss and counts for how many steps in a row it has been far above where it once was.

    Far above is more than `factor` times the lowest median of any 100 steps in a row so far, and also more than the
    median of the first 20 steps. Medians are not moved by a few wild steps, nor by a noisy beginning; the lowest one
    does not drift along with a loss that grows slowly; and a network that is no worse than at its start, as after the
    peak of a cyclic rate on a set that it knows by heart, has not exploded. The rule says nothing about the first 20
    steps, and nothing about losses whose lowest median is zero or negative, which no factor can compare.

    Args:
        factor: How many times the lowest median is far.

    Attributes:
        streak: How many steps in a row have been far above it.

    Example:
        >>> history = LossHistory(factor=10)
        >>> for loss in [2.0] * 50 + [30.0] * 3:
        ...     history.add(loss)
        >>> history.streak, history.usual
        (3, 2.0)
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.streak = 0
        self.usual = math.inf
        self._first = math.inf
        self._recent: deque[float] = deque(maxlen=_MOST)
        self._count = 0

    def add(self, loss: float) -> None:
        """Takes the loss of a step."""
        if self.is_far(loss):
            self.streak += 1
            return
        self.streak = 0
        self._recent.append(loss)
        self._count += 1
        if self._count == _FEWEST:
            self._first = statistics.median(self._recent)
        if self._count >= _FEWEST and self._count % _EVERY == 0:
            self.usual = min(self.usual, statistics.median(self._recent))

    def is_far(self, loss: float) -> bool:
        """Whether a loss would be far above the usual."""
        return 0 < self.usual < math.inf and loss > self.factor * self.usual and loss > self._first
