"""A training that goes wrong stops at once, says what was seen, and leaves the state from before."""

import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from densepred.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO
from densepred.callbacks.loss_guard import LossGuard
from densepred.callbacks.loss_history import LossHistory
from densepred.cli import main
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset
from densepred.data.sampler import EpochSampler
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError, TrainingError
from densepred.loggers import RunLogger
from densepred.losses.base import Loss
from densepred.module import DensePredictor
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import rows
from tests.test_exact_resume import STATES, assert_same

ROOT = Path(__file__).parents[1]


class Patches(DenseDataset):
    """Noise, 40 pixels a side; of one image a pixel is NaN."""

    broken = "11"

    def __len__(self):
        return 12

    def read(self, index):
        numbers = np.random.default_rng(index)
        image = numbers.uniform(0, 1, (40, 40, 3)).astype(np.float32)
        if str(index) == self.broken:
            image[3, 4] = np.nan
        return {
            "image": image,
            "segmentation": numbers.integers(0, 3, (40, 40)).astype(np.uint8),
            "depth": numbers.uniform(1, 9, (40, 40)).astype(np.float32),
            "name": str(index),
        }


class PatchesDataModule(DenseDataModule):
    """Patches, two a batch."""

    def __init__(self, broken: str = "11") -> None:
        super().__init__(batch_size=2, num_workers=0, seed=3)
        self.broken = broken

    def dataset(self, split, transforms):
        patches = Patches(transforms, self.seed)
        patches.broken = self.broken if split == "train" else ""
        return patches


class Names(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch["name"])


class DiesAt(Loss):
    """An absolute error, times a number of one's own from a step on."""

    def __init__(self, step: int, factor: float = 1.0, gradient: bool = False) -> None:
        super().__init__()
        self.step, self.factor, self.gradient = step, factor, gradient
        self.count = 0

    def forward(self, prediction, target):
        self.count += self.training
        loss = (prediction - target).abs().mean()
        if self.count <= self.step:
            return loss
        if self.gradient:  # the root's slope at zero is infinite, and times zero not a number
            return loss + (0 * prediction).sum().abs().sqrt()
        return loss * self.factor


