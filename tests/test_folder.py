"""Own data in folders: what belongs together, what files hold, what is refused; and the real sets read as folders."""

import io
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from densepred.cli import main
from densepred.data.camvid import CAMVID_CLASSES, CamVidDataModule
from densepred.data.folder import FolderDataModule
from densepred.data.folder_files import share
from densepred.data.label_codes import ClassLine, LabelReader
from densepred.data.normals_source import NormalsFromDepth
from densepred.data.nyu import NYUDepthV2DataModule
from densepred.data.rasters import read_raster
from densepred.data.tiff import read_tiff
from densepred.errors import ConfigurationError, DataError
from tests.fakes import voc_palette, write_folder, write_list, write_tiff


def folder(root, **options):
    return FolderDataModule(str(root), **{"num_workers": 0, "val_share": 0.3, "test_share": 0.2, **options})


def names(data, split):
    return [sample.name for sample in data.splits.samples(split)]


def first(root, **options):
    """The first sample of the folder, all images in train."""
    return folder(root, **{"val_share": 0.0, "test_share": 0.0, **options}).dataset("train", None)[0]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def one(root, image=None, labels=None, classes=("ground", "tree", "sky")):
    """A folder of one image."""
    save(root / "images" / "a.png", np.zeros((6, 8, 3), np.uint8) if image is None else image)
    if labels is not None:
        save(root / "labels" / "a.png", labels)
    write_list(root / "classes.txt", list(classes))
    return root


def test_the_folders_there_are_are_the_keys_of_a_sample_as_their_files_say(tmp_path):
    root = write_folder(tmp_path, depth="depth", normals="normals")
    (root / "intrinsics.txt").write_text("50 51 31.5 23.5\n")
    sample = first(root)
    assert sample.keys() == {"image", "name", "segmentation", "depth", "normals", "intrinsics"}
    stored = {key: np.array(Image.open(root / key / "a.png")) for key in ("images", "labels", "depth", "normals")}
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), stored["images"])
    np.testing.assert_array_equal(sample["segmentation"], stored["labels"])
    np.testing.assert_allclose(sample["depth"][0], stored["depth"] / 1000, rtol=1e-6)
    encoded = stored["normals"] / 127.5 - 1
    unit = encoded / np.linalg.norm(encoded, axis=-1, keepdims=True)
    np.testing.assert_allclose(sample["normals"].permute(1, 2, 0), unit, atol=1e-6)
    assert sample["intrinsics"].tolist() == [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]]
    assert first(root, targets=("depth",)).keys() == {"image", "name", "depth", "intrinsics"}
    os.rename(root / "labels", root / "else")
    assert "segmentation" not in first(root)


