"""Pascal VOC 2012 from its archive to the folder that `PascalVOC` reads."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from densepred.data.devkit import find_voc
from densepred.data.listing import read_list
from densepred.data.prepare.archives import Entry, entries, unpack
from densepred.data.prepare.download import RemoteFile
from densepred.errors import DataError

VOC_ARCHIVE = RemoteFile(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
    ),
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    ways_out=(
        "Ways out: the Oxford host is often away, so try later; or give a mirror of the same file with --url (its "
        "checksum is tested); or get the archive (1.9 GiB) elsewhere, Kaggle's voctrainval-11may2012 for example, and "
        "run `densepred prepare voc FILE`, which takes a .tar, a .zip or an unpacked folder."
    ),
)
PUBLISHED = {"train": 1464, "val": 1449, "trainval": 2913}


def prepare_voc(source: Path, root: Path) -> Path:
    """Unpacks (or copies) VOC 2012 to `root/VOCdevkit/VOC2012`, which appears only when it is complete.

    Args:
        source: The official archive, or a folder that holds it unpacked (the folder with `ImageSets` or one above it).
        root: The folder of data sets.

    Returns:
        `root/VOCdevkit/VOC2012`. Where it stands already and is complete, nothing is done.

    Raises:
        DataError: If the archive is damaged, unsafe or something else, or if the target is there and not complete.
    """
    target = root / "VOCdevkit" / "VOC2012"
    if target.exists():
        check_voc(target)
        return target
    files = _files_of(source)
    unfinished = target.with_name(".VOC2012.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        unpack(tqdm(files, desc="unpacking", unit=" files", disable=None), unfinished)
        voc = _voc_inside(unfinished, source)
        check_voc(voc, source)
        voc.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def check_voc(voc: Path, source: Path | None = None) -> dict[str, int]:
    """How many images each segmentation list names; every one must be there with its label.

    Args:
        voc: The folder with `ImageSets`.
        source: What it was unpacked from, to be named in errors in its place.

    Raises:
        DataError: If a list, an image or a label is missing.
    """
    counts = {}
    for split in PUBLISHED:
        names = read_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt")
        files = [voc / part for n in names for part in (f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png")]
        missing = [file for file in files if not file.is_file()]
        if missing:
            way_out = "get the archive again" if source else "remove the folder and prepare it anew"
            raise DataError(
                f"{source or voc}: incomplete: {len(missing)} of the {len(files)} files that {split}.txt names are "
                f"missing, the first is {missing[0].relative_to(voc)}; {way_out}"
            )
        counts[split] = len(names)
    return counts


def _files_of(source: Path) -> Iterator[Entry]:
    """All of an archive, but no more than the VOC folder out of a folder."""
    if not source.is_dir():
        return entries(source)
    voc = find_voc(source)
    if voc is None:
        raise DataError(
            f"{source}: no VOC folder; expected ImageSets/Segmentation and JPEGImages in it, in VOC2012 or in "
            "VOCdevkit/VOC2012"
        )
    return entries(voc)


def _voc_inside(folder: Path, source: Path) -> Path:
    """The VOC folder among what was unpacked, however deep: mirrors nest it differently."""
    for found in sorted(folder.rglob("ImageSets/Segmentation/train.txt")):
        return found.parents[2]
    raise DataError(
        f"{source}: holds no VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt; is it the VOC 2012 archive?"
    )
