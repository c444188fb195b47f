"""What happens around training: pictures, progress, checkpoints and the table at the end."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.callbacks.artifacts import CheckpointArtifacts as CheckpointArtifacts
    from densepred.callbacks.averaging import EMA as EMA
    from densepred.callbacks.averaging import SWA as SWA
    from densepred.callbacks.batch_size import LargestBatch as LargestBatch
    from densepred.callbacks.channels_last import ChannelsLast as ChannelsLast
    from densepred.callbacks.compiled import Compile as Compile
    from densepred.callbacks.diagnostics import Diagnostics as Diagnostics
    from densepred.callbacks.environment import Environment as Environment
    from densepred.callbacks.freeze import Freeze as Freeze
    from densepred.callbacks.loss_guard import LossGuard as LossGuard
    from densepred.callbacks.panels import Panels as Panels
    from densepred.callbacks.progress import EpochProgress as EpochProgress
    from densepred.callbacks.prune_links import PruneLinks as PruneLinks
    from densepred.callbacks.recompute import Recompute as Recompute
    from densepred.callbacks.results import Results as Results
    from densepred.callbacks.summary import NetworkSummary as NetworkSummary
    from densepred.callbacks.throughput import Throughput as Throughput

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "ChannelsLast": "channels_last",
        "CheckpointArtifacts": "artifacts",
        "Compile": "compiled",
        "Diagnostics": "diagnostics",
        "EMA": "averaging",
        "Environment": "environment",
        "EpochProgress": "progress",
        "Freeze": "freeze",
        "LargestBatch": "batch_size",
        "LossGuard": "loss_guard",
        "NetworkSummary": "summary",
        "Panels": "panels",
        "PruneLinks": "prune_links",
        "Recompute": "recompute",
        "Results": "results",
        "SWA": "averaging",
        "Throughput": "throughput",
    },
)
