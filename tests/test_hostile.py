"""Files that nobody should have made: each ends in one message that names it, and leaves nothing half-written."""

import errno
import gzip
import io
import os
import resource
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from densepred.callbacks.checkpoints import WholeFileCheckpointIO
from densepred.cli import main
from densepred.data.atomic import whole_file
from densepred.data.folder import FolderDataModule
from densepred.data.images import read_depth, read_image, read_label, read_npy, read_size, refuse_values
from densepred.data.listing import read_list, write_list
from densepred.data.prepare.archives import entries, unpack
from densepred.data.prepare.sbd import read_sbd_label
from densepred.data.rasters import DepthReader, ImageReader
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError, DataError, LabelError, UserError
from densepred.inference.options import InferenceOptions
from densepred.inference.photos import read_photo
from densepred.inference.predictor import Predictor
from densepred.inference.resizing import short_side_size
from densepred.module import DensePredictor
from densepred.tasks.depth import Depth
from tests.fuzz import fuzz
from tests.preparing import tree

PICTURE_READERS = [read_image, read_label, read_depth, read_size, ImageReader(upright=True), DepthReader(), read_photo]


def png_that_claims(width: int, height: int) -> bytes:
    """A whole PNG, checksums and all, of a few bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(reader, path: Path) -> str:
    """The one message that a reader ends in."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as error:
        reader(path)
    assert path.name in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024, "KiB of memory"
    return str(error.value)


@pytest.mark.parametrize("reader", PICTURE_READERS)
def test_a_picture_of_a_few_bytes_that_claims_to_fill_the_memory_is_refused(tmp_path, reader):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(60_000, 50_000))
    assert "has more than 178,956,970 pixels, which a file of" in refused(reader, path)


@pytest.mark.parametrize("reader", PICTURE_READERS)
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.png", b"", "empty, 0 bytes"),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>", "no picture"),
        ("text.png", b"not a picture", "no picture"),
        ("zeros.jpg", bytes(5000), "no picture"),
    ],
)
def test_what_is_no_picture_is_told_so_whatever_it_is_called(tmp_path, reader, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refused(reader, tmp_path / name)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "cut.tif", "cut.npy", "cut.gif"])
def test_a_file_cut_short_is_refused(tmp_path, name):
    whole = tmp_path / f"whole{Path(name).suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    np.save(whole, pixels) if whole.suffix == ".npy" else Image.fromarray(pixels).save(whole)
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(ImageReader(), path)
    if path.suffix not in (".tif", ".npy"):
        refused(read_photo, path)


def test_a_picture_is_read_by_what_it_holds_and_not_by_its_ending(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", format="PNG")
    for reader in (read_image, ImageReader(), lambda path: read_photo(path).image.permute(1, 2, 0).numpy()):
        np.testing.assert_array_equal(reader(tmp_path / "a.jpg"), pixels)


@pytest.mark.parametrize("reader", [read_image, read_label, read_npy, read_photo])
def test_folders_pipes_devices_and_impossible_names_are_refused_without_waiting(tmp_path, reader):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "folder.png", tmp_path / "pipe.png", Path("/dev/zero"), tmp_path / ("x" * 300)):
        told = refused(reader, path)
        assert "is a folder" in told or "File name too long" in told


def test_arrays_with_python_objects_and_archives_of_arrays_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=np.zeros((3, 4)))
    assert "Python objects" in refused(read_npy, tmp_path / "objects.npy")
    assert "archive of arrays" in refused(read_npy, tmp_path / "archive.npy")


def test_depth_that_is_nan_negative_or_infinite_is_missing_and_not_an_answer(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([[np.nan, -1, np.inf, -np.inf, 0, 2]], dtype=np.float32))
    assert DepthReader()(tmp_path / "depth.npy").tolist() == [[0, 0, 0, 0, 0, 2]]


