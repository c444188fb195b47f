"""What happens around training: pictures, progress, checkpoints and the table at the end."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.callbacks.panels import Panels as Panels
    from densepred.callbacks.progress import EpochProgress as EpochProgress
    from densepred.callbacks.results import Results as Results
    from densepred.callbacks.summary import NetworkSummary as NetworkSummary

__getattr__, __all__ = lazy_exports(
    __name__,
    {"EpochProgress": "progress", "NetworkSummary": "summary", "Panels": "panels", "Results": "results"},
)
