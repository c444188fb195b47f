"""Tasks: planes to outputs, predictions, losses, metrics, pictures and constant baselines."""

import math

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.nn import functional as F

from densepred.errors import ConfigurationError, DataError
from densepred.losses import BinaryCrossEntropyLoss, CosineLoss, CrossEntropyLoss, L2Loss
from densepred.palettes import MISSING_COLOUR, VOID_COLOUR, voc_palette
from densepred.recipe import recipe
from densepred.tasks import Depth, Normals, Regression, Segmentation, Task
from densepred.tasks.base import upsample

H, W = 24, 40


def batch_of(**targets):
    size = len(next(iter(targets.values())))
    return {"image": torch.zeros(size, 3, H, W, dtype=torch.uint8), **targets}


def labels_of(classes, *size):
    labels = torch.randint(0, classes, size or (2, H, W), dtype=torch.uint8)
    labels[..., :3] = 255
    return labels


def unit(*size):
    return F.normalize(torch.randn(size), dim=1)


def depth_of(*size):
    depth = torch.rand(size or (2, 1, H, W)) * 4 + 0.5
    depth[..., :3] = 0
    return depth


def normals_of(*size):
    normals = unit(*(size or (2, 3, H, W)))
    normals[..., :3] = 0
    return normals


def flow_of():
    flow = torch.randn(2, 2, H, W)
    flow[..., :3] = math.nan
    return flow


def many_labels():
    return labels_of(2, 2, 4, H, W)


TASKS = [
    pytest.param(Segmentation(5), lambda: labels_of(5), id="multiclass"),
    pytest.param(Segmentation(5, class_weights=[1.0, 2.0, 3.0, 4.0, 5.0]), lambda: labels_of(5), id="weighted"),
    pytest.param(Segmentation(2, mode="binary"), lambda: labels_of(2), id="binary"),
    pytest.param(Segmentation(4, mode="multilabel"), many_labels, id="multilabel"),
    pytest.param(Depth(), depth_of, id="depth"),
    pytest.param(Depth(log=True), depth_of, id="log depth"),
    pytest.param(Depth(bins=6), depth_of, id="ordinal depth"),
    pytest.param(Normals(), normals_of, id="normals"),
    pytest.param(Normals(uncertainty=True), normals_of, id="sure normals"),
    pytest.param(Regression(2, name="flow"), flow_of, id="regression"),
]
every_task = pytest.mark.parametrize(("task", "make"), TASKS)


