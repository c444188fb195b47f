"""What is shipped: the wheel and the sdist, built, installed and used outside the checkout."""

import email
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import densepred
from tests.test_cli import ROOMS

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]))"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The project's own files alone, so that nothing ignored in the checkout can slip in or be leant on."""
    folder = tmp_path_factory.mktemp("sources")
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/data", "experiments/results")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def built(kind: str, sources: Path, folder: Path) -> Path:
    """What setuptools builds, without network: with the running environment's, not with a downloaded one."""
    code = BUILD.format(kind=kind)
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=sources, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    return built("wheel", sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    listed = {str(path.relative_to(sources)) for path in (sources / "densepred").rglob("*") if path.is_file()}
    listed = {name for name in listed if "__pycache__" not in name}
    assert held == listed
    assert "densepred/py.typed" in held
    assert about


def test_the_metadata_are_those_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == densepred.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# densepred")
    bounds = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert all(">=" in bound and "<" in bound for bound in bounds)
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])


def test_the_wheel_of_the_sdist_is_the_wheel(wheel, sources, tmp_path):
    archive = built("sdist", sources, tmp_path)
    with tarfile.open(archive) as members:
        members.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = built("wheel", unpacked, tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {e.filename: e.CRC for e in one.infolist() if e.filename.endswith((".py", ".typed", "LICENSE"))} == {
            e.filename: e.CRC for e in other.infolist() if e.filename.endswith((".py", ".typed", "LICENSE"))
        }


def test_what_is_installed_trains_and_predicts_in_an_empty_folder(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_MODE": "offline", "NO_ALBUMENTATIONS_UPDATE": "1"}

    def command(*arguments: str) -> str:
        # isolated from the checkout: the script of the wheel, in a folder that holds nothing
        run = subprocess.run(
            [sys.executable, str(installed / "bin" / "densepred"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    where = [sys.executable, "-c", "import densepred; print(densepred.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(installed)
    assert command("--version").split() == ["densepred", densepred.__version__]
    assert "UNetDecoder" in command("list")
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(ROOMS))
    tiny = ["--trainer.max_epochs=1", "--data.train=2", "--model.encoder=UNetEncoder", "--model.encoder.widths=[4,4,4]"]
    command("fit", "--config", "rooms.yaml", *tiny, "--model.decoder.widths=[4,4]")
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(tmp_path / "photos" / "mine.png")
    command("predict", "--ckpt_path", "last", "--input", "photos", "--output", "out")
    assert Image.open(tmp_path / "out" / "labels" / "mine.png").size == (70, 50)
    assert Image.open(tmp_path / "out" / "depth" / "mine.png").size == (70, 50)


def test_the_version_stands_in_one_place():
    assert importlib.metadata.version("densepred") == densepred.__version__
    assert f'"{densepred.__version__}"' not in (ROOT / "pyproject.toml").read_text()
