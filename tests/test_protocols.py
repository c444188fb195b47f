"""Evaluation under named protocols: the numbers of independent implementations, and no name without the rules kept."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from densepred.cli import main
from densepred.data.devkit import VOC_CLASSES
from densepred.data.nyu import NYUDepthV2DataModule
from densepred.data.official import OfficialSet
from densepred.data.rooms import RoomsDataModule
from densepred.data.transforms import CentreCrop, PadTo, Rescale
from densepred.data.voc import PascalVOCDataModule
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.evaluation.asked import Unpadded
from densepred.evaluation.callback import Evaluation
from densepred.evaluation.names import PROTOCOLS
from densepred.evaluation.protocol import Setting
from densepred.inference.evidence import NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.module import DensePredictor
from densepred.reports.run import Run
from densepred.reports.run_page import run_page
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from tests import fakes
from tests.test_cli import ROOMS

ROOT = Path(__file__).parents[1]


def network(*tasks):
    torch.manual_seed(0)
    module = DensePredictor(UNetEncoder(widths=(4, 8)), PointwiseDecoder, list(tasks)).eval()
    for parameter in module.network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)  # different answers at different places
    return module


def evaluate(module, data, folder, protocols=(), options=None, stage="test", **trainer):
    evaluation = Evaluation(protocols, options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    runner = pl.Trainer(callbacks=[evaluation], enable_checkpointing=False, default_root_dir=folder, **quiet, **trainer)
    getattr(runner, stage)(module, data, verbose=False)
    return evaluation.report


def voc(folder, **options):
    root = fakes.write_voc(folder, train=2, val=5) if not (folder / "VOCdevkit").exists() else folder
    return PascalVOCDataModule(str(root), num_workers=0, **{"eval_batch_size": 3, **options})


def predicted_labels(module, image, short_side=None):
    """The definition: probabilities at the size the network saw, brought to the image's own, and the largest."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    height, width = tensor.shape[-2:]
    if short_side is not None:
        scale = short_side / min(height, width)
        seen = (round(height * scale), round(width * scale))
        tensor = F.interpolate(tensor, size=seen, mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        probabilities = module.network(tensor)["segmentation"].softmax(1)
    return F.interpolate(probabilities, size=(height, width), mode="bilinear", align_corners=False).argmax(1)[0].numpy()


def devkit_iou(module, root, short_side=None):
    """VOCevalseg with scikit-learn's matrix: over all images, 255 left out; classes of 0/0 are skipped."""
    whole = np.zeros((21, 21), np.int64)
    for name in (root / "ImageSets/Segmentation/val.txt").read_text().split():
        image = np.array(Image.open(root / "JPEGImages" / f"{name}.jpg"))
        truth = np.array(Image.open(root / "SegmentationClass" / f"{name}.png"))
        labels = predicted_labels(module, image, short_side)
        assert labels.shape == truth.shape
        known = truth != 255
        whole += confusion_matrix(truth[known], labels[known], labels=range(21))
    union = whole.sum(0) + whole.sum(1) - whole.diagonal()
    return float(np.mean(whole.diagonal()[union > 0] / union[union > 0])), int(whole.sum())


@pytest.mark.parametrize("short_side", [None, 40])
def test_voc_is_the_devkit_s_number_at_the_labels_own_size_whatever_the_network_saw(tmp_path, short_side):
    module = network(Segmentation(21))
    transforms = None if short_side is None else [Rescale(short_side=short_side)]
    report = evaluate(module, voc(tmp_path, eval_transforms=transforms), tmp_path, ["voc"])
    miou, pixels = devkit_iou(module, tmp_path / "VOCdevkit/VOC2012", short_side)
    task = report["tasks"]["segmentation"]
    assert task["metrics"]["miou"] == pytest.approx(miou, rel=1e-3)  # argmax of nearly equal planes
    assert task["counts"] == {"images": 5, "pixels": pixels}


def test_voc_does_not_depend_on_the_batch_and_its_padding(tmp_path):
    module = network(Segmentation(21))
    found = [
        evaluate(module, voc(tmp_path, eval_batch_size=size), tmp_path, ["voc"])["tasks"]["segmentation"]["metrics"]
        for size in (1, 2, 5)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-4, nan_ok=True)
    assert found[2] == pytest.approx(found[0], abs=1e-4, nan_ok=True)


def test_an_image_in_a_padded_batch_is_answered_as_if_alone():
    module = network(Segmentation(5), Depth(), Normals())
    evidence = NetworkEvidence(module.network, list(module.tasks))
    image = torch.rand(3, 3, 48, 56)
    sizes = [(40, 56), (48, 44), (40, 56)]
    with torch.no_grad():
        found = Unpadded(evidence)({"image": image, "size": torch.tensor(sizes)})
        for index, (height, width) in enumerate(sizes):
            alone = evidence.predict(image[index : index + 1, :, :height, :width])
            for name in ("segmentation", "depth", "normals"):
                torch.testing.assert_close(found[name][index : index + 1, ..., :height, :width], alone[name])
                assert not found[name][index, ..., height:, :].any()


def test_a_part_of_the_set_is_told_in_the_name_and_the_whole_is_not(tmp_path):
    report = evaluate(network(Segmentation(21)), voc(tmp_path), tmp_path, ["voc"])
    assert report["tasks"]["segmentation"]["protocol"] == "voc (5 of 1,449 images)"
    assert report["tasks"]["segmentation"]["comparable"] is False
    limited = evaluate(network(Segmentation(21)), voc(tmp_path), tmp_path, ["voc"], limit_test_batches=1)
    assert limited["tasks"]["segmentation"]["protocol"] == "voc (3 of 1,449 images)"
    whole = Setting("PascalVOCDataModule", "val", 1449, OfficialSet("Pascal VOC 2012 val", 1449))
    assert PROTOCOLS["voc"].called(whole, 1449) == "voc"
    assert PROTOCOLS["voc"].called(whole, 1448) == "voc (1,448 of 1,449 images)"


ANIMALS = ["cat", "dog"]


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (Segmentation(ANIMALS), {"classes": ANIMALS}, "data.classes keeps 2 of 21 classes"),
        (Segmentation(ANIMALS), {"classes": ANIMALS}, "has 2 classes; VOC scores 21"),
        (Segmentation(21), {"val_split": "train"}, "data.val_split is 'train', not 'val'"),
        (Segmentation(21), {"eval_transforms": [CentreCrop((40, 40))]}, "CentreCrop changes which pixels are scored"),
        (Segmentation(21), {"eval_transforms": [Rescale(factor=0.5, p=0.5)]}, "Rescale .* by chance"),
    ],
)
def test_voc_refuses_its_name_where_a_rule_is_broken_and_says_which(tmp_path, task, options, words):
    with pytest.raises(ConfigurationError, match=words):
        evaluate(network(task), voc(tmp_path, **options), tmp_path, ["voc"])
    assert not list(tmp_path.glob("metrics*.json"))


