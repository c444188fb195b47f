"""Rendered rooms: the same everywhere, and true to their own geometry."""

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import cv2
import numpy as np
import pytest

from densepred.data.rendering.architect import random_scene
from densepred.data.rendering.casting import camera_rays, hits, rectangles, trace
from densepred.data.rendering.render import render
from densepred.data.rendering.scenes import (
    BOX,
    CEILING,
    CLASSES,
    CYLINDER,
    DOOR,
    FACES,
    FLOOR,
    PICTURE,
    RUG,
    SPHERE,
    TABLE,
    WALL,
    WINDOW,
    Camera,
    Light,
    Scene,
)
from densepred.data.rendering.shapes import Box, Cylinder, Sphere
from densepred.data.rendering.textures import PATTERNS, SIDE, Material, mip_maps, sample
from densepred.data.rooms import Rooms, RoomsDataModule
from densepred.errors import ConfigurationError
from densepred.geometry import normals_from_depth, pixel_rays, unproject

SIZE = (120, 160)
SCENES = [random_scene(5, 0, index) for index in range(12)]
VIEWS = [render(scene, SIZE) for scene in SCENES]


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def world_points(scene: Scene, view) -> np.ndarray:
    """The pixels' points in the world, from the depth and the intrinsics that the sample gives."""
    return unproject(view.depth, view.intrinsics) @ scene.camera.rotation + scene.camera.position


def distance_to_surface(solid, points: np.ndarray) -> np.ndarray:
    """Signed distance of world points (..., 3) to a solid's surface, written apart from the renderer, in float64."""
    local = points - np.array(solid.centre)
    cos, sin = np.cos(solid.yaw), np.sin(solid.yaw)
    x, y, z = cos * local[..., 0] + sin * local[..., 1], cos * local[..., 1] - sin * local[..., 0], local[..., 2]
    if isinstance(solid, Sphere):
        return np.sqrt(x * x + y * y + z * z) - solid.ball
    if isinstance(solid, Box):
        gaps = np.stack([abs(x) - solid.half[0], abs(y) - solid.half[1], abs(z) - solid.half[2]])
    else:
        gaps = np.stack([np.hypot(x, y) - solid.disc, abs(z) - solid.half])
    return np.linalg.norm(np.maximum(gaps, 0), axis=0) + np.minimum(gaps.max(0), 0)


def distance_to_room(scene: Scene, points: np.ndarray) -> np.ndarray:
    return np.abs(np.stack([points, np.array(scene.room) - points])).min((0, -1))


def away_from_edges(view, pixels: int) -> np.ndarray:
    """True where neither the class nor the normal changes suddenly, nor the depth jumps, within some pixels."""
    kernel = np.ones((3, 3), np.uint8)
    turn = np.stack([cv2.morphologyEx(view.normals[..., c], cv2.MORPH_GRADIENT, kernel) for c in range(3)]).max(0) > 0.3
    jump = cv2.morphologyEx(view.depth, cv2.MORPH_GRADIENT, kernel) > 0.1 * view.depth
    change = cv2.morphologyEx(view.segmentation, cv2.MORPH_GRADIENT, kernel) > 0
    edge = (turn | jump | change).astype(np.uint8)
    return cv2.dilate(edge, np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) == 0


def test_a_sample_has_the_promised_keys_types_and_shapes():
    read = Rooms("train", size=SIZE).read(123)
    assert {key: (value.dtype.name, value.shape) for key, value in read.items() if key != "name"} == {
        "image": ("uint8", (*SIZE, 3)),
        "segmentation": ("uint8", SIZE),
        "depth": ("float32", SIZE),
        "normals": ("float32", (*SIZE, 3)),
        "intrinsics": ("float32", (3, 3)),
    }
    assert read["name"] == "rooms/train/000123"
    assert all(value.flags.c_contiguous for key, value in read.items() if key != "name")


