"""What is predicted for a picture as files: labels, metres and unit normals that other programs read."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from densepred.data.atomic import is_written, whole_file
from densepred.errors import ConfigurationError
from densepred.inference.cameras import UNKNOWN_CAMERA, AssumedCamera
from densepred.inference.file_contents import (
    array_bytes,
    confidence,
    depth_bytes,
    entropy_share,
    jpeg_bytes,
    label_bytes,
    normals_bytes,
    png_bytes,
)
from densepred.inference.point_cloud import prediction_ply
from densepred.inference.prediction import Prediction
from densepred.sample import Kind
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

FARTHEST = 65.535
"""Metres that 16 bits of millimetres hold."""

SAVED = {
    "labels": "PNG with the classes' palette, as grey of 16 bits above 255 classes, .npy (classes, H, W) where several "
    "labels hold at once",
    "depth": "PNG, 16 bits, millimetres, at most 65.535 m",
    "normals": "PNG, v = (n + 1) / 2 * 255 in red, green, blue; x right, y down, z forward",
    "arrays": ".npy, float32: metres (H, W), unit vectors (H, W, 3)",
    "probabilities": ".npy, float16 (classes, H, W)",
    "entropy": "PNG, 16 bits: 0 to 65535 for 0 to the largest possible entropy of the class probabilities",
    "confidence": "PNG, 16 bits: 0 to 65535 for a probability of the predicted label of 0 to 1",
    "uncertainty": ".npy, float32 (H, W), of each task and measure of how several answers differ: mutual "
    "information in nats, standard deviation of log metres, degrees",
    "ply": "point cloud: metres x right, y down, z forward, colours, and the predicted normals where there are some",
    "overlays": "JPEG: the colours of each task over the picture",
    "pictures": "JPEG: the picture with all tasks beside it",
}
"""What can be written, and in which form."""

_MEASURES = {Kind.LABEL: "mutual_information", Kind.DEPTH: "log_std", Kind.NORMALS: "angle"}

DEFAULT = ("labels", "depth", "normals", "overlays")


class OutputFile(NamedTuple):
    """One kind of file that is written for each picture.

    Args:
        folder: Below the output folder.
        ending: Of the file.
        encode: A prediction as the file's content.
        needs: What the prediction must have kept, beside its values.
        note: What the file cannot hold of a prediction, or rests on, for people; empty where there is nothing to say.
    """

    folder: str
    ending: str
    encode: Callable[[Prediction], bytes]
    needs: Literal["evidence", "uncertainty"] | None = None
    note: Callable[[Prediction], str] | None = None

    def path(self, root: Path, name: str) -> Path:
        """The file of the source of that name."""
        return root / self.folder / f"{name}{self.ending}"


class OutputFiles:
    """The files of an output folder; each is written whole or not at all.

    Args:
        root: The output folder.
        kinds: Of `output_kinds`.
        since: A file; what is older than it was written by another run.
    """

    def __init__(self, root: Path, kinds: Sequence[OutputFile], since: Path | None = None) -> None:
        self.root = root
        self.kinds = list(kinds)
        self.since = since

    def needs(self, what: Literal["evidence", "uncertainty"]) -> bool:
        """Whether predictions must keep it."""
        return any(kind.needs == what for kind in self.kinds)

    def notes(self, prediction: Prediction) -> tuple[str, ...]:
        """What the files cannot hold of a prediction, or rest on, for people."""
        told = (kind.note(prediction) for kind in self.kinds if kind.note is not None)
        return tuple(dict.fromkeys(note for note in told if note))

    def paths(self, name: str) -> list[Path]:
        """All files of a source."""
        return [kind.path(self.root, name) for kind in self.kinds]

    def finished(self, name: str, source: Path) -> bool:
        """Whether all files of a source are there, and none is older than it."""
        return all(self.is_current(path, source) for path in self.paths(name))

    def is_current(self, path: Path, source: Path) -> bool:
        """Whether a file is there, of this run or one like it, and not older than what it is made of."""
        return newer(path, source) and (self.since is None or newer(path, self.since))

    def write(self, name: str, prediction: Prediction, source: Path | None = None) -> None:
        """Writes all files of a source.

        Args:
            name: The source's.
            prediction: With all that the files need.
            source: The picture, to keep files that are there and not older; None writes all.
        """
        for kind in self.kinds:
            path = kind.path(self.root, name)
            if source is not None and self.is_current(path, source):
                continue
            content = kind.encode(prediction)
            with whole_file(path) as temporary:
                temporary.write_bytes(content)


def newer(path: Path, source: Path) -> bool:
    """Whether a file is there, and not older than what it was made of."""
    return is_written(path) and not (source.is_file() and path.stat().st_mtime < source.stat().st_mtime)


def output_kinds(
    tasks: Sequence[Task],
    save: Sequence[str] | None = None,
    several: bool = False,
    camera: AssumedCamera = UNKNOWN_CAMERA,
) -> list[OutputFile]:
    """The files that words such as labels and overlays ask for, of these tasks.

    Labels go into the folder labels, depth into depth, normals into normals; a task with a name of its own, or beside
    another of its kind, into a folder of its name.

    Args:
        tasks: What is predicted.
        save: Keys of `SAVED`; None takes those of `DEFAULT` that the tasks have.
        several: Whether predictions are means of several answers, which can differ.
        camera: What took the pictures, of point clouds.

    Raises:
        ConfigurationError: If a word is unknown, or the tasks have nothing of the kind.

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> [(kind.folder, kind.ending) for kind in output_kinds([Depth()], ["depth", "arrays"])]
        [('depth', '.png'), ('depth_npy', '.npy')]
    """
    folders = output_folders(tasks)
    kinds: list[OutputFile] = []
    for word in dict.fromkeys(DEFAULT if save is None else save):
        if word not in SAVED:
            raise ConfigurationError(f"--save {word}: expected some of {', '.join(SAVED)}.")
        if word == "uncertainty" and not several:
            raise ConfigurationError(
                "--save uncertainty tells how several answers differ, but there is one: give several checkpoints, or "
                "--mc_dropout, --flip or --scales. --save entropy needs one alone."
            )
        asked = _kinds_of(word, tasks, folders, camera)
        if not asked and save is not None:
            names = ", ".join(f"{task.name} ({type(task).__name__})" for task in tasks)
            raise ConfigurationError(f"--save {word}: the network has no task with such a thing; it predicts {names}.")
        kinds += asked
    return kinds


def output_folders(tasks: Sequence[Task]) -> dict[str, str]:
    """The folder of each task's files, by its name."""
    usual = {Kind.LABEL: ("segmentation", "labels"), Kind.DEPTH: ("depth", "depth"), Kind.NORMALS: ("normals",) * 2}
    folders = {}
    for task in tasks:
        name, folder = usual.get(task.kind, ("", ""))
        alone = sum(other.kind == task.kind for other in tasks) == 1
        plain = re.sub(r"[^\w.-]", "_", task.name)  # of a checkpoint that may come from anywhere
        folders[task.name] = folder if folder and (task.name == name or alone) else plain.lstrip(".") or "task"
    return folders


