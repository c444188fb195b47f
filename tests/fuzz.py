"""Damaged files of every kind for every reader: `python -m tests.fuzz --seconds 600` tells what was found.

A file that is whole is changed (bits, bytes, lengths, ends, pieces of itself) and read. Allowed are an answer and a
UserError, within `PATIENCE` seconds; anything else is printed with the seed that makes the file again.
"""

import argparse
import io
import os
import pickle
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from densepred.data.folder_camera import read_intrinsics
from densepred.data.folder_files import read_stems
from densepred.data.images import read_depth, read_image, read_label, read_npy, read_size
from densepred.data.label_codes import ClassLine, LabelReader, read_classes
from densepred.data.listing import read_list
from densepred.data.prepare.archives import entries
from densepred.data.prepare.nyu_labelled import LabelledFile, read_mapping, read_splits
from densepred.data.prepare.sbd import read_sbd_label
from densepred.data.rasters import DepthReader, ImageReader, orientation
from densepred.data.tiff import SUFFIXES, tiff_layout
from densepred.encoders.weights import read_state_dict
from densepred.errors import UserError
from densepred.inference.checkpoint import load_network
from densepred.inference.photos import read_photo
from densepred.resume import checkpoint_config
from densepred.yaml_text import read_yaml

PATIENCE = 5.0
NOW = "now"
"""A file that says what is being read, for the case that it ends the process."""
Reader = Callable[[Path], object]


