"""The U-Net, as published and padded, and its decoder on a pretrained encoder."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.decoders.deeplab import DeepLabV3Decoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.mirror import mirror
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork

WIDTHS = (64, 128, 256, 512, 1024)
FEW = (3, 4, 4, 6, 6)


def unet(in_channels=1, classes=2, widths=WIDTHS, padded=False, norm="none", bias=None, dropout=0.0, **options):
    """The published U-Net, unless told otherwise."""
    encoder = UNetEncoder(in_channels, widths, padded, norm, bias=bias, dropout=dropout)
    decoder = partial(
        UNetDecoder,
        widths=widths[-2::-1],
        upsampling="transposed",
        norm=norm,
        bias=bias,
        initialisation="kaiming",
    )
    return DenseNetwork(encoder, decoder, {"cells": classes}, **options)


def thin(**options) -> DenseNetwork:
    """The published layout with few channels, biases that are not zero, and in double precision."""
    net = unet(widths=FEW, **options).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, -0.2, 0.2)
    return net


def published(net: DenseNetwork, image: np.ndarray) -> torch.Tensor:
    """The paper's network written down once more, on an image that already has its margin."""
    state = net.state_dict()
    x = torch.from_numpy(image)[None, None] * 2 - 1

    def twice(x: torch.Tensor, prefix: str) -> torch.Tensor:
        for i in range(2):
            x = F.relu(F.conv2d(x, state[f"{prefix}.{i}.0.weight"], state[f"{prefix}.{i}.0.bias"]))
        return x

    skips = []
    for level in range(5):
        x = twice(F.max_pool2d(x, 2) if level else x, f"encoder.levels.{level}")
        skips.append(x)
    for step, skip in enumerate(skips[-2::-1]):
        prefix = f"decoders.cells.steps.{step}"
        x = F.conv_transpose2d(x, state[f"{prefix}.enlarge.weight"], state[f"{prefix}.enlarge.bias"], stride=2)
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[-2:], x.shape[-2:], strict=True))
        x = twice(torch.cat([x, skip[..., top : top + x.shape[-2], left : left + x.shape[-1]]], 1), f"{prefix}.convs")
    return F.conv2d(x, state["decoders.cells.score.weight"], state["decoders.cells.score.bias"])


# ---------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("channels", "classes", "norm", "bias", "expected"),
    [
        (1, 1, "none", None, 31_030_593),
        (1, 2, "none", None, 31_030_658),
        (3, 1, "none", None, 31_031_745),
        (3, 2, "none", None, 31_031_810),
        (3, 21, "none", None, 31_033_045),
        (1, 2, "batch", True, 31_042_434),
        (3, 2, "batch", True, 31_043_586),
        (1, 2, "batch", None, 31_036_546),
        (3, 2, "batch", None, 31_037_698),
    ],
)
@pytest.mark.parametrize("padded", [False, True], ids=["valid", "padded"])
def test_parameters_are_as_many_as_published(channels, classes, norm, bias, expected, padded):
    with torch.device("meta"):
        net = unet(channels, classes, padded=padded, norm=norm, bias=bias)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize(
    ("channels", "classes", "padded", "size", "giga"), [(1, 2, False, 388, 150.4), (3, 21, True, 256, 48.25)]
)
def test_multiplications_are_as_many_as_published(channels, classes, padded, size, giga):
    with torch.device("meta"):
        net = unet(channels, classes, padded=padded).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.rand(1, channels, size, size))
    digits = 1 if giga > 100 else 2
    assert round(counter.get_total_flops() / 2e9, digits) == giga


def test_weights_of_the_padded_form_fit_the_published_one():
    with torch.device("meta"):
        states = [unet(padded=padded).state_dict() for padded in (True, False)]
    padded, valid = ({key: value.shape for key, value in state.items()} for state in states)
    assert padded == valid


def test_there_are_23_convolutions():
    with torch.device("meta"):
        net = unet()
    assert sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net.modules()) == 23


# ---------------------------------------------------------------------------------------------- sizes


