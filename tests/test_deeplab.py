"""The DeepLab family: published counts, sizes and operations, and agreement with definitions and with smp."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg11, vgg11_bn

from densepred.decoders.aspp import ASPPDecoder
from densepred.decoders.base import DecoderFactory
from densepred.decoders.deeplab import ASPP, DeepLabV3Decoder
from densepred.decoders.deeplab_plus import DeepLabV3PlusDecoder
from densepred.decoders.largefov import LargeFOVDecoder
from densepred.decoders.vgg_classifier import subsampled
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_deeplab import DeepLabVGGEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.features import FeatureSpec
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.recipe import recipe
from densepred.tasks.segmentation import Segmentation

SPEC = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(2, 4, 8, 16, 32))
DILATED = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(2, 4, 8, 8, 8))
PLAIN_VIT = FeatureSpec(channels=(8, 8, 8, 8), strides=(16, 16, 16, 16))
SMALL = {
    "LargeFOV": partial(LargeFOVDecoder, width=8),
    "LargeFOV 7x7": partial(LargeFOVDecoder, width=8, kernel_size=7, dilation=4),
    "ASPP": ASPPDecoder,
    "ASPP VGG": partial(ASPPDecoder, width=8),
    "v3": partial(DeepLabV3Decoder, width=8),
    "v3+": partial(DeepLabV3PlusDecoder, width=8, finest_width=4),
    "v3+ separable": partial(DeepLabV3PlusDecoder, width=8, finest_width=4, convolutions="separable", refine=True),
    "v3+ Xception": partial(DeepLabV3PlusDecoder, width=8, finest_width=4, convolutions="separable_normalised"),
}
every_decoder = pytest.mark.parametrize("name", SMALL)

vgg16 = partial(DeepLabVGGEncoder, "vgg16")
vgg16_v2 = partial(DeepLabVGGEncoder, "vgg16", average=False)
resnet101_v2 = partial(ResNetEncoder, "resnet101", output_stride=8, multi_grid=(1, 1, 1))


def maps(spec: FeatureSpec, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    return [
        torch.rand(batch, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]


def randomised(module: nn.Module) -> nn.Module:
    """Weights and batch norm statistics, none zero or neutral, that keep activations alive and of order one."""
    for tensor in module.state_dict().values():
        if tensor.dim() > 1:
            tensor.copy_((torch.rand_like(tensor) - 0.3) * 4 / tensor[0].numel())
        elif tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.3)
    return module


# ---------------------------------------------------------------------------------------------- counts


def parameters(encoder, decoder) -> int:
    with torch.device("meta"):
        network = DenseNetwork(encoder(), decoder, {"segmentation": 21})
    return sum(p.numel() for p in network.parameters())


def test_largefov_has_the_published_number_of_parameters():
    assert parameters(vgg16, LargeFOVDecoder) == 20_505_429


def test_deeplab_7x7_has_the_published_number_of_parameters():
    assert parameters(vgg16, partial(LargeFOVDecoder, kernel_size=7, dilation=4, width=4096)) == 134_346_581


def test_deeplab_4x4_has_the_published_number_of_parameters():
    assert parameters(vgg16, partial(LargeFOVDecoder, kernel_size=4, dilation=4, width=4096)) == 65_140_565


def test_deeplab_v2_on_vgg_has_the_published_number_of_parameters():
    assert parameters(vgg16_v2, partial(ASPPDecoder, width=1024)) == 37_877_652


def test_deeplab_v2_on_resnet101_has_the_published_number_of_parameters():
    assert parameters(resnet101_v2, ASPPDecoder) == 44_048_532


@pytest.mark.parametrize(("name", "published"), [("resnet50", 39_048_533), ("resnet101", 58_040_661)])
def test_deeplab_v3_has_the_published_number_of_parameters(name, published):
    encoder = partial(ResNetEncoder, name, output_stride=16, multi_grid=(1, 2, 4))
    assert parameters(encoder, DeepLabV3Decoder) == published


@pytest.mark.parametrize(("name", "published"), [("resnet50", 40_352_181), ("resnet101", 59_344_309)])
def test_deeplab_v3_plus_has_the_published_number_of_parameters(name, published):
    encoder = partial(ResNetEncoder, name, output_stride=16, multi_grid=(1, 2, 4))
    assert parameters(encoder, DeepLabV3PlusDecoder) == published


def test_the_pyramid_alone_has_the_published_number_of_parameters():
    with torch.device("meta"):
        pyramid = ASPP(2048, 256, (6, 12, 18))
    assert sum(p.numel() for p in pyramid.parameters()) == 15_535_104


# ---------------------------------------------------------------------------------------------- sizes and operations


def sides(encoder, side: int) -> list[int]:
    with torch.device("meta"):
        return [feature.shape[-1] for feature in encoder()(torch.rand(1, 3, side, side))]


@pytest.mark.parametrize(("side", "expected"), [(321, [161, 81, 41, 41, 41]), (513, [257, 129, 65, 65, 65])])
def test_the_vgg_of_deeplab_has_the_published_sizes(side, expected):
    assert sides(vgg16, side) == expected


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [(16, [257, 129, 65, 33, 33]), (8, [257, 129, 65, 65, 65]), (32, [257, 129, 65, 33, 17])],
)
def test_the_resnet_of_deeplab_has_the_published_sizes(output_stride, expected):
    assert sides(partial(ResNetEncoder, "resnet50", output_stride=output_stride), 513) == expected


def stride_in_the_first_convolution(encoder: ResNetEncoder) -> ResNetEncoder:
    """The ResNet of 2015: the published figures count it; torchvision strides in the 3x3, for 1 % more operations."""
    for stage in (encoder.layer2, encoder.layer3, encoder.layer4):
        first = stage[0]
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    return encoder


def giga_macs(encoder, decoder, side: int) -> float:
    """Of an image that is not padded, as published."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        body = encoder()
        if isinstance(body, ResNetEncoder):
            stride_in_the_first_convolution(body)
        decoder(body.spec, 21)(body(torch.rand(1, 3, side, side)))
    return round(counter.get_total_flops() / 2e9, 1)


