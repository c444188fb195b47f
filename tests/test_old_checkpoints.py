"""Checkpoints that earlier versions wrote: they load, predict what they predicted, are measured alike and continue.

`data/unet_0.1.0.ckpt` is the best checkpoint of two epochs on Rooms (a U-Net of 13 615 parameters with labels, depth
and normals, `densepred fit` at ec8bf5f, of the first version); `data/unet_0.1.0.npz` holds an image and what that
version predicted for it, `data/unet_0.1.0.json` what its `densepred test` measured. They are never written again: what
a new version cannot read any more needs a migration, or a file of its own beside these.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from densepred import __version__
from densepred.cli import main
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.inference.predictor import Predictor
from densepred.module import DensePredictor
from densepred.resume import checkpoint_config, read_checkpoint
from densepred.tasks.depth import Depth

DATA = Path(__file__).parent / "data"
CHECKPOINTS = sorted(DATA.glob("*.ckpt"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(params=CHECKPOINTS, ids=lambda path: path.stem)
def old(request, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(request.param, tmp_path))


def then(old: Path) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{old.stem}.npz") as kept:
        return dict(kept)


def assert_predicted_as_then(values: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> None:
    assert set(values) == set(kept) - {"image"}
    assert (values["segmentation"] == kept["segmentation"]).mean() >= 0.999  # other processors round otherwise
    np.testing.assert_allclose(values["depth"], kept["depth"], rtol=1e-4)
    np.testing.assert_allclose(values["normals"], kept["normals"], atol=1e-4)


def test_a_small_one_is_kept():
    assert CHECKPOINTS
    assert all(path.stat().st_size < 300_000 for path in DATA.iterdir())


def test_the_module_is_rebuilt_and_predicts_what_it_predicted(old):
    kept = then(old)
    module = DensePredictor.load_from_checkpoint(old).eval()
    with torch.inference_mode():
        found = module(torch.from_numpy(kept["image"])[None])
    assert_predicted_as_then({name: value[0].numpy() for name, value in found.items()}, kept)


def test_the_predictor_loads_it_and_predicts_what_it_predicted(old):
    kept = then(old)
    found = Predictor.load(old, device="cpu", as_trained=False)(torch.from_numpy(kept["image"]))
    assert_predicted_as_then({name: value.numpy() for name, value in found.values.items()}, kept)


@pytest.mark.slow
def test_densepred_test_measures_what_it_measured(old):
    assert main(["test", "--ckpt_path", str(old), *QUIET]) == 0
    (written,) = Path("runs").rglob("metrics.json")
    tasks = json.loads(written.read_text())["tasks"]
    measured = {f"{task}/{name}": value for task in tasks for name, value in tasks[task]["metrics"].items()}
    expected = json.loads((DATA / f"{old.stem}.json").read_text())  # four decimals, as printed
    assert {key: measured[key] for key in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_its_training_goes_on(old):
    options = ["--trainer.max_epochs=3", "--trainer.logger=false", "--data.train=8", "--data.val=2", *QUIET]
    assert main(["fit", "--ckpt_path", str(old), *options]) == 0
    (last,) = Path("runs").rglob("last.ckpt")
    assert read_checkpoint(last)["epoch"] == 2


def test_a_checkpoint_says_which_version_wrote_it(tmp_path):
    module = DensePredictor(UNetEncoder(widths=(2, 2)), PointwiseDecoder, [Depth()])
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, RoomsDataModule(size=(48, 64), train=2, val=2, batch_size=2, num_workers=0))
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    assert read_checkpoint(tmp_path / "new.ckpt")["densepred_version"] == __version__


def test_the_configuration_of_an_old_one_is_found(old):
    assert checkpoint_config(old)["model"]["class_path"].rpartition(".")[2] == "DensePredictor"