def rooms(**options):
    return RoomsDataModule(size=(40, 48), val=2, test=2, num_workers=0, **options)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("voc", "it is about Pascal VOC 2012 val; these data are of RoomsDataModule"),
        ("nyu_depth", "it is about NYU Depth v2 test; these data are of RoomsDataModule"),
        ("nyu_normals", "one task, but of its kind there are 0 among segmentation"),
        ("cityscapes", "protocol cityscapes: expected some of voc, nyu_depth"),
    ],
)
def test_other_data_and_other_tasks_are_refused(tmp_path, protocol, words):
    with pytest.raises(ConfigurationError, match=words):
        evaluate(network(Segmentation(11), Depth()), rooms(), tmp_path, [protocol])


def test_more_images_than_the_published_set_has_are_refused():
    setting = Setting("PascalVOCDataModule", "test", 2913, OfficialSet("Pascal VOC 2012 val", 1449))
    with pytest.raises(ConfigurationError, match="has 2,913 images, theirs 1,449"):
        PROTOCOLS["voc"].chosen([Segmentation(21)], setting)


def test_two_protocols_for_one_task_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be measured by voc and by own_size at once"):
        evaluate(network(Segmentation(21)), voc(tmp_path), tmp_path, ["voc", "own_size"])


@pytest.fixture(scope="module")
def nyu_root(tmp_path_factory):
    return fakes.write_nyu(tmp_path_factory.mktemp("nyu"), train=4, test=2, size=(480, 640))


