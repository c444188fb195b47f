"""The notebooks, run from top to bottom on tiny data."""

import base64
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import fakes

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_spec = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
execute = _module.execute


@pytest.fixture
def in_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, **parameters) -> dict:
    return execute(json.loads((NOTEBOOKS / name).read_text()), parameters)


def pictures(notebook: dict) -> list[np.ndarray]:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def printed(notebook: dict) -> str:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def degrees(notebook: dict, name: str) -> float:
    (line,) = [line for line in printed(notebook).splitlines() if line.startswith(f"{name}:")]
    return float(line.split()[1])


def check_pictures(notebook: dict, count: int) -> None:
    shown = pictures(notebook)
    assert len(shown) == count
    assert all(picture.std() > 5 for picture in shown)  # none is one grey


@pytest.mark.slow
def test_quickstart_trains_saves_and_predicts(in_folder):
    done = run("01_quickstart.ipynb", scenes=8, epochs=1, size=(64, 96))
    check_pictures(done, 2)
    assert "pixel accuracy" in printed(done)


@pytest.mark.slow
def test_fine_tuning_on_voc_starts_near_the_logarithm_of_its_classes(in_folder):
    root = fakes.write_voc(in_folder, train=4, val=2)
    done = run("02_fine_tuning_voc.ipynb", root=str(root), weights=None, images=None, steps=2, crop=64, batch_size=2)
    check_pictures(done, 2)
    assert "mIoU" in printed(done)
    (line,) = [line for line in printed(done).splitlines() if "untrained" in line]
    assert abs(float(line.split()[-1]) - np.log(21)) < 1


def test_depth_and_normals_shows_that_transforms_and_normals_commute(in_folder):
    done = run("03_depth_and_normals.ipynb", size=(120, 160))
    check_pictures(done, 5)
    assert max(degrees(done, name) for name in ("flip", "zoom", "roll")) < 0.5
    (wrong,) = [line for line in printed(done).splitlines() if line.startswith("mirrored like a picture")]
    assert float(wrong.split()[4]) > 10


@pytest.mark.slow
def test_a_decoder_written_in_a_notebook_trains(in_folder):
    done = run("04_writing_a_decoder.ipynb", scenes=4, epochs=1, size=(64, 64))
    check_pictures(done, 1)
    assert "none: all are reached" in printed(done)
    assert "its own: True" in printed(done)


@pytest.mark.slow
def test_a_run_is_trained_and_read(in_folder):
    small = ["--trainer.max_epochs", "2", "--data.train", "4", "--data.val", "2", "--data.size", "[64, 96]",
             "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu"]  # fmt: skip
    done = run("05_reading_a_run.ipynb", options=small)
    check_pictures(done, 3)
    curves = pictures(done)[0]
    for colour in ((31, 119, 180), (214, 39, 40)):  # more than the few pixels of its name in the legend
        assert (curves == colour).all(-1)[:, : curves.shape[1] - 160].sum() > 50
    assert list(in_folder.glob("runs/reading/version_*/report.html"))


@pytest.mark.slow
def test_ray_distances_are_drawn_learned_and_written_as_points(in_folder):
    done = run("07_drdf.ipynb", scenes=4, steps=2, size=(48, 64), scene=0)
    check_pictures(done, 2)
    (line,) = [line for line in printed(done).splitlines() if line.startswith("decoded")]
    assert [float(number) for number in line[len("decoded: [") :].split(",")[:2]] == pytest.approx([2, 5], abs=0.03)
    (line,) = [line for line in printed(done).splitlines() if line.startswith("the true depth map")]
    assert line.endswith("of hidden surfaces 0.000")


@pytest.mark.slow
def test_the_crf_lesson_refines_pictures_and_learns_weights(in_folder):
    done = run("06_crf.ipynb", size=(64, 96), scenes=2, steps=2)
    check_pictures(done, 2)
    (start,) = [line for line in printed(done).splitlines() if line.startswith("scores as they are")]
    (none,) = [line for line in printed(done).splitlines() if line.startswith(" 0 iterations")]
    assert start.split()[-1] == none.split()[-1]
    assert "held-out loss" in printed(done)


def test_a_parameter_that_a_notebook_does_not_have_is_refused(in_folder):
    with pytest.raises(KeyError, match="speed"):
        run("03_depth_and_normals.ipynb", speed=3)


def test_a_failing_cell_is_named():
    cell = {"cell_type": "code", "metadata": {}, "source": ["1 / 0"]}
    with pytest.raises(RuntimeError, match=r"cell 0 failed.*ZeroDivisionError"):
        execute({"cells": [cell]}, {})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_small(path):
    assert path.stat().st_size < 200_000
