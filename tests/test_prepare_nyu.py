"""`densepred prepare nyu`: the official labelled file, whole, broken or killed half-way, into prepared folders."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from densepred.data.nyu import NYUDepthV2
from densepred.data.prepare import nyu
from densepred.data.prepare.download import RemoteFile
from densepred.data.prepare.nyu_labelled import read_mapping, read_splits
from densepred.errors import DataError
from tests.fakes import write_nyu_mat
from tests.local_server import LocalServer
from tests.preparing import run, tree


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def labelled(tmp_path) -> Path:
    return write_nyu_mat(tmp_path / "official", frames=6, train=4)


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(("depth", "array"), [("raw", "rawDepths"), ("filled", "depths")])
def test_prepare_nyu_writes_every_frame_upright_in_its_units(labelled, tmp_path, depth, array):
    root = tmp_path / "data" / "nyuv2"
    assert run("nyu", labelled, "--root", root, "--depth", depth, "--quality", 100) == 0
    with h5py.File(labelled) as file:
        images, metres, labels = (file[key][()] for key in ("images", array, "labels"))
    for i in range(6):
        rgb, millimetres, label40 = (read_png(path) for path in nyu.frame_files(root, i + 1))
        # MATLAB's (H, W, 3, N) is (N, 3, W, H) in HDF5
        expected = np.swapaxes(metres[i], 0, 1)
        assert millimetres.dtype == np.uint16
        assert np.abs(millimetres / 1000 - expected).max() <= 0.0005001
        raw_label = np.swapaxes(labels[i], 0, 1).astype(int)
        np.testing.assert_array_equal(label40, np.where(raw_label == 0, 255, (raw_label - 1) % 40))
        assert np.abs(rgb.astype(int) - np.moveaxis(images[i], (0, 1, 2), (2, 1, 0))).mean() < 1.5
    assert (millimetres[2:6, 3:9] == 0).all() == (depth == "raw")


def test_prepare_nyu_has_the_layout_of_the_prepared_set(labelled, tmp_path, capsys):
    root = tmp_path / "nyuv2"
    run("nyu", labelled, "--root", root)
    names = {f"{i:04d}" for i in range(1, 7)}
    assert {path.name for path in root.iterdir()} == {"rgb", "depth", "label40", "meta", "train.txt", "test.txt"}
    for folder, suffix in (("rgb", "jpg"), ("depth", "png"), ("label40", "png")):
        assert {path.name for path in (root / folder).iterdir()} == {f"{name}.{suffix}" for name in names}
    assert (root / "train.txt").read_text() == "0001\n0002\n0003\n0004\n"
    assert (root / "test.txt").read_text() == "0005\n0006\n"
    for name in ("splits.mat", "classMapping40.mat"):
        assert (root / "meta" / name).read_bytes() == (labelled.parent / name).read_bytes()
    said = capsys.readouterr().out
    assert f"is in {root}: 4 training and 2 test frames, raw depth, holes kept as missing" in said


def test_the_reader_of_nyu_reads_what_was_prepared(labelled, tmp_path):
    run("nyu", labelled, "--root", tmp_path / "nyuv2")
    with h5py.File(labelled) as file:
        metres = np.swapaxes(file["rawDepths"][4], 0, 1)
    sample = NYUDepthV2(tmp_path / "nyuv2", ["0005"], targets=("segmentation", "depth")).read(0)
    np.testing.assert_allclose(sample["depth"], metres, atol=0.0005001)
    assert (sample["depth"][2:6, 3:9] == 0).all()
    assert sample["segmentation"].dtype == np.uint8


def rewritten(labelled: Path, **arrays: np.ndarray) -> Path:
    """The labelled file with some arrays replaced, in chunks of 4 frames as MATLAB may choose them."""
    with h5py.File(labelled) as file:
        kept = {key: file[key][()] for key in ("images", "depths", "rawDepths", "labels")}
    with h5py.File(labelled, "w") as file:
        for key, array in {**kept, **arrays}.items():
            file.create_dataset(key, data=array, chunks=(4, *array.shape[1:]), compression="gzip")
    return labelled


def test_chunks_of_several_frames_give_the_same_files(labelled, tmp_path):
    run("nyu", labelled, "--root", tmp_path / "one")
    rewritten(labelled)
    run("nyu", labelled, "--root", tmp_path / "four")
    for folder in ("rgb", "depth", "label40"):
        assert tree(tmp_path / "one" / folder) == tree(tmp_path / "four" / folder)


def test_unknown_depth_in_any_guise_becomes_missing(labelled, tmp_path):
    raw = np.full((6, 64, 48), 2, np.float32)
    raw[:, :4] = np.array([np.nan, np.inf, -1, 0], np.float32)[:, None]
    run("nyu", rewritten(labelled, rawDepths=raw), "--root", tmp_path / "nyuv2")
    depth = read_png(tmp_path / "nyuv2" / "depth" / "0003.png")
    assert (depth[:, :4] == 0).all()
    assert (depth[:, 4:] == 2000).all()


PROGRAM = """
import sys
from densepred.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_prepare_nyu_killed_in_the_middle_leaves_whole_files_and_goes_on(tmp_path):
    labelled = write_nyu_mat(tmp_path / "official", frames=500, train=300, size=(96, 128))
    root = tmp_path / "nyuv2"
    words = ["prepare", "nyu", str(labelled), "--root", str(root)]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(root.glob("label40/*.png"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (root / "train.txt").exists()
    done = [path for folder in ("rgb", "depth", "label40") for path in (root / folder).glob("[0-9]*")]
    assert 60 <= len(done) < 3 * 500
    for path in done:
        assert read_png(path).shape[:2] == (96, 128)  # decodes to the last byte
    before = {path: path.stat().st_mtime_ns for path in (root / "depth").glob("00[01]?.png")}
    run(*words[1:])
    assert len((root / "train.txt").read_text().split()) == 300
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for folder in ("rgb", "depth", "label40"):
        assert len(list((root / folder).glob("[0-9]*"))) == len(list((root / folder).glob("*"))) == 500
        assert list((root / folder).glob(".*")) == []


def test_frames_made_with_other_options_are_not_mixed(labelled, tmp_path):
    root = tmp_path / "nyuv2"
    run("nyu", labelled, "--root", root)
    with pytest.raises(DataError, match=r"depth was raw, now filled.*another --root"):
        run("nyu", labelled, "--root", root, "--depth", "filled")


def test_a_folder_of_somebody_elses_frames_is_left_alone(labelled, tmp_path):
    (tmp_path / "nyuv2" / "rgb").mkdir(parents=True)
    with pytest.raises(DataError, match="holds frames that this command did not make"):
        run("nyu", labelled, "--root", tmp_path / "nyuv2")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def replace_by_a_page(path: Path) -> None:
    path.write_text("<html>404</html>")


def replace_by_an_old_mat(path: Path) -> None:
    scipy.io.savemat(path, {"images": np.zeros(3)})


def lose_labels(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["labels"]


def turn_axes(path: Path) -> None:
    rewritten(path, images=np.zeros((6, 48, 64, 3), np.uint8))


def use_millimetres(path: Path) -> None:
    rewritten(path, rawDepths=np.full((6, 64, 48), 123_456, np.float32))


def use_unknown_class(path: Path) -> None:
    rewritten(path, labels=np.full((6, 64, 48), 900, np.uint16))


def spoil_data(path: Path) -> None:
    rewritten(path)
    with h5py.File(path) as file:
        chunk = file["labels"].id.get_chunk_info(1)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (cut, r"cut short at [\d,]+ bytes \(the official file has 2,972,037,809\)"),
        (replace_by_a_page, "a web page, not a .mat file"),
        (replace_by_an_old_mat, "not an HDF5 file as MATLAB v7.3 writes them"),
        (lose_labels, "holds no array 'labels'"),
        (turn_axes, r"expected images \(N, 3, W, H\).*got images \(6, 48, 64, 3\)"),
        (use_millimetres, "frame 1 has a depth of 123456; expected metres"),
        (use_unknown_class, "frame 1 has the label 900, the class mapping ends at 894"),
        (spoil_data, "frames 5 to 6 could not be read"),
    ],
)
def test_a_bad_labelled_file_ends_in_one_message_and_no_list(labelled, tmp_path, harm, cause, capsys):
    from densepred.cli import main

    harm(labelled)
    status = main(["prepare", "nyu", str(labelled), "--root", str(tmp_path / "nyuv2")])
    said = capsys.readouterr().err
    assert status == 1
    assert re.search(f"{re.escape(str(labelled))}: {cause}", said)
    assert "Traceback" not in said
    assert not (tmp_path / "nyuv2" / "train.txt").exists()


def test_frames_before_the_damage_are_kept(labelled, tmp_path):
    spoil_data(labelled)
    with pytest.raises(DataError, match="frames that are done stay done"):
        run("nyu", labelled, "--root", tmp_path / "nyuv2")
    assert sorted(path.stem for path in (tmp_path / "nyuv2" / "label40").iterdir()) == ["0001", "0002", "0003", "0004"]


def test_a_split_that_does_not_fit_the_frames_is_refused(tmp_path):
    path = tmp_path / "splits.mat"
    scipy.io.savemat(path, {"trainNdxs": np.array([[1], [2]]), "testNdxs": np.array([[3], [7]])})
    with pytest.raises(DataError, match="names the frames 1 to 7; the labelled file has 1 to 6"):
        read_splits(path, 6)
    scipy.io.savemat(path, {"trainNdxs": np.array([[1], [2]]), "testNdxs": np.array([[2], [3]])})
    with pytest.raises(DataError, match="names a frame twice"):
        read_splits(path, 6)


def test_a_mapping_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "classMapping40.mat"
    scipy.io.savemat(path, {"mapClass": np.ones((1, 13))})
    with pytest.raises(DataError, match="expected mapClass with 894 classes from 1 to 40, got 13"):
        read_mapping(path)
    with pytest.raises(DataError, match=r"no such file; expected classMapping40\.mat"):
        read_mapping(tmp_path / "nothing.mat")


def test_missing_small_files_are_said_with_the_way_out_before_the_large_one_is_asked_for(
    labelled, tmp_path, server, monkeypatch
):
    (labelled.parent / "classMapping40.mat").unlink()
    server.refusals = [404]
    remote = RemoteFile("classMapping40.mat", (server.url,), None, nyu.MAPPING_40.ways_out)
    monkeypatch.setattr(nyu, "MAPPING_40", remote)
    with pytest.raises(DataError, match=r"classMapping40\.mat could not be downloaded(?s:.*)name it with --mapping"):
        run("nyu", labelled, "--root", tmp_path / "nyuv2", "--downloads", tmp_path / "downloads")
    assert not (tmp_path / "nyuv2").exists()


def test_the_published_mapping_sends_every_class_of_the_40_to_itself(real_data):
    """A name that is among the 894 and among the 40 must be the same class in both."""
    path = real_data / "nyuv2" / "meta" / "classMapping40.mat"
    classes = read_mapping(path)
    file = scipy.io.loadmat(path)
    raw, forty = ([str(name[0]) for name in file[key].ravel()] for key in ("allClassName", "className"))
    shared = set(raw) & set(forty)
    assert len(shared) > 30
    assert {name for name in shared if classes[raw.index(name) + 1] != forty.index(name)} == set()
    assert classes[0] == 255


def test_the_published_split_has_795_and_654_frames_and_the_lists_of_the_prepared_set(real_data):
    folder = real_data / "nyuv2"
    lists = read_splits(folder / "meta" / "splits.mat", 1449)
    assert {split: len(numbers) for split, numbers in lists.items()} == {"train": 795, "test": 654}
    assert [nyu.frame_name(n) for n in lists["train"]] == (folder / "train.txt").read_text().split()


def test_a_quality_outside_its_range_is_refused(labelled, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("nyu", labelled, "--root", tmp_path, "--quality", "0")
    assert "expected a whole number from 1 to 100, got '0'" in capsys.readouterr().err
