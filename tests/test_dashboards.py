"""Dashboards through the command line: a real fit, and what an offline run of Weights & Biases then holds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densepred.callbacks.confusion_picture import confusion_picture
from densepred.cli import main
from densepred.data.rooms import Rooms
from densepred.loggers import wandb_offline_unless_reachable
from tests.test_cli import config  # noqa: F401 - a fixture
from tests.test_panels import items_of, no_prompt, wandb_records  # noqa: F401 - a fixture


@pytest.mark.slow
def test_a_fit_leaves_masks_with_class_names_panels_metrics_and_the_whole_config_in_wandb(
    config, monkeypatch, no_prompt  # noqa: F811
):  # fmt: skip
    import wandb

    # without a key the command itself has to choose offline
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "rooms"]
    logger += ["--trainer.callbacks+", "CheckpointArtifacts"]
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1", *logger]) == 0
    wandb.finish()

    (run,) = Path("runs/wandb").glob("offline-run-*")
    records = wandb_records(next(run.glob("*.wandb")))
    kept, history = items_of(records, "config"), items_of(records, "history")
    assert kept["config"] == yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert kept["config"]["data"]["init_args"]["train"] == 8
    assert {"val/segmentation/miou", "val/depth/rmse", "train/loss"} <= history.keys()
    masks = history["panels/val/segmentation/all_masks"]
    assert [set(of_image) for of_image in masks] == [{"prediction", "target"}] * 2
    mask = np.asarray(Image.open(run / "files" / masks[0]["target"]["path"]))
    assert set(np.unique(mask)) <= {*range(len(Rooms.classes)), 255}
    labels = kept["_wandb"]["mask/class_labels"]["panels/val/segmentation_wandb_delimeter_prediction"]["value"]
    assert labels == {**{str(i): name for i, name in enumerate(Rooms.classes)}, "255": "void"}
    assert len(history["panels/val/depth/filenames"]) == 2
    assert len(history["worst/val/depth/filenames"]) == 1
    table = json.loads((run / "files" / history["iou/val/segmentation/path"]).read_text())
    assert table["columns"] == ["class", "IoU", "recall", "precision", "share of pixels"]
    assert len(table["data"]) == len(Rooms.classes)
    for name, iou, *_ in table["data"]:
        logged = history[f"val/segmentation/iou/{name}"]
        assert logged in ("NaN", None) or math.isnan(logged) if iou is None else iou == pytest.approx(logged)
    page = (run / "files" / history["diagnostics/val/segmentation/path"]).read_text()
    assert "Confusion matrix" in page
    assert "<style>" in page  # a frame of its own has no other looks
    assert Rooms.classes[0] in page
    artifacts = {record.artifact.name for record in records if record.WhichOneof("record_type") == "artifact"}
    kept_files = {path.stem for path in Path("runs/version_0/checkpoints").glob("best*.ckpt")}
    assert {name.partition("-")[2] for name in artifacts if "-best" in name} == kept_files
    assert Path("runs/version_0/panels/epoch_001.png").is_file()
    assert not Path("wandb").exists()


def test_a_fit_with_tensorboard_writes_there_and_keeps_its_own_files(config):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tb"]
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1", *logger]) == 0
    (events,) = Path("tb").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    tags = found.Tags()
    pictures = {f"{kind}/val/{task}" for kind in ("panels", "worst") for task in ("segmentation", "depth")}
    assert set(tags["images"]) == {*pictures, "confusion/val/segmentation"}
    assert {"train/loss", "val/depth/rmse", "train/gradient_norm", "speed/data_wait"} <= set(tags["scalars"])
    assert {"iou/val/segmentation/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    shown = found.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    given = "\n".join(line.removeprefix("    ") for line in shown.splitlines())
    assert yaml.safe_load(given) == yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert "environment/text_summary" in tags["tensors"]
    text = found.Tensors("iou/val/segmentation/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert {f"iou/{line.split('|')[1].strip()}" for line in text.splitlines()[2:]} == {
        f"iou/{name}" for name in Rooms.classes
    }
    assert Path("runs/version_0/metrics.csv").is_file()


def test_a_matrix_drawn_as_a_picture_is_green_where_right_and_red_where_wrong_by_its_share():
    picture = confusion_picture([[3, 1, 0], [0, 0, 0], [2, 0, 2]], ["floor", "wall", "lamp"])
    pixels = np.asarray(picture).astype(int)
    size = 40
    top, left = pixels.shape[0] - 3 * size - 16, pixels.shape[1] - 3 * size - 16
    # a corner of each cell, where no number stands
    cells = pixels[top + 4 :: size, left + 4 :: size][:3, :3]
    redness = cells[..., 0] - cells[..., 1]
    assert redness[0, 0] < -50
    assert redness[0, 1] > 20
    assert redness[2, 0] > redness[0, 1]
    assert abs(redness[1]).max() < 12  # a class without pixels stays pale
    many = confusion_picture(np.eye(150, dtype=int).tolist(), [f"class {i}" for i in range(150)])
    assert many.width < 2400


def test_without_a_key_or_a_network_wandb_is_told_to_stay_offline(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no API key" in wandb_offline_unless_reachable(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    message = wandb_offline_unless_reachable(tmp_path)
    assert "127.0.0.1:9 cannot be reached" in message
    assert f"wandb sync {tmp_path}/wandb/" in message
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_offline_unless_reachable(tmp_path) is None
