"""NYU Depth v2 from the official labelled `.mat` file to the folder that `NYUDepthV2` reads."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from densepred.data.atomic import is_written, settle, whole_file
from densepred.data.listing import write_list
from densepred.data.prepare.download import RemoteFile
from densepred.data.prepare.nyu_labelled import Frame, LabelledFile, read_mapping, read_splits
from densepred.errors import DataError

_ELSEWHERE = "or get it elsewhere and name it on the command line: densepred prepare nyu FILE.mat --splits splits.mat "
LABELLED = RemoteFile(
    name="nyu_depth_v2_labeled.mat",
    urls=(
        "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
        "https://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
    ),
    md5="520609c519fba3ba5ac58c8fefcc3530",
    ways_out=(
        "Ways out: try later (https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html); give a mirror of the same file "
        f"with --url (its checksum is tested); {_ELSEWHERE}--mapping classMapping40.mat"
    ),
)
SPLITS = RemoteFile(
    name="splits.mat",
    urls=(
        "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat",
        "https://github.com/ankurhanda/nyuv2-meta-data/raw/master/splits.mat",
    ),
    md5="08e3c3aea27130ac7c01ffd739a4535f",
    ways_out="Ways out: put splits.mat (2.6 KiB) beside the labelled .mat file, or name it with --splits",
)
MAPPING_40 = RemoteFile(
    name="classMapping40.mat",
    urls=("https://github.com/ankurhanda/nyuv2-meta-data/raw/master/classMapping40.mat",),
    md5=None,  # none is published; its content is checked when it is read
    ways_out=(
        "Ways out: put classMapping40.mat (10 KiB; Gupta et al.'s 894 -> 40 classes, also in their rcnn-depth code) "
        "beside the labelled .mat file, or name it with --mapping"
    ),
)
MAPPING_13 = RemoteFile(
    name="class13Mapping.mat",
    urls=("https://github.com/ankurhanda/nyuv2-meta-data/raw/master/class13Mapping.mat",),
    md5=None,
    ways_out="Ways out: put class13Mapping.mat (408 bytes) beside the labelled .mat file",
)


def prepare_nyu(
    labelled: Path,
    splits: Path,
    mapping: Path,
    root: Path,
    mapping13: Path | None = None,
    depth: str = "raw",
    quality: int = 95,
) -> dict[str, int]:
    """Writes rgb, depth, label40, the lists and `meta` below `root`, a frame at a time.

    A frame's files are written under other names and renamed, frames that are there are not written again, and
    `train.txt` and `test.txt`, without which the folder is no data set, come last. So a run that was killed goes on
    where it stopped. `meta/prepared.json` keeps what the folder was made from and how.

    Args:
        labelled: `nyu_depth_v2_labeled.mat`.
        splits: `splits.mat`.
        mapping: `classMapping40.mat`.
        root: The folder to make.
        mapping13: `class13Mapping.mat`, only kept in `meta`.
        depth: `raw`, with the sensor's holes kept as 0, or `filled`, the authors' inpainted depth.
        quality: Of the JPEG files, 1 to 100; 95 without chroma subsampling is visually lossless.

    Returns:
        How many frames each list names.

    Shape:
        rgb/0001.jpg: 480 x 640. depth/0001.png: uint16 millimetres, 0 where missing. label40/0001.png: uint8, 0 to 39
        in the order of the 40 classes, 255 where unlabelled.

    Raises:
        DataError: If a file is damaged or not what it should be, or `root` holds frames made otherwise.

    Reference:
        Silberman, Hoiem, Kohli, Fergus. Indoor Segmentation and Support Inference from RGBD Images. ECCV 2012.
        Gupta, Arbelaez, Malik. Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images. CVPR 2013
        (the 40 classes).
    """
    classes = read_mapping(mapping)
    with LabelledFile(labelled, depth) as source:
        lists = read_splits(splits, len(source))
        made = {"frames": len(source), "depth": depth, "jpeg_quality": quality, "source_bytes": labelled.stat().st_size}
        _begin(root, labelled.name, made)
        _write_frames(source, root, classes, quality)
        settle(file for number in range(1, len(source) + 1) for file in frame_files(root, number))
    for file, remote in ((splits, SPLITS), (mapping, MAPPING_40), (mapping13, MAPPING_13)):
        if file is not None:
            _keep(file, root / "meta" / remote.name)
    for split, numbers in lists.items():
        write_list(root / f"{split}.txt", [frame_name(number) for number in numbers])
    return {split: len(numbers) for split, numbers in lists.items()}


def frame_name(number: int) -> str:
    """The name of the frame with this number, counted from 1 as in `splits.mat`.

    Example:
        >>> frame_name(7)
        '0007'
    """
    return f"{number:04d}"


def frame_files(root: Path, number: int) -> tuple[Path, Path, Path]:
    """A frame's image, depth and label file."""
    name = frame_name(number)
    return root / "rgb" / f"{name}.jpg", root / "depth" / f"{name}.png", root / "label40" / f"{name}.png"


def _begin(root: Path, source: str, made: dict[str, Any]) -> None:
    """Says what the folder is made from, or refuses to mix it with frames made otherwise."""
    record = root / "meta" / "prepared.json"
    if record.exists():
        before = json.loads(record.read_text())
        other = [f"{key} was {before.get(key)}, now {value}" for key, value in made.items() if before.get(key) != value]
        if other:
            raise DataError(
                f"{root}: was prepared, or begun, otherwise ({'; '.join(other)}). Give another --root, or delete the "
                "folder to make it anew"
            )
        return
    if any((root / folder).exists() for folder in ("rgb", "depth", "label40", "train.txt")):
        raise DataError(f"{root}: holds frames that this command did not make; give another --root, or delete it")
    with whole_file(record) as temporary:
        temporary.write_text(json.dumps({"source": source, **made}, indent=2) + "\n")


def _write_frames(source: LabelledFile, root: Path, classes: np.ndarray, quality: int) -> None:
    for folder in ("rgb", "depth", "label40"):
        (root / folder).mkdir(exist_ok=True)
    missing = {n for n in range(1, len(source) + 1) if not all(map(is_written, frame_files(root, n)))}
    if not missing:
        return
    if len(missing) < len(source):
        print(f"{len(source) - len(missing):,} of {len(source):,} frames are there already", flush=True)
    # the encoders release the interpreter's lock, so compression overlaps with reading
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(total=len(source), initial=len(source) - len(missing), desc="NYU v2", unit=" frames", disable=None) as bar,
    ):
        for block in source.blocks(missing, classes):
            for _ in pool.map(lambda frame: _write_frame(frame, root, quality), block):
                bar.update()


def _write_frame(frame: Frame, root: Path, quality: int) -> None:
    rgb, depth, label = frame_files(root, frame.number)
    with whole_file(rgb) as temporary:
        # 4:4:4: with chroma at half size thin coloured things lose their edges, which dense labels follow
        Image.fromarray(frame.rgb).save(temporary, format="JPEG", quality=quality, subsampling=0)
    with whole_file(depth) as temporary:
        Image.fromarray(frame.millimetres).save(temporary, format="PNG")
    with whole_file(label) as temporary:
        Image.fromarray(frame.label40).save(temporary, format="PNG")


def _keep(file: Path, target: Path) -> None:
    if file.resolve() != target.resolve():
        with whole_file(target) as temporary:
            shutil.copyfile(file, temporary)
