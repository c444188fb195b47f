"""The scene, its labels and its camera stay one thing under every transform."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densepred.data.rooms import Rooms
from densepred.data.transforms import (
    CentreCrop,
    DepthAugmentation,
    FlipLeftRight,
    MultitaskAugmentation,
    NormalsAugmentation,
    PadTo,
    Rescale,
    Roll,
    SampleTransforms,
    ScaleCrop,
    SceneTransform,
)
from densepred.geometry import crop_intrinsics, flip_intrinsics, normals_from_depth, resize_intrinsics, unproject
from tests import analytic_scene as scene

ZOOM = {"size": (96, 128), "scale": (0.6, 1.9)}


def transformed(steps, seed=0, sample=None):
    return SampleTransforms(steps)(scene.sample() if sample is None else sample, (seed,))


def tracked(result, margin=2.0):
    """Pixels of the result that lie well inside one surface: their mask, and the points and normals seen there."""
    x, y = result["image"][..., 0].astype(np.float64), result["image"][..., 1].astype(np.float64)
    inside = scene.one_surface(x, y, margin) & (result["depth"] > 0)
    # where the picture ends its border is repeated, and coordinates stand still
    moving = np.abs(np.gradient(x, axis=1)) + np.abs(np.gradient(x, axis=0)) > 1e-3
    moving &= np.abs(np.gradient(y, axis=1)) + np.abs(np.gradient(y, axis=0)) > 1e-3
    inside &= moving
    assert inside.sum() > 500
    return inside, scene.look(x, y)


def scene_map(result, margin=2.0):
    """The linear map from the original points to those that the transformed depth and intrinsics say, by least squares,
    and the largest share of points that miss it by more than 1 % of their distance."""
    inside, seen = tracked(result, margin)
    before = seen.points[inside]
    after = unproject(result["depth"], result["intrinsics"])[inside].astype(np.float64)
    # a robust second fit: the nearest pixel is taken where a surface is seen at a grazing angle
    fit = np.linalg.lstsq(before, after, rcond=None)[0].T
    near = np.linalg.norm(before @ fit.T - after, axis=1) < 0.02 * np.linalg.norm(after, axis=1)
    fit = np.linalg.lstsq(before[near], after[near], rcond=None)[0].T
    missed = np.linalg.norm(before @ fit.T - after, axis=1) > 0.01 * np.linalg.norm(after, axis=1)
    return fit, missed.mean()


def angles(one, other):
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def slopes_to_normals(depth, intrinsics):
    """On a plane 1 / Z is linear in pixels, with coefficients K^-T n / c. Central differences, two pixels wide."""
    inverse = 1 / np.where(depth > 0, depth, np.nan).astype(np.float64)
    x, y = scene.grid(depth.shape)
    dx, dy = np.full_like(inverse, np.nan), np.full_like(inverse, np.nan)
    dx[:, 2:-2] = (inverse[:, 4:] - inverse[:, :-4]) / 4
    dy[2:-2] = (inverse[4:] - inverse[:-4]) / 4
    coefficients = np.stack([dx, dy, inverse - dx * x - dy * y], -1)
    normals = -coefficients @ intrinsics.astype(np.float64)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


EACH = {
    "flip": [FlipLeftRight(p=1.0)],
    "roll": [Roll(limit=20, p=1.0)],
    "zoom, depth divided": [ScaleCrop(**ZOOM)],
    "zoom, longer lens": [ScaleCrop(**ZOOM, depth="focal")],
    "shrunk": [Rescale(factor=0.53)],
    "enlarged": [Rescale(short_side=211)],
    "stretched": [Rescale(size=(90, 200))],
    "padded": [PadTo(multiple=64)],
    "middle": [CentreCrop(size=(80, 200))],
    "all of them": [
        FlipLeftRight(p=1.0),
        Roll(limit=8, p=1.0),
        Rescale(factor=1.3),
        ScaleCrop(size=(112, 144), scale=(0.8, 1.2)),
        PadTo(size=(128, 160)),
    ],
    # without their colours: the scene's image holds coordinates
    **{
        preset.__name__: [step for step in preset((96, 128)).transforms if isinstance(step, SceneTransform)]
        for preset in (DepthAugmentation, NormalsAugmentation, MultitaskAugmentation)
    },
}
every_transform = pytest.mark.parametrize("steps", EACH.values(), ids=EACH)
some_seeds = pytest.mark.parametrize("seed", range(4))


@some_seeds
def test_a_flip_mirrors_the_points(seed):
    fit, missed = scene_map(transformed([FlipLeftRight(p=1.0)], seed))
    np.testing.assert_allclose(fit, np.diag([-1, 1, 1]), atol=1e-4)
    assert missed == 0


@some_seeds
def test_a_roll_turns_the_points_about_the_optical_axis_and_keeps_the_camera(seed):
    result = transformed([Roll(limit=30, p=1.0)], seed)
    fit, missed = scene_map(result)
    np.testing.assert_allclose(fit @ fit.T, np.eye(3), atol=3e-3)
    np.testing.assert_allclose(fit[2], [0, 0, 1], atol=2e-3)
    assert np.linalg.det(fit) > 0
    assert missed < 0.02
    np.testing.assert_allclose(result["intrinsics"], scene.INTRINSICS, atol=1e-4)


@some_seeds
def test_a_zoom_that_divides_depth_squeezes_the_scene_and_keeps_the_focal_lengths(seed):
    result = transformed([ScaleCrop(**ZOOM)], seed)
    fit, missed = scene_map(result)
    zoom = 1 / fit[2, 2]
    np.testing.assert_allclose(fit, np.diag([1, 1, 1 / zoom]), atol=3e-3)
    assert missed < 0.02
    assert ZOOM["scale"][0] * 0.99 < zoom < ZOOM["scale"][1] * 1.01
    # sides are whole pixels: 1 % of the shorter
    np.testing.assert_allclose(result["intrinsics"][:2, :2], scene.INTRINSICS[:2, :2], rtol=0.01)


@some_seeds
@pytest.mark.parametrize(
    "step",
    [
        ScaleCrop(**ZOOM, depth="focal"),
        Rescale(factor=0.61),
        Rescale(size=(90, 200)),
        PadTo(multiple=64),
        CentreCrop(size=(80, 200)),
    ],
    ids=lambda step: type(step).__name__,
)
def test_other_lenses_sizes_crops_and_pads_leave_the_points_where_they_are(step, seed):
    fit, missed = scene_map(transformed([step], seed))
    np.testing.assert_allclose(fit, np.eye(3), atol=3e-3)
    assert missed < 0.02


def test_a_zoom_of_two_halves_depth_and_doubles_the_z_of_normals():
    """Eigen and Fergus 2015: depth / s, normal z * s. D11: albumentations leaves 4 m at 4 m."""
    sample = scene.sample(hole=False) | {"depth": np.full(scene.SIZE, 4, np.float32)}
    sample["normals"] = np.tile(np.float32([0.6, 0, -0.8]), (*scene.SIZE, 1))
    result = transformed([ScaleCrop(size=(100, 100), scale=(2.0, 2.0))], sample=sample)
    np.testing.assert_allclose(result["depth"], 2, rtol=1e-6)
    expected = np.array([0.6, 0, -1.6]) / np.hypot(0.6, 1.6)
    np.testing.assert_allclose(result["normals"], np.broadcast_to(expected, (100, 100, 3)), atol=1e-6)


@every_transform
def test_transformed_normals_are_the_normals_of_the_moved_scene(steps):
    for seed in range(3):
        result = transformed(steps, seed)
        fit, _ = scene_map(result)
        inside, seen = tracked(result)
        expected = seen.normals[inside] @ np.linalg.inv(fit)
        error = angles(result["normals"][inside].astype(np.float64), expected)
        # a turned sphere is read from the nearest pixel at its rim
        assert np.median(error) < 0.3
        assert np.percentile(error, 99) < 2.5


@every_transform
def test_normals_of_the_transformed_depth_are_the_transformed_normals(steps):
    for seed in range(3):
        result = transformed(steps, seed)
        inside, _ = tracked(result, margin=5.0)
        found = slopes_to_normals(result["depth"], result["intrinsics"])
        inside &= np.isfinite(found).all(-1)
        error = angles(found[inside], result["normals"][inside].astype(np.float64))
        assert np.median(error) < 0.5
        assert np.percentile(error, 90) < 5


@every_transform
def test_normals_have_unit_length_or_are_missing_together_with_depth(steps):
    for seed in range(3):
        result = transformed(steps, seed)
        length = np.linalg.norm(result["normals"], axis=-1)
        known = length > 0
        np.testing.assert_allclose(length[known], 1, atol=1e-5)
        assert np.array_equal(known, result["depth"] > 0)
        assert result["normals"].dtype == result["depth"].dtype == np.float32
        assert (result["normals"][known] * unproject(np.ones_like(result["depth"]), result["intrinsics"])[known]).sum(
            -1
        ).max() < 0.1


STEPS = st.one_of(
    st.just(FlipLeftRight(p=1.0)),
    st.floats(1, 15).map(lambda limit: Roll(limit=limit, p=1.0)),
    st.floats(0.7, 1.4).map(lambda factor: Rescale(factor=factor)),
    st.tuples(st.integers(90, 130), st.integers(110, 170), st.sampled_from(["divide", "focal"])).map(
        lambda drawn: ScaleCrop(size=drawn[:2], scale=(0.8, 1.3), depth=drawn[2])
    ),
    st.integers(2, 40).map(lambda multiple: PadTo(multiple=multiple)),
    st.tuples(st.integers(100, 140), st.integers(100, 180)).map(lambda size: CentreCrop(size=size)),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=st.lists(STEPS, min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_any_composition_moves_points_pixels_and_camera_as_one(steps, seed):
    result = transformed(steps, seed)
    fit, missed = scene_map(result, margin=3.0)
    # a surface seen at a grazing angle is read from the nearest pixel, every time anew
    assert missed < 0.1
    inside, seen = tracked(result, margin=3.0)
    # a 3-D point, moved, must be seen by the new camera at the pixel that shows it
    projected = (seen.points[inside] @ fit.T) @ result["intrinsics"].astype(np.float64).T
    x, y = scene.grid(result["depth"].shape)
    pixels = np.stack([x, y], -1)[inside]
    np.testing.assert_allclose(np.median(np.abs(projected[:, :2] / projected[:, 2:] - pixels)), 0, atol=0.1)
    assert set(np.unique(result["segmentation"])) <= set(np.unique(scene.sample()["segmentation"]))


def test_flipping_twice_is_the_identity():
    once = scene.sample()
    twice = transformed([FlipLeftRight(p=1.0), FlipLeftRight(p=1.0)])
    for key, value in once.items():
        np.testing.assert_array_equal(twice[key], value)


def test_intrinsics_follow_the_published_formulas():
    size, K = scene.SIZE, scene.INTRINSICS
    np.testing.assert_allclose(
        transformed([FlipLeftRight(p=1.0)])["intrinsics"], flip_intrinsics(K, size[1]), rtol=1e-6
    )
    np.testing.assert_allclose(
        transformed([Rescale(size=(60, 200))])["intrinsics"], resize_intrinsics(K, size, (60, 200)), rtol=1e-6
    )
    np.testing.assert_allclose(
        transformed([CentreCrop(size=(80, 100))])["intrinsics"], crop_intrinsics(K, 20, 30), rtol=1e-6
    )
    np.testing.assert_array_equal(transformed([PadTo(multiple=64)])["intrinsics"], K)


def test_without_intrinsics_a_roll_turns_about_the_centre():
    y, x = np.mgrid[:101, :101]
    disc = ((x - 50) ** 2 + (y - 50) ** 2 < 30**2).astype(np.uint8)
    image = np.zeros((101, 101, 3), np.uint8)
    result = transformed([Roll(limit=90, p=1.0)], sample={"image": image, "segmentation": disc})
    rows, columns = np.nonzero(result["segmentation"] == 1)
    np.testing.assert_allclose([rows.mean(), columns.mean()], 50, atol=0.05)


@pytest.mark.parametrize("factor", [0.25, 0.4, 0.5, 0.77, 1.3, 2.0, 3.7])
def test_every_label_is_that_of_the_pixel_under_its_centre(factor):
    """OpenCV's own nearest reads 1.5 pixels too far left at a factor of a quarter."""
    columns = np.tile(np.arange(300, dtype=np.int32), (200, 1))
    result = transformed([Rescale(factor=factor)], sample={"image": np.zeros((200, 300, 3)), "segmentation": columns})
    label = result["segmentation"][0]
    centres = (np.arange(label.size) + 0.5) * 300 / label.size - 0.5
    # half a pixel, reached only where a centre falls between two
    assert np.abs(label - centres).max() <= 0.5
    if factor not in (0.25, 0.5):
        assert abs((label - centres).mean()) < 0.06


