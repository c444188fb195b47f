"""FCN: the release's sizes, crops, counts and operations; upsampling; stages that start from one another."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.decoders.bilinear import BilinearTransposedConv, UnpaddedBilinear, upsampling_layer
from densepred.decoders.deeplab import DeepLabV3Decoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.encoders.loading import fit_tensors
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_fcn import FCNVGGEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork

RELEASED = FCNVGGEncoder
PADDED = partial(VGGEncoder, "vgg16", maps="pool", fully_connected=True)
WIDTH = 3


def decoder(stride: int, **options):
    return partial(FCNDecoder, finest_stride=stride, **options)


def on_meta(encoder, decoder_factory) -> DenseNetwork:
    with torch.device("meta"):
        return DenseNetwork(encoder(), decoder_factory, {"labels": 21}).eval()


def parameters(network: DenseNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def narrow(build, pooling: type[nn.Module] = nn.MaxPool2d, value: float | None = None):
    """An encoder with the layers of `build` and three channels in each, for tests of places and values."""
    with torch.device("meta"):
        encoder = build()
    for layers in (encoder.features, encoder.classifier):
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
                layers[i] = nn.Conv2d(3 if layer is encoder.features[0] else WIDTH, WIDTH, *options)
                if value is None:
                    nn.init.kaiming_uniform_(layers[i].weight)
                else:
                    nn.init.constant_(layers[i].weight, value)
                nn.init.zeros_(layers[i].bias)
            elif isinstance(layer, nn.MaxPool2d):
                layers[i] = pooling(2, 2, ceil_mode=layer.ceil_mode)
    encoder.mean, encoder.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    encoder.spec = encoder.spec._replace(channels=(WIDTH,) * len(encoder.spec.channels))
    return encoder


def scored(network: DenseNetwork) -> DenseNetwork:
    """Scores that are not zero."""
    for name, parameter in network.named_parameters():
        if "score" in name:
            nn.init.normal_(parameter)
    return network


# ---------------------------------------------------------------------------------------------- the release

# without deconvolutions, their weights, and the whole with Caffe's, a kernel for each pair of planes
COUNTS = [
    (32, 134_346_581, 86_016, 136_152_917),
    (16, 134_357_354, 21_840, 134_815_994),
    (8, 134_362_751, 6_048, 134_489_759),
]


@pytest.mark.parametrize(("stride", "published", "deconvolutions", "in_caffe"), COUNTS)
def test_the_released_network_has_the_published_number_of_parameters(stride, published, deconvolutions, in_caffe):
    assert parameters(on_meta(RELEASED, decoder(stride))) == published


@pytest.mark.parametrize(("stride", "published", "deconvolutions", "in_caffe"), COUNTS)
@pytest.mark.parametrize("encoder", [RELEASED, PADDED], ids=["margin", "padded"])
def test_deconvolutions_have_the_published_number_of_weights(encoder, stride, published, deconvolutions, in_caffe):
    network = on_meta(encoder, decoder(stride, upsampling="learned", upsample_to_image=True))
    assert parameters(network) == published + deconvolutions
    assert parameters(network) + 20 * deconvolutions == in_caffe


def sizes_seen(stride: int, side: int) -> tuple[list[int], list[int]]:
    """Heights after conv1_1, the poolings and fc7, and after each deconvolution."""
    network = on_meta(RELEASED, decoder(stride))
    encoder, heads = network.encoder, network.decoders["labels"]
    upsamplings = [*(skip.upsample for skip in heads.skips.values()), *heads.to_image.values()]
    watched = [encoder.features[0], *(encoder.features[i] for i in encoder.pools), encoder.classifier, *upsamplings]
    heights: list[int] = []
    for layer in watched:
        layer.register_forward_hook(lambda *call: heights.append(call[-1].shape[-2]))
    planes = network.planes(torch.zeros(1, 3, side, side, device="meta"))["labels"]
    assert planes.shape == (1, 21, side, side)
    return heights[:7], heights[7:]


@pytest.mark.parametrize(
    ("side", "encoder", "heads"),
    [
        (500, [698, 349, 175, 88, 44, 22, 16], {32: [544], 16: [34, 560], 8: [34, 70, 568]}),
        (224, [422, 211, 106, 53, 27, 14, 8], {32: [288], 16: [18, 304], 8: [18, 38, 312]}),
    ],
)
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_size_is_the_releases(side, encoder, heads, stride):
    assert sizes_seen(stride, side) == (encoder, heads[stride])


@pytest.mark.parametrize(("stride", "skips", "image"), [(32, [], 19), (16, [5], 27), (8, [5, 9], 31)])
def test_the_published_crops_follow_from_the_places_of_the_maps(stride, skips, image):
    heads = on_meta(RELEASED, decoder(stride)).decoders["labels"]
    assert ([skip.crop for skip in heads.skips.values()], heads.crop) == (skips, image)


def test_the_release_takes_180_9_billion_multiplications_for_500_pixels():
    network = on_meta(RELEASED, decoder(8))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 500, 500, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 1) == 180.9


def seen_rows(encoder: nn.Module, layers: list[nn.Module], cells: list[int]) -> list[list[tuple[int, int]]]:
    """First and last row of the image on which a cell of each layer's output, and the next, depend.

    All weights are positive.
    """
    found: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: found.append(call[-1])) for layer in layers]
    image = torch.full((1, 3, 700, 250), 0.5, dtype=torch.double, requires_grad=True)
    encoder.double()(image)
    for hook in hooks:
        hook.remove()
    rows = []
    for seen, cell in zip(found, cells, strict=True):
        gradients = [
            torch.autograd.grad(seen[0, 0, i, seen.shape[-1] // 2], image, retain_graph=True)[0][0, 0].sum(1).nonzero()
            for i in (cell, cell + 1)
        ]
        rows.append([(int(g[0]), int(g[-1])) for g in gradients])
    return rows


def test_receptive_fields_and_strides_are_the_published_ones():
    encoder = narrow(RELEASED, nn.AvgPool2d, value=0.1).eval()
    layers = [encoder.features[0], *(encoder.features[i] for i in encoder.pools), encoder.classifier]
    rows = seen_rows(encoder, layers, [400, 200, 100, 50, 25, 12, 8])
    fields = [(last - first + 1, after - first) for (first, last), (after, _) in rows]
    assert fields == [(3, 1), (6, 2), (16, 4), (44, 8), (100, 16), (212, 32), (404, 32)]


@pytest.mark.parametrize(
    "build",
    [RELEASED, partial(VGGEncoder, "vgg16", maps="pool", fully_connected=True, padded=False)],
    ids=["margin", "no margin"],
)
def test_maps_begin_where_the_spec_says(build):
    encoder = narrow(build, nn.AvgPool2d, value=0.1).eval()
    layers, cells = [*(encoder.features[i] for i in encoder.pools[:4]), encoder.classifier], [200, 100, 50, 25, 8]
    rows = seen_rows(encoder, layers, cells)
    centres = [(first + last) / 2 for (first, last), _ in rows]
    assert centres == [
        origin + cell * stride
        for origin, cell, stride in zip(encoder.spec.origins, cells, encoder.spec.strides, strict=True)
    ]


def caffe_kernel(size: int) -> torch.Tensor:
    """Caffe's bilinear filler, written out."""
    f = (size + 1) // 2
    centre = f - 1 if size % 2 else f - 0.5
    line = torch.tensor([1 - abs(x - centre) / f for x in range(size)])
    return line[:, None] * line


