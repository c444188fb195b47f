"""The official devkit of Pascal VOC 2012: where its folder is, and its classes."""

from pathlib import Path

VOC_CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def find_voc(root: Path) -> Path | None:
    """The folder VOC2012 at, or below, `root`; None if there is none."""
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "ImageSets" / "Segmentation").is_dir() and (folder / "JPEGImages").is_dir():
            return folder
    return None
