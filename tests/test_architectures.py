"""One contract for every encoder x decoder pair, and torchvision's segmentation networks as a reference."""

import copy
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import segmentation as theirs

from densepred.decoders.deeplab import DeepLabV3Decoder, TorchvisionDeepLabV3Decoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.transposed import TransposedConvDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.network import DenseNetwork
from densepred.torchvision_weights import load_torchvision_segmentation

ENCODERS = {
    "resnet18": partial(ResNetEncoder, "resnet18"),
    "resnet18 OS16": partial(ResNetEncoder, "resnet18", output_stride=16),
    "resnet18 OS8": partial(ResNetEncoder, "resnet18", output_stride=8),
    "resnet50": partial(ResNetEncoder, "resnet50"),
    "vgg11 conv": partial(VGGEncoder, "vgg11"),
    "vgg11_bn pool": partial(VGGEncoder, "vgg11_bn", maps="pool"),
    "vgg11 conv OS8": partial(VGGEncoder, "vgg11", output_stride=8),
    "vgg11 pool OS16": partial(VGGEncoder, "vgg11", maps="pool", output_stride=16),
}
FULLY_CONNECTED = {
    "vgg11 fc conv": partial(VGGEncoder, "vgg11", fully_connected=True),
    "vgg11 fc pool": partial(VGGEncoder, "vgg11", maps="pool", fully_connected=True),
    "vgg11 fc pool OS8": partial(VGGEncoder, "vgg11", maps="pool", fully_connected=True, output_stride=8),
}
DECODERS = {
    "FCN-8s": FCNDecoder,
    "FCN-32s": partial(FCNDecoder, finest_stride=32),
    "FCN-16s learned": partial(FCNDecoder, finest_stride=16, upsampling="learned"),
    "FCN torchvision": TorchvisionFCNDecoder,
    "transposed": partial(TransposedConvDecoder, widths=(8, 8, 8)),
    "U-Net": UNetDecoder,
    "U-Net transposed": partial(UNetDecoder, upsampling="transposed"),
    "DeepLab v3": partial(DeepLabV3Decoder, width=16),
    "DeepLab v3 torchvision": TorchvisionDeepLabV3Decoder,
    "pointwise": PointwiseDecoder,
}
PAIRS = list(product(ENCODERS, DECODERS))

every_pair = pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=[f"{e}-{d}" for e, d in PAIRS])
some_pairs = pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("resnet18", "FCN-8s"),
        ("resnet18 OS8", "DeepLab v3"),
        ("vgg11 conv", "U-Net transposed"),
        ("vgg11_bn pool", "transposed"),
        ("resnet18 OS16", "FCN-16s learned"),
    ],
)


@cache
def built(name: str):
    """An encoder built once; tests leave its weights as they are."""
    torch.manual_seed(0)
    return ({**ENCODERS, **FULLY_CONNECTED})[name]()


def network(encoder: str, decoder: str, **options) -> DenseNetwork:
    net = DenseNetwork(built(encoder), DECODERS[decoder], {"labels": 5, "depth": 1}, **options)
    return randomise_zeros(net)


def randomise_zeros(net: DenseNetwork) -> DenseNetwork:
    """Scores that start at zero let no gradient through to the layers below; this is not what is tested."""
    for part in (net.decoders, net.auxiliary_decoders):
        for parameter in part.parameters() if part is not None else ():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return net


