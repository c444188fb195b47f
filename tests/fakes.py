"""Tiny data sets, written at test time in the formats and folders of the real ones.

Every picture can be learnt: a class has its own colour, depth is a slanted floor before a wall.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

VOID = 255


def voc_palette() -> list[int]:
    """The official palette: bit k of the three colours of class c are bits 3k, 3k+1 and 3k+2 of c, from the top."""
    colours = []
    for index in range(256):
        rgb, bits = [0, 0, 0], index
        for shift in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (bits >> channel & 1) << shift
            bits >>= 3
        colours += rgb
    return colours


def write_palette_png(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", labels.shape[::-1], labels.astype(np.uint8).tobytes())
    image.putpalette(voc_palette())
    image.save(path)


def draw_labels(rng: np.random.Generator, size: tuple[int, int], classes: int) -> np.ndarray:
    """Background 0, two rectangles of other classes, each with a void border of a pixel, as VOC's are."""
    labels = np.zeros(size, np.uint8)
    height, width = size
    for _ in range(2):
        top, left = int(rng.integers(1, height // 2)), int(rng.integers(1, width // 2))
        bottom, right = top + height // 3, left + width // 3
        labels[top - 1 : bottom + 1, left - 1 : right + 1] = VOID
        labels[top:bottom, left:right] = rng.integers(1, classes)
    return labels


def paint(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """A picture in which each class has its own colour, with noise."""
    colours = np.random.default_rng(99).integers(40, 216, (256, 3))
    noise = rng.integers(-20, 21, (*labels.shape, 3))
    return (colours[labels] + noise).clip(0, 255).astype(np.uint8)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_voc(
    folder: Path,
    train: int = 4,
    val: int = 2,
    size: tuple[int, int] = (60, 80),
    unlabelled: int = 0,
    seed: int = 0,
    sizes_differ: bool = True,
) -> Path:
    """VOCdevkit/VOC2012 below `folder`: JPEGImages, SegmentationClass, ImageSets/Segmentation; returns VOC2012.

    Images differ in size, as VOC's do, unless told otherwise; `unlabelled` ones have a JPEG only.
    """
    root = folder / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(seed)
    names = [f"2007_{i:06d}" for i in range(train + val + unlabelled)]
    for i, name in enumerate(names):
        height, width = (size[0] + 4 * (i % 3), size[1] - 6 * (i % 2)) if sizes_differ else size
        labels = draw_labels(rng, (height, width), 21)
        write_jpeg(root / "JPEGImages" / f"{name}.jpg", paint(rng, labels))
        if i < train + val:
            write_palette_png(root / "SegmentationClass" / f"{name}.png", labels)
    lists = {"train": names[:train], "val": names[train : train + val], "trainval": names[: train + val]}
    for split, listed in lists.items():
        write_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", listed)
    return root


def write_camvid(
    folder: Path,
    train: int = 4,
    val: int = 2,
    test: int = 2,
    size: tuple[int, int] = (60, 80),
    seed: int = 0,
    official: bool = True,
) -> Path:
    """CamVid below `folder` as SegNet ships it: PNG pictures, grey ids with 11 unlabelled, lists of two paths a line.

    Not `official`: JPEG pictures and lists of mere names.
    """
    root = folder / "CamVid"
    rng = np.random.default_rng(seed)
    for split, count in {"train": train, "val": val, "test": test}.items():
        names = [f"0001TP_{split}{30 * i:05d}" for i in range(count)]
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / f"{split}annot").mkdir(exist_ok=True)
        for name in names:
            labels = draw_labels(rng, size, 11)
            picture = Image.fromarray(paint(rng, labels))
            picture.save(root / split / f"{name}.{'png' if official else 'jpg'}", quality=95)
            labels[labels == VOID] = 11
            Image.fromarray(labels).save(root / f"{split}annot" / f"{name}.png")
        pairs = [f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png" for name in names]
        write_list(root / f"{split}.txt", pairs if official else names)
    return root


def write_isbi(folder: Path, slices: int = 6, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """isbi2012 below `folder`: image/N.png and label/N.png, both grey, 0 at membranes and 255 in cells; returns it.

    Cells are the squares of a grid that drifts from slice to slice, as neighbouring slices of a stack do.
    """
    root = folder / "isbi2012"
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    for number in range(slices):
        cells = ((rows + number) % 16 > 1) & ((columns + 2 * number) % 16 > 1)
        picture = np.where(cells, 170, 70) + rng.integers(-20, 21, size)
        for kind, planes in (("image", picture), ("label", 255 * cells)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(planes.astype(np.uint8)).save(root / kind / f"{number}.png")
    return root


def write_sbd(folder: Path, train: list[str], val: list[str], size: tuple[int, int] = (60, 80), seed: int = 0) -> Path:
    """benchmark_RELEASE/dataset below `folder` (img, cls, inst, train.txt, val.txt); returns dataset.

    SBD labels have no void border. Names that a VOC folder holds too must be given its images' size.
    """
    root = folder / "benchmark_RELEASE" / "dataset"
    rng = np.random.default_rng(seed)
    for name in [*train, *val]:
        labels = draw_labels(rng, size, 21)
        labels[labels == VOID] = 0
        write_jpeg(root / "img" / f"{name}.jpg", paint(rng, labels))
        for kind, key in (("cls", "GTcls"), ("inst", "GTinst")):
            path = root / kind / f"{name}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            present = np.setdiff1d(np.unique(labels), [0])[:, None]
            scipy.io.savemat(path, {key: {"Segmentation": labels, "CategoriesPresent": present}}, do_compression=True)
    write_list(root / "train.txt", train)
    write_list(root / "val.txt", val)
    return root


def room_depth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Metres: a wall at 3 to 4 m above a floor that comes nearer towards the bottom edge."""
    height, width = size
    rows = (np.arange(height) + 0.5) / height - 0.5
    wall = rng.uniform(3, 4)
    with np.errstate(divide="ignore"):
        floor = np.where(rows > 0, 0.8 / rows, np.inf)
    return np.repeat(np.minimum(wall, floor)[:, None], width, axis=1).astype(np.float32)


def write_nyu(
    folder: Path, train: int = 4, test: int = 2, size: tuple[int, int] = (48, 64), seed: int = 0, holes: bool = True
) -> Path:
    """The prepared layout: rgb, depth (uint16 millimetres, 0 missing), label40 (255 unlabelled), lists; returns it."""
    rng = np.random.default_rng(seed)
    names = [f"{i + 1:04d}" for i in range(train + test)]
    for name in names:
        labels = draw_labels(rng, size, 40)
        depth = room_depth(rng, size)
        if holes:
            depth[2:6, 3:9] = 0
        write_jpeg(folder / "rgb" / f"{name}.jpg", paint(rng, labels))
        for kind, planes in (("depth", np.round(depth * 1000).astype(np.uint16)), ("label40", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(planes).save(folder / kind / f"{name}.png")
    write_list(folder / "train.txt", names[:train])
    write_list(folder / "test.txt", names[train:])
    return folder


def write_nyu_mat(
    folder: Path, frames: int = 6, train: int = 4, size: tuple[int, int] = (48, 64), seed: int = 0
) -> Path:
    """nyu_depth_v2_labeled.mat (v7.3: HDF5, axes reversed), splits.mat and classMapping40.mat; returns the first.

    Labels are 0 (unlabelled) to 894; raw depth has holes, 0, where the filled-in depth has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    height, width = size
    images = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    depths = np.stack([room_depth(rng, size) for _ in range(frames)])
    raw = depths.copy()
    raw[:, 2:6, 3:9] = 0
    labels = rng.integers(0, 895, (frames, height // 8, width // 8)).repeat(8, axis=1).repeat(8, axis=2)
    path = folder / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in {"depths": depths, "rawDepths": raw, "labels": labels.astype(np.uint16)}.items():
            file.create_dataset(key, data=array.transpose(0, 2, 1), chunks=(1, width, height), compression="gzip")
        file.create_dataset("images", data=images.transpose(0, 3, 2, 1), chunks=(1, 1, width, height))
        names = [f"class {i + 1}" for i in range(894)]
        references = file.create_dataset("names", (1, len(names)), dtype=h5py.ref_dtype)
        for i, name in enumerate(names[:3]):
            characters = np.frombuffer(name.encode("utf-16-le"), np.uint16)[:, None]
            references[0, i] = file.create_dataset(f"#refs#/{i}", data=characters).ref
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    numbers = np.arange(1, frames + 1, dtype=np.uint16)[:, None]
    scipy.io.savemat(folder / "splits.mat", {"trainNdxs": numbers[:train], "testNdxs": numbers[train:]})
    write_class_mapping(folder / "classMapping40.mat")
    return path


def write_class_mapping(path: Path) -> None:
    """mapClass (1, 894): class i + 1 of 894 belongs to i % 40 + 1 of 40."""
    names = np.array([[f"name {i + 1}" for i in range(40)]], dtype=object)
    all_names = np.array([[f"class {i + 1}" for i in range(894)]], dtype=object)
    mapping = (np.arange(894) % 40 + 1).astype(np.uint8)[None]
    scipy.io.savemat(path, {"mapClass": mapping, "className": names, "allClassName": all_names})


def write_tiff(path: Path, image: np.ndarray, bands_apart: bool = False) -> None:
    """An uncompressed TIFF of (H, W, bands) of any type of number, in two strips, by the format's definition."""
    height, width, bands = image.shape
    strips = [image[: height // 2 + 1], image[height // 2 + 1 :]]
    blocks = [s[..., i : i + 1] for i in range(bands) for s in strips] if bands_apart else strips
    data = [block.tobytes() for block in blocks]
    offsets = [8 + sum(map(len, data[:i])) for i in range(len(data))]
    content = b"".join(data) + b"\0" * (sum(map(len, data)) % 2)
    values = {
        256: [width], 257: [height], 258: [8 * image.itemsize] * bands, 259: [1], 262: [1], 273: offsets, 277: [bands],
        278: [height // 2 + 1], 279: [len(part) for part in data], 284: [2 if bands_apart else 1],
        338: [0] * (bands - 1), 339: [{"u": 1, "i": 2, "f": 3}[image.dtype.kind]] * bands,
    }  # fmt: skip
    entries = b""
    for tag, numbers in values.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            place = struct.pack("<I", 8 + len(content))
            content, packed = content + packed, place
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed.ljust(4, b"\0") if numbers else b""
    count = sum(bool(numbers) for numbers in values.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", count) + entries + bytes(4)
    )


def write_folder(
    folder: Path,
    names: Sequence[str] = tuple("abcdefghij"),
    images: str = "images",
    labels: str | None = "labels",
    depth: str | None = None,
    normals: str | None = None,
    classes: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Own data below `folder`: PNG pictures, grey ids, 16-bit millimetres, encoded normals, classes.txt; returns it.

    Folders may hold a star for the name ("labels/*_mask.png").
    """
    rng = np.random.default_rng(seed)
    for name in names:
        ids = draw_labels(rng, size, classes)
        metres = room_depth(rng, size)
        metres[2:6, 3:9] = 0
        wall = np.where(np.arange(size[0])[:, None, None] < size[0] // 2, [128, 128, 0], [128, 0, 128])
        planes = {
            images: paint(rng, ids), labels: ids, depth: np.round(metres * 1000).astype(np.uint16),
            normals: np.broadcast_to(wall, (*size, 3)).astype(np.uint8),
        }  # fmt: skip
        for pattern, array in planes.items():
            if pattern is not None:
                path = folder / (pattern.replace("*", name) if "*" in pattern else f"{pattern}/{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    write_list(folder / "classes.txt", [f"class {i}" for i in range(classes)])
    return folder
