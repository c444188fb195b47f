"""NYU Depth v2: labels, depth and normals of indoor rooms, in the folders that `densepred prepare nyu` makes."""

from pathlib import Path
from typing import Literal

import albumentations as A
import cv2
import numpy as np

from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.images import read_depth, read_image, read_label, refuse_values
from densepred.data.listing import carve, evenly, read_list
from densepred.data.normals_source import NormalsFromDepth, NormalsSource
from densepred.data.nyu_classes import NYU13_CLASSES, NYU13_OF_40, NYU40_CLASSES
from densepred.data.official import OfficialSet
from densepred.errors import ConfigurationError, DataError
from densepred.geometry import intrinsics_matrix, resize_intrinsics

Target = Literal["segmentation", "depth", "normals"]
TARGETS: tuple[Target, ...] = ("segmentation", "depth", "normals")

FULL_SIZE = (480, 640)
INTRINSICS = intrinsics_matrix(518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)
"""Of the colour camera at 480 x 640, as the NYU toolbox publishes them."""

TEST_FRAMES = 654
"""Of the official test split; the training split has 795."""

LAYOUT = """Expected layout of the folder:
  rgb/0001.jpg           (or .png)
  depth/0001.png         16 bits, millimetres, 0 where missing
  label40/0001.png       0 to 39, 255 where unlabelled
  train.txt, test.txt    the official splits: the name of a frame a line
Ways out: `densepred prepare nyu nyu_depth_v2_labeled.mat` makes it from the official file;
or point data.root (--data.root FOLDER) to where it is."""


class NYUDepthV2(DenseDataset):
    """The labelled frames of NYU Depth v2: rooms seen by a Kinect.

    Args:
        root: The prepared folder.
        names: The frames, such as "0001"; `train.txt` and `test.txt` list the official splits.
        transforms: Sample and seed to sample.
        seed: Of the transforms' random numbers.
        targets: What to read beside the image; what is left out costs nothing.
        classes: 40 or 13.
        normals: Where normals come from; from depth, made anew each time, when None.

    Shape:
        returns: image (3, H, W) uint8, segmentation (H, W) uint8, depth (1, H, W) float32 metres, normals (3, H, W),
            intrinsics (3, 3) of the colour camera (scaled to the image where that is not 480 x 640), name.

    Missing pixels: labels 255, depth 0 (the sensor's holes), normals the zero vector.

    Raises:
        DataError: If a file is missing or broken.

    Reference:
        Silberman, Hoiem, Kohli, Fergus. Indoor Segmentation and Support Inference from RGBD Images. ECCV 2012.
        40 classes: Gupta, Arbelaez, Malik. Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images.
        CVPR 2013. 13 classes: Couprie, Farabet, Najman, LeCun. Indoor Semantic Segmentation using depth information.
        ICLR 2013. arXiv:1301.3572
    """

    advice = LAYOUT

    def __init__(
        self,
        root: str | Path,
        names: list[str],
        transforms: Transforms | None = None,
        seed: int = 0,
        targets: tuple[Target, ...] = TARGETS,
        classes: Literal[40, 13] = 40,
        normals: NormalsSource | None = None,
    ) -> None:
        super().__init__(transforms, seed)
        self.classes_on_disk = {"segmentation": len(NYU40_CLASSES)}
        self.root = Path(root)
        self.names = names
        self.targets = targets
        self.table = thirteen_table() if classes == 13 else None
        self.normals = normals or NormalsFromDepth()
        self.image_suffix = ".jpg" if any((self.root / "rgb").glob("*.jpg")) else ".png"

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """The files of a frame; depth too where normals are made from it."""
        name = self.names[index]
        files = {"image": self.root / "rgb" / f"{name}{self.image_suffix}"}
        if "segmentation" in self.targets:
            files["segmentation"] = self.root / "label40" / f"{name}.png"
        made = "normals" in self.targets and self.normals.file(name) is None
        if "depth" in self.targets or made:
            files["depth"] = self.root / "depth" / f"{name}.png"
        if "normals" in self.targets and not made:
            files["normals"] = self.normals.file(name) or Path()
        return files

    def read(self, index: int) -> Raw:
        """Image, intrinsics, name and the targets asked for."""
        files, name = self.files(index), self.names[index]
        image = read_image(files["image"])
        size = (image.shape[0], image.shape[1])
        intrinsics = INTRINSICS if size == FULL_SIZE else resize_intrinsics(INTRINSICS, FULL_SIZE, size)
        sample: Raw = {"image": image, "intrinsics": intrinsics, "name": name}
        if "segmentation" in self.targets:
            sample["segmentation"] = self._labels(files["segmentation"])
        depth = read_depth(files["depth"]) if "depth" in files else np.zeros(size, np.float32)
        if "depth" in self.targets:
            sample["depth"] = depth
        if "normals" in self.targets:
            sample["normals"] = self.normals.read(name, depth, intrinsics)
        return sample

    def _labels(self, path: Path) -> np.ndarray:
        labels = read_label(path)
        refuse_values(labels, len(NYU40_CLASSES), path)
        return labels if self.table is None else cv2.LUT(labels.astype(np.uint8), self.table)