def deconvolution(planes: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Caffe's: a C x C blob of kernels with the bilinear one on the diagonal."""
    channels = planes.shape[1]
    blob = torch.eye(channels)[..., None, None] * caffe_kernel(size)
    return F.conv_transpose2d(planes, blob, stride=stride)


def prototxt(stride: int, features: list[torch.Tensor], scores: list[nn.Conv2d], size: tuple[int, int]):
    """The released heads, with their numbers."""
    pool3, pool4, fc7 = features[-3:]

    def crop(planes, offset, height, width):
        return planes[..., offset : offset + height, offset : offset + width]

    planes = scores[0](fc7)
    if stride == 32:
        return crop(deconvolution(planes, 64, 32), 19, *size)
    planes = deconvolution(planes, 4, 2)
    planes = planes + crop(scores[1](pool4), 5, *planes.shape[-2:])
    if stride == 16:
        return crop(deconvolution(planes, 32, 16), 27, *size)
    planes = deconvolution(planes, 4, 2)
    planes = planes + crop(scores[2](pool3), 9, *planes.shape[-2:])
    return crop(deconvolution(planes, 16, 8), 31, *size)


@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_planes_are_those_of_the_released_layers(stride, upsampling):
    network = scored(DenseNetwork(narrow(RELEASED), decoder(stride, upsampling=upsampling), {"labels": 4})).eval()
    heads = network.decoders["labels"]
    image = torch.rand(2, 3, 150, 101)
    with torch.no_grad():
        features = network.encoder(image)
        scores = [heads.score, *(skip.score for skip in heads.skips.values())]
        expected = prototxt(stride, features, scores, (150, 101))
        planes = network(image)["labels"]
    assert expected.std() > 0.1
    torch.testing.assert_close(planes, expected, rtol=1e-4, atol=1e-4)


def test_the_first_loss_is_the_logarithm_of_the_classes_at_every_pixel():
    for stride in (32, 16, 8):
        network = DenseNetwork(narrow(RELEASED), decoder(stride), {"labels": 21})
        planes = network(torch.rand(1, 3, 375, 500))["labels"]
        labels = torch.randint(21, (1, 375, 500))
        assert F.cross_entropy(planes, labels).item() == pytest.approx(math.log(21), abs=1e-6)
        summed = F.cross_entropy(planes.double(), labels, reduction="sum").item()
        assert summed == pytest.approx(570_848, abs=0.5)


@pytest.mark.parametrize("size", [(33, 47), (5, 1), (64, 64), (97, 260)])
@pytest.mark.parametrize(
    "build",
    [decoder(32), decoder(8), decoder(16, upsampling="nearest"), decoder(8, hidden=4, norm="layer", activation="gelu")],
)
def test_images_of_any_size_come_back_at_their_size_and_reach_every_parameter(size, build):
    network = scored(DenseNetwork(narrow(RELEASED), build, {"labels": 5})).train()
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.abs_().add_(0.01)  # no unit is dead
    planes = network(torch.rand(1, 3, *size))["labels"]
    assert planes.shape == (1, 5, *size)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_released_network_is_exported_compiled_copied_and_run_in_other_formats():
    network = scored(DenseNetwork(narrow(RELEASED), decoder(8, upsampling="learned"), {"labels": 5})).eval()
    image = torch.rand(2, 3, 45, 70)
    with torch.no_grad():
        expected = network(image)["labels"]
        twin = DenseNetwork(narrow(RELEASED), decoder(8, upsampling="learned"), {"labels": 5}).eval()
        twin.load_state_dict(network.state_dict())
        exported = torch.export.export(network, (image,)).module()
        compiled = torch.compile(network, backend="aot_eager")
        for other in (twin, copy.deepcopy(network), exported, compiled, network.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(other(image)["labels"], expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(image.contiguous(memory_format=torch.channels_last))["labels"].float()
        assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()


def test_weights_of_the_padded_and_the_released_encoder_have_the_same_names():
    with torch.device("meta"):
        released, padded = RELEASED().state_dict(), PADDED().state_dict()
    assert {k: v.shape for k, v in released.items()} == {k: v.shape for k, v in padded.items()}


# ---------------------------------------------------------------------------------------------- margins that do not fit


def test_maps_that_begin_inside_the_image_are_refused_by_those_that_would_stretch_them():
    with torch.device("meta"):
        spec = VGGEncoder("vgg16", maps="pool", fully_connected=True, padded=False).spec
    assert spec.origins == (0.5, 1.5, 3.5, 7.5, 111.5)
    with pytest.raises(ConfigurationError, match="DeepLabV3Decoder needs maps that start at the image's corner"):
        DeepLabV3Decoder(spec, 21)
    with pytest.raises(ConfigurationError, match=r"begin 80 cells inside .* Set the encoder's `padded` to true"):
        FCNDecoder(spec, 21, finest_stride=32)


def test_a_crop_of_half_a_cell_is_refused():
    spec = FeatureSpec((4, 4), (16, 32), (-91.5, 12.0))
    with pytest.raises(ConfigurationError, match="a crop of whole cells cannot mend that"):
        FCNDecoder(spec, 21, finest_stride=16)


@pytest.mark.parametrize("auxiliary", [decoder(16), TorchvisionFCNDecoder])
def test_an_auxiliary_fcn_reads_the_margins_too(auxiliary):
    network = DenseNetwork(narrow(RELEASED), decoder(8), {"labels": 5}, auxiliary=auxiliary).train()
    planes = network.planes(torch.rand(1, 3, 40, 56))
    assert planes["labels/auxiliary"].shape == (1, 5, 40, 56)


# ---------------------------------------------------------------------------------------------- upsampling


@pytest.mark.parametrize(("factor", "corner"), [(2, 0.5625), (4, 0.3906), (8, 0.3164), (16, 0.2822), (32, 0.2659)])
def test_a_plain_deconvolution_fades_the_border_as_published(factor, corner):
    for layer in (UnpaddedBilinear(factor), BilinearTransposedConv(1, factor, padded=False)):
        planes = layer(torch.ones(1, 1, 3, 3))[0, 0]
        # where the planes begin: a padding of f / 2 would crop here
        assert planes[factor // 2, factor // 2].item() == pytest.approx(corner, abs=5e-5)
        inside = planes[factor : 3 * factor, factor : 3 * factor]
        torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16, 32])
def test_without_padding_fixed_and_learned_bilinear_are_the_deconvolution(factor):
    planes = torch.rand(2, 3, 4, 5)
    expected = deconvolution(planes, 2 * factor - factor % 2, factor)
    for upsampling in ("bilinear", "learned"):
        torch.testing.assert_close(upsampling_layer(upsampling, 3, factor, padded=False)(planes), expected)


@pytest.mark.parametrize("padded", [True, False])
def test_nearest_is_the_deconvolution_of_ones(padded):
    planes = torch.rand(2, 3, 4, 5)
    expected = F.conv_transpose2d(planes, torch.ones(3, 1, 4, 4), stride=4, groups=3)
    assert torch.equal(upsampling_layer("nearest", 3, 4, padded)(planes), expected)


SPEC = FeatureSpec(channels=(3, 4, 5, 6, 8), strides=(2, 4, 8, 16, 32))


def maps(height: int, width: int) -> list[torch.Tensor]:
    return [torch.rand(1, c, height // s, width // s) for c, s in zip(SPEC.channels, SPEC.strides, strict=True)]


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
def test_upsampled_to_the_image_planes_are_those_that_the_network_would_upsample(stride, upsampling):
    features = maps(64, 96)
    left, done = (
        FCNDecoder(SPEC, 3, finest_stride=stride, upsampling=upsampling, upsample_to_image=here)
        for here in (False, True)
    )
    for parameter in left.parameters():
        nn.init.normal_(parameter)
    done.load_state_dict(left.state_dict(), strict=False)
    expected = F.interpolate(left(features), size=(64, 96), mode="bilinear")
    torch.testing.assert_close(done(features), expected)


def test_nearest_upsampling_repeats_the_scores_of_the_coarser_map():
    heads = FCNDecoder(SPEC, 3, finest_stride=16, upsampling="nearest", upsample_to_image=True)
    nn.init.normal_(heads.score.weight)
    features = maps(64, 96)
    coarse = heads.score(features[-1])
    assert torch.equal(heads(features), coarse.repeat_interleave(32, -1).repeat_interleave(32, -2))


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(ConfigurationError, match=r"upsampling is 'cubic'\. Expected bilinear, learned or nearest"):
        FCNDecoder(SPEC, 3, upsampling="cubic")


# ---------------------------------------------------------------------------------------------- stages


def staged(encoder: nn.Module, **options) -> list[DenseNetwork]:
    """32s, 16s and 8s, each loaded from the one before, whose scores are random."""
    networks = [DenseNetwork(encoder, decoder(stride, **options), {"labels": 5}).eval() for stride in (32, 16, 8)]
    scored(networks[0])
    for before, after, stride in zip(networks[:2], networks[1:], (16, 8), strict=True):
        new = after.load_state_dict(before.state_dict(), strict=False)
        fresh = f"decoders.labels.skips.{stride}."
        assert all(key.startswith((fresh, "decoders.labels.to_image.")) for key in new.missing_keys)
        assert all(key.startswith("decoders.labels.to_image.") for key in new.unexpected_keys)
    return networks


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_the_first_planes_of_a_stage_are_those_of_the_one_before_upsampled_once(upsampling):
    networks = staged(narrow(PADDED), upsampling=upsampling)
    image = torch.rand(1, 3, 70, 100)
    with torch.no_grad():
        planes = [network.planes(image)["labels"] for network in networks]
    for before, after in pairwise(planes):
        assert after.std() > 0
        assert torch.equal(after, F.interpolate(before, scale_factor=2.0, mode=upsampling))


@pytest.mark.parametrize("build", [PADDED, RELEASED], ids=["padded", "margin"])
def test_with_nearest_upsampling_the_first_output_of_a_stage_is_that_of_the_one_before_bit_for_bit(build):
    networks = staged(narrow(build), upsampling="nearest", upsample_to_image=True)
    image = torch.rand(1, 3, 70, 100)
    with torch.no_grad():
        outputs = [network(image)["labels"] for network in networks]
    assert outputs[0].std() > 0
    assert torch.equal(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])


@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
@pytest.mark.parametrize("build", [PADDED, RELEASED], ids=["padded", "margin"])
def test_the_first_output_of_a_stage_is_that_of_the_one_before_within_what_the_kinks_differ(build, upsampling):
    """Twice bilinear rounds off what once bilinear does at cell centres: by a quarter of a step an axis and stage."""
    networks = staged(narrow(build), upsampling=upsampling, upsample_to_image=True)
    image = torch.rand(1, 3, 70, 100)
    with torch.no_grad():
        coarse = networks[0].decoders["labels"].score(networks[0].encoder(image)[-1])
        outputs = [network(image)["labels"] for network in networks]
    bordered = F.pad(coarse, (1, 1, 1, 1), mode="constant" if build is RELEASED else "replicate")
    step = max(bordered.diff(dim=-1).abs().max(), bordered.diff(dim=-2).abs().max()).item()
    for before, after in pairwise(outputs):
        assert 0 < (after - before).abs().max().item() <= 2 * step / 4


def test_a_stage_finds_the_encoder_in_the_checkpoint_of_the_one_before():
    before = DenseNetwork(narrow(RELEASED), decoder(32), {"labels": 5})
    checkpoint = {f"network.{key}": value for key, value in before.state_dict().items()}
    encoder = narrow(RELEASED)
    report = fit_tensors(encoder, checkpoint, "last.ckpt", "encoder", "features.0.weight", ("classifier.6.",))
    assert report.complete
    assert all(torch.equal(value, before.encoder.state_dict()[key]) for key, value in encoder.state_dict().items())