@pytest.mark.parametrize(("side", "published"), [(321, 50.9), (513, 128.6)])
def test_largefov_takes_the_published_operations(side, published):
    assert giga_macs(vgg16, LargeFOVDecoder, side) == published


@pytest.mark.parametrize(("side", "published"), [(321, 75.1), (513, 188.9)])
def test_deeplab_v2_takes_the_published_operations(side, published):
    assert giga_macs(resnet101_v2, ASPPDecoder, side) == published


@pytest.mark.parametrize(
    ("decoder", "name", "output_stride", "published"),
    [
        (DeepLabV3Decoder, "resnet50", 16, 49.6),
        (DeepLabV3Decoder, "resnet101", 16, 70.2),
        (DeepLabV3Decoder, "resnet50", 8, 165.8),
        (DeepLabV3Decoder, "resnet101", 8, 245.8),
        (DeepLabV3PlusDecoder, "resnet50", 16, 71.4),
        (DeepLabV3PlusDecoder, "resnet101", 16, 92.0),
        (DeepLabV3PlusDecoder, "resnet50", 8, 187.5),
        (DeepLabV3PlusDecoder, "resnet101", 8, 267.5),
    ],
)
def test_deeplab_v3_and_v3_plus_take_the_published_operations_at_513(decoder, name, output_stride, published):
    encoder = partial(ResNetEncoder, name, output_stride=output_stride, multi_grid=(1, 2, 4))
    assert giga_macs(encoder, decoder, 513) == published


# ---------------------------------------------------------------------------------------------- receptive field


def one_channel(layer: nn.Module) -> nn.Module:
    """The same chain with one channel, positive weights and means for maxima, through which every path shows."""
    if isinstance(layer, nn.Conv2d):
        thin = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)
        nn.init.constant_(thin.weight, 1 / thin.weight.numel())
        return thin
    if isinstance(layer, nn.MaxPool2d):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    for name, child in layer.named_children():
        setattr(layer, name, one_channel(child))
    return layer


@pytest.mark.parametrize(("average", "published"), [(True, 435), (False, 419)])
def test_a_cell_of_largefov_sees_the_published_pixels(average, published):
    with torch.device("meta"):
        encoder = DeepLabVGGEncoder("vgg16", average=average)
        decoder = LargeFOVDecoder(encoder.spec, 1)
    chain = nn.Sequential(one_channel(encoder.features), one_channel(decoder.classifier)).double().eval()
    image = torch.rand(1, 1, 481, 481, dtype=torch.double, requires_grad=True)
    chain(image)[0, 0, 30, 30].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [published, published]