def silent(net: DenseNetwork) -> list[str]:
    """Parameters that no gradient reached."""
    return [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@every_pair
def test_an_odd_image_alone_in_training_comes_back_at_its_size_and_reaches_every_parameter(encoder, decoder):
    net = network(encoder, decoder).train()
    net.zero_grad()
    planes = net(torch.rand(1, 3, 33, 47))
    assert {name: tuple(value.shape) for name, value in planes.items()} == {
        "labels": (1, 5, 33, 47),
        "depth": (1, 1, 33, 47),
    }
    sum((value * torch.rand_like(value)).sum() for value in planes.values()).backward()
    # a pointwise decoder reads the finest map alone, so nothing below it is trained
    trained = "decoders." if decoder == "pointwise" else ""
    assert [key for key in silent(net) if key.startswith(trained)] == []


@pytest.mark.slow
@pytest.mark.parametrize("encoder", FULLY_CONNECTED)
def test_fully_connected_vgg_works_with_every_decoder(encoder):
    body = FULLY_CONNECTED[encoder]()
    for decoder in DECODERS.values():
        net = DenseNetwork(body, decoder, {"labels": 5}).train()
        planes = net(torch.rand(1, 3, 33, 47))["labels"]
        assert planes.shape == (1, 5, 33, 47)
        # the gradient of fc6 alone is 400 MB: once is enough
        whole = decoder is UNetDecoder and encoder == "vgg11 fc pool"
        planes.sum().backward(inputs=list((net if whole else net.decoders).parameters()))
        assert [key for key in silent(net) if whole or key.startswith("decoders.")] == []
        net.zero_grad()


@every_pair
def test_planes_cover_the_padded_image_exactly(encoder, decoder):
    net = network(encoder, decoder).eval()
    with torch.inference_mode():
        planes = net.planes(torch.rand(1, 3, 65, 40))["labels"]
    height, width = net.padded_size(65, 40)
    stride = height // planes.shape[-2]
    assert stride in (1, 2, 4, 8, 16, 32)
    assert (planes.shape[-2] * stride, planes.shape[-1] * stride) == (height, width)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_auxiliary_decoder_reads_all_maps_but_the_coarsest_in_training_only(encoder):
    net = network(encoder, "pointwise", auxiliary=TorchvisionFCNDecoder)
    spec = net.encoder.spec
    assert net.auxiliary_decoders[0]["labels"].hidden[0].in_channels == spec.channels[-2]
    image = torch.rand(1, 3, 64, 64)
    assert set(net.train().planes(image)) == {"labels", "depth", "labels/auxiliary", "depth/auxiliary"}
    assert set(net.eval().planes(image)) == {"labels", "depth"}


@some_pairs
def test_a_state_dict_and_a_copy_reproduce_the_planes(encoder, decoder):
    net = network(encoder, decoder).eval()
    image = torch.rand(1, 3, 48, 64)
    with torch.inference_mode():
        expected = net(image)
        other = DenseNetwork(copy.deepcopy(built(encoder)), DECODERS[decoder], {"labels": 5, "depth": 1}).eval()
        for parameter in other.parameters():
            parameter.fill_(0.5)
        other.load_state_dict(net.state_dict())
        for twin in (other, copy.deepcopy(net)):
            assert all(torch.equal(twin(image)[name], expected[name]) for name in expected)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("encoder", ["resnet18", "vgg11 conv"])
def test_any_number_of_channels_goes_in(encoder, channels):
    net = DenseNetwork(ENCODERS[encoder](in_channels=channels), UNetDecoder, {"labels": 2})
    assert net(torch.rand(1, channels, 40, 56))["labels"].shape == (1, 2, 40, 56)


@some_pairs
def test_an_exported_network_gives_the_same_planes(encoder, decoder):
    net = network(encoder, decoder).eval()
    image = torch.rand(1, 3, 45, 64)
    exported = torch.export.export(net, (image,)).module()
    for name, planes in net(image).items():
        torch.testing.assert_close(exported(image)[name], planes)


@pytest.mark.parametrize("decoder", ["FCN-8s", "U-Net", "DeepLab v3"])
def test_a_shared_decoder_splits_its_planes_between_the_tasks(decoder):
    net = network("resnet18", decoder, share_decoder=True).eval()
    with torch.inference_mode():
        planes = net(torch.rand(1, 3, 40, 40))
    assert [value.shape[1] for value in planes.values()] == [5, 1]


# ---------------------------------------------------------------------------------------------- counts


def parameters(encoder, decoder, classes=21, **options) -> int:
    with torch.device("meta"):
        net = DenseNetwork(encoder(), decoder, {"segmentation": classes}, **options)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("stride", "published"), [(32, 134_346_581), (16, 134_357_354), (8, 134_362_751)])
def test_fcn_on_vgg16_has_the_published_number_of_parameters(stride, published):
    vgg16 = partial(VGGEncoder, "vgg16", maps="pool", fully_connected=True)
    assert parameters(vgg16, partial(FCNDecoder, finest_stride=stride)) == published


