"""Two processes see what one would: every sample once, the same numbers, and an end and a beginning together."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from densepred.cli import main
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.module import DensePredictor
from densepred.sample import FILLER
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import ROOMS
from tests.test_exact_resume import ORDER, STATES, Interrupt, assert_same, logged

ROOT = Path(__file__).parents[1]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
LENGTHS = (1, 2, 3, 5, 8)


class Notes(pl.Callback):
    """Writes down, a line a batch, what each process was given."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._note(trainer, "train", batch)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._note(trainer, "val", batch)

    def _note(self, trainer, stage, batch):
        with open(os.environ["DENSEPRED_TEST_NOTES"], "a") as file:
            file.write(json.dumps([stage, trainer.global_step, trainer.global_rank, batch["name"]]) + "\n")


class InterruptFirst(Interrupt):
    """The signal reaches the first process alone, as `kill` would have it."""

    def _send(self, stage, count):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            super()._send(stage, count)


def evaluate(length, **options):
    """All validation metrics of a network that is the same every time."""
    torch.manual_seed(0)
    tasks = [Segmentation(11), Depth(), Normals()]
    module = DensePredictor(UNetEncoder(widths=(4, 8)), PointwiseDecoder, tasks)
    data = RoomsDataModule(size=(40, 40), val=length, missing=0.2, void=0.1, eval_batch_size=2, num_workers=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, callbacks=[Notes()], **quiet, **options)
    return trainer.validate(module, data, verbose=False)[0]


def environment(folder, **more):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DENSEPRED_TEST_NOTES": f"{folder}/notes",
        **more,
    }


def notes(folder, stage):
    lines = [json.loads(line) for line in (folder / "notes").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == stage]


def test_sets_of_any_length_are_evaluated_once_and_measured_as_by_one_process(tmp_path, monkeypatch):
    result = subprocess.run(
        [sys.executable, "-m", "tests.test_distributed"], cwd=ROOT, env=environment(tmp_path), capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    named = [name for _, _, names in notes(tmp_path, "val") for name in names if name != FILLER]
    assert sorted(named) == sorted(f"rooms/val/{index:06d}" for length in LENGTHS for index in range(length))
    monkeypatch.setenv("DENSEPRED_TEST_NOTES", os.devnull)
    for length in LENGTHS:
        alone = evaluate(length, devices=1)
        assert {"val/loss", "val/segmentation/miou", "val/depth/rmse", "val/normals/median_angle"} <= alone.keys()
        assert measured[str(length)] == pytest.approx(alone, rel=1e-6, abs=1e-6, nan_ok=True)


def write_config(folder):
    """Rooms with workers and dropout; 13 for training: two processes with batches of 2 leave one out."""
    config = json.loads(json.dumps(ROOMS))
    config["model"]["init_args"] |= {
        "encoder": {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8], "dropout": 0.3}},
        "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [4]}},
    }
    config["data"]["init_args"] |= {"train": 13, "val": 3, "num_workers": 1}
    config["trainer"] |= {"callbacks": [{"class_path": "tests.test_distributed.Notes"},
                                        {"class_path": "tests.test_distributed.InterruptFirst"}]}  # fmt: skip
    path = folder / "rooms.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def densepred(folder, *arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "densepred", *arguments], cwd=folder, env=environment(folder, **more),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.timeout(900)  # several runs of two processes each: slow on a busy machine
@pytest.mark.slow
def test_two_processes_train_on_the_order_of_one_end_together_and_continue_exactly(tmp_path, monkeypatch):
    for run in ("whole", "cut"):
        (tmp_path / run).mkdir()
    config = str(write_config(tmp_path))
    whole = densepred(tmp_path / "whole", "fit", "--config", config, *TWO)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert [path.name for path in (tmp_path / "whole" / "runs").iterdir()] == ["version_0"]

    # one process with the batch of both is given, step by step, the same samples
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENSEPRED_TEST_NOTES", str(tmp_path / "notes"))
    assert main(["fit", "--config", config, "--data.batch_size=4", "--trainer.limit_val_batches=0"]) == 0
    together: dict[int, set[str]] = {}
    for step, _, names in notes(tmp_path / "whole", "train"):
        together.setdefault(step, set()).update(names)
    assert together == {step: set(names) for step, _, names in notes(tmp_path, "train")}
    assert len(together) == 6

    cut = densepred(tmp_path / "cut", "fit", "--config", config, *TWO, **{ORDER: "TERM train 2"})
    assert cut.returncode == 128 + signal.SIGTERM, cut.stderr[-3000:]
    assert re.search(
        r"ended by SIGTERM after step 2\. Continue with: densepred fit --ckpt_path \S*last.ckpt", cut.stderr
    )
    rest = densepred(tmp_path / "cut", "fit", "--ckpt_path", "last", "--allow", "tests")
    assert rest.returncode == 0, rest.stderr[-3000:]
    ends = [
        torch.load(tmp_path / run / "runs/version_0/checkpoints/last.ckpt", weights_only=True)
        for run in ("whole", "cut")
    ]
    for key in STATES:
        if key in ends[0]:
            assert_same(ends[1][key], ends[0][key], key)
    assert len(ends[0]["random_states"]) == 2
    trained = logged(tmp_path / "whole/runs/version_0")
    assert sorted(logged(tmp_path / "cut/runs/version_0")) == sorted(trained)

    # what two processes measured at the end is what one measures; its rows follow theirs
    monkeypatch.chdir(tmp_path / "whole")
    assert main(["validate", "--ckpt_path", "last", "--allow", "tests"]) == 0
    measured = {key: float(value) for step, key, value in trained if step == 5 and key.startswith("val/")}
    alone = {key: float(value) for _, key, value in logged(Path("runs/version_0"))[len(trained) :]}
    assert {key: alone[key] for key in measured} == pytest.approx(measured, rel=1e-6, abs=1e-6)
    assert "val/loss" in measured


if __name__ == "__main__":
    results = {length: evaluate(length, devices=2, strategy="ddp_fork") for length in LENGTHS}
    print(json.dumps(results))
