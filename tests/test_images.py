"""Reading files: pictures, labels, depth, lists, and what damage in them says."""

import io

import numpy as np
import pytest
from PIL import Image

from densepred.data.images import read_depth, read_image, read_label, read_size, refuse_values
from densepred.data.jpeg import jpeg_fault
from densepred.data.listing import carve, evenly, read_list
from densepred.data.png import png_fault
from densepred.errors import ConfigurationError, DataError
from tests.fakes import voc_palette, write_palette_png


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    """Red falls from left to right, blue rises from top to bottom; noise makes the file large enough to damage."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([255 - columns * 255 // width, 0 * rows, rows * 255 // height], -1)
    return (image + np.random.default_rng(0).integers(-20, 20, image.shape)).clip(0, 255).astype(np.uint8)


def jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_pictures_come_as_rgb_as_pillow_reads_them(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    expected = np.asarray(Image.open(path)).astype(int)
    assert np.abs(read_image(path).astype(int) - expected).mean() < 1
    assert read_size(path) == (60, 80)


def test_grey_and_16_bit_pictures_come_as_three_channels_of_8_bits(tmp_path):
    Image.fromarray(picture()[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(picture()[..., :1], 3, -1))


def test_an_exif_orientation_does_not_turn_the_picture_away_from_its_label(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(exif=exif))
    assert read_image(path).shape == (60, 80, 3)
    assert read_size(path) == (60, 80)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_whole_jpegs_of_every_make_pass(options):
    content = jpeg(**options)
    assert jpeg_fault(content) is None
    assert jpeg_fault(content + b"\x00\xffbytes that a camera left behind") is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.999])
def test_a_jpeg_cut_anywhere_is_found(tmp_path, options, share):
    content = jpeg(**options)
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"cut\.jpg: cannot be read: its end is missing: it is truncated"):
        read_image(path)


def png(depth: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(depth).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_cut_or_changed_anywhere_is_found(dtype):
    content = png(np.random.default_rng(0).integers(0, 250, (20, 30)).astype(dtype))
    assert png_fault(content) is None
    for place in range(8, len(content)):
        assert "truncated" in (png_fault(content[:place]) or "")
    for place in range(16, len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        assert png_fault(bytes(changed)) is not None


def test_a_jpeg_cut_behind_its_thumbnail_is_found():
    thumbnail = jpeg()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    content = b"\xff\xd8" + segment + jpeg()[2:]
    assert jpeg_fault(content) is None
    assert "truncated" in (jpeg_fault(content[:-500]) or "")


@pytest.mark.parametrize("seed", range(8))
def test_foreign_bytes_within_a_jpeg_are_found(tmp_path, seed):
    content = bytearray(jpeg())
    middle = len(content) // 2
    content[middle : middle + 1000] = np.random.default_rng(seed).bytes(1000)
    path = tmp_path / "spoilt.jpg"
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"spoilt\.jpg: cannot be read: its data are damaged"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_marker_that_cannot_stand_within_a_scan_is_found_with_its_place(progressive):
    content = bytearray(jpeg(progressive=progressive))
    place = content.rindex(b"\xff\xda") + 300
    content[place : place + 4] = b"\xff\xc1\x00\x04"
    assert jpeg_fault(bytes(content)) == f"its data are damaged at byte {place}"


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "it is empty, 0 bytes"), (b"<html>404</html>", "damaged from its start, or no picture")],
)
def test_files_that_are_no_pictures_are_named_with_the_cause(tmp_path, content, cause):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.jpg: cannot be read: it is .*{cause[6:]}"):
        read_image(path)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read"):
        read_size(path)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_image, read_label, read_depth, read_size):
        with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
            read(tmp_path / "gone.png")


def test_labels_are_the_indices_of_a_palette_not_its_colours(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_palette_png(tmp_path / "a.png", labels)
    assert Image.open(tmp_path / "a.png").getpalette() == voc_palette()
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), labels)
    assert read_label(tmp_path / "a.png").dtype == np.uint8


def test_labels_of_16_bits_keep_their_values(tmp_path):
    labels = np.array([[0, 255], [894, 65535]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), labels)
    assert read_label(tmp_path / "a.png").dtype == np.int32


def test_labels_stored_as_colours_are_refused(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected class indices .* colour picture of mode 'RGB'"):
        read_label(tmp_path / "a.png")


def test_a_truncated_label_is_named(tmp_path):
    write_palette_png(tmp_path / "a.png", picture()[..., 0])
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.png: cannot be read: .*truncated"):
        read_label(tmp_path / "a.png")


def test_depth_is_metres_and_zero_where_missing(tmp_path):
    Image.fromarray(np.array([[0, 1], [1500, 65535]], np.uint16)).save(tmp_path / "a.png")
    depth = read_depth(tmp_path / "a.png")
    np.testing.assert_allclose(depth, [[0, 0.001], [1.5, 65.535]], rtol=1e-6)
    assert depth.dtype == np.float32


def test_depth_of_8_bits_is_refused(tmp_path):
    Image.fromarray(picture()[..., 0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected depth as a 16-bit grey PNG"):
        read_depth(tmp_path / "a.png")


def test_illegal_label_values_are_named_with_their_place(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    labels[2, 3:] = 77
    labels[0, 0] = 255
    with pytest.raises(DataError, match=r"a\.png: label value 77 in 2 pixels, first at row 2, column 3.* 0 to 20"):
        refuse_values(labels, 21, tmp_path / "a.png")
    refuse_values(labels, 78, tmp_path / "a.png")


def test_lists_of_names_and_of_paths_give_the_same_names(tmp_path):
    (tmp_path / "names.txt").write_text("2007_000032\n\n2007_000039 \n")
    (tmp_path / "paths.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n/JPEGImages/2007_000039.jpg x.png\n"
    )
    assert read_list(tmp_path / "names.txt") == read_list(tmp_path / "paths.txt") == ["2007_000032", "2007_000039"]


def test_lists_that_are_empty_missing_or_repeat_themselves_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"empty\.txt: the list is empty"):
        read_list(tmp_path / "empty.txt")
    with pytest.raises(DataError, match=r"twice\.txt: lists 'a' twice"):
        read_list(tmp_path / "twice.txt")
    with pytest.raises(DataError, match=r"gone\.txt: there is no such list"):
        read_list(tmp_path / "gone.txt")


def test_a_limited_list_is_spread_over_the_whole():
    names = [f"{i}" for i in range(100)]
    assert evenly(names, 4) == ["0", "25", "50", "75"]
    assert evenly(names, 1000) == evenly(names, None) == names


def test_a_limit_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="A limit of -1 leaves nothing of a list"):
        evenly(["a", "b"], -1)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_carved_list_loses_nothing_and_keeps_neighbours_together(share):
    names = [f"{i:04d}" for i in range(795)]
    rest, carved = carve(names, share)
    assert sorted(rest + carved) == names
    assert abs(len(carved) - share * 795) <= 10
    starts = [i for i, name in enumerate(carved) if i == 0 or int(name) != int(carved[i - 1]) + 1]
    assert all(int(carved[i]) % 10 == 0 for i in starts)
