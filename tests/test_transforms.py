"""What a pipeline may hold, how it is seeded, and what it does to keys, types and channels."""

import json
import os
import pickle
import random
import subprocess
import sys
import warnings

import albumentations as A
import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from densepred.data.transforms import (
    CentreCrop,
    CutoutMissing,
    FlipLeftRight,
    PadTo,
    Pipeline,
    Rescale,
    Roll,
    SampleTransforms,
    ScaleCrop,
)
from densepred.errors import ConfigurationError, DataError
from densepred.sample import SAMPLE_KINDS, Kind
from tests import analytic_scene as scene

EVERYTHING = [
    FlipLeftRight(),
    Roll(limit=10, p=0.7),
    ScaleCrop(size=(64, 80), cat_max_ratio=0.9),
    A.ColorJitter(),
    A.OneOf([A.GaussianBlur(), CutoutMissing(p=1.0)]),
    PadTo(multiple=32),
]


def photo(size=(60, 90), channels=3, dtype=np.uint8):
    noise = np.random.default_rng(0).integers(0, 255, (*size, channels))
    return (noise / (1 if dtype == np.uint8 else 255)).astype(dtype)


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one | other)


# --- what is refused ---


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (A.HorizontalFlip(), "FlipLeftRight"),
        (A.Rotate(), "Roll"),
        (A.Affine(), "Roll and ScaleCrop"),
        (A.RandomResizedCrop(size=(8, 8)), "ScaleCrop"),
        (A.RandomCrop(8, 8), "ScaleCrop"),
        (A.Resize(8, 8), "Rescale"),
        (A.PadIfNeeded(8, 8), "PadTo"),
        (A.CenterCrop(8, 8), "CentreCrop"),
        (A.CoarseDropout(), "CutoutMissing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_geometric_transform_of_albumentations_is_refused_with_ours_instead(theirs, ours):
    with pytest.raises(ConfigurationError, match=rf"{type(theirs).__name__} would .* Use {ours} of densepred"):
        SampleTransforms([theirs])


def test_no_geometric_transform_of_albumentations_is_let_through():
    def geometric(base):
        for child in base.__subclasses__():
            yield from geometric(child)
            if child.__module__.startswith("albumentations."):
                yield child

    # __new__ alone: many want arguments, and the refusal looks at the class only
    classes = {child for child in geometric(A.DualTransform) if child is not A.NoOp} | {A.Lambda}
    assert len(classes) > 50
    for child in classes:
        with pytest.raises(ConfigurationError, match=child.__name__):
            SampleTransforms([child.__new__(child)])


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda t: A.Compose([A.NoOp(), t]), r"transforms > Compose\[1\]"),
        (lambda t: [A.NoOp(), A.OneOf([A.NoOp(), t])], r"transforms\[1\] > OneOf\[1\]"),
        (lambda t: [A.SomeOf([A.Sequential([t])], n=1)], r"transforms\[0\] > SomeOf\[0\] > Sequential\[0\]"),
        (lambda t: [A.OneOrOther(A.NoOp(), t)], r"transforms\[0\] > OneOrOther\[1\]"),
        (lambda t: A.ReplayCompose([A.RandomOrder([t], n=1)]), r"transforms > ReplayCompose\[0\] > RandomOrder\[0\]"),
    ],
)
def test_a_refusal_finds_and_names_the_place_however_deep(wrap, place):
    with pytest.raises(ConfigurationError, match=rf"^{place}: HorizontalFlip"):
        SampleTransforms(wrap(A.HorizontalFlip()))


@pytest.mark.parametrize("step", [A.Normalize(), A.ToFloat()])
def test_normalisation_is_refused_because_it_belongs_to_the_encoder(step):
    with pytest.raises(ConfigurationError, match=rf"{type(step).__name__} .*encoder.*Leave it out"):
        SampleTransforms([step])


@pytest.mark.filterwarnings("ignore:Using lambda")
def test_a_lambda_and_a_transform_on_some_channels_are_refused():
    with pytest.raises(ConfigurationError, match="Lambda may do anything"):
        SampleTransforms([A.Lambda(image=lambda image, **_: image)])
    with pytest.raises(ConfigurationError, match=r"SelectiveChannelTransform hands FlipLeftRight some channels"):
        SampleTransforms([A.SelectiveChannelTransform([FlipLeftRight()], channels=[0])])
    SampleTransforms([A.SelectiveChannelTransform([A.GaussianBlur()], channels=[0])])