@every_task
def test_a_step_of_gradient_descent_on_the_planes_lowers_the_loss(task, make):
    batch = batch_of(**{task.name: make()})
    planes = torch.randn(2, task.out_channels, H // 8, W // 8, requires_grad=True)
    loss = task.loss_from_planes(planes, batch)
    loss.backward()
    assert planes.grad.isfinite().all()
    with torch.no_grad():
        after = task.loss_from_planes(planes - 0.1 * planes.grad, batch)
    assert 0 < after < loss


@every_task
def test_the_loss_from_planes_is_the_loss_of_the_upsampled_output(task, make):
    batch = batch_of(**{task.name: make()})
    planes = torch.randn(2, task.out_channels, H // 8, W // 8)
    short, long = planes.clone().requires_grad_(), planes.clone().requires_grad_()
    value = task.loss_from_planes(short, batch)
    expected = task.compute_loss(task.activate(upsample(long, (H, W))), batch)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(short.grad, long.grad, rtol=1e-5, atol=1e-7)


@every_task
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_planes_of_another_precision_are_scored_and_drawn_in_at_least_float32(task, make, dtype):
    target = make()
    target = target.to(dtype) if target.is_floating_point() else target
    prediction = task.predict_from_planes(torch.randn(2, task.out_channels, 3, 5, dtype=dtype), (H, W))
    if prediction.is_floating_point():
        assert prediction.dtype == torch.promote_types(dtype, torch.float32)
    metric = task.metrics("val")
    metric.update(prediction, target)
    assert metric.compute()[task.monitor[0]].isfinite()
    assert all(picture.dtype == torch.uint8 for picture in task.panel(prediction, target).values())


@every_task
def test_predictions_from_planes_are_those_of_the_upsampled_output(task, make):
    planes = torch.randn(2, task.out_channels, 3, 5)
    expected = task.predict(task.activate(upsample(planes, (H, W))))
    prediction = task.predict_from_planes(planes, (H, W))
    assert prediction.shape == make().shape
    assert prediction.dtype == make().dtype
    torch.testing.assert_close(prediction, expected)


@every_task
def test_a_task_is_finite_for_planes_of_any_size_that_float32_holds(task, make):
    batch = batch_of(**{task.name: make()})
    for size in (0.0, 1e-20, 1e3):
        planes = (size * torch.randn(2, task.out_channels, 3, 5)).requires_grad_()
        loss = task.loss_from_planes(planes, batch)
        loss.backward()
        assert loss.isfinite()
        assert planes.grad.isfinite().all()
        assert task.predict_from_planes(planes.detach(), (H, W)).float().isfinite().all()


@every_task
def test_images_without_any_target_give_no_loss_and_no_gradient(task, make):
    target = make()
    target[:] = target[..., :1].flatten()[0]
    planes = torch.randn(2, task.out_channels, 3, 5, requires_grad=True)
    loss = task.loss_from_planes(planes, batch_of(**{task.name: target}))
    loss.backward()
    assert loss == 0
    assert (planes.grad == 0).all()


@every_task
def test_the_target_as_prediction_is_perfect_and_the_monitor_says_so(task, make):
    target = make()
    metric = task.metrics("val")
    prediction = torch.where(task.known(target), target, 1) if task.name == "segmentation" else target.nan_to_num(0)
    metric.update(prediction.to(target.dtype), target)
    values = metric.compute()
    key, direction = task.monitor
    assert values[key].item() == pytest.approx({"max": 1, "min": 0}[direction], abs=1e-4)
    assert set(task.shown) <= set(values)


@every_task
def test_pictures_are_uint8_rgb_of_the_images_size(task, make):
    target = make()
    prediction = task.predict_from_planes(torch.randn(2, task.out_channels, 3, 5), (H, W))
    panel = task.panel(prediction, target)
    assert list(panel)[:2] == ["target", "prediction"]
    for picture in (*panel.values(), task.render(prediction), task.render(target)):
        assert picture.shape == (2, 3, H, W)
        assert picture.dtype == torch.uint8


@every_task
def test_missing_pixels_are_drawn_in_the_colour_of_missing(task, make):
    target = make()
    prediction = task.predict_from_planes(torch.randn(2, task.out_channels, 3, 5), (H, W))
    colour = VOID_COLOUR if task.name == "segmentation" else MISSING_COLOUR
    expected = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1)
    panel = task.panel(prediction, target)
    for caption in set(panel) - {"prediction"}:
        assert (panel[caption][..., :3] == expected).all()
        assert (panel[caption][..., 3:] != expected).any()
    assert (panel["prediction"][..., :3] != expected).any()


@every_task
def test_pictures_of_nothing_known_are_drawn_all_the_same(task, make):
    target = make()
    target[:] = target[..., :1].flatten()[0]
    prediction = task.predict_from_planes(torch.randn(2, task.out_channels, 3, 5), (H, W))
    assert (task.panel(prediction, target)["target"].flatten(2) == task.render(target)[..., :1, 0]).all()


@every_task
def test_the_statistic_of_a_set_is_the_sum_of_its_batches(task, make):
    target = make()
    whole = task.constant_statistic(target)
    torch.testing.assert_close(task.constant_statistic(target[:1]) + task.constant_statistic(target[1:]), whole)
    prediction = task.constant_prediction(whole, target)
    assert prediction.shape == target.shape
    assert prediction.dtype == target.dtype
    task.metrics("val").update(prediction, target)


@every_task
def test_no_other_constant_has_a_better_score(task, make):
    """The score that each constant is best at: right answers, squared error, cosine."""
    target = make()
    known = task.known(target).expand(target.shape)
    best = task.constant_prediction(task.constant_statistic(target), target)

    def score(prediction):
        if task.name == "segmentation":
            return (prediction == target)[known].sum()
        if task.name == "normals":
            return (prediction * torch.where(known, target, 0)).sum()
        return -torch.where(known, prediction - target, 0).square().sum()

    one = target[:1, ..., :1, :1]
    others = torch.stack([task.predict(task.activate(torch.randn(1, task.out_channels, 1, 1))) for _ in range(50)])
    for other in others.view(50, *one.shape):
        assert score(other.expand(target.shape)) <= score(best) + 1e-3


@every_task
def test_a_task_is_written_as_plain_values_and_built_again_from_them(task, make):
    parser = ArgumentParser()
    parser.add_argument("--task", type=Task)
    plain = recipe(task)
    # its name from jsonargparse 4.49 on
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    again = instantiate(parser.parse_object({"task": plain})).task
    assert type(again) is type(task)
    assert recipe(again)["init_args"].items() >= plain["init_args"].items()
    planes = torch.randn(2, task.out_channels, 3, 5)
    batch = batch_of(**{task.name: make()})
    assert again.loss_from_planes(planes, batch) == task.loss_from_planes(planes, batch)


@every_task
def test_a_sample_without_the_tasks_key_is_refused_by_name(task, make):
    with pytest.raises(DataError, match=f"Task '{task.name}' looks for '{task.name}' .* holds 'image', 'else'"):
        task.loss_from_planes(torch.randn(2, task.out_channels, 3, 5), {"image": torch.zeros(2, 3, H, W), "else": 0})


@every_task
def test_nothing_of_a_task_stands_in_the_checkpoint(task, make):
    assert task.state_dict() == {}


# Segmentation


def test_the_default_loss_never_sees_logits_of_full_resolution(monkeypatch):
    task, batch = Segmentation(5), batch_of(segmentation=labels_of(5))
    monkeypatch.setattr(F, "interpolate", lambda *_, **__: pytest.fail("upsampled"))
    task.loss_from_planes(torch.randn(2, 5, 3, 5), batch)
    task.predict_from_planes(torch.randn(2, 5, 3, 5), (H, W))


class Doubled(CrossEntropyLoss):
    """Not plain cross-entropy."""

    def forward(self, output, target):
        return 2 * super().forward(output, target)


def test_a_loss_of_the_users_is_used_as_it_is():
    batch, planes = batch_of(segmentation=labels_of(5)), torch.randn(2, 5, 3, 5)
    once = Segmentation(5).loss_from_planes(planes, batch)
    torch.testing.assert_close(Segmentation(5, loss=Doubled()).loss_from_planes(planes, batch), 2 * once)
    weights = [1.0, 2.0, 3.0, 4.0, 5.0]
    torch.testing.assert_close(
        Segmentation(5, loss=CrossEntropyLoss(weights)).loss_from_planes(planes, batch),
        Segmentation(5, class_weights=weights).loss_from_planes(planes, batch),
    )


@pytest.mark.parametrize("loss", [None, Doubled()])
def test_a_label_that_is_no_class_is_reported_with_the_images_of_the_batch(loss):
    labels = labels_of(5)
    labels[1, 4, 4] = 77
    batch = {**batch_of(segmentation=labels), "name": ["2007_000033", "2007_000042"]}
    with pytest.raises(DataError, match=r"Task 'segmentation': .* no class: 77.*2007_000033, 2007_000042"):
        Segmentation(5, loss=loss).loss_from_planes(torch.randn(2, 5, 3, 5), batch)


def test_labels_padded_otherwise_than_the_image_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(2, 24, 39\) for images of 24 x 40"):
        Segmentation(5).loss_from_planes(torch.randn(2, 5, 3, 5), batch_of(segmentation=labels_of(5)[..., 1:]))


def test_binary_labels_are_one_where_the_plane_is_above_zero():
    task = Segmentation(["background", "road"], mode="binary")
    assert task.out_channels == 1
    planes = torch.tensor([[[[-1.0, 2.0]]]])
    assert task.predict(planes).tolist() == [[[0, 1]]]
    torch.testing.assert_close(task.evidence(planes), 1 / (1 + (-planes).exp()))


def test_probabilities_of_labels_sum_to_one():
    probabilities = Segmentation(5).evidence(torch.randn(2, 5, 3, 4))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 3, 4))


