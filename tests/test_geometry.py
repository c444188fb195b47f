"""Intrinsics, points and normals against planes and spheres in closed form."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from densepred.errors import ConfigurationError
from densepred.geometry import (
    crop_intrinsics,
    flip_intrinsics,
    intrinsics_matrix,
    normals_from_depth,
    normals_record,
    pad_intrinsics,
    pixel_rays,
    project,
    resize_intrinsics,
    unproject,
)

SIZE = (60, 80)
K = intrinsics_matrix(70.0, 72.0, 38.2, 31.5)
TILT = np.array([0.35, -0.4, -0.85]) / np.linalg.norm([0.35, -0.4, -0.85])


def plane_depth(normal: np.ndarray, distance: float, intrinsics: np.ndarray = K, size=SIZE) -> np.ndarray:
    """Depth of the plane n . X = -distance, written pixel by pixel from the pinhole equation."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    x, y = (columns - intrinsics[0, 2]) / intrinsics[0, 0], (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    return (-distance / (normal[0] * x + normal[1] * y + normal[2])).astype(np.float32)


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def test_points_project_back_to_their_pixels():
    depth = np.random.default_rng(0).uniform(0.5, 9, SIZE).astype(np.float32)
    points = unproject(depth, K)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    np.testing.assert_allclose(project(points, K), np.stack([columns, rows], -1), atol=2e-4)
    np.testing.assert_array_equal(points[..., 2], depth)


def test_missing_depth_gives_the_zero_point_and_points_behind_the_camera_no_pixel():
    depth = np.array([[0, np.inf, np.nan, 2]], np.float32)
    points = unproject(depth, K)
    assert (points[0, :3] == 0).all()
    assert (points[0, 3] != 0).any()
    assert np.isnan(project(np.array([[0, 0, -1.0], [0, 0, 0]], np.float32), K)).all()


def test_a_skewed_matrix_is_inverted_too():
    skewed = K.copy()
    skewed[0, 1] = 3.0
    pixels = project(pixel_rays(skewed, (4, 5)) * 7, skewed)
    np.testing.assert_allclose(pixels[3, 4], [4, 3], atol=1e-4)


def test_crop_pad_and_flip_keep_every_point_on_its_pixel():
    depth = plane_depth(TILT, 2.0)
    points = unproject(depth, K)
    np.testing.assert_allclose(unproject(depth[7:, 11:], crop_intrinsics(K, 7, 11)), points[7:, 11:], atol=1e-5)
    padded = np.pad(depth, ((3, 1), (5, 2)))
    np.testing.assert_allclose(unproject(padded, pad_intrinsics(K, 3, 5))[3:-1, 5:-2], points, atol=1e-5)
    flipped = unproject(depth[:, ::-1], flip_intrinsics(K, SIZE[1]))[:, ::-1]
    np.testing.assert_allclose(flipped * [-1, 1, 1], points, atol=1e-5)


@pytest.mark.parametrize("new_size", [(120, 160), (20, 40), (61, 77)])
def test_resizing_keeps_the_corners_of_the_image_on_their_rays(new_size):
    resized = resize_intrinsics(K, SIZE, new_size)
    for corner in [(-0.5, -0.5), (SIZE[1] - 0.5, SIZE[0] - 0.5)]:
        scaled = [(corner[0] + 0.5) * new_size[1] / SIZE[1] - 0.5, (corner[1] + 0.5) * new_size[0] / SIZE[0] - 0.5]
        before = np.linalg.solve(K.astype(np.float64), [*corner, 1])
        np.testing.assert_allclose(np.linalg.solve(resized.astype(np.float64), [*scaled, 1]), before, atol=1e-6)


def test_the_rules_leave_the_matrix_they_were_given_alone():
    before = K.copy()
    for moved in (
        crop_intrinsics(K, 1, 2),
        pad_intrinsics(K, 1, 2),
        flip_intrinsics(K, 9),
        resize_intrinsics(K, (2, 2), (4, 4)),
    ):
        assert moved.dtype == np.float32
        assert (moved != before).any()
    np.testing.assert_array_equal(K, before)


@pytest.mark.parametrize(
    ("window", "blur", "method"), [(3, 0, "window"), (9, 0, "window"), (9, 2.0, "window"), (3, 0, "toolbox")]
)
def test_a_plane_has_its_own_normal_everywhere_borders_included(window, blur, method):
    normals = normals_from_depth(plane_depth(TILT, 2.0), K, window, blur, method)
    assert normals.dtype == np.float32
    assert degrees(normals, TILT).max() < 0.02


@pytest.mark.parametrize("method", ["window", "toolbox"])
def test_normals_are_unit_vectors_that_face_the_camera(method):
    rng = np.random.default_rng(1)
    depth = gaussian_filter(rng.uniform(1, 5, SIZE), 5).astype(np.float32)
    normals = normals_from_depth(depth, K, 5, method=method)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert ((normals * pixel_rays(K, SIZE)).sum(-1) <= 0).all()


