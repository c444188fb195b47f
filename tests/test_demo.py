"""The page of `densepred demo`: asked as a browser asks it, and looked at in one where there is one."""

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepred.cli import main
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError, DataError
from densepred.inference import page
from densepred.inference.evidence import NetworkEvidence
from densepred.inference.predictor import Predictor
from densepred.inference.rescaled import Rescaled
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    tasks = [Segmentation(["wall", "floor"]), Depth(), Normals()]
    channels = {task.name: task.out_channels for task in tasks}
    return Predictor(NetworkEvidence(DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, channels).eval(), tasks))


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


def test_without_a_network_it_says_how_to_get_one(capsys):
    assert main(["demo"]) == 1
    assert "densepred fit --config experiments/rooms_multitask.yaml" in capsys.readouterr().err


def test_every_task_is_shown_alone_and_over_the_photo_at_its_size(predictor, photo):
    found = page.asked(predictor, photo, None, False)
    pictures = page.shown(found, 0.0)
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 6
    original = np.asarray(Image.open(photo))
    assert all((picture == original).all() for picture in pictures[1::2])  # overlays of no opacity


def test_the_legend_gives_each_class_its_colour_and_share(predictor, photo):
    found = page.asked(predictor, photo, None, False)
    told = page.told(found)
    for index, name in enumerate(("wall", "floor")):
        where = (found["segmentation"] == index).numpy()
        if where.mean() < page.LEGEND_SHARE:
            assert name not in told
            continue
        red, green, blue = found.picture("segmentation").permute(1, 2, 0).numpy()[where][0]
        assert f"rgb({red},{green},{blue})" in told
        assert f"{name} {where.mean():.1%}" in told


def test_the_mirror_image_counts_when_asked_for(predictor, photo):
    mirrored = photo.with_name("mirrored.png")
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    first, second = (page.asked(predictor, path, None, True)["depth"] for path in (photo, mirrored))
    np.testing.assert_allclose(first.numpy(), second.flip(-1).numpy(), rtol=1e-4)


def test_a_shorter_side_takes_the_place_of_the_trained_one(predictor, photo):
    trained = Predictor(Rescaled(predictor.evidence, 40), notes=("seen at 40",))
    as_is = page.asked(trained, photo, 48, False)  # the photo's own
    assert as_is.notes == ()
    np.testing.assert_allclose(as_is["depth"].numpy(), predictor(photo)["depth"].numpy(), rtol=1e-4)
    small = page.asked(trained, photo, None, False)
    assert small.notes == ("seen at 40",)
    assert not np.allclose(small["depth"].numpy(), as_is["depth"].numpy(), rtol=1e-3)


def test_a_bad_file_and_a_bad_size_are_refused(predictor, photo):
    photo.with_name("bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        page.asked(predictor, photo.with_name("bad.png"), None, False)
    with pytest.raises(ConfigurationError, match="at least 32"):
        page.asked(predictor, photo, 5, False)


def test_without_gradio_it_says_what_to_install(predictor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'densepred\[demo\]'"):
        page.build(predictor, "test")


@pytest.fixture(scope="module")
def address(predictor):
    pytest.importorskip("gradio", reason="pip install 'densepred[demo]'")
    built = page.build(predictor, "test")
    _, local, _ = built.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    yield local
    built.close()
    assert threading.main_thread().is_alive()


@pytest.mark.slow
def test_the_page_answers_and_tells_errors(address, photo):
    client = pytest.importorskip("gradio_client")
    asking = client.Client(address, verbose=False)
    *pictures, told = asking.predict(client.handle_file(str(photo)), 0.5, None, True, api_name="/predict")
    assert len(pictures) == 7
    assert Image.open(pictures[0]).size == (64, 48)
    assert "depth:" in told
    bad = photo.with_name("bad.png")
    bad.write_bytes(b"no picture")
    with pytest.raises(Exception, match=r"bad\.png"):
        asking.predict(client.handle_file(str(bad)), 0.5, None, True, api_name="/predict")
    with pytest.raises(Exception, match="at least 32"):
        asking.predict(client.handle_file(str(photo)), 0.5, 5, False, api_name="/predict")


@pytest.mark.slow
def test_a_browser_shows_the_page(address):
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", "--dump-dom"]
    shown = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=90).stdout
    for words in ("opacity of the overlays", "segmentation over the photo", "normals", "Predict"):
        assert words in shown