def test_what_is_no_transform_is_refused():
    with pytest.raises(ConfigurationError, match=r"transforms\[0\]: 'flip' is no transform"):
        SampleTransforms(["flip"])
    with pytest.raises(ConfigurationError, match="FlipLeftRight given; expected an albumentations Compose or a list"):
        SampleTransforms(FlipLeftRight())
    named = A.Compose([A.NoOp()], additional_targets={"segmentation": "mask"})
    with pytest.raises(ConfigurationError, match=r"transforms > Compose\[0\]: Compose names additional_targets"):
        SampleTransforms(A.Compose([named]))


def test_d12_an_unknown_argument_is_an_error_not_a_warning():
    with pytest.raises(TypeError, match="prob"):
        FlipLeftRight(prob=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = A.GaussianBlur(prob=0.5)
    with pytest.raises(ConfigurationError, match=r"transforms\[0\]: GaussianBlur has no argument 'prob'"):
        SampleTransforms([theirs])


def test_d12_importing_the_data_package_keeps_albumentations_off_the_network():
    code = """
import urllib.request
def refuse(*_, **__):
    raise SystemExit("the network was asked")
urllib.request.OpenerDirector.open = refuse
import densepred.data, albumentations
"""
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlipLeftRight(p=1.5), "FlipLeftRight: p is 1.5; expected a probability"),
        (lambda: Roll(limit=-1), "Roll: limit is -1; expected degrees"),
        (lambda: ScaleCrop(size=(0, 5)), "ScaleCrop: size is .* expected .height, width."),
        (lambda: ScaleCrop(size=(5, 5), scale=(2.0, 1.0)), "ScaleCrop: scale is"),
        (lambda: ScaleCrop(size=(5, 5), cat_max_ratio=75.0), "ScaleCrop: cat_max_ratio is 75"),
        (lambda: ScaleCrop(size=(5, 5), depth="half"), "expected 'divide' or 'focal'"),
        (lambda: Rescale(), "Rescale: nothing given; expected exactly one of size, short_side, factor"),
        (lambda: Rescale(size=(4, 4), factor=2.0), "Rescale: size and factor given"),
        (lambda: Rescale(factor=0.0), "Rescale: factor is 0.0; expected a number above 0"),
        (lambda: PadTo(), "PadTo: size is None, multiple is None; expected exactly one"),
        (lambda: PadTo(multiple=0), "PadTo: multiple is 0"),
        (lambda: CutoutMissing(size=(0.5, 1.5)), "CutoutMissing: size is"),
        (lambda: CutoutMissing(holes=(3, 1)), "CutoutMissing: holes is"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_at_once(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


# --- the sample ---


def test_a_label_of_another_size_is_an_error_that_names_the_sample_and_the_key():
    sample = {"image": photo(), "segmentation": np.zeros((60, 91), np.uint8), "name": "2007_000032"}
    with pytest.raises(DataError, match=r"'2007_000032': segmentation has the shape 60 x 91; expected 60 x 90"):
        SampleTransforms([FlipLeftRight()])(sample)


def test_a_key_without_a_kind_is_an_error_instead_of_being_left_behind():
    with pytest.raises(DataError, match="key 'parts' has no kind"):
        SampleTransforms()({"image": photo(), "parts": np.zeros((60, 90), np.uint8)})


def test_a_sample_without_image_and_a_label_that_is_no_index_are_errors():
    with pytest.raises(DataError, match=r"has no image; its keys are \['depth'\]"):
        SampleTransforms()({"depth": np.ones((4, 4), np.float32)})
    with pytest.raises(DataError, match="segmentation is float32; expected class indices"):
        SampleTransforms()({"image": photo((4, 4)), "segmentation": np.ones((4, 4), np.float32)})


def test_declared_keys_move_with_the_image_and_the_given_sample_stays_untouched():
    kinds = SAMPLE_KINDS | {
        "parts": Kind.LABEL,
        "border": Kind.WEIGHT,
        "thermal": Kind.IMAGE,
        "camera": Kind.INTRINSICS,
    }
    ramp = np.tile(np.arange(90, dtype=np.uint8), (60, 1))
    sample = {
        "image": np.repeat(ramp[..., None], 3, axis=2),
        "parts": ramp,
        "border": ramp.astype(np.float32),
        "thermal": ramp[..., None].astype(np.float32),
        "camera": scene.INTRINSICS,
    }
    before = pickle.dumps(sample)
    result = SampleTransforms([FlipLeftRight(p=1.0), CentreCrop(size=(40, 100))], kinds)(sample)
    middle = slice(5, 95)
    for key in ("parts", "border"):
        np.testing.assert_array_equal(result[key][:, middle], result["image"][:, middle, 0])
    np.testing.assert_array_equal(result["thermal"][..., 0], result["image"][..., 0])
    np.testing.assert_array_equal(result["parts"][0, [0, 4, 5, -1]], [255, 255, 89, 255])
    np.testing.assert_array_equal(result["border"][0, [0, 4, 5, -1]], [0, 0, 89, 0])
    # flipped: 89 - cx; then 5 pixels of border on the left and 10 rows less above
    np.testing.assert_allclose(result["camera"][:2, 2], [89 - 70.3 + 5, 52.6 - 10], rtol=1e-5)
    assert pickle.dumps(sample) == before


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_number_of_channels_keep_it_and_their_type(channels, dtype):
    image = photo((60, 90), channels, dtype)
    for step in (Rescale(factor=0.5), Rescale(size=(90, 70)), Roll(p=1.0), FlipLeftRight(p=1.0), PadTo(multiple=64)):
        result = SampleTransforms([step, CutoutMissing(p=1.0)])({"image": image})["image"]
        assert result.shape[2] == channels
        assert result.dtype == dtype
        assert result.flags.c_contiguous


def test_channels_beyond_four_are_resized_as_the_first_ones_are():
    image = photo((60, 90), 7)
    together = SampleTransforms([Rescale(factor=0.7)])({"image": image})["image"]
    for channel in range(7):
        alone = SampleTransforms([Rescale(factor=0.7)])({"image": image[..., channel : channel + 1]})["image"]
        np.testing.assert_array_equal(together[..., channel], alone[..., 0])


@pytest.mark.parametrize(("given", "kept"), [(np.uint8, np.uint8), (np.int64, np.int32), (np.uint16, np.int32)])
def test_labels_keep_a_type_that_can_say_missing(given, kept):
    result = SampleTransforms([PadTo(multiple=64)])({"image": photo(), "segmentation": np.ones((60, 90), given)})
    assert result["segmentation"].dtype == kept
    assert result["segmentation"][-1, -1] == (255 if kept == np.uint8 else -1)


def test_wide_labels_survive_a_turn():
    labels = np.full((60, 90), 16_777_217, np.int32)  # one more than float32 can tell
    result = SampleTransforms([Roll(limit=20, p=1.0)])({"image": photo(), "segmentation": labels})
    assert set(np.unique(result["segmentation"])) == {-1, 16_777_217}


@pytest.mark.parametrize("size", [(15, 20), (37, 53), (60, 45), (100, 150), (30, 130)])
def test_images_are_resized_as_pillow_does_averaging_what_shrinks(size):
    image = photo()
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_allclose(SampleTransforms([Rescale(size=size)])({"image": image})["image"], expected, atol=1)
    exact = SampleTransforms([Rescale(size=size)])({"image": image.astype(np.float32)})["image"]
    np.testing.assert_allclose(exact, expected, atol=1)


@pytest.mark.parametrize("zoom", [0.7, 1.6])
def test_a_zoom_resizes_what_it_keeps_and_nothing_else(zoom):
    image = photo((200, 300))
    # the place of every pixel, as its label, tells which part was kept
    sample = {"image": image, "segmentation": np.arange(60_000, dtype=np.int32).reshape(200, 300)}
    for seed in range(4):
        result = SampleTransforms([ScaleCrop(size=(100, 120), scale=(zoom, zoom))])(sample, (seed,))
        first, last = result["segmentation"][0, 0], result["segmentation"][-1, -1]
        kept = image[first // 300 : last // 300 + 1, first % 300 : last % 300 + 1]
        expected = Image.fromarray(kept).resize((120, 100), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(result["image"].astype(float), np.asarray(expected), atol=1)


@pytest.mark.filterwarnings("error")
def test_images_that_lie_backwards_in_memory_or_may_not_be_written_are_resized_like_others():
    image = photo()
    backwards, fixed = image[::-1, ::-1].copy()[::-1, ::-1], image.copy()
    fixed.setflags(write=False)
    results = [
        SampleTransforms([Rescale(factor=0.7)])({"image": given})["image"] for given in (image, backwards, fixed)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_to_tensor_is_accepted_and_arrays_come_out_all_the_same():
    sample = {"image": photo(), "segmentation": np.zeros((60, 90), np.uint8)}
    result = SampleTransforms([FlipLeftRight(p=1.0), A.ToTensorV2()])(sample)
    np.testing.assert_array_equal(result["image"], sample["image"][:, ::-1])
    assert isinstance(result["segmentation"], np.ndarray)


def test_photometric_transforms_leave_every_target_alone():
    sample = scene.sample() | {"image": photo(scene.SIZE)}
    result = SampleTransforms([A.ColorJitter(p=1.0), A.GaussNoise(p=1.0), A.ISONoise(p=1.0), A.NoOp()])(sample, (0,))
    assert not np.array_equal(result["image"], sample["image"])
    assert same(result | {"image": 0}, sample | {"image": 0})


# --- chance ---


def test_a_seed_gives_one_draw_and_another_seed_another():
    transforms = SampleTransforms(EVERYTHING)
    sample = scene.sample() | {"image": photo(scene.SIZE)}
    first = transforms(sample, (7, 0, 3))
    others = [transforms(sample, seed) for seed in [(7, 0, 4), (7, 1, 3), (8, 0, 3)]]
    assert same(first, transforms(sample, (7, 0, 3)))
    assert same(first, SampleTransforms(EVERYTHING)(sample, (7, 0, 3)))
    assert not any(same(first, other) for other in others)


def test_without_a_seed_pythons_own_random_numbers_decide():
    transforms = SampleTransforms([Roll(p=1.0)])
    draws = []
    for seed in (1, 1, 2):
        random.seed(seed)
        draws.append(transforms({"image": photo()})["image"])
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[1], draws[2])


def test_transforms_draw_other_numbers_than_data_that_are_made_from_the_same_seed():
    drawn = []

    class Draws(A.ImageOnlyTransform):
        def apply(self, img, **params):
            drawn.extend(self.random_generator.random(10))
            return img

    SampleTransforms([Draws(p=1.0)])({"image": photo()}, (7, 0, 3))
    assert len(drawn) == 10
    assert not set(drawn) & set(np.random.default_rng((7, 0, 3)).random(100))


def test_neighbours_in_a_pipeline_draw_independently():
    """albumentations seeds every transform with the same number: all that have p = 0.5 then act together."""
    transforms = SampleTransforms([FlipLeftRight(p=0.5), A.InvertImg(p=0.5)])
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 0] = 10
    results = [transforms({"image": image}, (index,))["image"] for index in range(400)]
    flipped = np.array([result[0, 0, 0] in (0, 255) for result in results])
    inverted = np.array([result.max() > 100 for result in results])
    assert abs(np.corrcoef(flipped, inverted)[0, 1]) < 0.15
    assert 0.4 < flipped.mean() < 0.6


def test_two_data_sets_may_share_a_pipeline():
    shared = A.Compose([FlipLeftRight(p=1.0)])
    SampleTransforms(shared, {"image": Kind.IMAGE, "depth": Kind.LABEL})
    depth = np.float32([[1.5, 2.5]])
    result = SampleTransforms(shared)({"image": photo((1, 2)), "depth": depth})
    np.testing.assert_array_equal(result["depth"], depth[:, ::-1])


def test_scale_crop_draws_again_while_one_class_fills_the_window():
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    labels[:20] = 255
    sample = {"image": photo((200, 200)), "segmentation": labels}

    def filled(step):
        shares = []
        for index in range(60):
            seen = SampleTransforms([step])(sample, (index,))["segmentation"]
            counts = np.bincount(seen[seen != 255])
            shares.append(counts.max() / counts.sum())
        return np.mean(np.array(shares) >= 0.75)

    # of windows 100 wide half begin within 25 columns of the middle of their range
    assert filled(ScaleCrop(size=(100, 100), scale=(1.0, 1.0))) == pytest.approx(0.5, abs=0.2)
    assert filled(ScaleCrop(size=(100, 100), scale=(1.0, 1.0), cat_max_ratio=0.75)) < 0.05


def test_scale_crop_covers_the_whole_range_of_zooms_and_places():
    sample = scene.sample(hole=False)
    zooms, lefts = [], []
    for index in range(200):
        image = SampleTransforms([ScaleCrop(size=(50, 50), scale=(0.5, 2.0))])(sample, (index,))["image"]
        zooms.append(1 / np.median(np.diff(image[25, 20:30, 0])))
        lefts.append(image[0, 0, 0])
    assert 0.5 <= min(zooms) < 0.6
    assert 1.85 < max(zooms) <= 2.05
    assert np.mean(zooms) == pytest.approx(1.25, abs=0.1)
    assert min(lefts) < 3
    assert max(lefts) > 100


def test_cutout_paints_the_mean_and_asks_for_nothing_there():
    sample = scene.sample(hole=False) | {"image": photo(scene.SIZE)}
    result = SampleTransforms([CutoutMissing(holes=(1, 1), size=(0.25, 0.25), p=1.0)])(sample, (0,))
    hidden = result["depth"] == 0
    assert hidden.sum() == 30 * 40
    assert np.array_equal(hidden, result["segmentation"] == 255)
    assert np.array_equal(hidden, (result["normals"] == 0).all(-1))
    np.testing.assert_array_equal(
        result["image"][hidden], np.broadcast_to(sample["image"].mean((0, 1)).round(), (1200, 3))
    )
    np.testing.assert_array_equal(result["image"][~hidden], sample["image"][~hidden])
    kept = SampleTransforms([CutoutMissing(keep_targets=True, p=1.0)])(sample, (0,))
    assert not np.array_equal(kept["image"], sample["image"])
    assert same(kept | {"image": 0}, sample | {"image": 0})


# --- how it travels ---


def test_a_pipeline_survives_a_workers_pickle_and_albumentations_own_records():
    sample = scene.sample() | {"image": photo(scene.SIZE)}
    transforms = SampleTransforms(EVERYTHING)
    expected = transforms(sample, (1, 2, 3))
    assert same(pickle.loads(pickle.dumps(transforms))(sample, (1, 2, 3)), expected)
    record = json.loads(json.dumps(A.to_dict(A.Compose(EVERYTHING))))
    assert same(SampleTransforms(A.from_dict(record))(sample, (1, 2, 3)), expected)


class Holder:
    def __init__(self, transforms: Pipeline = None) -> None:
        self.transforms = transforms


@pytest.mark.parametrize(
    "config",
    [
        [
            {"class_path": "densepred.data.transforms.FlipLeftRight", "init_args": {"p": 1.0}},
            {"class_path": "ScaleCrop", "init_args": {"size": [32, 48], "scale": [0.5, 1.0], "depth": "focal"}},
            {"class_path": "albumentations.OneOf", "init_args": {"transforms": [{"class_path": "Roll"}]}},
            {"class_path": "Rescale", "init_args": {"size": [64, 64]}},
            {"class_path": "densepred.data.transforms.PadTo", "init_args": {"multiple": 32}},
            {"class_path": "CutoutMissing", "init_args": {"holes": [1, 2]}},
            {"class_path": "CentreCrop", "init_args": {"size": [32, 48]}},
        ],
        {
            "class_path": "albumentations.Compose",
            "init_args": {"transforms": [{"class_path": "CentreCrop", "init_args": {"size": [32, 48]}}]},
        },
    ],
    ids=["list", "compose"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_config_builds_the_pipeline(config):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "data")
    built = parser.instantiate(parser.parse_object({"data": {"transforms": config}})).data
    assert SampleTransforms(built.transforms)(scene.sample())["depth"].shape == (32, 48)