def test_label_values_of_no_class_are_named_with_their_place(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[2, 3] = 200
    Image.fromarray(labels).save(tmp_path / "a.png")
    with pytest.raises(LabelError, match=r"a\.png: label value 200 in 1 pixels, first at row 2, column 3"):
        refuse_values(read_label(tmp_path / "a.png"), 21, tmp_path / "a.png")


STRANGE = ["with space", "ünïcode 图片", "new\nline", "quote'\"", "-dash", "{brace}", "%d", "a,b;c", "dots..in.it"]


def folder_set(root: Path, names: list[str], classes: int = 3, size: tuple[int, int] = (40, 48)) -> Path:
    """A folder of images and labels of these names; every class is in every label that has room for it."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    values = np.arange(size[0] * size[1]).reshape(size) % classes
    stored = values.astype(np.uint8) if classes < 256 else values.astype(np.uint16)
    for name in names:
        Image.fromarray(np.full((*size, 3), 99, np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(stored).save(root / "labels" / f"{name}.png")
    (root / "classes.txt").write_text("".join(f"class{number}\n" for number in range(classes)))
    return root


def folder_samples(root: Path) -> list[dict]:
    data = FolderDataModule(root=root, val_share=0.2, test_share=0.0, num_workers=0)
    return [sample for split in ("train", "val") for sample in data.dataset(split, None)]


def test_names_with_spaces_other_alphabets_and_line_breaks_are_names(tmp_path):
    names = STRANGE + [f"{number}" for number in range(20)]
    root = folder_set(tmp_path / "my sét of\nphotos", names)
    assert sorted(sample["name"] for sample in folder_samples(root)) == sorted(names)
    for name in STRANGE:
        photo = read_photo(root / "images" / f"{name}.png")
        assert photo.name == f"{name}.png"
        assert photo.image.shape == (3, 40, 48)


@pytest.mark.parametrize("classes", [255, 256, 300, 1000])
def test_more_classes_than_a_byte_holds_are_read_with_none_lost(tmp_path, classes):
    sample = folder_samples(folder_set(tmp_path / "set", [str(i) for i in range(20)], classes))[0]
    labels = np.asarray(sample["segmentation"])
    assert np.unique(labels).tolist() == list(range(classes))
    assert labels.dtype == (np.uint8 if classes <= 255 else np.int32)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_pictures_of_one_pixel_and_of_one_line_are_read(tmp_path, size):
    Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").image.shape == (3, *size)
    assert read_image(tmp_path / "a.png").shape == (*size, 3)
    assert read_size(tmp_path / "a.png") == size


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00\x80")
    assert "expected a text file" in refused(read_list, tmp_path / "train.txt")


def bombs(folder: Path) -> dict[str, Path]:
    """Archives that would fill memory or disk, or reach out of their folder."""
    paths = {name: folder / name for name in ("zip.zip", "header.tar.gz", "padding.tar.gz", "link.zip", "hard.tar")}
    with zipfile.ZipFile(paths["zip.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.bin", b"x")
        archive.infolist()[0].file_size = 40 << 30
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 7 << 30
    with zipfile.ZipFile(paths["link.zip"], "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with gzip.open(paths["header.tar.gz"], "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with gzip.open(paths["padding.tar.gz"], "wb", compresslevel=1) as file:
        member = tarfile.TarInfo("a.txt")
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.writelines(bytes(1 << 20) for _ in range(70))
    with tarfile.open(paths["hard.tar"], "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
        hard = tarfile.TarInfo("b.txt")
        hard.type, hard.linkname = tarfile.LNKTYPE, "a.txt"
        tar.addfile(hard)
    return paths


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zip.zip", "unpacks to more than 32.0 GiB"),
        ("header.tar.gz", "a header in it says that it has 7.0 GiB"),
        ("padding.tar.gz", "behind its files"),
        ("link.zip", "'link' is a link"),
        ("hard.tar", "'b.txt' is a link"),
    ],
)
def test_archives_that_are_bombs_or_hold_links_are_refused(tmp_path, name, words):
    archive = bombs(tmp_path)[name]
    (tmp_path / "out").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as error:
        unpack(entries(archive), tmp_path / "out")
    assert words in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_a_matlab_file_that_unpacks_to_more_than_any_label_does_is_refused():
    content = io.BytesIO()
    savemat(content, {"GTcls": np.zeros((9000, 9000), np.uint8)}, do_compression=True)
    assert len(content.getvalue()) < 1 << 20
    with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
        read_sbd_label(content.getvalue(), "a.mat")


@contextmanager
def no_file_above(size: int):
    """The kernel refuses to write beyond so many bytes of a file, as a disk that is full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path):
    writer = WholeFileCheckpointIO()
    writer.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    before = tree(tmp_path)
    with no_file_above(100_000), pytest.raises((OSError, RuntimeError)):
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(1_000_000)}, tmp_path / "last.ckpt")
    assert tree(tmp_path) == before


