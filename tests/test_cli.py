"""The command line, end to end: every experiment, resuming, precedence, errors."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from densepred.cli import main
from densepred.decoders.fcn import TorchvisionFCNDecoder
from densepred.module import DensePredictor
from tests import fakes
from tests.test_torchvision_weights import published, small

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

ROOMS = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False,
        "log_every_n_steps": 1, "num_sanity_val_steps": 0,
    },
    "model": {
        "class_path": "DensePredictor",
        "init_args": {
            "encoder": {"class_path": "ResNetEncoder", "init_args": {"name": "resnet18"}},
            "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [16, 16, 8, 8]}},
            "tasks": [{"class_path": "Segmentation", "init_args": {"classes": 11}}, {"class_path": "Depth"}],
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "lr_scheduler": {"class_path": "PolyLR", "init_args": {"power": 1.0}},
        },
    },
    "data": {
        "class_path": "RoomsDataModule",
        "init_args": {
            "size": [64, 64], "train": 8, "val": 2, "test": 2, "batch_size": 2, "num_workers": 0,
            "train_transforms": [{"class_path": "FlipLeftRight"}],
        },
    },
}  # fmt: skip


class PowerCut(pl.Callback):
    """Ends the third epoch as a power cut would: nothing is saved any more."""

    def on_train_batch_start(self, trainer, *args):
        if trainer.current_epoch == 2:
            raise InterruptedError


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rooms.yaml"
    path.write_text(yaml.safe_dump(ROOMS))
    return path


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def column(run: Path, key: str) -> list[float]:
    return [float(row[key]) for row in rows(run) if row.get(key)]


def rates(run: Path) -> list[float]:
    return [value for key in rows(run)[0] if key.startswith("lr-") for value in column(run, key)][: len(rows(run))]


def test_fit_writes_checkpoints_metrics_panels_and_the_configuration(config, capsys):
    assert main(["fit", "--config", str(config)]) == 0
    run = Path("runs/version_0")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "best-depth.ckpt", "last.ckpt"}
    assert len(column(run, "val/depth/rmse")) == 2
    assert len(column(run, "train/loss")) == 8
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["train"] == 8
    panels = sorted((run / "panels").glob("*.png"))
    assert len(panels) == 2
    printed = capsys.readouterr().out
    assert "constant predictor" in printed
    assert str(panels[-1]) in printed


def test_a_second_run_in_the_same_folder_gets_its_own_version(config):
    for version in range(2):
        assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
        assert len(column(Path(f"runs/version_{version}"), "val/loss")) == 1


def test_the_checkpoint_alone_says_how_to_test_it_and_best_and_last_are_found(config, capsys):
    main(["fit", "--config", str(config)])
    for name in ("best", "best-depth", "last", "runs/version_0/checkpoints/last.ckpt"):
        assert main(["test", "--ckpt_path", name]) == 0
    run = Path("runs/version_0")
    reached = column(run, "test/depth/rmse")
    assert len(reached) == 4
    assert reached[2] == reached[3]
    assert "test" in capsys.readouterr().out


def test_resuming_continues_steps_schedule_optimizer_and_metrics_as_if_never_interrupted(config):
    long = ["--trainer.max_epochs", "3"]
    main(["fit", "--config", str(config), *long])
    # the same run, cut after its second epoch
    with pytest.raises(InterruptedError):
        main([
            "fit", "--config", str(config), *long, "--trainer.default_root_dir", "cut",
            "--trainer.callbacks", "tests.test_cli.PowerCut",
        ])  # fmt: skip
    whole, cut = Path("runs/version_0"), Path("cut/version_0")
    assert torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    main([
        "fit", "--trainer.default_root_dir", "cut", "--ckpt_path", "last", "--trainer.callbacks", "null",
        "--allow", "tests",
    ])  # fmt: skip
    assert not Path("cut/version_1").exists()
    for key in ("train/loss", "val/loss", "val/depth/rmse", "step"):
        assert column(cut, key) == column(whole, key)
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, cut)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 12
    torch.testing.assert_close(ends[1]["state_dict"], ends[0]["state_dict"], rtol=0, atol=0)


def test_the_command_line_beats_the_config_and_the_config_beats_the_checkpoint_learning_rates_included(config):
    main(["fit", "--config", str(config)])  # 8 steps from 0.1 down to 0 over 2 epochs
    last = "runs/version_0/checkpoints/last.ckpt"
    other = yaml.safe_load(yaml.safe_dump(ROOMS))  # other tests start from the same dict
    other["trainer"]["max_epochs"] = 4
    other["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.05
    config.write_text(yaml.safe_dump(other))
    main(["fit", "--config", str(config), "--ckpt_path", last, "--trainer.default_root_dir", "b"])
    main([
        "fit", "--config", str(config), "--ckpt_path", last, "--trainer.default_root_dir", "c",
        "--model.optimizer.lr", "0.01",
    ])  # fmt: skip
    # epoch 3 of 4 starts half way down
    for folder, base in (("b", 0.05), ("c", 0.01)):
        first = [row for row in rows(Path(folder) / "version_0") if row["step"] == "8"]
        shown = [float(value) for row in first for key, value in row.items() if key.startswith("lr-") and value]
        assert shown
        assert shown == pytest.approx([base / 2] * len(shown))


def test_a_published_segmentation_network_is_fine_tuned_and_its_file_is_not_needed_again(config, caplog):
    torch.save(published(small(auxiliary=TorchvisionFCNDecoder)), "fcn.pth")
    main([
        "fit", "--config", str(config), "--trainer.max_steps", "1", "--model.weights", "fcn.pth",
        "--model.encoder.output_stride", "8", "--model.optimizer.lr", "0",
        "--model.decoder", "TorchvisionFCNDecoder", "--model.auxiliary", "TorchvisionFCNDecoder",
    ])  # fmt: skip
    assert "classifier.4.bias    21 in the file, 11 here: other classes" in caplog.text
    file, last = torch.load("fcn.pth"), torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    for ours, theirs in (
        ("encoder.layer4.0.conv1", "backbone.layer4.0.conv1"),
        ("decoders.segmentation.hidden.0", "classifier.0"),
        ("auxiliary_decoders.0.segmentation.hidden.0", "aux_classifier.0"),
    ):
        assert torch.equal(last["state_dict"][f"network.{ours}.weight"], file[f"{theirs}.weight"])
    # without training it can be scored too
    assert main([
        "test", "--config", str(config), "--model.weights", "fcn.pth", "--model.encoder.output_stride", "8",
        "--model.decoder", "TorchvisionFCNDecoder", "--model.auxiliary", "TorchvisionFCNDecoder",
    ]) == 0  # fmt: skip
    Path("fcn.pth").unlink()
    assert main(["test", "--ckpt_path", "runs/version_0/checkpoints/last.ckpt"]) == 0
    assert DensePredictor.load_from_checkpoint("runs/version_0/checkpoints/last.ckpt").hparams["weights"] is None


def test_a_run_killed_in_mid_fit_leaves_a_loadable_checkpoint_that_resumes(config):
    command = [sys.executable, "-m", "densepred", "fit", "--config", str(config), "--trainer.max_epochs", "200"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    last = Path("runs/version_0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = torch.load(last, weights_only=True)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", str(stopped["epoch"] + 2)]) == 0
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == stopped["global_step"] + 4
    steps = [int(row["step"]) for row in rows(Path("runs/version_0")) if row["train/loss"]]
    assert steps == list(range(resumed["global_step"]))


def test_stages_chain_from_the_command_line_and_the_last_needs_no_earlier_file(config):
    command = ["fit", "--config", str(config), "--trainer.max_epochs", "1", "--model.decoder", "FCNDecoder"]
    assert main([*command, "--model.decoder.finest_stride", "32", "--trainer.default_root_dir", "32"]) == 0
    for before, stride in (("32", "16"), ("16", "8")):
        assert main([
            *command, "--model.decoder.finest_stride", stride, "--trainer.default_root_dir", stride,
            "--model.init_from", f"{before}/version_0/checkpoints/last.ckpt", "--model.optimizer.lr", "0",
        ]) == 0  # fmt: skip
    states = [torch.load(f"{stride}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
              for stride in (32, 16, 8)]  # fmt: skip
    trained = [key for key in states[0] if key.endswith(("weight", "bias"))]
    assert trained
    assert all(torch.equal(state[key], states[0][key]) for state in states[1:] for key in trained)
    assert [len(states[i + 1].keys() - states[i].keys()) for i in range(2)] == [4, 4]  # weight and bias for two tasks
    Path("16/version_0/checkpoints/last.ckpt").unlink()
    assert main(["test", "--ckpt_path", "8/version_0/checkpoints/last.ckpt"]) == 0


@pytest.mark.parametrize(
    ("stage", "before"), [("fcn16s", "fcn32s"), ("fcn8s_staged", "fcn16s"), ("crfrnn_fcn8s", "fcn8s_staged")]
)
def test_a_staged_experiment_starts_where_the_one_before_ends(stage, before):
    later, earlier = (yaml.safe_load((EXPERIMENTS / f"voc_{name}_vgg16.yaml").read_text()) for name in (stage, before))
    assert later["model"]["init_args"]["init_from"].startswith(earlier["trainer"]["default_root_dir"] + "/version_0/")
    assert later["data"] == earlier["data"]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_experiment_trains_a_few_steps_on_tiny_data(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 1, "accelerator": "cpu",
             "precision": "32-true", "num_sanity_val_steps": 0, "enable_progress_bar": False,
             "enable_model_summary": False}  # fmt: skip
    arguments = [f"--trainer.{key}={value}" for key, value in small.items()]
    if "weights: imagenet" in path.read_text():
        arguments += ["--model.encoder.weights=null"]
    if "init_from" in path.read_text():
        arguments += ["--model.init_from=null"]
    if "priors" in path.read_text():  # networks that are there once their own experiments have run
        alone = tmp_path / path.name
        alone.write_text("".join(line for line in path.open() if "weights: runs/" not in line))
        path = alone
    if "deconvnet" in path.stem:  # none to be downloaded, and 220 million weights less to be written
        arguments += ["--model.decoder.weights=null", "--model.decoder.bottleneck=64"]
    if "eigen_vgg16" in path.stem:  # 200 million weights less
        arguments += ["--model.encoder.hidden=64"]
    if "deeplabv2" in path.stem:  # batch norm that rests at the statistics of random weights lets 101 layers explode
        arguments += ["--trainer.callbacks=null"]
    if "dilation8" in path.stem:  # its margin makes 436 pixels of a crop of 64
        arguments += ["--model.encoder.name=vgg11", "--data.batch_size=1"]
    if "fabric" in path.stem:
        arguments += ["--model.encoder.scales=4", "--model.encoder.channels=8"]
    if "warmup_steps" in path.read_text():
        arguments += ["--model.lr_scheduler.warmup_steps=1"]
    if "largefov" in path.stem:
        arguments += ["--model.decoder.weights=null"]
    if "rooms" not in path.stem:
        crop = [{"class_path": "ScaleCrop", "init_args": {"size": [64, 64]}}, {"class_path": "FlipLeftRight"}]
        arguments += [f"--data.train_transforms={crop}"]
    if "voc" in path.stem:
        arguments += [f"--data.root={fakes.write_voc(tmp_path)}"]
    if "camvid" in path.stem:
        arguments += [f"--data.root={fakes.write_camvid(tmp_path)}"]
    if "isbi" in path.stem:
        arguments += [f"--data.root={fakes.write_isbi(tmp_path)}", "--data.val_slices=2"]
    if "nyu" in path.stem:
        arguments += [f"--data.root={fakes.write_nyu(tmp_path / 'nyu', train=6, size=(480, 640))}"]
    if "folder" in path.stem:
        arguments += [f"--data.root={fakes.write_folder(tmp_path / 'mine', classes=2)}", "--data.val_share=0.4"]
    data = ["--data.batch_size=2", "--data.eval_batch_size=1", "--data.num_workers=0"]
    assert main(["fit", "--config", str(path), *data, *arguments]) == 0
    assert list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))


def test_a_users_own_decoder_in_the_working_folder_is_found(config):
    Path("mine.py").write_text(
        "from torch import nn\nfrom densepred.decoders.base import Decoder\n\n\n"
        "class MyDecoder(Decoder):\n"
        "    def __init__(self, spec, out_channels: int, width: int = 8) -> None:\n"
        "        super().__init__(spec, out_channels)\n"
        "        self.score = nn.Conv2d(spec.channels[-1], out_channels, 1)\n\n"
        "    def forward(self, features):\n"
        "        return self.score(features[-1])\n"
    )
    command = [sys.executable, "-m", "densepred", "fit", "--config", str(config), "--trainer.max_epochs", "1"]
    done = subprocess.run([*command, "--model.decoder", "mine.MyDecoder", "--model.decoder.width", "4"], check=False,
                          capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main(["test", "--ckpt_path", "last", "--allow", "mine"]) == 0


def test_a_missing_data_folder_ends_in_one_message_without_a_traceback(config, capsys):
    status = main(["fit", "--config", str(EXPERIMENTS / "voc_unet_resnet34.yaml"), "--model.encoder.weights=null"])
    message = capsys.readouterr().err
    assert status == 1
    assert "VOCdevkit/VOC2012" in message
    assert "prepare voc" in message
    assert "Traceback" not in message


def test_help_and_version_answer(capsys):
    for word in ("--help", "--version"):
        with pytest.raises(SystemExit) as stop:
            main([word])
        assert stop.value.code == 0
    assert "prepare" in capsys.readouterr().out
