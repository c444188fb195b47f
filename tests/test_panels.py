"""Panels and progress on a stand-in module: files, dashboards, lines."""

import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densepred.callbacks import EpochProgress, Panels
from densepred.callbacks.dashboards import masks_of
from densepred.callbacks.panels import write_whole
from densepred.callbacks.progress import clock
from densepred.callbacks.sheet import Legend, Row, draw_sheet
from densepred.callbacks.shots import legends_of, rgb, shots_of
from densepred.errors import ConfigurationError
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

CLASSES = ["floor", "wall", "lamp"]


def sample(index: int, size: tuple[int, int] = (24, 32)) -> dict[str, Tensor | str]:
    make = torch.Generator().manual_seed(index)
    labels = torch.randint(3, size, generator=make, dtype=torch.uint8)
    labels[:2] = 255
    normals = F.normalize(torch.randn(3, *size, generator=make), dim=0)
    return {
        "image": torch.randint(256, (3, *size), generator=make, dtype=torch.uint8),
        "segmentation": labels,
        "depth": 1 + 4 * torch.rand(1, *size, generator=make),
        "normals": normals,
        "name": f"room_{index:03d}",
    }


class StandIn(pl.LightningModule):
    """The least that the callbacks need of a module: tasks, and predictions from the evaluation step."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"encoder": {"class_path": "StandIn", "init_args": {"width": 7}}})
        self.tasks = nn.ModuleList([Segmentation(CLASSES), Depth(), Normals()])
        self.layer = nn.Conv2d(3, 7, 1)

    def planes(self, batch):
        parts = self.layer(batch["image"].float() / 255).split([3, 1, 3], dim=1)
        return dict(zip(("segmentation", "depth", "normals"), parts, strict=True))

    def training_step(self, batch, batch_idx):
        planes = self.planes(batch)
        loss = sum(task.loss_from_planes(planes[task.name], batch) for task in self.tasks)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        size = batch["image"].shape[-2:]
        planes = self.planes(batch)
        return {"predictions": {task.name: task.predict_from_planes(planes[task.name], size) for task in self.tasks}}

    test_step = validation_step

    def on_validation_epoch_end(self):
        for task in self.tasks:
            for key in (*task.shown, "unseen"):
                self.log(f"val/{task.name}/{key}", 0.25, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def loader(count: int = 5, batch_size: int = 2) -> DataLoader:
    return DataLoader([sample(i) for i in range(count)], batch_size=batch_size)


def trainer(folder: Path, *callbacks: pl.Callback, logger=False, **options) -> pl.Trainer:
    options = {"max_epochs": 2, "enable_progress_bar": any(isinstance(c, EpochProgress) for c in callbacks)} | options
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def panels_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "panels").iterdir())


# -------------------------------------------------------------------------------------------------- PNG files


def test_every_epoch_leaves_one_whole_sheet_in_the_run_folder(tmp_path):
    trainer(tmp_path, Panels()).fit(StandIn(), loader(), loader())
    assert panels_in(tmp_path) == ["epoch_001.png", "epoch_002.png"]
    Image.open(tmp_path / "panels" / "epoch_001.png").load()


def test_sheets_go_beside_the_files_of_the_first_logger(tmp_path):
    run = trainer(tmp_path, Panels(), logger=CSVLogger(tmp_path, "here"), max_epochs=1)
    run.fit(StandIn(), loader(), loader())
    assert panels_in(Path(run.logger.log_dir)) == ["epoch_001.png"]


def test_the_sanity_check_is_not_shown(tmp_path):
    panels = Panels()
    run = trainer(tmp_path, panels, max_epochs=1, limit_train_batches=0, num_sanity_val_steps=1)
    run.sanity_checking = True
    panels.on_validation_batch_end(run, StandIn(), None, {}, 0)
    panels.on_validation_epoch_end(run, StandIn())
    assert not (tmp_path / "panels").exists()


def test_only_every_nth_epoch_and_the_last_are_shown(tmp_path):
    trainer(tmp_path, Panels(every_n_epochs=2), max_epochs=5).fit(StandIn(), loader(2), loader(2))
    assert panels_in(tmp_path) == ["epoch_002.png", "epoch_004.png", "epoch_005.png"]


def test_a_validation_or_test_by_itself_is_shown_too(tmp_path):
    run = trainer(tmp_path, Panels())
    run.validate(StandIn(), loader(), verbose=False)
    run.test(StandIn(), loader(), verbose=False)
    assert panels_in(tmp_path) == ["test.png", "validation.png"]


@pytest.mark.parametrize(("held", "wanted", "shown"), [(5, 4, 4), (5, 1, 1), (3, 4, 3)])
def test_as_many_first_samples_are_shown_as_asked_for_and_there_are(tmp_path, held: int, wanted: int, shown: int):
    kept = []

    class Spy(Panels):
        def on_validation_epoch_end(self, trainer, pl_module):
            kept.extend(shot.name for shot in self._shots)

    trainer(tmp_path, Spy(samples=wanted)).validate(StandIn(), loader(held), verbose=False)
    assert kept == [f"room_{i:03d}" for i in range(shown)]


def test_a_process_other_than_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    trainer(tmp_path, Panels()).validate(StandIn(), loader(), verbose=False)
    assert not (tmp_path / "panels").exists()


def test_every_process_asks_for_the_run_folder_since_asking_is_a_broadcast(tmp_path, monkeypatch):
    asked = []
    folder = property(lambda self: asked.append(1) or str(tmp_path))
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    monkeypatch.setattr(pl.Trainer, "log_dir", folder)
    run = trainer(tmp_path, Panels())
    asked.clear()
    Panels().on_validation_epoch_end(run, StandIn())
    assert asked


def test_a_sheet_that_cannot_be_written_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "epoch_001.png"
    write_whole(Image.new("RGB", (4, 4), "red"), path)

    class Broken:
        def save(self, part, format):
            Path(part).write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(Broken(), path)
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    assert list(tmp_path.iterdir()) == [path]


def test_a_module_without_predictions_is_told_what_to_return(tmp_path):
    class Silent(StandIn):
        def validation_step(self, batch, batch_idx):
            return torch.zeros(())

    with pytest.raises(ConfigurationError, match="Silent's evaluation step returned Tensor without predictions"):
        trainer(tmp_path, Panels()).validate(Silent(), loader(), verbose=False)


# ------------------------------------------------------------------------------------------- shots and sheets


def batch_of(count: int, **extra) -> dict:
    return next(iter(loader(count, count))) | extra


def perfect(batch: dict) -> dict[str, Tensor]:
    return {
        "segmentation": torch.where(batch["segmentation"] == 255, 0, batch["segmentation"]),
        "depth": batch["depth"],
        "normals": batch["normals"],
    }


def test_a_shot_has_its_true_size_without_the_batch_s_padding():
    batch = batch_of(2, size=torch.tensor([[24, 32], [20, 17]]))
    shot = shots_of(list(StandIn().tasks), batch, perfect(batch), 4)[1]
    assert shot.image.shape == (3, 20, 17)
    assert torch.equal(shot.image, batch["image"][1, :, :20, :17])
    assert {picture.shape for by in shot.pictures.values() for picture in by.values()} == {(3, 20, 17)}
    assert shot.targets["depth"].shape == (1, 1, 20, 17)


def test_a_task_without_a_target_shows_its_prediction_alone():
    batch = batch_of(1)
    predictions = perfect(batch)
    del batch["depth"]
    shot = shots_of(list(StandIn().tasks), batch, predictions, 1)[0]
    assert list(shot.pictures["depth"]) == ["prediction"]
    assert set(shot.pictures["normals"]) > {"target", "prediction"}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.tensor([10, 20, 30], dtype=torch.uint8), [10, 20, 30]),
        (torch.tensor([10], dtype=torch.uint8), [10, 10, 10]),
        (torch.tensor([10, 90], dtype=torch.uint8), [10, 10, 10]),
        (torch.tensor([10, 20, 30, 40, 50], dtype=torch.uint8), [10, 20, 30]),
        (torch.tensor([0.0, 1.0, 2.0]), [0, 255, 255]),
    ],
)
def test_an_image_of_any_number_of_channels_becomes_visible(image: Tensor, expected: list[int]):
    assert rgb(image.view(-1, 1, 1)).flatten().tolist() == expected


def test_a_sheet_holds_the_very_pixels_enlarged_by_a_whole_number():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sheet = np.asarray(draw_sheet([Row("a", {("image", ""): picture})]))
    enlarged = picture.repeat(10, 0).repeat(10, 1)  # 320 // 30
    windows = [
        (y, x)
        for y in range(sheet.shape[0] - 200 + 1)
        for x in range(sheet.shape[1] - 300 + 1)
        if (sheet[y, x] == enlarged[0, 0]).all() and (sheet[y : y + 200, x : x + 300] == enlarged).all()
    ]
    assert len(windows) == 1


def test_a_sheet_keeps_columns_under_each_other_and_pictures_apart():
    red, blue = (np.full((320, 320, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    rows = [Row("one", {("a", "x"): red, ("b", "y"): blue}), Row("two", {("b", "y"): blue})]
    sheet = np.asarray(draw_sheet(rows))
    for colour, count in (((255, 0, 0), 1), ((0, 0, 255), 2)):
        ys, xs = np.where((sheet == colour).all(-1))
        assert len(ys) == count * 320 * 320
        assert xs.max() - xs.min() == 319


def test_names_too_long_for_the_sheet_do_not_widen_it():
    picture = np.zeros((32, 32, 3), np.uint8)
    short = draw_sheet([Row("a", {("image", ""): picture})])
    long = draw_sheet([Row("folder/" * 50 + "a", {("image" * 50, "caption" * 50): picture})], "title" * 99)
    assert long.width == short.width


def test_the_legend_names_the_classes_that_are_seen_and_void():
    batch = batch_of(1)
    batch["segmentation"][batch["segmentation"] == 2] = 1
    tasks = list(StandIn().tasks)
    (legend,) = legends_of(shots_of(tasks, batch, perfect(batch), 1), tasks)
    assert [name for name, _ in legend.entries] == ["floor", "wall", "void"]
    colours = [tuple(colour) for colour in tasks[0].palette[:2]]
    assert [colour for _, colour in legend.entries][:2] == colours


def test_a_long_legend_is_broken_into_lines_that_fit():
    picture = np.zeros((32, 32, 3), np.uint8)
    colours = [(f"class {i}", (i, 200, 7)) for i in range(60)]
    sheet = np.asarray(draw_sheet([Row("a", {("image", ""): picture})], legends=[Legend("labels", colours)]))
    for _, colour in colours:
        assert (sheet == colour).all(-1).sum() >= 100


def test_masks_hold_labels_with_void_as_255_and_every_class_name():
    batch = batch_of(1)
    task = Segmentation(CLASSES)
    masks = masks_of(shots_of([task], batch, perfect(batch), 1)[0], task)
    assert masks.keys() == {"prediction", "target"}
    np.testing.assert_array_equal(masks["target"]["mask_data"], batch["segmentation"][0].numpy())
    assert masks["target"]["class_labels"] == {0: "floor", 1: "wall", 2: "lamp", 255: "void"}


def test_multilabel_masks_answer_for_each_class():
    task = Segmentation(["wet", "icy"], mode="multilabel")
    target = torch.tensor([0, 1, 1, 255], dtype=torch.uint8).view(1, 2, 1, 2)
    batch = {"image": torch.zeros(1, 3, 1, 2, dtype=torch.uint8), "segmentation": target}
    masks = masks_of(shots_of([task], batch, {"segmentation": (target == 1).byte()}, 1)[0], task)
    assert masks["target icy"]["mask_data"].tolist() == [[1, 255]]
    assert masks["target icy"]["class_labels"] == {0: "not icy", 1: "icy", 255: "void"}
    assert masks["prediction wet"]["mask_data"].tolist() == [[0, 1]]


# ------------------------------------------------------------------------------------------------- dashboards


def wandb_records(path: Path) -> list:
    """The records of a finished run; wandb's own process may write the last of them after `wandb.finish()`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = read_records(path)
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path}: the run has no end after a minute")