def test_a_list_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path):
    write_list(tmp_path / "train.txt", ["a"])
    with no_file_above(1000), pytest.raises(OSError, match="File too large"):
        write_list(tmp_path / "train.txt", ["x" * 100] * 1000)
    assert tree(tmp_path) == {"train.txt": b"a\n"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device"), SystemExit])
def test_a_write_that_is_interrupted_leaves_nothing(tmp_path, error):
    def write():
        with whole_file(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        write()
    assert tree(tmp_path) == {}


CONFIG = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                "limit_val_batches": 1},
    "model": {
        "class_path": "DensePredictor",
        "init_args": {
            "encoder": {"class_path": "ResNetEncoder", "init_args": {"name": "resnet18"}},
            "decoder": {"class_path": "PointwiseDecoder"},
            "tasks": [{"class_path": "Depth"}],
        },
    },
    "data": {"class_path": "RoomsDataModule", "init_args": {
        "size": [48, 64], "train": 2, "val": 2, "test": 2, "batch_size": 2, "num_workers": 0}},
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    return "run.yaml"


DISKS = {
    errno.ENOSPC: "Make room",
    errno.EROFS: "Name a folder that you may read and write",
    errno.EACCES: "Name a folder that you may read and write",
}


@pytest.mark.parametrize("number", DISKS)
def test_a_verb_on_a_full_or_read_only_disk_ends_in_one_message(config, monkeypatch, capsys, number):
    def mkdir(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "makedirs", mkdir)
    assert main(["check-data", "--config", config]) == 1
    message = capsys.readouterr().err
    assert os.strerror(number) in message
    assert DISKS[number] in message
    assert "Traceback" not in message
    assert sorted(tree(Path())) == [config]


def test_a_training_whose_checkpoint_does_not_fit_ends_in_one_message_and_keeps_no_part_of_it(config, capsys):
    with no_file_above(1_000_000):
        status = main(["fit", "--config", config])
    message = capsys.readouterr().err
    assert status == 1
    assert "Make room" in message
    assert "Traceback" not in message
    assert [name for name in tree(Path()) if ".ckpt" in name] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow's and torch's remarks on damaged files
def test_a_short_fuzz_of_all_readers_finds_answers_and_messages_alone(tmp_path):
    seconds = float(os.environ.get("DENSEPRED_FUZZ_SECONDS", "6"))
    seed = int(os.environ.get("DENSEPRED_FUZZ_SEED", "0"))
    counts, faults = fuzz(seconds, seed, tmp_path)
    assert faults == []
    assert sum(counts.values()) > 100
    assert issubclass(DataError, UserError)


def small_checkpoint(path: Path) -> Path:
    """What a training of the smallest network would have left."""
    torch.manual_seed(0)
    module = DensePredictor(UNetEncoder(widths=(4, 8)), PointwiseDecoder, [Depth()])
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    return path


def test_prediction_answers_for_the_whole_files_of_a_hostile_folder_and_names_the_others(tmp_path, capsys):
    photos = tmp_path / "my phötos\n"
    photos.mkdir()
    whole = ["with space", "ünïcode 图片", "-dash", "quote'\""]
    for name in whole:
        Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(photos / f"{name}.png")
    broken = {"bomb.png": png_that_claims(60_000, 50_000), "empty.jpg": b"", "page.jpg": b"<html>404</html>",
              "cut.png": (photos / "-dash.png").read_bytes()[:60]}  # fmt: skip
    for name, content in broken.items():
        (photos / name).write_bytes(content)
    checkpoint, output = small_checkpoint(tmp_path / "a.ckpt"), tmp_path / "out"
    status = main(["predict", "--ckpt_path", str(checkpoint), "--input", str(photos), "--output", str(output)])
    told = "".join(capsys.readouterr())
    assert status == 1
    assert "Traceback" not in told
    assert [name for name in broken if name not in told] == []
    written = tree(output)
    assert [name for name in whole if not any(name in file for file in written)] == []
    assert [
        file for file in written if "unfinished" in file or Path(file).stem in ("bomb", "empty", "page", "cut")
    ] == []


def test_lines_of_pixels_are_not_enlarged_to_more_than_the_memory_but_told_of_and_strips_are_predicted(tmp_path):
    predictor = Predictor.load(small_checkpoint(tmp_path / "a.ckpt"), options=InferenceOptions(short_side=120))
    for size in ((1, 10_000), (10_000, 1)):
        assert short_side_size(size, 120) == size
        with pytest.raises(ConfigurationError, match=r"The image is \d+ x \d+; .* more than 32 pixels a side"):
            predictor(np.zeros((*size, 3), np.uint8))
    assert predictor(np.zeros((5, 150, 3), np.uint8))["depth"].shape == (1, 5, 150)


def test_a_broken_file_does_not_make_the_whole_ones_be_predicted_again(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(photos / f"{name}.png")
    (photos / "c.png").write_bytes(b"")
    checkpoint = small_checkpoint(tmp_path / "a.ckpt")
    command = ["predict", "--ckpt_path", str(checkpoint), "--input", str(photos), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "2 predicted" in capsys.readouterr().out
    assert main(command) == 1
    assert "2 of 3 were there already" in capsys.readouterr().out
    Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(photos / "c.png")
    os.utime(photos / "c.png", (2e9, 2e9))
    assert main(command) == 0
    assert "3 predicted" in capsys.readouterr().out  # all of them for a new sheet


def test_a_prediction_that_does_not_fit_on_the_disk_leaves_no_half_of_a_file(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(tmp_path / "a.png")
    checkpoint, output = small_checkpoint(tmp_path / "a.ckpt"), tmp_path / "out"
    with no_file_above(20_000):
        status = main(
            ["predict", "--ckpt_path", str(checkpoint), "--input", str(tmp_path / "a.png"), "--output", str(output)]
        )
    told = capsys.readouterr().err
    assert status == 1
    assert "File too large" in told
    assert "make room" in told
    assert "Traceback" not in told
    assert [name for name, content in tree(output).items() if len(content) >= 20_000 or "unfinished" in name] == []


def test_batches_of_arrays_are_predicted_and_what_is_no_image_is_told_at_once(tmp_path):
    predictor = Predictor.load(small_checkpoint(tmp_path / "a.ckpt"))
    batch = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), np.uint8)
    both = predictor(batch)
    for one, image in zip(both, batch, strict=True):
        np.testing.assert_allclose(one["depth"], predictor(image)["depth"], rtol=1e-5)
    assert len(both) == 2
    with pytest.raises(DataError, match=r"got bytes.*Image\.open"):
        predictor(b"\x89PNG")
    with pytest.raises(DataError, match=r"the image has 50\. Arrays are \(H, W, C\)"):
        predictor(batch[0].transpose(2, 0, 1))


def test_the_first_picture_of_several_in_a_file_is_taken_and_said(tmp_path):
    frames = [Image.fromarray(np.full((40, 48, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    photo = read_photo(tmp_path / "a.gif", 3)
    assert photo.notes == ("the first of 2 frames",)
    assert photo.image.float().mean() < 50


@pytest.mark.parametrize("verb", ["export", "check-data", "samples"])
def test_a_misspelt_option_is_named_and_not_answered_about_data(verb, tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "a.ckpt")
    given = ["--ckpt_path", str(checkpoint), "--output", str(tmp_path / "x")] if verb == "export" else []
    assert main([verb, *given, "--formats", "onnx"]) == 1
    assert "unrecognized arguments: --formats" in capsys.readouterr().err