def _kinds_of(word: str, tasks: Sequence[Task], folders: dict[str, str], camera: AssumedCamera) -> list[OutputFile]:
    if word == "pictures":
        return [OutputFile("pictures", ".jpg", lambda prediction: jpeg_bytes(prediction.render()))]
    kinds = []
    with_probabilities = [task for task in tasks if task.distribution is not None]
    for task in tasks:
        folder, one = folders[task.name], len(tasks) == 1
        if word == "overlays":
            kinds.append(OutputFile("overlays" if one else f"overlays/{folder}", ".jpg", _overlay(task.name)))
        elif word == "arrays" and task.kind is not Kind.LABEL:
            kinds.append(OutputFile(f"{folder}_npy", ".npy", _array(task.name)))
        elif word == "labels" and isinstance(task, Segmentation):
            ending = ".npy" if task.mode == "multilabel" else ".png"
            kinds.append(OutputFile(folder, ending, _labels(task)))
        elif word == "depth" and task.kind is Kind.DEPTH:
            kinds.append(OutputFile(folder, ".png", _depth(task.name), note=_beyond(task.name)))
        elif word == "ply" and task.kind is Kind.DEPTH:
            kinds.append(OutputFile(f"{folder}_ply", ".ply", _cloud(task.name, camera), note=camera.note))
        elif word == "normals" and task.kind is Kind.NORMALS:
            kinds.append(OutputFile(folder, ".png", _normals(task.name)))
        elif word == "uncertainty":
            key = _MEASURES.get(task.kind, "std")
            kinds.append(OutputFile(f"uncertainty/{folder}_{key}", ".npy", _spread(task.name, key), "uncertainty"))
        elif word in ("probabilities", "entropy", "confidence") and task.distribution is not None:
            place = word if len(with_probabilities) == 1 else f"{word}/{folder}"
            if word == "probabilities":
                kinds.append(OutputFile(place, ".npy", _probabilities(task.name), "evidence"))
            else:
                measure = entropy_share if word == "entropy" else confidence
                kinds.append(OutputFile(place, ".png", _share(task, measure), "evidence"))
    return kinds


def _labels(task: Segmentation) -> Callable[[Prediction], bytes]:
    def encode(prediction: Prediction) -> bytes:
        labels = prediction[task.name].numpy()
        return array_bytes(labels) if labels.ndim == 3 else label_bytes(labels, task.palette)

    return encode


def _depth(name: str) -> Callable[[Prediction], bytes]:
    return lambda prediction: depth_bytes(prediction[name][0].numpy())


def _beyond(name: str) -> Callable[[Prediction], str]:
    told = f"depth beyond {FARTHEST} m is written as that (--save arrays keeps it)"
    return lambda prediction: told if float(prediction[name].max()) > FARTHEST else ""


def _cloud(name: str, camera: AssumedCamera) -> Callable[[Prediction], bytes]:
    return lambda prediction: prediction_ply(prediction, camera.of(prediction), name)


def _normals(name: str) -> Callable[[Prediction], bytes]:
    return lambda prediction: normals_bytes(prediction[name].numpy().transpose(1, 2, 0))


def _array(name: str) -> Callable[[Prediction], bytes]:
    def encode(prediction: Prediction) -> bytes:
        planes = prediction[name].float().numpy()
        return array_bytes(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))

    return encode


def _overlay(name: str) -> Callable[[Prediction], bytes]:
    return lambda prediction: jpeg_bytes(prediction.overlay(name))


def _probabilities(name: str) -> Callable[[Prediction], bytes]:
    return lambda prediction: array_bytes(prediction.probabilities(name).half().numpy())


def _spread(name: str, key: str) -> Callable[[Prediction], bytes]:
    return lambda prediction: array_bytes(prediction.uncertainty[name][key][0].float().numpy())


def _share(task: Task, measure: Callable[[Tensor, Task], Tensor]) -> Callable[[Prediction], bytes]:
    def encode(prediction: Prediction) -> bytes:
        shares = measure(prediction.probabilities(task.name), task)
        return png_bytes((shares.clamp(0, 1) * 65535).round().to(torch.int32).numpy().astype(np.uint16))

    return encode
