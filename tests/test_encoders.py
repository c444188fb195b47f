import copy
import hashlib
import http.server
import logging
import math
import pickle
import threading
from typing import get_args

import jsonargparse
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.vgg import cfgs, make_layers

from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder
from densepred.encoders.loading import adapt_input_channels, fit_tensors
from densepred.encoders.resnet import ResNetEncoder, ResNetName
from densepred.encoders.vgg import VGGEncoder, VGGName
from densepred.encoders.weights import IMAGENET_VERSION, read_state_dict
from densepred.errors import ConfigurationError, WeightsError

LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")


def unlike_its_initialisation(module: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights of their own, and biases, so that a swap or an omission shows."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    return module.eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    return torchvision.transforms.functional.normalize(image, IMAGENET_MEAN, IMAGENET_STD)


def torchvision_features(name: str) -> nn.Sequential:
    """torchvision's convolutions alone: its classifier of 120 million numbers takes a second to draw."""
    letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[name.removesuffix("_bn")]
    return make_layers(cfgs[letter], batch_norm=name.endswith("_bn"))


def torchvision_maps(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    return list(IntermediateLayerGetter(model, {name: name for name in LAYERS})(normalised(image)).values())


@pytest.fixture
def saved(tmp_path):
    """Saves weights for one test; pytest would keep the files of three runs, gigabytes of them."""
    path = tmp_path / "weights.pth"

    def save(content: object) -> str:
        torch.save(content, path)
        return str(path)

    yield save
    path.unlink(missing_ok=True)


# what the maps are


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_resnet_maps_are_those_of_torchvisions_own_network(name, saved):
    model = unlike_its_initialisation(get_model(name, weights=None))
    encoder = ResNetEncoder(name, saved(model.state_dict())).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = encoder(image), torchvision_maps(model, image)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("output_stride", "dilated"), [(16, [False, False, True]), (8, [False, True, True])])
def test_a_dilated_bottleneck_network_is_torchvisions(output_stride, dilated, saved):
    model = unlike_its_initialisation(get_model("resnet50", weights=None, replace_stride_with_dilation=dilated))
    encoder = ResNetEncoder("resnet50", saved(model.state_dict()), output_stride=output_stride).eval()
    assert [str(layer) for layer in (encoder.layer3, encoder.layer4)] == [str(model.layer3), str(model.layer4)]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = encoder(image), torchvision_maps(model, image)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_vgg_maps_surround_torchvisions_poolings(name, saved):
    model = unlike_its_initialisation(torchvision_features(name))
    weights = saved({f"features.{key}": value for key, value in model.state_dict().items()})
    image = torch.rand(1, 3, 64, 96)
    before, after, x = [], [], normalised(image)
    with torch.no_grad():
        for layer in model:
            before += [x] if isinstance(layer, nn.MaxPool2d) else []
            x = layer(x)
            after += [x] if isinstance(layer, nn.MaxPool2d) else []
        for maps, expected in (("conv", before), ("pool", after)):
            for ours, theirs in zip(VGGEncoder(name, weights, maps=maps).eval()(image), expected, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(
    "build",
    [
        lambda stride: ResNetEncoder("resnet18", output_stride=stride),
        lambda stride: ResNetEncoder("resnet50", output_stride=stride),
        lambda stride: VGGEncoder("vgg13", output_stride=stride, maps="conv"),
        lambda stride: VGGEncoder("vgg11_bn", output_stride=stride, maps="pool"),
    ],
    ids=["resnet18", "resnet50", "vgg13-conv", "vgg11_bn-pool"],
)
def test_a_dilated_network_keeps_the_responses_of_the_strided_one(build, output_stride):
    # in double precision, where only rounding is left to differ
    strided, dilated = unlike_its_initialisation(build(32)).double(), build(output_stride).eval().double()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(1, 3, 96, 128, dtype=torch.double)
    with torch.no_grad():
        pairs = zip(strided(image), dilated(image), strided.spec.strides, dilated.spec.strides, strict=True)
        for coarse, fine, before, after in pairs:
            step = before // after
            assert fine.shape[-2:] == (96 // after, 128 // after)
            torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_fc6_dilated_keeps_the_responses_of_the_strided_one():
    strided = unlike_its_initialisation(VGGEncoder("vgg11", maps="pool", fully_connected=True))
    dilated = VGGEncoder("vgg11", maps="pool", fully_connected=True, output_stride=8).eval()
    dilated.load_state_dict(strided.state_dict(), assign=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        coarse, fine = strided(image)[-1], dilated(image)[-1]
    assert coarse.abs().max() > 0
    assert (fine.shape, coarse.shape) == ((1, 4096, 8, 8), (1, 4096, 2, 2))
    torch.testing.assert_close(fine[..., ::4, ::4], coarse)


@pytest.mark.slow
def test_unpadded_fully_connected_layers_reproduce_the_classifiers_fc7(saved):
    model = unlike_its_initialisation(get_model("vgg11", weights=None))
    for layer in model.classifier[0], model.classifier[3]:
        nn.init.normal_(layer.bias, std=0.1)
    encoder = VGGEncoder("vgg11", saved(model.state_dict()), fully_connected=True, padded=False).eval()
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.classifier[:6](model.features(normalised(image)).flatten(1))
        fc7 = encoder(image)[-1]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(fc7, expected[..., None, None], rtol=1e-5, atol=1e-5)
    assert set(encoder.load_report.adapted) == {"classifier.0.weight", "classifier.3.weight"}
    assert set(encoder.load_report.unused) == {"classifier.6.weight", "classifier.6.bias"}
    assert encoder.load_report.complete

    with pytest.raises(ConfigurationError, match=r"has 6 x 7\. Give at least 224 pixels a side, or set padded to true"):
        encoder(torch.rand(1, 3, 223, 224))


# what the maps are said to be

VARIANTS = [
    *((ResNetEncoder, {"name": name}) for name in ("resnet18", "resnet50")),
    (ResNetEncoder, {"name": "resnet34", "output_stride": 8}),
    (ResNetEncoder, {"name": "resnet50", "output_stride": 16}),
    (VGGEncoder, {"name": "vgg11", "maps": "conv"}),
    (VGGEncoder, {"name": "vgg11_bn", "maps": "pool"}),
    (VGGEncoder, {"name": "vgg11", "maps": "pool", "output_stride": 8}),
    (VGGEncoder, {"name": "vgg11", "maps": "conv", "output_stride": 8, "in_channels": 5}),
]


@pytest.mark.parametrize(("encoder_class", "options"), VARIANTS, ids=str)
def test_the_spec_describes_the_maps(encoder_class, options):
    encoder = encoder_class(**options)
    height, width = 3 * encoder.multiple + 32, 2 * encoder.multiple + 32
    maps = encoder(torch.randint(0, 256, (1, encoder.in_channels, height, width), dtype=torch.uint8))
    assert encoder.multiple == max(encoder.spec.strides)
    assert sorted(encoder.spec.strides) == list(encoder.spec.strides)
    assert [m.shape[1:] for m in maps] == [
        (channels, height // stride, width // stride) for channels, stride in zip(*encoder.spec[:2], strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_an_image_of_any_precision_is_normalised_in_the_encoders_own(dtype):
    encoder = ResNetEncoder("resnet18")
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    expected = encoder.normalise(image)
    values = encoder.normalise((image / 255).to(dtype))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0, atol=3e-3 if dtype == torch.float16 else 1e-6)
    assert encoder.double().normalise(image).dtype == torch.float64


@pytest.mark.parametrize(("encoder_class", "options"), VARIANTS, ids=str)
def test_one_image_trains_every_parameter(encoder_class, options):
    encoder = encoder_class(**options).train()
    sum(m.mean() for m in encoder(torch.rand(1, encoder.in_channels, 64, 64))).backward()
    assert [name for name, parameter in encoder.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({"maps": "conv"}, (1, 2, 4, 8, 16, 32)),
        ({"maps": "pool"}, (2, 4, 8, 16, 32)),
        ({"maps": "pool", "output_stride": 8}, (2, 4, 8, 8, 8)),
    ],
)
def test_fc7_is_the_coarsest_map(options, strides):
    with torch.device("meta"):
        encoder = VGGEncoder("vgg11", fully_connected=True, **options)
        maps = encoder(torch.zeros(1, 3, 96, 64))
    assert encoder.spec.strides == strides
    assert encoder.spec.channels[-1] == 4096
    assert [m.shape[1:] for m in maps] == [
        (channels, 96 // stride, 64 // stride) for channels, stride in zip(*encoder.spec[:2], strict=True)
    ]


@pytest.mark.parametrize("name", get_args(ResNetName))
def test_every_resnet_has_torchvisions_tensors(name):
    with torch.device("meta"):
        ours, theirs = ResNetEncoder(name).state_dict(), get_model(name, weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items() if key not in ("mean", "std")} == expected


@pytest.mark.parametrize("name", get_args(VGGName))
def test_every_vgg_has_torchvisions_tensors(name):
    with torch.device("meta"):
        ours, theirs = VGGEncoder(name).state_dict(), get_model(name, weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("classifier.")}
    assert {key: value.shape for key, value in ours.items() if key not in ("mean", "std")} == expected


def test_vgg16_with_fc6_and_fc7_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = VGGEncoder("vgg16", fully_connected=True)
    # Long et al.'s FCN-32s without its scores: 14,714,688 in the convolutions, then fc6 and fc7
    assert sum(p.numel() for p in encoder.parameters()) == 14_714_688 + 102_764_544 + 16_781_312


def test_random_weights_are_torchvisions_own():
    torch.manual_seed(3)
    expected = get_model("resnet18", weights=None).state_dict()
    torch.manual_seed(3)
    ours = ResNetEncoder("resnet18").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.items() if key in expected)


def test_random_vgg_weights_follow_torchvisions_rule():
    encoder = VGGEncoder("vgg11_bn", in_channels=2)
    for layer in encoder.features:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * 9
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
            assert not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.running_var == 1).all()
            assert not layer.bias.any()
            assert not layer.running_mean.any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNetEncoder("resnet19"), "ResNetEncoder: name is 'resnet19'. Expected one of: resnet18, resnet34"),
        (lambda: VGGEncoder("vgg17"), "VGGEncoder: name is 'vgg17'. Expected one of: vgg11"),
        (lambda: ResNetEncoder(output_stride=4), "output_stride is 4. Expected one of: 32, 16, 8"),
        (lambda: VGGEncoder("vgg11", maps="pools"), "maps is 'pools'. Expected one of: conv, pool"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(build, message):
    with pytest.raises(ConfigurationError) as error:
        build()
    assert message in str(error.value)


# how they are used


@pytest.mark.parametrize("encoder_class", [ResNetEncoder, VGGEncoder])
def test_copies_and_state_dicts_give_the_same_maps(encoder_class):
    name = "resnet18" if encoder_class is ResNetEncoder else "vgg11"
    encoder = unlike_its_initialisation(encoder_class(name, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]))
    loaded = encoder_class(name).eval()
    loaded.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(image)
        for other in (loaded, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
            for ours, theirs in zip(other(image), expected, strict=True):
                assert torch.equal(ours, theirs)
    assert copy.deepcopy(encoder).init_args == encoder.init_args


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", [{}, {"output_stride": 8}])
@pytest.mark.parametrize("encoder_class", [ResNetEncoder, VGGEncoder])
def test_export_and_trace_give_the_same_maps_at_other_sizes(encoder_class, options):
    name = "resnet18" if encoder_class is ResNetEncoder else "vgg11"
    encoder = encoder_class(name, **options).eval()
    size = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example, other = torch.rand(2, 3, 64, 96), torch.rand(1, 3, 128, 64)
    exported = torch.export.export(encoder, (example,), dynamic_shapes=(size,)).module()
    traced = torch.jit.trace(encoder, example)
    with torch.no_grad():
        for ours, theirs in zip(exported(other), encoder(other), strict=True):
            torch.testing.assert_close(ours, theirs)
        for ours, theirs in zip(traced(other), encoder(other), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"output_stride": 8}])
@pytest.mark.parametrize("encoder_class", [ResNetEncoder, VGGEncoder])
def test_channels_last_is_kept_and_gives_the_same_maps(encoder_class, options):
    name = "resnet18" if encoder_class is ResNetEncoder else "vgg11"
    encoder = encoder_class(name, **options).eval().double()
    image = torch.rand(1, 3, 64, 96, dtype=torch.double)
    with torch.no_grad():
        expected = encoder(image)
        maps = encoder.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("encoder_class", [ResNetEncoder, VGGEncoder])
def test_a_configuration_builds_the_encoder(encoder_class):
    name = "resnet34" if encoder_class is ResNetEncoder else "vgg13"
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    arguments = {"name": name, "weights": None, "in_channels": 4, "output_stride": 16, "std": [1, 1, 1, 1]}
    path = f"{encoder_class.__module__}.{encoder_class.__qualname__}"
    config = parser.parse_object({"encoder": {"class_path": path, "init_args": arguments}})
    encoder = parser.instantiate_classes(config).encoder
    assert type(encoder) is encoder_class
    assert encoder.name == name
    assert encoder.spec.strides[-1] == 16
    assert encoder.std.flatten().tolist() == [1, 1, 1, 1]
    with pytest.raises(jsonargparse.ArgumentError, match="resnet19"):
        parser.parse_object({"encoder": {"class_path": path, "init_args": {"name": "resnet19"}}})


# pretrained weights


@pytest.mark.parametrize("name", [*get_args(ResNetName), *get_args(VGGName)])
def test_the_default_normalisation_is_that_of_the_imagenet_weights(name):
    transforms = get_model_weights(name)[IMAGENET_VERSION].transforms()
    assert tuple(transforms.mean) == IMAGENET_MEAN
    assert tuple(transforms.std) == IMAGENET_STD


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("encoder_class", [ResNetEncoder, VGGEncoder])
def test_a_grey_image_keeps_its_response_whatever_the_number_of_channels(encoder_class, channels, saved):
    name = "resnet18" if encoder_class is ResNetEncoder else "vgg11"
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    rgb = unlike_its_initialisation(encoder_class(name, **plain))
    weights = saved(rgb.state_dict())
    adapted = encoder_class(name, weights, channels, mean=[0.0] * channels, std=[1.0] * channels).eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        ours, theirs = adapted(grey.expand(-1, channels, -1, -1)), rgb(grey.expand(-1, 3, -1, -1))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def test_depth_beside_rgb_leaves_the_colours_in_proportion():
    weight = torch.randn(8, 3, 7, 7)
    adapted = adapt_input_channels(weight, 4)
    torch.testing.assert_close(adapted[:, :3] * 4 / 3, weight)
    torch.testing.assert_close(adapted[:, 3] * 4 / 3, weight.mean(1))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"backbone.{key}": v for key, v in state.items()} | {"classifier.0.weight": torch.zeros(1)},
        lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        lambda state: {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
    ],
    ids=["plain", "state_dict", "model", "parallel", "backbone", "no classifier", "no counters", "double precision"],
)
def test_a_file_of_the_network_loads_completely_however_it_is_wrapped(wrap, saved):
    model = unlike_its_initialisation(get_model("resnet18", weights=None))
    encoder = ResNetEncoder("resnet18", saved(wrap(model.state_dict())))
    expected = model.state_dict()
    assert encoder.load_report.complete
    for key, value in encoder.state_dict().items():
        assert key in ("mean", "std") or torch.equal(value, expected[key])


