"""A run that was interrupted anywhere ends with the very weights, counters and rows of one that was not."""

import os
import random
import signal
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging

from densepred.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset
from densepred.data.transforms import FlipLeftRight
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.loggers import RunLogger, drop_rows_after
from densepred.module import DensePredictor
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import rows

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


class Dropout(pl.Callback):
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
        callbacks=[Interrupt(), Dropout(), EMAWeightAveraging(decay=0.5), LastCheckpoint()],
        plugins=[WholeFileCheckpointIO()],
        log_every_n_steps=1,
        enable_progress_bar=False,
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