@pytest.mark.parametrize("step", [Rescale(factor=0.6), Rescale(factor=2.1), Roll(limit=30, p=1.0), ScaleCrop(**ZOOM)])
def test_labels_lie_where_the_image_does(step):
    y, x = np.mgrid[:200, :300]
    disc = ((x - 141.3) ** 2 + (y - 90.7) ** 2 < 55**2).astype(np.uint8)
    image = np.repeat(disc[..., None] * 255, 3, axis=2)
    for seed in range(3):
        result = transformed([step], seed, sample={"image": image, "segmentation": disc})
        known = result["segmentation"] != 255
        weight = np.where(known, result["image"][..., 0], 0) / 255.0
        rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
        by_image = np.array([(rows * weight).sum(), (columns * weight).sum()]) / weight.sum()
        by_label = np.argwhere(result["segmentation"] == 1).mean(0)
        np.testing.assert_allclose(by_label, by_image, atol=0.2)
        differ = ((weight > 0.5) != (result["segmentation"] == 1)) & known
        # the disc's rim is half a pixel wide at most
        assert differ.sum() < 0.5 * 2 * np.pi * 55 * 2.1


@pytest.mark.parametrize(
    "steps", [[Rescale(factor=0.37)], [Rescale(factor=2.3)], [Roll(limit=30, p=1.0)], [ScaleCrop(**ZOOM)]]
)
def test_depth_never_floats_between_two_surfaces_nor_between_valid_and_missing(steps):
    depth = np.full(scene.SIZE, 1.0, np.float32)
    depth[:, 80:] = 5.0
    depth[20:40, 60:100] = 0
    depth[70:72] = np.inf
    normals = np.zeros((*scene.SIZE, 3), np.float32)
    normals[:, :80], normals[:, 80:] = (0, 0, -1), (-0.8, 0, -0.6)
    normals[depth == 0] = 0
    sample = scene.sample(hole=False) | {"depth": depth, "normals": normals}
    both_seen = False
    for seed in range(5):
        result = SampleTransforms([*steps])(sample, (seed,))
        depths = result["depth"][result["depth"] > 0]
        near, far = (np.isclose(depths / depths.min(), ratio, rtol=1e-5) for ratio in (1, 5))
        assert (near | far).all()
        both_seen |= bool(far.any())
        assert len(np.unique((result["normals"] / 1e-3).round().reshape(-1, 3), axis=0)) <= 3
    assert both_seen


