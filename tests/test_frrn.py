"""FRRN A and B: published numbers, the release's forward pass, and the bootstrapped loss of its recipe."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.frrn import FRRNEncoder, FullResolutionResidualUnit, ResidualUnit
from densepred.errors import ConfigurationError
from densepred.losses.topk import TopKCrossEntropyLoss
from densepred.network import DenseNetwork
from tests.test_tiramisu import random_statistics

PUBLISHED_SIZES = {"frrn_a": (256, 512), "frrn_b": (512, 1024)}


def published(name: str) -> DenseNetwork:
    return DenseNetwork(FRRNEncoder(name), PointwiseDecoder, {"labels": 19})


def small(name: str = "frrn_a") -> FRRNEncoder:
    return FRRNEncoder(name, width=4, residual=3)


# ---------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(("name", "count", "convolutions"), [("frrn_a", 17_746_803, 67), ("frrn_b", 24_755_699, 79)])
def test_it_has_the_published_number_of_parameters_and_convolutions(name, count, convolutions):
    with torch.device("meta"):
        net = published(name)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == convolutions


@pytest.mark.parametrize(("name", "giga"), [("frrn_a", 123.1), ("frrn_b", 496.2)])
def test_it_costs_the_published_number_of_multiplications(name, giga):
    with torch.device("meta"):
        net = published(name).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, *PUBLISHED_SIZES[name]))
    assert round(counter.get_total_flops() / 2e9, 1) == giga


STREAM_A = [(96, 128, 256), (192, 64, 128), (384, 32, 64), (384, 16, 32), (192, 32, 64), (192, 64, 128), (96, 128, 256)]
STREAM_B = [
    (96, 256, 512), (192, 128, 256), (384, 64, 128), (384, 32, 64), (384, 16, 32),
    (192, 32, 64), (192, 64, 128), (192, 128, 256), (96, 256, 512),
]  # fmt: skip


@pytest.mark.parametrize(("name", "stream", "units"), [
    ("frrn_a", STREAM_A, [3, 4, 2, 2, 2, 2, 2]), ("frrn_b", STREAM_B, [3, 4, 2, 2, 2, 2, 2, 2, 2]),
])  # fmt: skip
def test_the_pooling_stream_goes_down_and_up_beside_a_residual_stream_of_full_size(name, stream, units):
    seen = []
    with torch.device("meta"):
        encoder = FRRNEncoder(name).eval()
        for module in encoder.modules():
            if isinstance(module, FullResolutionResidualUnit):
                module.register_forward_hook(lambda unit, inputs, both: seen.append([tuple(t.shape[1:]) for t in both]))
        size = PUBLISHED_SIZES[name]
        merged = encoder(torch.empty(1, 3, *size))[0]
    expected = [shape for shape, count in zip(stream, units, strict=True) for _ in range(count)]
    assert [pooling for pooling, _ in seen] == expected
    assert {residual for _, residual in seen} == {(32, *size)}
    assert encoder.merge[0].body[0][0].in_channels == 96 + 32
    assert merged.shape[1:] == (48, *size)


def test_the_last_units_are_the_authors_and_only_the_first_of_them_projects():
    with torch.device("meta"):
        merge = FRRNEncoder("frrn_a").merge
    assert [(unit.body[0][0].in_channels, unit.body[1][0].out_channels) for unit in merge] == [
        (128, 48), (48, 48), (48, 48)
    ]  # fmt: skip
    assert [sum(p.numel() for p in unit.shortcut.parameters()) for unit in merge] == [128 * 48, 0, 0]


def test_only_what_leads_into_the_residual_stream_and_the_classes_have_biases():
    with torch.device("meta"):
        net = published("frrn_b")
    biased = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None}
    assert biased == {f"encoder.units.{i}.project" for i in range(21)} | {"decoders.labels.score"}


def test_weights_are_uniform_after_he_with_the_gain_of_what_follows():
    encoder = FRRNEncoder("frrn_a", width=16, residual=16)
    followed = {id(unit.body[0][0]) for unit in encoder.modules() if isinstance(unit, ResidualUnit)}
    followed |= {id(c[0]) for u in encoder.modules() if isinstance(u, FullResolutionResidualUnit) for c in u.body}
    followed.add(id(encoder.stem[0][0]))
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt((6 if id(layer) in followed else 3) / layer.weight[0].numel())
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.bias is None or not layer.bias.any()


# ---------------------------------------------------------------------------------------------- the release


def release(encoder: FRRNEncoder, image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, written out with the encoder's weights; bilinear on the image's grid."""

    def conv(part, values, relu=True):
        layer, norm, _ = part
        values = F.conv2d(values, layer.weight, padding=layer.kernel_size[0] // 2)
        scale = norm.weight / (norm.running_var + 1e-4).sqrt()
        values = (values - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        return values.relu() if relu else values

    def ru(unit, values):
        shortcut = values if isinstance(unit.shortcut, nn.Identity) else F.conv2d(values, unit.shortcut.weight)
        return conv(unit.body[1], conv(unit.body[0], values), relu=False) + shortcut

    units = iter(encoder.units)

    def frru(y, z, factor):
        unit = next(units)
        y = conv(unit.body[1], conv(unit.body[0], torch.cat([y, F.max_pool2d(z, factor)], dim=1)))
        new = F.conv2d(y, unit.project.weight, unit.project.bias)
        return y, z + new.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)

    y = conv(encoder.stem[0], image)
    for i in (1, 2, 3):
        y = ru(encoder.stem[i], y)
    z = conv(encoder.split, y, relu=False)
    for count, factor in ((3, 2), (4, 4), (2, 8), (2, 16)):
        y = F.max_pool2d(y, 2)
        for _ in range(count):
            y, z = frru(y, z, factor)
    for factor in (8, 4, 2):
        y = F.interpolate(y, scale_factor=2, mode="bilinear")
        for _ in range(2):
            y, z = frru(y, z, factor)
    y = torch.cat([F.interpolate(y, scale_factor=2, mode="bilinear"), z], dim=1)
    for unit in encoder.merge:
        y = ru(unit, y)
    return y


@torch.no_grad()
def test_the_map_is_that_of_the_release_written_out():
    encoder = small().double().eval()
    random_statistics(encoder)
    image = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    torch.testing.assert_close(encoder(image)[0], release(encoder, image))


@torch.no_grad()
def test_the_residual_stream_passes_the_image_on_where_no_unit_adds_to_it():
    encoder = small("frrn_b").eval()
    for unit in encoder.units:
        nn.init.zeros_(unit.project.weight)
    split, merged = [], []
    encoder.split.register_forward_hook(lambda part, inputs, output: split.append(output))
    encoder.merge.register_forward_pre_hook(lambda part, inputs: merged.append(inputs[0]))
    encoder(torch.rand(1, 3, 64, 64))
    assert torch.equal(merged[0][:, -3:], split[0])


def test_odd_sizes_go_in_directly_too_and_images_below_a_cell_are_refused():
    encoder = small().eval()
    assert encoder(torch.rand(1, 3, 45, 61))[0].shape == (1, 4, 45, 61)
    with pytest.raises(ConfigurationError, match="15 x 40, but frrn_a pools 16 pixels a side into one"):
        encoder(torch.rand(1, 3, 15, 40))


def test_a_size_below_one_and_another_network_are_refused():
    with pytest.raises(ConfigurationError, match="width is 0, residual 32; expected 1 or more"):
        FRRNEncoder(width=0)
    with pytest.raises(ConfigurationError, match=r"name is 'frrn_c'. Expected one of: frrn_a, frrn_b"):
        FRRNEncoder("frrn_c")


def test_frrn_b_comes_back_at_an_odd_images_size_and_reaches_every_parameter():
    net = DenseNetwork(small("frrn_b"), PointwiseDecoder, {"labels": 3}).train()
    planes = net(torch.rand(1, 3, 33, 47))["labels"]
    assert planes.shape == (1, 3, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# ---------------------------------------------------------------------------------------------- bootstrapped loss


def release_loss(logits: torch.Tensor, target: torch.Tensor, pixels: int) -> torch.Tensor:
    """The release's: void pixels cost 0; of each image the mean of the largest `pixels`; of these the mean."""
    known = target != 255
    one_hot = F.one_hot(torch.where(known, target, 0).long(), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    losses = -(logits.log_softmax(1) * one_hot).sum(1)
    return torch.stack([loss.flatten().sort().values[-pixels:].mean() for loss in losses]).mean()


@pytest.mark.parametrize("pixels", [1, 100, 300])
def test_the_worst_pixels_of_each_image_are_those_of_the_release(pixels):
    logits = torch.randn(3, 19, 24, 32, requires_grad=True)
    target = torch.randint(19, (3, 24, 32), dtype=torch.uint8)
    target[:, :10] = 255  # leaves 448 of 768
    ours, theirs = TopKCrossEntropyLoss(pixels=pixels)(logits, target), release_loss(logits, target, pixels)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][:, :, :10].any()
    assert int(gradients[0].abs().sum(1).count_nonzero()) == 3 * pixels


def test_a_uniform_prediction_costs_ln_19_and_void_alone_nothing():
    loss = TopKCrossEntropyLoss(pixels=512 * 64)
    uniform = torch.zeros(1, 19, 256, 512)
    target = torch.randint(19, (1, 256, 512), dtype=torch.uint8)
    target[:, :50] = 255
    assert loss(uniform, target).item() == pytest.approx(2.9444, abs=5e-5)
    assert loss(uniform, torch.full_like(target, 255)).item() == 0
