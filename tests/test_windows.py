"""Large images window by window: read as whole files are, written whole or not at all, in memory of the tile's size."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from densepred.data.tiff import read_tiff
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError, DataError
from densepred.inference.evidence import Evidence, NetworkEvidence
from densepred.inference.photos import read_photo
from densepred.inference.tiling import Tiled
from densepred.inference.window_readers import NpyWindows, TiffWindows, WholeImage, image_windows
from densepred.inference.window_writers import TiffWriter, window_writer
from densepred.inference.windows import predict_large
from densepred.network import DenseNetwork
from densepred.palettes import voc_palette
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from tests.fakes import write_tiff

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (301, 417, 3), dtype=np.uint8)
WINDOWS = [(slice(0, 301), slice(0, 417)), (slice(17, 180), slice(200, 417)), (slice(300, 301), slice(0, 1))]


@pytest.fixture(scope="module")
def evidence():
    torch.manual_seed(0)
    tasks = [Segmentation(5), Depth(log=True), Normals()]
    encoder = UNetEncoder(widths=(4, 6, 8))
    network = DenseNetwork(encoder, lambda *a: UNetDecoder(*a, widths=(6, 4)), {t.name: t.out_channels for t in tasks})
    return NetworkEvidence(network.eval(), tasks)


def written(path, pixels, **options):
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif options:
        Image.fromarray(pixels).save(path, **options)
    else:
        write_tiff(path, pixels)
    return path


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize("pixels", [COLOURS, COLOURS[..., 0], COLOURS[..., 0].astype(np.uint16) * 200])
def test_windows_of_a_tiff_are_parts_of_the_whole_picture(tmp_path, compression, pixels):
    path = written(tmp_path / "a.tif", pixels, compression=compression)
    windows, whole = image_windows(path), read_photo(pixels).image
    assert isinstance(windows, TiffWindows)
    assert windows.size == (301, 417)
    for rows, columns in WINDOWS:
        assert torch.equal(windows(rows, columns)[0], whole[:, rows, columns])


@pytest.mark.parametrize("apart", [True, False])
def test_windows_of_bands_are_parts_of_the_array(tmp_path, apart):
    pixels = RANDOM.integers(0, 65536, (50, 70, 5)).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", pixels, apart)
    windows = image_windows(tmp_path / "a.tif", channels=5)
    expected = torch.from_numpy(pixels[10:33, 5:70].astype(np.float32) / 65535).permute(2, 0, 1)
    torch.testing.assert_close(windows(slice(10, 33), slice(5, 70))[0], expected)


def test_windows_of_an_array_are_parts_of_it(tmp_path):
    windows = image_windows(written(tmp_path / "a.npy", COLOURS))
    assert isinstance(windows, NpyWindows)
    for rows, columns in WINDOWS:
        assert (windows(rows, columns)[0].permute(1, 2, 0).numpy() == COLOURS[rows, columns]).all()
    grey = image_windows(written(tmp_path / "b.npy", COLOURS[..., 0]))
    assert (grey(*WINDOWS[1])[0, 2].numpy() == COLOURS[..., 0][WINDOWS[1]]).all()
    assert list(grey.notes) == ["grey, as three equal channels"]


def test_other_pictures_are_held_as_a_whole_and_say_so(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS[..., ::-1])
    for path in (
        tmp_path / "a.png",
        written(tmp_path / "turned.tif", COLOURS, compression="tiff_lzw", tiffinfo={274: 6}),
        written(tmp_path / "jpeg.tif", COLOURS, compression="jpeg"),
    ):
        windows = image_windows(path)
        assert isinstance(windows, WholeImage)
        assert any("decoded as a whole, which takes 0 MiB" in note for note in windows.notes)
        assert torch.equal(windows(slice(3, 9), slice(5, 7))[0], read_photo(path).image[:, 3:9, 5:7])


def test_files_that_cannot_be_read_by_windows_say_where_and_what_to_do(tmp_path):
    cut = written(tmp_path / "cut.tif", COLOURS, compression="tiff_adobe_deflate")
    cut.write_bytes(cut.read_bytes()[:-1] + b"x")
    plain = tmp_path / "plain.tif"
    with window_writer(plain, (300, 300), np.dtype(np.uint8)) as writer:
        writer.write(slice(0, 300), slice(0, 300), COLOURS[:300, :300, 0])
    damaged = bytearray(plain.read_bytes())
    damaged[16:200] = bytes(184)
    plain.write_bytes(damaged)
    with pytest.raises(DataError, match=r"plain\.tif.*cannot be read as TIFF"):
        image_windows(plain)(slice(0, 9), slice(0, 9))
    np.save(tmp_path / "floats.npy", COLOURS * 2.0)
    with pytest.raises(DataError, match=r"floats\.npy, rows 0 to 9, columns 0 to 8: floating point images are in"):
        image_windows(tmp_path / "floats.npy")(slice(0, 9), slice(0, 8))
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match=r"text\.npy: cannot be read as an array"):
        image_windows(tmp_path / "text.npy")
    np.save(tmp_path / "line.npy", COLOURS[0, 0])
    with pytest.raises(DataError, match=r"got an array of shape \(3,\)"):
        image_windows(tmp_path / "line.npy")
    for name in ("none.npy", "none.tif", "none.png"):
        with pytest.raises(DataError, match="there is no such file"):
            image_windows(tmp_path / name)


@pytest.mark.parametrize(
    ("pixels", "reader"),
    [
        (COLOURS, "pillow"),
        (COLOURS[..., 0], "pillow"),
        (COLOURS[..., 0].astype(np.uint16) * 250, "opencv"),
        (COLOURS.astype(np.float32) / 7, "ours"),
        (COLOURS[..., 0].astype(np.float32) / 7, "pillow"),
        (COLOURS[..., :2], "ours"),
    ],
)
def test_what_is_written_window_by_window_is_read_by_others(tmp_path, pixels, reader):
    path = tmp_path / "a.tif"
    with window_writer(path, pixels.shape, pixels.dtype) as writer:
        for rows in (slice(256, 301), slice(0, 256)):
            for columns in (slice(0, 256), slice(256, 417)):
                writer.write(rows, columns, pixels[rows, columns])
        assert not path.exists()
    match reader:
        case "pillow":
            got = np.asarray(Image.open(path))
        case "opencv":
            got = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        case _:
            got = read_tiff(path.read_bytes(), path)
    np.testing.assert_array_equal(got, pixels)
    assert torch.equal(
        torch.from_numpy(image_windows(path, 3).pixels(slice(1, 290), slice(200, 300))),
        torch.from_numpy(pixels.reshape(301, 417, -1)[1:290, 200:300]),
    )


@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_a_large_image_is_predicted_as_in_memory(tmp_path, evidence, ending):
    source = written(tmp_path / "a.npy", COLOURS)
    tiled = Tiled(evidence, 96)
    expected = tiled.predict(torch.from_numpy(COLOURS).permute(2, 0, 1)[None])
    targets = {task.name: tmp_path / "out" / f"{task.name}{ending}" for task in evidence.tasks}
    outcome = predict_large(tiled, source, targets, sums=1)
    assert outcome.size == (301, 417)
    assert outcome.tiles == tiled.count((301, 417), 1, 256) > tiled.count((301, 417))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in targets.values()}
    depth, normals = expected["depth"][0, 0].numpy(), expected["normals"][0].permute(1, 2, 0).numpy()
    if ending == ".npy":
        labels = np.load(targets["segmentation"])
        np.testing.assert_allclose(np.load(targets["depth"]), depth, rtol=1e-5)
        np.testing.assert_allclose(np.load(targets["normals"]), normals, atol=1e-5)
    else:
        picture = Image.open(targets["segmentation"])
        labels = np.asarray(picture)
        assert picture.getpalette()[:15] == [part for colour in voc_palette(5) for part in colour]
        metres = cv2.imread(str(targets["depth"]), cv2.IMREAD_UNCHANGED) / 1000
        np.testing.assert_allclose(metres, depth, atol=0.00051)
        np.testing.assert_allclose(np.asarray(Image.open(targets["normals"])) / 127.5 - 1, normals, atol=0.0041)
    assert (labels == expected["segmentation"][0].numpy()).mean() > 0.9999


class Failing(Evidence):
    def __init__(self, task):
        super().__init__([task])
        self.left = 2

    def __call__(self, image):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return {"depth": torch.zeros(1, 1, *image.shape[-2:])}


@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_an_interrupt_leaves_nothing_and_what_was_there_stays(tmp_path, ending):
    source = written(tmp_path / "a.npy", np.zeros((600, 40, 3), np.uint8))
    target = tmp_path / f"depth{ending}"
    target.write_text("from before")
    with pytest.raises(KeyboardInterrupt):
        predict_large(Tiled(Failing(Depth()), (300, 64), 0), source, {"depth": target})
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", target.name}
    assert target.read_text() == "from before"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a device that is always full is a thing of Linux")
@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_a_full_disk_is_one_clear_message(tmp_path, evidence, ending, monkeypatch):
    source = written(tmp_path / "a.npy", COLOURS)
    target = tmp_path / f"depth{ending}"
    (tmp_path / f".{target.name}.unfinished").symlink_to("/dev/full")
    with pytest.raises(DataError, match="Nothing of it was kept; make room"):
        predict_large(Tiled(evidence, 96), source, {"depth": target})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_targets_that_cannot_be_written_are_refused(tmp_path, evidence):
    source = written(tmp_path / "a.npy", COLOURS)
    with pytest.raises(ConfigurationError, match="no task surface to write; there are segmentation, depth, normals"):
        predict_large(Tiled(evidence, 96), source, {"surface": tmp_path / "a.tif"})
    with pytest.raises(DataError, match=r"depth\.png: large images are written window by window as \.npy, \.tif"):
        predict_large(Tiled(evidence, 96), source, {"depth": tmp_path / "depth.png"})


PEAK = """
import sys
from pathlib import Path
import torch
from densepred.inference.evidence import Evidence
from densepred.inference.tiling import Tiled
from densepred.inference.windows import predict_large
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation

class Cheap(Evidence):
    def __call__(self, image):
        grey = image[:, :1].float() / 255
        return {"segmentation": torch.cat([grey, 1 - grey], 1), "depth": grey + 1}

evidence = Tiled(Cheap([Segmentation(2), Depth()]), 512)
for source in sys.argv[1:]:
    targets = {name: Path(f"{source}.{name}{Path(source).suffix}") for name in ("segmentation", "depth")}
    predict_large(evidence, source, targets, sums=1)
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
def test_memory_follows_the_tile_and_not_the_image(tmp_path):
    sources = []
    for side in (1024, 4096):
        image = np.zeros((side, side, 3), np.uint8)
        sources += [tmp_path / f"{side}.npy", tmp_path / f"{side}.tif"]
        np.save(sources[-2], image)
        with TiffWriter(sources[-1], image.shape, image.dtype) as writer:
            writer.write(slice(0, side), slice(0, side), image)
    command = [sys.executable, "-c", PEAK, *map(str, sources)]
    peaks = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # the image grows by 45 MiB, its labels and depth by 75 MiB
    assert int(peaks[3]) - int(peaks[1]) < 25 * 1024
