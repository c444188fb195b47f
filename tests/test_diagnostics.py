"""What a run writes about itself beyond its scalars: files that agree with the metrics, measures checked by NumPy."""

import csv
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from densepred.callbacks.diagnostics import Diagnostics, _shot
from densepred.callbacks.environment import git_state
from densepred.callbacks.pixel_errors import pixel_errors
from densepred.callbacks.run_files import write_csv, write_json
from densepred.callbacks.task_details import details, protocol
from densepred.callbacks.throughput import Throughput, process_gibibytes
from densepred.callbacks.worst import WorstImages
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.loggers import RunLogger
from densepred.metrics.depth import DepthMetrics
from densepred.metrics.depth_by_distance import DepthByDistance
from densepred.metrics.normals import NormalsMetrics
from densepred.module import DensePredictor
from densepred.reports.diagnostics import ious
from densepred.reports.run import Run
from densepred.reports.run_page import run_page
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation
from tests.test_reports import opens_offline


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """One epoch on rooms, with everything that a report reads."""
    from densepred.callbacks.environment import Environment
    from densepred.callbacks.results import Results

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("rooms")
    module = DensePredictor(ResNetEncoder("resnet18"), PointwiseDecoder, [Segmentation(11), Depth(), Normals()])
    trainer = pl.Trainer(
        default_root_dir=root, logger=RunLogger(root), accelerator="cpu", max_epochs=1, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[Environment(), Diagnostics(worst=2), Throughput(), Results()],
    )  # fmt: skip
    trainer.fit(module, datamodule=RoomsDataModule(size=(64, 64), train=4, val=3, test=1, batch_size=2, num_workers=0))
    return Run(root / "version_0")


def test_the_confusion_matrix_and_the_angles_of_a_run_agree_with_its_metrics(trained):
    tasks = trained.diagnostics["val"]["tasks"]
    labels, normals = tasks["segmentation"], tasks["normals"]
    for name, iou in ious(labels).items():
        logged = trained.latest[f"val/segmentation/iou/{name}"]
        assert iou == pytest.approx(logged, nan_ok=True, rel=1e-5)
    matrix = np.asarray(labels["confusion"][0])
    assert matrix.sum() == 3 * 64 * 64
    assert matrix.trace() / matrix.sum() == pytest.approx(trained.latest["val/segmentation/pixel_accuracy"], rel=1e-5)
    angles = np.asarray(normals["angles"])
    mean = (angles * (np.arange(180) + 0.5)).sum() / angles.sum()
    assert mean == pytest.approx(trained.latest["val/normals/mean_angle"], abs=0.5)


def test_every_image_has_its_errors_and_the_worst_ones_are_those_with_the_greatest(trained):
    with (trained.folder / "diagnostics" / "val_images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["name"] for row in rows}) == 3
    for task in ("segmentation", "depth", "normals"):
        ordered = sorted(rows, key=lambda row: -float(row[task]))
        worst = trained.diagnostics["val"]["tasks"][task]["worst"]
        assert [entry["name"] for entry in worst] == [row["name"] for row in ordered[:2]]
        assert trained.worst("val", task).is_file()
    accuracy = 1 - np.mean([float(row["segmentation"]) for row in rows])
    assert accuracy == pytest.approx(trained.latest["val/segmentation/pixel_accuracy"], abs=1e-5)


def test_a_run_knows_its_surroundings_its_constant_predictor_and_its_protocol(trained):
    (start,) = trained.starts
    assert start["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert start["verb"] == "fit"
    results = trained.results("val")
    assert results["network"]["val/depth/rmse"] == pytest.approx(trained.latest["val/depth/rmse"], rel=1e-6)
    assert results["constant"]["val/depth/rmse"] > 0
    assert trained.diagnostics["val"]["tasks"]["depth"]["protocol"]["settings"]["average"] == "image"


def test_its_page_holds_them_all_and_opens_offline(trained):
    document = opens_offline(run_page(trained))
    value, constant = document.row("rmse")[1:]
    assert float(value) == pytest.approx(trained.latest["val/depth/rmse"], rel=1e-3)
    assert float(constant) == pytest.approx(trained.results("val")["constant"]["val/depth/rmse"], rel=1e-3)
    for heading in ("Segmentation (validation)", "Confusion matrix", "Pixels by depth", "Protocol", "Environment"):
        assert heading in document.text or any(heading in text for text in document.text)
    assert document.elements.count("img") == 3


def test_speed_memory_and_gradient_are_logged_and_within_reason(trained):
    for key in ("speed/images_per_second", "memory/process", "train/gradient_norm"):
        assert all(value > 0 for value in trained.curves[key].values)
    assert all(0 <= value < 1 for value in trained.curves["speed/data_wait"].values)


def test_pixel_errors_are_each_tasks_own_measure_and_nan_where_nothing_is_known():
    labels = pixel_errors(
        Segmentation(3), torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 2, 255]]], dtype=torch.uint8)
    )
    np.testing.assert_array_equal(labels, [[[0, 1, np.nan]]])
    several = pixel_errors(
        Segmentation(["a", "b"], mode="multilabel"),
        torch.tensor([[[[1, 1]], [[0, 0]]]]),
        torch.tensor([[[[1, 0]], [[255, 1]]]], dtype=torch.uint8),
    )
    np.testing.assert_array_equal(several, [[[0, 1]]])
    depth = pixel_errors(Depth(), torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[2.0, 0.0]]]]))
    np.testing.assert_array_equal(depth, [[[0.5, np.nan]]])
    up, forward = torch.tensor([0.0, -1, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 0, -1]).view(1, 3, 1, 1)
    assert pixel_errors(Normals(), up, forward).item() == pytest.approx(90)
    assert math.isnan(pixel_errors(Normals(), up, torch.zeros(1, 3, 1, 1)).item())
    flow = pixel_errors(
        Regression(2), torch.tensor([1.0, 5.0]).view(1, 2, 1, 1), torch.tensor([3.0, math.nan]).view(1, 2, 1, 1)
    )
    assert flow.item() == 2