def test_shares_are_a_function_of_each_name_so_added_files_move_no_others(tmp_path):
    many = [f"{i:03d}" for i in range(400)]
    for name in many[::2]:
        save(tmp_path / "images" / f"{name}.png", np.zeros((1, 1), np.uint8))
        save(tmp_path / "depth" / f"{name}.png", np.ones((1, 1), np.uint16))
    before = {split: set(names(folder(tmp_path), split)) for split in ("train", "val", "test")}
    for name in many[1::2]:
        save(tmp_path / "images" / f"{name}.png", np.zeros((1, 1), np.uint8))
        save(tmp_path / "depth" / f"{name}.png", np.ones((1, 1), np.uint16))
    after = {split: set(names(folder(tmp_path), split)) for split in before}
    assert all(before[split] <= after[split] for split in before)
    assert sorted(name for split in after.values() for name in split) == many
    # 400 draws of 0.3 and 0.2: within four standard deviations
    assert abs(len(after["val"]) - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5
    assert abs(len(after["test"]) - 80) < 4 * (400 * 0.2 * 0.8) ** 0.5
    assert set(names(folder(tmp_path, split_seed=1), "val")) != after["val"]


def test_images_of_one_scene_fall_into_one_split(tmp_path):
    write_folder(tmp_path, [f"{scene}_{view}" for scene in range(20) for view in range(3)], size=(4, 4))
    data = folder(tmp_path, group_by="^[^_]+")
    scenes = [{name.split("_")[0] for name in names(data, split)} for split in ("train", "val", "test")]
    assert sum(map(len, scenes)) == 20
    assert all(scenes)


def test_lists_decide_and_may_hold_names_with_spaces_files_and_paths(tmp_path):
    root = write_folder(tmp_path, ["ein Hund", "naïve", "c", "d"])
    write_list(root / "train.txt", ["ein Hund", "images/naïve.png labels/naïve.png"])
    write_list(root / "val.txt", ["/far/away/images/c.png"])
    data = folder(root)
    assert names(data, "train") == ["ein Hund", "naïve"]
    assert names(data, "val") == ["c"]
    with pytest.raises(DataError, match=r"no test split.*test\.txt.*data\.test_split"):
        data.dataset("test", None)
    write_list(tmp_path / "elsewhere" / "mine.txt", ["d"])
    assert names(folder(root, test_split=str(tmp_path / "elsewhere" / "mine.txt")), "test") == ["d"]


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_folders_of_splits_are_found_by_themselves(tmp_path, layout):
    for split, members in {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}.items():
        kinds = {kind: layout.format(split=split, kind=kind) for kind in ("images", "labels")}
        write_folder(tmp_path, members, **kinds)
    data = folder(tmp_path)
    assert [names(data, split) for split in ("train", "val", "test")] == [["a", "b"], ["c"], ["d"]]


def test_a_set_without_validation_keeps_a_share_of_train_for_it(tmp_path):
    write_folder(tmp_path, list("abcdefgh"), images="train/images", labels="train/labels")
    write_folder(tmp_path, ["z"], images="test/images", labels="test/labels")
    data = folder(tmp_path, val_share=0.4)
    expected = [name for name in "abcdefgh" if share(name, 0) < 0.4]
    assert names(data, "val") == expected
    assert names(data, "train") == [name for name in "abcdefgh" if name not in expected]
    assert names(data, "test") == ["z"]
    with pytest.raises(DataError, match=r"no val split.*folder checking/images"):
        names(folder(tmp_path, val_split="checking"), "val")


def test_patterns_name_files_that_are_called_otherwise_and_folders_in_folders_count(tmp_path):
    write_folder(tmp_path, ["rome/1", "rome/2", "bonn/1"], images="rgb/*_photo.png", labels="gt/*_mask.png")
    data = folder(tmp_path, images="rgb/*_photo.png", labels="gt/*_mask.png", val_share=0, test_share=0)
    assert names(data, "train") == ["bonn/1", "rome/1", "rome/2"]
    together = write_folder(tmp_path / "b", ["x"], images="all/*.png", labels="all/*_mask.png")
    os.rename(together / "all" / "x.png", together / "all" / "x.jpg")
    data = folder(together, images="all/*.jpg", labels="all/*_mask.png", val_share=0, test_share=0)
    assert names(data, "train") == ["x"]


def test_a_name_without_its_partner_is_counted_named_skipped_or_left_missing(tmp_path):
    root = write_folder(tmp_path, list("abcdef"))
    for name in "ae":
        (root / "labels" / f"{name}.png").unlink()
    alone = {"val_share": 0, "test_share": 0}
    with pytest.raises(DataError, match=r"2 of 6 images have no segmentation file in labels: a, e\."):
        names(folder(root, **alone), "train")
    assert names(folder(root, unmatched="skip", **alone), "train") == list("bcdf")
    sample = folder(root, unmatched="missing", **alone).dataset("train", None)[0]
    assert sample["name"] == "a"
    assert (sample["segmentation"] == 255).all()
    save(root / "labels" / "stray.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="1 of 5 segmentation files have no image file in images: stray"):
        names(folder(root, **alone), "train")
    write_list(root / "train.txt", ["b", "ghost"])
    with pytest.raises(DataError, match="1 of 2 listed names have no image file in images: ghost"):
        names(folder(root), "train")


def test_folders_that_are_empty_or_not_there_and_splits_without_an_image_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no such folder\.\nExpected layout"):
        folder(tmp_path / "nowhere").setup("fit")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="neither labels nor depth nor normals"):
        folder(tmp_path)
    (tmp_path / "depth").mkdir()
    with pytest.raises(DataError, match="there are no images in it"):
        folder(tmp_path).setup("fit")
    with pytest.raises(DataError, match=r"no files of normals \(looked for in normals\)"):
        folder(tmp_path, targets=("normals",))
    write_folder(tmp_path / "few", ["a"])
    with pytest.raises(DataError, match=r"of 1 images none falls into the val split by val_share 0\.01"):
        folder(tmp_path / "few", val_share=0.01).setup("fit")
    save(tmp_path / "few" / "images" / "a.jpg", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"a\.(jpg|png): a\.(jpg|png) has the same name"):
        names(folder(tmp_path / "few"), "train")


COLOURS = ["ground 10 20 30", "tree 0 255 0", "sky,1,2,3", "Void 9 9 9"]
COLOUR_IDS = np.array([[0, 1, 2, 3], [2, 2, 1, 0]])
PAINTED = np.array([[10, 20, 30], [0, 255, 0], [1, 2, 3], [9, 9, 9]], np.uint8)[COLOUR_IDS]


@pytest.mark.parametrize(
    "lines",
    [
        COLOURS,
        ["name,r,g,b", "ground,10,20,30", "tree,0,255,0", "sky,1,2,3", "void,9,9,9"],
        ["10 20 30\tground", "0 255 0\ttree", "1 2 3\tsky", "9 9 9\tVoid"],
    ],
    ids=["name R G B", "csv", "R G B name"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_coloured_masks_become_the_classes_whose_colours_they_show(tmp_path, lines, mode):
    root = one(tmp_path, np.zeros((2, 4, 3), np.uint8), PAINTED, lines)
    mask = Image.fromarray(PAINTED)
    # the palette in another order than the classes: only its colours count
    mask = mask.quantize(8) if mode == "P" else mask.convert(mode)
    mask.save(root / "labels" / "a.png")
    data = folder(root, stored_as="colours" if mode == "P" else None, val_share=0, test_share=0)
    assert data.classes == {"segmentation": ["ground", "tree", "sky"]}
    expected = np.where(COLOUR_IDS == 3, 255, COLOUR_IDS)
    np.testing.assert_array_equal(data.dataset("train", None)[0]["segmentation"], expected)


def test_a_colour_of_no_class_is_named_with_its_place_and_count_or_becomes_void(tmp_path):
    strange = PAINTED.copy()
    strange[1, :2] = (7, 7, 200)
    root = one(tmp_path, np.zeros((2, 4, 3), np.uint8), strange, COLOURS)
    with pytest.raises(DataError, match=r"a\.png: .*\(7, 7, 200\) in 2 pixels, first at row 1, column 0") as error:
        folder(root, val_share=0, test_share=0).setup("fit")
    assert "data.unknown" in str(error.value)
    assert (first(root, unknown="void")["segmentation"][1, :2] == 255).all()


def test_every_colour_is_told_from_every_other_however_many_classes():
    rng = np.random.default_rng(0)
    colours = [tuple(map(int, c)) for c in np.unique(rng.integers(0, 256, (250, 3)), axis=0)]
    reader = LabelReader([ClassLine(f"c{i}", colour) for i, colour in enumerate(colours)])
    truth = rng.integers(0, len(colours), (40, 50))
    np.testing.assert_array_equal(reader.decode(np.array(colours, np.uint8)[truth], None), truth)
    others = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    known = np.isin(others.astype(int) @ [65536, 256, 1], np.array(colours) @ [65536, 256, 1])
    np.testing.assert_array_equal(LabelReader(
        [ClassLine(f"c{i}", colour) for i, colour in enumerate(colours)], unknown="void"
    ).decode(others, None) != 255, known)  # fmt: skip


def test_a_palette_png_gives_its_indices_not_its_colours(tmp_path):
    root = one(tmp_path, np.zeros((1, 4, 3), np.uint8), None, COLOURS)
    image = Image.fromarray(np.array([[2, 1, 255, 0]], np.uint8)).convert("P")
    image.putpalette(voc_palette())
    (root / "labels").mkdir()
    image.save(root / "labels" / "a.png")
    assert first(root)["segmentation"].tolist() == [[2, 1, 255, 0]]


@pytest.mark.parametrize("on", [1, 255])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "grey saved as RGB"])
def test_binary_masks_are_two_classes_and_nothing_between(tmp_path, on, colour):
    mask = np.array([[0, on, on, 0]], np.uint8)
    root = one(tmp_path, np.zeros((1, 4, 3), np.uint8), np.stack([mask] * 3, -1) if colour else mask, ["off", "on"])
    assert first(root, stored_as="binary")["segmentation"].tolist() == [[0, 1, 1, 0]]
    (root / "classes.txt").unlink()
    data = folder(root, stored_as="binary")
    assert data.classes == {"segmentation": ["background", "foreground"]}
    save(root / "labels" / "a.png", np.array([[0, on, 128, 0]], np.uint8))
    with pytest.raises(DataError, match=r"label value 128 in 1 pixels, first at row 0, column 2"):
        first(root, stored_as="binary")


def test_ids_are_remapped_and_all_others_are_void(tmp_path):
    root = one(tmp_path, np.zeros((1, 5, 3), np.uint8), np.array([[7, 8, 0, 255, 11]], np.uint8), ["road", "kerb"])
    assert first(root, ids={7: 0, 8: 1})["segmentation"].tolist() == [[0, 1, 255, 255, 255]]
    with pytest.raises(DataError, match="label value 7, 8, 11 in 3 pixels, first at row 0, column 0"):
        first(root)
    assert first(root, void_ids=(7, 8, 11))["segmentation"].tolist() == [[255, 255, 0, 255, 255]]
    with pytest.raises(ConfigurationError, match="8: 2 is no class index"):
        folder(root, ids={8: 2})


def test_more_than_255_classes_come_as_int32_with_255_a_class_and_minus_one_missing(tmp_path):
    ids = np.array([[0, 255, 299, 65535]], np.uint16)
    root = one(tmp_path, np.zeros((1, 4, 3), np.uint8), ids, [f"c{i}" for i in range(300)])
    labels = first(root, void_ids=(65535,))["segmentation"]
    assert labels.dtype == torch.int32
    assert labels.tolist() == [[0, 255, 299, -1]]


def test_without_class_names_the_error_says_which_ids_there_are(tmp_path):
    root = one(tmp_path, labels=np.array([[0, 1, 7]], np.uint8))
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: .*The first 1 files hold the ids 0, 1, 7\."):
        folder(root)
    assert folder(root, classes=["a", "b"]).classes == {"segmentation": ["a", "b"]}


def test_depth_has_the_unit_that_is_said_and_its_holes(tmp_path):
    root = one(tmp_path, np.zeros((1, 4, 3), np.uint8))
    save(root / "depth" / "a.png", np.array([[1500, 0, 65535, 4000]], np.uint16))
    torch.testing.assert_close(first(root)["depth"], torch.tensor([[[1.5, 0, 65.535, 4]]]))
    halved = first(root, depth_scale=0.0005, depth_missing=65535)["depth"]
    torch.testing.assert_close(halved, torch.tensor([[[0.75, 0, 0, 2]]]))
    (root / "depth" / "a.png").unlink()
    metres = np.array([[1.5, np.nan, -1, np.inf]], np.float32)
    np.save(root / "depth" / "a.npy", metres)
    assert first(root)["depth"].tolist() == [[[1.5, 0, 0, 0]]]
    (root / "depth" / "a.npy").unlink()
    write_tiff(root / "depth" / "a.tif", metres[..., None])
    assert first(root)["depth"].tolist() == [[[1.5, 0, 0, 0]]]
    (root / "depth" / "a.tif").unlink()
    save(root / "depth" / "a.png", np.array([[10, 0, 20, 30]], np.uint8))
    with pytest.raises(DataError, match=r"a\.png: .*it is uint8.*data\.depth_scale"):
        first(root)
    assert first(root, depth_scale=0.1)["depth"].flatten().tolist() == pytest.approx([1, 0, 2, 3])


def test_normals_of_other_axes_come_to_ours_and_wrong_axes_are_noticed(tmp_path):
    root = one(tmp_path, np.zeros((1, 3, 3), np.uint8))
    ours = np.array([[[0, 0, -1], [0.6, 0, -0.8], [0, -0.6, -0.8]]], np.float32)
    (root / "normals").mkdir()
    for axes, stored in (
        (("right", "up", "backward"), ours * [1, -1, -1]),
        (("forward", "left", "up"), np.stack([ours[..., 2], -ours[..., 0], -ours[..., 1]], -1)),  # robots' frame
    ):
        np.save(root / "normals" / "a.npy", stored.astype(np.float32))
        normals = first(root, normals_axes=axes)["normals"].permute(1, 2, 0)
        np.testing.assert_allclose(normals, ours, atol=1e-6)
    np.save(root / "normals" / "a.npy", (ours * [1, -1, -1]).astype(np.float32))
    with pytest.raises(DataError, match=r"point away from the camera.*normals_axes"):
        first(root)
    with pytest.raises(ConfigurationError, match="one of right and left"):
        first(root, normals_axes=("right", "left", "up"))


def test_a_file_of_intrinsics_for_each_image_and_a_size_they_were_measured_at(tmp_path):
    root = write_folder(tmp_path, ["a"], size=(24, 32))
    (root / "intrinsics").mkdir()
    (root / "intrinsics" / "a.txt").write_text("100 0 31.5\n0 100 23.5\n0 0 1\n")
    assert first(root)["intrinsics"][0].tolist() == [100, 0, 31.5]
    # half the size: f / 2, and pixel centre (c + 0.5) / 2 - 0.5
    assert first(root, intrinsics_size=(48, 64))["intrinsics"].tolist() == [[50, 0, 15.5], [0, 50, 11.5], [0, 0, 1]]
    (root / "intrinsics" / "a.txt").write_text("100 31.5")
    with pytest.raises(DataError, match=r"a\.txt: expected fx fy cx cy.*2 numbers"):
        first(root)


@pytest.mark.parametrize("bands_apart", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_multi_band_tiffs_keep_every_band_in_order(tmp_path, dtype, bands_apart):
    image = (np.arange(5 * 6 * 7).reshape(5, 6, 7) + 1).astype(dtype)
    write_tiff(tmp_path / "images" / "a.tif", image, bands_apart)
    save(tmp_path / "depth" / "a.png", np.ones((5, 6), np.uint16))
    white = {"uint8": None, "uint16": None, "float32": 500}[dtype]
    got = first(tmp_path, channels=7, white=white)["image"]
    expected = image if dtype == "uint8" else image / {"uint16": 65535, "float32": 500}[dtype]
    assert got.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    np.testing.assert_allclose(got.permute(1, 2, 0), expected, rtol=1e-6)
    chosen = first(tmp_path, bands=(6, 0), white=white)["image"]
    np.testing.assert_allclose(chosen.permute(1, 2, 0), expected[..., [6, 0]], rtol=1e-6)
    with pytest.raises(DataError, match=r"a\.tif: expected 3 channels, but it has 7.*in_channels to 7.*data\.bands"):
        first(tmp_path, white=white)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "raw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "F"])
def test_compressed_tiffs_with_predictors_are_what_pillow_wrote(tmp_path, compression, mode):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (301, 203, 3) if mode == "RGB" else (301, 203))
    array = array.astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)) * (
        np.float32(0.1) if mode == "F" else 1
    )
    path = tmp_path / "a.tif"
    Image.fromarray(array).save(path, compression=compression, tiffinfo={317: 3 if mode == "F" else 2})
    got = read_tiff(path.read_bytes(), path)
    np.testing.assert_array_equal(got.squeeze(), array)