def test_fc6_spans_25_cells():
    decoder = LargeFOVDecoder(FeatureSpec((1,), (8,)), 1, width=1)
    feature = torch.rand(1, 1, 41, 41, requires_grad=True)
    decoder.classifier.fc6[0](feature)[0, 0, 20, 20].backward()
    rows = feature.grad[0, 0].sum(1).nonzero().flatten().tolist()
    assert rows == [8, 20, 32]


# ---------------------------------------------------------------------------------------------- the VGG trunk


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def deeplab_pooling(x: torch.Tensor, number: int) -> torch.Tensor:
    pooled = F.max_pool2d(x, 3, stride=2 if number <= 3 else 1, padding=1)
    # Caffe divides by the window's nine cells at the border too
    kernel = torch.full((x.shape[1], 1, 3, 3), 1 / 9)
    return F.conv2d(pooled, kernel, padding=1, groups=x.shape[1]) if number == 5 else pooled


@torch.no_grad()
@pytest.mark.parametrize("build", [vgg11, vgg11_bn])
def test_the_vgg_of_deeplab_is_the_releases_chain_on_torchvisions_weights(build, tmp_path):
    model = randomised(build(weights=None).features).eval()
    torch.save({f"features.{key}": value for key, value in model.state_dict().items()}, tmp_path / "vgg.pth")
    image = torch.rand(2, 3, 65, 89)
    x, after, before = normalised(image), [], []
    for layer in model:
        if isinstance(layer, nn.MaxPool2d):
            before.append(x)
            x = deeplab_pooling(x, len(before))
            after.append(x)
        elif isinstance(layer, nn.Conv2d) and len(before) == 4:
            x = F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
        else:
            x = layer(x)
    for kind, expected in (("pool", after), ("conv", before)):
        encoder = DeepLabVGGEncoder(build.__name__, tmp_path / "vgg.pth", maps=kind).eval()
        assert encoder.load_report.complete
        for ours, theirs in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    (tmp_path / "vgg.pth").unlink()


def test_without_the_average_the_fifth_pooling_is_the_last_map():
    encoder = DeepLabVGGEncoder("vgg11", average=False)
    assert [type(encoder.features[i]).__name__ for i in encoder.pools] == ["MaxPool2d"] * 5
    assert encoder.spec == DeepLabVGGEncoder("vgg11").spec


# ---------------------------------------------------------------------------------------------- LargeFOV and ASPP


def fc6_fc7_scores(state: dict[str, torch.Tensor], name: str, feature: torch.Tensor, dilation: int) -> torch.Tensor:
    fc6 = F.conv2d(
        feature, state[f"{name}.fc6.0.weight"], state[f"{name}.fc6.0.bias"], padding=dilation, dilation=dilation
    )
    fc7 = F.conv2d(fc6.relu(), state[f"{name}.fc7.0.weight"], state[f"{name}.fc7.0.bias"])
    return F.conv2d(fc7.relu(), state[f"{name}.score.weight"], state[f"{name}.score.bias"])


def test_largefov_is_fc6_fc7_and_scores():
    decoder = randomised(LargeFOVDecoder(DILATED, 3, width=8)).eval()
    feature = torch.rand(2, 8, 30, 41)
    expected = fc6_fc7_scores(decoder.state_dict(), "classifier", feature, 12)
    assert expected.std() > 1e-3
    torch.testing.assert_close(decoder([feature]), expected)


def test_the_vgg_branches_are_summed():
    decoder = randomised(ASPPDecoder(DILATED, 3, width=8)).eval()
    feature = torch.rand(2, 8, 30, 41)
    rates = enumerate((6, 12, 18, 24))
    expected = sum(fc6_fc7_scores(decoder.state_dict(), f"branches.{i}", feature, rate) for i, rate in rates)
    torch.testing.assert_close(decoder([feature]), expected)


def test_the_resnet_branches_are_summed():
    decoder = randomised(ASPPDecoder(DILATED, 3)).eval()
    feature, state = torch.rand(2, 8, 30, 41), decoder.state_dict()
    expected = sum(
        F.conv2d(feature, state[f"branches.{i}.weight"], state[f"branches.{i}.bias"], padding=rate, dilation=rate)
        for i, rate in enumerate((6, 12, 18, 24))
    )
    torch.testing.assert_close(decoder([feature]), expected)


