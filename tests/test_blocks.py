"""Layers and initialisations by name, against closed forms and torch's own layers."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from densepred.blocks import ConvNormAct, Maxout, nonlinearity, normalisation
from densepred.errors import ConfigurationError
from densepred.initialisers import identity_, initialise


def moments(values: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return values.mean(dims), values.var(dims, unbiased=False)


@pytest.mark.parametrize(("name", "over"), [("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3))])
def test_a_norm_leaves_mean_0_and_variance_1_over_what_its_name_says(name, over):
    values = torch.randn(4, 6, 8, 8) * 3 + 2
    mean, variance = moments(normalisation(name, 6)(values), over)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (5, 1)])
def test_group_norm_takes_as_many_of_32_groups_as_divide_the_channels(channels, groups):
    assert normalisation("group", channels).num_groups == groups


def test_weight_normalisation_gives_the_kernel_a_length_of_its_own():
    block = ConvNormAct(3, 4, norm="weight", activation="none")
    convolution = block[0]
    with torch.no_grad():
        convolution.parametrizations.weight.original0.fill_(2.0)
    torch.testing.assert_close(convolution.weight.flatten(1).norm(dim=1), torch.full((4,), 2.0))
    assert convolution.bias is not None
    twin = copy.deepcopy(block)
    image = torch.rand(1, 3, 5, 5)
    assert torch.equal(twin(image), block(image))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("leaky_relu", lambda x: x if x > 0 else 0.01 * x),
        ("elu", lambda x: x if x > 0 else math.exp(x) - 1),
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("none", lambda x: x),
    ],
)
def test_an_activation_is_its_formula(name, expected):
    values = [-2.0, -0.5, 0.0, 0.5, 2.0]
    torch.testing.assert_close(
        nonlinearity(name)(torch.tensor(values)), torch.tensor([expected(x) for x in values]), atol=1e-6, rtol=1e-5
    )


def test_maxout_has_two_pieces_for_each_channel():
    block = ConvNormAct(3, 4, norm="none", activation="maxout")
    image = torch.rand(1, 3, 6, 6)
    both = block[0](image)
    assert both.shape[1] == 8
    assert torch.equal(block(image), both.unflatten(1, (4, 2)).amax(2))
    assert Maxout()(both).shape[1] == 4


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "maxout", "none"])
def test_every_norm_goes_with_every_activation(norm, activation):
    block = ConvNormAct(3, 4, norm=norm, activation=activation)
    block(torch.rand(2, 3, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert (block[0].bias is not None) == (norm in ("weight", "none"))


def test_without_padding_the_border_is_eaten():
    assert ConvNormAct(3, 4, 3, dilation=2, padded=False)(torch.rand(2, 3, 12, 10)).shape == (2, 4, 8, 6)


@pytest.mark.parametrize(("build", "message"), [(normalisation, "norm is 'batsch'"), (initialise, "initialisation")])
def test_a_name_that_does_not_exist_is_answered_with_those_that_do(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build("batsch", 3) if build is normalisation else initialise(nn.Conv2d(3, 3, 3), "batsch")
    with pytest.raises(ConfigurationError, match="Expected relu, leaky_relu"):
        nonlinearity("rely")


@pytest.mark.parametrize(
    ("name", "spread", "uniform"),
    [
        ("gaussian", 0.01, False),
        ("xavier", math.sqrt(2 / (64 * 9 + 128 * 9)), True),
        ("caffe_xavier", math.sqrt(1 / (64 * 9)), True),
        ("kaiming", math.sqrt(2 / (64 * 9)), False),
        ("kaiming_uniform", math.sqrt(2 / (64 * 9)), True),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_an_initialisation_has_the_spread_of_its_formula(name, spread, uniform, transposed):
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(64, 128, 3)
    initialise(layer, name, bias=0.5)
    weight = layer.weight.detach()
    assert weight.std().item() == pytest.approx(spread, rel=0.03)
    assert abs(weight.mean().item()) < 0.05 * spread
    # a uniform distribution ends at sqrt(3) deviations, a normal one of this many weights goes beyond 4
    assert (weight.abs().max().item() / spread < 1.8) == uniform
    assert bool((layer.bias == 0.5).all())


def test_a_chain_of_identities_through_multiples_of_the_classes_is_the_identity():
    widths = [3, 6, 12, 3]
    values = torch.rand(1, 3, 7, 7)
    passed = values
    for before, after in pairwise(widths):
        layer = nn.Conv2d(before, after, 3, padding=1, bias=False)
        identity_(layer.weight.data, groups=3)
        passed = layer(passed)
    torch.testing.assert_close(passed, values)
    assert identity_(torch.empty(64, 64, 3, 3), 64, spread=0.01)[:, :, 0].std().item() == pytest.approx(0.01, rel=0.05)
