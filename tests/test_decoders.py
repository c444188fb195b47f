"""Decoders on maps alone: sizes, gradients, alignment with the image, and agreement with published definitions."""

import copy

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from densepred.decoders.base import DecoderFactory
from densepred.decoders.bilinear import BilinearTransposedConv, bilinear_kernel
from densepred.decoders.deeplab import BatchNormOfFew, DeepLabV3Decoder, TorchvisionDeepLabV3Decoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.transposed import TransposedConvDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.recipe import recipe

SPEC = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(2, 4, 8, 16, 32))
DILATED = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(2, 4, 8, 8, 8))
FULL = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(1, 2, 4, 8, 16))

# factory, and the stride of its planes on SPEC, DILATED and FULL
DECODERS = {
    "fcn8": (FCNDecoder, (8, 8, 8)),
    "fcn16": (lambda spec, n: FCNDecoder(spec, n, finest_stride=16), (16, 8, 16)),
    "fcn32": (lambda spec, n: FCNDecoder(spec, n, finest_stride=32), (32, 8, 16)),
    "fcn8 learned": (lambda spec, n: FCNDecoder(spec, n, upsampling="learned"), (8, 8, 8)),
    "fcn torchvision": (TorchvisionFCNDecoder, (32, 8, 16)),
    "transposed": (lambda spec, n: TransposedConvDecoder(spec, n, widths=(8, 6)), (8, 2, 4)),
    "unet bilinear": (lambda spec, n: UNetDecoder(spec, n, widths=(8, 6, 6, 4)), (2, 2, 1)),
    "unet nearest": (lambda spec, n: UNetDecoder(spec, n, widths=(8, 6, 6, 4), upsampling="nearest"), (2, 2, 1)),
    "unet transposed": (lambda spec, n: UNetDecoder(spec, n, widths=(8, 6, 6, 4), upsampling="transposed"), (2, 2, 1)),
    "deeplab": (lambda spec, n: DeepLabV3Decoder(spec, n, width=8), (32, 8, 16)),
    "deeplab refined": (lambda spec, n: DeepLabV3Decoder(spec, n, width=8, refine=True), (32, 8, 16)),
    "pointwise": (PointwiseDecoder, (2, 2, 1)),
}
SPECS = {"plain": (SPEC, 0), "dilated": (DILATED, 1), "stride one": (FULL, 2)}

every_decoder = pytest.mark.parametrize("name", DECODERS)
every_spec = pytest.mark.parametrize("spec_name", SPECS)


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


# ---------------------------------------------------------------------------------------------- every decoder


