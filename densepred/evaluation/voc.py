"""The protocol of Pascal VOC's segmentation."""

from torchmetrics import Metric

from densepred.evaluation.protocol import Protocol
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

CLASSES = 21


class VOC(Protocol):
    """Mean IoU of Pascal VOC 2012 val, as the devkit computes it (`VOCevalseg`).

    One 21 x 21 confusion matrix over all 1449 images, background included, labels of 255 left out, predictions of the
    labels' own size; the number is the plain mean of the 21 IoU. Several sizes, mirror images and a dense CRF are
    allowed, and told beside it.

    Reference:
        Everingham, Van Gool, Williams, Winn, Zisserman. The Pascal Visual Object Classes (VOC) Challenge. IJCV 2010;
        the development kit of 2012.
    """

    def __init__(self) -> None:
        super().__init__("voc", "Pascal VOC 2012 val")

    def concerns(self, task: Task) -> bool:
        """Labels do."""
        return isinstance(task, Segmentation)

    def metric(self, task: Task, stage: str) -> Metric:
        """One confusion matrix; a class that is neither true nor predicted (the devkit's has none) is left out."""
        return SegmentationMetrics(list(getattr(task, "classes", [])), absent="skip")

    def task_faults(self, task: Task) -> list[str]:
        """Other classes, or several at once."""
        classes, mode = getattr(task, "classes", []), getattr(task, "mode", "")
        faults = []
        if len(classes) != CLASSES:
            faults.append(f"task {task.name!r} has {len(classes)} classes; VOC scores {CLASSES}, background among them")
        if mode != "multiclass":
            faults.append(f"task {task.name!r} is {mode}; VOC's labels exclude each other")
        return faults
