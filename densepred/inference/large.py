"""Pictures larger than memory among others: which they are, and the files that they become, window by window."""

from collections.abc import Sequence
from pathlib import Path

from densepred.data.images import read_size
from densepred.errors import DataError
from densepred.inference.inputs import Source
from densepred.inference.output_files import OutputFiles, output_folders
from densepred.inference.predictor import Predictor
from densepred.inference.tiling import Tiled
from densepred.inference.window_readers import image_windows
from densepred.inference.windows import LargeOutcome, predict_large
from densepred.tasks.base import Task

LARGE = 40_000_000
"""Pixels from which on pictures are predicted by windows: their probabilities of 21 classes would take 3.4 GB."""
_WINDOWED = (".tif", ".tiff", ".npy")


class LargeImages:
    """Predicts large pictures by windows, as `predict_large` does, into .tif beside the others' .png.

    Labels, depth, normals and arrays are written of them, no overlays, point clouds or anything else; arrays alone as
    .npy.

    Args:
        predictor: Predicts in tiles.
        tiled: What it asks.
        files: What is written of other pictures.
        half: Compute in half precision.
        least: Pixels of a large picture.
    """

    def __init__(
        self, predictor: Predictor, tiled: Tiled, files: OutputFiles, half: bool = False, least: int = LARGE
    ) -> None:
        self.predictor = predictor
        self.tiled = tiled
        self.files = files
        self.half = half
        self.least = least

    def takes(self, path: Path) -> bool:
        """Whether a file is a large picture, by its header alone; arrays always are."""
        if path.suffix.lower() == ".npy":
            return True
        try:
            windowed = path.suffix.lower() in _WINDOWED
            height, width = image_windows(path, self.predictor.channels).size if windowed else read_size(path)
        except DataError:
            return False  # who reads it tells why
        return height * width >= self.least

    def targets(self, name: str) -> dict[str, Path]:
        """The files of a source, by task.

        Raises:
            DataError: If nothing is asked for that can be written by windows.
        """
        found = _targets(self.predictor.tasks, self.files, name)
        if not found:
            raise DataError(
                "Of pictures this large labels, depth, normals or arrays are written: ask for some (--save)."
            )
        return found

    def finished(self, source: Source) -> bool:
        """Whether all files of a source are there, and none is older than it."""
        paths = _targets(self.predictor.tasks, self.files, source.name).values()
        return bool(paths) and all(self.files.is_current(path, source.path) for path in paths)

    def predict(self, source: Source) -> LargeOutcome:
        """Predicts one, and shows a bar of its tiles."""
        targets = self.targets(source.name)
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        channels, device = self.predictor.channels, self.predictor.device
        return predict_large(self.tiled, source.path, targets, channels, device, self.half, progress=True)


def _targets(tasks: Sequence[Task], files: OutputFiles, name: str) -> dict[str, Path]:
    written = {kind.folder for kind in files.kinds}
    found = {}
    for task, folder in output_folders(tasks).items():
        if folder in written:
            found[task] = files.root / folder / f"{name}.tif"
        elif f"{folder}_npy" in written:
            found[task] = files.root / f"{folder}_npy" / f"{name}.npy"
    return found
