"""Pascal VOC 2012 semantic segmentation, in the layout of the official devkit."""

from pathlib import Path
from typing import Literal

import albumentations as A
import cv2
import numpy as np

from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.devkit import VOC_CLASSES, find_voc
from densepred.data.images import read_image, read_label, refuse_values
from densepred.data.listing import evenly, read_list
from densepred.data.official import OfficialSet
from densepred.errors import ConfigurationError, DataError
from densepred.sample import VOID

LAYOUT = """Expected layout of VOC2012 (root may be it, the VOCdevkit above it, or the folder that holds VOCdevkit):
  JPEGImages/NAME.jpg
  SegmentationClass/NAME.png               class indices with a palette, 255 at borders
  SegmentationClassAug/NAME.png            for trainaug alone
  ImageSets/Segmentation/{train,val,trainval}.txt
Ways out: `densepred prepare voc` brings the official archive into this layout, `densepred prepare sbd` adds trainaug;
or point data.root (--data.root FOLDER) to where the data are."""


VAL_IMAGES = 1449
"""Of VOC 2012's val.txt; train has 1464."""


class PascalVOC(DenseDataset):
    """Pascal VOC 2012 images with a class at every pixel: background and 20 objects.

    Args:
        root: The folder VOC2012, the VOCdevkit above it, or the folder that holds VOCdevkit.
        split: "train", "val", "trainval", "trainaug" (with SBD's labels), any other list in ImageSets/Segmentation, or
            the path of a list file. An image's label is that of SegmentationClass where there is one, else that of
            SegmentationClassAug.
        transforms: Sample and seed to sample.
        seed: Of the transforms' random numbers.
        classes: The classes to keep, in this order; pixels of all others, of background too unless it is listed,
            become missing. None keeps the 21.
        limit: Use so many images, evenly spread over the list.

    Shape:
        returns: image (3, H, W) uint8, segmentation (H, W) uint8, name.

    Missing pixels are 255: object borders, difficult objects, and classes that are not kept.

    Raises:
        DataError: If the folder or the list is not there, or a file of it is broken.
        ConfigurationError: If a class is unknown.

    Reference:
        Everingham, Van Gool, Williams, Winn, Zisserman. The Pascal Visual Object Classes (VOC) Challenge. IJCV 2010.
        trainaug: Hariharan, Arbelaez, Bourdev, Maji, Malik. Semantic Contours from Inverse Detectors. ICCV 2011.
    """

    advice = LAYOUT

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms: Transforms | None = None,
        seed: int = 0,
        classes: list[str] | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(transforms, seed)
        self.classes_on_disk = {"segmentation": len(VOC_CLASSES)}
        self.root = _voc_folder(Path(root))
        self.names = evenly(read_list(self._list_file(split)), limit)
        self.classes = VOC_CLASSES if classes is None else classes
        self.table = None if classes is None else class_table(classes)
        self.labelled = {path.stem for path in (self.root / "SegmentationClass").glob("*.png")}

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """The JPEG and the label PNG of a sample."""
        name = self.names[index]
        augmented = name not in self.labelled and (self.root / "SegmentationClassAug").is_dir()
        labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        return {"image": self.root / "JPEGImages" / f"{name}.jpg", "segmentation": self.root / labels / f"{name}.png"}

    def read(self, index: int) -> Raw:
        """Image, labels and name."""
        files = self.files(index)
        labels = read_label(files["segmentation"])
        refuse_values(labels, len(VOC_CLASSES), files["segmentation"])
        if self.table is not None:
            labels = cv2.LUT(labels.astype(np.uint8), self.table)
        return {"image": read_image(files["image"]), "segmentation": labels, "name": self.names[index]}

    def _list_file(self, split: str) -> Path:
        lists = self.root / "ImageSets" / "Segmentation"
        path = Path(split) if split.endswith(".txt") else lists / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(found.stem for found in lists.glob("*.txt"))) or "none"
            raise DataError(f"{path}: there is no such list of images. Lists there: {there}.\n{LAYOUT}")
        return path