def read_records(path: Path) -> list:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, fragments) of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, at = [], [], 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's rest too small for a header is filled with zeros
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            break  # still being written
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def items_of(records: list, kind: str) -> dict:
    """The last value of each key that the records of a kind hold."""
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == kind:
            part = getattr(record, kind)
            for item in part.item if kind == "history" else part.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


@pytest.fixture
def no_prompt(monkeypatch):
    """A fresh machine: no key, no home with one, and whoever asks anything fails."""
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # wandb gives its own process half a minute to start, which a busy machine may not manage
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "240")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "240")

    def refuse(*args, **kwargs):
        raise AssertionError("asked the user something")

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr("getpass.getpass", refuse)


@pytest.mark.slow
def test_an_offline_wandb_run_holds_masks_with_class_names_pictures_and_the_config(tmp_path, monkeypatch, no_prompt):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    logger = WandbLogger(save_dir=tmp_path, project="panels")
    trainer(tmp_path, Panels(samples=3), logger=logger, max_epochs=1).fit(StandIn(), loader(), loader())
    files = Path(logger.experiment.dir)
    wandb.finish()

    records = wandb_records(next(files.parent.glob("*.wandb")))
    history = items_of(records, "history")
    labels = "panels/val/segmentation"
    assert history[f"{labels}/captions"] == ["room_000", "room_001", "room_002"]
    masks = history[f"{labels}/all_masks"]
    assert [set(of_image) for of_image in masks] == [{"prediction", "target"}] * 3
    mask = np.asarray(Image.open(files / masks[1]["target"]["path"]))
    np.testing.assert_array_equal(mask, sample(1)["segmentation"].numpy())
    image = np.asarray(Image.open(files / history[f"{labels}/filenames"][1]))
    np.testing.assert_array_equal(image, sample(1)["image"].permute(1, 2, 0).numpy())
    for task in ("depth", "normals"):
        assert len(history[f"panels/val/{task}/filenames"]) == 3

    config = items_of(records, "config")
    assert config["encoder"] == {"class_path": "StandIn", "init_args": {"width": 7}}
    for what in ("prediction", "target"):
        entry = config["_wandb"]["mask/class_labels"][f"{labels}_wandb_delimeter_{what}"]
        assert entry["value"] == {"0": "floor", "1": "wall", "2": "lamp", "255": "void"}
    assert panels_in(tmp_path) == ["epoch_001.png"]


