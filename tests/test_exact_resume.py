"""A run that was interrupted anywhere ends with the very weights, counters and rows of one that was not."""

import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy

from densepred.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO, checkpoints_beside, refuse_shards
from densepred.callbacks.progress import EpochProgress
from densepred.callbacks.stop_signals import StopSignals
from densepred.cli import main
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset
from densepred.data.transforms import FlipLeftRight
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.loggers import RunLogger, drop_rows_after
from densepred.module import DensePredictor
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import ROOMS, rows

ORDER = "DENSEPRED_TEST_INTERRUPT"


class Interrupt(pl.Callback):
    """Sends this process a signal at a place that the environment names: "TERM train 3", "KILL validation 4"."""

    def on_train_batch_end(self, trainer, *args):
        self._send("train", trainer.fit_loop.total_batch_idx + 1)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._send("validation", trainer.fit_loop.total_batch_idx + 1)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self._send("validated", trainer.fit_loop.total_batch_idx + 1)

    def on_train_epoch_end(self, trainer, module):
        self._send("epoch", trainer.fit_loop.total_batch_idx + 1)

    def _send(self, stage, count):
        name, *place = os.environ.get(ORDER, "").split() or "-"
        if place == [stage, str(count)]:
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


class Draws(pl.Callback):
    """What a user's own code might draw: from every global generator, before every step."""

    def on_train_batch_end(self, trainer, module, *args):
        module.log("train/drawn", torch.rand(()) + np.random.rand() + random.random())


class Speckles(DenseDataset):
    """Noise as images, labels and depth, 40 pixels a side."""

    def __len__(self):
        return 9

    def read(self, index):
        numbers = np.random.default_rng(index)
        return {
            "image": numbers.integers(0, 255, (40, 40, 3), np.uint8),
            "segmentation": numbers.integers(0, 3, (40, 40)).astype(np.uint8),
            "depth": numbers.uniform(1, 9, (40, 40)).astype(np.float32),
            "name": str(index),
        }


class SpecklesDataModule(DenseDataModule):
    def dataset(self, split, transforms):
        return Speckles(transforms, self.seed)


def fit(folder, interrupt="", resume=False, **options):
    """Two epochs of four steps, or what is left of them; the last checkpoint and the rows."""
    os.environ[ORDER] = interrupt
    pl.seed_everything(99 if resume else 0, verbose=False)
    module = DensePredictor(
        UNetEncoder(widths=(4, 8)),
        partial(UNetDecoder, widths=(4,), dropout=0.5),
        [Segmentation(3), Depth()],
        lr_scheduler=PolyLR,
    )
    path = folder / "version_0" / "checkpoints" / "last.ckpt"
    if resume:
        drop_rows_after(folder / "version_0" / "metrics.csv", torch.load(path, weights_only=True)["global_step"])
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=RunLogger(folder, version=0),
        callbacks=[Interrupt(), Draws(), EMAWeightAveraging(decay=0.5), EpochProgress(), LastCheckpoint()],
        plugins=[WholeFileCheckpointIO()],
        log_every_n_steps=1,
        enable_model_summary=False,
        **({"max_epochs": 2} | options),
    )
    data = SpecklesDataModule(batch_size=2, num_workers=0, train_transforms=[FlipLeftRight()])
    try:
        trainer.fit(module, data, ckpt_path=str(path) if resume else None, weights_only=True)
    finally:
        del os.environ[ORDER]
    return torch.load(path, weights_only=True), logged(folder / "version_0")


def logged(run):
    """(step, key, value) of everything that does not measure time, in the order of the file."""
    timed = ("time/", "throughput", "images", "memory", "system", "wait", "seconds")
    return [
        (int(row["step"]), key, value)
        for row in rows(run)
        for key, value in row.items()
        if value and key not in ("step", "epoch") and not any(word in key for word in timed)
    ]