def test_safetensors_load_too(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = get_model("resnet18", weights=None)
    safetensors.save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = ResNetEncoder("resnet18", tmp_path / "resnet18.safetensors")
    assert encoder.load_report.complete
    assert torch.equal(encoder.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_the_encoder_of_a_checkpoint_brings_its_normalisation_unless_told_otherwise(saved):
    trained = ResNetEncoder("resnet18", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    state = {f"network.encoder.{key}": value for key, value in trained.state_dict().items()}
    path = saved({"state_dict": state | {"network.decoders.depth.score.weight": torch.zeros(3)}})
    encoder = ResNetEncoder("resnet18", path, std=[1.0, 1.0, 1.0])
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor([1.0, 1.0, 1.0]))
    assert encoder.load_report.complete


def test_what_is_missing_or_does_not_fit_is_reported_and_warned_of(saved, caplog):
    state = get_model("resnet18", weights=None).state_dict()
    del state["layer3.1.conv2.weight"]
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    state["layer2.0.bn1.running_var"] = torch.full((128,), torch.nan)
    state["layer5.weight"] = torch.zeros(7)
    with caplog.at_level(logging.INFO, logger="densepred"):
        encoder = ResNetEncoder("resnet18", saved(state))
    report = encoder.load_report
    assert report.missing == {"layer3.1.conv2.weight": (256, 256, 3, 3)}
    assert report.skipped == {
        "layer1.0.conv1.weight": "64 x 64 x 5 x 5 in the file, 64 x 64 x 3 x 3 here",
        "layer2.0.bn1.running_var": "holds NaN or infinite numbers",
        "layer5.weight": "7 in the file, no tensor of that name here",
    }
    assert report.unused == ("fc.weight", "fc.bias")
    assert len(report.loaded) == len(state) - len(report.skipped) - len(report.unused)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for words in ("weights.pth", "layer3.1.conv2.weight", "256 x 256 x 3 x 3", *report.skipped.values()):
        assert words in caplog.text
    assert encoder.layer1[0].conv1.weight.any()


def test_a_complete_load_is_no_warning(saved, caplog):
    with caplog.at_level(logging.INFO, logger="densepred"):
        ResNetEncoder("resnet18", saved(get_model("resnet18", weights=None).state_dict()))
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_features_without_a_classifier_leave_fc6_random_and_say_so():
    with torch.device("meta"):
        encoder = VGGEncoder("vgg11", fully_connected=True)
    tensors = {f"features.{key}": value for key, value in torchvision_features("vgg11").state_dict().items()}
    report = fit_tensors(encoder, tensors, "file", "vgg11", "features.0.weight", ("classifier.6.",))
    assert set(report.missing) == {f"classifier.{i}.{name}" for i in (0, 3) for name in ("weight", "bias")}
    assert set(report.loaded) == set(tensors)


def test_a_file_of_another_network_is_refused(saved):
    path = saved({"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"no tensor of .*weights.pth fits ResNetEncoder \(resnet18\).*features.0.w"):
        ResNetEncoder("resnet18", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not a state dict", "cannot be read"),
        ("truncated", "cannot be read"),
        ([1, 2], "holds a list. Expected a dictionary of tensors"),
        ({"weights": 3}, r"holds a dictionary with keys \['weights'\]"),
        (nn.ReLU(), "cannot be read.*besides tensors"),
    ],
    ids=["empty", "text", "truncated", "list", "no tensors", "pickled module"],
)
def test_a_file_that_is_no_state_dict_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    if content == "truncated":
        torch.save(get_model("resnet18", weights=None).state_dict(), path)
        content = path.read_bytes()[:-1000]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=f"(?s)weights.pth.*{message}"):
        ResNetEncoder("resnet18", path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere.pth does not exist .*Expected 'imagenet', the path"):
        read_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)


def test_a_real_partial_file_loads_what_it_has_and_names_the_rest(real_data, caplog):
    path = real_data / "weights" / "resnet18_imagenet_partial_layer1-3.pth"
    with caplog.at_level(logging.INFO, logger="densepred"):
        encoder = ResNetEncoder("resnet18", path)
    convolutions = {key for key in encoder.load_report.missing if ".conv" in key}
    assert convolutions == {f"layer4.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2)}
    assert all(key.startswith("layer4.") for key in encoder.load_report.missing)
    assert encoder.load_report.skipped == {}
    assert "WARNING" in caplog.text
    assert all(key in caplog.text for key in convolutions)
    own, tensors = encoder.state_dict(), torch.load(path, weights_only=True)
    assert all(torch.equal(own[key], value) for key, value in tensors.items() if not key.startswith("fc."))


# downloads


class Server:
    """A file on a local web server; `cut` sends only its first half."""

    def __init__(self, content: bytes, cut: bool = False) -> None:
        self.requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.requests.append(handler.path)
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content[: len(content) // 2] if cut else content)

            def log_message(handler, *arguments) -> None:  # noqa: N805
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model, its file's bytes and its file's name, hash included as torchvision does it."""
    model = unlike_its_initialisation(get_model("resnet18", weights=None))
    path = tmp_path_factory.mktemp("published") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    content = path.read_bytes()
    return model, content, f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def point_torchvision_at(url: str, monkeypatch) -> None:
    monkeypatch.setattr(get_model_weights("resnet18")[IMAGENET_VERSION].value, "url", url)


def test_imagenet_weights_are_downloaded_once_into_the_cache(cache, published, monkeypatch):
    model, content, name = published
    server = Server(content)
    point_torchvision_at(server.url(name), monkeypatch)
    for _ in range(2):
        encoder = ResNetEncoder("resnet18", "imagenet")
        assert torch.equal(encoder.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert server.requests == [f"/{name}"]
    assert [file.name for file in cache.iterdir()] == [name]
    assert encoder.load_report.source == str(cache / name)


def test_a_cached_file_needs_no_network(cache, published, monkeypatch):
    model, content, name = published
    point_torchvision_at(f"http://127.0.0.1:9/{name}", monkeypatch)
    cache.mkdir(parents=True)
    (cache / name).write_bytes(content)
    encoder = ResNetEncoder("resnet18", "imagenet")
    assert torch.equal(encoder.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize("failure", ["cut off", "altered", "no network"])
def test_a_failed_download_leaves_no_file_and_says_what_to_do(cache, published, monkeypatch, failure):
    _, content, name = published
    served = content[:-1] + bytes([content[-1] ^ 1]) if failure == "altered" else content
    url = f"http://127.0.0.1:9/{name}"
    if failure != "no network":
        url = Server(served, cut=failure == "cut off").url(name)
    point_torchvision_at(url, monkeypatch)
    with pytest.raises(WeightsError) as error:
        ResNetEncoder("resnet18", "imagenet")
    for words in (name, str(cache), url, "by hand", "null"):
        assert words in str(error.value)
    assert list(cache.iterdir()) == []


def test_random_weights_and_paths_touch_no_network(saved, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ResNetEncoder("resnet18")
    VGGEncoder("vgg11")
    ResNetEncoder("resnet18", saved(get_model("resnet18", weights=None).state_dict()))
    with pytest.raises(AssertionError, match="asked for the network"):
        ResNetEncoder("resnet18", "imagenet")