@every_decoder
@every_spec
def test_planes_have_the_promised_stride_and_number(name, spec_name):
    spec, column = SPECS[spec_name]
    factory, strides = DECODERS[name]
    planes = factory(spec, 7)(maps(spec, 64, 96, batch=2))
    assert planes.shape == (2, 7, 64 // strides[column], 96 // strides[column])


@every_decoder
@every_spec
def test_a_single_image_in_training_reaches_every_parameter(name, spec_name):
    spec, _ = SPECS[spec_name]
    decoder = randomised(DECODERS[name][0](spec, 3)).train()
    features = maps(spec, 64, 64)
    weights = torch.rand_like(decoder(features).detach())
    (decoder(features) * weights).sum().backward()
    assert [key for key, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [key for key, p in decoder.named_parameters() if not p.grad.any()] == []


@every_decoder
@every_spec
def test_a_shift_of_the_maps_by_a_cell_shifts_the_planes_by_its_stride(name, spec_name):
    spec, column = SPECS[spec_name]
    factory, strides = DECODERS[name]
    decoder = randomised(factory(spec, 2)).double().eval()
    coarsest = spec.strides[-1]
    side = 64 * coarsest if "deeplab" in name and coarsest < 32 else 24 * coarsest
    features = [torch.zeros_like(f, dtype=torch.double) for f in maps(spec, side, side)]
    middle = side // coarsest // 2
    for feature, stride in zip(features, spec.strides, strict=True):
        n = coarsest // stride
        cells = slice(middle * n, (middle + 1) * n)
        feature[..., cells, cells] = torch.rand(1, feature.shape[1], n, n, dtype=torch.double)
    here = decoder(features)
    moved = decoder([f.roll(coarsest // s, dims=-1) for f, s in zip(features, spec.strides, strict=True)])
    step = coarsest // strides[column]
    margin = 6 * step  # zero padding shows at the border
    torch.testing.assert_close(moved[..., margin + step : -margin], here[..., margin : -margin - step])


def mirror_symmetric(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = (parameter.data + parameter.data.flip(-1)) / 2
    return module


@every_decoder
@every_spec
def test_mirrored_maps_give_mirrored_planes_when_the_kernels_are_symmetric(name, spec_name):
    """A constant offset between planes and image (corner-aligned resizing, a crop on one side) breaks it."""
    spec, _ = SPECS[spec_name]
    decoder = mirror_symmetric(randomised(DECODERS[name][0](spec, 2))).double().eval()
    features = [f.double() for f in maps(spec, 64, 96)]
    planes = decoder(features)
    assert planes.std() > 1e-3
    torch.testing.assert_close(decoder([f.flip(-1) for f in features]).flip(-1), planes)


@every_decoder
@every_spec
def test_state_dict_and_deepcopy_carry_everything(name, spec_name):
    spec, _ = SPECS[spec_name]
    factory = DECODERS[name][0]
    decoder, features = randomised(factory(spec, 3)).eval(), maps(spec, 64, 64)
    other = factory(spec, 3).eval()
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(features), decoder(features))
    assert torch.equal(copy.deepcopy(decoder)(features), decoder(features))


@pytest.mark.parametrize(
    "decoder",
    [
        FCNDecoder(SPEC, 3, dropout=0.5, hidden=8),
        TorchvisionFCNDecoder(SPEC, 3, dropout=0.5),
        TransposedConvDecoder(SPEC, 3, widths=(8,), dropout=0.5),
        UNetDecoder(SPEC, 3, dropout=0.5),
        DeepLabV3Decoder(SPEC, 3, width=8, dropout=0.5),
        TorchvisionDeepLabV3Decoder(SPEC, 3, dropout=0.5),
        PointwiseDecoder(SPEC, 3, dropout=0.5),
    ],
    ids=lambda decoder: type(decoder).__name__,
)
def test_dropout_acts_in_training_only(decoder):
    features = maps(SPEC, 128, 128)
    randomised(decoder).eval()
    assert torch.equal(decoder(features), decoder(features))
    decoder.train()
    for module in decoder.modules():  # leaves dropout as the only source of difference
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(decoder(features), decoder(features))


def test_a_decoder_remembers_how_it_was_built():
    decoder = UNetDecoder(SPEC, 3, widths=(8, 6, 6, 4), upsampling="nearest")
    written = recipe(decoder)
    assert written["class_path"] == "densepred.decoders.unet.UNetDecoder"
    assert written["init_args"]["widths"] == [8, 6, 6, 4]
    assert written["init_args"]["upsampling"] == "nearest"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn.FCNDecoder", {"finest_stride": 16, "skip_scales": [0.01, 0.0001], "hidden": 4}),
        ("fcn.TorchvisionFCNDecoder", {}),
        ("transposed.TransposedConvDecoder", {"widths": [8, 8]}),
        ("unet.UNetDecoder", {"widths": [8, 8, 8, 8], "upsampling": "nearest"}),
        ("deeplab.DeepLabV3Decoder", {"rates": [2, 4], "width": 8, "refine": True}),
        ("deeplab.TorchvisionDeepLabV3Decoder", {"dropout": 0.2}),
        ("pointwise.PointwiseDecoder", {"dropout": 0.1}),
    ],
)
def test_every_decoder_is_a_factory_in_a_config(name, options):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoder", type=DecoderFactory)
    config = {"class_path": f"densepred.decoders.{name}", "init_args": options}
    decoder = parser.instantiate(parser.parse_object({"decoder": config})).decoder(SPEC, 3)
    assert recipe(decoder)["class_path"] == config["class_path"]
    assert options.items() <= recipe(decoder)["init_args"].items()


# ---------------------------------------------------------------------------------------------- bilinear


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16, 32])
def test_the_bilinear_kernel_is_the_published_filler(factor):
    size = 2 * factor - factor % 2
    f = (size + 1) // 2
    centre = f - 1 if size % 2 else f - 0.5
    expected = [
        [(1 - abs(y - centre) / f) * (1 - abs(x - centre) / f) for x in range(size)] for y in range(size)
    ]  # Caffe's filler, written out
    torch.testing.assert_close(bilinear_kernel(factor), torch.tensor(expected))
    assert bilinear_kernel(factor).sum().item() == pytest.approx(factor**2, rel=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_learned_upsampling_starts_as_bilinear_interpolation_up_to_the_border(factor, size):
    planes = torch.rand(2, 3, *size)
    expected = F.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(BilinearTransposedConv(3, factor)(planes), expected)


# ---------------------------------------------------------------------------------------------- FCN


def test_the_first_loss_of_an_fcn_is_the_logarithm_of_the_classes():
    planes = FCNDecoder(SPEC, 21)(maps(SPEC, 64, 64))
    loss = F.cross_entropy(planes, torch.randint(21, (1, 8, 8)))
    assert loss.item() == pytest.approx(3.0445224, abs=1e-6)  # ln 21


def test_fcn_sums_the_bilinearly_upsampled_scores_of_its_maps():
    decoder = randomised(FCNDecoder(SPEC, 3)).eval()
    features = maps(SPEC, 64, 96)
    state = decoder.state_dict()

    def score(key, feature):
        weight = state[f"{key}.weight"][..., 0, 0]
        return torch.einsum("oc,bchw->bohw", weight, feature) + state[f"{key}.bias"][:, None, None]

    def double(planes):
        return F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=False)

    sixteen = double(score("score", features[4])) + score("skips.16.score", features[3])
    eight = double(sixteen) + score("skips.8.score", features[2])
    torch.testing.assert_close(decoder(features), eight)


def test_learned_upsampling_changes_nothing_at_first_and_learns_one_kernel_a_plane():
    fixed, learned = FCNDecoder(SPEC, 3), FCNDecoder(SPEC, 3, upsampling="learned")
    learned.load_state_dict(randomised(fixed).state_dict(), strict=False)
    features = maps(SPEC, 64, 96)
    torch.testing.assert_close(learned(features), fixed(features))
    extra = {key: p.shape for key, p in learned.named_parameters() if key not in dict(fixed.named_parameters())}
    assert extra == {"skips.16.upsample.weight": (3, 1, 4, 4), "skips.8.upsample.weight": (3, 1, 4, 4)}


def test_each_stage_of_an_fcn_starts_where_the_one_before_ended():
    features = maps(SPEC, 64, 96)
    coarse = randomised(FCNDecoder(SPEC, 3, finest_stride=32))
    middle = FCNDecoder(SPEC, 3, finest_stride=16)
    assert set(middle.load_state_dict(coarse.state_dict(), strict=False).missing_keys) == {
        "skips.16.score.weight",
        "skips.16.score.bias",
    }
    upsampled = F.interpolate(coarse(features), scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(middle(features), upsampled)
    fine = FCNDecoder(SPEC, 3, finest_stride=8)
    fine.load_state_dict(middle.state_dict(), strict=False)
    upsampled = F.interpolate(middle(features), scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(fine(features), upsampled)


def test_skip_scales_multiply_the_maps_of_stride_16_and_8():
    plain = randomised(FCNDecoder(SPEC, 3))
    at_once = FCNDecoder(SPEC, 3, skip_scales=(0.01, 0.0001))
    at_once.load_state_dict(plain.state_dict())
    features = maps(SPEC, 64, 64)
    scaled = [*features[:2], features[2] * 0.0001, features[3] * 0.01, features[4]]
    torch.testing.assert_close(at_once(features), plain(scaled))


def test_fcn_reads_the_deepest_map_of_a_stride():
    spec = FeatureSpec((3, 4, 5, 6), (8, 16, 16, 32))
    decoder = randomised(FCNDecoder(spec, 2))
    features = maps(spec, 64, 64)
    changed = [features[0], features[1] + 1, *features[2:]]
    assert torch.equal(decoder(changed), decoder(features))
    assert not torch.equal(decoder([*features[:2], features[2] + 1, features[3]]), decoder(features))


def test_fcn_names_the_strides_an_encoder_can_serve():
    with pytest.raises(ConfigurationError, match=r"finest_stride 8 needs a map of that stride.*Set .* \[32, 16\]"):
        FCNDecoder(FeatureSpec((8, 8), (16, 32)), 3)
    with pytest.raises(ConfigurationError, match="finest_stride is 4; expected 32, 16 or 8"):
        FCNDecoder(SPEC, 3, finest_stride=4)


def test_the_torchvision_fcn_decoder_is_torchvisions_head():
    head = randomised(FCNHead(8, 21)).eval()
    decoder = TorchvisionFCNDecoder(SPEC, 21).eval()
    decoder.load_state_dict(dict(zip(decoder.state_dict(), head.state_dict().values(), strict=True)))
    features = maps(SPEC, 96, 64)
    torch.testing.assert_close(decoder(features), head(features[-1]))


# ---------------------------------------------------------------------------------------------- U-Net


def test_unet_widths_beyond_the_skips_go_on_to_the_image():
    decoder = UNetDecoder(SPEC, 2, widths=(8, 6, 6, 4, 4))
    assert decoder(maps(SPEC, 64, 96)).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("widths", [(8, 8, 8), (8,) * 6, (8, 8, 8, 0)])
def test_unet_says_how_many_widths_fit(widths):
    with pytest.raises(
        ConfigurationError,
        match=r"Give 4 \(one for each skip\) to 5 \(up to the image's size\) widths, each at least 1",
    ):
        UNetDecoder(SPEC, 2, widths=widths)


def test_unet_refuses_a_single_map_and_an_unknown_upsampling():
    with pytest.raises(ConfigurationError, match="Use PointwiseDecoder"):
        UNetDecoder(FeatureSpec((8,), (1,)), 2)
    with pytest.raises(ConfigurationError, match="upsampling is 'cubic'; expected 'bilinear', 'nearest'"):
        UNetDecoder(SPEC, 2, upsampling="cubic")


def test_unet_uses_every_map():
    decoder = randomised(UNetDecoder(SPEC, 2)).eval()
    features = maps(SPEC, 64, 64)
    planes = decoder(features)
    for i in range(len(features)):
        changed = [f + 1 if i == j else f for j, f in enumerate(features)]
        assert not torch.allclose(decoder(changed), planes)


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest", "transposed"])
def test_unet_follows_the_size_of_its_skips_where_halving_rounded_down(upsampling):
    decoder = UNetDecoder(FeatureSpec((3, 4, 5), (1, 2, 4)), 2, upsampling=upsampling)
    planes = decoder([torch.rand(1, 3, 23, 15), torch.rand(1, 4, 11, 7), torch.rand(1, 5, 5, 3)])
    assert planes.shape == (1, 2, 23, 15)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_unet_equals_that_of_segmentation_models_pytorch(mode):
    smp = pytest.importorskip("segmentation_models_pytorch.decoders.unet.decoder")
    widths = (8, 7, 6, 5, 4)
    theirs = smp.UnetDecoder((1, *SPEC.channels), widths, interpolation_mode=mode)
    randomised(theirs).eval()
    ours = UNetDecoder(SPEC, 2, widths=widths, upsampling=mode).eval()
    ours.steps.load_state_dict(dict(zip(ours.steps.state_dict(), theirs.state_dict().values(), strict=True)))
    ours.score = nn.Identity()
    features = maps(SPEC, 64, 96)
    torch.testing.assert_close(ours(features), theirs([torch.empty(1, 1, 64, 96), *features]))


# ---------------------------------------------------------------------------------------------- transposed convolution


def test_more_steps_than_the_encoder_strides_are_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"coarsest map has stride 8\. Give at most 3 widths"):
        TransposedConvDecoder(DILATED, out_channels=3, widths=(8, 8, 8, 8))


def test_transposed_steps_build_no_checkerboard_in():
    """With equal weights every output cell of a constant map is equal, the border apart."""
    decoder = TransposedConvDecoder(FeatureSpec((4,), (8,)), 1, widths=(4, 4)).eval()
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, 0.1)
    inner = decoder([torch.ones(1, 4, 8, 8)])[..., 8:-8, 8:-8]
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner))