def nyu(root, **options):
    return NYUDepthV2DataModule(str(root), num_workers=0, eval_batch_size=2, **options)


def nyu_depths(module, root, short_side):
    """(truth, prediction) of each test frame at 480 x 640; log depth is what is brought to that size."""
    for name in (root / "test.txt").read_text().split():
        image = np.array(Image.open(root / "rgb" / f"{name}.jpg"))
        truth = np.array(Image.open(root / "depth" / f"{name}.png")).astype(np.float32) / 1000
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        seen = (short_side, round(640 * short_side / 480))
        small = F.interpolate(tensor, size=seen, mode="bilinear", align_corners=False, antialias=True)
        with torch.no_grad():
            log = module(small)["depth"].log()
        whole = F.interpolate(log, size=(480, 640), mode="bilinear", align_corners=False).exp()
        yield truth, whole[0, 0].numpy()


def bts(pairs, mask):
    """BTS's `eval`: per image, then the mean over images."""
    rows = []
    for truth, prediction in pairs:
        prediction = np.clip(prediction, 1e-3, 10)
        valid = (truth > 1e-3) & (truth < 10) & mask
        g, p = truth[valid].astype(np.float64), prediction[valid].astype(np.float64)
        ratio = np.maximum(g / p, p / g)
        error = np.log(p) - np.log(g)
        rows.append({
            "abs_rel": np.mean(np.abs(g - p) / g), "sq_rel": np.mean((g - p) ** 2 / g),
            "rmse": np.sqrt(np.mean((g - p) ** 2)), "rmse_log": np.sqrt(np.mean(error**2)),
            "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
            "silog": 100 * np.sqrt(np.mean(error**2) - np.mean(error) ** 2),
            **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
        })  # fmt: skip
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def mask_of(rows, columns):
    mask = np.zeros((480, 640), bool)
    mask[rows, columns] = True
    return mask


MASKS = {
    "nyu_depth": mask_of(slice(45, 471), slice(41, 601)),
    # MATLAB's 45:471, 41:601: from 1, both ends included
    "nyu_depth_toolbox": mask_of([[row - 1] for row in range(45, 472)], [column - 1 for column in range(41, 602)]),
    "nyu_depth_whole": np.ones((480, 640), bool),
}