def test_maps_have_the_sizes_of_the_papers_figure():
    sizes = {}

    def note(name, layer, inputs, output):
        if isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            sizes[name] = inputs[0].shape[-1], output.shape[-1]

    with torch.device("meta"):
        net = unet()
        for name, layer in net.named_modules():
            layer.register_forward_hook(partial(note, name))
        planes = net.planes(torch.rand(1, 1, 388, 388))["cells"]
    down = [sizes[f"encoder.levels.{level}"] for level in range(5)]
    assert down == [(572, 568), (284, 280), (140, 136), (68, 64), (32, 28)]
    decoder = net.decoders["cells"]
    assert [sizes[f"decoders.cells.steps.{step}.enlarge"] for step in range(4)] == [
        (28, 56),
        (52, 104),
        (100, 200),
        (196, 392),
    ]
    assert [sizes[f"decoders.cells.steps.{step}.convs"] for step in range(4)] == [
        (56, 52),
        (104, 100),
        (200, 196),
        (392, 388),
    ]
    assert [step.crop for step in decoder.steps] == [4, 16, 40, 88]
    assert planes.shape == (1, 2, 388, 388)


def test_images_are_mirrored_to_the_next_size_that_poolings_divide_evenly():
    encoder = UNetEncoder(1, FEW, padded=False)
    sizes = {size: encoder.valid_size(size) for size in range(1, 600)}
    valid = range(188, 1000, 16)
    assert sizes == {size: min(n for n in valid if n - 184 >= size) for size in sizes}
    assert [sizes[size] for size in (4, 20, 388, 404)] == [188, 204, 572, 588]


@pytest.mark.parametrize("size", [(388, 4), (33, 47), (5, 7), (1, 20), (130, 97)])
def test_the_network_is_the_papers_on_the_mirrored_image_and_gives_back_its_size(size):
    net = thin()
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    margins = [(92, net.encoder.valid_size(side) - side - 92) for side in size]
    expected = published(net, np.pad(image[0, 0].numpy(), margins, mode="reflect"))
    assert expected.std() > 0.01
    planes = net(image)["cells"]
    assert planes.shape == (1, 2, *size)
    torch.testing.assert_close(planes, expected[..., : size[0], : size[1]])


@pytest.mark.parametrize(("origin", "equal"), [((0, 0), True), ((16, 32), True), ((1, 0), False), ((16, 9), False)])
def test_tiles_read_with_92_pixels_around_them_abut_at_multiples_of_16(origin, equal):
    net = thin()
    image = torch.rand(1, 1, 60, 72, dtype=torch.float64)
    mirrored = np.pad(image[0, 0].numpy(), 92, mode="reflect")
    top, left = origin
    tile = published(net, mirrored[top : top + 204, left : left + 204])
    whole = net(image)["cells"][..., top : top + 20, left : left + 20]
    difference = (tile - whole).abs().max() / whole.abs().max()
    assert (difference < 1e-12) == equal
    assert equal or difference > 1e-3


@pytest.mark.parametrize(("origin", "equal"), [((0, 0), True), ((16, 32), True), ((1, 0), False), ((16, 9), False)])
def test_a_window_is_predicted_as_the_whole_image_from_112_pixels_inside_its_border(origin, equal):
    net = thin()
    image = torch.rand(1, 1, 272, 288, dtype=torch.float64)
    top, left = origin
    window = net(image[..., top : top + 240, left : left + 240])["cells"][..., 112:128, 112:128]
    whole = net(image)["cells"][..., top + 112 : top + 128, left + 112 : left + 128]
    difference = (window - whole).abs().max() / whole.abs().max()
    assert (difference < 1e-12) == equal


def test_cells_see_as_many_pixels_as_published_around_the_place_that_the_spec_says(monkeypatch):
    encoder = UNetEncoder(1, (1,) * 5, padded=False, norm="none")
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, 1 / 9)
    # a mean sees every pixel, a maximum one
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    image = torch.rand(1, 1, 404, 404, requires_grad=True)
    features = encoder(image)
    for feature, stride, origin, seen in zip(
        features, encoder.spec.strides, encoder.spec.origins, (5, 14, 32, 68, 140), strict=True
    ):
        i, j = (round((pixel - origin) / stride) for pixel in (200, 180))
        (gradient,) = torch.autograd.grad(feature[0, 0, i, j], image, retain_graph=True)
        for cell, axis in ((i, 1), (j, 0)):
            pixels = gradient[0, 0].any(axis).nonzero().flatten().tolist()
            assert len(pixels) == seen
            assert (pixels[0] + pixels[-1]) / 2 == origin + stride * cell