def test_damaged_tiffs_are_named_wherever_they_are_cut(tmp_path):
    path = tmp_path / "images" / "a.tif"
    write_tiff(path, np.zeros((5, 6, 4), np.uint16))
    save(tmp_path / "depth" / "a.png", np.ones((5, 6), np.uint16))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 4, 7):  # the last four bytes say that no page follows
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tif"):
            folder(tmp_path, channels=4, val_share=0, test_share=0)._build("train")


def test_a_tiff_with_any_byte_changed_is_read_or_refused_but_never_breaks_the_run(tmp_path):
    path, numbers = tmp_path / "a.tif", random.Random(0)
    write_tiff(path, np.ones((5, 6, 4), np.uint16))
    packed = io.BytesIO()
    Image.fromarray(np.ones((40, 30, 3), np.uint8)).save(packed, "tiff", compression="tiff_lzw", tiffinfo={317: 2})
    refused = 0
    for whole in (path.read_bytes(), packed.getvalue()):
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(numbers.randint(1, 3)):
                changed[numbers.randrange(len(whole))] = numbers.randrange(256)
            path.write_bytes(changed)
            try:
                read_raster(path)
            except DataError as error:
                refused += "a.tif" in str(error)
    assert refused > 40


def test_grey_sixteen_bit_and_transparent_pictures_become_what_is_asked_for(tmp_path):
    grey = np.array([[0, 100, 200]], np.uint8)
    root = one(tmp_path, grey)
    save(root / "depth" / "a.png", np.ones((1, 3), np.uint16))
    assert first(root)["image"].tolist() == [grey.tolist()] * 3
    assert first(root, channels=1)["image"].tolist() == [grey.tolist()]
    save(root / "images" / "a.png", np.array([[0, 13107, 65535]], np.uint16))
    torch.testing.assert_close(first(root, channels=1)["image"], torch.tensor([[[0, 0.2, 1]]]))
    torch.testing.assert_close(first(root, channels=1, white=26214)["image"], torch.tensor([[[0, 0.5, 1]]]))
    # half transparent black on white is grey; opaque keeps its colour
    rgba = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 102]]], np.uint8)
    save(root / "images" / "a.png", rgba)
    assert first(root)["image"].permute(1, 2, 0).tolist() == [[[255] * 3, [10, 20, 30], [153] * 3]]
    np.testing.assert_array_equal(first(root, channels=4)["image"].permute(1, 2, 0), rgba)