def pictures() -> dict[str, bytes]:
    """Small files of every format that a reader takes, as whole as their writers make them."""
    random_numbers = np.random.default_rng(0)
    colours = Image.fromarray(random_numbers.integers(0, 255, (13, 17, 3), dtype=np.uint8))
    ids = Image.fromarray(random_numbers.integers(0, 5, (13, 17), dtype=np.uint8))
    palette = ids.copy()
    palette.putpalette([i % 256 for i in range(768)])
    deep = Image.fromarray(random_numbers.integers(0, 9000, (13, 17), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a.jpg": _saved(colours, "JPEG", exif=exif),
        "progressive.jpg": _saved(colours, "JPEG", progressive=True),
        "cmyk.jpg": _saved(colours.convert("CMYK"), "JPEG"),
        "a.png": _saved(colours, "PNG"),
        "alpha.png": _saved(colours.convert("RGBA"), "PNG"),
        "grey.png": _saved(ids, "PNG"),
        "palette.png": _saved(palette, "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "a.bmp": _saved(colours, "BMP"),
        "a.gif": _saved(palette, "GIF"),
        "a.webp": _saved(colours, "WEBP"),
        "a.ppm": _saved(colours, "PPM"),
        "a.pgm": _saved(ids, "PPM"),
        "a.tif": _saved(colours, "TIFF"),
        "deep.tif": _saved(deep, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": _saved(colours, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(colours, "TIFF", compression="jpeg"),
        "palette.tif": _saved(palette, "TIFF"),
    }  # fmt: skip
    for name, array in {
        "a.npy": np.asarray(colours), "deep.npy": np.asarray(deep), "float.npy": np.asarray(ids, np.float32)
    }.items():  # fmt: skip
        content = io.BytesIO()
        np.save(content, array)
        files[name] = content.getvalue()
    return files


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, format=kind, **options)
    return content.getvalue()


def others() -> dict[str, bytes]:
    """Lists, configurations, checkpoints, weights, MATLAB files and archives."""
    files = {
        "list.txt": b"0001\n0002 x\n/JPEGImages/0003.jpg /Labels/0003.png\n",
        "classes.txt": b"# classes\nsky 10 20 30\nroad,1,2,3\nvoid 0 0 0\n",
        "intrinsics.txt": b"500 0 30\n0 500 20\n0 0 1\n",
        "run.yaml": b"model: {class_path: M, init_args: {a: [1, 2.5, null]}}\nx: 2024-01-01\ny: &y [1]\nz: *y\n",
    }
    recipe = {
        "encoder": {"class_path": "densepred.encoders.unet.UNetEncoder", "init_args": {"widths": [4, 8]}},
        "decoder": {"class_path": "densepred.decoders.pointwise.PointwiseDecoder"},
        "tasks": [{"class_path": "densepred.tasks.depth.Depth"}],
    }  # fmt: skip
    tensors = {"network.a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.float16)}
    checkpoint = {"state_dict": tensors, "hyper_parameters": recipe, "config": files["run.yaml"].decode()}
    for name, content in {"run.ckpt": checkpoint, "weights.pth": tensors}.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[name] = buffer.getvalue()
    files["old.pth"] = pickle.dumps({"a": [1, 2, 3]})
    try:
        from safetensors.torch import save

        files["weights.safetensors"] = save(tensors)
    except ImportError:
        pass
    matrix = np.arange(35, dtype=np.uint8).reshape(5, 7) % 20
    for packed in (False, True):
        buffer = io.BytesIO()
        savemat(buffer, {"GTcls": {"Segmentation": matrix}}, do_compression=packed)
        files[f"sbd{packed:d}.mat"] = buffer.getvalue()
    buffer = io.BytesIO()
    savemat(buffer, {"mapClass": np.ones((1, 894)), "trainNdxs": [[1]], "testNdxs": [[2]]}, do_compression=True)
    files["nyu.mat"] = buffer.getvalue()
    files["labelled.h5"] = _labelled()
    return files | _archives()


def _labelled() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labelled.mat")
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "images", data=np.zeros((2, 3, 8, 6), np.uint8), chunks=(1, 3, 8, 6), compression="gzip"
            )
            for name, kind in (("depths", np.float32), ("rawDepths", np.float32), ("labels", np.uint16)):
                file.create_dataset(name, data=np.ones((2, 8, 6), kind), chunks=(1, 8, 6), compression="gzip")
        return path.read_bytes()


def _archives() -> dict[str, bytes]:
    files = {}
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as tar:
            for name in ("a/b.txt", "a/" + "long" * 40 + "ü.txt"):
                member = tarfile.TarInfo(name)
                member.size = 5
                tar.addfile(member, io.BytesIO(b"hello"))
        files[f"a.{mode.replace(':', '')}.tar"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", "hello" * 20)
    return files | {"a.zip": buffer.getvalue()}


CLASSES = [
    ClassLine(name, colour) for name, colour in (("a", None), ("b", None), ("c", None), ("d", None), ("e", None))
]
COLOURED = [ClassLine("a", (0, 0, 0)), ClassLine("b", (1, 2, 3))]


def readers(path: Path) -> list[Reader]:
    """Those that read a file of this kind."""
    if path.name in pictures_known:
        found: list[Reader] = [
            read_image, read_label, read_depth, read_size, orientation, ImageReader(upright=True),
            ImageReader(1, white=255), DepthReader(), LabelReader(CLASSES), LabelReader(COLOURED), read_photo,
        ]  # fmt: skip
        found += [tiff_layout] if path.suffix in SUFFIXES else []
        return found + ([read_npy] if path.suffix == ".npy" else [])
    return {
        "list.txt": [read_list, lambda path: read_stems(path, {"0001": path})],
        "classes.txt": [read_classes],
        "intrinsics.txt": [read_intrinsics],
        "run.yaml": [_configured],
        "run.ckpt": [checkpoint_config, load_network, read_state_dict],
        "weights.pth": [read_state_dict, checkpoint_config],
        "old.pth": [read_state_dict, checkpoint_config],
        "weights.safetensors": [read_state_dict],
        "sbd0.mat": [_sbd],
        "sbd1.mat": [_sbd],
        "nyu.mat": [read_mapping, lambda path: read_splits(path, 5)],
        "labelled.h5": [_frames],
    }.get(path.name, [_unpacked])


def _configured(path: Path) -> object:
    try:
        return read_yaml(path, str(path))
    except yaml.YAMLError as error:  # all who call it tell it
        raise UserError(str(error)) from error


def _sbd(path: Path) -> object:
    return read_sbd_label(path.read_bytes(), path.name)


def _frames(path: Path) -> object:
    with LabelledFile(path, "raw") as file:
        return list(file.blocks({1, 2}, np.zeros(895, np.uint8)))


def _unpacked(path: Path) -> object:
    return [entry.read() for entry in entries(path)]


pictures_known = frozenset(pictures())


def changed(content: bytes, chance: random.Random) -> bytes:
    """A damaged copy."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if not data:
            break
        # headers are at the beginning, and of some formats at the end
        place = chance.choice(
            [chance.randrange(len(data)), chance.randrange(min(len(data), 64)), -chance.randint(1, min(len(data), 64))]
        )
        place %= len(data)
        kind = chance.randrange(9)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + chance.randint(1, 8)]
        elif kind == 4:
            data[place:place] = chance.randbytes(chance.randint(1, 8))
        elif kind == 5:
            data[place : place + 4] = chance.choice(
                [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"]
            )
        elif kind == 6:
            start = chance.randrange(len(data))
            data[place:place] = data[start : start + chance.randint(1, 64)]
        elif kind == 7:
            # numbers in text: headers of npy, yaml, ppm
            digits = [i for i, byte in enumerate(data) if 0x30 <= byte <= 0x39]
            if digits:
                data[chance.choice(digits)] = chance.choice(b"0123456789-")
        else:
            data += chance.randbytes(chance.randint(1, 64))
    return bytes(data)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where Python code takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(seconds: float, seed: int, folder: Path, only: str = "") -> tuple[Counter[str], list[str]]:
    """Reads damaged files for so long; returns counts by kind of file, and what went wrong."""
    files = {name: content for name, content in (pictures() | others()).items() if only in name}
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for name, content in files.items():
            chance = random.Random(f"{seed}/{number}/{name}")
            path = folder / name
            path.write_bytes(changed(content, chance))
            for reader in readers(path):
                which = f"{seed}/{number}/{name}"
                (folder / NOW).write_text(f"{which} {reader}")
                counts[f"{path.suffix} {_read(reader, path, which, faults)}"] += 1
        number += 1
    return counts, list(faults.values())


def _read(reader: Reader, path: Path, which: str, faults: dict[str, str]) -> str:
    begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fault = ""
    try:
        with patience(2 * PATIENCE):
            reader(path)
            outcome = "read"
    except UserError:
        outcome = "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, fault = "fault", "".join(traceback.format_exception(error)[-4:])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    taken = time.process_time() - begin  # of the processor: a busy machine is no fault
    if taken > PATIENCE:
        outcome, fault = "fault", fault or f"took {taken:.1f} s"
    if grown > 2**20:  # KiB
        outcome, fault = "fault", fault or f"took {grown / 2**20:.1f} GiB"
    if fault:
        name = getattr(reader, "__name__", type(reader).__name__)
        # one of a kind is enough
        faults.setdefault(f"{name} {fault.splitlines()[-1][:60]}", f"{which} {name}: {fault}")
    return outcome


def main() -> int:
    """Fuzzes as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose name holds this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os._exit(_told(options, Path(folder)))
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            print(f"signal {os.WTERMSIG(status)} ended the process at {Path(folder, NOW).read_text()}")
    return 1 if status else 0


def _told(options: argparse.Namespace, folder: Path) -> int:
    counts, faults = fuzz(options.seconds, options.seed, folder, options.only)
    for kind, count in sorted(counts.items()):
        print(f"{kind:<24}{count:>10,}")
    print(f"{sum(counts.values()):,} readings, {len(faults)} kinds of faults")
    print("\n".join(faults), flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