@pytest.mark.parametrize(("name", "published"), [("resnet50", 39_048_533), ("resnet101", 58_040_661)])
def test_deeplab_has_the_published_number_of_parameters(name, published):
    assert parameters(partial(ResNetEncoder, name, output_stride=16), DeepLabV3Decoder) == published


@pytest.mark.parametrize(
    ("name", "decoder", "builder"),
    [
        ("resnet50", TorchvisionFCNDecoder, theirs.fcn_resnet50),
        ("resnet101", TorchvisionFCNDecoder, theirs.fcn_resnet101),
        ("resnet50", TorchvisionDeepLabV3Decoder, theirs.deeplabv3_resnet50),
        ("resnet101", TorchvisionDeepLabV3Decoder, theirs.deeplabv3_resnet101),
    ],
)
def test_torchvisions_networks_have_torchvisions_number_of_parameters(name, decoder, builder):
    with torch.device("meta"):
        expected = sum(p.numel() for p in builder(weights_backbone=None, aux_loss=True).parameters())
    encoder = partial(ResNetEncoder, name, output_stride=8)
    assert parameters(encoder, decoder, auxiliary=TorchvisionFCNDecoder) == expected


# ---------------------------------------------------------------------------------------------- torchvision


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@pytest.fixture(scope="module", params=["fcn", "deeplab"])
def twins(request):
    """A network of torchvision with random weights and batch norm statistics, and ours with the same."""
    torch.manual_seed(0)
    builder, decoder = {
        "fcn": (theirs.fcn_resnet50, TorchvisionFCNDecoder),
        "deeplab": (theirs.deeplabv3_resnet50, TorchvisionDeepLabV3Decoder),
    }[request.param]
    reference = builder(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    for key, tensor in reference.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    encoder = ResNetEncoder("resnet50", output_stride=8)
    ours = DenseNetwork(encoder, decoder, {"segmentation": 21}, auxiliary=TorchvisionFCNDecoder)
    report = load_torchvision_segmentation(ours, reference.state_dict())
    assert report.complete
    assert len(report.loaded) == len(reference.state_dict())
    return reference.eval(), ours.eval()


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert reference.std() > 0.01
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
def test_logits_are_torchvisions(twins):
    reference, ours = twins
    image = torch.rand(2, 3, 64, 96)
    expected = reference(normalised(image))["out"]
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(image)["segmentation"], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_auxiliary_logits_are_torchvisions(twins):
    reference, ours = twins
    image = torch.rand(1, 3, 64, 96)
    expected = reference(normalised(image))["aux"]
    ours.auxiliary_decoders.eval()
    planes = ours.auxiliary_decoders[0]["segmentation"](ours.encoder(image)[:-1])
    assert relative(F.interpolate(planes, size=(64, 96), mode="bilinear"), expected) < 1e-4


@torch.no_grad()
def test_at_other_sizes_the_parts_are_torchvisions_and_only_the_padding_differs(twins):
    """torchvision stretches ceil(H / 8) cells over H pixels; the network pads, so that cells keep their place."""
    reference, ours = twins
    image = torch.rand(1, 3, 67, 93)
    expected = reference(normalised(image))["out"]
    planes = ours.decoders["segmentation"](ours.encoder(image))
    stretched = F.interpolate(planes, size=(67, 93), mode="bilinear")
    assert relative(stretched, expected) < 1e-4
    assert ours(image)["segmentation"].shape == expected.shape
    padded = F.pad(image, (0, 3, 0, 5), mode="replicate")
    cropped = reference(normalised(padded))["out"][..., :67, :93]
    assert relative(ours(image)["segmentation"], cropped) < 1e-4


# ---------------------------------------------------------------------------------------------- loading


def small(decoder=TorchvisionFCNDecoder, classes=21, **options) -> DenseNetwork:
    encoder = ResNetEncoder("resnet18", output_stride=8, in_channels=options.pop("in_channels", 3))
    return DenseNetwork(encoder, decoder, options.pop("tasks", {"segmentation": classes}), **options)


def published(network: DenseNetwork) -> dict[str, torch.Tensor]:
    """A network's weights under torchvision's names."""
    heads = {"hidden.0": "0", "hidden.1": "1", "score": "4", "aspp": "0", "refine.0": "1", "refine.1": "2"}
    state = {}
    for key, value in network.state_dict().items():
        if key in ("encoder.mean", "encoder.std"):
            continue
        key = key.replace("auxiliary_decoders.0.segmentation", "aux_classifier")
        key = key.replace("decoders.segmentation", "classifier").replace("encoder.", "backbone.")
        head, _, rest = key.partition(".")
        for ours, name in heads.items():
            if head != "backbone" and rest.startswith(ours + "."):
                key = f"{head}.{name}{rest.removeprefix(ours)}"
                break
        state[key] = torch.rand_like(value) if value.is_floating_point() else value
    return state


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_a_file_loads_as_torchvision_writes_it(tmp_path, wrapper):
    net = small()
    state = published(net)
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "fcn.pth")
    report = load_torchvision_segmentation(net, tmp_path / "fcn.pth")
    assert report.complete
    assert torch.equal(net.encoder.layer1[0].conv1.weight, state["backbone.layer1.0.conv1.weight"])
    assert torch.equal(net.decoders["segmentation"].score.weight, state["classifier.4.weight"])


