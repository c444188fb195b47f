"""Eigen and Fergus's three scales: sizes, gradients, places, and training in two phases."""

from functools import partial

import pytest
import torch
from torch import nn

from densepred.decoders.eigen import EigenDecoder
from densepred.encoders.eigen import EigenEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.losses.normals import CosineLoss
from densepred.losses.scale_invariant import ScaleInvariantGradientLoss, ScaleInvariantLoss
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.parameter_groups import RateScales, parameter_groups
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals

TASKS = {"depth": 1, "normals": 3}
SPEC = FeatureSpec((3, 8), (1, 4))
small_encoder = partial(EigenEncoder, "alexnet", hidden=8, channels=8, canvas=(108, 144), initialisation="kaiming")
small_decoder = partial(EigenDecoder, width=8, bias_image=(25, 34), initialisation="kaiming")


def published(name: str) -> DenseNetwork:
    with torch.device("meta"):
        return DenseNetwork(EigenEncoder(name), EigenDecoder, TASKS, share_decoder=True)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(**options) -> DenseNetwork:
    torch.manual_seed(0)
    return DenseNetwork(small_encoder(), partial(small_decoder, **options), TASKS, share_decoder=True)


def sizes(network: DenseNetwork, **names: str) -> dict[str, tuple[int, ...]]:
    """Channels, height and width of what modules give for the published image."""
    found = {}
    modules = dict(network.named_modules())
    for short, name in names.items():
        modules[name].register_forward_hook(lambda _, __, output, k=short: found.update({k: tuple(output.shape[1:])}))
    with torch.device("meta"):
        network.eval()(torch.zeros(1, 3, 220, 296))
    return found


@pytest.mark.parametrize(("name", "total", "trunk"), [("vgg16", 217_974_446, 14_714_688),
                                                      ("alexnet", 125_218_030, 3_747_200)])  # fmt: skip
def test_depth_and_normals_have_the_published_number_of_parameters(name, total, trunk):
    network = published(name)
    shared = network.decoders["shared"]
    assert count(network) == total
    assert count(network.encoder.features) == trunk
    assert (count(shared.scale2), count(shared.scale3), count(shared.usual)) == (951_812, 431_876, 55 * 74)
    if name == "vgg16":
        assert count(network.encoder) - trunk == 201_872_000


def test_the_first_scale_has_the_published_sizes_on_vgg():
    features = {f"pool{i}": f"encoder.features.{index}" for i, index in enumerate((4, 9, 16, 23, 30), start=1)}
    assert sizes(published("vgg16"), conv1="encoder.features.2", full2="encoder.full2", **features) == {
        "conv1": (64, 224, 300), "pool1": (64, 112, 150), "pool2": (128, 56, 75), "pool3": (256, 28, 37),
        "pool4": (512, 14, 18), "pool5": (512, 7, 9), "full2": (64 * 14 * 19,),
    }  # fmt: skip


def test_the_first_scale_has_the_published_sizes_on_alexnet():
    layers = {key: f"encoder.features.{index}" for key, index in (("1", 0), ("2", 3), ("3", 6), ("4", 12), ("5", 14))}
    assert sizes(published("alexnet"), **layers) == {
        "1": (96, 56, 75), "2": (96, 27, 37), "3": (256, 13, 18), "4": (256, 13, 18), "5": (256, 6, 8),
    }  # fmt: skip


def test_the_second_and_third_scale_have_the_published_sizes():
    prefix = "decoders.shared.scale"
    names = {"s2": f"{prefix}2.first", "s2 pool": f"{prefix}2.pool", "s2 depth": f"{prefix}2.last.0",
             "s2 normals": f"{prefix}2.last.1", "s3 pool": f"{prefix}3.pool", "s3 in": f"{prefix}3.middle.0.0",
             "s3 normals": f"{prefix}3.last.1"}  # fmt: skip
    assert sizes(published("vgg16"), **names) == {
        "s2": (96, 111, 149), "s2 pool": (96, 55, 74), "s2 depth": (1, 55, 74), "s2 normals": (3, 55, 74),
        "s3 pool": (64, 109, 147), "s3 in": (64, 109, 147), "s3 normals": (3, 109, 147),
    }  # fmt: skip