@pytest.mark.parametrize("size", [1, 2, 3, 10])
@pytest.mark.parametrize("margins", [(0, 0), (1, 0), (9, 25), (40, 3)])
def test_mirroring_is_numpys_reflection_also_beyond_the_image(size, margins):
    image = np.random.default_rng(0).integers(0, 256, (2, size, 5), dtype=np.uint8)
    expected = np.pad(image, ((0, 0), margins, (11, 2)), mode="reflect")
    np.testing.assert_array_equal(mirror(torch.from_numpy(image), margins, (11, 2)), expected)


# ---------------------------------------------------------------------------------------------- training


def test_weights_start_with_the_papers_deviation_and_no_bias():
    net = unet(widths=(64, 128, 256))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "score" not in name:
            incoming = parameter.shape[0] if "enlarge" in name else parameter[0].numel()
            assert parameter.std().item() == pytest.approx((2 / incoming) ** 0.5, rel=0.08), name
            assert abs(parameter.mean().item()) < 0.1 * (2 / incoming) ** 0.5
    # N of a 3x3 convolution on 64 channels
    assert net.encoder.levels[0][1][0].weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)


def test_the_two_deepest_levels_end_with_dropout_in_training():
    encoder = UNetEncoder(1, FEW, dropout=0.5)
    image = torch.rand(1, 1, 64, 64)
    encoder.eval()
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), encoder(image), strict=True))
    for layer in encoder.modules():
        if isinstance(layer, nn.Dropout):
            layer.train()
    differ = [not torch.equal(a, b) for a, b in zip(encoder(image), encoder(image), strict=True)]
    assert differ == [False, False, False, True, True]


@pytest.mark.parametrize("padded", [False, True])
def test_one_small_image_trains_every_parameter(padded):
    net = unet(3, widths=FEW, padded=padded, norm="none" if not padded else "batch").train()
    planes = net(torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8))["cells"]
    assert planes.shape == (1, 2, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("activation", ["leaky_relu", "maxout"])
def test_norm_and_activation_are_options_of_both_halves(norm, activation):
    options = {"norm": norm, "activation": activation}
    net = DenseNetwork(UNetEncoder(3, (4, 6, 8), **options), partial(UNetDecoder, **options), {"cells": 2}).train()
    planes = net(torch.rand(2, 3, 40, 36))["cells"]
    planes.square().sum().backward()
    assert planes.shape == (2, 2, 40, 36)
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    same = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "layer": nn.GroupNorm, "instance": nn.GroupNorm}
    found = {type(layer) for layer in net.modules() if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)}
    assert found == ({same[norm]} if norm in same else set())
    assert not any(isinstance(layer, nn.ReLU) for layer in net.modules())


def test_images_are_seen_from_minus_one_to_one_unless_told_otherwise():
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert UNetEncoder(1, FEW).normalise(extremes).flatten().tolist() == [-1, 1]
    assert UNetEncoder(1, FEW, mean=[0.0], std=[1.0]).normalise(extremes).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("padded", [False, True], ids=["valid", "padded"])
def test_the_network_exports_and_compiles(padded):
    net = unet(widths=(2, 3, 4), padded=padded).eval()
    image = torch.rand(1, 1, 45, 38)
    expected = net(image)["cells"]
    torch.testing.assert_close(torch.export.export(net, (image,)).module()(image)["cells"], expected)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(image)["cells"], expected)