def test_planes_are_read_exactly_between_pixels():
    """Inverse depth is linear on a plane, so reading it bilinearly makes no error; nearest would make half a pixel."""
    x, y = scene.grid()
    inverse = 0.2 + 0.001 * x - 0.0005 * y
    sample = scene.sample(hole=False) | {"depth": (1 / inverse).astype(np.float32)}
    result = transformed([Rescale(factor=1.7)], sample=sample)
    x, y = (result["image"][..., i].astype(np.float64) for i in (0, 1))
    np.testing.assert_allclose(result["depth"], 1 / (0.2 + 0.001 * x - 0.0005 * y), rtol=1e-5)


def test_a_hole_keeps_its_place_and_size():
    for factor in (0.5, 1.0, 1.8):
        result = transformed([Rescale(factor=factor)])
        rows, columns = np.nonzero(result["depth"] == 0)
        assert np.array_equal(result["depth"] == 0, result["segmentation"] == 255)
        assert (rows.size / factor**2) == pytest.approx(20 * 30, rel=0.06)
        centre = (np.array([rows.mean(), columns.mean()]) + 0.5) / factor - 0.5
        np.testing.assert_allclose(centre, [39.5, 104.5], atol=0.6)


def test_d9_a_flip_turns_normals_and_not_only_moves_them():
    """albumentations leaves nx = +1 after a horizontal flip, as `mask` and as `image` target."""
    sample = scene.sample() | {"normals": np.tile(np.float32([1, 0, 0]), (*scene.SIZE, 1))}
    assert (transformed([FlipLeftRight(p=1.0)], sample=sample)["normals"][..., 0] == -1).all()


