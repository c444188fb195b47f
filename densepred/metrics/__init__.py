"""Metrics that mean what they say: over the whole set, with missing pixels left out and the protocol named."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.metrics.base import DenseMetric as DenseMetric
    from densepred.metrics.calibration import CalibrationMetrics as CalibrationMetrics
    from densepred.metrics.depth import DepthMetrics as DepthMetrics
    from densepred.metrics.depth_by_distance import DepthByDistance as DepthByDistance
    from densepred.metrics.neurites import NeuriteMetrics as NeuriteMetrics
    from densepred.metrics.normals import NormalsMetrics as NormalsMetrics
    from densepred.metrics.regression import RegressionMetrics as RegressionMetrics
    from densepred.metrics.segmentation import SegmentationMetrics as SegmentationMetrics

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "CalibrationMetrics": "calibration",
        "DenseMetric": "base",
        "DepthByDistance": "depth_by_distance",
        "DepthMetrics": "depth",
        "NeuriteMetrics": "neurites",
        "NormalsMetrics": "normals",
        "RegressionMetrics": "regression",
        "SegmentationMetrics": "segmentation",
    },
)
