"""The Semantic Boundaries Dataset as extra training labels for Pascal VOC (`trainaug`)."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from densepred.data.atomic import is_written, settle, whole_file
from densepred.data.devkit import VOC_CLASSES
from densepred.data.listing import read_list, write_list
from densepred.data.prepare.archives import Entry, entries
from densepred.data.prepare.download import RemoteFile
from densepred.data.prepare.matlab import read_mat
from densepred.errors import DataError
from densepred.sample import VOID

SBD_ARCHIVE = RemoteFile(
    name="benchmark.tgz",
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ways_out=(
        "Ways out: try later; or give a mirror of the same file with --url (its checksum is tested); or get "
        "benchmark.tgz (1.3 GiB) elsewhere and run `densepred prepare sbd FILE`, which takes the archive or the "
        "unpacked folder benchmark_RELEASE."
    ),
)
LABEL_FOLDER = "SegmentationClassAug"
PUBLISHED_TRAINAUG = 10_582


@dataclass
class Augmented:
    """What `prepare_sbd` made.

    Args:
        folder: The label folder.
        trainaug: Images in `trainaug.txt`.
        sbd_train: Images in SBD's own `train.txt`.
        sbd_val: Images in SBD's own `val.txt`.
        voc_labels: Labels taken over from VOC, in preference to SBD's.
        images_added: Photographs that VOC lacked and SBD's archive had.
    """

    folder: Path
    trainaug: int = 0
    sbd_train: int = 0
    sbd_val: int = 0
    voc_labels: int = 0
    images_added: int = 0


@dataclass
class _Found:
    """Names met in the archive."""

    lists: dict[str, list[str]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)


def prepare_sbd(source: Path, voc: Path) -> Augmented:
    """Adds SBD's labels to a VOC 2012 folder: `SegmentationClassAug/*.png` and `ImageSets/Segmentation/trainaug.txt`.

    The archive is read once, from front to back, without unpacking it. An image that VOC labels itself keeps VOC's
    label: SBD's contours are coarser and have no void border. `trainaug` is SBD train, SBD val and VOC train without
    VOC val, sorted: 10,582 images of the published sets. A label or photograph that is there already is not made
    again; the list is written last.

    Args:
        source: `benchmark.tgz`, or a folder that holds it unpacked.
        voc: The folder `VOC2012`.

    Raises:
        DataError: If a file of either set is missing or damaged, or a label does not fit its image.

    Reference:
        Hariharan, Arbelaez, Bourdev, Maji, Malik. Semantic Contours from Inverse Detectors. ICCV 2011.
    """
    lists = voc / "ImageSets" / "Segmentation"
    voc_train, voc_val = set(read_list(lists / "train.txt")), set(read_list(lists / "val.txt"))
    result = Augmented(voc / LABEL_FOLDER)
    result.folder.mkdir(exist_ok=True)
    _take_over_voc_labels(voc, sorted(voc_train | voc_val), result)
    found = _Found()
    palette = _voc_palette(voc, sorted(voc_train)[0])
    for entry in tqdm(_sbd_files(source), desc="reading SBD", unit=" files", disable=None):
        _take(entry, voc, palette, found, result)
    names = _augmented_names(source, found, voc_train, voc_val)
    _check_pairs(source, voc, names)
    result.sbd_train, result.sbd_val = len(found.lists["train"]), len(found.lists["val"])
    result.trainaug = len(names)
    settle(result.folder / f"{name}.png" for name in names)
    write_list(lists / "trainaug.txt", names)
    return result


def read_sbd_label(data: bytes, name: str) -> np.ndarray:
    """The class of each pixel from one of SBD's `cls/*.mat`: `GTcls.Segmentation`.

    Shape:
        returns: (H, W), uint8, 0 to 20.

    Raises:
        DataError: If the file is damaged or something else, with `name` in the message.
    """
    try:
        label = read_mat(data, "GTcls", "Segmentation")
    except ValueError as error:
        raise DataError(f"{name}: not an SBD label, GTcls.Segmentation could not be read ({error})") from error
    if label.ndim != 2 or label.dtype.kind not in "ui":
        raise DataError(f"{name}: expected whole numbers (H, W), got {label.dtype} {label.shape}")
    wrong = (label >= len(VOC_CLASSES)) & (label != VOID)
    if wrong.any():
        raise DataError(
            f"{name}: holds the value {int(label[wrong][0])}; SBD's classes are 0 to {len(VOC_CLASSES) - 1}"
        )
    return label.astype(np.uint8)


def _sbd_files(source: Path) -> Iterator[Entry]:
    """The entries of `dataset/cls`, `dataset/img` and the two lists, wherever `dataset` is in the archive."""
    for entry in entries(_dataset_folder(source) if source.is_dir() else source):
        where = entry.path.parts[-2] if len(entry.path.parts) > 1 else "dataset"
        hidden = entry.path.name.startswith("._")  # macOS writes these into archives
        if not hidden and (where, entry.path.suffix) in (("cls", ".mat"), ("img", ".jpg"), ("dataset", ".txt")):
            yield entry


def _dataset_folder(folder: Path) -> Path:
    for candidate in (folder, folder / "dataset", folder / "benchmark_RELEASE" / "dataset"):
        if (candidate / "cls").is_dir():
            return candidate
    raise DataError(f"{folder}: no SBD folder; expected cls/*.mat in it, in dataset or in benchmark_RELEASE/dataset")


def _take_over_voc_labels(voc: Path, names: list[str], result: Augmented) -> None:
    for name in names:
        target = result.folder / f"{name}.png"
        if not is_written(target):
            source = voc / "SegmentationClass" / f"{name}.png"
            if not source.is_file():
                raise DataError(f"{source}: missing; run `densepred prepare voc` again")
            with whole_file(target) as temporary:
                shutil.copyfile(source, temporary)
        result.voc_labels += 1


def _take(entry: Entry, voc: Path, palette: bytes | None, found: _Found, result: Augmented) -> None:
    """Makes of an entry what it is for."""
    name, kind = entry.path.stem, entry.path.suffix
    if kind == ".txt":
        found.lists[name] = entry.read().decode().split()
    elif kind == ".mat":
        found.labels.add(name)
        target = result.folder / f"{name}.png"
        if not is_written(target):  # VOC's own labels are there by now
            _write_label(read_sbd_label(entry.read(), f"{entry.source}: {entry.path}"), palette, target)
    elif not is_written(voc / "JPEGImages" / entry.path.name):
        with whole_file(voc / "JPEGImages" / entry.path.name) as temporary:
            entry.copy_to(temporary)
        result.images_added += 1


def _voc_palette(voc: Path, name: str) -> bytes | None:
    """VOC's colours, from one of its own labels; None where they are plain grey files."""
    with Image.open(voc / "SegmentationClass" / f"{name}.png") as label:
        palette = label.getpalette()
    return bytes(palette) if palette else None


