"""Presets, one-class windows and elastic deformation: what strength means, and that targets follow."""

import pickle

import albumentations as A
import numpy as np
import pytest
import torch
from scipy import ndimage

from densepred.commands.arguments import RunParser
from densepred.data.datamodule import DenseDataModule
from densepred.data.rooms import Rooms, RoomsDataModule
from densepred.data.transforms import (
    Augmentation,
    DepthAugmentation,
    ElasticDeformation,
    FlipLeftRight,
    MultitaskAugmentation,
    NormalsAugmentation,
    Rescale,
    Roll,
    SampleTransforms,
    ScaleCrop,
    SegmentationAugmentation,
)
from densepred.errors import ConfigurationError
from densepred.geometry import normals_from_depth
from densepred.sample import SAMPLE_KINDS, Kind

PRESETS = [SegmentationAugmentation, DepthAugmentation, NormalsAugmentation, MultitaskAugmentation]
every_preset = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(scope="module")
def room():
    return Rooms("val", count=1, size=(120, 160)).read(0)


def photo(size=(60, 90), channels=3):
    return np.random.default_rng(0).integers(0, 255, (*size, channels)).astype(np.uint8)


# --- presets ---


@every_preset
def test_strength_0_is_a_random_crop_and_nothing_else(preset, room):
    transforms = SampleTransforms([preset(size=(80, 100), strength=0)])
    places = set()
    for index in range(12):
        result = transforms(room, (index,))
        # the intrinsics say where the crop was
        left, top = (room["intrinsics"][:2, 2] - result["intrinsics"][:2, 2]).round().astype(int)
        places.add((top, left))
        for key in ("image", "segmentation", "depth", "normals"):
            np.testing.assert_array_equal(result[key], room[key][top : top + 80, left : left + 100])
    assert len(places) > 6
    whole = SampleTransforms([preset(size=(120, 160), strength=0)])(room, (0,))
    for key, value in room.items():
        np.testing.assert_array_equal(whole[key], value)


@every_preset
def test_a_stronger_preset_changes_colours_and_places_more(preset, room):
    """The same draws at every strength: the colours of a picture, and where a picture of coordinates is read."""
    y, x = np.mgrid[:120, :160].astype(np.float32)
    places = {"image": np.stack([x, y, x], -1)}
    colours, moves = [], []
    for strength in (0.0, 0.25, 0.5, 1.0, 2.0):
        steps = preset(size=(120, 160), strength=strength).transforms
        light = [step for step in steps if isinstance(step, A.ImageOnlyTransform)]
        space = [step for step in steps if not isinstance(step, A.ImageOnlyTransform | FlipLeftRight)]
        changed, moved = [], []
        for index in range(40):
            image = SampleTransforms(light)(room, (index,))["image"] if light else room["image"]
            changed.append(np.abs(image.astype(float) - room["image"]).mean())
            read = SampleTransforms(space)(places, (index,))["image"]
            moved.append(np.abs(read - places["image"]).mean())
        colours.append(np.mean(changed))
        moves.append(np.mean(moved))
    assert colours[0] == 0
    assert moves[0] == 0
    assert (np.diff(colours) > 0.5).all()
    assert (np.diff(moves) > 0.5).all()


def test_twice_the_strength_is_twice_as_far_in_doublings_and_degrees():
    usual, double = (MultitaskAugmentation(size=(32, 32), strength=strength).transforms for strength in (1, 2))
    for once, twice in zip(usual, double, strict=True):
        if isinstance(once, Roll):
            assert (once.limit, twice.limit) == (5, 10)
        elif isinstance(once, ScaleCrop):
            np.testing.assert_allclose(np.log(twice.scale), 2 * np.log(once.scale))
        elif isinstance(once, FlipLeftRight):
            assert once.p == twice.p == 0.5
        elif isinstance(once, A.RandomBrightnessContrast):
            np.testing.assert_allclose(twice.brightness_limit, 2 * np.array(once.brightness_limit))
            factors = 1 + np.array([once.contrast_limit, twice.contrast_limit])
            np.testing.assert_allclose(factors[1], factors[0] ** 2)
        else:
            np.testing.assert_allclose(twice.hue, 2 * np.array(once.hue))
            np.testing.assert_allclose(twice.saturation, np.array(once.saturation) ** 2)