@pytest.mark.parametrize(("stride", "expected"), [(8, (6, 12, 18, 24)), (16, (3, 6, 9, 12)), (32, (2, 3, 4, 6))])
def test_rates_span_the_same_pixels_at_every_stride(stride, expected):
    decoder = ASPPDecoder(FeatureSpec((4,), (stride,)), 2)
    assert tuple(branch.dilation[0] for branch in decoder.branches) == expected


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 12), (4, 4), (7, 4)])
def test_fc6_keeps_its_cells_in_place(kernel_size, dilation):
    decoder = LargeFOVDecoder(DILATED, 2, kernel_size, dilation, width=4).double()
    state = {key: torch.ones_like(value) for key, value in decoder.state_dict().items()}
    decoder.load_state_dict(state)
    impulse = torch.zeros(1, 8, 61, 61, dtype=torch.double)
    impulse[..., 30, 30] = 1
    planes = decoder.eval()([impulse])
    assert planes.shape == (1, 2, 61, 61)
    torch.testing.assert_close(planes.flip(-1, -2), planes)


def test_an_even_kernel_with_an_odd_dilation_is_refused():
    with pytest.raises(ConfigurationError, match="4 x 4 and dilation 1 on this encoder's map: no padding keeps"):
        LargeFOVDecoder(SPEC, 2, kernel_size=4, dilation=4)


@pytest.mark.parametrize("name", ["LargeFOV", "ASPP", "ASPP VGG", "v3", "v3+"])
def test_rates_below_one_or_none_are_refused(name):
    option, value = ("dilation", 0) if name == "LargeFOV" else ("rates", ())
    with pytest.raises(ConfigurationError, match="expected one or more numbers above 0"):
        SMALL[name](DILATED, 2, **{option: value})


def test_scores_start_from_a_gaussian_of_a_hundredth_and_the_first_loss_is_near_ln_21():
    decoder = ASPPDecoder(FeatureSpec((512,), (8,)), 21)
    weights = torch.cat([branch.weight.flatten() for branch in decoder.branches])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(branch.bias.any() for branch in decoder.branches)
    for factory in (LargeFOVDecoder, DeepLabV3Decoder, DeepLabV3PlusDecoder):
        spec = FeatureSpec((64, 512), (4, 8))
        decoder = factory(spec, 21).eval()
        score = decoder.classifier.score if factory is LargeFOVDecoder else decoder.score
        truncated = 0.01 if factory is LargeFOVDecoder else 0.00880  # of a Gaussian cut off at two deviations
        assert score.weight.std().item() == pytest.approx(truncated, rel=0.05)
        planes = decoder([torch.rand(1, 64, 16, 16), torch.rand(1, 512, 8, 8)])
        loss = F.cross_entropy(planes, torch.randint(21, (1, *planes.shape[-2:])))
        assert loss.item() == pytest.approx(math.log(21), abs=0.1)


# ---------------------------------------------------------------------------------------------- VGG's fc6 and fc7


@pytest.fixture
def vgg_file(tmp_path):
    """A classifier of VGG16's shapes whose numbers share their memory: all different along each axis, and small."""
    numbers = torch.rand(4096 + 3 * 25088 + 64)
    state = {
        "features.0.weight": torch.rand(64, 3, 3, 3),
        "classifier.0.weight": numbers.as_strided((4096, 25088), (1, 3)),
        "classifier.0.bias": torch.rand(4096),
        "classifier.3.weight": numbers.as_strided((4096, 4096), (3, 5)),
        "classifier.3.bias": torch.rand(4096),
        "classifier.6.bias": torch.rand(1000),
    }
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    yield path, state
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(("kernel_size", "taps"), [(3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, range(7)), (1, [3])])
def test_fc6_is_thinned_to_evenly_spaced_filters_and_taps(vgg_file, kernel_size, taps):
    weight = vgg_file[1]["classifier.0.weight"]
    kept = subsampled(weight, 64, kernel_size).numpy()
    expected = weight.numpy().reshape(4096, 512, 7, 7)[::64][:, :, list(taps)][..., list(taps)]
    np.testing.assert_array_equal(kept, expected)


