"""`densepred demo`: a local page on which one drops a photo and sees labels, depth and normals."""

import argparse
from pathlib import Path

from densepred.errors import ConfigurationError
from densepred.inference.predictor import Predictor, chosen_device
from densepred.inference.published import PUBLISHED
from densepred.resume import find_checkpoint

NOTHING = (
    "demo: give --ckpt_path with a checkpoint, or best or last (of --root). To get one in a few minutes, with nothing "
    "to download: densepred fit --config experiments/rooms_multitask.yaml, then densepred demo --ckpt_path best --root "
    f"runs/rooms_multitask. Without any training: --weights {PUBLISHED[2]}."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network, and where the page is."""
    parser.add_argument(
        "--ckpt_path", nargs="+", default=[], metavar="FILE",
        help="a checkpoint, or best or last of the newest run below --root; several are averaged",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--weights", metavar="NAME", help=f"a published network instead: {', '.join(PUBLISHED)}")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME",
        help="a package or class outside densepred, torch and torchvision that the checkpoint may build",
    )  # fmt: skip
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="pictures to click on")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Serves the page until it is stopped."""
    if bool(arguments.ckpt_path) == bool(arguments.weights):
        raise ConfigurationError(NOTHING)
    if not 0 < arguments.port < 65536:
        raise ConfigurationError(f"--port {arguments.port}: expected a number from 1 to 65535.")
    device = chosen_device(arguments.device)
    if arguments.weights:
        name, _, file = arguments.weights.partition("=")
        predictor = Predictor.published(name, device, file or None)
        title = name
    else:
        found = [find_checkpoint(one, arguments.root) for one in arguments.ckpt_path]
        predictor = Predictor.load(found, device, arguments.allow)
        title = " + ".join(path.name for path in found)
    from densepred.inference.page import serve  # gradio, which only this needs

    serve(predictor, title, arguments.host, arguments.port, arguments.examples)
    return 0