def test_strength_1_of_segmentation_is_the_published_distortion():
    """SSD: 32 of 255, 0.5 to 1.5 twice, 18 of the 180 hues of OpenCV; each with probability a half."""
    _, flip, brightness, contrast, saturation, hue = SegmentationAugmentation(size=(8, 8)).transforms
    assert {step.p for step in (flip, brightness, contrast, saturation, hue)} == {0.5}
    grey = np.full((1, 1, 3), 100, np.uint8)
    seen = {int(A.Compose([brightness], seed=index)(image=grey)["image"][0, 0, 0]) for index in range(400)}
    assert 68 <= min(seen) <= 69
    assert 131 <= max(seen) <= 132
    seen = {int(A.Compose([contrast], seed=index)(image=grey)["image"][0, 0, 0]) for index in range(400)}
    assert 50 <= min(seen) <= 52
    assert 148 <= max(seen) <= 150
    assert saturation.saturation == (0.5, 1.5)
    assert hue.hue == pytest.approx((-18 / 180, 18 / 180))


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("preset", [DepthAugmentation, NormalsAugmentation, MultitaskAugmentation])
def test_normals_of_the_augmented_depth_are_the_augmented_normals(preset, strength):
    rooms = Rooms("val", count=3, size=(120, 160))
    transforms = SampleTransforms([preset(size=(100, 140), strength=strength)])
    for index in range(3):
        result = transforms(rooms.read(index), (index,))
        found = normals_from_depth(result["depth"], result["intrinsics"], window=5)
        known = (found != 0).any(-1) & (result["normals"] != 0).any(-1)
        cosine = (found[known] * result["normals"][known]).sum(-1, dtype=np.float64)
        error = np.degrees(np.arccos(cosine.clip(-1, 1)))
        assert known.mean() > 0.7
        assert np.median(error) < 0.05
        assert np.percentile(error, 75) < 3


@pytest.mark.parametrize("channels", [1, 3, 5])
@every_preset
def test_a_preset_takes_images_of_any_number_of_channels(preset, channels):
    transforms = SampleTransforms([preset(size=(32, 48), strength=2.0)])
    for index in range(6):
        assert transforms({"image": photo(channels=channels)}, (index,))["image"].shape == (32, 48, channels)


def test_a_foreign_transform_beside_or_inside_a_preset_is_refused_by_its_place():
    preset = SegmentationAugmentation(size=(32, 32))
    with pytest.raises(ConfigurationError, match=r"transforms\[1\]: HorizontalFlip would .* Use FlipLeftRight"):
        SampleTransforms([preset, A.HorizontalFlip()])
    preset.transforms.append(A.OneOf([A.NoOp(), A.Rotate()]))
    with pytest.raises(ConfigurationError, match=r"transforms\[0\] > SegmentationAugmentation\[6\] > OneOf\[1\]: Rot"):
        SampleTransforms([preset])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "Augmentation: strength is -1.0; expected a number from 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"zoom": (1.2, 2.0)}, "zoom is .1.2, 2.0.; expected .smallest, largest. factor, with 1 between them"),
        ({"gain": (0.0, 2.0)}, "gain is"),
        ({"hue": -0.1}, "hue is -0.1"),
    ],
)
def test_numbers_that_cannot_be_raised_to_a_strength_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Augmentation(size=(8, 8), **options)


@pytest.mark.filterwarnings("ignore")
def test_a_config_names_a_preset_as_an_entry_or_alone_and_the_command_line_its_strength():
    def built(transforms, *options):
        parser = RunParser()
        parser.add_lightning_class_args(DenseDataModule, "data", subclass_mode=True, required=True)
        parser.add_argument("--config", action="config")
        config = {"data": {"class_path": "RoomsDataModule", "init_args": {"train_transforms": transforms}}}
        data = parser.instantiate(parser.parse_args([f"--config={config}", *options])).data
        step = data.train_transforms.pipeline.transforms[0]
        return step if isinstance(step, Augmentation) else step.transforms[-1]

    entry = {"class_path": "MultitaskAugmentation", "init_args": {"size": [96, 128]}}
    alone = built(entry)
    assert (type(alone), alone.size, alone.strength) == (MultitaskAugmentation, (96, 128), 1.0)
    assert built(entry, "--data.train_transforms.strength=0.5").strength == 0.5
    listed = [{"class_path": "Rescale", "init_args": {"factor": 0.5}}, entry]
    assert isinstance(built(listed), MultitaskAugmentation)
    assert built(listed, "--data.train_transforms.strength=2").strength == 2  # that of the last entry
    other = built(listed, "--data.train_transforms=DepthAugmentation", "--data.train_transforms.size=[8, 9]")
    assert (type(other), other.size) == (DepthAugmentation, (8, 9))


