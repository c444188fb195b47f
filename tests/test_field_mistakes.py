"""Mistakes found in other toolkits, D1 to D25: each has a test here that fails where we make it."""

import csv
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import jaccard_score
from torchvision.models import ResNet18_Weights

from densepred.cli import main
from densepred.data.dataset import to_tensor
from densepred.data.transforms import FlipLeftRight, PadTo, Roll, SampleTransforms, ScaleCrop
from densepred.decoders.deeplab import DeepLabV3Decoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence
from densepred.inference.options import InferenceOptions
from densepred.losses.focal import FocalLoss
from densepred.losses.normals import AngularLoss, CosineLoss
from densepred.losses.overlap import DiceLoss, LovaszSoftmaxLoss
from densepred.losses.segmentation import CrossEntropyLoss
from densepred.losses.topk import TopKCrossEntropyLoss
from densepred.metrics.depth import DepthMetrics
from densepred.metrics.normals import NormalsMetrics
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.module import DensePredictor
from densepred.resume import find_checkpoint
from densepred.sample import Kind
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.scores import Scores
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import ROOMS


def labels(*rows):
    return torch.tensor(rows, dtype=torch.uint8)[None]


def computed(metric, *pairs):
    for prediction, target in pairs:
        metric.update(prediction, target)
    return {key: float(value) for key, value in metric.compute().items()}


PREDICTED, TRUE = labels([0, 0, 1, 1], [0, 1, 1, 1]), labels([0, 0, 0, 1], [0, 0, 1, 1])


def test_d1_a_class_in_neither_prediction_nor_truth_does_not_score_one():
    found = computed(SegmentationMetrics(3), (PREDICTED, TRUE))
    assert found["miou"] == pytest.approx(jaccard_score(TRUE.flatten(), PREDICTED.flatten(), average="macro"))
    assert math.isnan(found["iou/class_2"])


def test_d2_class_weights_of_one_change_neither_score_nor_loss():
    plain, weighted = Segmentation(3), Segmentation(3, class_weights=[1.0, 1.0, 1.0])
    scores = [computed(task.metrics("val"), (PREDICTED, TRUE))["miou"] for task in (plain, weighted)]
    assert scores[0] == scores[1]
    logits = torch.randn(1, 3, 2, 4)
    losses = [task.loss(logits, TRUE) for task in (plain, weighted)]
    torch.testing.assert_close(losses[0], losses[1])


def test_d3_void_is_left_out_and_nothing_is_averaged_over_images():
    first, second = (PREDICTED, TRUE), (labels([0, 1, 1, 1]), labels([1, 255, 1, 0]))
    found = computed(SegmentationMetrics(2), first, second)["miou"]
    predicted = np.concatenate([PREDICTED.flatten(), [0, 1, 1]])
    true = np.concatenate([TRUE.flatten(), [1, 1, 0]])
    assert found == pytest.approx(jaccard_score(true, predicted, average="macro"))


def test_d4_values_of_batches_are_not_averaged():
    task = Segmentation(2)
    scores = Scores([task], "val")
    batches = [(PREDICTED, TRUE), (labels([1, 1]), labels([1, 1]))]
    for prediction, target in batches:
        scores.add({"segmentation": prediction}, [task], {"segmentation": target})
    found = float(scores.compute()["val/segmentation/miou"][0])
    predicted, true = (torch.cat([batch[side].flatten() for batch in batches]) for side in (0, 1))
    assert found == pytest.approx(jaccard_score(true, predicted, average="macro"))
    one_by_one = [computed(SegmentationMetrics(2), batch)["miou"] for batch in batches]
    assert found != pytest.approx(np.mean(one_by_one))


def test_d5_what_is_called_miou_is_no_micro_average():
    predicted, true = labels([0, 0, 0, 0, 0, 1]), labels([0, 0, 0, 0, 1, 1])
    found = computed(SegmentationMetrics(2), (predicted, true))["miou"]
    true, predicted = true.flatten(), predicted.flatten()
    assert found == pytest.approx(jaccard_score(true, predicted, average="macro"))
    assert found != pytest.approx(jaccard_score(true, predicted, average="micro"))