# ---------------------------------------------------------------------------------------------- DeepLab


@pytest.mark.parametrize(
    ("stride", "dilations"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])], ids=["OS8", "OS16", "OS32"]
)
def test_aspp_rates_span_the_same_pixels_at_every_stride(stride, dilations):
    decoder = DeepLabV3Decoder(FeatureSpec((4,), (stride,)), 2, width=4)
    convs = [m for m in decoder.aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [conv.dilation[0] for conv in convs] == dilations


def test_aspp_has_the_published_number_of_parameters():
    with torch.device("meta"):
        aspp = DeepLabV3Decoder(FeatureSpec((2048,), (16,)), 21).aspp
    assert sum(p.numel() for p in aspp.parameters()) == 15_535_104


def test_the_torchvision_deeplab_decoder_is_torchvisions_head():
    with torch.no_grad():
        head = randomised(DeepLabHead(8, 21)).eval()
        decoder = TorchvisionDeepLabV3Decoder(DILATED, 21).eval()
        decoder.load_state_dict(dict(zip(decoder.state_dict(), head.state_dict().values(), strict=True)))
        features = maps(DILATED, 48, 64)
        torch.testing.assert_close(decoder(features), head(features[-1]), rtol=1e-4, atol=1e-4)


def test_batch_norm_of_one_value_uses_running_statistics_and_of_more_the_batchs():
    ours, theirs = BatchNormOfFew(3), nn.BatchNorm2d(3)
    theirs.load_state_dict(randomised(ours).state_dict())
    one = torch.rand(1, 3, 1, 1)
    expected = copy.deepcopy(theirs).eval()(one)
    torch.testing.assert_close(ours.train()(one), expected)
    assert torch.equal(ours.running_mean, theirs.running_mean)
    two = torch.rand(2, 3, 1, 1)
    torch.testing.assert_close(ours(two), theirs(two))
    assert torch.equal(ours.running_mean, theirs.running_mean)


# ---------------------------------------------------------------------------------------------- pointwise


def test_pointwise_is_a_linear_map_of_the_finest_maps_channels():
    decoder, features = PointwiseDecoder(FULL, 5), maps(FULL, 33, 47)
    weight, bias = decoder.score.weight[..., 0, 0], decoder.score.bias
    expected = torch.einsum("oc,bchw->bohw", weight, features[0]) + bias[:, None, None]
    torch.testing.assert_close(decoder(features), expected)