def test_tensorboard_gets_a_sheet_for_every_task(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, Panels(samples=2), logger=logger, max_epochs=1).fit(StandIn(), loader(2), loader(2))
    events = EventAccumulator(logger.log_dir).Reload()
    assert set(events.Tags()["images"]) == {f"panels/val/{task}" for task in ("segmentation", "depth", "normals")}
    assert panels_in(Path(logger.log_dir)) == ["epoch_001.png"]


# --------------------------------------------------------------------------------------------------- progress


def test_without_a_terminal_there_is_one_plain_line_an_epoch(tmp_path, capsys):
    trainer(tmp_path, EpochProgress(), max_epochs=3).fit(StandIn(), loader(4), loader(2))
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert "\r" not in "".join(lines)
    for line in epochs:
        assert "images/s" in line
        assert line.endswith(
            "val/segmentation/miou 0.25  val/depth/rmse 0.25  val/depth/delta1 0.25  "
            + "  ".join(f"val/normals/{key} 0.25" for key in Normals.shown)
        )
        assert "unseen" not in line


class Counting(StandIn):
    """Its losses are 1, 2, 3, ... step by step."""

    seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return self.layer.weight.sum() * 0 + self.seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_line_s_loss_is_the_mean_over_the_epoch(tmp_path, capsys, accumulate: int):
    run = trainer(tmp_path, EpochProgress(), accumulate_grad_batches=accumulate)
    run.fit(Counting(), loader(8, 2))
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split("train/loss ")[1] for line in found] == ["2.5", "6.5"]