def test_a_stack_of_floats_needs_its_white_and_one_with_channels_first_is_noticed(tmp_path):
    stack = np.random.default_rng(0).uniform(0, 3000, (4, 6, 5)).astype(np.float32)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", stack)
    save(tmp_path / "depth" / "a.png", np.ones((4, 6), np.uint16))
    with pytest.raises(DataError, match=r"floats from 0 to 1.*data\.white"):
        first(tmp_path, channels=5)
    got = first(tmp_path, channels=5, white=2000)["image"].permute(1, 2, 0)
    np.testing.assert_allclose(got, np.minimum(stack / 2000, 1), rtol=1e-6)
    np.save(tmp_path / "images" / "a.npy", stack.transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"Store arrays as \(height, width, bands\)"):
        first(tmp_path, channels=5, white=2000)


def test_a_set_of_eight_and_sixteen_bits_is_never_mixed_silently(tmp_path):
    root = one(tmp_path, np.full((1, 2), 51, np.uint8))
    save(root / "images" / "b.png", np.full((1, 2), 13107, np.uint16))
    for name in "ab":
        save(root / "depth" / f"{name}.png", np.ones((1, 2), np.uint16))
    dataset = folder(root, val_share=0, test_share=0).dataset("train", None)
    with pytest.raises(DataError, match=r"b\.png: is uint16, but the first image of the set is of 8 bits.*data\.white"):
        dataset[1]
    for name in "ab":
        os.rename(root / "images" / f"{name}.png", root / "images" / f"{name}_.png")
    os.rename(root / "images" / "a_.png", root / "images" / "b.png")
    os.rename(root / "images" / "b_.png", root / "images" / "a.png")
    dataset = folder(root, val_share=0, test_share=0).dataset("train", None)
    for sample in (dataset[0], dataset[1]):  # 51 / 255 and 13107 / 65535
        torch.testing.assert_close(sample["image"], torch.full((3, 1, 2), 0.2))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_is_refused_until_somebody_says_what_its_labels_fit(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :8] = 255
    save(tmp_path / "images" / "a.jpg", picture, exif=exif, quality=95)
    shown = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "images" / "a.jpg")))
    save(tmp_path / "depth" / "a.png", np.ones(shown.shape[:2], np.uint16))
    data = {"val_share": 0, "test_share": 0}
    with pytest.raises(DataError, match=rf"a\.jpg: .*EXIF orientation is {orientation}.*data\.upright"):
        first(tmp_path)
    with pytest.raises(DataError, match=r"train split: 1 of 1 samples cannot be used.*\n.*a\.(jpg|png)"):
        folder(tmp_path, **data)._build("train")
    upright = folder(tmp_path, upright=True, check="full", batch_size=1, **data)
    image = upright._build("train")[0]["image"].permute(1, 2, 0)
    assert np.abs(image.numpy().astype(int) - shown).max() <= 4
    save(tmp_path / "depth" / "a.png", np.ones((16, 24), np.uint16))
    stored = first(tmp_path, upright=False)["image"].permute(1, 2, 0)
    assert np.abs(stored.numpy().astype(int) - picture).max() <= 12


