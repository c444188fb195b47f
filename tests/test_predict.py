"""densepred predict: what is asked for, what is written and can be read again, what goes wrong and how it goes on."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from PIL import Image
from torchvision.models import segmentation as theirs

from densepred.cli import main
from densepred.data.devkit import VOC_CLASSES
from densepred.data.folder import FolderDataModule
from densepred.data.images import read_depth, read_label
from densepred.decoders.unet import UNetDecoder
from densepred.encoders import weights as weight_files
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError, DataError, WeightsError
from densepred.geometry import intrinsics_matrix
from densepred.inference.cameras import default_intrinsics, film_intrinsics
from densepred.inference.evidence import MeanEvidence, NetworkEvidence
from densepred.inference.file_contents import (
    array_bytes,
    confidence,
    depth_bytes,
    entropy_share,
    label_bytes,
    normals_bytes,
)
from densepred.inference.inputs import find_sources, only_named
from densepred.inference.large import LargeImages
from densepred.inference.options import InferenceOptions
from densepred.inference.output_files import OutputFiles, output_kinds
from densepred.inference.overlap import DoneBehind, done_ahead, drawn_ahead
from densepred.inference.photos import read_photo
from densepred.inference.point_cloud import prediction_ply
from densepred.inference.prediction import Prediction
from densepred.inference.predictor import Predictor
from densepred.inference.published import load_published
from densepred.inference.rescaled import Rescaled
from densepred.inference.trained_size import trained_short_side
from densepred.inference.uncertainty import Uncertainty
from densepred.inference.videos import VideoFile, read_frames, video_facts
from densepred.inference.voc_results import ARCHIVE, check_results, results_folder
from densepred.module import DensePredictor
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation
from tests.fakes import voc_palette
from tests.local_server import CONTENT, LocalServer

CLASSES = ["wall", "floor", "chair"]


def save_checkpoint(path, tasks, seed=0, config=None):
    """A checkpoint as a Trainer writes it, of a network that says something else at every pixel."""
    torch.manual_seed(seed)
    module = DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, tasks)
    for decoder in module.network.decoders.values():
        for parameter in decoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content | ({} if config is None else {"config": yaml.safe_dump(config)}), path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    every = [Segmentation(CLASSES), Depth(), Normals()]
    return SimpleNamespace(
        every=save_checkpoint(folder / "every.ckpt", every),
        labels=save_checkpoint(folder / "labels.ckpt", [Segmentation(CLASSES)]),
        other=save_checkpoint(folder / "other.ckpt", [Segmentation(CLASSES)], seed=1),
        voc=save_checkpoint(folder / "voc.ckpt", [Segmentation(["dog", "background", "cat"])]),
    )


def write_photos(folder, names, size=(40, 56)):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(cv2.GaussianBlur(pixels, (0, 0), 3)).save(folder / name)
    return folder


def predict(checkpoint, photos, output, *options):
    words = ["--input", *map(str, photos if isinstance(photos, list) else [photos]), "--output", str(output)]
    files = checkpoint if isinstance(checkpoint, list) else [checkpoint]
    return main(["predict", "--ckpt_path", *map(str, files), "--device", "cpu", *words, *map(str, options)])


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------- files


def made_up(size=(34, 40)):
    """A prediction of every kind, and its tasks, with known values."""
    rng = np.random.default_rng(0)
    height, width = size
    vectors = rng.normal(size=(3, height, width)).astype(np.float32)
    vectors[2] = -np.abs(vectors[2]) - 0.1
    vectors /= np.linalg.norm(vectors, axis=0)
    values = {
        "segmentation": torch.from_numpy(rng.integers(0, 3, size).astype(np.uint8)),
        "depth": torch.from_numpy(rng.uniform(0.3, 9, (1, *size)).astype(np.float32)),
        "normals": torch.from_numpy(vectors),
    }
    image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    tasks = [Segmentation(CLASSES), Depth(), Normals()]
    return Prediction(image, values, tasks, "a.png"), tasks


def test_a_folder_of_predictions_is_a_data_set_of_the_same_values(tmp_path):
    prediction, tasks = made_up()
    OutputFiles(tmp_path, output_kinds(tasks)).write("a", prediction)
    (tmp_path / "images").mkdir()
    Image.fromarray(prediction.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "a.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    data = FolderDataModule(str(tmp_path), val_share=0.0, test_share=0.0, num_workers=0)
    sample = data.dataset("train", None)[0]
    np.testing.assert_array_equal(sample["segmentation"], prediction["segmentation"])
    np.testing.assert_allclose(sample["depth"], prediction["depth"], rtol=0, atol=0.000501)  # half a millimetre
    # half a step of 2/255 in each component turns a vector by at most atan(sqrt(3) / 255)
    cosine = (sample["normals"] * prediction["normals"]).sum(0).clamp(-1, 1)
    assert torch.rad2deg(cosine.acos()).max() < np.degrees(np.arctan(np.sqrt(3) / 255))


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def test_depth_is_written_in_millimetres_and_cut_where_16_bits_end():
    metres = np.array([[1.2344, 0.0001, 65.5, 70, np.inf], [0, -1, np.nan, 65.535, 2]], np.float32)
    stored = decoded(depth_bytes(metres))
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[1234, 1, 65500, 65535, 0], [0, 0, 0, 65535, 2000]]


def test_depth_beyond_16_bits_is_told_and_whole_in_the_array(tmp_path):
    tasks = [Depth(max_depth=200.0)]
    far = Prediction(torch.zeros(3, 2, 2, dtype=torch.uint8), {"depth": torch.full((1, 2, 2), 80.0)}, tasks)
    files = OutputFiles(tmp_path, output_kinds(tasks, ["depth", "arrays"]))
    assert "beyond 65.535 m" in files.notes(far)[0]
    files.write("a", far)
    np.testing.assert_array_equal(np.load(tmp_path / "depth_npy" / "a.npy"), np.full((2, 2), 80, np.float32))
    assert OutputFiles(tmp_path, output_kinds(tasks, ["arrays"])).notes(far) == ()


def test_normals_are_written_by_the_formula_that_is_told():
    normals = np.array([[[1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0]]], np.float32)
    red_green_blue = cv2.cvtColor(decoded(normals_bytes(normals)), cv2.COLOR_BGR2RGB)
    assert red_green_blue[0, :3].tolist() == [[255, 128, 128], [128, 0, 128], [128, 128, 0]]
    assert red_green_blue[0, 3].tolist() == [128, 128, 128]


def test_labels_have_the_palette_of_their_set_and_void_at_255(tmp_path):
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    (tmp_path / "a.png").write_bytes(label_bytes(labels, [[10, 20, 30], [40, 50, 60], [70, 80, 90]]))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.array(image.convert("RGB"))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [224, 224, 192]]


@pytest.mark.parametrize("classes", [255, 256, 300])
def test_any_number_of_classes_can_be_written_and_read(tmp_path, classes):
    task = Segmentation(classes)
    labels = torch.arange(classes).view(1, -1)
    prediction = Prediction(
        torch.zeros(3, 1, classes, dtype=torch.uint8),
        {"segmentation": labels.to(torch.uint8 if classes <= 255 else torch.int32)},
        [task],
    )
    OutputFiles(tmp_path, output_kinds([task], ["labels"])).write("a", prediction)
    np.testing.assert_array_equal(read_label(tmp_path / "labels" / "a.png"), labels)


def test_labels_that_hold_at_once_and_planes_of_numbers_are_arrays(tmp_path):
    tasks = [Segmentation(2, mode="multilabel"), Regression(2, "flow")]
    present = torch.tensor([[[0, 1]], [[1, 1]]], dtype=torch.uint8)
    flow = torch.tensor([[[0.5, 1.5]], [[-2.0, 3.0]]])
    prediction = Prediction(torch.zeros(3, 1, 2, dtype=torch.uint8), {"segmentation": present, "flow": flow}, tasks)
    OutputFiles(tmp_path, output_kinds(tasks, ["labels", "arrays", "overlays"])).write("a", prediction)
    np.testing.assert_array_equal(np.load(tmp_path / "labels" / "a.npy"), present)
    np.testing.assert_array_equal(np.load(tmp_path / "flow_npy" / "a.npy"), flow.permute(1, 2, 0))


def test_entropy_and_confidence_follow_their_definitions():
    probabilities = torch.tensor([0.7, 0.2, 0.1]).view(3, 1, 1)
    nats = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1))
    assert entropy_share(probabilities, Segmentation(3)).item() == pytest.approx(nats / np.log(3), rel=1e-6)
    assert confidence(probabilities, Segmentation(3)).item() == pytest.approx(0.7)
    binary = Segmentation(["cat"], mode="binary")
    assert confidence(torch.tensor(0.3).view(1, 1, 1), binary).item() == pytest.approx(0.7)
    assert entropy_share(torch.tensor(0.5).view(1, 1, 1), binary).item() == pytest.approx(1)


def test_tasks_of_one_kind_have_folders_of_their_own_which_no_name_leads_out_of():
    tasks = [Segmentation(2), Segmentation(3, name="../../parts")]
    assert [kind.folder for kind in output_kinds(tasks, ["labels"])] == ["labels", "_.._parts"]
    assert [kind.folder for kind in output_kinds([Depth(name="range")], ["depth"])] == ["depth"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pony"], "expected some of labels"),
        (["depth"], "no task with such a thing"),
        (["uncertainty"], "there is one"),
    ],
)
def test_what_cannot_be_saved_is_refused(words, message):
    with pytest.raises(ConfigurationError, match=message):
        output_kinds([Segmentation(2)], words)


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    prediction, tasks = made_up()
    files = OutputFiles(tmp_path, output_kinds(tasks, ["labels"]))

    def cut(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OSError, match="No space"):
        files.write("a", prediction)
    assert files_below(tmp_path) == []


# ---------------------------------------------------------------------------------------------- inputs


def named(*given, **options):
    return {source.path.name: source.name for source in find_sources([str(one) for one in given], **options)}


def test_folders_patterns_and_lists_are_found_in_order(tmp_path):
    write_photos(tmp_path, ["b.png", "a.jpg", "inner/c.png", ".hidden.png", "with space ü.png"])
    (tmp_path / "notes.md").write_text("no picture")
    assert named(tmp_path) == {"a.jpg": "a", "b.png": "b", "with space ü.png": "with space ü"}
    assert named(tmp_path, recursive=True)["c.png"] == "inner/c"
    assert named(tmp_path / "**" / "*.png") == {"b.png": "b", "c.png": "inner/c", "with space ü.png": "with space ü"}
    (tmp_path / "list.txt").write_text("# mine\n\ninner/c.png\na.jpg\n")
    assert list(named(tmp_path / "list.txt").values()) == ["c", "a"]
    assert list(named(tmp_path / "b.png", tmp_path)) == ["b.png", "a.jpg", "with space ü.png"]


def test_what_is_predicted_is_not_its_own_input(tmp_path):
    write_photos(tmp_path, ["a.png", "out/overlays/a.png"])
    assert list(named(tmp_path, recursive=True, outside=tmp_path / "out").values()) == ["a"]


def test_no_two_pictures_share_a_name(tmp_path):
    write_photos(tmp_path, ["x/a.jpg", "x/a.png", "x/b.png", "y/b.png", "y/C.png", "x/c.png"])
    sources = find_sources([tmp_path / "x", tmp_path / "y"])
    names = {source.path.relative_to(tmp_path).as_posix(): source.name for source in sources}
    assert len({name.casefold() for name in names.values()}) == 6
    assert (names["x/a.jpg"], names["x/a.png"]) == ("a.jpg", "a.png")
    assert (names["x/b.png"], names["y/b.png"]) == ("x/b", "y/b")
    assert named(tmp_path / "x", tmp_path / "x") == named(tmp_path / "x")
    write_photos(tmp_path, ["z/a.jpg", "z/a.png", "z/a.jpg.png", "z/a.png.jpg"])
    assert len(set(named(tmp_path / "z").values())) == 4


def test_frames_of_a_video_do_not_fall_into_a_folder_of_pictures(tmp_path):
    write_photos(tmp_path, ["clip/000001.png"])
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert named(tmp_path, recursive=True) == {"clip.mp4": "clip.mp4", "000001.png": "clip/000001"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("*.bmp", "no picture or video matches"),
        ("empty", "holds no picture"),
        ("outer", "--recursive"),
        ("list.txt", "list.txt, line 2: there is no file 'b.png'"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, given, message):
    write_photos(tmp_path, ["outer/inner/a.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("outer/inner/a.png\nb.png\n")
    with pytest.raises(DataError, match=message):
        find_sources([str(tmp_path / given)])


def test_pictures_may_lie_beside_their_outputs(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    assert predict(checkpoints.labels, photos, tmp_path, "--save", "labels") == 0
    assert predict(checkpoints.labels, photos, photos, "--recursive") == 1
    assert "is the input too" in capsys.readouterr().err


def test_a_list_of_names_chooses_and_a_missing_one_is_told(tmp_path):
    sources = find_sources([write_photos(tmp_path, ["a.png", "b.png", "c.png"])])
    assert [source.name for source in only_named(sources, ["c", "a"])] == ["c", "a"]
    with pytest.raises(DataError, match="1 of 2 listed names are not among the input, such as 'd'"):
        only_named(sources, ["a", "d"])


# ---------------------------------------------------------------------------------------------- the verb


def test_files_hold_what_the_predictor_answers(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png", "b.jpg"])
    out = tmp_path / "out"
    assert predict(checkpoints.every, photos, out, "--save", "labels", "arrays", "probabilities", "confidence") == 0
    predictor = Predictor.load(checkpoints.every, "cpu")
    for path in sorted(photos.iterdir()):
        expected = predictor(path, evidence=True)
        labels = read_label(out / "labels" / f"{path.stem}.png")
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, expected["segmentation"])
        np.testing.assert_allclose(np.load(out / "depth_npy" / f"{path.stem}.npy"), expected["depth"][0], rtol=1e-5)
        vectors = np.load(out / "normals_npy" / f"{path.stem}.npy")
        np.testing.assert_allclose(vectors, expected["normals"].permute(1, 2, 0), atol=1e-5)
        half = np.load(out / "probabilities" / f"{path.stem}.npy")
        np.testing.assert_allclose(half, expected.probabilities(), atol=5e-4)
        stored = cv2.imread(str(out / "confidence" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(stored / 65535, expected.probabilities().amax(0), atol=1e-5)
    assert (out / "sheet.png").is_file()
    assert "2 predicted" in capsys.readouterr().out


def test_by_default_files_for_programs_and_for_people_are_written(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    assert predict(checkpoints.every, photos, tmp_path / "out") == 0
    overlays = [f"overlays/{kind}/a.jpg" for kind in ("depth", "labels", "normals")]
    expected = ["depth/a.png", "labels/a.png", "normals/a.png", *overlays, "predict.json", "sheet.png"]
    assert files_below(tmp_path / "out") == expected
    with Image.open(tmp_path / "out" / "overlays" / "depth" / "a.jpg") as overlay:
        assert overlay.size == (56, 40)


def test_pictures_predicted_together_have_the_answers_they_have_alone(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    write_photos(photos, ["d.png"], size=(50, 60))
    for size in (1, 3):
        assert predict(checkpoints.labels, photos, tmp_path / f"{size}", "--save", "labels", "--batch_size", size) == 0
    for name in "abcd":
        alone, together = (read_label(tmp_path / f"{size}" / "labels" / f"{name}.png") for size in (1, 3))
        assert (alone == together).mean() > 0.999


def test_point_clouds_are_written_by_the_camera_that_is_told(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.open(photos / "a.png").save(photos / "b.jpg", exif=exif)
    assert predict(checkpoints.every, photos, tmp_path / "out", "--save", "ply", "--field_of_view", 50) == 0
    told = capsys.readouterr().out
    assert "1: point clouds by an assumed field of view of 50 degrees" in told
    assert "1: point clouds by the focal length in the EXIF data" in told
    assert files_below(tmp_path / "out") == ["depth_ply/a.ply", "depth_ply/b.ply", "predict.json", "sheet.png"]
    predictor = Predictor.load(checkpoints.every, "cpu")
    assumed = prediction_ply(predictor(photos / "a.png"), default_intrinsics((40, 56), 50))
    seen = prediction_ply(predictor(photos / "b.jpg"), film_intrinsics(26, (40, 56)))
    assert (tmp_path / "out/depth_ply/a.ply").read_bytes() == assumed
    assert (tmp_path / "out/depth_ply/b.ply").read_bytes() == seen
    # another camera: these are other clouds
    assert predict(checkpoints.every, photos, tmp_path / "out", "--save", "ply", "--field_of_view", 70) == 1
    assert "camera" in capsys.readouterr().err
    given = ("--save", "ply", "--overwrite", "--intrinsics", 50, 51, 27, 19)
    assert predict(checkpoints.every, photos, tmp_path / "out", *given) == 0
    given = prediction_ply(predictor(photos / "b.jpg"), intrinsics_matrix(50, 51, 27, 19))
    assert (tmp_path / "out/depth_ply/b.ply").read_bytes() == given


def test_a_broken_picture_is_told_and_passed_over_and_the_next_run_goes_on(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png", "c.png"])
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    write_photos(photos, ["tiny.png"], size=(5, 5))
    assert predict(checkpoints.labels, photos, tmp_path / "out", "--save", "labels") == 1
    told = capsys.readouterr().err
    assert "3 of 5 failed" in told
    assert [name for name in ("b.png", "empty.jpg", "tiny.png") if f"photos/{name}" not in told] == []
    failed = (tmp_path / "out" / "failed.txt").read_text()
    assert "b.png: cannot be read" in failed
    assert "more than 32 pixels" in failed
    assert files_below(tmp_path / "out" / "labels") == ["a.png", "c.png"]
    for name in ("empty.jpg", "tiny.png"):
        (photos / name).unlink()
    write_photos(photos, ["b.png"])
    assert predict(checkpoints.labels, photos, tmp_path / "out", "--save", "labels", "--sheet", 0) == 0
    assert "1 predicted" in (told := capsys.readouterr().out)
    assert "2 of 3 were there already" in told
    assert not (tmp_path / "out" / "failed.txt").exists()


def test_finished_files_are_kept_and_changed_pictures_done_again(checkpoints, tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos", ["a.png", "b.png"]), tmp_path / "out"
    options = ("--save", "labels", "overlays")
    predict(checkpoints.labels, photos, out, *options)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    capsys.readouterr()
    assert predict(checkpoints.labels, photos, out, *options) == 0
    assert "0 predicted, 2 of 2 were there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before
    (out / "labels" / "a.png").unlink()
    later = (photos / "b.png").stat().st_mtime + 5
    os.utime(photos / "b.png", (later, later))
    predict(checkpoints.labels, photos, out, *options)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    changed = {path.relative_to(out).as_posix() for path in after if after[path] != before[path]}
    assert changed == {"labels/a.png", "labels/b.png", "overlays/b.jpg", "sheet.png"}


def test_predictions_of_another_network_are_not_taken_for_these(checkpoints, tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos", ["a.png"]), tmp_path / "out"
    predict(checkpoints.labels, photos, out, "--save", "labels")
    first = read_label(out / "labels" / "a.png")
    assert predict(checkpoints.other, photos, out, "--save", "labels") == 1
    assert "were made otherwise" in capsys.readouterr().err
    assert predict(checkpoints.labels, photos, out, "--save", "labels", "--flip") == 1
    assert "flip: false there, true now" in capsys.readouterr().err
    assert predict(checkpoints.other, photos, out, "--save", "labels", "--overwrite") == 0
    assert (read_label(out / "labels" / "a.png") != first).any()


def test_an_overwriting_that_was_stopped_goes_on_and_mixes_no_networks(checkpoints, tmp_path, monkeypatch):
    photos, out = write_photos(tmp_path / "photos", ["a.png", "b.png"]), tmp_path / "out"
    words = ("--save", "labels", "--sheet", 0)
    predict(checkpoints.labels, photos, out, *words)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(OutputFiles, "write", fail)
        assert predict(checkpoints.other, photos, out, *words, "--overwrite") == 1
    assert predict(checkpoints.other, photos, out, *words) == 0
    predictor = Predictor.load(checkpoints.other, "cpu")
    for name in "ab":
        expected = predictor(photos / f"{name}.png")["segmentation"]
        np.testing.assert_array_equal(read_label(out / "labels" / f"{name}.png"), expected)


def test_files_of_someone_else_are_not_overwritten(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    write_photos(tmp_path, ["labels/a.png"])
    before = (tmp_path / "labels" / "a.png").read_bytes()
    assert predict(checkpoints.labels, photos, tmp_path) == 1
    assert "no predict.json" in capsys.readouterr().err
    assert (tmp_path / "labels" / "a.png").read_bytes() == before


def test_a_full_disk_ends_in_one_message_and_leaves_whole_files_alone(checkpoints, tmp_path, capsys, monkeypatch):
    photos, out = write_photos(tmp_path / "photos", [f"{i}.png" for i in range(6)]), tmp_path / "out"
    write, written = Path.write_bytes, []

    def full(path, content):
        written.append(path)
        if len(written) > 3:
            write(path, content[:20])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", full)
        assert predict(checkpoints.labels, photos, out, "--save", "labels", "--sheet", 0) == 1
    told = capsys.readouterr().err
    assert told.count("No space left on device") == 1
    assert "goes on from here" in told
    assert [name for name in files_below(out) if "unfinished" in name] == []
    assert [read_label(out / "labels" / name).shape for name in files_below(out / "labels")] == [(40, 56)] * 3
    assert predict(checkpoints.labels, photos, out, "--save", "labels", "--sheet", 0) == 0
    assert "3 predicted" in capsys.readouterr().out


def test_an_output_that_is_no_folder_is_told(checkpoints, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert predict(checkpoints.labels, write_photos(tmp_path / "photos", ["a.png"]), tmp_path / "out") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_newest_run_is_found_by_name(checkpoints, tmp_path, capsys):
    folder = tmp_path / "runs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(checkpoints.labels.read_bytes())
    photos = write_photos(tmp_path / "photos", ["a.png"])
    assert predict("best", photos, tmp_path / "out", "--root", tmp_path / "runs") == 0
    assert predict("last", photos, tmp_path / "out", "--root", tmp_path / "runs") == 1
    assert "There are: best" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "x"], "give either --ckpt_path"),
        (["--ckpt_path", "x.ckpt"], "give --input"),
        (["--ckpt_path", "x.ckpt", "--weights", "y", "--input", "z"], "give either --ckpt_path"),
        (["--weights", "torchvision/alexnet", "--input", "x"], "expected one of torchvision/fcn_resnet50"),
        (["--ckpt_path", "x.ckpt", "--input", "x"], "no such file"),
        (["--ckpt_path", "x.ckpt", "--input", "x", "--device", "toaster"], "device toaster"),
        (["--ckpt_path", "x.ckpt", "--input", "x", "--short_side", "small"], "expected a number of pixels, or none"),
        (["--check", "x"], "give --names"),
    ],
)
def test_what_is_asked_wrongly_is_told(options, message, capsys):
    assert main(["predict", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_predicting_imports_neither_lightning_nor_wandb(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    words = [
        "predict",
        "--ckpt_path",
        str(checkpoints.every),
        "--input",
        str(photos),
        "--output",
        str(tmp_path / "out"),
    ]
    code = (
        f"import sys; from densepred.cli import main; assert main({words!r}) == 0;"
        "print(*sorted({'pytorch_lightning', 'lightning_fabric', 'wandb', 'albumentations'} & set(sys.modules)), 'end')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "end"


# ---------------------------------------------------------------------------------------------- how it is asked


def test_several_checkpoints_are_averaged_and_how_they_differ_is_written(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    both = [checkpoints.labels, checkpoints.other]
    assert predict(both, photos, tmp_path / "out") == 0
    members = [Predictor.load(path, "cpu").evidence for path in both]
    image = read_photo(photos / "a.png").image[None]
    with torch.inference_mode():
        mean = sum(member(image)["segmentation"] for member in members) / 2
        spread = Uncertainty.of(MeanEvidence(members), image).spread["segmentation"]
    out = tmp_path / "out"
    np.testing.assert_array_equal(read_label(out / "labels" / "a.png"), mean.argmax(1)[0])
    stored = cv2.imread(str(out / "entropy" / "a.png"), cv2.IMREAD_UNCHANGED)
    entropy = scipy.stats.entropy(mean[0].double(), axis=0) / np.log(3)
    np.testing.assert_allclose(stored / 65535, entropy, atol=1e-5)
    found = np.load(out / "uncertainty" / "labels_mutual_information" / "a.npy")
    np.testing.assert_allclose(found, spread["mutual_information"][0, 0], atol=1e-6)


def test_the_options_reach_the_network(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    words = ("--scales", 1, 1.5, "--flip", "--merge", "max", "--short_side", 64, "--save", "probabilities")
    assert predict(checkpoints.labels, photos, tmp_path / "out", *words) == 0
    options = InferenceOptions(scales=(1.0, 1.5), flip=True, merge="max", short_side=64)
    expected = Predictor.load(checkpoints.labels, "cpu", options=options)(photos / "a.png", evidence=True)
    stored = np.load(tmp_path / "out" / "probabilities" / "a.npy")
    np.testing.assert_allclose(stored, expected.probabilities(), atol=5e-4)
    plain = Predictor.load(checkpoints.labels, "cpu")(photos / "a.png", evidence=True)
    assert (plain.probabilities() - expected.probabilities()).abs().max() > 0.01


RESCALE = {"class_path": "densepred.data.transforms.resize.Rescale", "init_args": {"short_side": 64, "p": 1.0}}


@pytest.mark.parametrize(
    ("data", "side"),
    [
        ({"eval_transforms": [{"class_path": "PadTo", "init_args": {"multiple": 8}}, RESCALE], "size": [10, 20]}, 64),
        ({"eval_transforms": {"class_path": "albumentations.Compose", "init_args": {"transforms": [RESCALE]}}}, 64),
        ({"eval_transforms": [{"class_path": "Rescale", "init_args": {"size": [120, 160]}}]}, 120),
        ({"eval_transforms": [{"class_path": "Rescale", "init_args": {"factor": 0.5}}]}, None),
        ({"eval_transforms": None, "size": [96, 128]}, 96),
        ({"eval_transforms": None}, None),
    ],
)
def test_the_size_of_a_training_is_that_of_its_evaluation(tmp_path, data, side):
    torch.save({"config": yaml.safe_dump({"data": {"class_path": "X", "init_args": data}})}, tmp_path / "x.ckpt")
    assert trained_short_side(tmp_path / "x.ckpt") == side


def test_photos_are_brought_to_the_size_of_the_training_unless_told_otherwise(tmp_path, capsys):
    config = {"data": {"class_path": "X", "init_args": {"eval_transforms": [RESCALE]}}}
    path = save_checkpoint(tmp_path / "x.ckpt", [Segmentation(CLASSES)], config=config)
    photos = write_photos(tmp_path / "photos", ["a.png"], size=(90, 130))
    image = read_photo(photos / "a.png").image[None]
    plain = Predictor.load(path, "cpu", as_trained=False)
    assert isinstance(plain.evidence, NetworkEvidence)
    with torch.inference_mode():
        expected = Rescaled(plain.evidence, 64).predict(image)["segmentation"][0]
        unscaled = plain.evidence.predict(image)["segmentation"][0]
    assert (expected != unscaled).any()
    prediction = Predictor.load(path, "cpu")(photos / "a.png")
    assert torch.equal(prediction["segmentation"], expected)
    assert prediction.notes == ("seen at a shorter side of 64 pixels, as in training",)
    assert predict(path, photos, tmp_path / "as_trained", "--save", "labels") == 0
    assert "shorter side of 64 pixels" in capsys.readouterr().out
    np.testing.assert_array_equal(read_label(tmp_path / "as_trained" / "labels" / "a.png"), expected)
    assert predict(path, photos, tmp_path / "unscaled", "--save", "labels", "--short_side", "none") == 0
    assert "shorter side" not in capsys.readouterr().out
    np.testing.assert_array_equal(read_label(tmp_path / "unscaled" / "labels" / "a.png"), unscaled)


def test_an_ensemble_of_different_sizes_wants_to_be_told_one(checkpoints, tmp_path):
    config = {"data": {"class_path": "X", "init_args": {"eval_transforms": [RESCALE]}}}
    path = save_checkpoint(tmp_path / "x.ckpt", [Segmentation(CLASSES)], config=config)
    with pytest.raises(ConfigurationError, match="trained at different sizes"):
        Predictor.load([path, checkpoints.labels], "cpu")
    Predictor.load([path, checkpoints.labels], "cpu", options=InferenceOptions(short_side=64))


def test_pictures_larger_than_memory_are_predicted_by_windows(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("densepred.commands.predict.LargeImages", partial(LargeImages, least=100 * 100))
    photos = write_photos(tmp_path / "photos", ["small.png"])
    write_photos(photos, ["large.tif"], size=(150, 120))
    words = ("--tile", 64, "--save", "labels", "depth", "overlays")
    assert predict(checkpoints.every, photos, tmp_path / "out", *words) == 0
    assert "2 predicted" in capsys.readouterr().out
    expected = ["depth/large.tif", "depth/small.png", "labels/large.tif", "labels/small.png"]
    assert [name for name in files_below(tmp_path / "out") if name.startswith(("depth", "labels"))] == expected
    options = InferenceOptions(tile=64)
    whole = Predictor.load(checkpoints.every, "cpu", options=options)(photos / "large.tif")["segmentation"]
    with Image.open(tmp_path / "out" / "labels" / "large.tif") as stored:
        assert (np.array(stored) == whole.numpy()).mean() > 0.999
    assert predict(checkpoints.every, photos, tmp_path / "out", *words) == 0
    assert "2 of 2 were there already" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- truth


def test_with_labels_metrics_and_calibration_follow_their_definitions(checkpoints, tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos", ["a.png", "b.png", "c.png"]), tmp_path / "out"
    rng = np.random.default_rng(3)
    truth = {name: rng.integers(0, 3, (40, 56)).astype(np.uint8) for name in "ab"}
    (tmp_path / "truth").mkdir()
    for name, labels in truth.items():
        labels[:5] = 255
        (tmp_path / "truth" / f"{name}.png").write_bytes(label_bytes(labels, [[0, 0, 0]] * 3))
    words = ("--save", "labels", "--labels", tmp_path / "truth")
    predict(checkpoints.labels, photos, out, "--save", "labels")
    assert predict(checkpoints.labels, photos, out, *words) == 0  # files that are there are scored too
    found = json.loads((out / "metrics.json").read_text())["segmentation"]
    predictor = Predictor.load(checkpoints.labels, "cpu")
    known, right, sure, said = [], [], [], []
    for name, labels in truth.items():
        probabilities = predictor(photos / f"{name}.png", evidence=True).probabilities().numpy()
        kept = labels != 255
        known.append(labels[kept])
        said.append(probabilities.argmax(0)[kept])
        sure.append(probabilities.max(0)[kept])
    known, said, sure = (np.concatenate(part) for part in (known, said, sure))
    ious = [((known == c) & (said == c)).sum() / ((known == c) | (said == c)).sum() for c in range(3)]
    assert found["images"] == 2
    assert found["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
    right = known == said
    bins = np.ceil(sure.astype(np.float64) * 15) - 1
    gaps = [abs(right[bins == m].mean() - sure[bins == m].mean()) * (bins == m).mean() for m in np.unique(bins)]
    assert found["calibration/ece"] == pytest.approx(np.sum(gaps), abs=1e-4)
    assert "2 pictures" in capsys.readouterr().out


def test_labels_of_other_classes_are_matched_by_name(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    predicted = Predictor.load(checkpoints.voc, "cpu")(photos / "a.png")["segmentation"].numpy()
    index = np.array([VOC_CLASSES.index(name) for name in ("dog", "background", "cat")], np.uint8)
    truth = index[predicted]
    truth[:7] = VOC_CLASSES.index("horse")  # unknown to the network
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(label_bytes(truth, []))
    words = ("--save", "labels", "--labels", tmp_path / "truth")
    assert predict(checkpoints.voc, photos, tmp_path / "out", *words, "--label_classes", "voc") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["segmentation"]["pixel_accuracy"] == 1
    assert predict(checkpoints.voc, photos, tmp_path / "out", *words) == 1
    assert "say which: --label_classes FILE" in capsys.readouterr().err


def test_true_depth_and_normals_are_scored(checkpoints, tmp_path):
    photos, out = write_photos(tmp_path / "photos", ["a.png"]), tmp_path / "out"
    prediction = Predictor.load(checkpoints.every, "cpu")(photos / "a.png")
    for name, content in {
        "depth": depth_bytes(1.25 * prediction["depth"][0].numpy()),
        "normals": array_bytes(np.broadcast_to(np.float32([0, 0, -1]), (40, 56, 3))),
    }.items():
        path = tmp_path / name / ("a.png" if name == "depth" else "a.npy")
        path.parent.mkdir()
        path.write_bytes(content)
    words = ("--true_depth", tmp_path / "depth", "--true_normals", tmp_path / "normals", "--save", "depth")
    assert predict(checkpoints.every, photos, out, *words) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["depth"]["abs_rel"] == pytest.approx(0.2, abs=1e-3)
    angles = np.degrees(np.arccos(-prediction["normals"][2].numpy().clip(-1, 1)))
    assert found["normals"]["mean_angle"] == pytest.approx(angles.mean(), rel=1e-3)


def test_truth_of_another_size_or_of_no_task_is_told(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    (tmp_path / "truth").mkdir()
    words = ("--labels", tmp_path / "truth", "--save", "labels")
    assert predict(checkpoints.labels, photos, tmp_path / "none", *words) == 1
    assert "no picture has its file there" in capsys.readouterr().err
    (tmp_path / "truth" / "a.png").write_bytes(label_bytes(np.zeros((9, 9), np.uint8), []))
    assert predict(checkpoints.labels, photos, tmp_path / "out", *words) == 1
    assert "its size is (9, 9)" in capsys.readouterr().err
    assert predict(checkpoints.labels, photos, tmp_path / "out", "--true_depth", tmp_path / "truth") == 1
    assert "true depth is given" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    big = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8), (0, 0), 3)
    big[..., 2] = 20  # little blue
    with VideoFile(path, 12.0) as file:
        for shift in range(7):
            file.add(torch.from_numpy(big[:48, 8 * shift : 8 * shift + 64].copy()).permute(2, 0, 1))
    return path


def test_a_video_is_written_with_its_frames_and_rate(video):
    assert video_facts(video) == (7, 12.0)
    frames = list(read_frames(video, every=3))
    assert [number for number, _ in frames] == [1, 4, 7]
    assert frames[0][1].image.shape == (3, 48, 64)
    red, green, blue = frames[0][1].image.float().mean((1, 2)).tolist()
    assert max(abs(red - 128), abs(green - 128), abs(blue - 20)) < 10
    first = cv2.VideoCapture(str(video)).read()[1]
    assert abs(first[..., 0].mean() - 20) < 10  # as OpenCV reads it, blue comes first


def test_frames_of_a_video_are_predicted_in_order(checkpoints, video, tmp_path, capsys):
    words = ("--save", "labels", "--frames", "--every", 2)
    assert predict(checkpoints.labels, video, tmp_path / "out", *words) == 0
    assert "4 predicted" in capsys.readouterr().out
    assert video_facts(tmp_path / "out" / "videos" / "clip.mp4") == (4, 6.0)
    predictor = Predictor.load(checkpoints.labels, "cpu")
    for number, photo in read_frames(video, every=2):
        stored = read_label(tmp_path / "out" / "labels" / "clip" / f"{number:06d}.png")
        np.testing.assert_array_equal(stored, predictor.predict(photo)["segmentation"])
    # the picture beside its labels, the last one last
    shown = list(read_frames(tmp_path / "out" / "videos" / "clip.mp4"))[-1][1].image
    true = list(read_frames(video))[-1][1].image
    assert shown.shape[1] == 48
    assert (shown[:, :, :64].float() - true.float()).abs().mean() < 12
    assert predict(checkpoints.labels, video, tmp_path / "out", *words) == 0
    assert "1 of 1 were there already" in capsys.readouterr().out


def test_a_damaged_video_is_told_and_leaves_nothing(checkpoints, video, tmp_path, capsys):
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:300])
    photos = write_photos(tmp_path / "photos", ["a.png"])
    assert predict(checkpoints.labels, [tmp_path / "cut.mp4", photos], tmp_path / "out", "--save", "labels") == 1
    assert "cut.mp4: cannot be read" in capsys.readouterr().err
    assert files_below(tmp_path / "out") == ["failed.txt", "labels/a.png", "predict.json", "sheet.png"]


def test_a_video_that_is_interrupted_is_not_there(tmp_path):
    def interrupted():
        with VideoFile(tmp_path / "x.mp4", 10) as file:
            file.add(torch.zeros(3, 48, 64, dtype=torch.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_below(tmp_path) == []


# ---------------------------------------------------------------------------------------------- VOC's server


def write_results(root, names=("a", "b"), size=(40, 56), folder=None):
    for index, name in enumerate(names):
        labels = np.random.default_rng(index).integers(0, 21, size).astype(np.uint8)
        path = root / (folder or results_folder()) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(labels)
        image.putpalette(voc_palette())  # the tests' own
        image.save(path)
    return root / (folder or results_folder())


def test_results_for_the_server_are_complete_and_checked(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "JPEGImages", ["b.jpg", "a.jpg", "c.jpg"])
    (tmp_path / "test.txt").write_text("a\nb\n")
    out = tmp_path / "out"
    words = ("--names", tmp_path / "test.txt", "--format", "voc", "--competition", "comp5")
    assert predict(checkpoints.voc, photos, out, *words) == 0
    assert "2 results, nothing wrong" in capsys.readouterr().out
    with tarfile.open(out / ARCHIVE) as archive:
        folder = "results/VOC2012/Segmentation/comp5_test_cls"
        assert archive.getnames() == [f"{folder}/a.png", f"{folder}/b.png"]
    predicted = Predictor.load(checkpoints.voc, "cpu")(photos / "a.jpg")["segmentation"].numpy()
    index = np.array([VOC_CLASSES.index(name) for name in ("dog", "background", "cat")])
    np.testing.assert_array_equal(read_label(out / folder / "a.png"), index[predicted])
    check = ["predict", "--check", str(out / ARCHIVE), "--names", str(tmp_path / "test.txt"), "--input", str(photos)]
    assert main(check) == 0
    (tmp_path / "test.txt").write_text("a\nb\nc\n")
    assert main(check) == 1
    assert "c: has no result" in capsys.readouterr().err


def test_classes_that_are_not_vocs_are_refused_for_its_server(checkpoints, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", ["a.png"])
    assert predict(checkpoints.labels, photos, tmp_path / "out", "--format", "voc") == 1
    assert "'wall' is no class of Pascal VOC" in capsys.readouterr().err


def test_good_results_have_no_fault(tmp_path):
    write_results(tmp_path)
    photos = write_photos(tmp_path / "JPEGImages", ["a.jpg", "b.jpg"])
    assert check_results(tmp_path, ["a", "b"], photos) == []


def relabelled(path, value=None, mode=None, size=None, palette=None):
    labels = read_label(path)
    if value is not None:
        labels[3, 4] = value
    image = Image.fromarray(labels if size is None else labels[: size[0], : size[1]])
    if mode is None:
        image.putpalette(voc_palette() if palette is None else palette)
    image.save(path)


FAULTS = {
    "has no result": lambda folder: (folder / "a.png").unlink(),
    "is not in the image set": lambda folder: (folder / "z.png").write_bytes((folder / "a.png").read_bytes()),
    "is no PNG": lambda folder: (folder / "a.txt").write_text(""),
    "its size is \\(39, 56\\)": lambda folder: relabelled(folder / "a.png", size=(39, 56)),
    "holds 255; expected values 0 to 20": lambda folder: relabelled(folder / "a.png", value=255),
    "holds 21; expected": lambda folder: relabelled(folder / "a.png", value=21),
    "of mode L": lambda folder: relabelled(folder / "a.png", mode="L"),
    "its palette is not VOC's": lambda folder: relabelled(folder / "a.png", palette=[7] * 768),
    "cannot be read": lambda folder: (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60]),
    "not where the server looks": lambda folder: folder.rename(folder.with_name("mine")),
    "Expected one folder": lambda folder: write_results(folder.parents[3], ["a"], folder=results_folder("comp5")),
    "is there twice": lambda folder: write_results(folder.parents[3], ["a"], folder=results_folder("comp5")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_results_is_found(tmp_path, fault):
    FAULTS[fault](write_results(tmp_path))
    photos = write_photos(tmp_path / "JPEGImages", ["a.jpg", "b.jpg"])
    found = check_results(tmp_path, ["a", "b"], photos)
    assert len(found) >= 1
    assert [one for one in found if re.search(fault, one)] != []


def test_links_in_an_archive_of_results_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo(f"{results_folder()}/a.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(DataError, match="is a link"):
        check_results(tmp_path / "x.tar.gz", ["a"])


# ---------------------------------------------------------------------------------------------- published networks


@pytest.mark.slow
def test_published_networks_answer_as_torchvisions(tmp_path):
    name = "deeplabv3_resnet50"
    torch.manual_seed(0)
    reference = getattr(theirs, name)(weights=None, weights_backbone=None, aux_loss=True)
    for key, tensor in reference.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    photos = write_photos(tmp_path / "photos", ["a.png"], size=(64, 96))
    words = ["--input", str(photos), "--output", str(tmp_path / "out"), "--short_side", "none", "--device", "cpu"]
    assert main(["predict", "--weights", f"torchvision/{name}={tmp_path / 'weights.pth'}", *words]) == 0
    image = read_photo(photos / "a.png").image.float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        logits = reference.eval()(((image - mean) / std)[None])["out"][0]
    stored = read_label(tmp_path / "out" / "labels" / "a.png")
    assert len(np.unique(stored)) > 1
    assert (stored == logits.argmax(0).numpy()).mean() > 0.999
    published = load_published(f"torchvision/{name}", tmp_path / "weights.pth")
    assert (published.short_side, published.tasks[0].classes) == (520, VOC_CLASSES)


def test_weights_are_downloaded_once_and_a_broken_download_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    with LocalServer() as server:
        url = server.url.replace("file.tar", f"net-{digest}.pth")
        monkeypatch.setattr(weight_files, "get_model_weights", lambda _: {"V1": SimpleNamespace(url=url)})
        server.cuts = [1000]
        with pytest.raises(WeightsError, match=r"(?s)The weights x are not on this machine.*or say where"):
            weight_files.torchvision_file("net", "V1", "The weights x", "say where")
        assert files_below(tmp_path) == []
        file = weight_files.torchvision_file("net", "V1", "The weights x", "say where")
        assert file.read_bytes() == CONTENT
        asked = len(server.asked)
        assert weight_files.torchvision_file("net", "V1", "The weights x", "say where") == file
        assert len(server.asked) == asked


# ---------------------------------------------------------------------------------------------- threads


def test_things_are_done_ahead_in_order_and_not_too_far():
    started = []

    def double(number):
        started.append(number)
        return 2 * number

    ahead = done_ahead(double, range(100), threads=3, ahead=4)
    assert next(ahead) == 0
    assert len(started) <= 5
    assert list(ahead) == [2 * number for number in range(1, 100)]
    assert list(drawn_ahead(iter("abc"), 2)) == ["a", "b", "c"]


def test_what_fails_in_a_thread_is_raised():
    def fail(_):
        raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        list(done_ahead(fail, [1], 1, 1))
    with pytest.raises(ValueError, match="there"), DoneBehind(1, 1) as behind:
        behind.do(fail, 1)


# ---------------------------------------------------------------------------------------------- real pictures


def test_depth_of_real_rooms_is_scored_against_their_files(checkpoints, real_data, tmp_path):
    names = (real_data / "nyuv2" / "test.txt").read_text().split()[:2]
    photos = [real_data / "nyuv2" / "rgb" / f"{Path(name).stem}.jpg" for name in names]
    words = ("--true_depth", real_data / "nyuv2" / "depth", "--save", "depth", "--short_side", 64)
    assert predict(checkpoints.every, photos, tmp_path / "out", *words) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["depth"]
    errors = []
    for photo in photos:
        true = read_depth(real_data / "nyuv2" / "depth" / f"{photo.stem}.png")
        predicted = read_depth(tmp_path / "out" / "depth" / f"{photo.stem}.png")
        known = (true > 1e-3) & (true < 10)
        errors.append(np.mean(np.abs(np.clip(predicted, 1e-3, 10) - true)[known] / true[known]))
    assert found["images"] == 2
    assert found["abs_rel"] == pytest.approx(np.mean(errors), rel=2e-3)
