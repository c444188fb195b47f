"""Predictions of pictures scored against what is true, read from files beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densepred.data.images import read_npy
from densepred.data.label_codes import ClassLine, LabelReader
from densepred.data.normals_source import read_normals
from densepred.data.rasters import DepthReader
from densepred.errors import ConfigurationError, DataError, LabelError
from densepred.inference.inputs import Source
from densepred.inference.prediction import Prediction
from densepred.inference.predictor import Predictor
from densepred.metrics.calibration import CalibrationMetrics
from densepred.sample import Kind
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

_ENDINGS = (".png", ".npy", ".tif", ".tiff")


class Scores:
    """The metrics of each task with files of truth, at the files' own size; of labels calibration too.

    Labels are read as `LabelReader` does: class ids in grey or with a palette (255 is missing), colours of the task's
    palette, and of two classes masks of 0 and 255; depth in millimetres of 16 bits or metres of floats; normals as 8
    bits or vectors. The truth of a picture is the file of its name, in the same folder below the given one.

    Args:
        predictor: Whose tasks are scored.
        truth: Folders of labels, of depth, of normals.
        label_classes: What the ids of the label files mean, where it is not the task's own classes; labels of classes
            that the task does not know are missing.

    Raises:
        ConfigurationError: If no task predicts something of the kind, or it knows none of the classes.
        DataError: If a folder is not there.
    """

    def __init__(
        self, predictor: Predictor, truth: Mapping[Kind, Path], label_classes: Sequence[str] | None = None
    ) -> None:
        self.folders: dict[str, Path] = {}
        for kind, folder in truth.items():
            task = next((task for task in predictor.tasks if task.kind == kind), None)
            if task is None:
                names = ", ".join(f"{task.name} ({type(task).__name__})" for task in predictor.tasks)
                raise ConfigurationError(f"{folder}: true {kind} is given, but the network predicts {names} alone.")
            if not folder.is_dir():
                raise DataError(f"{folder}: there is no such folder of true {kind}.")
            self.folders[task.name] = folder
        self.tasks = [task for task in predictor.tasks if task.name in self.folders]
        self.metrics = {task.name: task.metrics("test") for task in self.tasks}
        self.calibrations = {
            task.name: CalibrationMetrics(task.classes, task.mode)
            for task in self.tasks
            if isinstance(task, Segmentation)
        }
        self.readers = {
            task.name: _label_reader(task, label_classes) for task in self.tasks if isinstance(task, Segmentation)
        }
        self.files = {task.name: 0 for task in self.tasks}
        self.images = dict(self.files)

    def add(self, source: Source, prediction: Prediction) -> None:
        """Scores one picture, where its truth is there.

        Args:
            source: The picture.
            prediction: With its evidence.

        Raises:
            DataError: If a file of truth is broken or of another size.
        """
        for task in self.tasks:
            file = _truth(self.folders[task.name], source)
            if file is None:
                continue
            self.files[task.name] += 1
            height, width = prediction.image.shape[-2:]
            target = self._read(task, file, (height, width))
            if target.shape[-2:] != (height, width):
                raise DataError(
                    f"{file}: its size is {tuple(target.shape[-2:])} (height, width), but that of {source.path} is "
                    f"{(height, width)}."
                )
            self.metrics[task.name].update(prediction[task.name][None], target[None])
            if task.name in self.calibrations:
                self.calibrations[task.name].update(prediction.probabilities(task.name)[None], target[None])
            self.images[task.name] += 1

    def found(self) -> dict[str, dict[str, float]]:
        """By task its metrics by key, those of calibration under `calibration/`, and `images`.

        A task all of whose files are broken is left out.

        Raises:
            DataError: If no picture had a file of truth.
        """
        for name, count in self.files.items():
            if not count:
                raise DataError(
                    f"{self.folders[name]}: no picture has its file there. Expected the picture's name, with the "
                    f"ending {', '.join(_ENDINGS)}."
                )
        results = {}
        for task in (task for task in self.tasks if self.images[task.name]):
            values = {key: float(value) for key, value in self.metrics[task.name].compute().items()}
            if task.name in self.calibrations:
                sure = self.calibrations[task.name].compute()
                values |= {f"calibration/{key}": float(sure[key]) for key in ("ece", "mce", "confidence")}
            results[task.name] = {"images": self.images[task.name], **values}
        return results

    def _read(self, task: Task, file: Path, size: tuple[int, int]) -> Tensor:
        if task.kind is Kind.DEPTH:
            return torch.from_numpy(DepthReader()(file))[None]
        if task.kind is Kind.NORMALS:
            advice = "turn the axes of the files round"
            normals = read_normals(file, size, np.eye(3, dtype=np.float32), advice)
            return torch.from_numpy(np.ascontiguousarray(normals.transpose(2, 0, 1)))
        if isinstance(task, Segmentation) and task.mode == "multilabel":
            return torch.from_numpy(np.array(read_npy(file)))
        try:
            return torch.from_numpy(np.ascontiguousarray(self.readers[task.name](file)))
        except LabelError as error:
            what = str(error).partition(". ")[0]  # what follows is of training
            raise DataError(
                f"{what}. If its ids mean other classes, say which: --label_classes FILE, or voc."
            ) from error


def _label_reader(task: Segmentation, stored: Sequence[str] | None) -> LabelReader:
    colours = [(red, green, blue) for red, green, blue in task.palette]
    once = len(set(colours)) == len(colours)
    pairs = zip(task.classes, colours, strict=True)
    lines = [ClassLine(name, colour if once else None) for name, colour in pairs]
    if stored is not None:
        ids = {number: task.classes.index(name) for number, name in enumerate(stored) if name in task.classes}
        if not ids:
            raise ConfigurationError(
                f"--label_classes: of {', '.join(stored)} the network knows none; it has {', '.join(task.classes)}."
            )
        return LabelReader(lines, "ids", ids)
    return LabelReader(lines, "binary" if task.mode == "binary" else None)


def _truth(folder: Path, source: Source) -> Path | None:
    for name in dict.fromkeys((source.name, source.path.stem)):
        for ending in _ENDINGS:
            if (file := folder / f"{name}{ending}").is_file():
                return file
    return None