def test_files_of_different_sizes_are_refused_with_and_without_the_look(tmp_path):
    root = one(tmp_path, np.zeros((6, 8, 3), np.uint8), np.zeros((6, 9), np.uint8))
    for look in ("full", "none"):
        with pytest.raises(DataError, match=r"a\.png: its size is \(6, 9\) \(height, width\)"):
            folder(root, check=look, val_share=0, test_share=0)._build("train")[0]


def test_the_camvid_folder_read_by_options_gives_the_samples_of_its_own_module(real_data):
    options = {"images": "{split}", "labels": "{split}annot", "classes": [*CAMVID_CLASSES, "void"], "check": "none"}
    ours, own = folder(real_data / "camvid", **options), CamVidDataModule(str(real_data / "camvid"), check="none")
    assert ours.classes == own.classes
    same_samples(ours, own, 60)


def test_the_nyu_folder_read_by_options_gives_the_samples_of_its_own_module(real_data):
    camera = (518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)
    options = {"images": "rgb", "labels": "label40", "val_split": "test", "intrinsics": camera, "check": "none"}
    options |= {"classes": [str(i) for i in range(40)], "make_normals": NormalsFromDepth()}
    own = NYUDepthV2DataModule(str(real_data / "nyuv2"), val_split="test", check="none")
    same_samples(folder(real_data / "nyuv2", **options), own, 200)