@pytest.mark.slow
def test_a_preset_draws_the_same_whichever_worker_serves_it():
    def batches(workers):
        data = RoomsDataModule(
            size=(48, 64),
            train=8,
            val=2,
            batch_size=2,
            num_workers=workers,
            seed=3,
            train_transforms=[MultitaskAugmentation(size=(32, 48), cat_max_ratio=0.75)],
        )
        data.setup("fit")
        return list(data.train_dataloader())

    for one, other in zip(batches(0), batches(2), strict=True):
        assert one["name"] == other["name"]
        for key in ("image", "segmentation", "depth", "normals", "intrinsics"):
            assert torch.equal(one[key], other[key])


def test_a_preset_survives_a_workers_pickle_and_albumentations_own_records(room):
    preset = MultitaskAugmentation(size=(80, 100))
    expected = SampleTransforms([preset])(room, (1,))
    for again in (pickle.loads(pickle.dumps(preset)), A.from_dict(A.to_dict(preset))):
        result = SampleTransforms([again])(room, (1,))
        assert all(np.array_equal(result[key], expected[key]) for key in expected)


# --- windows of one class ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_windows_of_one_class_are_as_rare_as_ten_draws_make_them(dtype):
    """Against all windows there are: each draw is accepted with probability q, so (1 - q)^9 take the tenth unseen."""
    void = 255 if dtype == np.uint8 else -1
    labels = np.zeros((40, 60), dtype)
    labels[:, 42:] = 3
    labels[:12] = void
    labels[25:30, 5:12] = 7
    size, limit = (20, 24), 0.75
    windows = np.lib.stride_tricks.sliding_window_view(labels, size)
    known = (windows != void).sum((2, 3))
    shares = np.max([(windows == label).sum((2, 3)) for label in (0, 3, 7)], axis=0) / known
    fine = shares < limit
    q = fine.mean()
    assert 0.1 < q < 0.35
    # where a window began stands in the image
    place = np.arange(40 * 60, dtype=np.float32).reshape(40, 60, 1)
    transforms = SampleTransforms([ScaleCrop(size, scale=(1.0, 1.0), cat_max_ratio=limit)])
    draws = 1500
    begins = [
        int(transforms({"image": place, "segmentation": labels}, (index,))["image"][0, 0, 0]) for index in range(draws)
    ]
    rows, columns = np.divmod(np.array(begins), 60)
    accepted = fine[rows, columns]
    expected = 1 - (1 - q) ** 10
    assert accepted.mean() == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / draws))
    # among fine windows none is preferred
    counts = np.zeros(fine.shape)
    np.add.at(counts, (rows[accepted], columns[accepted]), 1)
    each = accepted.sum() / fine.sum()
    assert ((counts[fine] - each) ** 2 / each).sum() < fine.sum() + 5 * np.sqrt(2 * fine.sum())


def test_a_window_of_void_alone_is_drawn_again_and_a_ratio_of_1_refuses_windows_of_one_class():
    labels = np.full((40, 200), 255, np.uint8)
    labels[:, 120:] = 2
    labels[:20, 120:] = 5
    transforms = SampleTransforms([ScaleCrop((40, 40), scale=(1.0, 1.0), cat_max_ratio=1.0)])
    seen = [transforms({"image": photo((40, 200)), "segmentation": labels}, (i,))["segmentation"] for i in range(40)]
    assert np.mean([{2, 5} <= set(np.unique(labels)) for labels in seen]) > 0.95


# --- elastic deformation ---

WITH_WEIGHT = SAMPLE_KINDS | {"segmentation_weight": Kind.WEIGHT}


