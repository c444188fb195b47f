"""The `densepred` command: a light front that imports each verb when it is used."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from densepred import __version__
from densepred.errors import UserError

TRAINER_VERBS = {
    "fit": "train; --ckpt_path last (or best, or a file) continues a run",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
}
OWN_VERBS = {
    "predict": "labels, depth and normals of pictures and videos, as files; results for VOC's server",
    "check-data": "look at every sample before training: faults, numbers, class weights, a contact sheet",
    "samples": "a sheet of augmented samples with all their targets, to be looked at before training",
    "codebook": "fit the codewords of CodebookNormals to the normals of a training set",
    "prepare": "bring a data set into the layout that densepred reads (voc, sbd, nyu)",
    "list": "the encoders, decoders, tasks, losses and data sets there are",
    "report": "a run as one HTML page, or several runs compared",
    "describe": "a network's stages: sizes, parameters, operations, memory, receptive fields",
    "export": "a checkpoint as ONNX, torch.export or safetensors, compared with it, also in 8 bits",
    "demo": "a local page: drop a photo, see labels, depth and normals",
    "tune": "checks of a network, its learning rate, and a random search with a report",
}

_FULL = "Make room, or name another folder, and run the same command again."
_FORBIDDEN = "Name a folder that you may read and write, or change its permissions."
DISK = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENAMETOOLONG: "Name files and folders shorter.",
    errno.ENOTDIR: "A file stands where a folder should be.",
    errno.EISDIR: "A folder stands where a file should be.",
    errno.EEXIST: "A file stands where a folder should be.",
}
"""What to do about errors of the operating system."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status.

    A `UserError` ends in its message alone; DENSEPRED_DEBUG=1 shows the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # a console script lacks the working folder, where users keep their own classes
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return _dispatch(arguments)
    except Exception as error:
        user_error = first_user_error(error)
        message = disk_message(error) if user_error is None else innermost_message(user_error)
        if message is None or os.environ.get("DENSEPRED_DEBUG"):
            raise
        print(f"\ndensepred: {message}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in TRAINER_VERBS:
        run: int = import_module("densepred.commands.fit").run(arguments)
        return run
    parser = argparse.ArgumentParser(
        prog="densepred",
        description="Labels, depth and surface normals at every pixel: train, evaluate, predict.",
        epilog="densepred VERB --help tells more about each; densepred fit --help lists every option of a run.",
    )
    parser.add_argument("--version", action="version", version=f"densepred {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in TRAINER_VERBS.items():
        verbs.add_parser(verb, help=text)
    for verb, text in OWN_VERBS.items():
        own = verbs.add_parser(verb, help=text, description=text)
        if verb in arguments[:1]:
            _command(verb).add_arguments(own)
    chosen, options = parser.parse_known_args(arguments)
    command = _command(chosen.verb)
    if options and not getattr(command, "PASSES_OPTIONS_ON", False):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    chosen.options = options
    status: int = command.run(chosen)
    return status


def _command(verb: str) -> ModuleType:
    return import_module(f"densepred.commands.{verb.replace('-', '_')}")


def first_user_error(error: BaseException | None) -> UserError | None:
    """The error meant for the user in a chain of causes: the parser wraps what a part's constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def disk_message(error: BaseException | None) -> str | None:
    """What to tell where a disk is full or may not be written; None where the chain of causes has no such error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            where = f"{error.filename2 or error.filename}: " if error.filename else ""
            return f"{where}{error.strerror}. {DISK[error.errno]}"
        error = error.__cause__ or error.__context__
    return None


def innermost_message(error: UserError) -> str:
    """The user's part of a message: an error from a loader's worker arrives wrapped in the worker's traceback."""
    text = str(error)
    marker = f"{type(error).__module__}.{type(error).__qualname__}: "
    return text.rpartition(marker)[2].strip() if marker in text else text


if __name__ == "__main__":
    sys.exit(main())
