"""Own data in minutes: pictures and what is known about them in the folders of a root, matched by their names."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import albumentations as A

from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import Transforms
from densepred.data.folder_camera import AXES, Axis, Camera
from densepred.data.folder_dataset import LAYOUT, FolderDataset
from densepred.data.folder_files import FolderSplits, Unmatched
from densepred.data.label_codes import (
    ClassLine,
    LabelReader,
    Stored,
    class_line,
    class_lines,
    read_classes,
    stored_values,
)
from densepred.data.normals_source import NormalsFromDepth
from densepred.data.rasters import DepthReader, ImageReader
from densepred.errors import ConfigurationError, DataError

Target = Literal["segmentation", "depth", "normals"]


class FolderDataModule(DenseDataModule):
    """Own data: images with labels, depth or normals in folders, matched by name.

        my_photos/
            images/a.jpg  images/b.jpg  ...       photos, grey, 16 bits, .tif and .npy of any number of bands
            labels/a.png  labels/b.png  ...       class ids, palettes, colours, 0/255 masks
            depth/a.png   depth/b.png   ...       16-bit millimetres, or floats in metres
            normals/a.png normals/b.png ...
            classes.txt                           a class a line: line 0 is id 0
            train.txt  val.txt  test.txt          optional; or train/images, val/images, ...; or images/train, ...

    A folder that is there becomes a key of the sample. Without lists and folders of splits, each image falls into one
    by a hash of its name: added images move no others. A set with train but without val keeps `val_share` of train for
    validation, in the same way.

    Images of 8 bits stay uint8, all others become float32 in [0, 1]: 16 bits are divided by 65535, `white` says other
    scales. Set the encoder's `in_channels` to `channels` where it is not 3.

    Args:
        root: The folder of everything; the paths below start there.
        images: Folder of the images. As the next three: a folder, searched with all folders in it; a pattern in which
            the star is the name, such as "photos/*_rgb.png"; {split} in it is the split's name.
        labels: Folder of label files.
        depth: Folder of depth.
        normals: Folder of normals.
        targets: Which of segmentation, depth and normals to read; None takes those whose folder is there.
        train_split: Name of the folder or list of the split, or the path of a list.
        val_split: The same; "val" also finds valid and validation.
        test_split: The same.
        val_share: Share of the images that validate, where nothing else says which.
        test_share: Share of the images that test, likewise.
        split_seed: Of the shares.
        group_by: A regular expression: images in whose names it finds the same text fall into the same split, such as
            "^[^_]+" for the scene before an underscore.
        unmatched: Images without a target, and targets without an image: an "error"; "skip" leaves both out; "missing"
            keeps the images, the target missing at every pixel.
        classes: Names of the classes, or their file (see `LabelReader`); None reads classes.txt.
        stored_as: What label files hold: "ids", "colours", or "binary" (0 and 255). None takes colour pictures as
            colours, all others as ids.
        ids: Class index by id, such as {7: 0, 8: 1}; other ids become missing.
        void_ids: Ids that mean unlabelled, beside 255.
        unknown: What ids and colours of no class are: an "error", or "void".
        depth_scale: Metres of one unit of the depth files. None takes 0.001 for whole numbers, 1 for floats.
        depth_missing: A further number for missing depth, beside 0, negative ones and those that are not finite.
        normals_axes: Where x, y, z of the files point to; ours is [right, down, forward]. [right, up, backward] is x
            right, y up, z towards the camera.
        make_normals: Makes normals from depth and intrinsics where there is no folder of normals.
        intrinsics: fx, fy, cx, cy in pixels, or a file or folder of them. None takes intrinsics.txt or the folder
            intrinsics where there is one.
        intrinsics_size: (height, width) they were measured at, if the images have been resized since.
        channels: Of the image: 3 (RGB; grey is repeated), 1 (grey), or the number of bands in the files.
        bands: The bands of the files to take, counted from 0; sets `channels`.
        white: The files' number that becomes 1 in float32 images, such as 10000 for reflectance in ten-thousandths.
        upright: Whether images are turned as their EXIF orientation says, which labels must then fit. None refuses
            images that have one.
        batch_size: Of training.
        eval_batch_size: Of validation and test.
        num_workers: Processes that load; None takes this machine's share.
        train_transforms: What is done to training samples.
        eval_transforms: What is done to the others.
        seed: Of order and transforms.
        check: "full", "headers" or "none": what is looked at before the first step.

    Missing pixels: labels 255 (-1 where there are more than 255 classes), depth 0, normals the zero vector.

    Raises:
        DataError: If folders, lists or files are missing, broken, or do not match.
        ConfigurationError: If options contradict each other.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        labels: str = "labels",
        depth: str = "depth",
        normals: str = "normals",
        targets: tuple[Target, ...] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        group_by: str | None = None,
        unmatched: Unmatched = "error",
        classes: list[str] | str | None = None,
        stored_as: Stored | None = None,
        ids: dict[int, int] | None = None,
        void_ids: tuple[int, ...] = (),
        unknown: Literal["error", "void"] = "error",
        depth_scale: float | None = None,
        depth_missing: float | None = None,
        normals_axes: tuple[Axis, Axis, Axis] = AXES,
        make_normals: NormalsFromDepth | None = None,
        intrinsics: tuple[float, float, float, float] | str | None = None,
        intrinsics_size: tuple[int, int] | None = None,
        channels: int = 3,
        bands: tuple[int, ...] | None = None,
        white: float | None = None,
        upright: bool | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        seed: int = 0,
        check: Literal["full", "headers", "none"] = "full",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, train_transforms, eval_transforms, seed, check)
        _check_options(val_share, test_share, targets, depth_scale)
        self.root = Path(root)
        self.folders: dict[Target, str] = {"segmentation": labels, "depth": depth, "normals": normals}
        self.images = images
        self.wanted = targets
        self.names: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.shares = (val_share, test_share, split_seed, group_by)
        self.unmatched: Unmatched = unmatched
        self.class_names = classes
        self.stored_as: Stored | None = stored_as
        self.label_codes = (ids, void_ids, unknown)
        self.depth_reader = DepthReader(depth_scale, depth_missing)
        self.normals_axes = normals_axes
        self.make_normals = make_normals
        self.intrinsics = (intrinsics, intrinsics_size)
        self.image_reader = ImageReader(channels, bands, white, upright)
        if self.root.is_dir():
            self._name_classes()

    def dataset(self, split: Split, transforms: Transforms | None) -> FolderDataset:
        """The images of a split."""
        self._name_classes()
        camera = Camera.find(self.root, *self.intrinsics)
        if self._made and camera is None:
            raise ConfigurationError(
                f"{type(self).__name__}: make_normals needs intrinsics. Write fx fy cx cy into "
                f"{self.root}/intrinsics.txt, or give data.intrinsics."
            )
        return FolderDataset(
            self.splits.samples(split),
            self.targets,
            self.image_reader,
            self.label_reader,
            self.depth_reader,
            self.normals_axes,
            self.make_normals,
            camera,
            transforms,
            self.seed,
        )

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The keys of a sample beside the image and intrinsics."""
        there = self._there
        readable: tuple[Target, ...] = (*there, "normals") if self._made else there
        lacking = [key for key in self.wanted or () if key not in readable]
        if lacking or not readable:
            what = f"no files of {', '.join(lacking)}" if lacking else "neither labels nor depth nor normals"
            looked = ", ".join(self.folders[key] for key in lacking or self.folders)
            raise DataError(f"{self.root.absolute()}: {what} (looked for in {looked}).\n{LAYOUT}")
        return self.wanted or readable

    @cached_property
    def splits(self) -> FolderSplits:
        """Which files belong to which split."""
        keys = {"depth" if key == "normals" and self._made else key for key in self.targets}
        return self._splits({key: folder for key, folder in self.folders.items() if key in keys})

    @cached_property
    def label_reader(self) -> LabelReader | None:
        """Reads the label files, where labels are a target."""
        if "segmentation" not in self.targets:
            return None
        ids, void_ids, unknown = self.label_codes
        return LabelReader(self._class_lines(), self.stored_as, ids, void_ids, unknown)

    @cached_property
    def _there(self) -> tuple[Target, ...]:
        """The targets that have files."""
        if not self.root.is_dir():
            raise DataError(f"{self.root.absolute()}: there is no such folder.\n{LAYOUT}")
        splits = self._splits(self.folders)
        return tuple(key for key in self.folders if splits.is_there(key))

    @property
    def _made(self) -> bool:
        """Whether normals are made from depth."""
        asked = self.make_normals is not None and "normals" in (self.wanted or ("normals",))
        return asked and "depth" in self._there and "normals" not in self._there

    def _splits(self, folders: Mapping[Target, str]) -> FolderSplits:
        return FolderSplits(
            self.root,
            self.images,
            {str(key): folder for key, folder in folders.items()},
            self.names,
            *self.shares,
            unmatched=self.unmatched,
        )

    def _name_classes(self) -> None:
        if self.label_reader is not None:
            self.classes = {"segmentation": self.label_reader.classes}

    def _class_lines(self) -> list[ClassLine]:
        given, usual = self.class_names, self.root / "classes.txt"
        if isinstance(given, str):
            return read_classes(
                next((path for path in (self.root / given, Path(given)) if path.is_file()), Path(given))
            )
        if given is not None:
            return class_lines([class_line(text) for text in given], "classes")
        if usual.is_file():
            return read_classes(usual)
        if self.stored_as == "binary":
            return [ClassLine("background", None), ClassLine("foreground", None)]
        seen = stored_values(self.splits.some("segmentation"))
        raise DataError(
            f"{usual}: there is no such file of classes. Write the name of a class a line, line 0 for id 0, or give "
            f"data.classes; for 0/255 masks set data.stored_as to binary. {seen}"
        )


def _check_options(
    val_share: float, test_share: float, targets: Sequence[str] | None, depth_scale: float | None
) -> None:
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise ConfigurationError(
            f"FolderDataModule: val_share {val_share} and test_share {test_share} must be 0 or above, together below 1."
        )
    if targets is not None and (not targets or len(set(targets)) < len(targets)):
        raise ConfigurationError(f"FolderDataModule: targets must be different ones, or null; got {targets}.")
    if depth_scale is not None and depth_scale <= 0:
        raise ConfigurationError(f"FolderDataModule: depth_scale is metres of a unit, above 0; got {depth_scale}.")