def test_largefov_starts_from_vggs_classifier_and_reports_it(vgg_file):
    path, state = vgg_file
    decoder = LargeFOVDecoder(FeatureSpec((512,), (8,)), 21, width=1024, weights=path)
    own = decoder.state_dict()
    assert torch.equal(own["classifier.fc6.0.bias"], state["classifier.0.bias"][::4])
    assert torch.equal(own["classifier.fc7.0.weight"][..., 0, 0], state["classifier.3.weight"][::4, ::4])
    assert torch.equal(own["classifier.fc7.0.bias"], state["classifier.3.bias"][::4])
    kernels = state["classifier.0.weight"].view(4096, 512, 7, 7)
    assert torch.equal(own["classifier.fc6.0.weight"], kernels[::4, :, ::3, ::3])
    report = decoder.load_report
    assert set(report.loaded) == {key for key in own if "score" not in key}
    assert report.adapted["classifier.fc6.0.weight"] == "1024 of 4096 filters, 3 x 3 of 7 x 7 taps"
    assert report.unused == ("features.0.weight", "classifier.6.bias")
    assert str(path) in str(report)


def test_every_branch_of_deeplab_v2_starts_from_vggs_classifier_under_any_prefix(vgg_file, tmp_path):
    _, state = vgg_file
    torch.save({"state_dict": {f"network.encoder.{key}": value for key, value in state.items()}}, tmp_path / "x.ckpt")
    decoder = ASPPDecoder(FeatureSpec((512,), (8,)), 21, rates=(6, 12), width=32, weights=tmp_path / "x.ckpt")
    assert len(decoder.load_report.loaded) == 8
    for branch in decoder.branches:
        assert torch.equal(branch.fc6[0].bias, state["classifier.0.bias"][::128])


def test_full_size_fc6_and_fc7_are_vggs_own_at_the_centre_of_a_map_of_7_cells():
    """With all taps, on 7 x 7 cells, the centre's response is the linear classifier's."""
    linear = nn.Linear(512 * 49, 16)
    feature = torch.rand(1, 512, 7, 7)
    kernel = linear.weight.detach().repeat(256, 1)
    convolved = F.conv2d(feature, subsampled(kernel, 16, 7), padding=3)[0, :, 3, 3]
    # filter i is theirs of number 256 i, which repeats the linear layer's number 0
    torch.testing.assert_close(
        convolved, (linear(feature.flatten(1)) - linear.bias)[0, :1].expand(16), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (SPEC, {}, "coarsest map has 8 channels, VGG's 512. Take DeepLabVGGEncoder, or set weights to null"),
        (FeatureSpec((512,), (8,)), {"norm": "batch"}, "fc6 and fc7 are normalised.*Set norm to none"),
        (FeatureSpec((512,), (8,)), {"norm": "weight"}, "fc6 and fc7 are normalised.*Set norm to none"),
        (FeatureSpec((512,), (8,)), {"activation": "maxout"}, "maxout doubles the filters"),
        (FeatureSpec((512,), (8,)), {"kernel_size": 5}, "a kernel of 1, 2, 3, 4, 7"),
    ],
)
def test_weights_without_a_place_are_refused_before_they_are_read(spec, options, message):
    with pytest.raises(ConfigurationError, match=f"LargeFOVDecoder: weights cannot be used: .*{message}"):
        LargeFOVDecoder(spec, 3, width=8, weights="nowhere.pth", **options)


def test_a_file_without_vggs_classifier_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.rand(64, 3, 3, 3)}, tmp_path / "trunk.pth")
    with pytest.raises(
        WeightsError, match=r"trunk.pth has no classifier.0.weight of 102760448 finite numbers.*features.0"
    ):
        LargeFOVDecoder(FeatureSpec((512,), (8,)), 3, weights=tmp_path / "trunk.pth")
    with pytest.raises(ConfigurationError, match=r"Set width \(1024 in the paper\)"):
        ASPPDecoder(FeatureSpec((512,), (8,)), 3, weights=tmp_path / "trunk.pth")


