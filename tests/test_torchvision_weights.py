"""torchvision's segmentation networks as a reference: their counts, their logits, and files of their weights."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import segmentation as theirs

from densepred.decoders.deeplab import TorchvisionDeepLabV3Decoder
from densepred.decoders.fcn import TorchvisionFCNDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.network import DenseNetwork
from densepred.torchvision_weights import load_torchvision_segmentation

# ---------------------------------------------------------------------------------------------- counts


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
        reference = builder(weights_backbone=None, aux_loss=True)
        encoder = ResNetEncoder(name, output_stride=8)
        net = DenseNetwork(encoder, decoder, {"segmentation": 21}, auxiliary=TorchvisionFCNDecoder)
    count, expected = (sum(p.numel() for p in network.parameters()) for network in (net, reference))
    assert count == expected


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