def test_deep_supervision_reads_unpadded_maps_too():
    net = unet(widths=(2, 3, 4, 5), auxiliary=partial(UNetDecoder, norm="none"), auxiliary_depth=2).train()
    planes = net.planes(torch.rand(1, 1, 50, 41))
    assert {name: tuple(value.shape) for name, value in planes.items()} == dict.fromkeys(
        ("cells", "cells/auxiliary", "cells/auxiliary2"), (1, 2, 50, 41)
    )


def test_planes_of_a_shallower_decoder_lie_where_the_image_does():
    """One cell of the finest map is marked; the planes answer there, whatever was cropped on the way."""
    encoder = UNetEncoder(1, (1, 1, 1), padded=False, norm="none")
    decoder = UNetDecoder(encoder.spec.without_coarsest(1), 1, widths=(1,), norm="none", activation="none")
    convs = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convs:
        nn.init.zeros_(layer.weight)
        layer.weight.data[0, -1, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    fine, coarse = encoder(torch.zeros(1, 1, 20, 24))[:2]
    marked = torch.zeros_like(fine)
    # the cell of the finest map at pixel (7, 9)
    marked[0, 0, 7 - round(encoder.spec.origins[0]), 9 - round(encoder.spec.origins[0])] = 1
    planes = decoder([marked, torch.zeros_like(coarse)]) - decoder([torch.zeros_like(fine), torch.zeros_like(coarse)])
    assert planes[0, 0].nonzero().tolist() == [[7, 9]]


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("decoder", [DeepLabV3Decoder, PointwiseDecoder])
def test_decoders_that_cannot_crop_refuse_maps_with_margins(decoder):
    with pytest.raises(ConfigurationError, match=r"unpadded convolutions leave margins.*`padded` to true"):
        DenseNetwork(UNetEncoder(3, FEW, padded=False), decoder, {"cells": 2})


def test_margins_that_the_decoder_cannot_eat_are_refused():
    with pytest.raises(ConfigurationError, match=r"the planes begin inside the image, by 1 pixels"):
        DenseNetwork(UNetEncoder(3, FEW, padded=False), partial(UNetDecoder, score_kernel=3), {"cells": 2})
    with torch.device("meta"):
        encoder = VGGEncoder("vgg11", fully_connected=True, padded=False)
    with pytest.raises(ConfigurationError, match=r"begin inside the image.*`padded` to true"):
        UNetDecoder(encoder.spec, 2)
    with pytest.raises(ConfigurationError, match=r"map of stride 1 begins inside the map that it joins, by 2 pixels"):
        UNetDecoder(FeatureSpec((2, 2), (1, 2), (0.0, -1.5)), 2)


def test_a_single_level_and_an_even_kernel_are_refused():
    with pytest.raises(ConfigurationError, match=r"make 1 levels\. Give at least two"):
        UNetEncoder(widths=(64,))
    with pytest.raises(ConfigurationError, match=r"score_kernel is 2; expected an odd number"):
        UNetDecoder(FeatureSpec((2, 2), (1, 2)), 2, score_kernel=2)


# ---------------------------------------------------------------------------------------------- peers


@torch.no_grad()
def test_on_resnet34_it_is_segmentation_models_pytorchs_unet():
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs = smp.Unet("resnet34", encoder_weights=None, classes=21).eval()
    for key, tensor in theirs.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    decoder = partial(UNetDecoder, widths=(256, 128, 64, 32, 16), upsampling="nearest", score_kernel=3)
    ours = DenseNetwork(ResNetEncoder("resnet34"), decoder, {"labels": 21}).eval()
    state = theirs.state_dict()
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    report = ours.encoder.load_state_dict(encoder, strict=False)
    assert (set(report.missing_keys), report.unexpected_keys) == ({"mean", "std"}, [])
    mine = ours.decoders["labels"]
    blocks = [value for key, value in state.items() if key.startswith("decoder.")]
    mine.steps.load_state_dict(dict(zip(mine.steps.state_dict(), blocks, strict=True)))
    mine.score.load_state_dict({name: state[f"segmentation_head.0.{name}"] for name in ("weight", "bias")})
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    image = torch.rand(2, 3, 64, 96)
    expected = theirs(ours.encoder.normalise(image))
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(image)["labels"], expected, rtol=0, atol=1e-4)
