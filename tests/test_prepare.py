"""`densepred prepare voc` and `sbd`: published archives, whole or broken, into the folder that densepred reads."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from densepred.data.atomic import whole_file
from densepred.data.prepare import sbd as sbd_files
from densepred.data.prepare import voc as voc_files
from densepred.data.prepare.download import RemoteFile
from densepred.data.voc import PascalVOC
from densepred.errors import DataError
from tests.fakes import voc_palette, write_jpeg, write_sbd, write_voc
from tests.local_server import LocalServer
from tests.preparing import run, tree


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


def pack(path: Path, folder: Path, inside: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(folder, inside)
    return path


def test_processes_that_write_the_same_file_at_once_do_not_meet(tmp_path, monkeypatch):
    with whole_file(tmp_path / "a.txt", shared=True) as first:
        first.write_text("first")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda: -1)
            with whole_file(tmp_path / "a.txt", shared=True) as second:
                second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert tree(tmp_path) == {"train.txt": b"old"}


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "source", train=3, val=2, unlabelled=2, sizes_differ=False)


def packed_as_published(voc: Path) -> Path:
    return pack(voc.parents[2] / "voc.tar", voc.parent, "VOCdevkit")


def packed_as_some_mirror_does(voc: Path) -> Path:
    archive = voc.parents[2] / "voc.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in tree(voc).items():
            file.writestr(f"some/mirror/VOC2012/{name}", data)
    return archive


@pytest.mark.parametrize(
    "source_of", [packed_as_published, packed_as_some_mirror_does, lambda voc: voc, lambda voc: voc.parents[1]]
)
def test_prepare_voc_takes_archives_and_folders(voc, tmp_path, capsys, source_of: Callable[[Path], Path]):
    assert run("voc", source_of(voc), "--root", tmp_path / "data") == 0
    made = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    assert tree(made) == tree(voc)
    assert [path.name for path in made.parent.iterdir()] == ["VOC2012"]
    said = capsys.readouterr().out
    assert f"is in {made}: 3 training and 2 validation images" in said
    assert f"densepred prepare sbd --root {tmp_path / 'data'}" in said


def test_prepare_voc_downloads_what_is_not_given_and_does_not_repeat_what_is_done(voc, tmp_path, server, monkeypatch):
    server.content = packed_as_published(voc).read_bytes()
    remote = RemoteFile("voc.tar", (server.url,), hashlib.md5(server.content).hexdigest(), "")
    monkeypatch.setattr(voc_files, "VOC_ARCHIVE", remote)
    words = ("voc", "--root", tmp_path / "data", "--downloads", tmp_path / "downloads")
    run(*words)
    assert tree(tmp_path / "data" / "VOCdevkit" / "VOC2012") == tree(voc)
    server.asked.clear()
    shutil.rmtree(tmp_path / "downloads")
    run(*words)
    assert server.asked == []


def test_prepare_voc_shows_no_folder_before_it_is_complete(voc, tmp_path):
    archive = packed_as_published(voc)
    (tmp_path / "data" / "VOCdevkit" / ".VOC2012.unfinished" / "old").mkdir(parents=True)  # a killed run's
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(DataError, match=r"voc\.tar: (damaged or cut short|incomplete)"):
        run("voc", archive, "--root", tmp_path / "data")
    assert list((tmp_path / "data" / "VOCdevkit").iterdir()) == []
    run("voc", packed_as_published(voc), "--root", tmp_path / "data")
    assert tree(tmp_path / "data" / "VOCdevkit" / "VOC2012") == tree(voc)


def test_prepare_voc_names_the_file_that_an_archive_lacks(voc, tmp_path):
    (voc / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(
        DataError, match=r"voc\.tar: incomplete: 1 of the 6 files that train\.txt names are missing, .*2007_000001\.png"
    ):
        run("voc", packed_as_published(voc), "--root", tmp_path / "data")
    assert not (tmp_path / "data" / "VOCdevkit" / "VOC2012").exists()


def test_prepare_voc_refuses_another_archive(tmp_path):
    archive = pack(tmp_path / "other.tar", Path(__file__), "a/b.txt")
    with pytest.raises(DataError, match="is it the VOC 2012 archive"):
        run("voc", archive, "--root", tmp_path / "data")
    with pytest.raises(DataError, match="no such file or folder"):
        run("voc", tmp_path / "nothing.tar", "--root", tmp_path / "data")


# --- SBD -------------------------------------------------------------------------------------------------------------

TRAIN, VAL, UNLABELLED, NEW = "2007_000000", "2007_000003", "2007_000005", "2008_000001"


@pytest.fixture
def sbd(tmp_path) -> Path:
    """SBD's dataset folder: an image of VOC's train, one of its val, one that VOC does not label, one it lacks."""
    return write_sbd(tmp_path / "source", train=[NEW, VAL], val=[TRAIN, UNLABELLED])


def sbd_label(sbd: Path, name: str) -> np.ndarray:
    return scipy.io.loadmat(sbd / "cls" / f"{name}.mat")["GTcls"][0, 0]["Segmentation"]


@pytest.mark.parametrize("packed", [True, False])
def test_prepare_sbd_adds_its_labels_and_the_list_of_the_union_without_vocs_val(voc, sbd, tmp_path, capsys, packed):
    source = pack(tmp_path / "benchmark.tgz", sbd.parent, "benchmark_RELEASE", "w:gz") if packed else sbd.parent
    assert run("sbd", source, "--root", tmp_path / "source") == 0
    listed = (voc / "ImageSets" / "Segmentation" / "trainaug.txt").read_text().split()
    assert listed == [TRAIN, "2007_000001", "2007_000002", UNLABELLED, NEW]  # VOC's train is 0, 1, 2 and its val 3, 4
    folder = voc / "SegmentationClassAug"
    for name in (NEW, UNLABELLED):
        with Image.open(folder / f"{name}.png") as label:
            assert label.getpalette() == voc_palette()
            np.testing.assert_array_equal(np.array(label), sbd_label(sbd, name))
    for name in (TRAIN, VAL):  # VOC's own, with the void border that SBD lacks
        assert (folder / f"{name}.png").read_bytes() == (voc / "SegmentationClass" / f"{name}.png").read_bytes()
        assert 255 in np.array(Image.open(folder / f"{name}.png"))
    assert (voc / "JPEGImages" / f"{NEW}.jpg").read_bytes() == (sbd / "img" / f"{NEW}.jpg").read_bytes()
    said = capsys.readouterr().out
    assert "trainaug has 5 images" in said
    assert "10,582" in said


def test_the_reader_of_voc_finds_every_label_of_trainaug(voc, sbd):
    run("sbd", sbd, "--root", voc)
    samples = PascalVOC(voc, "trainaug")
    assert [samples.read(i)["name"] for i in range(len(samples))] == [
        TRAIN,
        "2007_000001",
        "2007_000002",
        UNLABELLED,
        NEW,
    ]
    np.testing.assert_array_equal(samples.read(4)["segmentation"], sbd_label(sbd, NEW))


def test_prepare_sbd_keeps_the_labels_that_are_done(voc, sbd, tmp_path):
    run("sbd", sbd, "--root", voc)
    before = {path: path.stat().st_mtime_ns for path in (voc / "SegmentationClassAug").iterdir()}
    lost = voc / "SegmentationClassAug" / f"{NEW}.png"
    lost.unlink()
    run("sbd", sbd, "--root", voc)
    after = {path: path.stat().st_mtime_ns for path in (voc / "SegmentationClassAug").iterdir()}
    assert {path for path in after if after[path] != before[path]} == {lost}


def test_prepare_sbd_without_voc_says_what_to_run_first(sbd, tmp_path):
    with pytest.raises(DataError, match=f"first run: densepred prepare voc --root {tmp_path / 'data'}"):
        run("sbd", sbd, "--root", tmp_path / "data")


def damage(sbd: Path) -> None:
    path = sbd / "cls" / f"{NEW}.mat"
    path.write_bytes(path.read_bytes()[:150])


def enlarge(sbd: Path) -> None:
    write_jpeg(sbd / "img" / f"{NEW}.jpg", np.zeros((10, 12, 3), np.uint8))


def mislabel(sbd: Path) -> None:
    scipy.io.savemat(sbd / "cls" / f"{NEW}.mat", {"GTcls": {"Segmentation": np.full((60, 80), 77, np.uint8)}})


def lose_label(sbd: Path) -> None:
    (sbd / "cls" / f"{NEW}.mat").unlink()


def lose_image(sbd: Path) -> None:
    (sbd / "img" / f"{NEW}.jpg").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, f"cls/{NEW}.mat: not an SBD label"),
        (enlarge, rf"{NEW}\.png: 60 x 80 pixels, its image .*{NEW}\.jpg has 10 x 12"),
        (mislabel, f"cls/{NEW}.mat: holds the value 77"),
        (lose_label, f"train.txt names 1 images without a label, the first is dataset/cls/{NEW}.mat"),
        (lose_image, rf"{NEW}\.jpg: missing in VOC"),
    ],
)
def test_prepare_sbd_names_the_file_that_is_wrong_and_writes_no_list(voc, sbd, harm, message):
    harm(sbd)
    with pytest.raises(DataError, match=message):
        run("sbd", sbd, "--root", voc)
    assert not (voc / "ImageSets" / "Segmentation" / "trainaug.txt").exists()


def test_the_published_sets_give_10582_training_images(tmp_path):
    # the sizes of the published sets: SBD 8,498 + 2,857; VOC 1,464 + 1,449, of which all but 676 train images are SBD's
    everything = [f"{i:05d}" for i in range(12_031)]
    voc_train, voc_val, sbd = set(everything[:1464]), set(everything[1464:2913]), everything[676:]
    found = sbd_files._Found({"train": sbd[:8498], "val": sbd[8498:]}, set(sbd))
    assert len(sbd) == 8498 + 2857
    assert len(sbd_files._augmented_names(tmp_path, found, voc_train, voc_val)) == 10_582


def test_help_imports_nothing_heavy():
    code = (
        "import argparse, sys; from densepred.commands import prepare;"
        "prepare.add_arguments(argparse.ArgumentParser());"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "h5py", "scipy", "numpy", "PIL", "tqdm"} & set(loaded) == set()
