"""The dilated front-end and the context module."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from densepred.decoders.context import ContextDecoder, ContextModule
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_dilated import DilatedVGGEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork

KITTI = (1, 1, 2, 4, 8, 1)
CITYSCAPES = (1, 1, 2, 4, 8, 16, 32, 64, 1)
SPEC = FeatureSpec((6,), (8,))


def front_end(classes=21, **options) -> DenseNetwork:
    """The published network, without memory."""
    with torch.device("meta"):
        return DenseNetwork(DilatedVGGEncoder(), partial(ContextDecoder, **options), {"labels": classes}).eval()


def thin(maps="pool", name="vgg16", classes=3) -> DenseNetwork:
    """The front-end with one channel in every layer, in double precision, and the scores."""
    with torch.device("meta"):
        encoder = DilatedVGGEncoder(name, in_channels=1, maps=maps, dropout=0.0)
    for part in (encoder.features, encoder.classifier):
        for i, layer in enumerate(part):
            if isinstance(layer, nn.Conv2d):
                part[i] = nn.Conv2d(1, 1, layer.kernel_size, padding=layer.padding, dilation=layer.dilation)
                nn.init.uniform_(part[i].weight, 0.2 / layer.kernel_size[0] ** 2, 1.8 / layer.kernel_size[0] ** 2)
                nn.init.uniform_(part[i].bias, 0, 0.1)  # no layer is dead
            elif isinstance(layer, nn.BatchNorm2d):
                part[i] = nn.BatchNorm2d(1)
    encoder.mean, encoder.std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    encoder.spec = FeatureSpec((1,) * len(encoder.spec.channels), encoder.spec.strides)
    return DenseNetwork(encoder, partial(ContextDecoder, context=None), {"labels": classes}).double().eval()


# ---------------------------------------------------------------------------------------------- the front-end's counts


def test_the_front_end_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in front_end(context=None).parameters()) == 134_346_581


@pytest.mark.parametrize(("size", "cells", "giga"), [(900, 66, 791.6), (500, 16, 104.5), (508, 17, 111.2)])
def test_the_front_end_multiplies_as_often_as_published(size, cells, giga):
    net = front_end(context=None)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        planes = net.planes(torch.rand(1, 3, size - 372, size - 372))["labels"]
    assert planes.shape == (1, 21, cells, cells)
    assert round(counter.get_total_flops() / 2e9, 1) == giga


def test_the_stages_of_a_mirrored_image_of_900_have_the_published_sizes():
    encoder = front_end().encoder
    sizes = []
    convolutions = [layer for layer in encoder.features if isinstance(layer, nn.Conv2d)]
    pools = [layer for layer in encoder.features if isinstance(layer, nn.MaxPool2d)]
    for layer in [convolutions[i] for i in (1, 3, 6, 9, 12)] + pools + [encoder.classifier[0]]:
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[-1]))
    with torch.device("meta"):
        encoder(torch.rand(1, 3, 528, 528))
    assert sizes == [896, 448, 444, 222, 216, 108, 102, 90, 66]


def test_it_is_vgg16_without_padding_and_two_poolings_dilated_by_2_and_4():
    encoder = front_end().encoder
    layers = [layer for layer in [*encoder.features, *encoder.classifier] if isinstance(layer, nn.Conv2d)]
    assert all(layer.padding == (0, 0) and layer.stride == (1, 1) for layer in layers)
    assert [layer.dilation[0] for layer in layers] == [1] * 10 + [2] * 3 + [4, 1]
    assert [layer.kernel_size[0] for layer in layers] == [3] * 13 + [7, 1]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in encoder.features) == 3
    assert [layer.p for layer in encoder.classifier if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_weights_of_vgg_load_by_their_names():
    with torch.device("meta"):
        theirs = {key: value.numel() for key, value in vgg16().state_dict().items() if "classifier.6" not in key}
    ours = {key: value.numel() for key, value in front_end().encoder.state_dict().items()}
    assert ours == theirs | {"mean": 3, "std": 3}


# ---------------------------------------------------------------------------------------------- where cells lie


@pytest.mark.parametrize(
    ("name", "maps"), [("vgg16", "pool"), ("vgg16", "conv"), ("vgg11_bn", "pool"), ("vgg19", "conv")]
)
def test_every_cell_is_centred_on_the_pixels_it_covers(name, maps, monkeypatch):
    net = thin(maps, name)
    for layer in net.encoder.features:
        if isinstance(layer, nn.MaxPool2d):
            # a mean sees every pixel, a maximum one
            monkeypatch.setattr(layer, "forward", lambda x: F.avg_pool2d(x, 2))
    image = torch.rand(1, 1, 480, 488, dtype=torch.float64, requires_grad=True)
    for feature, stride in zip(net.encoder(image), net.encoder.spec.strides, strict=True):
        assert feature.shape[-2:] == (480 // stride, 488 // stride)
        i, j = 240 // stride, 248 // stride
        (gradient,) = torch.autograd.grad(feature[0, 0, i, j], image, retain_graph=True)
        for cell, axis in ((i, 1), (j, 0)):
            pixels = gradient[0, 0].any(axis).nonzero().flatten().tolist()
            assert (pixels[0] + pixels[-1]) / 2 == stride * cell + (stride - 1) / 2
    if name == "vgg16":
        assert len(pixels) == 380


@pytest.mark.parametrize("size", [(64, 72), (33, 47), (130, 37)])
def test_planes_are_those_of_the_unpadded_network_on_the_mirrored_image(size):
    net = thin()
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    cells = [math.ceil(side / 8) for side in size]
    # up to the multiple of 8 the network repeats the border
    whole = np.pad(image[0, 0].numpy(), [(0, 8 * n - side) for n, side in zip(cells, size, strict=True)], mode="edge")
    x = torch.from_numpy(np.pad(whole, 186, mode="reflect"))[None, None]
    state = net.encoder.state_dict()
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    for i, number in enumerate(numbers):
        if i in (2, 4, 7):
            x = F.max_pool2d(x, 2)
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, dilation=2 if i >= 10 else 1))
    x = F.relu(F.conv2d(x, state["classifier.0.weight"], state["classifier.0.bias"], dilation=4))
    x = F.relu(F.conv2d(x, state["classifier.3.weight"], state["classifier.3.bias"]))
    assert x.std() > 1e-6
    assert list(x.shape[-2:]) == cells
    score = net.decoders["labels"].score
    torch.testing.assert_close(net.planes(image)["labels"], F.conv2d(x, score.weight, score.bias))
    assert net(image)["labels"].shape == (1, 3, *size)


def test_an_image_by_itself_is_mirrored_up_to_a_multiple_of_8_too():
    encoder = thin().encoder
    image = torch.rand(1, 1, 37, 50, dtype=torch.float64)
    mirrored = torch.from_numpy(np.pad(image[0, 0].numpy(), ((0, 3), (0, 6)), mode="reflect"))[None, None]
    assert [tuple(feature.shape[-2:]) for feature in encoder(image)] == [(20, 28), (10, 14), (5, 7), (5, 7), (5, 7)]
    # further out they are mirrored at other places, and only the last cells see so far
    own, expected = (encoder(picture)[0][..., :-1, :-1] for picture in (image, mirrored))
    torch.testing.assert_close(own, expected)


def test_other_decoders_read_its_maps():
    net = thin("conv")
    net = DenseNetwork(net.encoder, partial(UNetDecoder, widths=(4, 4, 4, 4, 4)), {"labels": 2}).double().train()
    planes = net(torch.rand(1, 1, 33, 47, dtype=torch.float64))["labels"]
    assert planes.shape == (1, 2, 33, 47)
    planes.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_the_front_end_exports_and_compiles():
    net = thin().float()
    image = torch.rand(1, 1, 41, 48)
    expected = net(image)["labels"]
    torch.testing.assert_close(torch.export.export(net, (image,)).module()(image)["labels"], expected)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(image)["labels"], expected)


@pytest.mark.slow
def test_the_whole_front_end_trains_on_one_small_image():
    net = DenseNetwork(DilatedVGGEncoder("vgg11"), ContextDecoder, {"labels": 4}).train()
    planes = net(torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8))["labels"]
    (planes * torch.rand_like(planes)).sum().backward()
    assert planes.shape == (1, 4, 33, 47)
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # the fourth and fifth block's maps are on the way to fc7, so all is trained
    assert silent == []


# ---------------------------------------------------------------------------------------------- the context module


@pytest.mark.parametrize(
    ("classes", "context", "dilations", "module", "total"),
    [
        (21, "basic", None, 28_392, None),
        (11, "basic", None, 7_832, 134_313_443),
        (11, "basic", KITTI, 6_732, 134_312_343),
        (19, "basic", CITYSCAPES, 29_792, 134_368_179),
        (21, "large", None, 6_803_139, 141_149_720),
        (11, "large", None, 1_867_129, None),
    ],
    ids=["basic", "CamVid", "KITTI", "Cityscapes", "VOC", "large of 11"],
)
def test_the_context_module_has_the_published_number_of_parameters(classes, context, dilations, module, total):
    net = front_end(classes, context=context, **({"dilations": dilations} if dilations else {}))
    assert sum(p.numel() for p in net.decoders["labels"].context.parameters()) == module
    assert total is None or sum(p.numel() for p in net.parameters()) == total


def test_the_basic_modules_kernels_have_64_weights_for_each_pair_of_classes():
    with torch.device("meta"):
        context = ContextDecoder(SPEC, 21).context
    assert sum(p.numel() for p in context.parameters() if p.dim() == 4) == 64 * 21**2 == 28_224


@pytest.mark.parametrize("dilations", [(1, 1, 2, 4, 8, 16, 1), KITTI, (1, 2)])
@pytest.mark.parametrize("large", [False, True], ids=["basic", "large"])
@pytest.mark.parametrize("pad_once", [False, True])
def test_the_module_starts_as_a_relu(dilations, large, pad_once):
    module = ContextModule(3, dilations, large, spread=0.0, pad_once=pad_once).double()
    # sums of a few dozen single-precision numbers are exact in double precision
    planes = torch.randn(2, 3, 20, 24).double()
    assert torch.equal(module(planes), planes.relu())


@pytest.mark.parametrize(("large", "widths"), [(False, [1] * 7), (True, [2, 2, 4, 8, 16, 32, 32])])
def test_layers_have_the_published_channels_dilations_and_spread(large, widths):
    module = ContextModule(8, (1, 1, 2, 4, 8, 16, 1), large)
    layers = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [8 * width for width in widths] + [8]
    assert [layer.dilation[0] for layer in layers] == [1, 1, 2, 4, 8, 16, 1, 1]
    assert [layer.kernel_size[0] for layer in layers] == [3] * 7 + [1]
    assert sum(isinstance(layer, nn.ReLU) for layer in module) == 7
    assert not isinstance(module[-1], nn.ReLU)
    for layer, width in zip(layers, [*widths, 1], strict=True):
        # nine tenths of the taps are no centres: what they hold is the random part alone
        if layer.kernel_size[0] == 3:
            assert layer.weight[:, :, 0].std().item() == pytest.approx(0.01 / width, rel=0.1)


@pytest.mark.parametrize(("layers", "cells"), [(1, 3), (2, 5), (3, 9), (4, 17), (5, 33), (6, 65), (7, 67)])
def test_the_view_grows_as_published(layers, cells):
    module = ContextModule(1, (1, 1, 2, 4, 8, 16, 1)[:layers], large=False)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1 / 9)
    planes = torch.rand(1, 1, 81, 81, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(planes)[0, 0, 40, 40], planes)
    rows = gradient[0, 0].any(1).nonzero().flatten()
    assert (rows[0].item(), rows[-1].item()) == (40 - cells // 2, 40 + cells // 2)


@pytest.mark.parametrize(("dilations", "pixels"), [((1, 1, 2, 4, 8, 16, 1), 908), (CITYSCAPES, 2444)])
def test_the_networks_see_as_many_pixels_as_published(dilations, pixels):
    """380 pixels of the front-end, and 8 more for each cell that the module sees beyond one."""
    module = ContextModule(1, dilations, large=False)
    reach = sum(layer.dilation[0] * (layer.kernel_size[0] - 1) for layer in module if isinstance(layer, nn.Conv2d))
    assert 380 + 8 * reach == pixels


def test_padding_once_differs_near_the_border_alone():
    each, once = (ContextModule(2, (1, 1, 2, 4, 8, 16, 1), False, pad_once=pad) for pad in (False, True))
    for layer in each:
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0, 0.2)
            nn.init.constant_(layer.bias, 0.1)
    once.load_state_dict(each.state_dict())
    planes = torch.rand(1, 2, 75, 75)
    inner = slice(33, -33)
    torch.testing.assert_close(each(planes)[..., inner, inner], once(planes)[..., inner, inner])
    assert not torch.allclose(each(planes), once(planes), rtol=1e-2)
    assert each(planes).shape == once(planes).shape == planes.shape


def test_a_stage_with_context_starts_as_the_relu_of_the_stage_before():
    before = ContextDecoder(SPEC, 4, context=None)
    nn.init.normal_(before.score.weight)
    for context in ("basic", "large"):
        after = ContextDecoder(SPEC, 4, context=context, spread=0.0)
        report = after.load_state_dict(before.state_dict(), strict=False)
        assert all(name.startswith("context.") for name in report.missing_keys)
        assert not report.unexpected_keys
        features = [torch.randn(2, 6, 9, 7)]
        torch.testing.assert_close(after(features), before(features).relu())


@pytest.mark.parametrize("context", [None, "basic", "large"])
@pytest.mark.parametrize("classes", [11, 19, 21])
def test_the_first_loss_is_that_of_guessing(context, classes):
    decoder = ContextDecoder(FeatureSpec((4096,), (8,)), classes, context=context)
    planes = decoder([torch.rand(2, 4096, 5, 6)])
    loss = F.cross_entropy(planes, torch.randint(0, classes, (2, 5, 6)))
    assert loss.item() == pytest.approx(math.log(classes), abs=0.01)


def test_it_reads_any_encoders_coarsest_map_and_drops_before_the_scores():
    decoder = ContextDecoder(FeatureSpec((3, 6), (4, 32)), 2, dropout=0.5).train()
    features = [torch.rand(1, 3, 16, 16), torch.rand(1, 6, 2, 2)]
    assert decoder(features).shape == (1, 2, 2, 2)
    assert not torch.equal(decoder.dropout(features[1]), decoder.dropout(features[1]))


def test_what_is_not_expected_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"context is 'huge'\. Expected one of: basic, large, null"):
        ContextDecoder(SPEC, 2, context="huge")
    for dilations in ((), (1, 0)):
        with pytest.raises(ConfigurationError, match=r"Give one number of at least 1 for each 3x3"):
            ContextDecoder(SPEC, 2, dilations=dilations)
    with pytest.raises(ConfigurationError, match=r"DilatedVGGEncoder: maps is 'fc'"):
        DilatedVGGEncoder(maps="fc")


def test_the_padded_vgg_of_stride_8_is_another_network():
    """It keeps the poolings and pads: it shares names and counts, not responses."""
    with torch.device("meta"):
        padded = VGGEncoder("vgg16", maps="pool", fully_connected=True, output_stride=8)
    ours = front_end().encoder
    assert padded.spec == ours.spec
    assert {key: value.shape for key, value in padded.state_dict().items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
