"""What `densepred predict` can be asked for."""

import argparse
from pathlib import Path
from typing import Any

from densepred.inference.cameras import FIELD_OF_VIEW
from densepred.inference.output_files import DEFAULT, SAVED
from densepred.inference.published import PUBLISHED
from densepred.refine.dense_crf import PUBLISHED as CRFS

SHEET = "sheet.png"
FAILED = "failed.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network, which pictures, what to write, and how to ask."""
    parser.usage = (
        "densepred predict --ckpt_path FILE [FILE ...] --input PICTURES [...] --output FOLDER [OPTION ...]\n"
        "       densepred predict --weights torchvision/deeplabv3_resnet50 --input PICTURES [...]\n"
        "       densepred predict --check RESULTS --names LIST [--input JPEGImages]"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "--save takes:\n" + "\n".join(f"  {word:<14} {what}" for word, what in SAVED.items()) + (
        "\n\nExit status: 0 where all pictures were predicted, 1 where some could not be (they are listed at the end, "
        f"and in {FAILED}).\nThe same command again goes on where it was stopped: files that are there are kept."
    )  # fmt: skip
    network = parser.add_argument_group("network")
    network.add_argument(
        "--ckpt_path", nargs="+", default=[], metavar="FILE",
        help="a checkpoint, or best or last of the newest run below --root; several are averaged (an ensemble)",
    )  # fmt: skip
    network.add_argument("--root", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    network.add_argument(
        "--weights", metavar="NAME",
        help=f"a published network instead, without any training: {', '.join(PUBLISHED)}; NAME=FILE where its file is "
        "not in torch.hub's cache",
    )  # fmt: skip
    network.add_argument(
        "--allow", action="append", default=[], metavar="NAME",
        help="a package or class outside densepred, torch and torchvision that the checkpoint may build",
    )  # fmt: skip
    network.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    network.add_argument("--half", action="store_true", help="compute in bfloat16: faster on GPUs, a little less exact")
    network.add_argument(
        "--batch_size", type=int, default=1, metavar="N", help="pictures of one size at once (default: %(default)s)"
    )
    _add_inputs(parser.add_argument_group("input and output"))
    _add_options(parser.add_argument_group("how the network is asked"))
    _add_truth(parser.add_argument_group("what is true"))
    _add_voc(parser.add_argument_group("Pascal VOC's evaluation server"))


def _add_inputs(group: Any) -> None:
    group.add_argument(
        "--input", nargs="+", default=[], metavar="PATH",
        help="pictures, videos, folders of them, patterns such as 'photos/**/*.jpg', .txt files with a path a line",
    )  # fmt: skip
    group.add_argument("--recursive", action="store_true", help="look into the folders of a folder, too")
    group.add_argument("--names", type=Path, metavar="LIST", help="only the pictures of these names, one a line")
    group.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="FOLDER", help="default: %(default)s"
    )
    group.add_argument(
        "--save", nargs="+", metavar="WHAT", help=f"what is written, see below (default: {' '.join(DEFAULT)})"
    )
    group.add_argument(
        "--field_of_view", type=float, default=FIELD_OF_VIEW, metavar="DEGREES",
        help="of point clouds: along the longer side, where a picture's EXIF data tell no focal length (default: "
        "%(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"),
        help="of point clouds: the camera of all pictures at their own size, in pixels",
    )  # fmt: skip
    group.add_argument(
        "--sheet", type=int, default=12, metavar="N", help=f"pictures on {SHEET}; 0: none (default: %(default)s)"
    )
    group.add_argument("--overwrite", action="store_true", help="predict again what is there")
    group.add_argument("--frames", action="store_true", help="of videos write each frame's files, too")
    group.add_argument("--every", type=int, default=1, metavar="N", help="of videos take each N-th frame")


def _add_options(group: Any) -> None:
    group.add_argument(
        "--short_side", metavar="N",
        help="bring pictures to this shorter side first, or none; default: as the run's data did, which is told",
    )  # fmt: skip
    group.add_argument("--scales", type=float, nargs="+", metavar="S", help="ask at these factors of the size")
    group.add_argument("--short_sides", type=int, nargs="+", metavar="N", help="ask at these shorter sides")
    group.add_argument("--flip", action="store_true", help="ask about mirror images, too")
    group.add_argument("--merge", choices=("mean", "logit", "max"), default="mean", help="default: %(default)s")
    group.add_argument("--mc_dropout", type=int, default=0, metavar="N", help="samples of Monte Carlo dropout")
    group.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="ask tile by tile: side of the tiles. From 40 megapixels on by windows, into .tif",
    )
    group.add_argument(
        "--overlap", metavar="N", help="of tiles: pixels, or a share of the tile below 1 (default: 0.25)"
    )
    group.add_argument(
        "--crf", nargs="?", choices=tuple(CRFS), const=next(iter(CRFS)),
        help=f"refine labels by a dense CRF that sees the picture: whose parameters (default: {next(iter(CRFS))})",
    )  # fmt: skip
    _add_budget(group)


def _add_budget(group: Any) -> None:
    group.add_argument(
        "--budget", metavar="AMOUNT",
        help="of a network with exits: what each answer may cost, operations or time: 0.5gmac, 200ms",
    )  # fmt: skip
    group.add_argument(
        "--confidence", type=float, nargs="+", metavar="P",
        help="leave such a network at the first exit that is so sure of a picture; one number, or one for each exit "
        "but the last",
    )  # fmt: skip
    group.add_argument(
        "--calibrate", nargs="+", metavar="PATH",
        help="pictures, without labels, on which confidences are found first so that pictures like them cost the "
        "budget (of operations) on average",
    )  # fmt: skip


def _add_truth(group: Any) -> None:
    group.add_argument("--labels", type=Path, metavar="FOLDER", help="of true labels: metrics, calibration error")
    group.add_argument(
        "--label_classes", metavar="FILE",
        help="the classes that the labels' ids mean, a name a line, or voc; default: the network's own. Labels of "
        "classes that the network does not know are missing",
    )  # fmt: skip
    group.add_argument("--true_depth", type=Path, metavar="FOLDER", help="of true depth: metrics")
    group.add_argument("--true_normals", type=Path, metavar="FOLDER", help="of true normals: metrics")


def _add_voc(group: Any) -> None:
    group.add_argument("--format", choices=("files", "voc"), default="files", help="voc: results for the server")
    group.add_argument(
        "--competition", choices=("comp5", "comp6"), default="comp6",
        help="comp5: trained on VOC's images alone; comp6: on any, ImageNet included (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--check", type=Path, metavar="RESULTS", help="only check such results, a folder or tar.gz")