@pytest.mark.parametrize("name", list(MASKS))
def test_nyu_depth_is_what_bts_computes_under_each_crop_whatever_the_task_was_configured_with(tmp_path, nyu_root, name):
    module = network(Depth(average="pixel"))  # the task's own choices do not reach the protocol
    data = nyu(nyu_root, targets=("depth",), eval_transforms=[Rescale(size=(120, 160))])
    report = evaluate(module, data, tmp_path, [name])["tasks"]["depth"]
    expected = bts(nyu_depths(module, nyu_root, 120), MASKS[name])
    assert {key: report["metrics"][key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert report["protocol"] == f"{name} (2 of 654 images)"
    settings = {"protocol": PROTOCOLS[name].crop, "min_depth": 1e-3, "max_depth": 10.0, "clamp": True}
    assert settings.items() <= report["measured_by"]["settings"].items()
    assert report["measured_by"]["settings"]["average"] == "image"


def test_the_toolbox_crop_has_a_row_and_a_column_more_than_the_usual_one():
    assert MASKS["nyu_depth_toolbox"].sum() == 427 * 561
    assert MASKS["nyu_depth"].sum() == 426 * 560


def test_frames_of_the_training_split_are_not_called_nyu_depth(tmp_path, nyu_root):
    with pytest.raises(ConfigurationError, match="the val frames are official training frames"):
        evaluate(network(Depth()), nyu(nyu_root, targets=("depth",)), tmp_path, ["nyu_depth"], stage="validate")


def test_nyu_normals_pool_all_pixels_count_strictly_and_tell_which_truth(tmp_path, nyu_root):
    module = network(Normals())
    data = nyu(nyu_root, targets=("normals",))
    report = evaluate(module, data, tmp_path, ["nyu_normals"])["tasks"]["normals"]
    angles = []
    for index in range(2):
        sample = data.datasets["test"][index]
        with torch.no_grad():
            prediction = module(sample["image"][None])["normals"][0].double().numpy()
        truth = sample["normals"].double().numpy()
        known = (truth != 0).any(0)
        angles.append(np.degrees(np.arccos(np.clip((prediction * truth).sum(0)[known], -1, 1))))
    pooled = np.concatenate(angles)
    found = report["metrics"]
    assert found["mean_angle"] == pytest.approx(pooled.mean(), abs=1e-3)
    assert found["median_angle"] == pytest.approx(np.median(pooled), abs=0.01)
    assert found["rmse_angle"] == pytest.approx(math.sqrt((pooled**2).mean()), abs=1e-3)
    assert found["within_30"] == pytest.approx((pooled < 30).mean(), abs=1e-5)
    assert report["counts"]["pixels"] == len(pooled)
    assert "NormalsFromDepth: source depth, method window, window 21, blur 3.0" in report["truth"]


def test_own_size_scores_any_data_at_their_labels_size(tmp_path):
    data = voc(tmp_path, classes=ANIMALS, eval_transforms=[Rescale(short_side=40), PadTo(multiple=32)])
    report = evaluate(network(Segmentation(ANIMALS)), data, tmp_path, ["own_size"])
    stored = [
        np.array(Image.open(tmp_path / "VOCdevkit/VOC2012/SegmentationClass" / f"{name}.png"))
        for name in (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    ]
    task = report["tasks"]["segmentation"]
    assert task["counts"]["pixels"] == sum(np.isin(labels, (8, 12)).sum() for labels in stored)
    assert (task["protocol"], task["comparable"]) == ("own_size", False)


def test_options_change_the_answers_and_are_told(tmp_path):
    module = network(Segmentation(11), Depth(), Normals())
    plain = evaluate(module, rooms(), tmp_path)
    options = InferenceOptions(scales=(1.0, 1.5), flip=True)
    asked = evaluate(module, rooms(), tmp_path, options=options)
    data = rooms()
    data.setup("test")
    predictor = options.applied(NetworkEvidence(module.network, list(module.tasks)))
    metric = module.tasks[1].metrics("test")
    for sample in data.test_dataloader():
        with torch.no_grad():
            metric.update(predictor.predict(sample["image"])["depth"], sample["depth"])
    rmse = asked["tasks"]["depth"]["metrics"]["rmse"]
    assert rmse == pytest.approx(float(metric.compute()["rmse"]), rel=1e-5)
    assert rmse != pytest.approx(plain["tasks"]["depth"]["metrics"]["rmse"], rel=1e-4)
    assert asked["inference"] | {"scales": [1.0, 1.5], "flip": True, "merge": "mean"} == asked["inference"]
    assert plain["inference"] == {"seen": "images as data.eval_transforms make them"}
    assert "loss" in plain["tasks"]["depth"]["metrics"]
    assert "loss" not in asked["tasks"]["depth"]["metrics"]


def test_after_an_evaluation_the_module_measures_as_before(tmp_path):
    module = network(Segmentation(VOC_CLASSES))
    own = module.scores["test"].metrics["segmentation"]
    evaluate(module, voc(tmp_path), tmp_path, ["voc"])
    assert module.scores["test"].metrics["segmentation"] is own
    assert module.asked is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command line on VOC's layout, whose configuration names its protocol."""
    folder = tmp_path_factory.mktemp("run")
    root = fakes.write_voc(folder, train=2, val=3)
    config = json.loads(json.dumps(ROOMS))
    config["model"]["init_args"]["tasks"] = [{"class_path": "Segmentation", "init_args": {"classes": 21}}]
    config["model"]["init_args"]["encoder"] = {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8]}}
    config["model"]["init_args"]["decoder"] = {"class_path": "UNetDecoder", "init_args": {"widths": [4]}}
    config["data"] = {
        "class_path": "PascalVOCDataModule",
        "init_args": {
            "root": str(root), "batch_size": 2, "num_workers": 0,
            "train_transforms": [{"class_path": "ScaleCrop", "init_args": {"size": [48, 48]}}],
        },
    }  # fmt: skip
    config["trainer"]["max_epochs"] = 1
    config["protocol"] = "voc"
    (folder / "voc.yaml").write_text(yaml.safe_dump(config))
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config", "voc.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_the_command_writes_metrics_json_and_prints_the_protocol(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt_path", "last", "--inference.flip", "true"]) == 0
    printed = capsys.readouterr().out
    assert "voc (3 of 1,449 images): the labels' own size" in printed
    found = json.loads(Path("runs/version_0/metrics.json").read_text())
    assert found["tasks"]["segmentation"]["protocol"] == "voc (3 of 1,449 images)"  # from the run's own configuration
    assert found["inference"]["flip"] is True
    assert found["checkpoint"]["file"].endswith("last.ckpt")
    assert found["checkpoint"]["step"] == 1
    assert found["data"] == {
        "class": "PascalVOCDataModule", "split": "test", "images": 3,
        "official": {"name": "Pascal VOC 2012 val", "images": 1449},
    }  # fmt: skip
    assert {"densepred", "git", "date", "precision", "processes"} <= found.keys()
    # the table's constant predictor is measured by the same protocol
    assert "constant predictor" in printed


def test_the_command_line_takes_protocols_by_name_and_none(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["validate", "--ckpt_path", "last", "--protocol", "none"]) == 0
    written = json.loads(Path("runs/version_0/metrics_val.json").read_text())
    assert written["tasks"]["segmentation"]["protocol"] == "none"
    assert main(["test", "--ckpt_path", "last", "--protocol", "[own_size]"]) == 0
    assert main(["test", "--ckpt_path", "last", "--protocol", "vocc"]) == 1
    assert "protocol vocc: expected some of voc, nyu_depth" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "last", "--data.val_split", "train"]) == 1
    assert "data.val_split is 'train', not 'val'" in capsys.readouterr().err