def assert_same(one, other, where=""):
    """Equal to the last bit, however deep."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, (where, one, other)


STATES = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "random_states",
          "epoch", "global_step")  # fmt: skip


def assert_ends_alike(one, other):
    (checkpoint, found), (expected, wanted) = one, other
    for key in STATES:
        assert_same(checkpoint[key], expected[key], key)
    for loop in ("epoch_progress", "epoch_loop.batch_progress"):
        for count in ("started", "processed", "completed"):
            states = [saved["loops"]["fit_loop"][loop]["total"][count] for saved in (checkpoint, expected)]
            assert states[0] == states[1], (loop, count)
    assert sorted(found) == sorted(wanted)


RUNS = {
    "epochs": {},
    "steps": {"max_epochs": -1, "max_steps": 8},
    "accumulated": {"accumulate_grad_batches": 3},
    "validated_twice": {"val_check_interval": 2},
}


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    """An option's name and its uninterrupted run."""
    return RUNS[request.param], fit(tmp_path_factory.mktemp("whole"), **RUNS[request.param])


def test_a_run_told_to_end_at_any_step_continues_as_if_it_had_never_stopped(whole, tmp_path):
    options, expected = whole
    places = ["train 1", "train 2", "train 4", "train 6", "train 7", "epoch 4"]
    for place in [*places, *(["validated 2"] if "val_check_interval" in options else [])]:
        folder = tmp_path / place.replace(" ", "_")
        with pytest.raises(SystemExit) as end:
            fit(folder, f"TERM {place}", **options)
        assert end.value.code == 128 + signal.SIGTERM
        assert_ends_alike(fit(folder, resume=True, **options), expected)


@pytest.mark.parametrize("step", [4, 8])
def test_a_validation_that_was_saved_before_is_left_at_once_and_done_again(step, tmp_path, monkeypatch):
    monkeypatch.setattr("densepred.callbacks.checkpoints.LONG_VALIDATION", -1.0)
    expected = fit(tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", f"TERM validation {step}")
    assert not [row for row in logged(tmp_path / "cut" / "version_0") if row[0] == step - 1 and row[1] == "val/loss"]
    assert_ends_alike(fit(tmp_path / "cut", resume=True), expected)


def test_the_line_of_an_interrupted_epoch_tells_the_mean_loss_of_all_its_steps(tmp_path, capsys):
    def losses():
        return [
            line.split("train/loss")[1].split()[0] for line in capsys.readouterr().out.splitlines() if "epoch" in line
        ]

    fit(tmp_path / "whole")
    expected = losses()
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", "TERM train 2")
    fit(tmp_path / "cut", resume=True)
    assert losses() == expected


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two epochs of five steps with two workers, saved at every step."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(yaml.safe_dump(ROOMS))
    config["model"]["init_args"] |= {
        "encoder": {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8], "dropout": 0.3}},
        "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [4]}},
    }
    config["data"]["init_args"] |= {"train": 10, "num_workers": 2}
    config["trainer"]["callbacks"] = [
        {"class_path": "tests.test_exact_resume.Interrupt"},
        {"class_path": "LastCheckpoint", "init_args": {"minutes": 0}},
    ]
    path = tmp_path / "rooms.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def end_of(root):
    run = Path(root, "version_0")
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True), logged(run)


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_with_workers_loses_that_step_only_and_ends_the_same(config, monkeypatch):
    step = random.SystemRandom().randrange(2, 10)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), ORDER: f"KILL train {step}"}
    command = [sys.executable, "-m", "densepred", "fit", "--config", str(config)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    checkpoint, _ = end_of("runs")
    assert checkpoint["global_step"] == step - 1
    # the same command starts a job anew or goes on, whichever there is to do
    assert main(["fit", "--config", str(config), "--ckpt_path", "auto"]) == 0
    again = ["--trainer.default_root_dir", "whole", "--ckpt_path", "auto"]
    assert main(["fit", "--config", str(config), *again]) == 0
    found, expected = end_of("runs"), end_of("whole")
    for key in STATES:
        if key in expected[0]:
            assert_same(found[0][key], expected[0][key], f"killed at {step}: {key}")
    assert sorted(found[1]) == sorted(expected[1]), f"killed at {step}"
    # a job that is started again although it had ended changes nothing
    assert main(["fit", "--config", str(config), *again]) == 0
    assert sorted(end_of("whole")[1]) == sorted(expected[1])
    assert_same(end_of("whole")[0]["state_dict"], expected[0]["state_dict"])


@pytest.mark.slow
def test_a_dashboards_run_goes_on_under_its_id_and_a_new_one_gets_its_own(config, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "rooms"]
    monkeypatch.setenv(ORDER, "TERM train 3")
    assert main(["fit", "--config", str(config), *logger]) == 128 + signal.SIGTERM
    assert "ended by SIGTERM after step 3. Continue with: densepred fit --ckpt_path" in capsys.readouterr().err
    wandb.finish()
    monkeypatch.delenv(ORDER)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "1", "--allow", "tests"]) == 0
    wandb.finish()
    ids = [path.name.rpartition("-")[2] for path in Path("runs/wandb").glob("offline-run-*")]
    assert len(ids) == 2
    assert ids[0] == ids[1]
    assert end_of("runs")[0]["wandb_id"] == ids[0]
    assert (
        yaml.safe_load(Path("runs/version_0/config.yaml").read_text())["trainer"]["logger"]["init_args"]["id"] is None
    )


