"""The protocols of NYU Depth v2: depth and surface normals."""

from torchmetrics import Metric

from densepred.evaluation.protocol import Protocol
from densepred.metrics.depth import Average, DepthMetrics
from densepred.metrics.depth import Protocol as Crop
from densepred.metrics.normals import NormalsMetrics
from densepred.sample import Kind
from densepred.tasks.base import Task

SET = "NYU Depth v2 test"
CAP = (1e-3, 10.0)
"""Metres: what is valid lies strictly between, and predictions are brought into it."""


class NYUDepth(Protocol):
    """Depth on the 654 test frames at 480 x 640, valid strictly between 1 mm and 10 m, predictions clamped to that.

    Args:
        name: As the command line has it.
        crop: Which part counts, see `DepthMetrics`; `nyu_python` is what most published numbers use.
        average: Measures of each image, averaged ("image", since DORN), or over all pixels of the set ("pixel").

    Reference:
        Eigen, Puhrsch, Fergus. NIPS 2014. arXiv:1406.2283 (the measures); Lee et al. 2019. arXiv:1907.10326 (BTS, whose
        evaluation most others repeat).
    """

    def __init__(self, name: str = "nyu_depth", crop: Crop = "nyu_python", average: Average = "image") -> None:
        super().__init__(name, SET)
        self.crop = crop
        self.average = average

    def concerns(self, task: Task) -> bool:
        """Depth does."""
        return task.kind is Kind.DEPTH

    def metric(self, task: Task, stage: str) -> Metric:
        """Errors in metres under the protocol's crop, cap and average."""
        return DepthMetrics(self.crop, *CAP, clamp=True, average=self.average)


class NYUNormals(Protocol):
    """Surface normals on the 654 test frames at 480 x 640: angles pooled over all valid pixels of the set.

    Shares count angles strictly below 11.25, 22.5 and 30 degrees. Which normals are taken for true decides the number
    and is told beside it.

    Reference:
        Fouhey, Gupta, Hebert. ICCV 2013 (the measures); Bansal, Russell, Gupta. CVPR 2016. arXiv:1604.01347 (the
        evaluation code).
    """

    def __init__(self) -> None:
        super().__init__("nyu_normals", SET)

    def concerns(self, task: Task) -> bool:
        """Normals do."""
        return task.kind is Kind.NORMALS

    def metric(self, task: Task, stage: str) -> Metric:
        """Angles, pooled."""
        return NormalsMetrics()