def test_a_checkpoint_reloads_without_the_file_of_the_decoders_weights(vgg_file, tmp_path):
    path, _ = vgg_file
    decoder = partial(LargeFOVDecoder, width=8, weights=str(path))
    module = DensePredictor(DeepLabVGGEncoder("vgg11"), decoder, [Segmentation(3)])
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    checkpoint |= {"hparams_name": "kwargs", "pytorch-lightning_version": "2.6.0"}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    path.unlink()
    again = DensePredictor.load_from_checkpoint(tmp_path / "x.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict())
    (tmp_path / "x.ckpt").unlink()


# ---------------------------------------------------------------------------------------------- multi-grid


def dilations(encoder: ResNetEncoder) -> list[list[tuple[int, ...]]]:
    """Of the 3x3 convolutions of each block of the last two stages."""
    return [
        [
            tuple(m.dilation[0] for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
            for block in stage
        ]
        for stage in (encoder.layer3, encoder.layer4)
    ]


@pytest.mark.parametrize(
    ("output_stride", "grid", "third", "fourth"),
    [
        (16, (1, 2, 4), 1, (2, 4, 8)),
        (8, (1, 2, 4), 2, (4, 8, 16)),
        (8, (1, 1, 1), 2, (4, 4, 4)),
        (16, (1, 2, 1), 1, (2, 4, 2)),
    ],
)
def test_multi_grid_multiplies_the_rate_of_the_last_stage(output_stride, grid, third, fourth):
    for name, convolutions in (("resnet50", 1), ("resnet34", 2)):
        with torch.device("meta"):
            encoder = ResNetEncoder(name, output_stride=output_stride, multi_grid=grid)
        assert dilations(encoder) == [[(third,) * convolutions] * 6, [(rate,) * convolutions for rate in fourth]]


def test_multi_grid_changes_neither_the_tensors_nor_the_sizes():
    with torch.device("meta"):
        plain, grid = (ResNetEncoder("resnet50", output_stride=8, multi_grid=g) for g in (None, (1, 2, 4)))
        image = torch.rand(1, 3, 72, 104)
        assert [f.shape for f in plain(image)] == [f.shape for f in grid(image)]
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in grid.state_dict().items()}


def test_a_network_of_two_blocks_takes_two_numbers():
    with torch.device("meta"):
        assert dilations(ResNetEncoder("resnet18", output_stride=16, multi_grid=(1, 2)))[1] == [(2, 2), (4, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"multi_grid": (1, 2, 4)},
            "multiplies the dilation of the last stage, which has none at output_stride 32. Set",
        ),
        (
            {"multi_grid": (1, 2, 4), "output_stride": 8, "name": "resnet18"},
            r"has 2 blocks. Give 2 .* such as \(1, 2\)",
        ),
        ({"multi_grid": (1, 2), "output_stride": 8}, r"has 3 blocks. Give 3 numbers, 1 or more, such as \(1, 2, 4\)"),
        ({"multi_grid": (1, 0, 2), "output_stride": 8}, "1 or more"),
    ],
)
def test_a_multi_grid_that_cannot_be_is_refused(options, message):
    with torch.device("meta"), pytest.raises(ConfigurationError, match=message):
        ResNetEncoder(**{"name": "resnet50", **options})


def test_a_network_trained_at_stride_16_is_evaluated_at_8_with_the_same_weights():
    with torch.device("meta"):
        nets = [
            DenseNetwork(ResNetEncoder("resnet50", output_stride=s, multi_grid=(1, 2, 4)), DeepLabV3Decoder, {"x": 21})
            for s in (16, 8)
        ]
    rates = [[conv[0].dilation[0] for conv in list(net.decoders["x"].aspp.convs)[1:4]] for net in nets]
    assert rates == [[6, 12, 18], [12, 24, 36]]
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()


# ---------------------------------------------------------------------------------------------- v3+


def test_v3_plus_refines_beside_the_map_of_stride_4():
    decoder = randomised(DeepLabV3PlusDecoder(SPEC, 3, width=8, finest_width=4)).eval()
    features = maps(SPEC, 64, 96)
    planes = decoder(features)
    assert planes.shape == (1, 3, 16, 24)
    for i, feature in enumerate(features):
        changed = [*features[:i], feature + 1, *features[i + 1 :]]
        assert torch.equal(decoder(changed), planes) == (i not in (1, 4))
    # the definition, from its parts
    coarse = F.interpolate(decoder.aspp(features[4]), size=(16, 24), mode="bilinear", align_corners=False)
    joined = torch.cat([coarse, decoder.reduce(features[1])], dim=1)
    torch.testing.assert_close(decoder.score(decoder.fuse(joined)), planes)


