"""Images larger than memory: read, predicted and written window by window."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from densepred.errors import ConfigurationError, DataError
from densepred.inference.file_contents import label_palette, millimetres, normals_colours
from densepred.inference.tiling import Tiled
from densepred.inference.window_readers import ImageWindows, image_windows
from densepred.inference.window_writers import CELL, WindowWriter, window_writer
from densepred.sample import Kind
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class LargeOutcome:
    """What became of a large image.

    Args:
        size: Its height and width.
        tiles: How many were asked about.
        seconds: From the first to the last.
        notes: What was done to the image, for people.
    """

    size: tuple[int, int]
    tiles: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def megapixels_per_second(self) -> float:
        """Of the image."""
        return self.size[0] * self.size[1] / 1e6 / max(self.seconds, 1e-9)


@torch.inference_mode()
def predict_large(
    evidence: Tiled,
    source: str | Path | ImageWindows,
    targets: Mapping[str, Path],
    channels: int = 3,
    device: torch.device | str = "cpu",
    half: bool = False,
    sums: int = 512 * 2**20,
    progress: bool = False,
) -> LargeOutcome:
    """Predicts an image that is never in memory as a whole, into files that are never there in parts.

    Memory holds the network at work on a batch of tiles, the sums over a row of tiles in a stripe of the image (see
    `Tiled.regions`), and what is decided of them before it is written: all of it follows the tile and the number of
    planes. An error or an interrupt leaves no file; the image then begins anew.

    ========= ======================================================== ==============================================
    task      .tif (BigTIFF, deflated tiles)                           .npy
    ========= ======================================================== ==============================================
    labels    uint8 with the classes' palette; uint16 above 255        the same numbers, (H, W) or (H, W, classes)
              classes; a band a class where several hold at once
    depth     uint16 millimetres, 0 is missing                         float32 metres (H, W)
    normals   uint8, n = 2 v / 255 - 1 in red, green, blue             float32 unit vectors (H, W, 3)
    others    float32                                                  float32 (H, W) or (H, W, planes)
    ========= ======================================================== ==============================================

    Args:
        evidence: Is asked; samples of dropout, mirror images and further sizes go inside of it, tile by tile:
            `Tiled(replace(options, tile=None).applied(evidence), options.tile)`.
        source: A file; see `image_windows` for what is read by windows.
        targets: The files to write by task name, some or all.
        channels: What the network takes.
        device: Where it runs.
        half: Compute in half precision (bfloat16).
        sums: Bytes of the sums, see `Tiled.regions`.
        progress: Show a bar of tiles.

    Raises:
        ConfigurationError: If a target is of a task that there is not.
        DataError: If the source cannot be read or a target not be written.
    """
    tasks = {task.name: task for task in evidence.tasks}
    if unknown := sorted(set(targets) - set(tasks)):
        raise ConfigurationError(f"There is no task {', '.join(unknown)} to write; there are {', '.join(tasks)}.")
    device = torch.device(device)
    windows = source if isinstance(source, ImageWindows) else image_windows(source, channels)
    begin = perf_counter()
    tiles = evidence.count(windows.size, sums, CELL)
    bar = tqdm(total=tiles, unit=" tiles", disable=not progress, mininterval=0.2)
    regions = evidence.regions(
        lambda rows, columns: windows(rows, columns).to(device), windows.size, sums=sums, cell=CELL, on_tiles=bar.update
    )
    try:
        with bar, ExitStack() as stack, torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            writers: dict[str, WindowWriter] = {}
            for rows, columns, said in regions:
                for name, path in targets.items():
                    values = _values(tasks[name].decide(said[name]), tasks[name], path)
                    if name not in writers:
                        writers[name] = stack.enter_context(_writer(path, windows.size, values, tasks[name]))
                    writers[name].write(rows, columns, values)
    except OSError as error:
        where = error.filename or ", ".join(map(str, targets.values()))
        raise DataError(
            f"{where}: {error.strerror or error}. Nothing of it was kept; make room, or write elsewhere."
        ) from error
    return LargeOutcome(windows.size, tiles, perf_counter() - begin, tuple(windows.notes))


def _values(prediction: Tensor, task: Task, path: Path) -> np.ndarray:
    """A prediction (1, ...) as it is written, (H, W) or (H, W, bands)."""
    array = prediction[0].cpu().numpy()
    if array.ndim == 3:
        array = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
    if path.suffix.lower() == ".npy":
        return array
    if task.kind is Kind.DEPTH:
        return millimetres(array)
    if task.kind is Kind.NORMALS:
        return normals_colours(array)
    return array.astype(np.uint16) if array.dtype == np.int32 else array


def _writer(path: Path, size: tuple[int, int], values: np.ndarray, task: Task) -> WindowWriter:
    one = isinstance(task, Segmentation) and values.ndim == 2 and values.dtype == np.uint8
    palette = label_palette(task.palette) if one and isinstance(task, Segmentation) else None
    return window_writer(path, (*size, *values.shape[2:]), values.dtype, palette)