def test_scores_of_other_classes_are_left_as_they_are_to_be_learned_and_the_report_says_so():
    net = small(classes=5, auxiliary=TorchvisionFCNDecoder)
    state = published(small(auxiliary=TorchvisionFCNDecoder))
    report = load_torchvision_segmentation(net, state)
    heads = ("classifier.4.weight", "classifier.4.bias", "aux_classifier.4.weight", "aux_classifier.4.bias")
    assert set(report.skipped) == set(heads)
    assert report.skipped["classifier.4.bias"] == "21 in the file, 5 here: other classes"
    assert not report.missing
    assert not net.decoders["segmentation"].score.weight.any()  # as it started
    assert torch.equal(net.auxiliary_decoders[0]["segmentation"].hidden[0].weight, state["aux_classifier.0.weight"])


def test_the_files_auxiliary_classifier_is_not_needed_and_a_missing_one_is_reported():
    with_auxiliary, without = small(auxiliary=TorchvisionFCNDecoder), small()
    report = load_torchvision_segmentation(without, published(with_auxiliary))
    assert report.unused
    assert all(key.startswith("aux_classifier.") for key in report.unused)
    report = load_torchvision_segmentation(with_auxiliary, published(without))
    assert report.missing
    assert all(name.startswith("auxiliary_decoders.") for name in report.missing)


def test_a_network_of_another_kind_is_refused_by_naming_what_does_not_fit():
    with pytest.raises(WeightsError, match=r"(?s)classifier.0.convs.*no tensor of that.*TorchvisionDeepLabV3Decoder"):
        load_torchvision_segmentation(small(), published(small(TorchvisionDeepLabV3Decoder)))
    net = small(UNetDecoder)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(WeightsError, match=r"(?s)has ResNetEncoder and UNetDecoder"):
        load_torchvision_segmentation(net, published(small()))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_file_that_lacks_tensors_is_refused_by_name():
    state = published(small())
    del state["backbone.layer3.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"encoder.layer3.0.conv1.weight: missing in the file"):
        load_torchvision_segmentation(small(), state)


def test_one_task_of_several_takes_the_classifier():
    net, state = small(tasks={"depth": 1, "segmentation": 21}), published(small())
    with pytest.raises(ConfigurationError, match=r"no task 'normals'\. Name one of: depth, segmentation"):
        load_torchvision_segmentation(net, state, task="normals")
    report = load_torchvision_segmentation(net, state, task="segmentation")
    assert torch.equal(net.decoders["segmentation"].score.weight, state["classifier.4.weight"])
    assert all(name.startswith("decoders.depth.") for name in report.missing)
    report = load_torchvision_segmentation(small(tasks={"segmentation": 21, "depth": 1}), state)
    assert all(name.startswith("decoders.depth.") for name in report.missing)


def test_an_image_with_other_channels_adapts_the_first_convolution():
    net, state = small(in_channels=4), published(small())
    report = load_torchvision_segmentation(net, state)
    assert report.adapted == {"encoder.conv1.weight": "3 input channels to 4"}
    torch.testing.assert_close(net.encoder.conv1.weight.sum(1), state["backbone.conv1.weight"].sum(1))
