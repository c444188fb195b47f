"""A data set of files in folders, read by what they hold."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.folder_camera import AXES, Axis, Camera, axes_matrix
from densepred.data.folder_listing import FolderSample
from densepred.data.images import read_size
from densepred.data.label_codes import LabelReader
from densepred.data.normals_source import NormalsFromDepth, read_normals
from densepred.data.rasters import DepthReader, ImageReader
from densepred.data.tiff import SUFFIXES, tiff_layout
from densepred.errors import DataError

LAYOUT = """Expected layout of the folder (what is not there is not learnt; names match without their suffix):
  images/NAME.jpg        or .png, .tif, .npy, ...; or {train,val,test}/images/, or images/{train,val,test}/
  labels/NAME.png        class ids in grey or with a palette, or the colours of classes.txt
  depth/NAME.png         16 bits, millimetres; or .npy or .tif of floats, metres; 0 where missing
  normals/NAME.png       n = 2 v / 255 - 1; or .npy of vectors
  classes.txt            the name of a class a line, line 0 for id 0; or "name R G B"
  intrinsics.txt         fx fy cx cy, or 3 x 3 numbers; or intrinsics/NAME.txt
  train.txt, val.txt, test.txt     a name a line; without lists and folders of splits, shares are drawn
Ways out: point data.root (--data.root FOLDER) to it, and name other folders by data.images, data.labels, data.depth and
data.normals, such as --data.labels 'masks/*_mask.png'; `densepred list FolderDataModule` has all options."""


class FolderDataset(DenseDataset):
    """Samples made of files, each with what is known about it.

    Args:
        samples: Names and files, by key.
        targets: The keys of every sample beside the image; what has no file is missing at every pixel.
        images: Reads images.
        labels: Reads labels, where they are a target.
        depth: Reads depth.
        normals_axes: Where x, y and z of the stored normals point to.
        make_normals: Makes normals of depth and intrinsics where they have no file.
        camera: Gives the intrinsics of a sample.
        transforms: Sample and seed to sample.
        seed: Of the transforms' random numbers.

    Shape:
        returns: image (C, H, W) uint8 or float32, segmentation (H, W), depth (1, H, W) metres, normals (3, H, W),
            intrinsics (3, 3), name: those there are.

    Raises:
        DataError: If a file is missing, broken, or not of its image's size.
    """

    advice = LAYOUT

    def __init__(
        self,
        samples: Sequence[FolderSample],
        targets: Sequence[str],
        images: ImageReader,
        labels: LabelReader | None = None,
        depth: DepthReader = DepthReader(),  # noqa: B008  # a tuple
        normals_axes: tuple[Axis, Axis, Axis] = AXES,
        make_normals: NormalsFromDepth | None = None,
        camera: Camera | None = None,
        transforms: Transforms | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transforms, seed)
        self.samples = samples
        self.targets = targets
        self.images = images
        self.labels = labels
        self.depth = depth
        self.axes = axes_matrix(normals_axes)
        self.make_normals = make_normals
        self.camera = camera

    def __len__(self) -> int:
        return len(self.samples)

    def files(self, index: int) -> dict[str, Path]:
        """The files of a sample, by key; of a target that is unknown there is none."""
        return self.samples[index].files

    def file_size(self, key: str, path: Path) -> tuple[int, int]:
        """(height, width) of what a file becomes: of an image after it is turned upright."""
        if path.suffix.lower() in SUFFIXES:
            layout = tiff_layout(path)
            size = (layout.height, layout.width)
        else:
            size = read_size(path)
        return self.images.size(path, size) if key == "image" else size

    def check_file(self, key: str, path: Path) -> None:
        """Refuses images whose orientation nobody has decided, files that are cut, and labels of no class."""
        if key == "segmentation" and self.labels is not None:
            self.labels(path)
        elif path.suffix.lower() in SUFFIXES:
            self.images(path) if key == "image" else self.depth(path)
        else:
            super().check_file(key, path)
        if key == "image":
            self.images.turn(path)

    def read(self, index: int) -> Raw:
        """The image, its name, the targets, and the intrinsics where they are known."""
        name, files = self.samples[index]
        image = self.images(files["image"], self.floating)
        size = (image.shape[0], image.shape[1])
        sample: Raw = {"image": image, "name": name}
        if self.camera is not None:
            sample["intrinsics"] = self.camera(name, size)
        for key in self.targets:
            sample[key] = self._target(key, files, sample)
            if sample[key].shape[:2] != size:
                raise DataError(
                    f"{files[key]}: its size is {sample[key].shape[:2]} (height, width), but that of its image "
                    f"{files['image']} is {size}."
                )
        return sample

    @cached_property
    def floating(self) -> bool:
        """Whether the images are float32: all of a set are what the first one is."""
        return self.images.is_floating(self.samples[0].files["image"])

    def _target(self, key: str, files: Mapping[str, Path], sample: Raw) -> np.ndarray:
        path, size = files.get(key), sample["image"].shape[:2]
        if key == "segmentation" and self.labels is not None:
            return np.full(size, self.labels.missing, self.labels.dtype) if path is None else self.labels(path)
        if key == "depth":
            return np.zeros(size, np.float32) if path is None else self.depth(path)
        if path is not None:
            advice = 'say where they point by normals_axes, such as [right, up, backward] for "y up, z to the viewer"'
            return read_normals(path, size, self.axes, advice)
        if "depth" in files and self.make_normals is not None and self.camera is not None:
            depth = sample["depth"] if "depth" in sample else self.depth(files["depth"])
            return self.make_normals.read(sample["name"], depth, sample["intrinsics"])
        return np.zeros((*size, 3), np.float32)
