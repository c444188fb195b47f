"""Cost grows no faster than it must: of data with the number of files; and the benchmark that measures it."""

import importlib
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from densepred.data.check import check_files
from densepred.data.dataset import DenseDataset
from densepred.data.folder_files import find_files, read_stems
from densepred.data.folder_listing import FolderSamples, FoundFiles
from densepred.data.listing import read_list
from densepred.data.sampler import EpochSampler
from densepred.errors import ConfigurationError, DataError
from densepred.inference.settings import claim

ROOT = Path(__file__).parents[1]


@pytest.fixture
def peak():
    """Bytes at most since the test began, of what Python and NumPy keep."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize(("pattern", "begin", "end"), [("in", "", ""), ("in/m_*", "m_", ""), ("in/*_x.png", "", "_x")])
def test_files_are_found_by_what_a_star_stands_for_in_all_folders(tmp_path, pattern, begin, end):
    made = {}
    for stem, suffix in {"a": ".png", "b.c": ".png", "ü/d e": ".png", "ü/f/g": ".png"}.items():
        inner, _, name = stem.rpartition("/")
        made[stem] = tmp_path / "in" / inner / f"{begin}{name}{end}{suffix}"
        made[stem].parent.mkdir(parents=True, exist_ok=True)
        made[stem].touch()
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / ".hidden.png").touch()
    assert dict(find_files(tmp_path, pattern)) == made


def test_samples_are_what_was_found_whatever_is_missing_and_however_they_are_called():
    images = FoundFiles(Path("root/images"), "", {"a/ü": ".jpg", "b": ".png", "odd \udce4": ".jpg"})
    depth = FoundFiles(Path("root/depth"), "d_", {"b": ".npy", "a/ü": "_x.tif"})
    stems = ["b", "odd \udce4", "a/ü"]
    samples = FolderSamples(stems, {"image": images, "depth": depth})
    assert len(samples) == 3
    assert [sample.name for sample in samples] == stems
    assert samples[0].files == {"image": Path("root/images/b.png"), "depth": Path("root/depth/d_b.npy")}
    assert samples[1].files == {"image": Path("root/images/odd \udce4.jpg")}
    assert samples[-1].files == {"image": Path("root/images/a/ü.jpg"), "depth": Path("root/depth/a/d_ü_x.tif")}
    with pytest.raises(IndexError):
        samples[3]


def test_a_sample_that_waits_costs_its_name_and_a_dozen_bytes():
    stems = [f"scene_{i:06d}" for i in range(10_000)]
    files = FoundFiles(Path("images"), "", dict.fromkeys(stems, ".jpg"))
    samples = FolderSamples(stems, {"image": files, "segmentation": files})
    assert len(pickle.dumps(samples)) < 10_000 * (12 + 8 + 2 + 2) + 2000


class Headers(DenseDataset):
    """A set of as many files as one likes, of which every header is fine."""

    def __len__(self):
        return 20_000

    def read(self, index):
        raise NotImplementedError

    def files(self, index):
        return {"image": Path("a.png")}

    def file_size(self, key, path):
        return (4, 4)


def test_the_check_hands_out_a_few_samples_at_a_time(peak):
    check_files(Headers(), "many", full=False)
    # 20,000 at once take 25 MB
    assert peak() < 10e6


def test_the_order_of_an_epoch_is_no_list_of_pairs(peak):
    sampler = EpochSampler(100_000, seed=3)
    sampler.set_epoch(2)
    drawn = iter(sampler)
    first = next(drawn)
    # the permutation's 8 bytes a sample; as pairs they were above 100
    assert peak() < 100_000 * 20
    expected = np.random.default_rng([3, 2]).permutation(100_000)
    assert first == (2, expected[0])
    sampler.set_epoch(5)
    assert next(drawn) == (2, expected[1])
    assert type(next(drawn)[1]) is int


def test_the_files_to_come_are_looked_at_one_by_one_and_not_at_all_where_a_run_goes_on(tmp_path):
    def planned():
        yield tmp_path / "a.png"
        (tmp_path / "b.png").touch()
        yield tmp_path / "b.png"
        raise AssertionError("one was there")

    with pytest.raises(ConfigurationError, match=r"b\.png is there, but no predict\.json"):
        claim(tmp_path, {}, planned(), overwrite=False)
    claim(tmp_path, {}, planned(), overwrite=True)
    never = iter(planned())
    claim(tmp_path, {}, never, overwrite=False)
    assert next(never) == tmp_path / "a.png"


@pytest.mark.parametrize("read", [read_list, lambda path: read_stems(path, {})])
def test_a_name_that_a_long_list_holds_twice_is_told_at_once(tmp_path, read):
    names = [f"{i:06d}" for i in range(20_000)]
    (tmp_path / "list.txt").write_text("\n".join([*names, names[-1]]))
    start = time.process_time()
    with pytest.raises(DataError, match="lists '019999' twice"):
        read(tmp_path / "list.txt")
    # comparing each with each took several seconds
    assert time.process_time() - start < 1.5


def test_the_exponent_is_that_of_the_power_and_what_cannot_be_measured_is_left_out():
    exponent = importlib.import_module("experiments.benchmarks.growth").exponent
    sizes = np.array([1, 4, 9, 100.0])
    assert exponent(sizes, 7 * sizes**1.5) == pytest.approx(1.5)
    assert exponent([1, 10, 100], [2, 20, float("nan")]) == pytest.approx(1)
    assert np.isnan(exponent([1, 10], [2, float("nan")]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_the_growth_benchmark_prints_every_size_and_draws_a_chart_of_time_and_one_of_memory(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.growth", "--quick", "--parts", "files", "metrics"]
    printed = subprocess.run(
        [*command, "--svg", str(tmp_path / "growth.svg")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [row for row in ("| 100 |", "| 1,000 |", "| 40 |", "| 400 |") if row not in printed] == []
    # a state of integers never grows
    assert re.search(r"exponent \|.*\| 0\.00 \| 0\.00 \| 0\.00 \|$", printed, re.MULTILINE)
    charts = ElementTree.parse(tmp_path / "growth.svg").getroot().findall("{*}svg")
    assert len(charts) == 4