@pytest.mark.parametrize(
    "loss",
    [CrossEntropyLoss(), FocalLoss(), DiceLoss(), LovaszSoftmaxLoss(), TopKCrossEntropyLoss(share=0.5)],
    ids=lambda loss: type(loss).__name__,
)
def test_d6_a_crop_of_void_alone_has_loss_zero_with_zero_gradient(loss):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_d7_the_gradient_of_normals_at_a_zero_plane_is_no_hundred_million():
    task = Normals(loss=CosineLoss())
    planes = torch.zeros(1, 3, 2, 2, requires_grad=True)
    target = torch.tensor([0.0, 0.6, -0.8]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    task.loss(task.activate(planes), target).backward()
    assert 0 < planes.grad.abs().max() <= 100


@pytest.mark.parametrize("sign", [1, -1])
def test_d8_the_angle_of_an_exact_match_and_of_its_opposite_has_a_finite_gradient(sign):
    target = torch.tensor([0.0, 0.6, -0.8]).view(1, 3, 1, 1)
    output = (sign * target).clone().requires_grad_()
    AngularLoss()(output, target).backward()
    assert output.grad.isfinite().all()
    found = computed(NormalsMetrics(), (sign * target, target))
    assert found["mean_angle"] == pytest.approx(0 if sign == 1 else 180, abs=1e-4)


def sample(size=(40, 48), depth=4.0, label=3):
    height, width = size
    return {
        "image": np.full((height, width, 3), 128, np.uint8),
        "segmentation": np.full(size, label, np.uint8),
        "depth": np.full(size, depth, np.float32),
        "normals": np.tile(np.float32([0.6, 0.0, -0.8]), (height, width, 1)),
        "intrinsics": np.float32([[50, 0, width / 2 - 0.5], [0, 50, height / 2 - 0.5], [0, 0, 1]]),
    }


def test_d9_a_mirror_image_turns_normals_around_and_a_flip_that_does_not_is_refused():
    flipped = SampleTransforms([FlipLeftRight(p=1)])(sample())
    np.testing.assert_allclose(flipped["normals"][5, 5], [-0.6, 0, -0.8], rtol=1e-6)
    with pytest.raises(ConfigurationError, match=r"HorizontalFlip .* Use FlipLeftRight"):
        SampleTransforms([A.HorizontalFlip()])


@pytest.mark.parametrize(
    "transform", [PadTo(size=(60, 60)), Roll(limit=45, p=1), ScaleCrop((60, 60), scale=(0.5, 0.5))],
    ids=lambda transform: type(transform).__name__,
)  # fmt: skip
def test_d10_what_is_padded_is_void_and_never_background(transform):
    moved = SampleTransforms([transform])(sample(), seed=(1,))["segmentation"]
    assert set(np.unique(moved)) == {3, 255}


def test_d11_a_zoom_of_two_halves_depth():
    zoomed = SampleTransforms([ScaleCrop((20, 20), scale=(2.0, 2.0))])(sample(depth=4.0))["depth"]
    np.testing.assert_allclose(zoomed, 2.0, rtol=1e-6)


def test_d12_an_unknown_argument_of_albumentations_is_refused_and_importing_it_asks_no_server():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        misspelt = A.RandomBrightnessContrast(prob=0.5)
    with pytest.raises(ConfigurationError, match="RandomBrightnessContrast has no argument 'prob'"):
        SampleTransforms([misspelt])
    code = "import socket\nsocket.socket.connect = None\nimport densepred.data.transforms.flip, os\n"
    code += "print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    unset = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unset, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("average", ["image", "pixel"])
@pytest.mark.parametrize("crop", ["nyu_python", "nyu_toolbox", "eigen14", "none"])
def test_d13_every_setting_of_the_depth_metric_computes(crop, average):
    depth = torch.full((1, 1, 480, 640), 2.0)
    found = computed(DepthMetrics(crop, average=average), (2 * depth, depth))
    assert found["abs_rel"] == pytest.approx(1.0)


class Spy(Evidence):
    """Remembers the sizes that it was asked about, and answers with the image."""

    def __init__(self):
        super().__init__([Depth()])
        self.sizes = []

    def __call__(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        return {"depth": image.float()}


def test_d14_a_prediction_by_tiles_is_not_replaced_by_one_of_the_whole_image():
    spy = Spy()
    image = torch.rand(1, 1, 200, 200)
    found = InferenceOptions(tile=64).applied(spy)(image)["depth"]
    torch.testing.assert_close(found, image)
    assert len(spy.sizes) > 1
    assert max(max(size) for size in spy.sizes) <= 64


def test_d15_silog_is_a_hundred_times_the_root_with_all_of_the_mean_taken_off():
    rng = np.random.default_rng(0)
    true, predicted = rng.uniform(1, 9, 50), rng.uniform(1, 9, 50)
    error = np.log(predicted) - np.log(true)
    planes = [torch.tensor(values, dtype=torch.float32).view(1, 1, 5, 10) for values in (predicted, true)]
    expected = 100 * math.sqrt(np.mean(error**2) - np.mean(error) ** 2)
    assert computed(DepthMetrics(), tuple(planes))["silog"] == pytest.approx(expected, rel=1e-5)


def test_d16_labels_beyond_255_do_not_wrap():
    tensor = to_tensor(np.array([[299, 255], [44, 43]], np.uint16), Kind.LABEL)
    assert tensor.tolist() == [[299, 255], [44, 43]]
    logits = torch.zeros(1, 300, 1, 1)
    logits[:, 299] = 1
    assert Segmentation(300).predict(logits).item() == 299
    found = computed(SegmentationMetrics(300), (tensor[None], tensor[None]))
    assert found["miou"] == 1
    assert found["iou/class_255"] == 1


def test_d17_the_rmse_of_normals_is_that_of_squares_beside_mean_and_median():
    def at(*degrees):
        radians = torch.tensor(degrees).deg2rad()
        return torch.stack([radians.sin(), torch.zeros_like(radians), -radians.cos()])[None, :, None]

    found = computed(NormalsMetrics(), (7 * at(0.0, 30.0, 60.0), at(0.0, 0.0, 0.0)))  # of any length
    assert found["mean_angle"] == pytest.approx(30, abs=1e-4)
    assert found["median_angle"] == pytest.approx(30, abs=0.01)
    assert found["rmse_angle"] == pytest.approx(math.sqrt((900 + 3600) / 3), abs=1e-3)


def test_d18_an_absent_class_does_not_count_as_zero():
    two, three = (computed(SegmentationMetrics(classes), (PREDICTED, TRUE))["miou"] for classes in (2, 3))
    assert two == three
    assert computed(SegmentationMetrics(3, absent="zero"), (PREDICTED, TRUE))["miou"] == pytest.approx(two * 2 / 3)


def test_d20_the_mean_and_deviation_of_images_are_those_the_weights_were_trained_with():
    encoder = ResNetEncoder("resnet18")
    published = ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert encoder.mean.flatten().tolist() == pytest.approx(published.mean)
    assert encoder.std.flatten().tolist() == pytest.approx(published.std)


def test_d24_a_batch_of_one_trains_through_atrous_spatial_pyramid_pooling():
    module = DensePredictor(ResNetEncoder("resnet18"), DeepLabV3Decoder, [Segmentation(3)]).train()
    batch = {"image": torch.rand(1, 3, 40, 40), "segmentation": torch.ones(1, 40, 40, dtype=torch.uint8)}
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()


def test_d25_the_toolbox_s_crop_and_the_usual_slice_are_told_apart():
    depth = torch.full((1, 1, 480, 640), 2.0)
    counted = {}
    for crop in ("nyu_toolbox", "nyu_python", "eigen14"):
        metric = DepthMetrics(crop)
        metric.update(depth, depth)
        counted[crop] = int(metric.pixels)
    # MATLAB counts from 1 and includes both ends: 45:471, 41:601
    assert counted == {"nyu_toolbox": 427 * 561, "nyu_python": 426 * 560, "eigen14": 439 * 591}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with one run of an epoch of the command line."""
    folder = tmp_path_factory.mktemp("mistakes")
    config = json.loads(json.dumps(ROOMS))
    config["model"]["init_args"]["encoder"] = {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8]}}
    config["model"]["init_args"]["decoder"] = {"class_path": "PointwiseDecoder"}
    del config["model"]["init_args"]["lr_scheduler"]
    config["trainer"]["max_epochs"] = 1
    (folder / "rooms.yaml").write_text(yaml.safe_dump(config))
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config", "rooms.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_d19_best_is_the_best_checkpoint_and_not_the_last(tmp_path):
    kept = tmp_path / "version_0" / "checkpoints"
    kept.mkdir(parents=True)
    for name in ("best", "last"):  # the last is the newer file
        (kept / f"{name}.ckpt").write_bytes(name.encode())
    os.utime(kept / "best.ckpt", (1, 1))
    assert find_checkpoint("best", tmp_path).read_bytes() == b"best"
    assert find_checkpoint("last", tmp_path).read_bytes() == b"last"


def test_d21_the_command_line_beats_the_checkpoint_s_hyperparameters(run, monkeypatch):
    monkeypatch.chdir(run)
    again = ["--trainer.default_root_dir", "other", "--trainer.max_epochs", "2", "--model.optimizer.lr", "0.05"]
    assert main(["fit", "--ckpt_path", "runs/version_0/checkpoints/last.ckpt", *again]) == 0
    with Path("other/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = {float(row[key]) for row in rows for key in row if key.startswith("lr-") and row[key]}
    assert rates == {0.05}
    written = yaml.safe_load(Path("other/version_0/config.yaml").read_text())
    assert written["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05


def test_d22_a_second_run_into_the_same_folder_is_no_error(run, monkeypatch):
    monkeypatch.chdir(run)
    before = Path("runs/version_0/config.yaml").read_text()
    assert main(["fit", "--config", "rooms.yaml", "--trainer.fast_dev_run", "1"]) == 0
    assert main(["fit", "--config", "rooms.yaml", "--trainer.limit_train_batches", "1"]) == 0
    assert Path("runs/version_1/config.yaml").is_file()
    assert Path("runs/version_0/config.yaml").read_text() == before


def test_d23_a_checkpoint_holds_plain_values_and_tensors_alone_also_one_built_in_python(run, tmp_path):
    found = torch.load(run / "runs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert found["hyper_parameters"]["decoder"]["class_path"].endswith("PointwiseDecoder")
    module = DensePredictor(UNetEncoder(widths=(4, 8)), PointwiseDecoder, [Depth()])
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, tmp_path / "python.ckpt")
    assert "encoder" in torch.load(tmp_path / "python.ckpt", weights_only=True)["hyper_parameters"]
