"""Fine-tuning, optimisers and schedules as a user asks for them: by configuration, from the command line."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from densepred.cli import main
from densepred.module import DensePredictor
from tests.test_cli import ROOMS, rows

OPTIMISERS = {
    "torch.optim.SGD": {"lr": 0.1, "momentum": 0.9},
    "torch.optim.Adagrad": {"lr": 0.1},
    "torch.optim.RMSprop": {"lr": 0.1},
    "torch.optim.Adam": {"lr": 0.1},
    "torch.optim.AdamW": {"lr": 0.1, "weight_decay": 0.05},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = deepcopy(ROOMS)
    plain["trainer"] |= {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    plain["model"]["init_args"]["tasks"] = [{"class_path": "Segmentation", "init_args": {"classes": 11}}]
    del plain["model"]["init_args"]["lr_scheduler"]
    path = tmp_path / "rooms.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def changed(config: Path, **options) -> str:
    plain = yaml.safe_load(config.read_text())
    plain["model"]["init_args"] |= options
    path = config.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(plain))
    return str(path)


def rates(run: str, group: str) -> list[float]:
    return [
        float(value)
        for row in rows(Path(run))
        for key, value in row.items()
        if key.startswith("lr-") and key.endswith(f"/{group}") and value
    ]


@pytest.mark.parametrize("class_path", OPTIMISERS)
def test_every_optimiser_of_the_field_trains_by_configuration(config, class_path):
    optimizer = {"class_path": class_path, "init_args": OPTIMISERS[class_path]}
    assert main(["fit", "--config", changed(config, optimizer=optimizer), "--trainer.max_steps", "2"]) == 0
    losses = [float(row["train/loss"]) for row in rows(Path("runs/version_0")) if row["train/loss"]]
    assert np.isfinite(losses).all()
    assert rates("runs/version_0", "decoder") == [0.1, 0.1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["PolyLR", "--model.lr_scheduler.power", "1"], [0.5, 1, 2 / 3, 1 / 3]),
        (["Cosine"], [0.5, 1, 0.75, 0.25]),
        (["Constant"], [0.5, 1, 1, 1]),
        (["Step", "--model.lr_scheduler.milestones", "[0.5, 0.75]"], [0.5, 1, 0.1, 0.01]),
        (["ExponentialDecay", "--model.lr_scheduler.factor", "0.5"], [0.5, 0.5, 0.25, 0.125]),
    ],
    ids=lambda words: words[0] if isinstance(words[0], str) else "",
)
def test_every_schedule_is_chosen_and_warmed_up_on_the_command_line_over_the_trainers_steps(config, words, expected):
    assert main([
        "fit", "--config", str(config), "--model.lr_scheduler", *words, "--model.lr_scheduler.warmup_steps", "1",
        "--model.encoder_lr_scale", "0.1",
    ]) == 0  # fmt: skip
    assert rates("runs/version_0", "decoder") == pytest.approx(0.1 * np.array(expected))
    assert rates("runs/version_0", "encoder") == pytest.approx(0.01 * np.array(expected))


def test_the_groups_of_a_recipe_and_clipping_are_set_on_the_command_line(config):
    assert main([
        "fit", "--config", str(config), "--model.decoder_lr_scale", "10", "--model.bias_lr_scale", "2",
        "--model.lr_scales", "{encoder.layer4.*: 0.5}", "--model.decay_norms_and_biases", "false",
        "--trainer.gradient_clip_val", "1", "--trainer.max_steps", "1", "--model.reference_batch", "4",
    ]) == 0  # fmt: skip
    # batches of 2, configured for 4
    expected = {"encoder": 0.05, "encoder-norms": 0.05, "encoder-layer4": 0.025, "encoder-layer4-norms": 0.025,
                "decoder": 0.5, "decoder-norms": 0.5, "decoder-biases": 1.0}  # fmt: skip
    found = {name: rates("runs/version_0", name) for name in expected}
    assert found == {name: [pytest.approx(rate)] for name, rate in expected.items()}
    assert sum(key.startswith("lr-") for key in rows(Path("runs/version_0"))[0]) == len(expected)


def test_a_frozen_encoder_is_asked_for_on_the_command_line_and_learns_when_told(config):
    run = ["fit", "--config", str(config), "--trainer.enable_checkpointing", "true", "--trainer.callbacks+=Freeze"]
    assert main([*run, "--trainer.callbacks.stages", "2", "--trainer.callbacks.until_epoch", "1"]) == 0
    last = Path("runs/version_0/checkpoints/last.ckpt")
    before = torch.load(last, weights_only=True)["state_dict"]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    after = torch.load(last, weights_only=True)["state_dict"]
    counts = [[int(state[f"network.encoder.{part}.num_batches_tracked"]) for part in ("bn1", "layer2.0.bn1")]
              for state in (before, after)]  # fmt: skip
    assert counts == [[0, 4], [4, 8]]
    assert not torch.equal(before["network.encoder.conv1.weight"], after["network.encoder.conv1.weight"])


def test_each_stage_of_an_fcn_starts_from_the_run_before_it_by_three_commands(config, capsys):
    fcn = ["fit", "--config", str(config), "--trainer.enable_checkpointing", "true", "--trainer.max_steps", "1",
           "--model.decoder", "FCNDecoder"]  # fmt: skip
    assert main([*fcn, "--model.decoder.finest_stride", "32", "--trainer.default_root_dir", "runs/32"]) == 0
    for finest, before in (("16", "32"), ("8", "16")):
        start = f"runs/{before}/version_0/checkpoints/last.ckpt"
        capsys.readouterr()
        assert main([
            *fcn, "--model.decoder.finest_stride", finest, "--model.init_from", start, "--model.optimizer.lr", "0",
            "--trainer.default_root_dir", f"runs/{finest}",
        ]) == 0  # fmt: skip
        assert "missing in the file, left as initialised (2):" in capsys.readouterr().out
        old, new = (
            torch.load(f"runs/{stride}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for stride in (before, finest)
        )
        learned = [key for key in old if key in new and key.endswith("weight")]
        assert len(learned) == sum(key.endswith("weight") for key in old)
        assert all(torch.equal(old[key], new[key]) for key in learned)
    module = DensePredictor.load_from_checkpoint("runs/8/version_0/checkpoints/last.ckpt")
    assert module.hparams["decoder"]["init_args"]["finest_stride"] == 8


def test_the_largest_batch_is_found_and_the_schedule_and_rate_are_of_that_batch(config, capsys):
    path = changed(config, lr_scheduler={"class_path": "PolyLR", "init_args": {"power": 1.0}}, reference_batch=8)
    assert main([
        "fit", "--config", path, "--data.train", "11", "--trainer.max_epochs", "2",
        "--trainer.callbacks+=LargestBatch", "--trainer.callbacks.steps", "1", "--trainer.callbacks.most", "4",
    ]) == 0  # fmt: skip
    assert "batch size 4: the largest that fits of 2, 4" in capsys.readouterr().out
    # 11 images make 2 batches of 4 an epoch
    assert rates("runs/version_0", "decoder") == pytest.approx(0.05 * (1 - np.arange(4) / 4))
    losses = [row["train/loss"] for row in rows(Path("runs/version_0")) if row["train/loss"]]
    assert len(losses) == 4


def test_the_search_for_a_batch_stops_at_the_training_set(config, capsys):
    assert main([
        "fit", "--config", str(config), "--data.train", "7", "--trainer.callbacks+=LargestBatch",
        "--trainer.callbacks.steps", "1", "--trainer.max_steps", "1",
    ]) == 0  # fmt: skip
    assert "batch size 4: the largest that fits of 2, 4" in capsys.readouterr().out


TWO_PROCESSES = """
import sys
from functools import partial
import torch
from tests.test_freeze import Freeze, module
from tests.test_module import loader, trainer

network = module()
run = trainer(sys.argv[1], accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, enable_checkpointing=False,
              callbacks=[Freeze(stages=3, until_epoch=1)])
torch.save(network.state_dict(), f"{sys.argv[1]}/start.pt")
run.fit(network, loader(batch_size=1))
torch.save((network.state_dict(), network.network.encoder.conv1.weight.grad), f"{sys.argv[1]}/{run.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_agree_before_and_after_unfreezing(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parents[1]
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    start = torch.load(tmp_path / "start.pt")
    (first, gradient), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(gradient, other, rtol=0, atol=0)  # the mean of both
    weights = [key for key in first if key.endswith(("weight", "bias"))]
    assert all(torch.equal(first[key], second[key]) for key in weights)
    assert not torch.equal(start["network.encoder.conv1.weight"], first["network.encoder.conv1.weight"])