def test_the_glance_is_enlarged_by_a_tent():
    encoder = small_encoder(rectified=False).eval()
    nn.init.zeros_(encoder.full2.weight)
    with torch.no_grad():
        bias = encoder.full2.bias.view(8, *encoder.coarse)
        bias[0, 2, 3] = 1.0
        glance = encoder.glance(torch.zeros(1, 3, 100, 136))
    tent = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])
    rows, columns = 4 * 2 - 2, 4 * 3 - 2
    torch.testing.assert_close(glance[0, 0, rows : rows + 7, columns : columns + 7], tent[:, None] * tent)
    assert glance.sum() == 16.0


def test_the_trunk_sees_the_image_and_its_repeated_border_without_resizing_at_the_canvas_size():
    encoder = small_encoder().eval()
    seen = []
    encoder.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 100, 136)
    encoder(image)
    torch.testing.assert_close(seen[0][..., 4:-4, 4:-4], encoder.normalise(image))
    assert torch.equal(seen[0][..., :4, 10], seen[0][..., 4:5, 10].expand(-1, -1, 4))


def test_what_the_trunk_hands_on_is_scaled_by_a_hundredth_of_bytes():
    plain = small_encoder(mean=(0.0,) * 3, std=(1 / 255,) * 3).eval()
    given = []
    plain.features.register_forward_hook(lambda _, __, output: given.append(output))
    plain.full1.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    plain(torch.rand(1, 3, 100, 136))
    torch.testing.assert_close(given[1], given[0].flatten(1) * 0.01)