def test_displacements_of_nodes_are_gaussian_and_exact_at_the_nodes():
    y, x = np.mgrid[:61, :81].astype(np.float32)
    found = []
    for index in range(200):
        image = SampleTransforms([ElasticDeformation(sigma=4.0)])({"image": np.stack([x, y, x], -1)}, (index,))["image"]
        # the middle node: its displacement is read off directly
        found.append(image[30, 40, :2] - (40, 30))
    found = np.array(found)
    assert np.abs(found.mean(0)).max() < 3 * 4 / np.sqrt(200)
    np.testing.assert_allclose(found.std(0), 4, rtol=0.15)
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.2


def test_between_nodes_displacements_are_smooth_and_pictures_read_there():
    y, x = np.mgrid[:61, :81].astype(np.float32)
    smooth = ndimage.gaussian_filter(photo((61, 81)).astype(np.float32), (4, 4, 0))
    steps = [ElasticDeformation(sigma=3.0)]
    where = SampleTransforms(steps)({"image": np.stack([x, y, x], -1)}, (5,))["image"]
    inside = (where[..., 0] > 0) & (where[..., 0] < 80) & (where[..., 1] > 0) & (where[..., 1] < 60)
    moved = where[..., :2] - np.stack([x, y], -1)
    three = inside[:, 2:] & inside[:, 1:-1] & inside[:, :-2]
    # displacements of some pixels, 40 pixels apart: second differences of some 4 * 3 / 40^2
    assert np.abs(np.diff(moved, 2, axis=1)[three]).max() < 0.05
    expected = [ndimage.map_coordinates(smooth[..., c], [where[..., 1], where[..., 0]], order=1) for c in range(3)]
    result = SampleTransforms(steps)({"image": smooth}, (5,))["image"]
    np.testing.assert_allclose(result[inside], np.stack(expected, -1)[inside], atol=0.05)


@pytest.mark.parametrize(("dtype", "void"), [(np.uint8, 255), (np.int32, -1)])
def test_labels_and_weights_are_those_of_the_nearest_pixel_and_missing_outside(dtype, void):
    y, x = np.mgrid[:40, :50].astype(np.float32)
    labels = (np.arange(2000).reshape(40, 50) % 200).astype(dtype)
    sample = {
        "image": np.stack([x, y, x], -1),
        "segmentation": labels,
        "segmentation_weight": labels.astype(np.float32) + 1,
    }
    outside = 0
    for index in range(8):
        result = SampleTransforms([ElasticDeformation(sigma=4.0)], WITH_WEIGHT)(sample, (index,))
        gone = result["segmentation"] == void
        assert np.array_equal(gone, result["segmentation_weight"] == 0)
        known = ~gone
        column, row = (result["image"][known][:, i].round().astype(int) for i in (0, 1))
        # bilinear reading tells a place to a thirtieth of a pixel, so a few halves round the other way
        assert np.mean(result["segmentation"][known] == labels[row, column]) > 0.9
        np.testing.assert_array_equal(result["segmentation_weight"][known], result["segmentation"][known] + 1)
        outside += int(gone.sum())
    assert outside > 100


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", np.ones((8, 8), np.float32)),
        ("normals", np.zeros((8, 8, 3), np.float32)),
        ("intrinsics", np.eye(3, dtype=np.float32)),
    ],
)
def test_what_has_no_meaning_in_a_bent_picture_is_refused(key, value):
    with pytest.raises(ConfigurationError, match=rf"ElasticDeformation: 'slice 3' holds {key}, .* Roll and ScaleCrop"):
        SampleTransforms([ElasticDeformation()])({"image": photo((8, 8)), key: value, "name": "slice 3"})
    for options in ({"sigma": -1.0}, {"grid": 1}):
        with pytest.raises(ConfigurationError, match=r"ElasticDeformation: (sigma|grid) is"):
            ElasticDeformation(**options)


def test_presets_take_their_place_between_other_transforms(room):
    steps = [Rescale(factor=0.5), MultitaskAugmentation(size=(48, 64)), FlipLeftRight()]
    assert SampleTransforms(steps)(room, (0,))["normals"].shape == (48, 64, 3)