def test_a_cut_row_of_a_killed_run_is_dropped_and_whole_ones_before_the_checkpoint_stay(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,train/loss\n0,0.5\n1,0.25\n1")
    drop_rows_after(metrics, step=2)
    assert metrics.read_text().splitlines() == ["step,train/loss", "0,0.5", "1,0.25"]
    drop_rows_after(metrics, step=1)
    assert metrics.read_text().splitlines() == ["step,train/loss", "0,0.5"]


def test_slurms_requeue_signal_ends_the_training_and_asks_for_another_start(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    strategy = SimpleNamespace(cluster_environment=SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1))
    trainer = SimpleNamespace(strategy=strategy, received_sigterm=False, is_global_zero=True, global_step=3)
    signals, before = StopSignals(), signal.getsignal(signal.SIGUSR1)
    signals.install(trainer)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received
    with pytest.raises(SystemExit) as end:
        signals.end(trainer, "")
    signals.restore()
    assert end.value.code == 128 + signal.SIGUSR1
    assert asked == [["scontrol", "requeue", "17"]]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_other_checkpoints_of_a_configuration_replace_the_best_but_last_stays_to_continue_from():
    tasks = [Segmentation(3), Depth()]

    def names(*own):
        return [callback.filename for callback in checkpoints_beside(own, tasks)]

    assert names() == ["best", "best-depth", "last"]
    assert names(LastCheckpoint(minutes=1)) == ["best", "best-depth"]
    assert names(ModelCheckpoint(every_n_train_steps=100)) == ["last"]
    assert names(ModelCheckpoint(save_last=True)) == []


def test_sharded_checkpoints_are_refused_with_the_option_that_writes_whole_ones():
    refuse_shards(SimpleNamespace(strategy=FSDPStrategy()))
    with pytest.raises(ConfigurationError, match=r"FSDPStrategy writes .* Set state_dict_type: full"):
        refuse_shards(SimpleNamespace(strategy=FSDPStrategy(state_dict_type="sharded")))


def test_a_worker_leaves_a_schedulers_sigterm_to_the_training_and_obeys_the_training(tmp_path):
    loader = SpecklesDataModule(batch_size=2, num_workers=1).train_dataloader()
    batches = iter(loader)
    next(batches)
    worker = loader._iterator._workers[0]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 3
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 0