def _write_label(label: np.ndarray, palette: bytes | None, target: Path) -> None:
    picture = Image.fromarray(label)
    if palette:
        picture.putpalette(palette)
    with whole_file(target) as temporary:
        picture.save(temporary, format="PNG")


def _augmented_names(source: Path, found: _Found, voc_train: set[str], voc_val: set[str]) -> list[str]:
    for split in ("train", "val"):
        names = found.lists.get(split)
        if not names:
            raise DataError(f"{source}: dataset/{split}.txt is missing or empty; is it SBD's benchmark.tgz?")
        lacking = sorted(set(names) - found.labels)
        if lacking:
            raise DataError(
                f"{source}: dataset/{split}.txt names {len(lacking)} images without a label, the first is "
                f"{PurePosixPath('dataset/cls') / lacking[0]}.mat; get the archive again"
            )
    return sorted((set(found.lists["train"]) | set(found.lists["val"]) | voc_train) - voc_val)


def _check_pairs(source: Path, voc: Path, names: list[str]) -> None:
    """Every image of the list is there and as large as its label."""
    for name in tqdm(names, desc="checking", unit=" images", disable=None):
        picture, label = voc / "JPEGImages" / f"{name}.jpg", voc / LABEL_FOLDER / f"{name}.png"
        if not picture.is_file():
            raise DataError(f"{picture}: missing in VOC and in {source}; prepare VOC 2012 again, it holds all of them")
        try:
            with Image.open(picture) as photo, Image.open(label) as classes:
                sizes = photo.size, classes.size
        except OSError as error:
            raise DataError(f"{picture}, {label}: could not be read ({error}); delete both and run again") from error
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{label}: {sizes[1][1]} x {sizes[1][0]} pixels, its image {picture} has {sizes[0][1]} x {sizes[0][0]}"
            )
