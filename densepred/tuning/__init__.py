"""The search for a learning rate, and what goes with it: checks before training, short trials, a report."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.tuning.bench import read_arguments as read_arguments
    from densepred.tuning.plan import Plan as Plan
    from densepred.tuning.search import Search as Search
    from densepred.tuning.trial import Trial as Trial
    from densepred.tuning.trial import run_trial as run_trial

__getattr__, __all__ = lazy_exports(
    __name__,
    {"read_arguments": "bench", "Plan": "plan", "Search": "search", "Trial": "trial", "run_trial": "trial"},
)
