"""FPN, PSPNet and UPerNet decoders: against torchvision, segmentation_models_pytorch and their definitions."""

import copy
import math
from functools import cache, partial
from typing import get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from densepred.blocks import Activation, Norm
from densepred.decoders.deeplab import BatchNormOfFew
from densepred.decoders.fcn import TorchvisionFCNDecoder
from densepred.decoders.fpn import FeaturePyramid, FPNDecoder
from densepred.decoders.pspnet import PSPNetDecoder, pool_into_bins
from densepred.decoders.upernet import UPerNetDecoder
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork

SPECS = {
    "plain": FeatureSpec((3, 4, 5, 6, 8), (2, 4, 8, 16, 32)),
    "dilated": FeatureSpec((3, 4, 5, 6, 8), (2, 4, 8, 8, 8)),
    "stride one": FeatureSpec((3, 4, 5, 6, 8), (1, 2, 4, 8, 16)),
    "transformer": FeatureSpec((6, 6, 6, 6), (16, 16, 16, 16)),
    "single": FeatureSpec((8,), (8,)),
    "all fine": FeatureSpec((4, 8), (1, 2)),
}
FPN = partial(FPNDecoder, width=12, branch_width=8)
PSP = partial(PSPNetDecoder, width=8)
UPER = partial(UPerNetDecoder, width=8)

