"""ISBI 2012, neurons in electron microscopy: the U-Net's data set."""

from pathlib import Path
from typing import Literal

import albumentations as A
import numpy as np

from densepred.data.cell_borders import border_weights as weights_of_borders
from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.images import read_image, read_label, refuse_values
from densepred.errors import ConfigurationError, DataError
from densepred.sample import SAMPLE_KINDS, Kind

ISBI_CLASSES = ["membrane", "cell"]
CELL = 255
"""What the label files hold in cells; 0 at membranes."""
WEIGHT = "segmentation_weight"
"""The key of the weights, where the task `segmentation` looks for them."""
KINDS = SAMPLE_KINDS | {WEIGHT: Kind.WEIGHT}

LAYOUT = """Expected layout of ISBI 2012 (root may be it, or the folder that holds isbi2012):
  image/N.png                              grey, N the number of the slice, from the top of the stack
  label/N.png                              0 at membranes, 255 in cells
Ways out: the challenge's train-volume.tif and train-labels.tif hold 30 pages of 512 x 512 each; write page N of them as
image/N.png and label/N.png, and point data.root (--data.root FOLDER) there."""


class ISBI2012(DenseDataset):
    """Slices of a fly's nerve cord under the electron microscope: membranes and cells, 30 of 512 x 512, one stack.

    Neighbouring slices look alike, so a validation set is a block of the stack: its last `val_slices`, or with `fold`
    the block as many times further up. The same slices at every call; those of the other blocks train.

    Args:
        root: The folder with image and label, or the folder that holds it as isbi2012.
        split: "train", "val", or "all" for the whole stack.
        val_slices: How many slices validate.
        fold: Which block validates, counted from the end of the stack: 0 to slices / val_slices, rounded down, less 1.
        transforms: Sample and seed to sample.
        seed: Of the transforms' random numbers.
        border_weights: Whether samples hold the U-Net's weight of each pixel (`densepred.data.cell_borders`), computed
            from a slice's own labels, once, and moved with them by the transforms.

    Shape:
        returns: image (1, H, W) uint8, segmentation (H, W) uint8, 0 membrane and 1 cell, name; with border_weights
            segmentation_weight (1, H, W) float32.

    No pixel is missing.

    Raises:
        DataError: If the folder is not there or has no slices, or a file of it is broken.
        ConfigurationError: If there is no such split, or no such block.

    Reference:
        Arganda-Carreras et al. Crowdsourcing the Creation of Image Segmentation Algorithms for Connectomics. Frontiers
        in Neuroanatomy 2015. The stack: Cardona et al. PLoS Biology 2010.
    """

    advice = LAYOUT
    kinds = KINDS

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        val_slices: int = 6,
        fold: int = 0,
        transforms: Transforms | None = None,
        seed: int = 0,
        border_weights: bool = False,
    ) -> None:
        super().__init__(transforms, seed)
        self.border_weights = border_weights
        self._weights: dict[int, np.ndarray] = {}
        # 0 is legal, and 255
        self.classes_on_disk = {"segmentation": 1}
        self.root = _isbi_folder(Path(root))
        self.names = _split(_slices(self.root), split, val_slices, fold)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """The picture and the label of a slice."""
        name = f"{self.names[index]}.png"
        return {"image": self.root / "image" / name, "segmentation": self.root / "label" / name}

    def read(self, index: int) -> Raw:
        """Image, labels, name and, where wanted, weights."""
        files = self.files(index)
        labels = read_label(files["segmentation"])
        refuse_values(labels, self.classes_on_disk["segmentation"], files["segmentation"])
        image = np.ascontiguousarray(read_image(files["image"])[..., :1])
        sample = {"image": image, "segmentation": (labels == CELL).astype(np.uint8), "name": self.names[index]}
        if self.border_weights:
            if index not in self._weights:
                self._weights[index] = weights_of_borders(sample["segmentation"])
                self._weights[index].setflags(write=False)  # a tensor of it becomes a copy
            sample[WEIGHT] = self._weights[index]
        return sample


def _isbi_folder(root: Path) -> Path:
    for folder in (root, root / "isbi2012"):
        if (folder / "image").is_dir() and (folder / "label").is_dir():
            return folder
    state = "it has no folders image and label" if root.is_dir() else "there is no such folder"
    raise DataError(f"{root.absolute()}: no ISBI 2012 here: {state}.\n{LAYOUT}")


def _slices(root: Path) -> list[str]:
    """The slices in the order of the stack."""
    names = [path.stem for path in (root / "image").glob("*.png")]
    strangers = [name for name in names if not name.isdecimal()]
    if strangers or not names:
        found = f"{sorted(strangers)[0]}.png, whose name is no number" if strangers else "no PNG"
        raise DataError(f"{root / 'image'}: expected the slices as N.png, found {found}.\n{LAYOUT}")
    return sorted(names, key=int)


def _split(names: list[str], split: str, val_slices: int, fold: int) -> list[str]:
    if split == "all":
        return names
    if split not in ("train", "val"):
        raise ConfigurationError(f"ISBI 2012: split is {split!r}; expected train, val or all.")
    if not 1 <= val_slices < len(names) or not 0 <= fold < len(names) // val_slices:
        raise ConfigurationError(
            f"ISBI 2012: val_slices {val_slices} and fold {fold} ask for a block that the stack of {len(names)} slices "
            f"does not have. Give val_slices from 1 to {len(names) - 1}, and a fold from 0 on of which the stack has "
            f"{len(names)} / val_slices, rounded down."
        )
    end = len(names) - fold * val_slices
    begin = end - val_slices
    return names[begin:end] if split == "val" else names[:begin] + names[end:]


class ISBIDataModule(DenseDataModule):
    """ISBI 2012 in batches: membranes and cells in grey slices of one stack.

    The labels of the challenge's own 30 test slices were never published, so "test" is the validation block. The image
    has one channel: set the encoder's `in_channels` to 1.

    Args:
        root: The folder with image and label, or the folder that holds it as isbi2012.
        val_slices: How many slices, a block of the stack, validate.
        fold: Which block validates, counted from the end of the stack.
        train_on_all: Train on the whole stack, validation block included, as for the challenge: scores then mean
            nothing.
        border_weights: Samples hold the U-Net's weight of each pixel, which narrow borders between cells have most of;
            the task `segmentation` multiplies its loss by it.
        batch_size: Of training.
        eval_batch_size: Of validation and test.
        num_workers: Processes that load; None takes this machine's share.
        train_transforms: What is done to training samples.
        eval_transforms: What is done to the others.
        seed: Of order and transforms.
        check: "full", "headers" or "none": what is looked at before the first step.

    Raises:
        DataError: If the folder or a file is missing or broken.
        ConfigurationError: If the stack has no such block.
    """

    kinds = KINDS

    def __init__(
        self,
        root: str = "data/isbi2012",
        val_slices: int = 6,
        fold: int = 0,
        train_on_all: bool = False,
        border_weights: bool = False,
        batch_size: int = 1,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        seed: int = 0,
        check: Literal["full", "headers", "none"] = "full",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, train_transforms, eval_transforms, seed, check)
        self.root = root
        self.val_slices = val_slices
        self.fold = fold
        self.train_on_all = train_on_all
        self.border_weights = border_weights
        self.classes = {"segmentation": ISBI_CLASSES}

    def dataset(self, split: Split, transforms: Transforms | None) -> ISBI2012:
        """The slices of a split."""
        part = "val" if split != "train" else "all" if self.train_on_all else "train"
        return ISBI2012(self.root, part, self.val_slices, self.fold, transforms, self.seed, self.border_weights)