def test_binary_class_weights_weigh_by_their_ratio():
    loss = Segmentation(2, mode="binary", class_weights=[0.5, 2.0]).loss
    output, target = torch.randn(2, 1, 4, 5), torch.randint(0, 2, (2, 4, 5))
    torch.testing.assert_close(loss(output, target), BinaryCrossEntropyLoss([4.0])(output, target))


def test_labels_are_int32_where_uint8_cannot_hold_them():
    task = Segmentation(300)
    planes = torch.zeros(1, 300, 2, 2)
    planes[:, 299] = 1
    assert task.predict_from_planes(planes, (4, 4)).dtype == torch.int32
    assert (task.predict(planes) == 299).all()


def test_a_number_of_classes_becomes_names():
    assert Segmentation(3).classes == ["class_0", "class_1", "class_2"]
    assert Segmentation(["road"], mode="binary").classes == ["background", "road"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 1}, "multiclass needs two classes or more; got classes=1"),
        ({"classes": 3, "mode": "binary"}, "binary needs two classes"),
        ({"classes": 3, "mode": "many"}, "expected one of multiclass, binary, multilabel"),
        ({"classes": ["sky", "sky"]}, "named twice: sky"),
        ({"classes": 3, "class_weights": [1.0]}, "class_weights has 1 entries for 3 classes"),
        ({"classes": 2, "palette": [[0, 0, 0]]}, "palette has 1 entries for 2 classes"),
        ({"classes": 2, "palette": [[0, 0, 0], [0, 0, 256]]}, "0 to 255"),
        ({"classes": 2, "class_weights": [1.0, 1.0], "loss": CrossEntropyLoss()}, "Give the weights to CrossEntropy"),
    ],
)
def test_classes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        Segmentation(**arguments)