def fit(folder, broken="", loss=None, guard=None, resume=None, **options):
    torch.manual_seed(0)
    tasks = [Segmentation(3), Depth(loss=loss) if loss else Depth()]
    module = DensePredictor(
        UNetEncoder(widths=(4, 8)), partial(UNetDecoder, widths=(4,), dropout=0.5), tasks, lr_scheduler=PolyLR
    )
    names = Names()
    callbacks = [names, guard or LossGuard(), LastCheckpoint(minutes=options.pop("minutes", 0))]
    trainer = pl.Trainer(
        accelerator="cpu", logger=RunLogger(folder, version=0), callbacks=callbacks, num_sanity_val_steps=0,
        plugins=[WholeFileCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
        **({"max_epochs": 2, "log_every_n_steps": 1} | options),
    )  # fmt: skip
    error = None
    try:
        trainer.fit(module, PatchesDataModule(broken), ckpt_path=resume, weights_only=True)
    except TrainingError as caught:
        error = caught
    return str(error), names.seen, trainer


def drawn(batch):
    """The first image of a batch of the first epoch."""
    sampler = EpochSampler(12, seed=3)
    sampler.set_epoch(0)
    return str(list(sampler)[2 * batch][1])


def checkpoint(folder, name):
    return torch.load(folder / "version_0" / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("batch", "options"),
    [(3, {}), (3, {"accumulate_grad_batches": 2}), (4, {"val_check_interval": 2}), (5, {}), (0, {})],
    ids=str,
)
def test_what_is_saved_is_the_state_before_the_step_that_failed_and_a_run_goes_on_from_it(tmp_path, batch, options):
    broken = drawn(batch)
    text, seen, trainer = fit(tmp_path, broken=broken, **options)
    if batch == 0:
        assert re.search("checkpoint: +none, nothing was saved before", text)
        return
    # with no minutes between them `last.ckpt` is what the same run had saved before this very step
    last, before = checkpoint(tmp_path, "last"), checkpoint(tmp_path, "before_failure")
    for key in STATES:
        if key in last:
            assert_same(before[key], last[key], key)
    counters = [saved["loops"]["fit_loop"] for saved in (before, last)]
    for tracker in ("epoch_progress", "epoch_loop.batch_progress"):
        assert_same(*(counter[tracker] for counter in counters), tracker)
    assert_same(*(counter["epoch_loop.state_dict"] for counter in counters))
    assert all(bool(value.isfinite().all()) for value in before["state_dict"].values())
    assert f"step {before['global_step']}:" in text
    assert len(seen) == batch + 1
    resume = str(tmp_path / "version_0/checkpoints/before_failure.ckpt")
    window = options.get("accumulate_grad_batches", 1)
    again, first, _ = fit(tmp_path, broken=broken, resume=resume, **options)
    assert first == seen[batch // window * window :]
    assert again.partition("checkpoint:")[0] == text.partition("checkpoint:")[0]
    mended, _, trainer = fit(tmp_path, resume=resume, **options)
    assert mended == "None"
    assert trainer.current_epoch == 2


def test_the_message_names_step_losses_images_rates_layer_and_what_helps(tmp_path):
    broken = drawn(2)
    text, seen, _ = fit(tmp_path, broken=broken)
    assert re.search(rf"Training stopped at step {len(seen) - 1}: the loss of 'segmentation' is nan and", text)
    assert re.search(r"losses: +segmentation nan, depth nan", text)
    assert re.search(rf"images: +{', '.join(seen[-1])}\n", text)
    assert re.search(r"learning rates: +\S+ [0-9.e-]+", text)
    assert re.search(rf"batch: +image is not finite in {broken}\n", text)
    assert re.search(r"first output that is not finite: encoder\S* \(Conv2d; its input is not finite\)", text)
    assert re.search(r"parameters: +finite", text)
    assert re.search(r"checkpoint: .*before_failure.ckpt, from before this step", text)
    assert "Mend or leave out these images" in text
    assert "--trainer.gradient_clip_val 1" in text


def test_a_gradient_that_is_not_finite_is_never_stepped_with(tmp_path):
    text, seen, trainer = fit(tmp_path, loss=DiesAt(3, gradient=True))
    assert len(seen) == 4
    assert "Training stopped at step 3: the losses are finite, their gradient is not." in text
    assert re.search(r"gradient norm: +nan, not finite in \S+", text)
    assert "all outputs are finite" in text
    assert all(bool(value.isfinite().all()) for value in trainer.lightning_module.state_dict().values())
    assert checkpoint(tmp_path, "before_failure")["global_step"] == 3


def test_an_exploding_loss_stops_the_run_and_what_was_saved_before_is_kept(tmp_path):
    guard = LossGuard(factor=5, patience=4)
    text, seen, _ = fit(tmp_path, loss=DiesAt(33, factor=1e3), guard=guard, max_epochs=9)
    assert len(seen) == 37
    assert "Training stopped at step 36: the loss of 'depth' exploded" in text
    assert "it has been 5 times that for 4 batches in a row" in text
    assert "before_failure.ckpt, the last from before" in text
    assert checkpoint(tmp_path, "before_failure")["global_step"] == 33
    assert checkpoint(tmp_path, "last")["global_step"] == 36


def test_a_loss_that_recovers_does_not_stop_the_run_and_leaves_no_second_checkpoint(tmp_path):
    class Briefly(DiesAt):
        def forward(self, prediction, target):
            loss = super().forward(prediction, target)
            return loss / self.factor if self.count > self.step + 3 else loss

    text, _, _ = fit(tmp_path, loss=Briefly(33, factor=1e3), guard=LossGuard(factor=5, patience=4), max_epochs=7)
    assert text == "None"
    assert not (tmp_path / "version_0/checkpoints/before_failure.ckpt").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Breaks(pl.Callback):
        """After a step whose losses and gradients were fine."""

        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 4:
                with torch.no_grad():
                    next(module.network.parameters()).fill_(math.inf)

    torch.manual_seed(0)
    module = DensePredictor(UNetEncoder(widths=(4, 8)), partial(UNetDecoder, widths=(4,)), [Depth()])
    trainer = pl.Trainer(
        accelerator="cpu", logger=RunLogger(tmp_path, version=0), num_sanity_val_steps=0, max_epochs=2,
        callbacks=[Breaks(), LossGuard(), LastCheckpoint(minutes=0)], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"step 3: network\.\S+ is not finite"):
        trainer.fit(module, PatchesDataModule(""))
    assert checkpoint(tmp_path, "last")["global_step"] == 3
    assert all(bool(value.isfinite().all()) for value in checkpoint(tmp_path, "last")["state_dict"].values())


def test_a_device_that_must_not_be_waited_for_is_looked_at_when_the_run_logs(tmp_path, monkeypatch):
    """The way of other devices, followed on the CPU: the module says that it is elsewhere."""
    monkeypatch.setattr(LossGuard, "_looks_at_every_step", lambda self, module: False)
    for batch, looked in ((1, 4), (5, 6)):  # at a step that logs, or before the validation
        text, seen, _ = fit(tmp_path / str(batch), broken=drawn(batch), minutes=5, max_epochs=1, log_every_n_steps=4)
        assert f"Training stopped at step {batch}: " in text
        assert re.search(rf"images: +{', '.join(seen[batch])}\n", text)
        assert len(seen) == looked
        assert "nothing was saved before" in text


class Steps(pl.Callback):
    """What each step lost, and what callbacks are told at the end of the epoch."""

    def __init__(self):
        self.losses = []
        self.told = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer, module):
        self.told.append(float(trainer.callback_metrics["train/loss"]))


def test_what_is_logged_of_a_step_is_its_own_loss_though_few_steps_log(tmp_path):
    steps = Steps()
    module = DensePredictor(UNetEncoder(widths=(4, 8)), partial(UNetDecoder, widths=(4,)), [Depth()])
    trainer = pl.Trainer(
        accelerator="cpu", logger=RunLogger(tmp_path, version=0), callbacks=[steps, LossGuard()], max_epochs=2,
        log_every_n_steps=4, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, PatchesDataModule(""))
    written = {int(row["step"]): float(row["train/loss"]) for row in rows(tmp_path / "version_0") if row["train/loss"]}
    assert written == pytest.approx({step: steps.losses[step] for step in (3, 7, 11)}, rel=1e-5)
    assert steps.told == pytest.approx([steps.losses[5], steps.losses[11]], rel=1e-6)


def history(losses, factor=10):
    found = LossHistory(factor)
    streaks = []
    for loss in losses:
        found.add(loss)
        streaks.append(found.streak)
    return max(streaks)


@pytest.mark.parametrize(
    ("losses", "longest"),
    [
        ([3.0] * 30 + [40.0] * 25, 25),
        ([1e6] + [3.0] * 60 + [40.0] * 25, 25),  # a wild first step
        ([3.0 * 1.01**step for step in range(1000)], 770),  # grows slowly: the usual does not follow
        ([3.0 * 0.97**step for step in range(200)] + [2.0] * 30, 0),  # forgets, and is no worse than at first
        ([3.0, 90.0] * 50, 0),  # noise: the median of these is not small
        ([3.0, 3.0, 3.0, 90.0] * 20, 1),
        ([0.0] * 50 + [1.0] * 50, 0),  # no factor compares with nothing
        ([-2.0] * 50 + [5.0] * 50, 0),
        ([3.0 - step / 50 + (1.5 if 60 < step < 90 else 0) for step in range(120)], 0),  # the peak of a cyclic rate
    ],
)
def test_far_above_the_usual_is_a_matter_of_medians(losses, longest):
    assert history(losses) == pytest.approx(longest, abs=35 if longest > 100 else 0)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="factor is 1, patience 20; expected a factor above 1"):
        LossGuard(factor=1)


CONFIG = {
    "seed_everything": 0,
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False,
                "num_sanity_val_steps": 0},
    "model": {
        "class_path": "DensePredictor",
        "init_args": {
            "encoder": {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8]}},
            "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [4]}},
            "tasks": [{"class_path": "Segmentation", "init_args": {"classes": 3}}],
        },
    },
    "data": {"class_path": "tests.test_loss_guard.PatchesDataModule"},
}  # fmt: skip


def test_the_command_ends_with_the_message_and_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["fit", "--config", "config.yaml"]) == 1
    text = capsys.readouterr().err
    assert "densepred: Training stopped at step" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_two_processes_stop_together_and_the_first_one_tells_what_the_other_saw(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    result = subprocess.run(
        [sys.executable, "-m", "densepred", "fit", "--config=config.yaml", "--trainer.devices=2",
         "--trainer.strategy=ddp"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr[-3000:]
    assert len(re.findall("Training stopped at step", result.stderr)) == 1
    assert re.search(r"images: +.*\b11\b", result.stderr)
    assert "Traceback" not in result.stderr
