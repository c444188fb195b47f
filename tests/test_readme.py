"""The README's Python, run as it stands on tiny data."""

import re
import sys
from pathlib import Path

import pytest

from densepred.cli import main
from tests import fakes

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(words: str) -> str:
    (found,) = [text for text in BLOCKS if words in text]
    return found


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.splitlines()[0])
def test_every_block_is_python(text: str):
    compile(text, "README.md", "exec")


def test_the_run_without_yaml_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = block("pl.Trainer(")
    for whole, small in (
        (r"train=\d+", "train=8, val=2, num_workers=0"),
        (r"max_epochs=\d+", "fast_dev_run=True, accelerator='cpu'"),
    ):
        text, count = re.subn(whole, small, text)
        assert count == 1
    exec(text, {})


def test_a_data_set_of_ones_own_trains_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "photos", raising=False)
    Path("photos.py").write_text(block("# photos.py"))
    root = fakes.write_nyu(tmp_path / "my_photos", size=(64, 64))
    (root / "test.txt").rename(root / "val.txt")
    config = Path(__file__).parents[1] / "experiments" / "nyu_depth_resnet50.yaml"
    small = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.fast_dev_run=true"]
    crop = "[{class_path: ScaleCrop, init_args: {size: [64, 64]}}]"
    data = ["--data=photos.PhotosDataModule", f"--data.root={root}", "--data.batch_size=2"]
    model = [
        "--model.encoder.weights=null",
        "--model.encoder.name=resnet18",
        "--model.tasks=[{class_path: Depth, init_args: {protocol: none}}]",
    ]
    arguments = ["fit", "--config", str(config), *small, *model, *data, f"--data.train_transforms={crop}"]
    assert main(arguments) == 0
