"""NYU Depth v2: the prepared layout, splits, mappings, normals from depth and from files, and the real frames."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from densepred.data.normals_source import NormalsFromDepth, NormalsFromFiles
from densepred.data.nyu import INTRINSICS, NYUDepthV2, NYUDepthV2DataModule
from densepred.data.nyu_classes import NYU13_CLASSES, NYU13_OF_40, NYU40_CLASSES
from densepred.data.transforms import ScaleCrop
from densepred.errors import ConfigurationError, DataError
from tests.fakes import write_nyu


def datamodule(root, **options):
    return NYUDepthV2DataModule(str(root), **{"num_workers": 0, "batch_size": 2} | options)


def test_a_frame_is_what_its_files_hold(tmp_path):
    root = write_nyu(tmp_path)
    sample = NYUDepthV2(root, ["0001"], normals=NormalsFromDepth(window=5, blur=0))[0]
    millimetres = np.asarray(Image.open(root / "depth" / "0001.png")).astype(float)
    np.testing.assert_allclose(sample["depth"][0], millimetres / 1000, rtol=1e-6)
    np.testing.assert_array_equal(sample["segmentation"], np.asarray(Image.open(root / "label40" / "0001.png")))
    assert (sample["depth"][0, 2:6, 3:9] == 0).all()
    length = sample["normals"].norm(dim=0)
    assert ((length - 1).abs().lt(1e-4) | length.eq(0)).all()
    assert (length[2:6, 3:9] == 0).all()
    assert sample["name"] == "0001"


def test_normals_made_from_depth_face_the_wall_and_the_floor(tmp_path):
    root = write_nyu(tmp_path, size=(480, 640), train=1, test=1, holes=False)
    normals = NYUDepthV2(root, ["0001"], normals=NormalsFromDepth(window=9, blur=0))[0]["normals"]
    wall = normals[:, 60, 320]
    assert torch.dot(wall, torch.tensor([0.0, 0.0, -1.0])) > 0.999
    # the fake floor, depth 0.8 / (row / 480 - 0.5), is level up to the offset of the principal point
    assert normals[1, 460, 320] < -0.9


def test_only_the_targets_asked_for_are_read(tmp_path):
    root = write_nyu(tmp_path)
    for folder in ("label40", "depth"):
        for path in (root / folder).glob("*.png"):
            path.unlink()
    assert set(NYUDepthV2(root, ["0001"], targets=())[0]) == {"image", "intrinsics", "name"}
    data = datamodule(write_nyu(tmp_path / "b"), targets=("depth",))
    data.setup("fit")
    assert set(data.datasets["train"][0]) == {"image", "depth", "intrinsics", "name"}
    assert data.classes == {}


def test_a_cut_depth_file_is_named_before_the_first_step(tmp_path):
    root = write_nyu(tmp_path)
    path = root / "depth" / "0003.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"depth/0003\.png: cannot be read: its end is missing"):
        datamodule(root).setup("fit")


def test_the_40_and_13_classes_are_those_of_the_official_files(real_data):
    meta = real_data / "nyuv2" / "meta"
    forty = loadmat(meta / "classMapping40.mat", squeeze_me=True)["className"].tolist()
    thirteen = loadmat(meta / "class13Mapping.mat", squeeze_me=True)["classMapping13"]
    assert forty == NYU40_CLASSES
    assert thirteen["classNames"].item().tolist() == NYU13_CLASSES
    assert (thirteen["labels13"].item().astype(int) - 1).tolist() == NYU13_OF_40


def test_13_classes_follow_from_the_40_and_missing_stays_missing(tmp_path):
    root = write_nyu(tmp_path)
    forty, thirteen = NYUDepthV2(root, ["0001"]), NYUDepthV2(root, ["0001"], classes=13)
    labels = forty.read(0)["segmentation"]
    expected = [255 if label == 255 else NYU13_OF_40[label] for label in labels.ravel().tolist()]
    assert thirteen.read(0)["segmentation"].ravel().tolist() == expected
    assert datamodule(root, classes=13).classes == {"segmentation": NYU13_CLASSES}


def test_intrinsics_are_the_published_ones_and_follow_the_size_of_the_frames(tmp_path):
    full = NYUDepthV2(write_nyu(tmp_path / "a", 1, 1, (480, 640)), ["0001"], targets=())[0]["intrinsics"]
    np.testing.assert_allclose(full[0], [518.85790117450188, 0, 325.58244941119034], rtol=1e-6)
    half = NYUDepthV2(write_nyu(tmp_path / "b", 1, 1, (240, 320)), ["0001"], targets=())[0]["intrinsics"]
    # a point on the optical axis of the full frame is on that of the half frame: centres of pixels, not corners
    np.testing.assert_allclose(half[0, 2], (INTRINSICS[0, 2] + 0.5) / 2 - 0.5, rtol=1e-6)
    np.testing.assert_allclose(half[1, 1], INTRINSICS[1, 1] / 2, rtol=1e-6)


def test_validation_frames_are_taken_from_training_and_never_from_test(tmp_path):
    data = datamodule(write_nyu(tmp_path, train=40, test=3, size=(33, 33)), val_share=0.25)
    names = {split: data.names(split) for split in ("train", "val", "test")}
    assert len(names["val"]) == 10
    assert sorted(names["train"] + names["val"]) == [f"{i:04d}" for i in range(1, 41)]
    assert names["test"] == ["0041", "0042", "0043"]
    assert data.names("val") == names["val"]


def test_validation_on_the_test_frames_trains_on_all_training_frames(tmp_path):
    data = datamodule(write_nyu(tmp_path, train=6, test=3, size=(33, 33)), val_split="test", test_limit=2)
    assert len(data.names("train")) == 6
    assert data.names("val") == ["0007", "0008", "0009"]
    assert data.names("test") == ["0007", "0008"]


def test_a_tiny_training_set_still_has_frames_to_validate_on(tmp_path):
    data = datamodule(write_nyu(tmp_path, train=4, test=2, size=(33, 33)))
    data.setup("fit")
    assert len(data.datasets["val"]) >= 1
    assert len(data.datasets["train"]) >= 1


def test_options_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"val_share must be between 0 and 1, not 1.5"):
        datamodule(tmp_path, val_share=1.5)
    with pytest.raises(ConfigurationError, match="targets must be different ones"):
        datamodule(tmp_path, targets=("depth", "depth"))


def test_a_missing_folder_ends_in_its_name_the_layout_and_the_ways_out(tmp_path):
    with pytest.raises(DataError, match="no NYU Depth v2 here: there is no such folder") as error:
        datamodule(tmp_path / "nowhere").setup("fit")
    for words in ("nowhere", "depth/0001.png", "densepred prepare nyu", "--data.root"):
        assert words in str(error.value)


def test_a_label_of_another_size_is_found_before_the_first_step(tmp_path):
    root = write_nyu(tmp_path)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "label40" / "0001.png")
    with pytest.raises(DataError, match=r"0001\.png: its size is \(20, 30\)"):
        datamodule(root).setup("fit")


# --- normals


def test_cached_normals_are_the_made_ones_to_a_twentieth_of_a_degree(tmp_path):
    root = write_nyu(tmp_path / "nyu", holes=True)
    made = NYUDepthV2(root, ["0001"], normals=NormalsFromDepth(5, 0)).read(0)["normals"]
    source = NormalsFromDepth(5, 0, cache=str(tmp_path / "cache"))
    dataset = NYUDepthV2(root, ["0001"], normals=source)
    first, second = dataset.read(0)["normals"], dataset.read(0)["normals"]
    np.testing.assert_array_equal(first, second)
    known = (made != 0).any(-1)
    np.testing.assert_array_equal((first != 0).any(-1), known)
    cosine = np.clip((made * first).sum(-1)[known].astype(np.float64), -1, 1)
    # arccos loses precision near 1; the chord does not
    chord = np.linalg.norm(made - first, axis=-1)[known]
    assert cosine.min() > 0.99999
    assert np.degrees(chord.max()) < 0.05
    assert json.loads((tmp_path / "cache" / "method.json").read_text()) == source.record
    assert [path.name for path in (tmp_path / "cache").glob("*") if "unfinished" in path.name] == []


def test_the_cache_is_read_and_not_made_again(tmp_path):
    root = write_nyu(tmp_path / "nyu")
    dataset = NYUDepthV2(root, ["0001"], normals=NormalsFromDepth(5, 0, cache=str(tmp_path / "cache")))
    np.save(tmp_path / "cache" / "0001.npy", np.full((48, 64, 3), (0, -1, 0), np.float16))
    np.testing.assert_array_equal(dataset.read(0)["normals"], np.full((48, 64, 3), (0, -1, 0), np.float32))


def test_a_cache_can_be_read_by_whoever_can_read_the_folder(tmp_path):
    dataset = NYUDepthV2(write_nyu(tmp_path / "nyu"), ["0001"], normals=NormalsFromDepth(5, 0, cache=str(tmp_path)))
    dataset.read(0)
    (tmp_path / "plain").touch()
    assert (tmp_path / "0001.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_cache_made_otherwise_is_refused(tmp_path):
    NormalsFromDepth(5, 0, cache=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"'window': 5.*'window': 7.* is asked for. Name another cache"):
        NormalsFromDepth(7, 0, cache=str(tmp_path))


@pytest.mark.parametrize("suffix", ["npy", "png"])
def test_normals_are_read_from_files_with_their_signs_and_missing_pixels(tmp_path, suffix):
    root = write_nyu(tmp_path / "nyu")
    expected = np.full((48, 64, 3), (0.6, 0.0, -0.8), np.float32)
    theirs = expected * (1, -1, -1)
    theirs[:10] = 0
    (tmp_path / "n").mkdir()
    if suffix == "npy":
        theirs[10, 0] = np.nan
        np.save(tmp_path / "n" / "0001.npy", theirs)
    else:
        Image.fromarray(np.round((theirs + 1) * 127.5).astype(np.uint8)).save(tmp_path / "n" / "0001.png")
    source = NormalsFromFiles(str(tmp_path / "n"), signs=(1, -1, -1))
    dataset = NYUDepthV2(root, ["0001"], targets=("normals",), normals=source)
    assert set(dataset.files(0)) == {"image", "normals"}
    normals = dataset[0]["normals"]
    assert (normals[:, :10] == 0).all()
    torch.testing.assert_close(normals[:, 20, 20], torch.tensor([0.6, 0.0, -0.8]), atol=0.01, rtol=0)
    torch.testing.assert_close(normals[:, 20, 20].norm(), torch.tensor(1.0))
    assert torch.isfinite(normals).all()


def test_normals_that_face_away_are_refused_with_the_option_that_turns_them(tmp_path):
    np.save(tmp_path / "0001.npy", np.full((48, 64, 3), (0, 0, 1), np.float32))
    dataset = NYUDepthV2(write_nyu(tmp_path / "nyu"), ["0001"], normals=NormalsFromFiles(str(tmp_path)))
    with pytest.raises(DataError, match=r"0001\.npy: most normals point away .* \(1, -1, -1\)"):
        dataset[0]


def test_missing_normals_files_are_found_before_the_first_step(tmp_path):
    source = NormalsFromFiles(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"none.*0001\.png: there is no such file"):
        datamodule(write_nyu(tmp_path / "nyu"), normals=source).setup("fit")


# --- real frames


def test_real_frames_pass_the_check_and_make_a_batch_of_everything(real_data):
    data = datamodule(real_data / "nyuv2", train_limit=6, train_transforms=[ScaleCrop(size=(96, 128))])
    assert len(data.names("test")) == 250
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 96, 128)
    assert 0.3 < batch["depth"][batch["depth"] > 0].mean() < 10
    length = batch["normals"].norm(dim=1)
    assert ((length - 1).abs().lt(1e-3) | length.eq(0)).all()
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    rays = torch.linalg.inv(batch["intrinsics"]) @ torch.stack([columns, rows, rows * 0 + 1]).flatten(1)
    facing = (rays * batch["normals"].flatten(2)).sum(1)
    assert (facing <= 1e-3).float().mean() > 0.99
    assert set(batch["segmentation"].unique().tolist()) <= {*range(40), 255}


def test_real_floors_look_up(real_data):
    dataset = NYUDepthV2(real_data / "nyuv2", ["0003", "0011", "0045"], normals=NormalsFromDepth())
    for i in range(len(dataset)):
        sample = dataset.read(i)
        floor = sample["segmentation"] == NYU40_CLASSES.index("floor")
        if floor.sum() > 2000:
            assert np.median(sample["normals"][floor][:, 1]) < -0.6
