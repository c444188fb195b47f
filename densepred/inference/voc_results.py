"""Results for Pascal VOC's evaluation server: written as it wants them, and checked before they are sent."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from densepred.data.atomic import whole_file
from densepred.data.devkit import VOC_CLASSES
from densepred.data.images import read_size
from densepred.errors import ConfigurationError, DataError
from densepred.inference.file_contents import label_bytes, label_palette
from densepred.inference.output_files import OutputFile
from densepred.inference.prediction import Prediction
from densepred.palettes import voc_palette
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

Competition = Literal["comp5", "comp6"]
ARCHIVE = "results.tar.gz"
_ENDINGS = (".jpg", ".jpeg", ".png")


def results_folder(competition: Competition = "comp6", image_set: str = "test") -> str:
    """Where the server looks for results.

    Args:
        competition: comp5 allows training on VOC's own images alone, comp6 on any; weights from ImageNet are any.
        image_set: Name of the list of images.

    Example:
        >>> results_folder()
        'results/VOC2012/Segmentation/comp6_test_cls'
    """
    return f"results/VOC2012/Segmentation/{competition}_{image_set}_cls"


def voc_file(tasks: Sequence[Task], competition: Competition = "comp6", image_set: str = "test") -> OutputFile:
    """The file of a picture: VOC's class indices, 0 to 20, with its palette, at the picture's own size.

    Classes are found by their names, so that a network of some of them gives results too.

    Args:
        tasks: What is predicted; the first one of labels counts.
        competition: See `results_folder`.
        image_set: See `results_folder`.

    Raises:
        ConfigurationError: If the classes are not VOC's.
    """
    task = next((task for task in tasks if isinstance(task, Segmentation) and task.mode == "multiclass"), None)
    if task is None:
        raise ConfigurationError("--format voc wants a network of labels, one a pixel.")
    made_up = task.classes == [f"class_{index}" for index in range(len(VOC_CLASSES))]
    names = VOC_CLASSES if made_up else task.classes
    foreign = [name for name in names if name not in VOC_CLASSES]
    if foreign:
        raise ConfigurationError(
            f"--format voc: {foreign[0]!r} is no class of Pascal VOC; expected some of {', '.join(VOC_CLASSES)}."
        )
    table = np.array([VOC_CLASSES.index(name) for name in names], np.uint8)
    return OutputFile(results_folder(competition, image_set), ".png", _encoder(task.name, table))


def _encoder(name: str, table: np.ndarray) -> Callable[[Prediction], bytes]:
    palette = voc_palette(len(VOC_CLASSES))
    return lambda prediction: label_bytes(table[prediction[name].numpy()], palette)


def write_archive(root: Path, folder: str, names: Sequence[str]) -> Path:
    """Packs the results of these names, of a folder below `root`, into a tar.gz there; the same bytes every time."""
    path = root / ARCHIVE
    with (
        whole_file(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name in sorted(names):
            content = (root / folder / f"{name}.png").read_bytes()
            entry = tarfile.TarInfo(f"{folder}/{name}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def check_results(results: Path, names: Sequence[str], images: Path | Mapping[str, Path] | None = None) -> list[str]:
    """What is wrong with results for the server, a sentence a fault; nothing where they can be sent.

    They must hold a palette PNG for each name and no other, in one folder
    results/VOC2012/Segmentation/comp5_test_cls (or comp6, or another image set than test), with values 0 to 20, VOC's
    palette, and the size of the image.

    Args:
        results: The folder that holds `results`, or the archive.
        names: Of the image set.
        images: The folder of images (JPEGImages), or an image file by name, for their sizes; None leaves these
            unchecked.

    Raises:
        DataError: If there is no such folder or archive, or it cannot be read.
    """
    faults: list[str] = []
    seen: set[str] = set()
    folders: set[str] = set()
    wanted = set(names)
    for place, content in _entries(results):
        folders.add(str(place.parent))
        if place.suffix != ".png":
            faults.append(f"{place}: is no PNG; the server wants nothing else.")
        elif place.stem not in wanted:
            faults.append(f"{place}: is not in the image set.")
        elif place.stem in seen:
            faults.append(f"{place}: is there twice.")
        else:
            seen.add(place.stem)
            faults += _faults_of(place, content, _image_size(place.stem, images))
    missing = [name for name in names if name not in seen]
    faults += [f"{name}: has no result." for name in missing]
    if len(folders) > 1:
        faults.append(f"Expected one folder of results; found {', '.join(sorted(folders))}.")
    for folder in sorted(folders):
        if not PurePosixPath(folder).match("results/VOC2012/Segmentation/comp[56]_*_cls") or folder.count("/") != 3:
            faults.append(f"{folder}: is not where the server looks, such as {results_folder()}.")
    return faults


def _entries(results: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """All files of results, with their places from the top."""
    if results.is_dir():
        for path in sorted((results / "results").rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield PurePosixPath(path.relative_to(results).as_posix()), path.read_bytes()
        return
    if not results.is_file():
        raise DataError(f"{results}: there is no such folder or archive of results.")
    try:
        with tarfile.open(results) as archive:
            for entry in archive:
                if entry.isfile() and (file := archive.extractfile(entry)) is not None:
                    yield PurePosixPath(entry.name.removeprefix("./")), file.read()
                elif not entry.isdir():
                    raise DataError(f"{results}: {entry.name} is a link or device; the server wants files.")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{results}: cannot be read as a tar archive: {error}.") from error


def _faults_of(place: PurePosixPath, content: bytes, size: tuple[int, int] | None) -> list[str]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, palette, labels = image.mode, image.getpalette() or [], np.array(image)
            form = image.format
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return [f"{place}: cannot be read: {error}."]
    if mode != "P" or form != "PNG":
        return [f"{place}: expected a PNG with a palette; it is {form} of mode {mode}."]
    faults = []
    if size is not None and labels.shape != size:
        faults.append(f"{place}: its size is {labels.shape} (height, width), that of the image {size}.")
    strange = sorted(set(np.unique(labels).tolist()) - set(range(len(VOC_CLASSES))))
    if strange:
        faults.append(f"{place}: holds {', '.join(map(str, strange[:5]))}; expected values 0 to 20.")
    expected = label_palette(voc_palette(len(VOC_CLASSES)))[: 3 * len(VOC_CLASSES)]
    if not strange and palette[: len(expected)] != expected[: len(palette)]:
        faults.append(f"{place}: its palette is not VOC's.")
    return faults


def _image_size(name: str, images: Path | Mapping[str, Path] | None) -> tuple[int, int] | None:
    if images is None:
        return None
    if isinstance(images, Mapping):
        return read_size(images[name]) if name in images else None
    found = next((file for ending in _ENDINGS if (file := images / f"{name}{ending}").is_file()), None)
    if found is None:
        raise DataError(f"{images}: holds no image {name}{'|'.join(_ENDINGS)}.")
    return read_size(found)