def test_an_epoch_without_validation_shows_no_stale_metrics(tmp_path, capsys):
    run = trainer(tmp_path, EpochProgress(), check_val_every_n_epoch=2, max_epochs=3, num_sanity_val_steps=0)
    run.fit(StandIn(), loader(2), loader(2))
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["val/depth/rmse" in line for line in found] == [False, True, False]


def test_images_a_second_leave_validation_out(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("densepred.callbacks.progress.time.perf_counter", lambda: now[0])

    class Slow(StandIn):
        def training_step(self, batch, batch_idx):
            now[0] += 0.5
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 60
            return super().validation_step(batch, batch_idx)

    trainer(tmp_path, EpochProgress(), max_epochs=1).fit(Slow(), loader(6, 2), loader(2))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert "  1:02  4.0 images/s  " in line  # 6 images in 3 x 0.5 s; 61.5 s with validation


def test_on_a_terminal_a_bar_moves_with_the_loss_and_the_shown_metrics(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "400")
    trainer(tmp_path, EpochProgress()).fit(StandIn(), loader(4), loader(2))
    out = capsys.readouterr().out
    assert "\r" in out
    last = [part for part in out.split("\r") if part.startswith("epoch 2/2")][-1]
    assert "loss=" in last
    assert "val/depth/rmse=0.25" in last
    assert "unseen" not in out
    assert "v_num" not in out


def test_a_process_other_than_the_first_prints_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    trainer(tmp_path, EpochProgress()).fit(StandIn(), loader(2), loader(2))
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3600, "1:00:00")])
def test_times_are_written_as_people_read_them(seconds: float, text: str):
    assert clock(seconds) == text


@pytest.mark.parametrize("options", [{"samples": 0}, {"every_n_epochs": 0}])
def test_panels_of_nothing_are_refused(options: dict):
    with pytest.raises(ConfigurationError, match="leave the callback out"):
        Panels(**options)