def _voc_folder(root: Path) -> Path:
    found = find_voc(root)
    if found is None:
        state = "it lacks JPEGImages or ImageSets/Segmentation" if root.is_dir() else "there is no such folder"
        raise DataError(f"{root.absolute()}: no Pascal VOC 2012 here: {state}.\n{LAYOUT}")
    return found


def class_table(classes: list[str]) -> np.ndarray:
    """From VOC's indices to positions in `classes`, missing where a class is not kept.

    Shape:
        returns: (256,) uint8.

    Example:
        >>> class_table(["dog", "cat"])[[0, 8, 12, 255]].tolist()
        [255, 1, 0, 255]
    """
    unknown = [name for name in classes if name not in VOC_CLASSES]
    if unknown or len(set(classes)) < len(classes) or not classes:
        raise ConfigurationError(
            f"Pascal VOC: classes must be different names out of {', '.join(VOC_CLASSES)}; got {classes}."
        )
    table = np.full(256, VOID, np.uint8)
    table[[VOC_CLASSES.index(name) for name in classes]] = np.arange(len(classes))
    return table


class PascalVOCDataModule(DenseDataModule):
    """Pascal VOC 2012 semantic segmentation in batches.

    Images differ in size: training needs a crop in `train_transforms`; validation keeps every image's own size, at
    which VOC scores. The labels of VOC's test set are with its server, so "test" is the validation list.

    Args:
        root: The folder VOC2012, the VOCdevkit above it, or the folder that holds VOCdevkit.
        train_split: "train", "trainval", "trainaug" (with SBD's labels), any list in ImageSets/Segmentation, or a file.
        val_split: The same, for validation and test.
        classes: The classes to keep, in this order; all other pixels, background too unless it is listed, become
            missing. None keeps the 21.
        train_limit: Train on so many images, evenly spread over the list.
        val_limit: The same for validation and test.
        batch_size: Of training.
        eval_batch_size: Of validation and test; images are padded to the largest of a batch.
        num_workers: Processes that load; None takes this machine's share.
        train_transforms: What is done to training samples.
        eval_transforms: What is done to the others.
        seed: Of order and transforms.
        check: "full", "headers" or "none": what is looked at before the first step.

    Raises:
        DataError: If the folder, a list or a file is missing or broken.
    """

    def __init__(
        self,
        root: str = "data/VOCdevkit/VOC2012",
        train_split: str = "train",
        val_split: str = "val",
        classes: list[str] | None = None,
        train_limit: int | None = None,
        val_limit: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        seed: int = 0,
        check: Literal["full", "headers", "none"] = "full",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, train_transforms, eval_transforms, seed, check)
        self.root = root
        self.lists: dict[Split, str] = {"train": train_split, "val": val_split, "test": val_split}
        self.limits: dict[Split, int | None] = {"train": train_limit, "val": val_limit, "test": val_limit}
        self.kept = classes
        self.classes = {"segmentation": VOC_CLASSES if classes is None else classes}

    def dataset(self, split: Split, transforms: Transforms | None) -> PascalVOC:
        """The images of a split."""
        return PascalVOC(self.root, self.lists[split], transforms, self.seed, self.kept, self.limits[split])

    def official(self, split: Split) -> OfficialSet:
        """VOC 2012 val, whose 21 classes all count."""
        departures = []
        if self.lists[split] != "val":
            option = "train_split" if split == "train" else "val_split"
            departures.append(f"data.{option} is {self.lists[split]!r}, not 'val'")
        if self.kept is not None and self.kept != VOC_CLASSES:
            departures.append(f"data.classes keeps {len(self.kept)} of 21 classes: all other pixels are left out")
        return OfficialSet("Pascal VOC 2012 val", VAL_IMAGES, tuple(departures))