def test_labels_are_drawn_in_the_palettes_colours():
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    picture = Segmentation(2, palette=[[1, 2, 3], [4, 5, 6]]).render(labels)
    assert picture[0, :, 0].T.tolist() == [[1, 2, 3], [4, 5, 6], list(VOID_COLOUR)]


def test_several_labels_of_a_pixel_are_drawn_in_their_mean_colour():
    labels = torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=torch.uint8).view(1, 2, 1, 3)
    picture = Segmentation(2, mode="multilabel", palette=[[200, 0, 0], [0, 100, 0]]).render(labels)
    assert picture[0, :, 0].T.tolist() == [[200, 0, 0], [100, 50, 0], [0, 0, 0]]


def test_the_palette_is_that_of_the_voc_label_files():
    """Colours as the challenge's page lists them: aeroplane, bicycle, person, potted plant, tv/monitor, void."""
    palette = voc_palette(256)
    listed = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128)}
    assert {label: tuple(palette[label]) for label in listed} == listed
    assert tuple(palette[255]) == VOID_COLOUR
    assert len({tuple(colour) for colour in palette}) == 256


def test_the_palette_is_that_of_a_real_voc_label_file(real_data):
    from PIL import Image

    path = next((real_data / "voc2012").rglob("SegmentationClass/*.png"))
    stored = Image.open(path)
    pixels, colours = np.array(stored), np.array(stored.convert("RGB"))
    picture = Segmentation(21).render(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(picture, colours)


# Depth


@pytest.mark.parametrize("log", [False, True])
def test_planes_of_zero_are_the_typical_depth(log):
    depth = Depth(typical=15.0, max_depth=80.0, log=log).activate(torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(depth, torch.full((1, 1, 2, 2), 15.0))


def test_depth_grows_with_its_plane_and_stays_above_zero():
    planes = torch.linspace(-200, 200, 801).view(1, 1, 1, -1)
    for task in (Depth(), Depth(log=True)):
        prediction = task.predict(task.activate(planes))[0, 0, 0]
        assert (prediction.diff() >= 0).all()
        assert prediction.min() >= task.min_depth
        assert prediction.isfinite().all()


def test_metres_are_nearly_linear_in_the_plane_beyond_the_typical_depth():
    depth = Depth(typical=2.0).activate(torch.tensor([10.0, 11.0]))
    torch.testing.assert_close(depth.diff(), torch.tensor([2.0]), rtol=1e-3, atol=0)


def test_log_depth_is_learned_in_the_log_with_the_gradient_of_the_plane_itself():
    planes, truth = torch.tensor([-3.0, 0.5, 4.0, 30.0]).view(1, 1, 1, 4), 3.0
    planes.requires_grad_()
    task = Depth(log=True, typical=2.0)
    loss = task.compute_loss(task.activate(planes), {"depth": torch.full((1, 1, 1, 4), truth)})
    loss.backward()
    held = planes.detach().clamp(max=10)
    torch.testing.assert_close(loss.detach(), ((held - math.log(truth / 2)) ** 2).mean())
    torch.testing.assert_close(planes.grad, 2 * (held - math.log(truth / 2)) / 4)


def test_the_default_depth_loss_is_the_mean_square_in_metres():
    target = torch.tensor([1.0, 4.0, 0.0]).view(1, 1, 1, 3)
    assert Depth().compute_loss(torch.full((1, 1, 1, 3), 2.0), {"depth": target}).item() == pytest.approx(2.5)


def test_target_and_prediction_of_depth_share_one_scale():
    """The same metres have the same colour in both, though the prediction also holds others."""
    target, prediction = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3), torch.tensor([3.0, 2.0, 9.0]).view(1, 1, 1, 3)
    panel = Depth().panel(prediction, target)
    assert torch.equal(panel["target"][..., 1], panel["prediction"][..., 1])
    assert torch.equal(panel["target"][..., 2], panel["prediction"][..., 0])
    assert torch.equal(panel["prediction"][..., 2], panel["target"][..., 2])
    assert panel["target"][0, :, 0, 0].tolist() == [68, 1, 84]  # the first colour of viridis


def test_the_depth_error_map_is_dark_where_right_and_bright_where_half_off():
    target, prediction = torch.tensor([2.0, 2.0, 4.0]).view(1, 1, 1, 3), torch.tensor([2.0, 3.0, 1.0]).view(1, 1, 1, 3)
    error = Depth().panel(prediction, target)["relative error 0 to 0.5"].float().sum(1).flatten()
    assert error[0] < error[1] == error[2]


def test_depth_limits_out_of_order_are_refused():
    with pytest.raises(ConfigurationError, match="min_depth < typical < max_depth"):
        Depth(typical=15.0)


# Normals


def test_normals_are_unit_vectors_along_their_planes():
    planes = torch.randn(2, 3, 8, 8) * 10
    expected = planes.numpy() / np.linalg.norm(planes.numpy(), axis=1, keepdims=True)
    torch.testing.assert_close(Normals().activate(planes), torch.from_numpy(expected))


def test_predicted_normals_are_of_length_one_wherever_planes_are_tiny():
    task = Normals()
    for planes in (torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 1e-6)):
        prediction = task.predict(task.activate(planes))
        torch.testing.assert_close(prediction.norm(dim=1), torch.ones(1, 2, 2))
    assert task.predict(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [0, 0, -1]


def test_normals_that_are_not_numbers_are_not_hidden():
    assert Normals().predict(torch.full((1, 3, 1, 1), math.nan)).isnan().all()


def test_a_zero_initialised_decoder_learns_normals_with_a_gradient_towards_the_truth():
    planes = torch.zeros(1, 3, 1, 1, requires_grad=True)
    target = unit(1, 3, 1, 1)
    Normals().compute_loss(Normals().activate(planes), {"normals": target}).backward()
    torch.testing.assert_close(-F.normalize(planes.grad, dim=1), target)
    assert planes.grad.norm() <= 100 + 1e-3


def test_the_default_normals_loss_is_one_minus_the_cosine():
    assert type(Normals().loss) is CosineLoss
    assert type(Depth().loss) is L2Loss


def test_a_wall_that_faces_the_camera_is_light_blue_and_a_floor_green():
    facing, floor = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1), torch.tensor([0.0, -1.0, 0.0]).view(1, 3, 1, 1)
    assert Normals().render(facing).flatten().tolist() == [128, 128, 255]
    assert Normals().render(floor).flatten().tolist() == [128, 255, 128]