@pytest.mark.parametrize(
    "steps",
    [
        [PadTo(multiple=64)],
        [Roll(limit=40, p=1.0)],
        [ScaleCrop(size=(200, 300), scale=(0.5, 0.9))],
        [CentreCrop(size=(200, 200))],
    ],
)
@pytest.mark.parametrize(("dtype", "void"), [(np.uint8, 255), (np.int32, -1)])
def test_d10_padding_is_missing_and_never_class_0(steps, dtype, void):
    sample = scene.sample(hole=False)
    sample |= {"segmentation": np.full(scene.SIZE, 7, dtype), "image": np.full((*scene.SIZE, 3), 9, np.uint8)}
    result = transformed(steps, sample=sample)
    padded = result["segmentation"] == void
    assert padded.any()
    assert (result["segmentation"][~padded] == 7).all()
    assert result["segmentation"].dtype == dtype
    assert np.array_equal(padded, result["depth"] == 0)
    # the image repeats its border instead
    assert (result["image"] == 9).all()


@pytest.mark.parametrize(
    ("step", "zoom"),
    [
        (FlipLeftRight(p=1.0), 1),
        (Roll(limit=10, p=1.0), 1),
        (ScaleCrop(size=(200, 280), scale=(1.5, 1.5)), 1.5),
        (ScaleCrop(size=(200, 280), scale=(0.8, 0.8)), 0.8),
        (ScaleCrop(size=(200, 280), scale=(1.5, 1.5), depth="focal"), 1.5),
        (Rescale(factor=1.5), 1.5),
    ],
    ids=["flip", "roll", "zoom in", "zoom out", "longer lens", "enlarged"],
)
def test_the_normals_of_real_depth_move_with_it(real_data, step, zoom):
    """NYU frames: normals fitted to the transformed depth are the transformed normals of the original depth.

    Depth comes in steps of 4 cm, so the fit needs a wide window, and one that covers the same surface after a zoom.
    """
    for sample in nyu_samples(real_data, 3):
        sample["normals"] = normals_from_depth(sample["depth"], sample["intrinsics"], window=21, blur=3.0)
        result = transformed([step], sample=sample)
        window = 2 * round(21 * zoom / 2) + 1
        again = normals_from_depth(result["depth"], result["intrinsics"], window=window, blur=3.0 * zoom)
        known = (result["depth"] > 0) & (again != 0).any(-1) & (result["normals"] != 0).any(-1)
        error = angles(again[known].astype(np.float64), result["normals"][known].astype(np.float64))
        assert known.mean() > 0.8
        assert np.median(error) < 1.5