def same_samples(ours, own, step):
    for split in ("train", "val", "test"):
        left, right = ours.dataset(split, None), own.dataset(split, None)
        assert [sample.name for sample in left.samples] == right.names
        for index in range(0, len(right), step):
            sample, expected = left[index], right[index]
            assert sample.pop("name") == expected.pop("name")
            torch.testing.assert_close(sample, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_five_bands_and_all_tasks_train_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "mine", depth="depth", normals="normals", classes=3)
    for path in sorted((root / "images").iterdir()):
        rgb = np.array(Image.open(path)).astype(np.uint16) * 40
        write_tiff(path.with_suffix(".tif"), np.concatenate([rgb, rgb[..., :2]], axis=-1))
        path.unlink()
    command = [
        "fit", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--model=DensePredictor", "--model.encoder=ResNetEncoder", "--model.encoder.name=resnet18",
        "--model.decoder=UNetDecoder", "--model.decoder.widths=[8,8,8,8]", "--model.tasks=[Segmentation]",
        "--data=FolderDataModule", f"--data.root={root}", "--data.val_share=0.4", "--data.test_share=0.2",
        "--data.batch_size=2", "--data.num_workers=0", "--data.channels=5", "--data.white=10200",
        "--data.ids={0: 0, 1: 1}", "--data.normals_axes=[right,down,forward]", "--data.unmatched=skip",
        "--model.tasks=[{class_path: Segmentation, init_args: {classes: 3}}, Depth, Normals]",
    ]  # fmt: skip
    assert main(command) == 1
    assert "built for 3 channels, the image has 5" in capsys.readouterr().err
    assert main([*command, "--model.encoder.in_channels=5"]) == 0
    assert main(["test", "--ckpt_path", "last"]) == 0