def test_the_angle_error_map_depends_on_the_angle_alone():
    target = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    angles = torch.tensor([0.0, 30.0, -30.0, 120.0]).deg2rad()
    prediction = torch.stack([angles.sin(), torch.zeros(4), -angles.cos()]).view(1, 3, 1, 4)
    error = Normals().panel(prediction, target)["angle error 0 to 60 degrees"][0, :, 0].T.tolist()
    from densepred.palettes import colour_table

    table = colour_table("inferno")
    assert error[0] == table[0]
    assert error[1] == error[2] == table[128]
    assert error[3] == table[255]


# Regression


@pytest.mark.parametrize("shape", [(2, H, W), (2, 1, H, W), (2, 2, H, W)])
def test_a_validity_mask_says_what_is_missing_as_nan_does(shape):
    task = Regression(2, name="flow")
    flow = torch.randn(2, 2, H, W)
    valid = (torch.rand(shape) < 0.5).float()
    mask = (valid if len(shape) == 4 else valid[:, None]).bool().expand_as(flow)
    planes = torch.randn(2, 2, 3, 5)
    by_mask = task.loss_from_planes(planes, batch_of(flow=flow, flow_valid=valid))
    by_nan = task.loss_from_planes(planes, batch_of(flow=flow.masked_fill(~mask, math.nan)))
    expected = (upsample(planes, (H, W)) - flow)[mask].square().mean()
    torch.testing.assert_close(by_mask, expected)
    torch.testing.assert_close(by_nan, expected)