@pytest.mark.parametrize("size", [(100, 136), (97, 61), (240, 320)])
def test_planes_cover_an_image_of_any_size_and_a_step_edge_stays_where_it_is(size):
    height, width = size
    network = small(end_to_end=True).eval()
    assert {key: planes.shape for key, planes in network(torch.rand(1, 3, *size)).items()} == {
        "depth": (1, 1, height, width), "normals": (1, 3, height, width),
    }  # fmt: skip
    # a first layer that passes the brightness of the image on shows where its cells lie
    decoder = EigenDecoder(SPEC, 1, width=8)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.scale3.first.weight[7, :, 4, 4] = 1.0  # channel 0 is scale 2's
        for layer, source in ((decoder.scale3.middle[0][0], 7), (decoder.scale3.middle[0][2], 0)):
            layer.weight[0, source, 2, 2] = 1.0
        decoder.scale3.last[0].weight[0, 0, 2, 2] = 1.0
        image = torch.zeros(1, 3, height, width)
        image[..., width // 2 :] = 1.0
        planes = decoder([image, torch.zeros(1, 8, height // 4, width // 4)])
    edge = (planes[0, 0, height // 2] > 1.5).float().argmax()
    # a maximum over cells of 2 pixels widens what is bright by a cell
    assert abs(int(edge) - width // 2) <= 3
    assert (planes[0, 0, :, -1] == 3.0).all()


def test_moving_the_image_by_four_pixels_moves_the_planes_by_as_many():
    decoder = small_decoder(SPEC, 4, bias_image=None, initialisation="kaiming").eval()
    image, glance = torch.rand(1, 3, 160, 160), torch.zeros(1, 8, 40, 40)
    here = decoder([image, glance])
    moved = decoder([image.roll((4, 4), (-2, -1)), glance])
    torch.testing.assert_close(moved[..., 64:-60, 64:-60], here[..., 60:-64, 60:-64], rtol=1e-4, atol=1e-5)


def test_the_third_scale_does_not_train_the_second_unless_asked_to():
    for end_to_end in (False, True):
        network = small(end_to_end=end_to_end)
        planes = network.train()(torch.rand(2, 3, 100, 136))
        sum((value * torch.rand_like(value)).sum() for value in planes.values()).backward()
        reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        below = {name for name in reached if "scale3" not in name}
        assert any("scale3" in name for name in reached)
        assert bool(below) == end_to_end
        rests = {name for name, p in network.named_parameters() if not p.requires_grad}
        expected = {n for n, _ in network.named_parameters() if "scale2" in n or "usual" in n}
        assert rests == (set() if end_to_end else expected)


def test_the_third_scale_sees_what_the_second_says_of_every_task():
    network = small()
    seen = []
    shared = network.decoders["shared"]
    shared.scale3.middle[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    said = []
    for last in shared.scale2.last:
        last.register_forward_hook(lambda _, __, output: said.append(output))
    with torch.no_grad():
        shared.usual["0"].fill_(2.0)
        network.eval()(torch.rand(1, 3, 100, 136))
    depth, normals = said[0] + 2.0, said[1] / said[1].norm(dim=1, keepdim=True).clamp(min=1e-2)
    twice = torch.cat([depth, normals], 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(seen[0][:, :4], twice[..., :-1, :-1])
    assert seen[0].shape == (1, 8, 49, 67)


def test_labels_are_handed_on_as_probabilities_beside_unit_normals():
    decoder = EigenDecoder(FeatureSpec((3, 8), (1, 4)), 8, width=16, bias_image=None,
                           hand_on={"labels": "softmax"}, initialisation="kaiming")  # fmt: skip
    decoder.divide({"labels": 5, "normals": 3})
    seen = []
    decoder.scale3.middle[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    decoder.eval()([torch.rand(1, 3, 40, 56), torch.rand(1, 8, 10, 14)])
    told = seen[0][0]
    torch.testing.assert_close(told[:5].sum(0), torch.ones(told.shape[1:]))
    assert (told[:5] > 0).all()
    torch.testing.assert_close(told[5:8].norm(dim=0), torch.ones(told.shape[1:]))
    with pytest.raises(ConfigurationError, match="hand_on is 'logits'"):
        EigenDecoder(FeatureSpec((3, 8), (1, 4)), 8, hand_on={"labels": "logits"})


def test_separate_decoders_see_their_own_task_alone():
    network = DenseNetwork(small_encoder(), small_decoder, TASKS)
    assert len(network.decoders["normals"].scale3.last) == 1
    assert list(network.decoders["depth"].usual) == ["0"]
    assert list(network.decoders["normals"].usual) == []


def test_in_training_a_crop_alone_is_refined_and_elsewhere_the_second_scale_stands():
    decoder = small_decoder(SPEC, 4, crop=(10, 12))
    maps = [torch.rand(1, 3, 100, 136), torch.rand(1, 8, 25, 34)]
    torch.manual_seed(0)
    planes = decoder.train()(maps)
    nn.init.constant_(decoder.scale3.last[0].bias, 5.0)
    torch.manual_seed(0)
    changed = (decoder(maps) - planes).abs().amax((0, 1)) > 1e-3
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    # 2 pixels a cell, and bilinear enlarging reaches a pixel further
    assert 2 * 10 <= len(rows) <= 2 * 10 + 4
    assert 2 * 12 <= len(columns) <= 2 * 12 + 4
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (len(rows), len(columns))
    whole = (decoder.eval()(maps) - planes).abs().amax((0, 1)) > 1e-3
    assert whole.float().mean() > 0.9


def test_a_learned_image_is_added_to_planes_that_stand_alone():
    decoder = EigenDecoder(SPEC, 1, scales=2, width=8, bias_image=(25, 34))
    maps = [torch.rand(1, 3, 100, 136), torch.rand(1, 8, 25, 34)]
    before = decoder(maps)
    with torch.no_grad():
        decoder.usual["0"][..., :12] = 1.0
    difference = decoder(maps) - before
    torch.testing.assert_close(difference[..., :44], torch.ones(1, 1, 100, 44))
    torch.testing.assert_close(difference[..., 52:], torch.zeros(1, 1, 100, 84))


def test_depth_is_an_exponential_of_scaled_planes():
    planes = torch.tensor([0.0, 1.0, -2.0]).view(1, 1, 1, 3)
    task = Depth(log=True, log_scale=0.45723134, typical=1.0)
    torch.testing.assert_close(task.activate(planes), (0.45723134 * planes).exp())
    with pytest.raises(ConfigurationError, match="is not 1 `log: true`"):
        Depth(log_scale=0.5)


def test_the_loss_of_a_constant_offset_of_one_is_a_half_at_any_step():
    true = torch.rand(2, 1, 6, 7) + 1
    true[0, 0, :2] = 0  # missing
    for step in (1, 2):
        assert ScaleInvariantGradientLoss(step=step)(true * torch.e, true).item() == pytest.approx(0.5, abs=1e-6)
    assert ScaleInvariantLoss(0.5)(true * torch.e, true).item() == pytest.approx(0.5, abs=1e-6)
    assert ScaleInvariantLoss(1.0)(true * torch.e, true).item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_that_of_the_release_for_images_with_holes():
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(3, 1, 5, 6, generator=generator) + 1
    true[torch.rand(true.shape, generator=generator) < 0.4] = 0
    output = (torch.rand(true.shape, generator=generator) + 1).requires_grad_()
    d = torch.where(true > 0, output.log() - torch.where(true > 0, true, 1).log(), 0)
    n = (true > 0).sum((1, 2, 3))
    expected = ((n * d.square().sum((1, 2, 3))).sum() - 0.5 * d.sum((1, 2, 3)).square().sum()) / n.square().sum()
    for dy, dx in ((0, 2), (2, 0)):
        both = (true[..., dy:, dx:] > 0) & (true[..., : 5 - dy, : 6 - dx] > 0)
        expected = expected + (d[..., dy:, dx:] - d[..., : 5 - dy, : 6 - dx])[both].square().mean()
    loss = ScaleInvariantGradientLoss(step=2)(output, true)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (output.grad[true == 0] == 0).all()


def test_without_a_valid_pixel_the_loss_is_zero_and_so_is_its_gradient_even_of_images_smaller_than_the_step():
    output = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = ScaleInvariantGradientLoss(step=4)(output, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss == 0
    assert (output.grad == 0).all()
    assert ScaleInvariantGradientLoss(step=4)(output, torch.ones(1, 1, 2, 2)) == 0


def test_normals_weighted_by_ten_are_the_published_loss_and_ten():
    generator = torch.Generator().manual_seed(0)
    true, other = (nn.functional.normalize(torch.randn(1, 3, 90, 90, generator=generator), dim=1) for _ in range(2))
    assert 10 * CosineLoss()(true, true) - 10 == pytest.approx(-10, abs=1e-4)
    assert 10 * CosineLoss()(other, true) - 10 == pytest.approx(0, abs=0.3)  # 10 / sqrt(3 * 8100), 4 times


def test_rates_and_decays_are_those_of_the_release():
    module = nn.Module()
    module.network = published("vgg16")
    rates = {"encoder.features.*": 0.001, "encoder.full*": 0.1, "decoders.*.scale?.first.*": 0.001,
             "decoders.*.scale?.middle.*": 0.01, "decoders.*.scale?.last.*": 0.001}  # fmt: skip
    scales = RateScales(by_name=rates, decay_by_name={"encoder.features.*": 5.0, "encoder.full*": 0.1})
    optimizer = torch.optim.SGD([torch.zeros(1)] * 1, lr=1.0, weight_decay=1e-4)
    found = {}
    for group in parameter_groups(module, scales):
        optimizer.param_groups = [{"lr": 1.0, "weight_decay": 1e-4}]
        group.apply(optimizer, 0)
        (options,) = optimizer.param_groups
        found |= dict.fromkeys(group.names, (options["lr"], options["weight_decay"]))
    assert found["encoder.features.0.weight"] == pytest.approx((1e-3, 5e-4))
    assert found["encoder.full2.weight"] == pytest.approx((1e-1, 1e-5))
    assert found["decoders.shared.scale2.first.weight"] == pytest.approx((1e-3, 1e-4))
    assert found["decoders.shared.scale3.middle.1.0.weight"] == pytest.approx((1e-2, 1e-4))
    assert found["decoders.shared.scale3.last.0.bias"] == pytest.approx((1e-3, 1e-4))
    with pytest.raises(ConfigurationError, match=r"decay_scales: no parameter's name matches 'head.\*'"):
        parameter_groups(module, RateScales(decay_by_name={"head.*": 2.0}))


def test_layers_start_as_published():
    encoder, decoder = EigenEncoder("vgg11", hidden=64), EigenDecoder(FeatureSpec((3, 64), (1, 4)), 4)
    spreads = {encoder.full1.weight: 0.01, encoder.full2.weight: 0.001, decoder.scale2.first.weight: 0.001,
               decoder.scale3.first.weight: 0.001, decoder.scale2.middle[0][0].weight: 0.01}  # fmt: skip
    for weight, spread in spreads.items():
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
    assert not decoder.scale2.last[0].bias.any()


def test_the_second_phase_starts_from_the_first_and_leaves_it_as_it_is(tmp_path):
    build = partial(DensePredictor, tasks=[Depth(log=True), Normals()], share_decoder=True)
    first = build(small_encoder(), partial(small_decoder, scales=2))
    torch.save({"state_dict": first.state_dict()}, tmp_path / "first.ckpt")
    second = build(small_encoder(), small_decoder, init_from=tmp_path / "first.ckpt",
                   optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.1))  # fmt: skip
    below = {key: value.clone() for key, value in first.network.state_dict().items()}
    optimizer = second.build_optimizer()
    batch = {"image": torch.rand(2, 3, 100, 136), "depth": torch.rand(2, 1, 100, 136) + 1,
             "normals": nn.functional.normalize(torch.randn(2, 3, 100, 136), dim=1)}  # fmt: skip
    before = second.network.decoders["shared"].scale3.last[0].weight.clone()
    second.train().training_step(batch, 0).backward()
    optimizer.step()
    after = second.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in below.items())
    assert not torch.equal(second.network.decoders["shared"].scale3.last[0].weight, before)


@pytest.mark.parametrize(("build", "message"), [
    (partial(EigenEncoder, "resnet18"), "name is 'resnet18'. Expected one of: vgg16"),
    (partial(EigenEncoder, "alexnet", weights="imagenet"), "torchvision's AlexNet has other layers"),
    (partial(EigenEncoder, "vgg11", canvas=(226, 304)), "canvas is 226 x 304 pixels. Expected multiples of 4"),
    (partial(EigenDecoder, SPEC, 8, width=8), "8 planes of scale 2 replace as many of scale 3's 8 channels"),
    (partial(EigenDecoder, SPEC, 3, scales=4), "scales is 4. Expected one of: 2, 3"),
    (partial(EigenDecoder, SPEC, 3, crop=(0, 4)), "crop is .* Expected cells of stride 2"),
    (partial(ScaleInvariantGradientLoss, step=0), "step is 0. Expected 1 or more"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused_with_the_way_out(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_vgg_weights_of_torchvision_load_and_the_fully_connected_layers_stay(tmp_path):
    donor = EigenEncoder("vgg11", hidden=4)
    torch.save({key: value for key, value in donor.state_dict().items() if "features" in key}, tmp_path / "vgg.pth")
    encoder = EigenEncoder("vgg11", tmp_path / "vgg.pth", hidden=4)
    assert encoder.load_report is not None
    assert encoder.load_report.complete
    assert torch.equal(encoder.features[0].weight, donor.features[0].weight)