# factory, and the stride of its planes on each spec
DECODERS = {
    "fpn": (FPN, (4, 4, 4, 16, 8, 2)),
    "fpn concat": (partial(FPN, merge="concat"), (4, 4, 4, 16, 8, 2)),
    "fpn from 8": (partial(FPN, finest_stride=8), (8, 8, 8, 16, 8, 2)),
    "fpn corners": (partial(FPN, align_corners=True, smooth=False), (1, 1, 1, 1, 1, 1)),
    "psp": (PSP, (32, 8, 16, 16, 8, 2)),
    "psp corners": (partial(PSP, align_corners=True, fuse_kernel=1, score_kernel=3), (1, 1, 1, 1, 1, 1)),
    "psp bins": (partial(PSP, bins=(1, 4)), (32, 8, 16, 16, 8, 2)),
    "upernet": (UPER, (4, 4, 4, 16, 8, 2)),
    "upernet norms": (partial(UPER, normalise_maps=True), (4, 4, 4, 16, 8, 2)),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_spec = pytest.mark.parametrize("spec_name", SPECS)


def maps(spec: FeatureSpec, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    return [
        torch.rand(batch, channels, height // stride, width // stride)
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """Weights and batch norm statistics, none zero or neutral, that keep activations alive and of order one."""
    for key, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * (0.2 if key.endswith(("bias", "mean")) else 0.5) + 0.5)
    return module


def silent(module: nn.Module) -> list[str]:
    return [key for key, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


# ---------------------------------------------------------------------------------------------- every decoder


@every_decoder
@every_spec
def test_planes_have_the_promised_stride_and_a_single_image_trains_what_is_read(name, spec_name):
    factory, strides = DECODERS[name]
    decoder, stride = randomised(factory(SPECS[spec_name], 7)).train(), strides[list(SPECS).index(spec_name)]
    planes = decoder(maps(SPECS[spec_name], 64, 96))
    assert planes.shape == (1, 7, 64 // stride, 96 // stride)
    (planes * torch.rand_like(planes)).sum().backward()
    assert silent(decoder) == []


@pytest.mark.parametrize("name", [name for name in DECODERS if "corners" not in name])
@every_spec
def test_mirrored_maps_give_mirrored_planes_when_the_kernels_are_symmetric(name, spec_name):
    """A constant offset between planes and image breaks it."""
    decoder = randomised(DECODERS[name][0](SPECS[spec_name], 2)).double().eval()
    for parameter in decoder.parameters():
        if parameter.dim() == 4:
            parameter.data = (parameter.data + parameter.data.flip(-1)) / 2
    features = [f.double() for f in maps(SPECS[spec_name], 64, 96)]
    planes = decoder(features)
    assert planes.std() > 1e-3
    torch.testing.assert_close(decoder([f.flip(-1) for f in features]).flip(-1), planes)


@pytest.mark.parametrize("size", [(33, 47), (61, 35)])
@every_decoder
def test_maps_of_odd_sizes_are_read(name, size):
    """Encoders that follow their own sizes round as they like."""
    spec = SPECS["plain"]
    features = [torch.rand(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(*spec[:2], strict=True)]
    planes = DECODERS[name][0](spec, 3)(features)
    assert planes.shape[:2] == (2, 3)


@every_decoder
def test_a_state_dict_and_a_copy_reproduce_the_planes(name):
    factory, features = DECODERS[name][0], maps(SPECS["plain"], 64, 64)
    decoder = randomised(factory(SPECS["plain"], 3)).eval()
    other = factory(SPECS["plain"], 3).eval()
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(features), decoder(features))
    assert torch.equal(copy.deepcopy(decoder)(features), decoder(features))


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("factory", [FPN, PSP, UPER], ids=["fpn", "psp", "upernet"])
def test_every_norm_reaches_the_convolutions_and_trains_on_a_single_image(factory, norm):
    kind = {"batch": nn.BatchNorm2d, "weight": nn.Identity, "none": nn.Identity}.get(norm, nn.GroupNorm)
    decoder = factory(SPECS["plain"], 3, norm=norm).train()
    others = {nn.BatchNorm2d, nn.GroupNorm} - {kind}
    assert any(isinstance(m, kind) for m in decoder.modules())
    assert not any(isinstance(m, tuple(others)) for m in decoder.modules())
    convolutions = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    assert any(hasattr(m, "parametrizations") for m in convolutions) == (norm == "weight")
    planes = decoder(maps(SPECS["plain"], 64, 64))
    (planes * torch.rand_like(planes)).sum().backward()
    assert silent(decoder) == []
    assert all(p.grad.any() for key, p in decoder.named_parameters() if key.startswith("score"))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("factory", [FPN, PSP, UPER], ids=["fpn", "psp", "upernet"])
def test_every_activation_reaches_the_convolutions(factory, activation):
    decoder = factory(SPECS["plain"], 3, activation=activation)
    kinds = {type(block[2]).__name__ for block in decoder.modules() if type(block).__name__ == "ConvNormAct"}
    names = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU",
             "maxout": "Maxout", "none": "Identity"}  # fmt: skip
    assert kinds == {names[activation]}
    assert decoder(maps(SPECS["plain"], 64, 64, batch=2)).isfinite().all()


@pytest.mark.parametrize("factory", [FPN, PSP, UPER], ids=["fpn", "psp", "upernet"])
def test_dropout_drops_whole_channels_in_training_only(factory):
    decoder, features = randomised(factory(SPECS["plain"], 3, dropout=0.5)).eval(), maps(SPECS["plain"], 64, 64, 2)
    assert torch.equal(decoder(features), decoder(features))
    seen = []
    decoder.score.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder.dropout.train()
    decoder(features)
    dropped = (seen[0] == 0).flatten(2).float().mean(dim=2)
    assert 0.1 < (dropped == 1).float().mean() < 0.9


@pytest.mark.parametrize("factory", [FPNDecoder, PSPNetDecoder, UPerNetDecoder])
def test_the_first_cross_entropy_is_that_of_knowing_nothing(factory):
    spec = FeatureSpec((64, 128, 256, 512), (4, 8, 16, 32))
    decoder = factory(spec, 21).train()
    features = [F.relu(torch.randn_like(f)) for f in maps(spec, 128, 128, batch=2)]
    planes = decoder(features)
    loss = F.cross_entropy(planes, torch.randint(21, (2, *planes.shape[-2:])))
    assert loss.item() == pytest.approx(math.log(21), abs=0.1)


# ---------------------------------------------------------------------------------------------- pyramid


def test_the_pyramid_is_torchvisions():
    channels = (3, 4, 5, 6)
    reference, ours = randomised(FeaturePyramidNetwork(list(channels), 7)), FeaturePyramid(channels, 7)
    state = {}
    for key, value in reference.state_dict().items():
        kind, level, _, name = key.split(".")
        state[f"{'laterals' if kind == 'inner_blocks' else 'smooth'}.{level}.{name}"] = value
    ours.load_state_dict(state)
    features = [torch.rand(2, c, side, side + 1) for c, side in zip(channels, (17, 9, 5, 3), strict=True)]
    expected = reference({str(i): feature for i, feature in enumerate(features)}).values()
    for pyramid, theirs in zip(ours(features), expected, strict=True):
        torch.testing.assert_close(pyramid, theirs)


def test_each_level_climbs_through_a_convolution_a_doubling():
    decoder = FPNDecoder(SPECS["plain"], 3, width=4, branch_width=4)
    assert [len(level) for level in decoder.levels] == [1, 1, 2, 3]
    dilated = FPNDecoder(SPECS["dilated"], 3, width=4, branch_width=4)
    assert [len(level) for level in dilated.levels] == [1, 1, 1, 1]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


RESNET50 = FeatureSpec((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32))


def test_semantic_fpn_on_resnet50_has_the_parameters_of_its_definition():
    pyramid = count(FeaturePyramidNetwork([256, 512, 1024, 2048], 256))
    branches = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 2 * 128  # 1 + 1 + 2 + 3 convolutions, each with its norm
    with torch.device("meta"):
        decoder = FPNDecoder(RESNET50, 54)
    assert count(decoder.pyramid) == pyramid
    assert count(decoder) == pyramid + branches + 128 * 54 + 54


def test_concatenated_levels_have_their_own_scores():
    decoder = FPNDecoder(SPECS["plain"], 5, width=4, branch_width=6, merge="concat")
    assert decoder.score.weight.shape == (5, 4 * 6, 1, 1)


# ---------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(60, 60), (9, 13), (2, 5), (1, 1)])
def test_pooling_into_bins_is_adaptive_average_pooling(size, bins):
    feature = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    ours, theirs = pool_into_bins(feature, bins), F.adaptive_avg_pool2d(feature, bins)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), feature), torch.autograd.grad((theirs * weights).sum(), feature)
    )


def test_half_precision_pools_large_maps_without_overflow():
    feature = torch.full((1, 2, 128, 128), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(pool_into_bins(feature, 1), torch.full((1, 2, 1, 1), 1000.0, dtype=torch.float16))


def test_psp_is_exported_once_for_maps_of_every_size():
    decoder = randomised(PSP(SPECS["single"], 3)).eval()
    sides = {2: torch.export.Dim("height", min=8, max=99), 3: torch.export.Dim("width", min=8, max=99)}
    exported = torch.export.export(decoder, ([torch.rand(1, 8, 9, 12)],), dynamic_shapes=([sides],)).module()
    for size in ((9, 12), (17, 31)):
        feature = torch.rand(1, 8, *size)
        torch.testing.assert_close(exported([feature]), decoder([feature]))


def test_the_globally_pooled_map_of_one_image_is_normalised_by_running_statistics():
    pooling = PSPNetDecoder(SPECS["single"], 3, width=8, norm="batch").pooling.train()
    layers = [branch[1] for branch in pooling.branches]
    assert all(isinstance(layer, BatchNormOfFew) for layer in layers)
    before = [layer.running_mean.clone() for layer in layers]
    pooling(maps(SPECS["single"], 64, 64)[0])
    # one value has no statistics of its own; four, nine and 36 have
    assert [torch.equal(layer.running_mean, mean) for layer, mean in zip(layers, before, strict=True)] == [True] + [
        False
    ] * 3


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_norm_that_would_see_a_single_value_is_left_out(norm):
    """Normalised, one value is zero: the global context would say nothing."""
    pooling = PSPNetDecoder(SPECS["single"], 3, width=8, norm=norm).pooling
    assert [isinstance(branch[1], nn.Identity) for branch in pooling.branches] == [True, False, False, False]
    one, two = torch.zeros(1, 8, 6, 6), torch.ones(1, 8, 6, 6)
    assert not torch.equal(pooling(one)[:, 8:10], pooling(two)[:, 8:10])


def test_every_plane_of_psp_sees_every_cell():
    decoder = randomised(PSP(SPECS["single"], 1, fuse_kernel=1, activation="gelu")).eval()
    feature = torch.rand(1, 8, 15, 15, requires_grad=True)
    decoder([feature])[0, 0, 0, 0].backward()
    assert (feature.grad.abs().amax(dim=1) > 0).all()


def test_pspnet_on_resnet50_has_the_parameters_of_its_definition():
    with torch.device("meta"):
        encoder = ResNetEncoder("resnet50", output_stride=8)
        net = DenseNetwork(encoder, PSPNetDecoder, {"segmentation": 21}, auxiliary=TorchvisionFCNDecoder)
    pooled = 4 * (2048 * 512 + 2 * 512)
    assert count(net.decoders) == pooled + 9 * 4096 * 512 + 2 * 512 + 512 * 21 + 21
    # the auxiliary classifier reads the fourth stage: 3x3 to 256, norm, scores
    assert count(net.auxiliary_decoders) == 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21


def test_upernet_on_resnet50_has_the_parameters_of_its_definition():
    with torch.device("meta"):
        decoder = UPerNetDecoder(RESNET50, 150)
    norms = 2 * 512 * (4 + 1 + 3 + 3 + 1)
    pooled = 4 * 2048 * 512 + 9 * (2048 + 4 * 512) * 512
    pyramid = (256 + 512 + 1024) * 512 + 3 * 9 * 512 * 512
    assert count(decoder) == norms + pooled + pyramid + 9 * 4 * 512 * 512 + 512 * 150 + 150


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda spec: FPNDecoder(spec, 3, finest_stride=0), "FPNDecoder: finest_stride is 0; expected 1 or more"),
        (lambda spec: FPNDecoder(spec, 3, merge="mean"), "merge is 'mean'; expected 'sum' or 'concat'"),
        (lambda spec: PSPNetDecoder(spec, 3, map_index=5), "map_index is 5; the encoder yields 5 maps.* Give -5 to 4"),
        (lambda spec: PSPNetDecoder(spec, 3, bins=(0, 2)), "bins are .*expected numbers above 0"),
        (lambda spec: PSPNetDecoder(spec, 3, fuse_kernel=2), "fuse_kernel is 2; expected an odd number"),
        (lambda spec: UPerNetDecoder(spec, 3, bins=()), "UPerNetDecoder: bins are .*expected numbers above 0"),
        (lambda spec: UPerNetDecoder(spec, 3, finest_stride=-4), "UPerNetDecoder: finest_stride is -4"),
    ],
)
def test_options_that_cannot_be_say_what_was_expected(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build(SPECS["plain"])


# ---------------------------------------------------------------------------------------------- peers

FPN_NAMES = {
    "decoder.p5": "pyramid.laterals.3",
    **{f"decoder.p{i + 2}.skip_conv": f"pyramid.laterals.{i}" for i in range(3)},
    **{f"decoder.seg_blocks.{3 - i}.block.{j}.block": f"levels.{i}.{j}" for i in range(4) for j in range(3)},
    "segmentation_head.0": "score",
}
PSP_NAMES = {
    **{f"decoder.psp.blocks.{i}.pool.1": f"pooling.branches.{i}" for i in range(4)},
    "decoder.conv": "fuse",
    "segmentation_head.0": "score",
}
UPER_NAMES = {
    **{f"decoder.psp.blocks.{i}.1": f"pooling.branches.{i}" for i in range(4)},
    "decoder.psp.out_conv": "context",
    **{f"decoder.feature_norms.{i}": f"norms.{i}" for i in range(4)},
    **{f"decoder.fpn_lateral_blocks.{2 - i}.conv_norm_relu": f"laterals.{i}" for i in range(3)},
    **{f"decoder.fpn_conv_blocks.{2 - i}": f"smooth.{i}" for i in range(3)},
    "decoder.fusion_block": "fuse",
    "segmentation_head.0": "score",
}
SMP_PSP = partial(PSPNetDecoder, map_index=2, fuse_kernel=1, score_kernel=3, global_norm="none", align_corners=True)
PEERS = {
    "fpn": (smp.FPN, partial(FPNDecoder, smooth=False, align_corners=True), FPN_NAMES),
    "fpn concat": (
        partial(smp.FPN, decoder_merge_policy="cat"),
        partial(FPNDecoder, smooth=False, align_corners=True, merge="concat"),
        FPN_NAMES,
    ),
    "pspnet": (smp.PSPNet, SMP_PSP, PSP_NAMES),
    "upernet": (smp.UPerNet, partial(UPerNetDecoder, width=256, normalise_maps=True), UPER_NAMES),
}


@cache
def twins(name: str) -> tuple[nn.Module, DenseNetwork]:
    """A network of the peer with random weights and batch norm statistics, and ours with the same."""
    builder, factory, names = PEERS[name]
    torch.manual_seed(0)
    reference = randomised(builder("resnet34", encoder_weights=None, classes=5))
    ours = DenseNetwork(ResNetEncoder("resnet34"), factory, {"labels": 5})
    state = {key: value for key, value in ours.state_dict().items() if key in ("encoder.mean", "encoder.std")}
    for key, value in reference.state_dict().items():
        place = max((prefix for prefix in names if key.startswith(prefix + ".")), key=len, default=None)
        state[f"decoders.labels.{names[place]}{key.removeprefix(place)}" if place else key] = value
    if name == "pspnet":  # the pooled maps come before the map itself there, after it in the paper
        weight = state["decoders.labels.fuse.0.weight"]
        state["decoders.labels.fuse.0.weight"] = weight.roll(weight.shape[1] // 2, dims=1)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert unexpected == []
    beyond = ("encoder.layer3", "encoder.layer4") if name == "pspnet" else ()  # which smp.PSPNet does not build
    assert [key for key in missing if not key.startswith(beyond)] == []
    return reference.eval(), ours.eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@pytest.mark.parametrize("name", ["fpn", "fpn concat", "pspnet"])
@torch.no_grad()
def test_outputs_are_those_of_segmentation_models_pytorch(name):
    reference, ours = twins(name)
    image = torch.rand(2, 3, 96, 128)
    expected = reference(normalised(image))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(image)["labels"], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_upernets_planes_are_those_of_segmentation_models_pytorch_and_only_their_enlargement_differs():
    reference, ours = twins("upernet")
    image = torch.rand(2, 3, 96, 128)
    expected = reference(normalised(image))
    planes = ours.planes(image)["labels"]
    assert planes.std() > 0.1
    enlarged = F.interpolate(planes, scale_factor=4, mode="bilinear", align_corners=True)
    torch.testing.assert_close(enlarged, expected, rtol=0, atol=1e-4)
    # cells stay in place here: the middle agrees, the border moves by up to 1.5 pixels
    outputs = ours(image)["labels"]
    assert not torch.allclose(outputs, expected, atol=1e-2 * expected.abs().max().item())
    torch.testing.assert_close(outputs, F.interpolate(planes, scale_factor=4, mode="bilinear"))
