"""densepred check-data: every fault by its file, every number by its definition, weights from there to the loss."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from densepred.callbacks.sheet import Row, draw_sheet
from densepred.checking.fingerprint import perceptual_bits
from densepred.checking.inspection import inspect_data
from densepred.cli import main
from densepred.data.camvid import CAMVID_CLASSES, CamVidDataModule
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset
from densepred.data.nyu import INTRINSICS, NYUDepthV2DataModule
from densepred.data.rooms import Rooms, RoomsDataModule
from densepred.errors import ConfigurationError
from densepred.geometry import resize_intrinsics, unproject
from densepred.losses.class_weights import read_class_weights, with_weights_read
from densepred.losses.focal import FocalLoss
from densepred.losses.segmentation import CrossEntropyLoss
from densepred.losses.sum import SumLoss
from densepred.module import DensePredictor
from densepred.sample import SAMPLE_KINDS, Kind
from densepred.tasks.names import missing_names
from densepred.tasks.segmentation import Segmentation
from tests import fakes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(*words: str) -> tuple[int, dict]:
    """Exit status and the JSON."""
    status = main(["check-data", *map(str, words), "--output", "out"])
    return status, json.loads(Path("out.json").read_text())


def texts(found: dict, severity: str = "faults", what: str | None = None) -> list[str]:
    return [entry["text"] for entry in found[severity] if what in (None, entry["what"])]


# ------------------------------------------------------------------------------------------------ faults by file name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        image.crop((0, 0, image.width - 3, image.height)).save(path)


def label(value: int):
    def write(path: Path) -> None:
        with Image.open(path) as image:
            labels, palette = np.array(image), image.getpalette()
        labels[2, 3] = value
        stored = Image.fromarray(labels)
        if palette:
            stored.putpalette(palette)
        stored.save(path)

    return write


def colours(path: Path) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size).save(path)


def remove(path: Path) -> None:
    path.unlink()


BROKEN = {
    "VOC, a truncated picture": ("voc", "JPEGImages/2007_000001.jpg", truncate, "unreadable", "truncated"),
    "VOC, an empty label": ("voc", "SegmentationClass/2007_000002.png", empty, "unreadable", "0 bytes"),
    "VOC, a label of another size": ("voc", "SegmentationClass/2007_000000.png", cut, "size", "its size is"),
    "VOC, a class above 20": ("voc", "SegmentationClass/2007_000005.png", label(21), "labels", "label value 21 in 1"),
    "VOC, a label in colours": ("voc", "SegmentationClass/2007_000003.png", colours, "unreadable", "mode 'RGB'"),
    "VOC, a picture that is not there": ("voc", "JPEGImages/2007_000004.jpg", remove, "unreadable", "no such file"),
    "CamVid, an id above void": ("camvid", "valannot/0001TP_val00030.png", label(12), "labels", "row 2, column 3"),
    "CamVid, a damaged picture": ("camvid", "train/0001TP_train00030.png", truncate, "unreadable", "truncated"),
    "NYU, a truncated depth": ("nyu", "depth/0002.png", truncate, "unreadable", "truncated"),
    "NYU, depth of another size": ("nyu", "depth/0004.png", cut, "size", "its size is"),
    "NYU, a class above 39": ("nyu", "label40/0006.png", label(40), "labels", "label value 40"),
    "ISBI, a label that is neither 0 nor 255": ("isbi", "label/2.png", label(7), "labels", "label value 7"),
}
WRITERS = {"voc": fakes.write_voc, "camvid": fakes.write_camvid, "isbi": fakes.write_isbi,
           "nyu": lambda folder: fakes.write_nyu(folder / "nyu", train=4, test=2)}  # fmt: skip
CLASSES = {"voc": "PascalVOCDataModule", "camvid": "CamVidDataModule", "isbi": "ISBIDataModule",
           "nyu": "NYUDepthV2DataModule"}  # fmt: skip
OPTIONS = {"isbi": ["--data.val_slices=2"]}


@pytest.mark.parametrize("case", BROKEN)
def test_a_fault_is_told_by_its_file_and_makes_the_exit_status_1(tmp_path, capsys, case):
    kind, name, break_it, what, words = BROKEN[case]
    root = WRITERS[kind](tmp_path)
    words_of_data = ["--data", CLASSES[kind], "--data.root", root, *OPTIONS.get(kind, [])]
    break_it(root / name)
    status, found = check(*words_of_data)
    assert status == 1
    assert not found["safe"]
    faults = texts(found, what=what)
    assert faults
    assert all(str(root / name) in text and words in text for text in faults)
    assert len(found["faults"]) == len(faults)
    printed = capsys.readouterr().out
    assert str(root / name) in printed
    assert "Not safe to train on" in printed


def test_all_faults_of_all_samples_are_told_at_once(tmp_path):
    root = fakes.write_voc(tmp_path)
    broken = [root / "JPEGImages" / "2007_000000.jpg", root / "SegmentationClass" / "2007_000000.png",
              root / "SegmentationClass" / "2007_000002.png"]  # fmt: skip
    truncate(broken[0])
    label(30)(broken[1])
    empty(broken[2])
    status, found = check("--data", "PascalVOCDataModule", "--data.root", root)
    assert status == 1
    assert sorted(str(path) for path in broken for text in texts(found) if str(path) in text) == sorted(
        map(str, broken)
    )
    assert found["splits"]["train"]["usable"] == 2


@pytest.mark.parametrize("kind", CLASSES)
def test_whole_data_are_safe_and_leave_a_json_and_a_sheet(tmp_path, capsys, kind):
    root = WRITERS[kind](tmp_path)
    status, found = check("--data", CLASSES[kind], "--data.root", root, *OPTIONS.get(kind, []))
    assert status == 0
    assert found["safe"]
    assert found["faults"] == []
    with Image.open("out.png") as sheet:
        assert min(sheet.size) > 200
    assert "Safe to train on" in capsys.readouterr().out


def test_rooms_which_have_no_files_are_looked_at_too():
    status, found = check("--data", "RoomsDataModule", "--data.size", "[64, 64]", "--data.train", "6", "--data.val",
                          "2", "--data.test", "2")  # fmt: skip
    assert status == 0
    assert found["splits"]["train"]["sizes"] == {"64x64": 6}
    assert set(found["splits"]["train"]) >= {"image", "segmentation", "depth", "normals"}
    assert found["splits"]["val"]["normals"]["facing_away_share"] < 0.01


def test_own_folders_are_looked_at_too(tmp_path):
    root = fakes.write_folder(tmp_path / "mine", tuple("abcdefghijklmnopqrst"), depth="depth")
    fakes.write_list(root / "train.txt", list("abcdefghijkl"))
    fakes.write_list(root / "val.txt", list("mnopqrst"))
    status, found = check("--data", "FolderDataModule", "--data.root", root)
    assert status == 0
    assert found["classes"]["segmentation"] == ["class 0", "class 1", "class 2"]
    assert list(found["class_weights"]["segmentation"]["median_frequency"]) == found["classes"]["segmentation"]
    label(9)(root / "labels" / "c.png")
    status, found = check("--data", "FolderDataModule", "--data.root", root)
    assert status == 1
    assert [str(root / "labels" / "c.png") in text for text in texts(found)] == [True]


def test_without_data_the_message_says_what_to_give(capsys):
    assert main(["check-data"]) == 1
    assert "--data CamVidDataModule" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- data of a user's own


class Mine(DenseDataset):
    """Samples made by a function of the index."""

    def __init__(self, make, first, transforms=None):
        super().__init__(transforms)
        self.make, self.first = make, first

    def __len__(self):
        return 4

    def read(self, index):
        number = self.first + index
        image = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return {"image": image, "name": f"sample {number}", **self.make(number)}


class MineDataModule(DenseDataModule):
    kinds = SAMPLE_KINDS | {"importance": Kind.WEIGHT}

    def __init__(self, make, classes=None):
        super().__init__(batch_size=1, num_workers=0)
        self.make = make
        self.classes = {} if classes is None else {"segmentation": classes}

    def dataset(self, split, transforms):
        return Mine(self.make, 10 * ("train", "val", "test").index(split), transforms)


def broken_at(index: int, broken, whole):
    return lambda i: {**whole, **broken} if i == index else whole


LABELS = np.arange(12 * 16).reshape(12, 16) % 3
NORMALS = np.zeros((12, 16, 3), np.float32) + np.float32([0, 0, -1])
DEPTH = np.full((12, 16), 2.0, np.float32)
FLAWED = DEPTH.copy()
FLAWED[0, :3] = np.nan, -1, np.inf
WHOLE = {"segmentation": LABELS.astype(np.uint8), "depth": DEPTH, "normals": NORMALS}
STRANGE = {
    "labels": ({"segmentation": (LABELS + 1).astype(np.uint8)}, "segmentation of sample 2: label value 3 in 64 pixels"),
    "negative": ({"segmentation": LABELS.astype(np.int64) + 40000}, "label value 40000, 40001, 40002 in 192 pixels"),
    "soft labels": ({"segmentation": LABELS * 0.5}, "no whole numbers"),
    "length": ({"normals": 1.2 * NORMALS}, "normals of sample 2: 192 of 192 normals have another length than 1"),
    "planes": ({"normals": NORMALS[..., :2]}, "2 planes; expected 3"),
    "size": ({"depth": DEPTH[1:]}, r"depth of sample 2: its size is (11, 16), but that of its image is (12, 16)"),
    "range": ({"image": np.full((12, 16, 3), 200.0, np.float32)}, "values from 200 to 200; expected 0 to 1"),
    "dtype": ({"image": np.full((12, 16, 3), 200, np.uint16)}, "dtype uint16; expected uint8"),
    "weight": ({"importance": -DEPTH}, "importance of sample 2: weights below 0"),
    "intrinsics": ({"intrinsics": np.zeros((3, 3))}, "positive focal lengths"),
    "key": ({"flow": DEPTH}, "read() gave flow, whose kind is not declared"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_no_file_shows_is_found_in_the_sample(case):
    broken, words = STRANGE[case]
    found = inspect_data(MineDataModule(broken_at(2, broken, WHOLE), ["a", "b", "c"]))
    assert not found.safe
    faults = [remark.text for _, remark in found.remarks if remark.unsafe]
    assert len(faults) == 1
    assert words in faults[0]
    assert "sample 2" in faults[0]


def test_a_reader_that_fails_is_told_with_its_error_and_the_other_samples_are_counted():
    def make(index):
        if index == 2:
            raise KeyError("no such thing")
        return WHOLE

    found = inspect_data(MineDataModule(make, ["a", "b", "c"]))
    (text,) = [remark.text for _, remark in found.remarks if remark.unsafe]
    assert "Mine: sample 2 cannot be read: KeyError: 'no such thing' (test_check_data.py, line" in text
    assert found.splits["train"].usable == [0, 1, 3]
    assert found.splits["train"].sums["depth"].known == 3 * DEPTH.size


def test_what_training_leaves_out_by_itself_is_a_warning():
    nothing = {**WHOLE, "depth": 0 * DEPTH, "segmentation": np.full((12, 16), 255, np.uint8)}
    flawed = {**WHOLE, "depth": FLAWED}
    found = inspect_data(MineDataModule(lambda i: {1: nothing, 2: flawed}.get(i, WHOLE), ["a", "b", "c", "d"]))
    assert found.safe
    warnings = "\n".join(remark.text for _, remark in found.remarks)
    assert "depth of sample 1: no pixel has a depth" in warnings
    assert "depth of sample 2: 2 not finite and 1 negative depths; they count as missing" in warnings
    assert "train: 1 images have no known segmentation" in warnings
    assert "train: no pixel of segmentation is d" in warnings


def test_depth_that_cannot_be_metres_is_a_warning():
    found = inspect_data(MineDataModule(lambda i: {"depth": 1000 * DEPTH}))
    assert found.safe
    assert any("half of the depth is beyond 2e+03 m. Is it in metres?" in remark.text for _, remark in found.remarks)


def test_normals_that_look_away_are_a_warning_by_the_ray_of_each_pixel():
    whole, turned = (inspect_data(MineDataModule(lambda i, sign=sign: {"normals": sign * NORMALS})) for sign in (1, -1))
    assert whole.remarks == []
    assert turned.safe
    assert any("100.0% of the normals face away" in remark.text for _, remark in turned.remarks)
    # a ceiling seen by a camera that looks down: z is above 0 though it faces the camera
    ray = unproject(np.ones((12, 16), np.float32), resize_intrinsics(INTRINSICS, (480, 640), (12, 16)))
    ceiling = np.float32([0, 0.98, 0.199]) + 0 * ray
    above = {"normals": np.where((ray @ np.float32([0, 0.98, 0.199]) < 0)[..., None], ceiling, 0)}
    sample = above | {"intrinsics": resize_intrinsics(INTRINSICS, (480, 640), (12, 16))}
    assert (above["normals"][..., 2] > 0).any()
    found = inspect_data(MineDataModule(lambda i: sample))
    assert [remark for _, remark in found.remarks if remark.what == "normals"] == []


def test_labels_that_overlap_are_counted_for_each_class_and_get_no_weights():
    answers = np.zeros((12, 16, 2), np.uint8)
    answers[:3, :, 0] = 1
    answers[0, :4, 1] = 255
    found = inspect_data(MineDataModule(lambda i: {"segmentation": answers}, ["wet", "cold"]))
    assert found.safe
    assert found.splits["train"].sums["segmentation"].pixels.tolist() == [4 * 48, 0]
    assert found.splits["train"].sums["segmentation"].missing == 4 * 4


# ---------------------------------------------------------------------------------------------------- the numbers


def test_numbers_of_labels_and_pictures_are_numpys_and_weights_scikit_learns(tmp_path):
    root = fakes.write_camvid(tmp_path, train=5)
    _, found = check("--data", "CamVidDataModule", "--data.root", root)
    train = found["splits"]["train"]
    pictures = np.stack([np.array(Image.open(path)) for path in sorted((root / "train").glob("*.png"))]) / 255
    np.testing.assert_allclose(train["image"]["mean"], pictures.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(train["image"]["std"], pictures.std((0, 1, 2)), rtol=1e-9)
    labels = np.stack([np.array(Image.open(path)) for path in sorted((root / "trainannot").glob("*.png"))])
    counts = np.array([(labels == c).sum() for c in range(11)])
    assert train["segmentation"]["pixels"] == counts.tolist()
    assert train["segmentation"]["missing_share"] == pytest.approx((labels == 11).mean())
    known = (labels != 11).sum((1, 2))
    images = np.array([[(one == c).any() for one in labels] for c in range(11)])
    assert train["segmentation"]["images"] == images.sum(1).tolist()
    there = counts > 0
    frequency = counts[there] / (images * known).sum(1)[there]
    weights = found["class_weights"]["segmentation"]
    median = np.zeros(11)
    median[there] = np.median(frequency) / frequency
    np.testing.assert_allclose(list(weights["median_frequency"].values()), median, rtol=1e-5)
    balanced = np.zeros(11)
    flat = labels[labels != 11]
    balanced[there] = compute_class_weight("balanced", classes=np.flatnonzero(there), y=flat)
    np.testing.assert_allclose(list(weights["inverse_frequency"].values()), balanced, rtol=1e-5)
    assert list(weights["inverse_frequency"]) == CAMVID_CLASSES


def test_numbers_of_depth_are_numpys(tmp_path):
    root = fakes.write_nyu(tmp_path / "nyu", train=6, test=2)
    _, found = check("--data", "NYUDepthV2DataModule", "--data.root", root, "--data.val_split", "test")
    metres = np.stack([np.array(Image.open(root / "depth" / f"{n:04d}.png")) for n in range(1, 7)]) / 1000
    known = metres[metres > 0]
    depth = found["splits"]["train"]["depth"]
    assert depth["min"] == pytest.approx(known.min(), rel=1e-6)
    assert depth["max"] == pytest.approx(known.max(), rel=1e-6)
    assert depth["missing_share"] == pytest.approx((metres == 0).mean())
    expected = [np.quantile(known, share, method="inverted_cdf") for share in (0.05, 0.5, 0.95)]
    np.testing.assert_allclose([depth["p05"], depth["median"], depth["p95"]], expected, rtol=0.006)


def test_several_processes_find_the_same_as_one():
    data = RoomsDataModule(size=(32, 32), train=36, val=2, test=2)
    one, two = (inspect_data(data, num_workers=workers) for workers in (0, 2))
    assert [numbers.sizes for numbers in one.splits.values()] == [numbers.sizes for numbers in two.splits.values()]
    for split in one.splits:
        for key, sums in one.splits[split].sums.items():
            assert sums.summary() == two.splits[split].sums[key].summary()


def test_a_limit_looks_at_samples_spread_over_the_list():
    found = inspect_data(RoomsDataModule(size=(32, 32), train=9, val=2, test=2), limit=3)
    assert [picture.name for picture in found.splits["train"].pictures] == [
        f"rooms/train/{index:06d}" for index in (0, 3, 6)
    ]
    assert found.splits["train"].listed == 9


# ------------------------------------------------------------------------------------------------- duplicates


def test_a_training_picture_among_those_to_validate_on_is_a_fault(tmp_path):
    root = fakes.write_camvid(tmp_path)
    same, again = root / "val" / "0001TP_val00000.png", root / "test" / "0001TP_test00030.png"
    shutil.copy(root / "train" / "0001TP_train00060.png", same)
    with Image.open(root / "train" / "0001TP_train00030.png") as image:
        image.save(again, compress_level=0)
    status, found = check("--data", "CamVidDataModule", "--data.root", root)
    assert status == 1
    assert texts(found) == [
        "val: 0001TP_val00000 is the same file as 0001TP_train00060 in train.",
        "test: 0001TP_test00030 is the same picture, pixel for pixel, as 0001TP_train00030 in train.",
    ]


def test_a_picture_twice_in_one_split_or_compressed_anew_in_another_is_a_warning(tmp_path):
    root = fakes.write_camvid(tmp_path, train=5, official=False)
    rooms = [np.ascontiguousarray(Rooms("train", 5, (60, 80)).read(i)["image"]) for i in range(5)]
    for number, room in enumerate(rooms):
        Image.fromarray(room).save(root / "train" / f"0001TP_train{30 * number:05d}.jpg", quality=98)
    shutil.copy(root / "train" / "0001TP_train00000.jpg", root / "train" / "0001TP_train00030.jpg")
    Image.fromarray(rooms[3]).save(root / "val" / "0001TP_val00000.jpg", quality=70)
    status, found = check("--data", "CamVidDataModule", "--data.root", root)
    assert status == 0
    assert texts(found, "warnings", "duplicate") == [
        "train: 0001TP_train00030 is the same picture as 0001TP_train00000."
    ]
    (near,) = texts(found, "warnings", "near-duplicate")
    assert near.startswith("val: 0001TP_val00000 looks like 0001TP_train00090 in train (")


def test_a_test_list_that_is_the_validation_list_is_no_duplicate(tmp_path, capsys):
    status, found = check("--data", "PascalVOCDataModule", "--data.root", fakes.write_voc(tmp_path))
    assert status == 0
    assert not texts(found, "warnings", "duplicate")
    assert "(the validation pictures)" in capsys.readouterr().out


def test_different_scenes_have_hashes_far_apart_and_resized_ones_near():
    scenes = Rooms("val", 6, (96, 128))
    large = Rooms("val", 6, (192, 256))
    bits = np.stack([perceptual_bits(scenes.read(i)["image"]) for i in range(6)])
    others = np.stack([perceptual_bits(large.read(i)["image"]) for i in range(6)])
    apart = (bits[:, None] != others).sum(-1)
    assert apart.diagonal().max() <= 10 < apart[~np.eye(6, dtype=bool)].min()


# ------------------------------------------------------------------------------------- the run's own configuration


def camvid_config(root: Path, **segmentation) -> Path:
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False,
            "num_sanity_val_steps": 0, "limit_val_batches": 1, "limit_train_batches": 1, "limit_test_batches": 1,
        },
        "model": {
            "class_path": "DensePredictor",
            "init_args": {
                "encoder": {"class_path": "ResNetEncoder", "init_args": {"name": "resnet18"}},
                "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [8, 8, 8, 8]}},
                "tasks": [{"class_path": "Segmentation", "init_args": {"classes": 11, **segmentation}}],
            },
        },
        "data": {
            "class_path": "CamVidDataModule",
            "init_args": {"root": str(root), "batch_size": 2, "num_workers": 0},
        },
    }  # fmt: skip
    path = Path("camvid.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_weights_go_from_check_data_to_the_loss_and_the_checkpoint_needs_the_file_no_more(tmp_path, capsys):
    root = fakes.write_camvid(tmp_path)
    config = camvid_config(root, class_weights="runs/check/camvid.json#inverse_frequency")
    assert main(["fit", "--config", str(config)]) == 1
    message = capsys.readouterr().err
    assert "there is no runs/check/camvid.json" in message
    assert "densepred check-data --config CONFIG --output runs/check/camvid" in message
    assert main(["check-data", "--config", str(config)]) == 0
    weights = json.loads(Path("runs/check/camvid.json").read_text())["class_weights"]["segmentation"]
    assert main(["fit", "--config", str(config)]) == 0
    Path("runs/check/camvid.json").unlink()
    checkpoint = "runs/version_0/checkpoints/last.ckpt"
    module = DensePredictor.load_from_checkpoint(checkpoint)
    held = module.tasks[0].loss.class_weights
    torch.testing.assert_close(held, torch.tensor(list(weights["inverse_frequency"].values())))
    saved = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())["model"]["init_args"]["tasks"][0]
    assert saved["init_args"]["class_weights"] == weights["inverse_frequency"]
    assert main(["test", "--ckpt_path", checkpoint]) == 0
    assert main(["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs=2"]) == 0


def test_what_would_stop_the_transforms_is_a_fault_of_a_run_and_a_warning_without_one(tmp_path):
    root = fakes.write_voc(tmp_path)  # images differ in size, and no crop makes them equal
    status, found = check("--data", "PascalVOCDataModule", "--data.root", root, "--data.batch_size", "4")
    assert status == 0
    assert "Training batches need images of one size" in texts(found, "warnings", "transforms")[0]
    init_args = {"root": str(root), "batch_size": 4, "num_workers": 0}
    data = {"class_path": "PascalVOCDataModule", "init_args": init_args}
    Path("run.yaml").write_text(yaml.safe_dump({"data": data}))
    status, found = check("--config", "run.yaml")
    assert status == 1
    assert "Training batches need images of one size" in texts(found, what="transforms")[0]
    init_args["train_transforms"] = [{"class_path": "ScaleCrop", "init_args": {"size": [48, 48]}}]
    Path("run.yaml").write_text(yaml.safe_dump({"data": data}))
    assert check("--config", "run.yaml")[0] == 0
    assert check("--config", "run.yaml", "--data.batch_size", "64")[0] == 1  # no batch would be full


def test_a_missing_test_list_does_not_stop_training_and_a_missing_validation_list_does(tmp_path):
    root = fakes.write_camvid(tmp_path)
    (root / "test.txt").unlink()
    status, found = check("--data", "CamVidDataModule", "--data.root", root)
    assert status == 0
    assert "test.txt: there is no such list" in texts(found, "warnings", "split")[0]
    (root / "val.txt").unlink()
    assert check("--data", "CamVidDataModule", "--data.root", root)[0] == 1


def test_a_sheet_may_stand_rows_side_by_side():
    rows = [Row(f"{i}", {("image", ""): np.full((320, 320, 3), 10 * i + 5, np.uint8)}) for i in range(5)]
    sheet = np.asarray(draw_sheet(rows, across=2))
    places = [np.argwhere((sheet == 10 * i + 5).all(-1)) for i in range(5)]
    tops, lefts = zip(*(place.min(0) for place in places), strict=True)
    assert [len(place) for place in places] == [320 * 320] * 5
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]


# --------------------------------------------------------------------------------------------- weights in the loss


def weights_file(**targets) -> str:
    Path("weights.json").write_text(json.dumps({"class_weights": targets}))
    return "weights.json"


BOTH = {"median_frequency": {"sky": 1.0, "road": 3.0}, "inverse_frequency": {"sky": 0.5, "road": 2.0}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("", [1.0, 3.0]), ("#inverse_frequency", [0.5, 2.0]), ("#segmentation/median_frequency", [1.0, 3.0])],
)
def test_the_task_and_its_losses_read_the_file_and_remember_the_numbers(choice, expected):
    source = weights_file(segmentation=BOTH) + choice
    names = ["sky", "road"]
    for task in (
        Segmentation(names, class_weights=source),
        Segmentation(names, loss=CrossEntropyLoss(source)),
        Segmentation(names, loss=FocalLoss(class_weights=source)),
        Segmentation(names, loss=SumLoss([CrossEntropyLoss(source)])),
    ):
        (held,) = [part.class_weights for part in task.modules() if getattr(part, "class_weights", None) is not None]
        assert held.tolist() == expected
    assert Segmentation(names, class_weights=source).init_args["class_weights"] == dict(
        zip(names, expected, strict=True)
    )
    assert CrossEntropyLoss(source).init_args == {"class_weights": dict(zip(names, expected, strict=True))}


def test_binary_and_multilabel_tasks_read_it_too():
    source = weights_file(segmentation=BOTH)
    assert Segmentation(["sky", "road"], mode="binary", class_weights=source).loss.positive_weights.tolist() == [3.0]
    several = Segmentation(["sky", "road"], mode="multilabel", class_weights=source)
    assert several.loss.positive_weights.tolist() == [1.0, 3.0]


def build_weighted(classes, kind: str, source: str) -> Segmentation:
    loss = {"own": None, "cross-entropy": CrossEntropyLoss(source), "sum": SumLoss([FocalLoss(class_weights=source)])}
    return Segmentation(classes, loss=loss[kind], class_weights=source if kind == "own" else None)


def held_by(task: Segmentation) -> list[float]:
    (held,) = [part.class_weights for part in task.modules() if getattr(part, "class_weights", None) is not None]
    return held.tolist()


@pytest.mark.parametrize("kind", ["own", "cross-entropy", "sum"])
def test_weights_find_their_classes_by_name_whether_the_task_or_the_data_name_them(kind):
    source = weights_file(segmentation=BOTH)
    assert held_by(build_weighted(["road", "sky"], kind, source)) == [3.0, 1.0]
    task = build_weighted(2, kind, source)
    with pytest.raises(ConfigurationError, match=r"by name \(sky, road\), but the task knows only the number"):
        task.loss_from_planes(torch.zeros(1, 2, 4, 4), {"image": torch.zeros(1, 3, 4, 4), "segmentation": LABELS})
    assert missing_names(task, ["road", "sky"], "Data") == ["road", "sky"]
    assert held_by(task) == [3.0, 1.0]
    labels = torch.tensor([[[0, 1], [1, 1]]])
    assert (
        task.loss_from_planes(torch.zeros(1, 2, 2, 2), {"image": torch.zeros(1, 3, 2, 2), "segmentation": labels}) > 0
    )


@pytest.mark.parametrize("kind", ["own", "cross-entropy", "sum"])
def test_weights_of_other_classes_are_refused_with_both_lists(kind):
    source = weights_file(segmentation=BOTH)
    with pytest.raises(ConfigurationError, match=r"sky, road\), the task has 2 \(sky, street\)"):
        build_weighted(["sky", "street"], kind, source)
    with pytest.raises(ConfigurationError, match=r"sky, road\), the task has 2 \(sky, street\)"):
        missing_names(build_weighted(2, kind, source), ["sky", "street"], "Data")


class Streets(Segmentation):
    def __init__(self, source: str):
        super().__init__(["road", "sky"], class_weights=source)


def test_a_task_of_ones_own_that_fills_the_weights_in_keeps_its_own_arguments():
    task = Streets(weights_file(segmentation=BOTH))
    assert held_by(task) == [3.0, 1.0]
    assert task.init_args == {"source": "weights.json"}


def test_made_up_names_are_the_same_in_the_file_and_in_the_task_also_beyond_ten():
    names = [f"class_{i}" for i in range(12)]
    found = {"median_frequency": {name: float(i) for i, name in enumerate(names)}}
    alphabetical = {name: found["median_frequency"][name] for name in sorted(names)}
    assert held_by(Segmentation(12, class_weights=alphabetical)) == [float(i) for i in range(12)]


def test_binary_weights_are_the_ratio_of_the_classes_by_name():
    given = {"road": 6.0, "background": 2.0}
    assert Segmentation(["background", "road"], mode="binary", class_weights=given).loss.positive_weights.item() == 3.0


def test_a_file_that_does_not_hold_the_weights_says_what_to_run_or_what_there_is():
    with pytest.raises(ConfigurationError, match=r"no nowhere\.json\. Write it with: densepred check-data .* nowhere"):
        CrossEntropyLoss("nowhere.json")
    source = weights_file(segmentation=BOTH, parts=BOTH)
    with pytest.raises(ConfigurationError, match=r"no sqrt weights of 'segmentation'.*weights.json#parts/median"):
        read_class_weights(f"{source}#sqrt")
    assert read_class_weights(f"{source}#parts/inverse_frequency") == BOTH["inverse_frequency"]
    Path("weights.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"no class weights. Expected the JSON of `densepred check-data`"):
        read_class_weights(source)
    Path("weights.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"cannot be read"):
        read_class_weights(source)


def test_a_configuration_holds_the_numbers_at_any_depth():
    source = weights_file(segmentation=BOTH)
    loss = {"class_path": "CrossEntropyLoss", "init_args": {"class_weights": source}}
    config = {"tasks": [{"init_args": {"loss": {"init_args": {"losses": [loss]}}, "class_weights": [1.0, 2.0]}}]}
    with_weights_read(config)
    assert loss["init_args"]["class_weights"] == BOTH["median_frequency"]
    assert config["tasks"][0]["init_args"]["class_weights"] == [1.0, 2.0]


# -------------------------------------------------------------------------------------------------------- real data


def test_real_camvid_is_safe_and_has_segnets_frequencies(real_data):
    found = inspect_data(CamVidDataModule(str(real_data / "camvid")), splits=("train",), limit=30)
    assert found.safe
    shares = found.splits["train"].sums["segmentation"].pixels / found.splits["train"].sums["segmentation"].pixels.sum()
    order = [CAMVID_CLASSES[i] for i in np.argsort(-shares)]
    assert order[:2] == ["road", "building"]
    assert set(order[-2:]) == {"pedestrian", "bicyclist"}


def test_real_nyu_frames_are_metric_and_unit(real_data):
    data = NYUDepthV2DataModule(str(real_data / "nyuv2"))
    found = inspect_data(data, splits=("train", "test"), limit=2)
    assert found.safe
    assert not [remark for _, remark in found.remarks if remark.what in ("depth", "normals")]