def test_a_room_is_rendered_by_the_thread_that_asks_for_it_alone():
    # a library that spreads small products over all cores makes loading processes and the training wait for each other
    code = (
        "import time; from densepred.data.rendering.architect import random_scene;"
        "from densepred.data.rendering.render import render;"
        "render(random_scene(0, 0, 0), (240, 320)); own, all = time.thread_time(), time.process_time();"
        "render(random_scene(0, 0, 1), (240, 320)); print(time.thread_time() - own, time.process_time() - all)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    own, everywhere = map(float, run.stdout.split()[-2:])
    assert everywhere < 1.2 * own


def test_a_scene_depends_on_seed_split_and_index_alone():
    def digest(sample) -> str:
        return sha256(
            b"".join(sample[key].tobytes() for key in ("image", "segmentation", "depth", "normals"))
        ).hexdigest()

    rooms = Rooms("val", count=8, size=SIZE, seed=3, missing=0.1, void=0.02)
    later, first = digest(rooms.read(7)), digest(rooms.read(2))
    assert digest(rooms.read(7)) == later
    others = [Rooms("val", 9, SIZE, 4).read(7), Rooms("train", 9, SIZE, 3).read(7), Rooms("test", 9, SIZE, 3).read(7)]
    assert len({later, first, *map(digest, others)}) == 5
    code = (
        "from densepred.data.rooms import Rooms; from hashlib import sha256;"
        f"s = Rooms('val', 100, {SIZE}, 3, 0.1, 0.02).read(7);"
        "print(sha256(b''.join(s[k].tobytes() for k in ('image', 'segmentation', 'depth', 'normals'))).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.split()[-1] == later


def test_normals_are_unit_vectors_that_face_the_camera():
    for view in VIEWS:
        np.testing.assert_allclose(np.linalg.norm(view.normals, axis=-1), 1, atol=1e-5)
        assert ((view.normals * pixel_rays(view.intrinsics, SIZE)).sum(-1) < 1e-5).all()


def test_unprojected_depth_lies_on_the_surfaces_of_the_labelled_kind():
    kinds = {BOX: Box, TABLE: Box, SPHERE: Sphere, CYLINDER: Cylinder}
    for scene, view in zip(SCENES, VIEWS, strict=True):
        points = world_points(scene, view)
        for label in np.unique(view.segmentation):
            here = points[view.segmentation == label]
            solids = [solid for solid in scene.solids if solid.label == label]
            gaps = [np.abs(distance_to_surface(solid, here)) for solid in solids]
            assert all(isinstance(solid, kinds.get(label, Box)) for solid in solids)
            if label not in kinds:
                gaps.append(distance_to_room(scene, here))
            assert np.min(gaps, axis=0).max() < 2e-4


def test_nothing_stands_between_the_camera_and_what_it_sees():
    for scene, view in zip(SCENES[:6], VIEWS[:6], strict=True):
        camera, points = scene.camera.position, world_points(scene, view)
        for share in np.linspace(0.02, 0.995, 25):
            between = camera + share * (points - camera)
            for solid in scene.solids:
                assert distance_to_surface(solid, between).min() > -2e-4


def test_floor_looks_up_ceiling_down_and_walls_sideways_once_the_pose_is_undone():
    for scene, view in zip(SCENES, VIEWS, strict=True):
        world = view.normals @ scene.camera.rotation
        for label, up in {FLOOR: 1, RUG: 1, CEILING: -1, WALL: 0, DOOR: 0, WINDOW: 0, PICTURE: 0}.items():
            np.testing.assert_allclose(world[view.segmentation == label][:, 2], up, atol=1e-5)


def test_exact_normals_are_those_of_the_exact_depth():
    errors = []
    for view in VIEWS:
        error = degrees(normals_from_depth(view.depth, view.intrinsics, 3), view.normals)
        errors.append(error[away_from_edges(view, 2)])
    errors = np.concatenate(errors)
    assert len(errors) > 0.5 * len(VIEWS) * SIZE[0] * SIZE[1]
    # spheres and cylinders bend within the window, everything else is exact
    assert errors.mean() < 0.2
    assert np.quantile(errors, 0.9) < 0.05


def test_normals_from_depth_stay_close_with_holes_and_right_up_to_the_edges():
    errors = []
    for index in range(8):
        sample = Rooms("train", size=SIZE, missing=0.1).read(index)
        normals = normals_from_depth(sample["depth"], sample["intrinsics"], 5)
        known = (sample["normals"] != 0).any(-1) & (normals != 0).any(-1)
        assert known.mean() > 0.88
        errors.append(degrees(normals, sample["normals"])[known])
    assert np.concatenate(errors).mean() < 3
    assert np.median(np.concatenate(errors)) < 0.05


def test_the_same_scene_at_three_times_the_resolution_is_the_same_view():
    for scene, view in zip(SCENES[:4], VIEWS, strict=False):
        fine = render(scene, (3 * SIZE[0], 3 * SIZE[1]))
        # the centre of pixel i is that of pixel 3 i + 1
        np.testing.assert_allclose(fine.intrinsics[:2, 2], 3 * view.intrinsics[:2, 2] + 1, rtol=1e-5)
        assert (fine.segmentation[1::3, 1::3] == view.segmentation).mean() > 0.999
        assert np.quantile(np.abs(fine.depth[1::3, 1::3] - view.depth), 0.999) < 1e-4
        assert np.quantile(np.abs(fine.normals[1::3, 1::3] - view.normals), 0.999) < 1e-4
        shrunk = cv2.resize(fine.image, SIZE[::-1], interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(shrunk - view.image).mean() < 5


def test_an_odd_size_renders_and_its_intrinsics_keep_the_field_of_view():
    view = render(SCENES[0], (97, 131))
    assert view.image.shape == (97, 131, 3)
    assert view.intrinsics[0, 0] / 131 == pytest.approx(VIEWS[0].intrinsics[0, 0] / SIZE[1])


def test_rays_tried_only_inside_the_rectangles_find_the_same_as_rays_tried_everywhere():
    columns, rows = np.arange(SIZE[1], dtype=np.float32)[None], np.arange(SIZE[0], dtype=np.float32)[:, None]
    for scene in SCENES:
        rays = camera_rays(scene, SIZE, columns, rows)
        boxes = [box and np.s_[box[0] : box[1], box[2] : box[3]] for box in rectangles(scene, SIZE)]
        culled, owners = trace(scene, rays, boxes)
        full, all_owners = trace(scene, rays, [np.s_[:, :]] * len(scene.solids))
        np.testing.assert_array_equal(culled, full)
        np.testing.assert_array_equal(owners, all_owners)


def test_all_hits_of_a_ray_are_sorted_and_the_first_is_what_the_camera_sees():
    scene, view = SCENES[0], VIEWS[0]
    columns, rows = np.arange(SIZE[1], dtype=np.float32)[None], np.arange(SIZE[0], dtype=np.float32)[:, None]
    rays = camera_rays(scene, SIZE, columns, rows).reshape(3, -1)
    along, owner = hits(scene, scene.camera.position, rays)
    np.testing.assert_allclose(along[0].reshape(SIZE), view.depth, rtol=1e-5)
    finite = np.isfinite(along)
    assert (np.diff(np.where(finite, along, 1e9), axis=0) >= 0).all()
    np.testing.assert_array_equal(owner >= 0, finite)
    for index, solid in enumerate(scene.solids):
        which = np.nonzero(owner == FACES + index)
        points = scene.camera.position + (rays[:, which[1]] * along[which]).T
        assert len(which[0]) % 2 == 0
        assert len(points) == 0 or np.abs(distance_to_surface(solid, points)).max() < 1e-3
    # behind everything stands a wall, met once by each ray
    assert ((owner >= 0) & (owner < FACES)).sum(0).tolist() == [1] * rays.shape[1]


def plain_scene(*solids, light=(2.0, 2.0, 2.9), size=0.1) -> Scene:
    """A grey room of 4 x 4 x 3 metres, seen from (2, 0.1, 1.5) straight ahead."""
    grey = Material("plaster", 1.0, 0.0, (0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    rotation = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    camera = Camera(np.array([2.0, 0.1, 1.5]), rotation, 0.6, 1.0, (0.5, 0.5))
    lamp = Light(light, (1.0, 1.0, 1.0), size)
    return Scene((4, 4, 3), solids, (), (grey,) * 6, (grey,), (lamp,), (0.1, 0.1, 0.1), camera, 1.0, (0, 0, 0.0))


def test_a_wall_straight_ahead_is_as_far_as_it_is():
    view = render(plain_scene(), (31, 41))
    assert view.depth[15, 20] == pytest.approx(3.9, abs=1e-5)
    np.testing.assert_allclose(view.normals[15, 20], [0, 0, -1], atol=1e-6)
    assert view.segmentation[15, 20] == WALL
    assert view.segmentation[30, 20] == FLOOR
    assert view.segmentation[0, 20] == CEILING


@pytest.mark.parametrize(
    ("solid", "depth", "normal"),
    [
        (Sphere((2, 2, 1.5), 0.3, SPHERE, 0, 0.5), 1.4, [0, 0, -1]),
        (Box((2, 2, 1.5), 0.0, BOX, 0, (0.3, 0.4, 0.2)), 1.5, [0, 0, -1]),
        # turned by 30 degrees, its near face is met where 0.4 / cos 30 reaches
        (Box((2, 2, 1.5), np.pi / 6, BOX, 0, (5.0, 0.4, 0.2)), 1.9 - 0.4 / np.cos(np.pi / 6), [0.5, 0, -np.sqrt(0.75)]),
        (Cylinder((2, 2, 1.5), 1.0, CYLINDER, 0, 0.4, 0.7), 1.5, [0, 0, -1]),
    ],
)
def test_a_solid_straight_ahead_has_its_depth_and_normal(solid, depth, normal):
    view = render(plain_scene(solid), (31, 41))
    assert view.segmentation[15, 20] == solid.label
    assert view.depth[15, 20] == pytest.approx(depth, abs=1e-5)
    np.testing.assert_allclose(view.normals[15, 20], normal, atol=1e-5)


@pytest.mark.parametrize(
    "solid",
    [
        Sphere((2, 2, 1.2), 0.0, SPHERE, 0, 0.4),
        Box((2, 2, 1.2), 0.7, BOX, 0, (0.4, 0.3, 0.2)),
        Cylinder((2, 2, 1.2), 0.0, CYLINDER, 0, 0.4, 0.3),
    ],
)
def test_shadows_are_those_of_rays_sent_to_a_ball_of_light(solid):
    light, size = np.array([2.6, 1.7, 2.9], np.float32), 0.15
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0.5, 3.5, 40), np.linspace(0.5, 3.5, 40))
    floor = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)]).astype(np.float32)
    soft = solid.shadow(floor, light, size)
    offsets = rng.normal(size=(3, 200))
    offsets *= size * rng.random(200) ** (1 / 3) / np.linalg.norm(offsets, axis=0)
    hidden = np.zeros(x.size)
    for offset in offsets.T:
        to = (light + offset).astype(np.float32)[:, None] - floor
        enter, leave = solid.cross(floor, to)
        hidden += ((enter < leave) & (enter > 0) & (enter < 1)) / offsets.shape[1]
    # full shadow and full light agree but for the rim, where the penumbra's profile is approximate
    assert 0.02 < hidden.mean() < 0.6
    assert np.abs(soft - hidden).mean() < 0.02
    assert soft[hidden < 1e-6].mean() < 0.01
    assert soft[hidden > 1 - 1e-6].mean() > 0.97