def test_a_sphere_has_its_radial_normals():
    rays = pixel_rays(K, SIZE).astype(np.float64)
    centre, radius = np.array([0.1, 0.0, 3.0]), 0.9
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    inside = b**2 - a * c > 0
    depth = np.where(inside, (b - np.sqrt(np.maximum(b**2 - a * c, 0))) / a, 0).astype(np.float32)
    exact = (depth[..., None] * rays - centre) / radius
    error = degrees(normals_from_depth(depth, K, 3), exact)
    # inverse depth bends towards the rim; away from it the fit is close
    middle = inside & (np.abs((exact * rays).sum(-1) / np.linalg.norm(rays, axis=-1)) > 0.5)
    assert middle.sum() > 1000
    assert error[middle].mean() < 0.5


def test_a_step_in_depth_does_not_bend_the_normals_beside_it():
    step = np.full(SIZE, 2.0, np.float32)
    step[:, 40:] = 3.0
    assert degrees(normals_from_depth(step, K, 9), [0, 0, -1.0]).max() < 0.1


def test_a_crease_between_two_walls_stays_sharp():
    left, right = np.array([0.8, 0, -0.6]), np.array([-0.6, 0, -0.8])
    depths = np.stack([plane_depth(left, 2.0), plane_depth(right, 2.0)])
    seen = np.where(depths > 0, depths, np.inf)
    depth, face = seen.min(0), seen.argmin(0)
    assert 0.2 < face.mean() < 0.8
    error = degrees(normals_from_depth(depth, K, 9), np.stack([left, right])[face])
    assert error.max() < 1


def test_missing_pixels_get_the_zero_vector_and_do_not_disturb_their_neighbours():
    depth = plane_depth(TILT, 2.0)
    holes = np.random.default_rng(2).random(SIZE) < 0.3
    depth[holes] = 0
    depth[0, 0], holes[0, 0] = np.inf, True
    normals = normals_from_depth(depth, K, 7, blur=1.5)
    assert (normals[holes] == 0).all()
    assert degrees(normals[~holes], TILT).max() < 0.05


@pytest.mark.parametrize("method", ["window", "toolbox"])
def test_with_too_few_neighbours_or_nothing_known_the_answer_is_the_zero_vector(method):
    depth = np.zeros(SIZE, np.float32)
    assert (normals_from_depth(depth, K, 5, method=method) == 0).all()
    depth[30, 40] = 2.0
    assert (normals_from_depth(depth, K, 5, method=method) == 0).all()


def test_quantised_depth_is_mended_by_a_wide_window_after_a_blur():
    plane = plane_depth(TILT, 2.0)
    stepped = (np.round(plane / 0.039) * 0.039).astype(np.float32)
    narrow = degrees(normals_from_depth(stepped, K, 3), TILT).mean()
    wide = degrees(normals_from_depth(stepped, K, 21, blur=3.0), TILT).mean()
    assert wide < 2 < narrow


def test_the_wide_window_agrees_with_an_explicit_least_squares_fit():
    rng = np.random.default_rng(3)
    depth = (plane_depth(TILT, 2.0) * rng.uniform(0.99, 1.01, SIZE)).astype(np.float32)[:7, :7]
    depth[2, 3] = 0
    rays, known = pixel_rays(K, (7, 7)).astype(np.float64), depth > 0
    plane = np.linalg.lstsq(rays[known], 1 / depth[known].astype(np.float64), rcond=None)[0]
    # in the middle of a 7 x 7 image the centred window is the whole image, and no shifted one is twice as good
    normal = normals_from_depth(depth, K, 7)[3, 3]
    assert degrees(normal, -plane / np.linalg.norm(plane)) < 1e-3


@pytest.mark.parametrize("frame", ["0100", "0400"])
def test_real_depth_gives_a_floor_that_looks_up_and_walls_that_stand(real_data, frame):
    depth = cv2.imread(str(real_data / f"nyuv2/depth/{frame}.png"), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
    labels = cv2.imread(str(real_data / f"nyuv2/label40/{frame}.png"), cv2.IMREAD_UNCHANGED)
    normals = normals_from_depth(depth, intrinsics_matrix(518.8579, 519.4696, 325.5824, 253.7362), 21, blur=3.0)
    wall, floor = normals[labels == 0], normals[labels == 1]
    assert np.median(floor[:, 1]) < -0.95
    assert np.median(np.abs(wall[:, 1])) < 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 4}, "odd and at least 3 pixels, got 4"),
        ({"window": 1}, "odd and at least 3 pixels, got 1"),
        ({"blur": -1.0}, "blur .* got -1"),
        ({"method": "magic"}, "'window' or 'toolbox', got 'magic'"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(options, words):
    with pytest.raises(ConfigurationError, match=words):
        normals_from_depth(np.ones(SIZE, np.float32), K, **options)


def test_depth_of_another_shape_is_refused():
    with pytest.raises(ConfigurationError, match=r"got shape \(1, 4, 4\)"):
        unproject(np.ones((1, 4, 4), np.float32), K)


def test_the_record_names_the_method_in_plain_values():
    assert normals_record(9) == {"source": "depth", "method": "window", "window": 9, "blur": 0.0}
    assert normals_record(method="toolbox")["window"] == 19