def test_a_misspelt_protocol_ends_a_training_before_its_first_step(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["fit", "--config", "voc.yaml", "--protocol", "nyu"]) == 1
    assert "protocol nyu: expected some of" in capsys.readouterr().err


def test_the_report_page_tells_the_protocol_of_a_test(tmp_path):
    evaluate(network(Segmentation(21)), voc(tmp_path), tmp_path, ["voc"], InferenceOptions(flip=True))
    (tmp_path / "metrics.csv").write_text("step,test/segmentation/miou\n0,0.5\n")
    page = run_page(Run(tmp_path))
    assert "segmentation by protocol voc (5 of 1,449 images) at the labels&#x27; own size" in page
    assert "flip True" in page


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = evaluate(network(Segmentation(21)), voc(tmp_path), tmp_path, ["voc"], InferenceOptions(flip=True))
    result = subprocess.run(
        [sys.executable, "-m", "tests.test_protocols", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    shared = json.loads((tmp_path / "metrics.json").read_text())
    assert shared["processes"] == 2
    assert shared["data"] == alone["data"]
    here, there = alone["tasks"]["segmentation"], shared["tasks"]["segmentation"]
    assert there["counts"] == here["counts"]
    known = {key: value for key, value in here["metrics"].items() if not math.isnan(value)}
    assert {key: there["metrics"][key] for key in known} == pytest.approx(known, abs=1e-4)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    two = {"devices": 2, "strategy": "ddp"}
    evaluate(network(Segmentation(21)), voc(where), where, ["voc"], InferenceOptions(flip=True), **two)