def test_what_a_solid_hides_from_the_lamp_is_darker():
    table = Box((2, 2.5, 1.0), 0.0, TABLE, 0, (0.5, 0.5, 0.02))
    lit, shaded = (render(plain_scene(*solids), SIZE) for solids in ((), (table,)))
    scene = plain_scene(table)
    points = world_points(scene, shaded)
    below = (shaded.segmentation == FLOOR) & (np.abs(points[..., 0] - 2) < 0.3) & (np.abs(points[..., 1] - 2.4) < 0.2)
    beside = (shaded.segmentation == FLOOR) & (np.abs(points[..., 0] - 3.6) < 0.2)
    assert below.sum() > 20
    assert shaded.image[below].mean() < 0.75 * lit.image[below].mean()
    assert shaded.image[beside].mean() == pytest.approx(lit.image[beside].mean(), rel=0.1)


def test_edges_in_the_picture_are_smooth_and_labels_are_not():
    white = Material("plaster", 1.0, 0.0, (0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    scene = plain_scene(Sphere((2, 2, 1.5), 0.0, SPHERE, 0, 0.5))
    scene = replace(scene, materials=(white,), ambient=(3.0, 3.0, 3.0), lights=())
    view = render(scene, SIZE)
    inside = view.segmentation == SPHERE
    middle = view.image[..., 0][cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0].min()
    outside = view.image[..., 0][cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) == 0].max()
    assert outside < middle
    rim = view.image[..., 0][cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0]
    assert ((rim > outside) & (rim < middle)).mean() > 0.2
    # the ball's pixels cover the area that its outline has in closed form: a circle on the axis
    fx, distance, radius = 0.6 * SIZE[1], 1.9, 0.5
    assert inside.sum() == pytest.approx(np.pi * (fx * radius / np.sqrt(distance**2 - radius**2)) ** 2, rel=0.01)


def test_every_class_is_seen_and_most_pictures_show_things():
    small = [render(random_scene(0, 0, index), (48, 64)).segmentation for index in range(60)]
    share = np.bincount(np.concatenate([labels.ravel() for labels in small]), minlength=len(CLASSES)) / (60 * 48 * 64)
    assert len(share) == len(CLASSES)
    assert (share > 0.004).all()
    assert share[WALL] < 0.65
    assert np.mean([(labels >= CLASSES.index("table")).mean() > 0.02 for labels in small]) > 0.8


def test_pictures_are_neither_black_nor_burnt_out():
    means = [view.image.mean() for view in VIEWS]
    assert min(means) > 70
    assert max(means) < 215
    assert np.mean([(view.image == 255).all(-1).mean() for view in VIEWS]) < 0.1


@pytest.mark.parametrize("missing", [0.05, 0.3])
def test_missing_punches_that_share_out_of_depth_and_normals_together(missing):
    whole, holed = Rooms("train", size=SIZE).read(0), Rooms("train", size=SIZE, missing=missing).read(0)
    holes = holed["depth"] == 0
    assert holes.mean() == pytest.approx(missing, abs=0.005)
    np.testing.assert_array_equal((holed["normals"] == 0).all(-1), holes)
    np.testing.assert_array_equal(holed["depth"][~holes], whole["depth"][~holes])
    np.testing.assert_array_equal(holed["image"], whole["image"])
    np.testing.assert_array_equal(holed["segmentation"], whole["segmentation"])


def test_void_takes_that_share_of_the_labels_near_their_borders():
    whole, voided = Rooms("train", size=SIZE).read(0), Rooms("train", size=SIZE, void=0.03).read(0)
    void = voided["segmentation"] == 255
    assert void.mean() == pytest.approx(0.03, abs=0.003)
    np.testing.assert_array_equal(voided["segmentation"][~void], whole["segmentation"][~void])
    border = cv2.morphologyEx(whole["segmentation"], cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)) > 0
    assert border[void].mean() > 0.95


