"""Pascal VOC: the official layout, lists, classes, and the real images."""

import numpy as np
import pytest
import torch
from PIL import Image

from densepred.data.voc import VOC_CLASSES, PascalVOC, PascalVOCDataModule
from densepred.errors import ConfigurationError, DataError
from tests.fakes import draw_labels, write_list, write_palette_png, write_voc


def stored(root, name, folder="SegmentationClass"):
    return np.asarray(Image.open(root / folder / f"{name}.png"))


def test_a_sample_is_the_picture_and_its_palette_indices(tmp_path):
    root = write_voc(tmp_path)
    dataset = PascalVOC(root, "train")
    for index, name in enumerate(dataset.names):
        sample = dataset[index]
        np.testing.assert_array_equal(sample["segmentation"].numpy(), stored(root, name))
        picture = torch.from_numpy(np.array(Image.open(root / "JPEGImages" / f"{name}.jpg"))).permute(2, 0, 1)
        assert (sample["image"].int() - picture.int()).abs().max() <= 3  # two decoders' rounding
        assert sample["name"] == name
    assert any((dataset[i]["segmentation"] == 255).any() for i in range(len(dataset)))


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_any_folder_of_the_devkit(tmp_path, below):
    write_voc(tmp_path, train=3)
    assert len(PascalVOC(tmp_path / below)) == 3


def test_splits_are_the_official_lists_and_files_of_ones_own(tmp_path):
    root = write_voc(tmp_path, train=3, val=2)
    write_list(tmp_path / "mine.txt", ["2007_000004", "2007_000000"])
    lengths = {split: len(PascalVOC(root, split)) for split in ("train", "val", "trainval")}
    assert lengths == {"train": 3, "val": 2, "trainval": 5}
    assert PascalVOC(root, str(tmp_path / "mine.txt")).names == ["2007_000004", "2007_000000"]
    assert PascalVOC(root, "trainval", limit=2).names == ["2007_000000", "2007_000002"]


def test_trainaug_takes_the_official_label_where_there_is_one_and_the_augmented_elsewhere(tmp_path):
    root = write_voc(tmp_path, train=1, val=1, unlabelled=1)
    write_list(root / "ImageSets" / "Segmentation" / "trainaug.txt", ["2007_000000", "2007_000002"])
    size = Image.open(root / "JPEGImages" / "2007_000002.jpg").size[::-1]
    augmented = draw_labels(np.random.default_rng(5), size, 21)
    write_palette_png(root / "SegmentationClassAug" / "2007_000002.png", augmented)
    dataset = PascalVOC(root, "trainaug")
    np.testing.assert_array_equal(dataset[0]["segmentation"].numpy(), stored(root, "2007_000000"))
    np.testing.assert_array_equal(dataset[1]["segmentation"].numpy(), augmented)


def test_kept_classes_are_numbered_in_their_order_and_all_others_are_missing(tmp_path):
    root = write_voc(tmp_path, train=6)
    names = ["dog", "background", *VOC_CLASSES[1:6]]
    dataset, whole = PascalVOC(root, classes=names), PascalVOC(root)
    for i in range(6):
        expected = np.full_like(whole.read(i)["segmentation"], 255)
        for number, name in enumerate(names):
            expected[whole.read(i)["segmentation"] == VOC_CLASSES.index(name)] = number
        np.testing.assert_array_equal(dataset.read(i)["segmentation"], expected)
    assert PascalVOCDataModule(str(root), classes=names).classes == {"segmentation": names}


@pytest.mark.parametrize("classes", [["dog", "unicorn"], ["dog", "dog"], []])
def test_kept_classes_must_be_different_known_names(tmp_path, classes):
    with pytest.raises(ConfigurationError, match="classes must be different names out of background, aeroplane"):
        PascalVOC(write_voc(tmp_path), classes=classes)


def test_a_missing_folder_ends_in_its_name_the_layout_and_the_ways_out(tmp_path):
    data = PascalVOCDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere: no Pascal VOC 2012 here: there is no such folder") as error:
        data.setup("fit")
    for words in ("JPEGImages/NAME.jpg", "densepred prepare voc", "--data.root"):
        assert words in str(error.value)


def test_an_unknown_list_names_those_that_are_there(tmp_path):
    with pytest.raises(DataError, match=r"trainaug\.txt: .* there: train, trainval, val\.\n(.|\n)*prepare sbd"):
        PascalVOC(write_voc(tmp_path), "trainaug")


def test_an_empty_list_is_named(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    with pytest.raises(DataError, match=r"val\.txt: the list is empty"):
        PascalVOCDataModule(str(root)).setup("validate")


def test_real_images_and_labels_pass_the_check_and_agree_with_pillow(real_data):
    data = PascalVOCDataModule(str(real_data / "voc2012"), eval_batch_size=3, val_limit=30)
    data.setup("validate")
    dataset = data.datasets["val"]
    for i in (0, 17):
        sample, name = dataset[i], dataset.names[i]
        np.testing.assert_array_equal(sample["segmentation"], stored(real_data / "voc2012", name))
        picture = np.asarray(Image.open(real_data / "voc2012" / "JPEGImages" / f"{name}.jpg")).astype(int)
        assert np.abs(sample["image"].permute(1, 2, 0).numpy() - picture).mean() < 1.5