@pytest.mark.parametrize(
    ("strides", "finest_stride", "expected"),
    [
        ((2, 4, 8, 16, 32), 4, 1),
        ((1, 2, 4, 8, 8), 4, 2),
        ((2, 4, 8, 8, 8), 8, 2),
        ((8, 16, 32), 4, 0),
        ((16, 16, 16, 16), 4, 0),
        ((4, 4, 8, 16), 4, 1),
        ((1, 2), 4, 0),
    ],
)
def test_v3_plus_finds_the_finer_map(strides, finest_stride, expected):
    spec = FeatureSpec((4,) * len(strides), strides)
    assert DeepLabV3PlusDecoder(spec, 2, width=8, finest_stride=finest_stride).finer == expected


def test_v3_plus_refuses_a_single_map_and_no_fusion():
    with pytest.raises(ConfigurationError, match=r"single map, of stride 8.*Use DeepLabV3Decoder"):
        DeepLabV3PlusDecoder(FeatureSpec((8,), (8,)), 2)
    with pytest.raises(ConfigurationError, match="fuse_layers is 0; expected 1 or more"):
        DeepLabV3PlusDecoder(SPEC, 2, fuse_layers=0)
    with pytest.raises(ConfigurationError, match=r"convolutions is 'depthwise'\. Expected one of: dense, separable"):
        DeepLabV3PlusDecoder(SPEC, 2, convolutions="depthwise")


def test_separable_convolutions_normalise_between_only_where_they_say_so():
    kinds = {}
    for kind in ("separable", "separable_normalised"):
        decoder = DeepLabV3PlusDecoder(SPEC, 3, width=8, convolutions=kind)
        kinds[kind] = [type(layer).__name__ for layer in decoder.fuse[0].modules() if not list(layer.children())]
        assert decoder.fuse[0][0].groups == 56  # 8 of the pyramid, 48 of the finer map
    assert kinds["separable"] == ["Conv2d", "Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds["separable_normalised"] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]


# ---------------------------------------------------------------------------------------------- smp


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("kind", ["v3", "v3+"])
def test_logits_are_those_of_segmentation_models_pytorch(kind, output_stride):
    options = {"encoder_weights": None, "encoder_output_stride": output_stride, "classes": 7}
    if kind == "v3":
        reference = smp.DeepLabV3("resnet34", **options)
        decoder = partial(DeepLabV3Decoder, rates=(12, 24, 36), refine=True, align_corners=True)
    else:
        reference = smp.DeepLabV3Plus("resnet34", **options)
        decoder = partial(DeepLabV3PlusDecoder, rates=(12, 24, 36), fuse_layers=1, convolutions="separable")
        decoder = partial(decoder, refine=True, align_corners=True)
    if output_stride == 8:
        decoder = partial(decoder, rates=(6, 12, 18))  # the same dilations, in cells
    for key, tensor in reference.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    encoder = ResNetEncoder("resnet34", output_stride=output_stride, multi_grid=(1, 1, 1))
    ours = DenseNetwork(encoder, decoder, {"labels": 7}).eval()
    for part, theirs in (
        (ours.encoder, reference.encoder.state_dict()),
        (ours.decoders, reference.decoder.state_dict() | reference.segmentation_head.state_dict()),
    ):
        own = {key: value for key, value in part.state_dict().items() if key not in ("mean", "std")}
        part.load_state_dict(dict(zip(own, theirs.values(), strict=True)), strict=False)
    image = torch.rand(2, 3, 96, 128)
    expected = reference.eval()(normalised(image))
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(image)["labels"], expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------- every decoder


@every_decoder
@pytest.mark.parametrize("spec", [SPEC, DILATED, PLAIN_VIT], ids=["plain", "dilated", "vit"])
def test_a_single_image_in_training_reaches_every_parameter(name, spec):
    decoder = randomised(SMALL[name](spec, 3)).train()
    features = maps(spec, 128, 96)
    planes = decoder(features)
    assert planes.shape[1] == 3
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [key for key, p in decoder.named_parameters() if not p.grad.any()] == []


@every_decoder
def test_dropout_acts_in_training_only(name):
    decoder = randomised(SMALL[name](DILATED, 3, dropout=0.5))
    features = maps(DILATED, 128, 128)
    decoder.eval()
    assert torch.equal(decoder(features), decoder(features))
    decoder.train()
    for module in decoder.modules():  # leaves dropout as the only source of difference
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(decoder(features), decoder(features))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("name", ["LargeFOV", "ASPP VGG", "v3", "v3+ separable", "v3+ Xception"])
def test_every_norm_trains_on_a_single_image(name, norm):
    activations = ["relu", "maxout", "gelu"] if norm in ("batch", "weight") else ["relu"]
    for activation in activations:
        decoder = SMALL[name](DILATED, 3, norm=norm, activation=activation).train()
        features = maps(DILATED, 64, 64)
        if norm in ("instance", "group"):  # the image's mean must still count
            assert decoder(features).isfinite().all()
        (decoder(features) * torch.rand(1, 3, 1, 1)).sum().backward()
        assert [key for key, p in decoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_image_pooling_still_tells_images_apart_where_a_norm_would_see_one_value(norm):
    pooling = ASPP(8, 8, (1,), norm=norm).convs[-1].eval()
    assert not torch.allclose(pooling(torch.rand(1, 8, 4, 4)), pooling(3 + torch.rand(1, 8, 4, 4)))


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("largefov.LargeFOVDecoder", {"kernel_size": 7, "dilation": 4, "width": 8}),
        ("aspp.ASPPDecoder", {"rates": [2, 4, 8, 12], "width": 8, "dropout": 0.1}),
        ("deeplab.DeepLabV3Decoder", {"rates": [2, 4], "width": 8, "norm": "group"}),
        ("deeplab_plus.DeepLabV3PlusDecoder", {"convolutions": "separable", "width": 8, "align_corners": True}),
    ],
)
def test_every_decoder_is_a_factory_in_a_config(path, options):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoder", type=DecoderFactory)
    config = {"class_path": f"densepred.decoders.{path}", "init_args": options}
    decoder = parser.instantiate(parser.parse_object({"decoder": config})).decoder(SPEC, 3)
    assert recipe(decoder)["class_path"] == config["class_path"]
    assert options.items() <= recipe(decoder)["init_args"].items()