def test_by_default_nothing_is_missing():
    for view in VIEWS:
        assert (view.depth > 0.02).all()
        assert (view.segmentation < len(CLASSES)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "trainval"}, r"one of \['train', 'val', 'test'\], got 'trainval'"),
        ({"size": (8, 320)}, r"at least 16 x 16 pixels, got \(8, 320\)"),
        ({"missing": 1.0}, "missing is a share .* got 1.0"),
        ({"void": -0.1}, "void is a share .* got -0.1"),
        ({"seed": -1}, "0 or above, got count 1000, seed -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Rooms(**options)


def test_an_index_past_the_end_is_an_index_error():
    with pytest.raises(IndexError, match="val has scenes 0 to 3, asked for 4"):
        Rooms("val", count=4).read(4)


def test_the_datamodule_serves_batches_of_disjoint_splits():
    rooms = RoomsDataModule(size=(48, 64), train=8, val=3, test=2, batch_size=4, num_workers=0)
    rooms.setup("fit")
    rooms.setup("test")
    batch = next(iter(rooms.train_dataloader()))
    assert {key: tuple(value.shape) for key, value in batch.items() if key != "name"} == {
        "image": (4, 3, 48, 64),
        "segmentation": (4, 48, 64),
        "depth": (4, 1, 48, 64),
        "normals": (4, 3, 48, 64),
        "intrinsics": (4, 3, 3),
    }
    names = [name for loader in (rooms.val_dataloader(), rooms.test_dataloader()) for b in loader for name in b["name"]]
    assert names == [f"rooms/val/{i:06d}" for i in range(3)] + [f"rooms/test/{i:06d}" for i in range(2)]
    assert rooms.classes == {"segmentation": CLASSES}


def test_the_datamodule_refuses_options_when_it_is_built():
    with pytest.raises(ConfigurationError, match="missing is a share"):
        RoomsDataModule(missing=2.0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_stay_in_range_and_their_coarsest_map_is_their_mean(pattern):
    maps = mip_maps(pattern)
    tile = maps[: SIDE * SIDE]
    assert tile.min() >= -1e-6
    assert tile.max() <= 1 + 1e-6
    assert tile.std() > 0.03
    assert maps[-1] == pytest.approx(tile.mean(), abs=1e-4)


def test_a_texture_is_exact_at_its_cells_repeats_and_blurs_with_the_footprint():
    maps = mip_maps("checker")
    tile = maps[: SIDE * SIDE].reshape(SIDE, SIDE)
    rows, columns = np.array([0, 7, 255]), np.array([3, 255, 0])
    x, y = ((i + 0.5).astype(np.float32) / SIDE for i in (columns, rows))
    sharp = np.zeros(3, np.float32)
    np.testing.assert_allclose(sample(maps, x, y, sharp), tile[rows, columns], atol=1e-4)
    np.testing.assert_allclose(sample(maps, x + 3, y - 5, sharp), tile[rows, columns], atol=1e-3)
    np.testing.assert_allclose(sample(maps, x, y, sharp + 10), tile.mean(), atol=1e-4)
