"""What an evaluation knows beyond its scalars, as plain values read off the metrics' own states."""

import inspect
from functools import singledispatch
from typing import Any

from torchmetrics import Metric

from densepred.metrics.depth_by_distance import DepthByDistance
from densepred.metrics.normals import NormalsMetrics
from densepred.metrics.segmentation import SegmentationMetrics


@singledispatch
def details(metric: Metric) -> dict[str, Any]:
    """Plain values from a metric whose states are summed over all processes; nothing by default."""
    return {}


@details.register
def _(metric: SegmentationMetrics) -> dict[str, Any]:
    """Rows of `confusion` are true classes, columns predicted ones; one matrix, in multilabel mode one a class."""
    return {
        "classes": metric.names,
        "mode": metric.mode,
        "confusion": metric.confusion[:, :-1, :-1].cpu().tolist(),
    }


@details.register
def _(metric: NormalsMetrics) -> dict[str, Any]:
    """`angles`: pixels in each degree from 0 to 180."""
    return {"angles": metric.histogram.cpu().view(180, -1).sum(1).tolist()}


@details.register
def _(metric: DepthByDistance) -> dict[str, Any]:
    found = {key: value.cpu().tolist() for key, value in metric.compute().items()}
    return {"by_distance": {"edges": metric.edges, **found}}


def protocol(metric: Metric) -> dict[str, Any]:
    """How a metric measures: its class, the first line of its documentation, and the settings it was built with."""
    settings = {
        name: getattr(metric, name)
        for name in inspect.signature(type(metric).__init__).parameters
        if name != "self" and isinstance(getattr(metric, name, None), str | int | float | bool)
    }
    about = (inspect.getdoc(type(metric)) or "").partition("\n")[0]
    return {"metric": type(metric).__name__, "about": about, "settings": settings}
