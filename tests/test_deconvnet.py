"""DeconvNet and SegNet: published counts and sizes, unpooling by the encoder's switches, initialisation, weights."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.data.camvid import CAMVID_CLASSES
from densepred.decoders.deconvnet import DeconvNetDecoder, FullyConnectedBottleneck, TransposedConvNormAct
from densepred.decoders.segnet import SegNetBasicDecoder, SegNetDecoder
from densepred.decoders.unpooling import mirrored_channels, pool, unpool
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.segnet import SegNetBasicEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.segmentation import Segmentation

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
VGG16 = partial(VGGEncoder, "vgg16_bn", maps="conv")
SPEC = FeatureSpec((4, 6, 8), (1, 2, 4))
SMALL_DECONVNET = partial(DeconvNetDecoder, bottleneck=48)
DECODERS = {"DeconvNet": SMALL_DECONVNET, "SegNet": SegNetDecoder, "SegNet-Basic": SegNetBasicDecoder}
ENCODERS = {
    "VGG": partial(VGGEncoder, "vgg11_bn"),
    "VGG pool": partial(VGGEncoder, "vgg11", maps="pool"),
    "VGG OS8": partial(VGGEncoder, "vgg11", output_stride=8),
    "ResNet": ResNetEncoder,
    "SegNet-Basic": partial(SegNetBasicEncoder, width=8),
}

every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def maps(spec: FeatureSpec, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    """As ceil pooling leaves them: every side rounded up."""
    return [
        torch.rand(batch, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]


# ---------------------------------------------------------------------------------------------- counts and sizes


def parameters(encoder, decoder, classes: int) -> int:
    with torch.device("meta"):
        net = DenseNetwork(encoder(), decoder, {"labels": classes})
    return sum(p.numel() for p in net.parameters())


def test_deconvnet_has_the_published_number_of_parameters():
    assert parameters(VGG16, DeconvNetDecoder, 21) == 251_805_653


def test_deconvnets_convolutions_have_the_published_number_of_parameters():
    with torch.device("meta"):
        net = DenseNetwork(VGG16(), DeconvNetDecoder, {"labels": 21})
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(p.numel() for layer in convolutions for p in layer.parameters()) == 251_772_245


@pytest.mark.parametrize(("classes", "published"), [(11, 29_449_355), (21, 29_455_125)])
def test_segnet_has_the_published_number_of_parameters(classes, published):
    assert parameters(VGG16, SegNetDecoder, classes) == published


@pytest.mark.parametrize(("bias", "published"), [(True, 1_416_587), (False, 1_416_331)])
def test_segnet_basic_has_the_published_number_of_parameters(bias, published):
    assert parameters(SegNetBasicEncoder, partial(SegNetBasicDecoder, bias=bias), 11) == published


def gigamacs(encoder, decoder, height: int, width: int) -> float:
    """Multiply-accumulates of convolutions, on an image that is not padded first."""
    with torch.device("meta"):
        body = encoder()
        head = decoder(body.spec, 11 if height == 360 else 21)
        image = torch.rand(1, 3, height, width)
    for layer in body.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # Caffe's rule
    with FlopCounterMode(display=False) as counter:
        assert head(body(image)).shape[-2:] == (height, width)
    return counter.get_total_flops() / 2e9


def test_deconvnet_takes_the_published_number_of_operations():
    assert gigamacs(VGG16, DeconvNetDecoder, 224, 224) == pytest.approx(32.7, abs=0.05)


def test_segnet_takes_the_published_number_of_operations():
    assert gigamacs(VGG16, SegNetDecoder, 360, 480) == pytest.approx(106.7, abs=0.05)


def test_segnet_basic_takes_the_published_number_of_operations():
    assert gigamacs(SegNetBasicEncoder, SegNetBasicDecoder, 360, 480) == pytest.approx(59.2, abs=0.05)


def sizes_along(decoder, features) -> list[tuple[int, int]]:
    """The size of what is unpooled first, and of what each step convolves."""
    seen = []
    for part in (decoder.climb, *decoder.climb.steps):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    decoder(features)
    return seen


def test_segnet_passes_through_the_published_sizes_which_are_rounded_up():
    with torch.device("meta"):
        decoder = SegNetDecoder(VGG16().spec, 11)
        features = maps(decoder.spec, 360, 480)
    expected = [(12, 15), (23, 30), (45, 60), (90, 120), (180, 240), (360, 480)]
    assert sizes_along(decoder, features) == expected


def test_segnet_basics_encoder_rounds_its_sizes_up():
    with torch.device("meta"):
        features = SegNetBasicEncoder()(torch.rand(1, 3, 350, 470))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 350, 470), (64, 175, 235), (64, 88, 118), (64, 44, 59)]


def test_deconvnet_passes_through_the_published_sizes():
    with torch.device("meta"):
        decoder = DeconvNetDecoder(VGG16().spec, 21)
        features = maps(decoder.spec, 224, 224)
    middle = []
    for layer in (decoder.bottleneck.fc6, decoder.bottleneck.fc7, decoder.bottleneck.fc6_deconv):
        layer.register_forward_hook(lambda _, inputs, output: middle.append(tuple(output.shape[1:])))
    assert sizes_along(decoder, features) == [(side, side) for side in (7, 14, 28, 56, 112, 224)]
    assert middle == [(4096, 1, 1), (4096, 1, 1), (512, 7, 7)]


def test_the_decoders_channels_are_vgg16s_the_other_way_round():
    with torch.device("meta"):
        spec = VGG16().spec
        deconvnet, segnet = DeconvNetDecoder(spec, 21), SegNetDecoder(spec, 21)
    widths = [[512, 512, 512], [512, 512, 256], [256, 256, 128], [128, 64], [64, 64]]

    def outputs(decoder):
        return [[layer[0].bias.numel() for layer in step] for step in decoder.climb.steps]

    assert outputs(deconvnet) == widths
    assert outputs(segnet) == [*widths[:-1], [64]]
    assert (segnet.score.in_channels, segnet.score.kernel_size) == (64, (3, 3))
    assert (deconvnet.score.in_channels, deconvnet.score.kernel_size) == (64, (1, 1))


# ---------------------------------------------------------------------------------------------- unpooling


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 5)])
@pytest.mark.parametrize("factor", [2, 4])
def test_unpooling_what_was_pooled_gives_the_maxima_at_their_places_and_zero_elsewhere(size, factor):
    values = torch.rand(2, 3, *size)
    back = unpool(pool(values, factor), values, factor).numpy()
    expected = np.zeros_like(back)
    for b, c in np.ndindex(2, 3):
        for top in range(0, size[0], factor):
            for left in range(0, size[1], factor):
                window = values[b, c, top : top + factor, left : left + factor].numpy()
                y, x = np.unravel_index(window.argmax(), window.shape)
                expected[b, c, top + y, left + x] = window.max()
    np.testing.assert_array_equal(back, expected)


def test_unpooling_keeps_the_sum_and_pooling_again_gives_the_pooled_map_of_values_that_are_not_negative():
    values = torch.rand(2, 3, 7, 10)
    pooled = pool(values, 2)
    back = unpool(pooled, values, 2)
    torch.testing.assert_close(back.sum((2, 3)), pooled.sum((2, 3)))
    assert torch.equal(pool(back, 2), pooled)


def test_unpooling_is_that_of_torch():
    values, other = torch.randn(2, 3, 9, 6), torch.randn(2, 3, 5, 3)
    _, switches = nn.MaxPool2d(2, ceil_mode=True, return_indices=True)(values)
    expected = nn.MaxUnpool2d(2)(other, switches, output_size=values.shape)
    assert torch.equal(unpool(other, values, 2), expected)


def test_of_equal_maxima_the_first_counts():
    guide = torch.zeros(1, 1, 2, 4)
    assert unpool(torch.ones(1, 1, 1, 2), guide, 2).flatten().tolist() == [1, 0, 1, 0, 0, 0, 0, 0]


def test_the_gradient_flows_into_the_values_and_not_into_the_guide():
    guide, feature = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 2, 2, requires_grad=True)
    weights = torch.rand(1, 2, 4, 4)
    (unpool(feature, guide, 2) * weights).sum().backward()
    _, switches = F.max_pool2d(guide, 2, return_indices=True)
    assert torch.equal(feature.grad.flatten(2), weights.flatten(2).gather(2, switches.flatten(2)))
    assert guide.grad is None


@torch.no_grad()
def test_segnet_is_the_textbook_network_that_stores_its_switches():
    net = DenseNetwork(VGGEncoder("vgg11_bn"), SegNetDecoder, {"labels": 3}).eval()
    image = torch.rand(1, 3, 64, 96)
    x, switches, sizes = net.encoder.normalise(image), [], []
    for layer in net.encoder.features:
        if isinstance(layer, nn.MaxPool2d):
            sizes.append(x.shape)
            x, places = F.max_pool2d(x, 2, return_indices=True)
            switches.append(places)
        else:
            x = layer(x)
    if len(switches) == 4:  # the encoder left its last pooling out
        sizes.append(x.shape)
        x, places = F.max_pool2d(x, 2, return_indices=True)
        switches.append(places)
    decoder = net.decoders["labels"]
    for step in decoder.climb.steps:
        x = step(F.max_unpool2d(x, switches.pop(), 2, output_size=sizes.pop()))
    torch.testing.assert_close(net(image)["labels"], decoder.score(x))


@every_decoder
def test_finer_maps_say_where_and_not_how_much(decoder):
    head = decoder(SPEC, 3).eval()
    features = maps(SPEC, 32, 48)
    planes = head(features)
    louder = [features[0] * 3, features[1] * 2, features[2]]
    assert torch.equal(head(louder), planes)
    elsewhere = [features[0].flip(-1), *features[1:]]
    assert not torch.equal(head(elsewhere), planes)


# ---------------------------------------------------------------------------------------------- any encoder


@every_decoder
@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_odd_image_alone_in_training_comes_back_at_its_size_and_reaches_every_parameter(encoder, decoder):
    if encoder in ("VGG pool", "VGG OS8") and decoder is SegNetDecoder:
        decoder = partial(SegNetDecoder, depths=(1, 1, 1, 1, 2))
    net = DenseNetwork(ENCODERS[encoder](), decoder, {"labels": 3}).train()
    planes = net(torch.rand(1, 3, 33, 47))["labels"]
    assert planes.shape == (1, 3, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [key for key, p in net.named_parameters() if not p.grad.any()] == []


@every_decoder
@pytest.mark.parametrize(
    ("strides", "size"),
    [((2, 4, 8), (16, 24)), ((4, 8, 8), (8, 12)), ((8, 8, 8), (4, 6)), ((4, 16, 32), (8, 12)), ((1, 2, 4), (32, 48))],
)
def test_planes_have_the_finest_maps_stride_whatever_lies_between(decoder, strides, size):
    spec = FeatureSpec((4, 6, 8), strides)
    assert decoder(spec, 3)(maps(spec, 32, 48, batch=2)).shape == (2, 3, *size)


@every_decoder
def test_maps_that_halve_rounding_down_are_unpooled_too(decoder):
    features = [torch.rand(2, 4, 23, 31), torch.rand(2, 6, 11, 15), torch.rand(2, 8, 5, 7)]
    assert decoder(SPEC, 3)(features).shape == (2, 3, 23, 31)


@every_decoder
def test_a_single_map_is_enough(decoder):
    spec = FeatureSpec((8,), (1,))
    assert decoder(spec, 3)(maps(spec, 33, 40, batch=2)).shape == (2, 3, 33, 40)


def test_a_step_of_equal_maps_convolves_without_unpooling():
    spec = FeatureSpec((4, 6), (8, 8))
    decoder = SegNetDecoder(spec, 2).eval()
    fine, coarse = maps(spec, 64, 64)
    assert torch.equal(decoder([fine, coarse]), decoder([torch.rand_like(fine), coarse]))


@pytest.mark.parametrize("norm", ["group", "layer", "weight", "none"])
@pytest.mark.parametrize("activation", ["maxout", "gelu"])
@every_decoder
def test_norms_and_activations_are_options(decoder, norm, activation):
    head = decoder(SPEC, 3, norm=norm, activation=activation).train()
    planes = head(maps(SPEC, 40, 56))
    (planes * torch.rand_like(planes)).sum().backward()
    assert planes.shape == (1, 3, 40, 56)
    assert [key for key, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every_decoder
def test_dropout_acts_in_training_only(decoder):
    head, plain = decoder(SPEC, 3, dropout=0.5, norm="group"), decoder(SPEC, 3, norm="group")
    plain.load_state_dict(head.state_dict())
    features = maps(SPEC, 40, 56)
    assert torch.equal(head.eval()(features), plain(features))
    assert not torch.equal(head.train()(features), plain(features))


@pytest.mark.parametrize("size", [(40, 56), (33, 47)])
@every_decoder
def test_an_exported_network_gives_the_same_planes(decoder, size):
    net = DenseNetwork(SegNetBasicEncoder(width=8), decoder, {"labels": 3}).eval()
    image = torch.rand(1, 3, *size)
    exported = torch.export.export(net, (image,)).module()
    torch.testing.assert_close(exported(image)["labels"], net(image)["labels"])


# ---------------------------------------------------------------------------------------------- DeconvNet's own


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 7), (8, 11)])
def test_the_bottleneck_keeps_the_size_of_any_map(size):
    bottleneck = FullyConnectedBottleneck(6, 16, "batch", "relu", 0.0).train()
    planes = bottleneck(torch.rand(1, 6, *size))
    assert planes.shape == (1, 6, *size)
    assert planes.isfinite().all()


@torch.no_grad()
def test_the_bottleneck_is_two_linear_layers_and_their_mirror_on_seven_cells():
    bottleneck = FullyConnectedBottleneck(3, 16, "none", "relu", 0.0)
    feature = torch.rand(2, 3, 7, 7)
    fc6, fc7, mirror = bottleneck.fc6[0], bottleneck.fc7[0], bottleneck.fc6_deconv[0]
    hidden = F.relu(feature.flatten(1) @ fc6.weight.flatten(1).T + fc6.bias)
    hidden = F.relu(hidden @ fc7.weight.flatten(1).T + fc7.bias)
    expected = F.relu(torch.einsum("bi,iohw->bohw", hidden, mirror.weight) + mirror.bias[:, None, None])
    torch.testing.assert_close(bottleneck(feature), expected)


def test_a_transposed_convolution_of_stride_one_is_a_convolution_with_the_turned_kernel():
    layer = TransposedConvNormAct(3, 5, 3, norm="none", activation="none")
    feature = torch.rand(1, 3, 6, 7)
    expected = F.conv2d(feature, layer[0].weight.flip(2, 3).transpose(0, 1), layer[0].bias, padding=1)
    torch.testing.assert_close(layer(feature), expected)


def test_weight_normalisation_of_a_transposed_convolution_has_a_length_for_each_output_channel():
    convolution = TransposedConvNormAct(3, 5, norm="weight")[0]
    lengths = convolution.weight.square().sum((0, 2, 3)).sqrt()
    convolution.parametrizations.weight.original0.data *= torch.tensor([1.0, 2, 3, 4, 5]).view(1, 5, 1, 1)
    longer = convolution.weight.square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(longer, lengths * torch.arange(1.0, 6))


def test_deconvnet_starts_as_in_the_release_and_its_first_loss_is_that_of_a_guess():
    decoder = DeconvNetDecoder(FeatureSpec((32, 64), (1, 2)), 21, bottleneck=64).train()
    for key, parameter in decoder.named_parameters():
        if parameter.dim() == 4 and parameter.numel() > 2000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), key
    norms = [layer for layer in decoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 3 + 2 + 2
    assert all((layer.weight == 1).all() and (layer.bias == 0.001).all() for layer in norms)
    planes = decoder(maps(decoder.spec, 28, 28, batch=2))
    loss = F.cross_entropy(planes, torch.randint(21, (2, 28, 28)))
    assert loss.item() == pytest.approx(math.log(21), rel=0.01)


def torchvision_file(path, channels: int, width: int) -> dict[str, torch.Tensor]:
    state = {
        "features.0.weight": torch.rand(64, 3, 3, 3),
        "classifier.0.weight": torch.rand(width, channels * 49),
        "classifier.0.bias": torch.rand(width),
        "classifier.3.weight": torch.rand(width, width),
        "classifier.3.bias": torch.rand(width),
        "classifier.6.weight": torch.rand(10, width),
    }
    torch.save(state, path)
    return state


def test_fc6_and_fc7_start_from_torchvisions_classifier(tmp_path):
    state = torchvision_file(tmp_path / "vgg.pth", 8, 16)
    decoder = DeconvNetDecoder(SPEC, 3, bottleneck=16, weights=tmp_path / "vgg.pth")
    assert decoder.load_report.complete
    assert len(decoder.load_report.loaded) == 4
    feature = torch.rand(2, 8, 7, 7)
    expected = feature.flatten(1) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    torch.testing.assert_close(decoder.bottleneck.fc6[0](feature).flatten(1), expected)
    assert torch.equal(decoder.bottleneck.fc7[0].weight[..., 0, 0], state["classifier.3.weight"])


def test_fully_connected_weights_of_another_width_are_refused(tmp_path):
    torchvision_file(tmp_path / "vgg.pth", 8, 16)
    with pytest.raises(WeightsError, match=r"no tensor of .* fits DeconvNetDecoder \(fc6, fc7\)"):
        DeconvNetDecoder(SPEC, 3, bottleneck=12, weights=tmp_path / "vgg.pth")


def test_reloading_never_asks_for_a_decoders_weights_again(tmp_path):
    file = tmp_path / "vgg.pth"
    torchvision_file(file, 8, 16)
    decoder = partial(DeconvNetDecoder, bottleneck=16, weights=str(file))
    module = DensePredictor(SegNetBasicEncoder(width=8), decoder, [Segmentation(3)], auxiliary=decoder)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    file.unlink()
    image = torch.rand(1, 3, 40, 40)
    again = DensePredictor.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu").eval()
    assert torch.equal(again.network(image)["segmentation"], module.eval().network(image)["segmentation"])


# ---------------------------------------------------------------------------------------------- SegNet's own


def test_segnet_starts_by_he_et_als_rule():
    for decoder in (SegNetDecoder(FeatureSpec((32, 64), (1, 2)), 21), SegNetBasicDecoder(FeatureSpec((32,), (1,)), 21)):
        for layer in decoder.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
                assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)


def test_segnet_basic_normalises_colours_of_0_to_255_by_their_local_response():
    encoder = SegNetBasicEncoder(width=8)
    seen = []
    encoder.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    encoder(image)
    encoder(image / 255)
    x = image.double().numpy()
    expected = x / (1 + 1e-4 / 5 * (x**2).sum(1, keepdims=True)) ** 0.75
    for given in seen:
        np.testing.assert_allclose(given.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_segnet_basics_decoder_has_no_nonlinearity():
    decoder = SegNetBasicDecoder(SPEC, 2).train()
    outputs = []
    for step in decoder.climb.steps:
        step.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    decoder(maps(SPEC, 32, 32, batch=2))
    # a ReLU would leave no negative value
    assert all((output < 0).float().mean() > 0.2 for output in outputs)


@pytest.mark.parametrize("name", ["camvid_segnet_vgg16", "camvid_segnet_basic"])
def test_the_experiments_have_the_tutorials_class_weights_in_the_order_of_the_classes(name):
    config = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    weights = config["model"]["init_args"]["tasks"][0]["init_args"]["class_weights"]
    assert dict(zip(CAMVID_CLASSES, weights, strict=True)) == {
        "sky": 0.2595,
        "building": 0.1826,
        "pole": 4.5640,
        "road": 0.1417,
        "pavement": 0.9051,
        "tree": 0.3826,
        "sign": 9.6446,
        "fence": 1.8418,
        "car": 0.6823,
        "pedestrian": 6.2478,
        "bicyclist": 7.3614,
    }


# ---------------------------------------------------------------------------------------------- initialisation, errors


@pytest.mark.parametrize("layer", [nn.Conv2d(32, 64, 3), nn.ConvTranspose2d(64, 32, 3)])
def test_a_rule_reaches_the_weights_under_weight_normalisation(layer):
    initialise(torch.nn.utils.parametrizations.weight_norm(layer), "gaussian")
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_strides_that_do_not_divide_are_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"SegNetDecoder: .* the encoder's are \(2, 3\)\. Use UNetDecoder"):
        SegNetDecoder(FeatureSpec((8, 8), (2, 3)), 3)


@pytest.mark.parametrize("depths", [(1, 1), (3, 3, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize("decoder", [SMALL_DECONVNET, SegNetDecoder])
def test_depths_that_do_not_fit_the_maps_are_refused(decoder, depths):
    with pytest.raises(ConfigurationError, match="expected 3 numbers of at least 1, one for each"):
        decoder(SPEC, 3, depths=depths)


def test_depths_of_one_keep_only_the_convolutions_that_narrow():
    assert mirrored_channels("SegNetDecoder", FeatureSpec((64, 256, 512), (2, 4, 8)), (1, 1, 1)) == [
        [512, 256],
        [256, 64],
        [64, 64],
    ]


def test_a_bottleneck_that_cannot_work_is_refused():
    with pytest.raises(ConfigurationError, match="bottleneck is 0; expected 1 channel or more"):
        DeconvNetDecoder(SPEC, 3, bottleneck=0)
    for norm, channels in (("instance", 48), ("group", 16)):
        with pytest.raises(
            ConfigurationError, match=f"norm '{norm}' with a bottleneck of {channels} .* Use batch, layer"
        ):
            DeconvNetDecoder(SPEC, 3, bottleneck=channels, norm=norm)


def test_a_segnet_basic_without_channels_is_refused():
    with pytest.raises(ConfigurationError, match="width is 0; expected 1 or more"):
        SegNetBasicEncoder(width=0)
