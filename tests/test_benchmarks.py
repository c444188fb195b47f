"""The benchmarks compare what they say they compare; what they found is held, with room for a busy machine."""

import importlib
import runpy
import statistics
from pathlib import Path

import cv2
import pytest
import torch

LOADING_FILE = Path(__file__).parents[1] / "experiments" / "benchmarks" / "loading.py"
LOADING = runpy.run_path(str(LOADING_FILE))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.mark.parametrize("load", LOADING["CONTENDERS"], ids=lambda load: load.__name__)
def test_every_way_of_loading_gives_crops_of_the_same_size(real_data, load):
    batch = load(real_data / "voc2012")([0, 1])
    image, labels = (list(batch.values()) if isinstance(batch, dict) else batch)[:2]
    assert image.shape == (2, 3, 480, 480)
    assert labels.shape == (2, 480, 480)
    assert (image.dtype == torch.uint8) == (load.__name__ in ("ours", "ours_decoded", "albumentations_uint8"))
    assert labels.max() <= 255


def test_loading_is_several_times_as_fast_as_torchvisions_reference(real_data, one_thread):
    rates = LOADING["measure"](real_data / "voc2012", rounds=3, images=24)
    # measured: 4.4, 5.1 and 1.7
    for name, least in {"torchvision_pil": 3, "torchvision_tensor": 3, "albumentations": 1.2}.items():
        assert statistics.median(LOADING["leads"](rates, name)) > least


def test_the_ceiling_of_a_stride_is_what_its_upsampling_can_draw():
    overfit = runpy.run_path(str(LOADING_FILE.with_name("overfit.py")))
    ceiling, image = overfit["ceiling_of"], torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    halves = torch.zeros(1, 32, 32, dtype=torch.uint8)
    halves[..., 16:] = 3
    assert ceiling(torch.Size((1, 11, 32, 32)), image, halves, (32, 32)) == 1
    assert ceiling(torch.Size((1, 11, 4, 4)), image, halves, (32, 32)) == 1  # an edge between two cells
    columns = (torch.arange(32) % 2 * 3).to(torch.uint8).expand(1, 32, 32)
    # between two cells a linear function changes its sign once at most
    assert ceiling(torch.Size((1, 11, 4, 4)), image, columns, (32, 32)) < 0.7


@pytest.mark.slow
def test_the_step_of_fit_is_compared_with_the_bare_loop_of_the_same_network(one_thread):
    overhead = importlib.import_module("experiments.benchmarks.step_overhead")
    measured = overhead.measure(rounds=1, steps=2)
    assert {name: len(seconds) for name, seconds in measured.items()} == {"bare": 1, "lightning": 1, "ours": 1}
    # measured on a machine at rest: 3 % and less; here two steps of each, on a machine that may be busy
    assert overhead.overheads(measured, "ours")[0] < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from /proc")
def test_the_large_image_benchmark_measures_a_process_of_its_own():
    large = importlib.import_module("experiments.benchmarks.large_image")
    peak, rate, seconds = large.measure((300, 600), tile=256)
    assert 1 < peak < 1000
    assert rate == pytest.approx(0.18 / seconds, rel=1e-3)