# ---------------------------------------------------------------------------------------------- whole networks


ENCODERS = {
    "DeepLab VGG": partial(DeepLabVGGEncoder, "vgg11"),
    "DeepLab VGG conv": partial(DeepLabVGGEncoder, "vgg11", maps="conv"),
    "resnet18 grid": partial(ResNetEncoder, "resnet18", output_stride=16, multi_grid=(1, 2)),
    "vgg11 pool": partial(VGGEncoder, "vgg11", maps="pool"),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_odd_image_alone_in_training_comes_back_at_its_size(encoder):
    body = ENCODERS[encoder]()
    for decoder in SMALL.values():
        network = DenseNetwork(body, decoder, {"labels": 3}).train()
        planes = network(torch.rand(1, 3, 33, 47))["labels"]
        assert planes.shape == (1, 3, 33, 47)
        planes.square().sum().backward()
        assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        network.zero_grad()


@torch.no_grad()
@every_decoder
def test_memory_format_precision_and_copies_change_nothing_but_rounding(name):
    body = ENCODERS["resnet18 grid"]().eval()
    network = DenseNetwork(body, SMALL[name], {"labels": 3}).eval()
    image = torch.rand(1, 3, 48, 64)
    expected = network(image)["labels"]
    assert torch.equal(copy.deepcopy(network)(image)["labels"], expected)
    twin = DenseNetwork(copy.deepcopy(body), SMALL[name], {"labels": 3}).eval()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin(image)["labels"], expected)
    last = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))["labels"]
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(image)["labels"]
    torch.testing.assert_close(rough.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)


@pytest.mark.slow
@every_decoder
def test_an_exported_and_a_compiled_network_give_the_same_planes(name):
    network = DenseNetwork(ENCODERS["DeepLab VGG"](), SMALL[name], {"labels": 3}).eval()
    image = torch.rand(1, 3, 45, 64)
    with torch.no_grad():
        expected = network(image)["labels"]
        exported = torch.export.export(network, (image,)).module()
        torch.testing.assert_close(exported(image)["labels"], expected)
        compiled = torch.compile(network, backend="aot_eager")
        torch.testing.assert_close(compiled(image)["labels"], expected)
