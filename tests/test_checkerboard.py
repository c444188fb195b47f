"""Checkerboards and their remedies: a measure that knows the known cases, and decoders that draw none."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from densepred.anatomy.checkerboards import checkerboard
from densepred.decoders.context import ContextDecoder
from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.transposed import TransposedConvDecoder, icnr_
from densepred.decoders.unet import UNetDecoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.recipe import recipe

SPEC = FeatureSpec(channels=(8, 16), strides=(4, 8))
TransposedConv = partial(TransposedConvDecoder, SPEC, 3, widths=(8, 6))
OPTIONS = ["transposed", "resize", "pixel_shuffle"]


def taps(kernel_size: int) -> list[int]:
    """How many kernel positions reach each of two neighbouring cells, at stride 2."""
    return [len(range(phase, kernel_size, 2)) for phase in (0, 1)]


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5, 6, 7])
def test_with_equal_weights_the_pattern_is_that_of_the_numbers_of_taps(kernel_size):
    decoder = TransposedConvDecoder(FeatureSpec((5,), (2,)), 2, widths=(4,), kernel_size=kernel_size)
    numbers = [a * b for a in taps(kernel_size) for b in taps(kernel_size)]
    mean, square = sum(numbers) / 4, sum(n * n for n in numbers) / 4
    expected = math.sqrt((square - mean**2) / square)
    assert checkerboard(decoder, decoder.spec, equal_weights=True) == pytest.approx(expected, abs=1e-6)
    assert (expected == 0) == (kernel_size % 2 == 0)


def test_a_kernel_of_3_is_worse_than_one_of_5():
    three, five = (checkerboard(TransposedConv(kernel_size=k), SPEC, equal_weights=True) for k in (3, 5))
    assert three > five > 0.1


@pytest.mark.parametrize(
    ("build", "clean"),
    [
        (partial(TransposedConv, kernel_size=4), False),
        (partial(TransposedConv, kernel_size=3), False),
        (partial(TransposedConv, upsampling="resize"), True),
        (partial(TransposedConv, upsampling="resize", kernel_size=5), True),
        (partial(TransposedConv, upsampling="pixel_shuffle"), True),
        (partial(TransposedConv, upsampling="pixel_shuffle", norm="none"), True),
        (partial(UNetDecoder, SPEC, 3, widths=(8, 6)), True),
        (partial(UNetDecoder, SPEC, 3, widths=(8, 6), upsampling="nearest"), True),
        (partial(UNetDecoder, SPEC, 3, widths=(8, 6), upsampling="transposed"), False),
        (partial(FCNDecoder, FeatureSpec((8, 16), (8, 16)), 3), True),
        (partial(ContextDecoder, SPEC, 3, spread=1.0), True),  # sees 33 cells far, beyond the border
        (partial(FCNDecoder, FeatureSpec((8, 16), (8, 16)), 3, upsampling="learned", upsample_to_image=True), True),
        (partial(FCNDecoder, FeatureSpec((8, 16), (8, 16)), 3, upsampling="nearest", upsample_to_image=True), True),
    ],
)
def test_with_random_weights_transposed_convolutions_draw_a_pattern_and_resizing_none(build, clean):
    decoder = build()
    for name, parameter in decoder.named_parameters():
        if "score" in name:
            nn.init.normal_(parameter)
    measured = checkerboard(decoder, decoder.spec)
    assert measured < 1e-6 if clean else measured > 1e-3


def test_icnr_makes_a_pixel_shuffle_the_nearest_upsampling_of_its_convolution():
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    before = convolution.weight.clone(), convolution.bias.clone()
    icnr_(convolution)
    few = nn.Conv2d(3, 2, 3, padding=1)
    few.weight.data, few.bias.data = (parameter[[0, 4]] for parameter in before)
    feature = torch.rand(1, 3, 5, 7)
    shuffled = nn.functional.pixel_shuffle(convolution(feature), 2)
    torch.testing.assert_close(shuffled, few(feature).repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_without_icnr_a_pixel_shuffle_draws_a_pattern():
    decoder = TransposedConv(upsampling="pixel_shuffle")
    for layer in decoder.steps:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    assert checkerboard(decoder, SPEC) > 0.02


def test_the_measure_of_a_pattern_around_zero_is_1_and_of_planes_without_any_0():
    def board(features):
        rows, columns = (torch.arange(2 * side) for side in features[0].shape[-2:])
        return (1.0 - 2 * ((rows[:, None] + columns) % 2))[None, None]

    spec = FeatureSpec((1,), (4,))
    assert checkerboard(board, spec) == 1
    assert checkerboard(lambda features: 3 + 4 * board(features), spec) == pytest.approx(4 / 5)  # 3, 4, 5: a triangle
    assert checkerboard(lambda features: torch.zeros(1, 2, 32, 32), spec) == 0
    assert checkerboard(lambda features: torch.full((1, 2, 32, 32), 5.0), spec) == 0


def test_the_border_is_not_seen():
    decoder = nn.Sequential(nn.ConvTranspose2d(1, 1, 4, 2, 1), nn.Conv2d(1, 1, 5, padding=2))
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, 0.1)
    assert checkerboard(lambda features: decoder.double()(features[0]), FeatureSpec((1,), (4,))) < 1e-9


def test_measuring_leaves_the_decoder_as_it_is():
    decoder = TransposedConv().train()
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    checkerboard(decoder, SPEC, equal_weights=True)
    assert decoder.training
    assert all(torch.equal(before[key], value) for key, value in decoder.state_dict().items())


def test_what_cannot_be_measured_says_so():
    with pytest.raises(ConfigurationError, match=r"cells is 5\. Give an even number"):
        checkerboard(TransposedConv(), SPEC, cells=5)
    with pytest.raises(ConfigurationError, match="equal_weights wants a module"):
        checkerboard(lambda features: features[0], SPEC, equal_weights=True)
    with pytest.raises(ConfigurationError, match=r"planes of 16 x 16 cells are 30 x 30\. Expected planes that cover"):
        checkerboard(lambda features: features[0][..., 1:-1, 1:-1], SPEC)


# ---------------------------------------------------------------------------------------------- the decoder's options


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("upsampling", OPTIONS)
def test_every_upsampling_doubles_the_size_and_trains_with_every_norm(upsampling, norm):
    decoder = TransposedConv(upsampling=upsampling, norm=norm, activation="leaky_relu").train()
    planes = decoder([torch.rand(1, 8, 10, 14), torch.rand(1, 16, 5, 7)])
    assert planes.shape == (1, 3, 20, 28)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "maxout", "none"])
@pytest.mark.parametrize("upsampling", OPTIONS)
def test_every_activation_keeps_the_widths(upsampling, activation):
    decoder = TransposedConv(upsampling=upsampling, activation=activation)
    assert decoder([torch.rand(1, 8, 10, 14), torch.rand(1, 16, 5, 7)]).shape == (1, 3, 20, 28)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5, 6, 7])
def test_every_kernel_doubles_the_size(kernel_size):
    decoder = TransposedConv(kernel_size=kernel_size)
    assert decoder([torch.rand(1, 8, 10, 14), torch.rand(1, 16, 5, 7)]).shape == (1, 3, 20, 28)


@pytest.mark.parametrize(("upsampling", "expected"), [("transposed", 4), ("resize", 3), ("pixel_shuffle", 3)])
def test_each_upsampling_has_its_own_kernel(upsampling, expected):
    convolution = next(m for m in TransposedConv(upsampling=upsampling).steps if hasattr(m, "kernel_size"))
    assert convolution.kernel_size == (expected, expected)


def test_simple_baselines_has_its_published_number_of_parameters():
    """Three 4x4 deconvolutions of 256 channels with batch norm on 2048 channels: 2048*256*16 + 2*256*256*16 + 6*256."""
    with torch.device("meta"):
        decoder = TransposedConvDecoder(FeatureSpec((2048,), (32,)), 17)
    assert sum(p.numel() for p in decoder.steps.parameters()) == 10_487_296


@pytest.mark.parametrize("upsampling", OPTIONS)
def test_a_config_may_name_the_options(upsampling):
    decoder = TransposedConv(upsampling=upsampling, kernel_size=5, norm="group", activation="silu")
    written = recipe(decoder)["init_args"]
    assert (written["upsampling"], written["kernel_size"], written["norm"]) == (upsampling, 5, "group")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampling": "bilinear"}, "upsampling is 'bilinear'. Expected one of: transposed, resize, pixel_shuffle"),
        ({"kernel_size": 1}, "kernel_size is 1; a transposed convolution of stride 2 leaves gaps"),
        ({"kernel_size": 4, "upsampling": "resize"}, "kernel_size is 4; upsampling 'resize' keeps the size"),
    ],
)
def test_what_no_step_can_do_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TransposedConv(**options)