def nyu_samples(real_data, count):
    """Training frames at half size, with the published intrinsics."""
    K = np.array([[518.85790, 0, 325.58245], [0, 519.46961, 253.73617], [0, 0, 1]], np.float32)
    for line in (real_data / "nyuv2" / "train.txt").read_text().split()[:count]:
        name = Path(line).stem
        image = np.asarray(Image.open(real_data / "nyuv2" / "rgb" / f"{name}.jpg"))
        depth = (
            np.asarray(Image.open(real_data / "nyuv2" / "depth" / f"{name}.png"))[::2, ::2].astype(np.float32) / 1000
        )
        yield {"image": image[::2, ::2], "depth": depth, "intrinsics": resize_intrinsics(K, (480, 640), (240, 320))}


@every_transform
def test_in_rendered_rooms_normals_of_the_transformed_depth_are_the_transformed_normals(steps):
    rooms = Rooms("val", count=3, size=(120, 160))
    for index in range(3):
        result = transformed(steps, index, sample=rooms.read(index))
        found = normals_from_depth(result["depth"], result["intrinsics"], window=5)
        known = (found != 0).any(-1) & (result["normals"] != 0).any(-1)
        error = angles(found[known].astype(np.float64), result["normals"][known].astype(np.float64))
        # planes are exact; the fit itself errs at edges and creases
        assert np.median(error) < 0.01
        assert np.percentile(error, 75) < 2