def test_the_worst_images_of_many_batches_are_those_of_a_sort():
    generator = torch.Generator().manual_seed(0)
    truth = 1 + torch.rand(20, 1, 4, 4, generator=generator)
    guess = 1 + torch.rand(20, 1, 4, 4, generator=generator)
    truth[3] = 0  # nothing known: never among the worst
    found = WorstImages(5)
    for start in range(0, 20, 4):
        part = slice(start, start + 4)
        names = [f"image {index}" for index in range(start, start + 4)]
        batch = {"image": torch.zeros(4, 3, 4, 4, dtype=torch.uint8), "depth": truth[part], "name": names}
        found.add([Depth()], batch, {"depth": guess[part]})
    errors = ((guess - truth).abs() / truth).mean((1, 2, 3)).nan_to_num(-1, posinf=-1)
    expected = errors.argsort(descending=True)[:5].tolist()
    assert [candidate.name for candidate in found.kept["depth"]] == [f"image {index}" for index in expected]
    torch.testing.assert_close(found.kept["depth"][0].predictions["depth"], guess[expected[0] : expected[0] + 1])
    assert len(found.scores["depth"]) == 20


def test_a_sample_without_a_tasks_target_has_no_score_for_it_and_keeps_the_table_square():
    found = WorstImages(1)
    tasks = [Depth(), Normals()]
    image, depth = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.ones(1, 1, 2, 2)
    up = torch.tensor([0.0, -1, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    found.add(tasks, {"image": image, "depth": depth, "name": ["a"]}, {"depth": depth, "normals": up})
    found.add(tasks, {"image": image, "depth": depth, "normals": up, "name": ["b"]}, {"depth": depth, "normals": up})
    assert found.names == ["a", "b"]
    assert found.scores["depth"] == [0, 0]
    assert math.isnan(found.scores["normals"][0])
    assert found.scores["normals"][1] == pytest.approx(0, abs=1e-3)


def test_a_map_of_errors_is_added_where_the_task_draws_none():
    labels, guess = torch.tensor([[[0, 1]]], dtype=torch.uint8), torch.tensor([[[0, 2]]], dtype=torch.uint8)
    task = Segmentation(3)
    found = WorstImages(1)
    batch = {"image": torch.zeros(1, 3, 1, 2, dtype=torch.uint8), "segmentation": labels, "name": ["a"]}
    found.add([task], batch, {"segmentation": guess})
    picture = _shot(task, found.kept["segmentation"][0]).pictures["segmentation"]["error"]
    right, wrong = picture[:, 0, 0].tolist(), picture[:, 0, 1].tolist()
    assert sum(wrong) > 500 > 50 > sum(right)  # bright where wrong, dark where right


def test_depth_by_distance_is_a_mean_by_bins_as_numpy_makes_it_over_batches_of_any_size():
    generator = torch.Generator().manual_seed(0)
    truth = 12 * torch.rand(6, 1, 8, 8, generator=generator) - 1  # some missing, some beyond the range
    guess = 10 * torch.rand(6, 1, 8, 8, generator=generator)
    metric = DepthByDistance(0.0, 10.0, intervals=7)
    metric.update(guess[:1], truth[:1])
    metric.update(guess[1:], truth[1:])
    t, p = truth.double().numpy().ravel(), guess.double().numpy().ravel()
    t, p = t[(t > 0) & (t < 10)], p[(t > 0) & (t < 10)]
    counts, _ = np.histogram(t, bins=metric.edges)
    absolute, _ = np.histogram(t, bins=metric.edges, weights=abs(p - t))
    relative, _ = np.histogram(t, bins=metric.edges, weights=abs(p - t) / t)
    found = metric.compute()
    np.testing.assert_array_equal(found["pixels"], counts)
    np.testing.assert_allclose(found["absolute"], absolute / counts, rtol=1e-5)
    np.testing.assert_allclose(found["relative"], relative / counts, rtol=1e-5)
    with pytest.raises(ConfigurationError, match="at least one interval"):
        DepthByDistance(intervals=0)


def test_angles_are_counted_by_the_degree():
    metric = NormalsMetrics()
    degrees = torch.tensor([0.5, 10.2, 10.9, 179.9])
    radians = degrees.deg2rad()
    turned = torch.stack([radians.sin(), torch.zeros(4), -radians.cos()]).view(1, 3, 1, 4)
    metric.update(turned, torch.tensor([0.0, 0, -1]).view(1, 3, 1, 1).expand(1, 3, 1, 4))
    counts = details(metric)["angles"]
    assert {degree: n for degree, n in enumerate(counts) if n} == {0: 1, 10: 2, 179: 1}


def test_a_metric_says_how_it_measures():
    said = protocol(DepthMetrics("eigen14", max_depth=80.0, average="pixel"))
    assert said["metric"] == "DepthMetrics"
    assert said["settings"] == {
        "protocol": "eigen14", "min_depth": 1e-3, "max_depth": 80.0, "clamp": True, "average": "pixel",
    }  # fmt: skip


def test_files_are_plain_and_a_failed_write_leaves_the_one_before(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [1, math.inf], "z": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1, None], "z": 0.5}
    write_csv(tmp_path / "a.csv", ["name"], [["one"]])

    def breaks():
        yield ["two"]
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_csv(tmp_path / "a.csv", ["name"], breaks())
    assert (tmp_path / "a.csv").read_text().split() == ["name", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


class Scalar(pl.LightningModule):
    """Loss 3 w + 4 v, whose gradient has the length 5."""

    def __init__(self, optimizer_seconds: float = 0.0) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.seconds = optimizer_seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return 3 * self.w + 4 * self.v

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Slow(torch.utils.data.Dataset):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"image": torch.zeros(3, 2, 2)}


@pytest.mark.parametrize(("loading", "training"), [(0.03, 0.005), (0.001, 0.06)])
def test_the_share_of_waiting_is_told_and_the_gradients_norm_is_that_before_clipping(tmp_path, loading, training):
    logger = RunLogger(tmp_path)
    trainer = pl.Trainer(
        logger=logger, accelerator="cpu", max_epochs=1, log_every_n_steps=3, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Throughput()], gradient_clip_val=0.1,
    )  # fmt: skip
    trainer.fit(Scalar(training), DataLoader(Slow(loading), batch_size=2))
    curves = Run(tmp_path / "version_0").curves
    assert curves["train/gradient_norm"].values == pytest.approx([5, 5])
    assert curves["speed/data_wait"].steps == [2, 5]
    share = 2 * loading / (2 * loading + training)
    assert curves["speed/data_wait"].values[-1] == pytest.approx(share, abs=0.25)
    assert curves["speed/images_per_second"].values[-1] < 2 / (2 * loading + training)
    assert 0.05 < process_gibibytes() < 1000


def test_the_commit_and_changed_files_of_a_folder_are_told(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_state(tmp_path) == {"commit": head, "changed": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["changed"] is True


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="worst=-1"):
        Diagnostics(worst=-1)
    with pytest.raises(ConfigurationError, match="every_n_epochs=0"):
        Diagnostics(every_n_epochs=0)


def test_uploading_checkpoints_without_wandb_is_refused_before_the_training(tmp_path):
    from densepred.callbacks.artifacts import CheckpointArtifacts

    trainer = pl.Trainer(
        logger=RunLogger(tmp_path), accelerator="cpu", max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[CheckpointArtifacts()],
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="the trainer has no WandbLogger"):
        trainer.fit(Scalar(), DataLoader(Slow(0), batch_size=2))


def test_results_folder_is_found_by_the_reports(trained):
    assert {path.name for path in (trained.folder / "diagnostics").iterdir()} == {
        "val.json", "val_images.csv", "val_results.json",
        *(f"val_worst_{task}.png" for task in ("segmentation", "depth", "normals")),
    }  # fmt: skip
    assert isinstance(trained.folder, Path)