def test_what_lies_beyond_an_images_own_size_in_a_padded_batch_is_missing():
    task = Regression(2, name="flow")
    flow = torch.randn(2, 2, H, W)
    flow[1, :, 5:] = flow[1, :, :, 7:] = 0  # the padding of kind "weight"
    target = task.target(batch_of(flow=flow, size=torch.tensor([[H, W], [5, 7]])))
    assert target[0].isfinite().all()
    torch.testing.assert_close(target[1, :, :5, :7], flow[1, :, :5, :7])
    assert int(target[1].isfinite().sum()) == 2 * 5 * 7


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"flow_valid has size \(2, 1, 4, 4\), flow \(2, 2, 24, 40\)"):
        Regression(2, name="flow").target(batch_of(flow=torch.zeros(2, 2, H, W), flow_valid=torch.ones(2, 1, 4, 4)))


def test_flow_is_drawn_as_a_colour_wheel_around_white():
    """Hues 0, 120 and 240 degrees are red, green and blue."""
    angles = torch.tensor([0.0, 120.0, 240.0]).deg2rad()
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0, :3], flow[0, 1, 0, :3] = angles.cos(), angles.sin()
    colours = Regression(2).render(flow)[0, :, 0].T.tolist()
    assert colours == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("planes", [1, 2, 3, 5])
def test_any_number_of_planes_can_be_drawn(planes):
    target = torch.randn(2, planes, 4, 5)
    for picture in Regression(planes).panel(torch.randn(2, planes, 4, 5), target).values():
        assert picture.shape == (2, 3, 4, 5)
        assert len(picture.flatten(2).transpose(1, 2).reshape(-1, 3).unique(dim=0)) > 2
