"""`densepred prepare`: brings a published data set into the layout that densepred reads."""

import argparse
from pathlib import Path

ABOUT = {
    "voc": "Pascal VOC 2012: ROOT/VOCdevkit/VOC2012 from the official archive (1.9 GiB)",
    "sbd": "SBD's labels beside VOC's: 10,582 training images (SegmentationClassAug, trainaug.txt)",
    "nyu": "NYU Depth v2: images, depth, 40 classes from the official labelled .mat file (2.8 GiB)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a parser for each data set; what each takes is a local file or, left out, a download."""
    data_sets = parser.add_subparsers(dest="data_set", metavar="DATASET", required=True)
    voc, sbd, nyu = (data_sets.add_parser(name, help=text, description=text) for name, text in ABOUT.items())
    voc.set_defaults(prepare=_prepare_voc)
    voc.add_argument("archive", nargs="?", type=Path, help="VOCtrainval_11-May-2012.tar, a .zip or an unpacked folder")
    sbd.set_defaults(prepare=_prepare_sbd)
    sbd.add_argument("archive", nargs="?", type=Path, help="benchmark.tgz or the unpacked folder benchmark_RELEASE")
    for own in (voc, sbd):
        own.add_argument(
            "--root", type=Path, default=Path("data"), metavar="FOLDER", help="folder of VOCdevkit (default: data)"
        )
    nyu.set_defaults(prepare=_prepare_nyu)
    _add_nyu_arguments(nyu)
    for own in (voc, sbd, nyu):
        own.add_argument(
            "--downloads",
            type=Path,
            default=Path("data/downloads"),
            metavar="FOLDER",
            help="where archives are kept (default: data/downloads); what a broken download left there is continued",
        )
        own.add_argument("--url", help="another address of the same archive; its checksum is tested")


def _add_nyu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", nargs="?", type=Path, metavar="FILE.mat", help="nyu_depth_v2_labeled.mat")
    parser.add_argument(
        "--splits", type=Path, metavar="FILE", help="splits.mat (default: beside FILE.mat, else downloaded)"
    )
    parser.add_argument(
        "--mapping", type=Path, metavar="FILE", help="classMapping40.mat (default: beside FILE.mat, else downloaded)"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/nyuv2"), metavar="FOLDER", help="folder to make (default: data/nyuv2)"
    )
    parser.add_argument(
        "--depth",
        choices=("raw", "filled"),
        default="raw",
        help="raw: the sensor's holes stay missing, 0 (default); filled: the authors' inpainted depth",
    )
    parser.add_argument(
        "--quality", type=_quality, default=95, metavar="1-100", help="of the JPEG images (default: 95)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepares the data set that was named and says where it is."""
    arguments.prepare(arguments)
    return 0


def _prepare_voc(arguments: argparse.Namespace) -> None:
    from densepred.data.prepare.download import fetch
    from densepred.data.prepare.voc import PUBLISHED, VOC_ARCHIVE, check_voc, prepare_voc

    target = arguments.root / "VOCdevkit" / "VOC2012"
    source = arguments.archive
    if source is None and not target.exists():
        source = fetch(VOC_ARCHIVE, arguments.downloads, arguments.url)
    voc = prepare_voc(source or target, arguments.root)
    counts = check_voc(voc)
    print(f"Pascal VOC 2012 is in {voc}: {counts['train']:,} training and {counts['val']:,} validation images")
    if counts != PUBLISHED:
        print(f"  (a part of it: the published set has {PUBLISHED['train']:,} and {PUBLISHED['val']:,})")
    _say_next(f"densepred prepare sbd --root {arguments.root}    # 10,582 training images instead of 1,464")
    _say_fit("voc_unet_resnet34", voc)


def _prepare_sbd(arguments: argparse.Namespace) -> None:
    from densepred.data.devkit import find_voc
    from densepred.data.prepare.download import fetch
    from densepred.data.prepare.sbd import PUBLISHED_TRAINAUG, SBD_ARCHIVE, prepare_sbd
    from densepred.errors import DataError

    voc = find_voc(arguments.root)
    if voc is None:
        raise DataError(
            f"{arguments.root}: no VOC 2012 there (VOCdevkit/VOC2012/ImageSets), and SBD's labels are for its images; "
            f"first run: densepred prepare voc --root {arguments.root}"
        )
    made = prepare_sbd(arguments.archive or fetch(SBD_ARCHIVE, arguments.downloads, arguments.url), voc)
    print(f"SBD's labels are in {made.folder}: trainaug has {made.trainaug:,} images")
    print(f"  SBD {made.sbd_train:,} train and {made.sbd_val:,} val, {made.voc_labels:,} labels taken from VOC itself")
    if made.images_added:
        print(f"  JPEGImages: {made.images_added:,} added that VOC lacked")
    if made.trainaug != PUBLISHED_TRAINAUG:
        print(f"  (a part of it: from the published sets it has {PUBLISHED_TRAINAUG:,})")
    _say_fit("voc_unet_resnet34", voc, " --data.train_split trainaug")


def _prepare_nyu(arguments: argparse.Namespace) -> None:
    from densepred.data.prepare.download import fetch
    from densepred.data.prepare.nyu import LABELLED, MAPPING_13, MAPPING_40, SPLITS, prepare_nyu
    from densepred.data.prepare.nyu_labelled import LabelledFile

    if arguments.archive:  # a bad file is said before anything is downloaded for it
        LabelledFile(arguments.archive, arguments.depth).close()
    # the small files first: better to miss one before the 2.8 GiB than after
    splits = arguments.splits or _beside(SPLITS.name, arguments) or fetch(SPLITS, arguments.downloads)
    mapping = arguments.mapping or _beside(MAPPING_40.name, arguments) or fetch(MAPPING_40, arguments.downloads)
    mapping13 = _beside(MAPPING_13.name, arguments)
    if mapping13 is None and arguments.archive is None:
        mapping13 = fetch(MAPPING_13, arguments.downloads)
    labelled = arguments.archive or fetch(LABELLED, arguments.downloads, arguments.url)
    counts = prepare_nyu(labelled, splits, mapping, arguments.root, mapping13, arguments.depth, arguments.quality)
    holes = "raw depth, holes kept as missing" if arguments.depth == "raw" else "filled depth"
    print(
        f"NYU Depth v2 is in {arguments.root}: {counts['train']:,} training and {counts['test']:,} test frames, {holes}"
    )
    _say_fit("nyu_multitask_resnet50", arguments.root)


def _beside(name: str, arguments: argparse.Namespace) -> Path | None:
    """A small official file where users keep it: beside the large one, or in the folder to make."""
    folders = [arguments.archive.parent, arguments.archive.parent / "meta"] if arguments.archive else []
    for folder in (*folders, arguments.root / "meta", arguments.downloads):
        if (folder / name).is_file():
            found: Path = folder / name
            return found
    return None


def _quality(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100, got {text!r}")
    return int(text)


def _say_fit(experiment: str, root: Path, more: str = "") -> None:
    _say_next(f"densepred fit --config experiments/{experiment}.yaml --data.root {root}{more}")


def _say_next(command: str) -> None:
    print(f"Next:  {command}")
