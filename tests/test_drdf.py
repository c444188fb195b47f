"""DRDF: the field, its network, sampling, loss, decoding and scores, and rooms with all surfaces along their rays."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from densepred.cli import main
from densepred.data.rendering.casting import camera_rays, exposed_hits, hits, trace
from densepred.data.rendering.scatter import area, scatter, spread
from densepred.data.rendering.shapes import Box, Cylinder, Sphere
from densepred.data.room_rays import RoomRays, RoomRaysDataModule
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.checkpoint import load_network
from densepred.inference.reconstruction import reconstruct
from densepred.rays.decoding import smoothed, surfaces_along
from densepred.rays.field import directed_ray_distance, pixel_grid, rays_through
from densepred.rays.loss import log_l1
from densepred.rays.metrics import RayScore, SceneScore, matches
from densepred.rays.module import RayDistancePredictor, scene_points
from densepred.rays.network import PointDecoder, RayDistanceNetwork, positional_encoding
from densepred.rays.sampling import distances_along
from tests.test_rooms import plain_scene

INF = float("inf")
CAMERA = torch.tensor([[[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]]])


# the field


@pytest.mark.parametrize(("z", "expected"), [(0, 2), (1.5, 0.5), (2.5, -0.5), (3.4, -1.4), (3.6, 1.4), (5.2, -0.2)])
def test_the_worked_example_of_hits_at_2_and_5(z, expected):
    answer = directed_ray_distance(torch.tensor([float(z)]), torch.tensor([2.0, 5.0, INF]))
    assert answer.item() == pytest.approx(expected, abs=1e-5)
    assert answer.clamp(-1, 1).item() == pytest.approx(max(-1, min(1, expected)), abs=1e-5)


def test_between_first_and_last_hit_the_distance_is_at_most_half_the_largest_gap():
    surfaces = torch.rand(50, 6).mul(8).sort(-1).values
    z = surfaces[:, :1] + torch.rand(50, 200) * (surfaces[:, -1:] - surfaces[:, :1])
    largest = (surfaces[:, 1:] - surfaces[:, :-1]).amax(-1, keepdim=True)
    assert (directed_ray_distance(z, surfaces).abs() <= largest / 2 + 1e-5).all()


def test_hits_may_come_in_any_order_and_a_ray_without_hits_has_no_distance():
    z = torch.linspace(0, 9, 50)
    ordered = directed_ray_distance(z, torch.tensor([2.0, 5.0, 6.0]))
    assert torch.equal(directed_ray_distance(z, torch.tensor([6.0, INF, 2.0, 5.0])), ordered)
    assert (directed_ray_distance(z, torch.tensor([INF, INF])) == INF).all()


def test_rays_pass_through_the_points_that_project_to_their_pixels():
    points = torch.tensor([[0.3, -0.2, 2.0], [-1.0, 0.5, 4.0]])
    skewed = CAMERA.clone()
    skewed[0, 0, 1] = 3
    flat = points @ skewed[0].T
    rays = rays_through((flat[:, :2] / flat[:, 2:])[None], skewed)
    torch.testing.assert_close(rays.points(points.norm(dim=-1)[None, :, None])[0, :, 0], points)
    torch.testing.assert_close(rays.forward[0, :, 0] * points.norm(dim=-1), points[:, 2])


# decoding


@pytest.mark.parametrize("step", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("clamp", [1.0, 100.0])
def test_the_exact_field_of_hits_2_and_5_decodes_to_them_and_to_nothing_half_way(step, clamp):
    z = torch.arange(0.013, 8, step)
    found = surfaces_along(z, directed_ray_distance(z, torch.tensor([2.0, 5.0])).clamp(-clamp, clamp))
    assert found.isfinite().tolist() == [True, True, False, False, False]
    assert found[0] == pytest.approx(2, abs=step)
    assert found[1] == pytest.approx(5, abs=step)


def test_smoothing_is_by_the_hann_window_of_unit_sum():
    values = torch.rand(3, 20)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(5) / 4)
    expected = np.stack([np.convolve(row, window / window.sum(), "valid") for row in values.numpy()])
    np.testing.assert_allclose(smoothed(values)[:, 2:-2], expected, atol=1e-6)
    torch.testing.assert_close(smoothed(torch.full((4, 9), 3.0)), torch.full((4, 9), 3.0))
    with pytest.raises(ConfigurationError, match="odd number of samples"):
        smoothed(values, 4)


def test_only_the_nearest_surfaces_of_a_ray_are_kept():
    z = torch.linspace(0, 20, 2001)
    true = torch.arange(1.0, 19, 2)
    found = surfaces_along(z, directed_ray_distance(z, true), most=3)
    torch.testing.assert_close(found, true[:3], atol=0.01, rtol=0)


# the network


def test_it_has_as_many_parameters_as_published():
    network = RayDistanceNetwork(ResNetEncoder("resnet34"))
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.decoders, network.encoder, network)]
    assert counts == [306_433, 21_284_672, 21_591_105]
    assert network.decoders["rays"].features == 1024
    assert network.decoders["rays"].entry.in_features == 1102


def test_the_positional_encoding_holds_the_point_and_six_octaves_of_sines_and_cosines():
    point = torch.tensor([0.3, -0.7, 0.1])
    code = positional_encoding(point)
    assert len(code) == 39
    expected = [point, *((math.pi * 2**k * point).sin() for k in range(6))]
    expected += [(math.pi * 2**k * point).cos() for k in range(6)]
    torch.testing.assert_close(code, torch.cat(expected))


def test_residual_blocks_start_as_identities():
    decoder = PointDecoder(features=8)
    x = torch.randn(4, 128)
    assert len(decoder.blocks) == 5
    assert torch.equal(decoder.blocks(x), x)


def test_the_answer_is_that_of_the_plain_layers_on_features_encoding_and_a_silent_direction():
    decoder = PointDecoder(features=8, width=16, blocks=2)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features, points = torch.randn(2, 3, 8), torch.rand(2, 3, 7, 3)
    whole = torch.cat([features[:, :, None].expand(-1, -1, 7, -1), positional_encoding(points),
                       torch.zeros(2, 3, 7, 39)], -1)  # fmt: skip
    x = decoder.entry(whole)
    for block in decoder.blocks:
        x = x + block.second(torch.relu(block.first(torch.relu(x))))
    torch.testing.assert_close(decoder(features, points), decoder.score(torch.relu(x)).squeeze(-1))
    decoder.bounded = True
    assert decoder(features, points).abs().max() < 1


class Columns(ResNetEncoder):
    """Stands in for a trunk: its one map holds the x of the middle of each cell of two pixels."""

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = -(-image.shape[-2] // 2), -(-image.shape[-1] // 2)
        return [(2 * torch.arange(width) + 0.5).expand(len(image), 1, height, width)]


@pytest.mark.parametrize("width", [64, 63])
def test_features_are_read_where_the_pixel_lies_in_the_map(width):
    network = RayDistanceNetwork(Columns("resnet18"))
    read = []
    network.decoders["rays"].forward = lambda features, points: read.append((features, points)) or points[..., 0]
    pixels = torch.tensor([[[10.5, 7.0], [33.25, 20.0]]])
    network(torch.zeros(1, 3, 48, width), pixels, torch.ones(1, 2, 3), CAMERA)
    features, points = read[0]
    torch.testing.assert_close(features[0, :, 0], pixels[0, :, 0])
    torch.testing.assert_close(points[0, :, 0, 0], (2 * pixels[0, :, 0] + 1) / width - 1)


def test_depths_from_near_to_far_are_told_as_minus_one_to_one():
    network = RayDistanceNetwork(Columns("resnet18"))
    read = []
    network.decoders["rays"].forward = lambda features, points: read.append(points) or points[..., 0]
    pixels = torch.tensor([[[0.0, 0.0]]])
    forward = rays_through(pixels, CAMERA).forward
    network(torch.zeros(1, 3, 48, 64), pixels, torch.tensor([0.1, 5.05, 10.0]) / forward, CAMERA)
    torch.testing.assert_close(read[0][0, 0, :, 2], torch.tensor([-1.0, 0, 1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (61, 79)])
def test_gradients_reach_every_parameter_at_any_size(size):
    network = RayDistanceNetwork(ResNetEncoder("resnet18"))
    for block in network.decoders["rays"].blocks:
        torch.nn.init.normal_(block.second.weight, std=0.1)
    answer = network(torch.rand(1, 3, *size), torch.rand(1, 5, 2) * 40, torch.rand(1, 5, 9) * 5, CAMERA)
    assert answer.shape == (1, 5, 9)
    answer.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# sampling and loss


def test_half_of_the_points_lie_anywhere_and_half_about_the_hits_with_the_spread():
    surfaces = torch.tensor([[2.0, 7.0, INF]]).expand(40, 3)
    z = distances_along(surfaces, torch.tensor([0.1]), torch.tensor([10.0]))
    assert z.shape == (40, 512)
    anywhere, near = z[:, :256], z[:, 256:]
    assert anywhere.min() >= 0.1
    assert anywhere.max() <= 10
    assert anywhere.mean() == pytest.approx(5.05, abs=0.1)
    assert anywhere.std() == pytest.approx(9.9 / math.sqrt(12), abs=0.05)
    of_first = (near - 2).abs() < (near - 7).abs()
    assert of_first.float().mean() == pytest.approx(0.5, abs=0.02)
    assert (near[of_first] - 2).std() == pytest.approx(0.4, abs=0.01)
    assert near[~of_first].mean() == pytest.approx(7, abs=0.02)


def test_on_a_ray_without_hits_all_points_lie_in_the_range():
    z = distances_along(torch.full((3, 2), INF), torch.tensor([1.0]), torch.tensor([2.0]), 5, 5)
    assert ((z >= 1) & (z <= 2)).all()
    with pytest.raises(ConfigurationError, match="1 or more together"):
        distances_along(torch.ones(1, 1), torch.tensor([1.0]), torch.tensor([2.0]), 0, 0)


def test_the_loss_is_of_signed_logarithms_over_known_points():
    prediction, target = torch.tensor([0.5, -0.2, 3.0], requires_grad=True), torch.tensor([1.0, 0.3, INF])
    loss = log_l1(prediction, target, torch.tensor([True, True, False]))
    expected = (math.log(2 / 1.5) + math.log(1.3) + math.log(1.2)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([-0.5 / 1.5, -0.5 / 1.2, 0]))
    assert log_l1(prediction, target, torch.zeros(3, dtype=torch.bool)).item() == 0


# scores


def test_identical_points_score_one_and_a_shift_beyond_the_threshold_scores_zero():
    points = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    none = torch.zeros(64, dtype=torch.bool)
    score = SceneScore([0.1, 0.5])
    score.update(points + torch.tensor([0.0, 0, 0.2]), none, points, none)
    found = score.compute()
    assert found["scene_f_0.1"] == 0
    assert found["scene_precision_0.5"] == found["scene_recall_0.5"] == 1
    assert found["scene_f_0.5"] == pytest.approx(2 / 2.0001)


def test_precision_and_recall_are_of_points_and_their_f_score_is_averaged_over_images():
    true = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4]])
    hidden = torch.tensor([False, True, True, True])
    said, behind = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 9]]), torch.tensor([False, True, True])
    score = SceneScore([0.1])
    score.update(said, behind, true, hidden)
    found = {key: value.item() for key, value in score.compute().items()}
    p, r = 2 / 3, 1 / 2
    assert found["scene_f_0.1"] == pytest.approx(2 * p * r / (p + r + 1e-4))
    assert found["hidden_precision_0.1"] == pytest.approx(1 / 2)
    assert found["hidden_recall_0.1"] == pytest.approx(1 / 3)
    score.update(said[:0], behind[:0], true, hidden)
    assert score.compute()["scene_f_0.1"].item() == pytest.approx(found["scene_f_0.1"] / 2)


def test_distances_between_points_agree_with_all_pairs():
    said, true = torch.rand(1500, 3), torch.rand(700, 3)
    none = torch.zeros(1500, dtype=torch.bool)
    score = SceneScore([0.05])
    score.update(said, none, true, none[:700])
    pairs = np.linalg.norm(said.numpy()[:, None] - true.numpy()[None], axis=-1)
    assert score.compute()["scene_precision_0.05"].item() == pytest.approx((pairs.min(1) <= 0.05).mean(), abs=1e-3)
    assert score.compute()["scene_recall_0.05"].item() == pytest.approx((pairs.min(0) <= 0.05).mean(), abs=2e-3)


def greatest_matching(said: list[float], true: list[float], threshold: float) -> int:
    """By trying everything."""
    if not said:
        return 0
    rest = [greatest_matching(said[1:], true, threshold)]
    for i, one in enumerate(true):
        if abs(one - said[0]) <= threshold:
            rest.append(1 + greatest_matching(said[1:], true[:i] + true[i + 1 :], threshold))
    return max(rest)


def test_surfaces_of_a_ray_are_matched_one_to_one_as_often_as_possible():
    for _ in range(60):
        said, true = torch.rand(4).sort().values, torch.rand(5).sort().values
        assert matches(said, true, 0.15).item() == greatest_matching(said.tolist(), true.tolist(), 0.15)
    assert matches(torch.tensor([1.0, 1.01, INF]), torch.tensor([1.0, INF, INF]), 0.5).item() == 1


def test_occluded_surfaces_are_all_but_the_first_of_each_ray():
    score = RayScore([0.1])
    score.update(torch.tensor([[1.0, 2.0, INF], [1.0, INF, INF]]), torch.tensor([[1.0, 3.0], [1.0, 4.0]]))
    found = {key: value.item() for key, value in score.compute().items()}
    assert found["ray_precision_0.1"] == pytest.approx(2 / 3)
    assert found["ray_recall_0.1"] == pytest.approx(2 / 4)
    assert found["occluded_precision_0.1"] == found["occluded_recall_0.1"] == found["occluded_f_0.1"] == 0


# rooms


BALL = Sphere((2.0, 2.0, 1.5), 0.0, 7, 0, 0.5)
CUBE = Box((2.0, 2.0, 0.25), 0.0, 6, 0, (0.3, 0.3, 0.25))
TIN = Cylinder((2.0, 3.0, 1.5), 0.0, 8, 0, 0.25, 0.2)


def straight_ahead(scene, size=(31, 41)):
    """Depths of all surfaces at the pixel of the optical axis, from (2, 0.1, 1.5) along y."""
    matrix = scene.camera.intrinsics(size)
    found = exposed_hits(scene, size, matrix[:2, 2:], 8)[:, 0]
    return found[np.isfinite(found)]


def test_along_the_axis_a_ray_meets_ball_tin_and_wall_where_they_are():
    np.testing.assert_allclose(straight_ahead(plain_scene(BALL, TIN)), [1.4, 2.4, 2.65, 3.15, 3.9], atol=1e-5)


def test_beside_the_axis_the_ball_is_met_where_the_quadratic_says():
    scene, size = plain_scene(BALL), (31, 41)
    matrix = scene.camera.intrinsics(size).astype(np.float64)
    pixels = np.array([[23.0, 18.5], [15.0, 17.0]], np.float32)
    found = exposed_hits(scene, size, pixels, 3)
    for i in range(2):
        d = np.linalg.inv(matrix) @ [pixels[0, i], pixels[1, i], 1]
        middle = np.array([0, 0, 1.9])  # of the ball, in the camera's frame
        roots = np.roots([d @ d, -2 * d @ middle, middle @ middle - 0.25])
        np.testing.assert_allclose(found[:2, i], np.sort(roots), rtol=1e-4)
        assert found[2, i] == pytest.approx(3.9, rel=1e-5)


def test_where_a_box_stands_on_the_floor_there_is_no_surface():
    scene, size = plain_scene(CUBE), (31, 41)
    down = np.array([0, 0, 0.01], np.float32) + np.array([2.0, 2.0, 0], np.float32)
    flat = scene.camera.intrinsics(size) @ (scene.camera.rotation @ (down - scene.camera.position)).astype(np.float32)
    pixel = (flat[:2] / flat[2:])[:, None]
    every = hits(scene, scene.camera.position, camera_rays(scene, size, pixel[0], pixel[1]))[0]
    exposed = exposed_hits(scene, size, pixel, 4)
    assert np.isfinite(every).sum() == 3  # the top or a side, the bottom, the floor
    assert np.isfinite(exposed).sum() == 1
    assert exposed[0, 0] == every[0, 0]


def test_of_two_boxes_on_each_other_the_touching_faces_are_none():
    lower, upper = Box((2.0, 2.0, 1.4), 0.0, 6, 0, (0.2, 0.5, 0.1)), Box((2.0, 2.6, 1.5), 0.0, 6, 0, (0.2, 0.1, 0.05))
    nearer = Box((2.0, 2.4, 1.5), 0.0, 6, 0, (0.2, 0.1, 0.05))
    np.testing.assert_allclose(straight_ahead(plain_scene(nearer, upper)), [2.2, 2.6, 3.9], atol=1e-5)
    assert len(straight_ahead(plain_scene(lower))) in (1, 3)  # the axis runs along its top


def test_what_is_seen_first_is_the_depth_map_and_every_ray_ends_at_a_surface():
    rooms = RoomRays("val", 4, (48, 64), rays=300, points=500)
    for index in range(4):
        sample = rooms[index]
        grid = pixel_grid((48, 64), 48, 64)
        first = rooms.hits(index, grid)[:, 0]
        depth = first * rays_through(grid[None], sample["intrinsics"][None]).forward[0, :, 0]
        torch.testing.assert_close(depth.view(1, 48, 64), sample["depth"], rtol=1e-4, atol=1e-4)
        assert sample["hits"][:, 0].isfinite().all()


@pytest.mark.parametrize("solid", [BALL, CUBE, TIN], ids=lambda solid: type(solid).__name__)
def test_points_are_spread_over_a_solid_in_proportion_to_its_area(solid):
    points = spread(solid, 20_000, np.random.default_rng(0)).astype(np.float32)
    np.testing.assert_allclose(solid.distance(points), 0, atol=1e-6)
    inside = points * np.float32(0.999)
    np.testing.assert_allclose(solid.distance(inside), 0, atol=1e-7)
    # the share above any height, in closed form
    z, h = points[2], solid.extent[2]
    if isinstance(solid, Sphere):
        assert area(solid) == pytest.approx(math.pi)
        share = 0.25  # Archimedes: above h / 2, a quarter of the height
    elif isinstance(solid, Box):
        assert area(solid) == pytest.approx(2 * (0.36 + 2 * 0.6 * 0.5))
        share = (0.36 + 4 * 0.6 * 0.125) / area(solid)
    else:
        assert area(solid) == pytest.approx(2 * math.pi * 0.25 * (0.4 + 0.25))
        share = math.pi * (0.25**2 + 2 * 0.25 * 0.1) / area(solid)
    assert (z > h / 2).mean() == pytest.approx(share, abs=0.012)


def test_scattered_points_lie_on_the_hits_of_their_rays_and_hidden_ones_behind_the_first():
    scene, size = plain_scene(BALL, CUBE, TIN), (31, 41)
    found = scatter(scene, size, 3000, np.random.default_rng(0))
    along = exposed_hits(scene, size, found.pixels, 12)
    assert np.abs(along - found.points[2]).min(0).max() < 5e-3
    first, _ = trace(scene, camera_rays(scene, size, *found.pixels), [(slice(None),)] * 3)
    np.testing.assert_array_equal(found.hidden, found.points[2] > first + 0.005)
    assert 0.02 < found.hidden.mean() < 0.6


def test_training_rays_differ_by_epoch_and_repeat_with_it_and_mirror_images_keep_their_hits():
    rooms = RoomRays("train", 3, (48, 64), rays=30)
    for key in ("pixels", "hits"):
        assert torch.equal(rooms[(1, 2)][key], rooms[(1, 2)][key])
        assert not torch.equal(rooms[(1, 2)][key], rooms[(2, 2)][key])
    plain = RoomRays("train", 3, (48, 64), rays=30, flip=False)
    mirrored = 0
    for epoch in range(8):
        one, other = rooms[(epoch, 0)], plain[(epoch, 0)]
        assert torch.equal(one["hits"], other["hits"])
        if not torch.equal(one["image"], other["image"]):
            mirrored += 1
            assert torch.equal(one["image"].flip(-1), other["image"])
            mirror = rays_through(one["pixels"][None], one["intrinsics"][None]).directions
            straight = rays_through(other["pixels"][None], other["intrinsics"][None]).directions
            torch.testing.assert_close(mirror * torch.tensor([-1.0, 1, 1]), straight, atol=1e-5, rtol=0)
    assert 0 < mirrored < 8


def test_transforms_that_would_leave_the_rays_behind_are_refused():
    data = RoomRaysDataModule(size=(48, 64), train=2)
    with pytest.raises(ConfigurationError, match="leave the rays"):
        data.dataset("train", lambda sample, seed: sample)


# training, testing, reconstructing


def small(**options) -> RayDistancePredictor:
    return RayDistancePredictor(ResNetEncoder("resnet18"), samples=48, grid=(6, 8), **options)


def test_exact_fields_score_nearly_one_end_to_end(monkeypatch):
    rooms = RoomRays("test", 1, (48, 64), rays=200, points=4000)
    sample = rooms[0]
    module = RayDistancePredictor(ResNetEncoder("resnet18"), samples=400, grid=(48, 64), most=8).eval()

    def along(maps, pixels, distances, intrinsics, size):
        return directed_ray_distance(distances[0], rooms.hits(0, pixels[0]))[None].clamp(-1, 1)

    monkeypatch.setattr(module.network, "along", along)
    found = module(sample["image"][None], sample["pixels"][None], sample["intrinsics"][None])[0]
    rays, scene = RayScore([0.1]), SceneScore([0.1, 0.2])
    rays.update(found, sample["hits"])
    assert rays.compute()["ray_f_0.1"] > 0.97
    assert rays.compute()["occluded_f_0.1"] > 0.9
    grid = pixel_grid((48, 64), 48, 64)
    everywhere = module(sample["image"][None], grid[None], sample["intrinsics"][None])[0]
    points, behind = scene_points(everywhere, grid, sample["intrinsics"])
    scene.update(points, behind, sample["surface"], sample["hidden"] > 0)
    assert scene.compute()["scene_precision_0.1"] > 0.98
    assert scene.compute()["hidden_f_0.2"] > 0.9


OPTIONS = [
    "--model=RayDistancePredictor", "--model.encoder=ResNetEncoder", "--model.samples=16", "--model.grid=[4, 6]",
    "--model.uniform=8", "--model.near_hits=8", "--data=RoomRaysDataModule", "--data.size=[40, 48]", "--data.train=4",
    "--data.val=1", "--data.test=2", "--data.eval_rays=20", "--data.points=50", "--data.batch_size=2",
    "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.mark.slow
def test_fit_and_test_work_from_the_command_line_and_checkpoints_rebuild_the_module(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    freeze = ["--trainer.callbacks=Freeze", "--trainer.callbacks.norms_only=true", "--trainer.callbacks.from_epoch=1"]
    assert main(["fit", *OPTIONS, *freeze, "--trainer.max_epochs=2"]) == 0
    folder = tmp_path / "runs" / "version_0" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert "rays/occluded_f_0.2" in capsys.readouterr().out
    module = RayDistancePredictor.load_from_checkpoint(folder / "last.ckpt")
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert (module.samples, module.grid) == (16, (4, 6))
    torch.testing.assert_close(module.state_dict(), saved["state_dict"])
    counts = [v for k, v in saved["state_dict"].items() if k.endswith("bn1.num_batches_tracked")]
    assert {int(v) for v in counts} == {2}  # two batches an epoch, frozen in the second
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clamp": -1.0}, "clamp is -1.0"),
        ({"spread": 0.0}, "spread 0.0 m"),
        ({"samples": 1}, "samples is 1; expected at least 2"),
        ({"most": 0}, "most is 0"),
        ({"grid": (0, 3)}, "grid is 0"),
        ({"uniform": 0, "near_hits": 0}, r"uniform \+ near_hits is 0"),
        ({"thresholds": []}, "the number of thresholds is 0"),
    ],
)
def test_options_out_of_their_range_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        RayDistancePredictor(ResNetEncoder("resnet18"), **options)


def test_encoders_that_want_multiples_are_given_them():
    encoder = FabricEncoder(layers=2, scales=4, channels=4)
    network = RayDistanceNetwork(encoder, width=8, blocks=1).eval()
    camera = torch.tensor([[[60.0, 0, 35], [0, 60, 25], [0, 0, 1]]])
    said = network(torch.rand(1, 3, 50, 70), torch.tensor([[[69.0, 49.0]]]), torch.ones(1, 1, 4), camera)
    assert said.shape == (1, 1, 4)


def test_verbs_of_planes_say_what_a_checkpoint_of_rays_is_for(tmp_path):
    module = RayDistancePredictor(ResNetEncoder("resnet18"))
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, tmp_path / "rays.ckpt")
    with pytest.raises(ConfigurationError, match=r"rays\.ckpt is of ray distances.*reconstruct makes points"):
        load_network(tmp_path / "rays.ckpt")


def test_a_protocol_of_pixels_is_refused_for_rays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *OPTIONS, "--trainer.max_epochs=1", "--protocol=nyu_depth"]) == 1
    assert "RayDistancePredictor makes none" in capsys.readouterr().err


def test_a_reconstruction_is_written_as_points_with_hidden_surfaces_in_colours_of_their_own(tmp_path, monkeypatch):
    rooms = RoomRays("test", 1, (48, 64), rays=4, points=10)
    sample = rooms[0]
    module = RayDistancePredictor(ResNetEncoder("resnet18"), samples=300)

    def along(maps, pixels, distances, intrinsics, size):
        return directed_ray_distance(distances[0], rooms.hits(0, pixels[0]))[None]

    monkeypatch.setattr(module.network, "along", along)
    picture = sample["image"].permute(1, 2, 0).numpy()
    made = reconstruct(module, picture, sample["intrinsics"].numpy())
    first = made.order == 0
    assert first.sum() == 48 * 64
    flat = made.points @ sample["intrinsics"].numpy().T
    columns, rows = np.rint(flat[:, :2] / flat[:, 2:]).astype(int).T
    np.testing.assert_array_equal(made.colours[first], picture[rows[first], columns[first]])
    away = np.abs(made.points[first, 2].reshape(48, 64) - sample["depth"][0].numpy())
    assert (away < 0.04).mean() > 0.97  # what is thinner than two samples is passed over
    assert (~first).any()
    count = made.write_ply(tmp_path / "room.ply")
    header, _, body = (tmp_path / "room.ply").read_bytes().partition(b"end_header\n")
    assert f"element vertex {count}".encode() in header
    assert count == len(made.points)
    table = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_array_equal(table["xyz"], made.points)
    np.testing.assert_array_equal(table["rgb"], made.colours)