def thirteen_table() -> np.ndarray:
    """From the 40 classes to the 13; missing stays 255.

    Shape:
        returns: (256,) uint8.
    """
    table = np.full(256, 255, np.uint8)
    table[: len(NYU13_OF_40)] = NYU13_OF_40
    return table


class NYUDepthV2DataModule(DenseDataModule):
    """NYU Depth v2 in batches: labels, depth and normals, together or some of them.

    Args:
        root: The prepared folder.
        targets: What to read beside the image and intrinsics.
        classes: 40 or 13.
        normals: Where normals come from: `NormalsFromDepth` (with its default window when None; give it a `cache` for
            long runs) or `NormalsFromFiles`.
        val_split: "train" takes `val_share` of the official training frames for validation, in blocks of ten
            neighbours (mostly one scene), evenly spread and always the same, so that the test frames decide nothing.
            "test" validates on the official test frames and trains on all training frames, as much published work does.
        val_share: Share of the training frames that validate.
        train_limit: Train on so many frames, evenly spread over the list.
        val_limit: The same for validation.
        test_limit: The same for test.
        batch_size: Of training.
        eval_batch_size: Of validation and test.
        num_workers: Processes that load; None takes this machine's share.
        train_transforms: What is done to training samples.
        eval_transforms: What is done to the others.
        seed: Of order and transforms.
        check: "full", "headers" or "none": what is looked at before the first step.

    Raises:
        DataError: If the folder, a list or a file is missing or broken.
        ConfigurationError: If `val_share` is not between 0 and 1, or `targets` is empty or repeats itself.
    """

    def __init__(
        self,
        root: str = "data/nyuv2",
        targets: tuple[Target, ...] = TARGETS,
        classes: Literal[40, 13] = 40,
        normals: NormalsSource | None = None,
        val_split: Literal["train", "test"] = "train",
        val_share: float = 0.1,
        train_limit: int | None = None,
        val_limit: int | None = None,
        test_limit: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        seed: int = 0,
        check: Literal["full", "headers", "none"] = "full",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, train_transforms, eval_transforms, seed, check)
        if not 0 < val_share < 1:
            raise ConfigurationError(f"NYUDepthV2DataModule: val_share must be between 0 and 1, not {val_share}.")
        if not targets or len(set(targets)) < len(targets):
            raise ConfigurationError(
                f"NYUDepthV2DataModule: targets must be different ones of {TARGETS}; got {targets}."
            )
        self.root = root
        self.targets = targets
        self.label_set = classes
        self.normals = normals
        self.val_split = val_split
        self.val_share = val_share
        self.limits: dict[Split, int | None] = {"train": train_limit, "val": val_limit, "test": test_limit}
        if "segmentation" in targets:
            self.classes = {"segmentation": NYU13_CLASSES if classes == 13 else NYU40_CLASSES}

    def names(self, split: Split) -> list[str]:
        """The frames of a split."""
        if not (Path(self.root) / "rgb").is_dir():
            state = "it lacks rgb" if Path(self.root).is_dir() else "there is no such folder"
            raise DataError(f"{Path(self.root).absolute()}: no NYU Depth v2 here: {state}.\n{LAYOUT}")
        official = "test" if split == "test" or (split == "val" and self.val_split == "test") else "train"
        names = read_list(Path(self.root) / f"{official}.txt")
        if official == "train" and self.val_split == "train":
            train, val = carve(names, self.val_share)
            names = val if split == "val" else train
        return evenly(names, self.limits[split])

    def dataset(self, split: Split, transforms: Transforms | None) -> NYUDepthV2:
        """The frames of a split."""
        names = self.names(split)
        return NYUDepthV2(self.root, names, transforms, self.seed, self.targets, self.label_set, self.normals)

    def official(self, split: Split) -> OfficialSet:
        """The 654 test frames; the truth of normals is what they are made of."""
        tested = split == "test" or (split == "val" and self.val_split == "test")
        departures = () if tested else (f"the {split} frames are official training frames (data.val_split)",)
        source = self.normals or NormalsFromDepth()
        record = ", ".join(f"{key} {value}" for key, value in source.record.items())
        truth = {
            "depth": "depth/ as prepared: raw with the sensor's holes missing, unless filled was asked for",
            "normals": f"{type(source).__name__}: {record}",
        }
        return OfficialSet("NYU Depth v2 test", TEST_FRAMES, departures, truth)
