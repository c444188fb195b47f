"""Encoders that take any network of torchvision or timm."""

import copy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.timm import TimmEncoder
from densepred.encoders.torchvision import Border, TorchvisionEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.features import FeatureSpec
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.segmentation import Segmentation

# one network of each family, and the module of torchvision's that makes the map its classifier reads
FAMILIES = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_0": "features",
    "squeezenet1_1": "features",
    "swin_t": "permute",
    "swin_v2_t": "permute",
}
EATING = ["alexnet", "inception_v3", "squeezenet1_0", "squeezenet1_1"]
EVEN = ["densenet121", "googlenet", "mobilenet_v2", "shufflenet_v2_x0_5"]
DILATED = [
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "shufflenet_v2_x0_5",
]
TIMM = ["resnet18", "mobilenetv3_small_050", "convnext_atto", "swin_tiny_patch4_window7_224", "pvt_v2_b0",
        "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"]  # fmt: skip

timm = pytest.importorskip("timm", reason="timm: pip install 'densepred[timm]'")


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms unlike their initialisation, so that a layer left out or exchanged shows."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def reference(name: str) -> nn.Module:
    """torchvision's network; where its own weights come with another normalisation of the input, it applies that."""
    options = {"googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True}}
    options["inception_v3"] = options["googlenet"]
    return with_statistics(get_model(name, weights=None, **options.get(name, {})))


def output_of(model: nn.Module, module: str, image: torch.Tensor) -> torch.Tensor:
    kept = []
    handle = model.get_submodule(module).register_forward_hook(lambda *args: kept.append(args[2].clone()))
    model(image)
    handle.remove()
    return kept[0]


# what the maps are


@pytest.mark.parametrize("name", FAMILIES)
def test_the_spec_says_what_the_encoder_yields_and_an_odd_image_alone_trains_every_parameter(name):
    encoder = TorchvisionEncoder(name)
    network = DenseNetwork(encoder, UNetDecoder, {"labels": 3}).train()
    planes = network(torch.rand(1, 3, 33, 47))["labels"]
    assert planes.shape == (1, 3, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []
    with torch.inference_mode():
        maps = encoder.eval()(torch.rand(2, 3, 64, 96))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(encoder.spec.channels, encoder.spec.strides, strict=True)]
    assert [tuple(feature.shape) for feature in maps] == expected
    assert list(encoder.spec.strides) == sorted(set(encoder.spec.strides))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_coarsest_map_is_the_one_that_torchvisions_classifier_reads(name, tmp_path):
    model = reference(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = TorchvisionEncoder(name, tmp_path / "weights.pth").eval()
    assert encoder.load_report.complete
    image = torch.rand(1, 3, 75, 97) if name == "inception_v3" else torch.rand(1, 3, 64, 96)
    before, after, _ = encoder.border
    enlarged = F.pad(normalised(image), (before, after, before, after), mode="replicate")
    expected = output_of(model, FAMILIES[name], enlarged)
    expected = expected.relu() if name == "densenet121" else expected  # its classifier's forward begins so
    rows, columns = encoder(image)[-1].shape[-2:]
    error = (encoder(image)[-1] - expected[..., :rows, :columns]).abs().max() / expected.abs().max()
    assert expected.std() > 0
    assert error < 1e-5


def averaging(encoder: TorchvisionEncoder) -> TorchvisionEncoder:
    """The same geometry with every convolution and pooling an average: gradients then show where cells look."""
    for path, layer in list(encoder.named_modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        elif isinstance(layer, nn.MaxPool2d):
            mean = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            encoder.set_submodule(path, mean)
        elif isinstance(layer, nn.ReLU6):  # sums along residual connections would reach its end
            encoder.set_submodule(path, nn.Identity())
    encoder.mean.zero_()  # negative values would not pass the ReLUs
    encoder.std.fill_(1)
    return encoder.eval()


def centres(encoder: TorchvisionEncoder, height: int = 64, size: int = 512) -> list[float]:
    """Where the cell in the middle of each map looks, in pixels from its own first pixel."""
    image = torch.rand(1, 3, height, size, requires_grad=True)
    columns = torch.arange(size, dtype=torch.float32)
    places = []
    for feature, stride in zip(encoder(image), encoder.spec.strides, strict=True):
        cell = size // stride // 2
        (gradient,) = torch.autograd.grad(feature[..., cell].sum(), image, retain_graph=True)
        weight = gradient.sum((0, 1, 2))
        places.append(((weight * columns).sum() / weight.sum()).item() - stride * cell)
    return places


@pytest.mark.parametrize("name", EATING + EVEN)
def test_every_cell_looks_at_the_pixels_of_its_own_place(name):
    encoder = averaging(TorchvisionEncoder(name))
    for place, stride in zip(centres(encoder), encoder.spec.strides, strict=True):
        assert -0.5 <= place <= stride - 0.5


def test_without_the_added_border_inceptions_cells_would_look_elsewhere():
    encoder = averaging(TorchvisionEncoder("inception_v3"))
    encoder.border = Border()
    places = centres(encoder, height=80)
    # by hand: 3x3 of stride 2 (1), 3x3 (+2), pooling (+2), 3x3 (+4), pooling (+4), 3x3 of stride 2 (+8), again (+16)
    assert places[:4] == pytest.approx([3, 9, 13, 21], abs=1.0)
    assert places[4] > 32


@pytest.mark.parametrize("name", DILATED)
@torch.no_grad()
def test_dilated_maps_equal_the_strided_ones_where_those_have_cells(name):
    strided, dilated = TorchvisionEncoder(name).eval(), TorchvisionEncoder(name, output_stride=8).eval()
    dilated.load_state_dict(with_statistics(strided).state_dict())
    for encoder in (strided, dilated):  # squeeze and excitation averages over all cells, of which there are more
        for path, layer in list(encoder.named_modules()):
            if "SqueezeExcitation" in type(layer).__name__:
                encoder.set_submodule(path, nn.Identity())
    assert dilated.spec.strides == (2, 4, 8, 8, 8)
    image = torch.rand(1, 3, 64, 96)
    for coarse, fine, stride in zip(strided(image), dilated(image), strided.spec.strides, strict=True):
        step = max(stride // 8, 1)
        assert coarse.std() > 0
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [("densenet121", "by pooling"), ("convnext_tiny", "not centred"), ("inception_v3", "not centred"),
     ("swin_t", "attends in windows")],
)  # fmt: skip
def test_networks_that_cannot_be_dilated_say_so(name, words):
    with pytest.raises(ConfigurationError, match=words):
        TorchvisionEncoder(name, output_stride=16)


def test_networks_with_an_encoder_of_their_own_name_it():
    with pytest.raises(ConfigurationError, match=r"Use ResNetEncoder\(name='wide_resnet50_2'\)"):
        TorchvisionEncoder("wide_resnet50_2")
    with pytest.raises(ConfigurationError, match=r"name is 'vit_b_16'\. Expected one of: alexnet"):
        TorchvisionEncoder("vit_b_16")


def test_every_network_describes_itself_without_memory():
    for name in ("efficientnet_v2_s", "regnet_x_400mf", "convnext_large", "densenet201", "swin_b"):
        with torch.device("meta"):
            encoder = TorchvisionEncoder(name)
        assert encoder.spec.strides[-1] == 32
        assert all(parameter.is_meta for parameter in encoder.parameters())


# weights


def test_the_published_squeezenet_classifies_as_torchvisions(real_data):
    file = real_data / "weights" / "squeezenet1_1_torchvision_rgb.pth"
    model = get_model("squeezenet1_1", weights=None).eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    encoder = TorchvisionEncoder("squeezenet1_1", file).eval()
    assert encoder.load_report.complete
    image = torch.from_numpy(np.array(first_image(real_data).resize((224, 224)))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        ours = model.classifier(encoder(image)[-1]).flatten(1)
        # the border that is added on the left and at the top is all that differs
        expected = model(F.pad(normalised(image / 255), (1, 0, 1, 0), mode="replicate"))
    assert expected.std() > 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def first_image(real_data) -> Image.Image:
    return Image.open(sorted((real_data / "voc2012/JPEGImages").glob("*.jpg"))[0])


# VOC's class and ImageNet's: cats great and small, dogs
ANIMALS = {8: range(281, 294), 12: range(151, 269)}


def test_the_published_squeezenet_tells_the_cats_and_dogs_of_real_pictures(real_data):
    file = real_data / "weights" / "squeezenet1_1_torchvision_rgb.pth"
    model = get_model("squeezenet1_1", weights=None).eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    encoder = TorchvisionEncoder("squeezenet1_1", file).eval()
    voc = real_data / "voc2012"
    found = []
    for name in (voc / "ImageSets/Segmentation/val.txt").read_text().split()[:75]:
        labels = np.unique(np.array(Image.open(voc / f"SegmentationClass/{name}.png")))
        present = [label for label in labels if label not in (0, 255)]
        if len(present) == 1 and present[0] in ANIMALS:
            image = Image.open(voc / f"JPEGImages/{name}.jpg").resize((224, 224))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            with torch.inference_mode():
                best = model.classifier(encoder(pixels)[-1]).flatten().argmax().item()
            found.append(best in ANIMALS[present[0]])
    assert len(found) >= 20
    # by chance at most 118 of 1000 would; the file's own accuracy over all classes is 57 %
    assert np.mean(found) > 0.65


def test_the_names_of_torchvisions_old_densenet_files_are_understood(tmp_path):
    encoder = TorchvisionEncoder("densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2"):
        torch.rand_like(value) if value.is_floating_point() else value
        for key, value in encoder.state_dict().items() if key not in ("mean", "std")
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old | {"classifier.weight": torch.rand(1000, 1024)}, tmp_path / "densenet121.pth")
    loaded = TorchvisionEncoder("densenet121", tmp_path / "densenet121.pth")
    assert loaded.load_report.complete
    weight = loaded.features.denseblock1.denselayer1.norm1.weight
    assert torch.equal(weight, old["features.denseblock1.denselayer1.norm.1.weight"])


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_grey_pictures_keep_their_response_in_any_number_of_channels(channels, tmp_path):
    rgb = TorchvisionEncoder("mobilenet_v3_small").eval()
    torch.save(rgb.state_dict(), tmp_path / "w.pth")
    same = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    other = TorchvisionEncoder("mobilenet_v3_small", tmp_path / "w.pth", channels, **same).eval()
    rgb.mean.fill_(0.4)
    rgb.std.fill_(0.2)
    grey = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(other(grey.expand(-1, channels, -1, -1)), rgb(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: TorchvisionEncoder("squeezenet1_1"),
        lambda: TorchvisionEncoder("swin_t"),
        lambda: TimmEncoder("mobilenetv3_small_050"),
        lambda: TimmEncoder("vit_tiny_patch16_224"),
        lambda: TimmEncoder("xception41"),
    ],
    ids=["squeezenet1_1", "swin_t", "timm mobilenet", "timm vit", "timm with hooks"],
)
def test_state_dict_copy_and_export_reproduce_the_maps(build):
    encoder = build().eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = encoder(image)
        other = build().eval()
        other.load_state_dict(encoder.state_dict())
        exported = torch.export.export(encoder, (image,)).module()
        for twin in (other, copy.deepcopy(encoder), exported):
            torch.testing.assert_close(list(twin(image)), expected)


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_a_checkpoint_is_read_back_without_the_file_of_the_weights(kind, tmp_path):
    if kind == "torchvision":
        model, build = get_model("squeezenet1_1", weights=None), TorchvisionEncoder
    else:
        model, build = timm.create_model("mobilenetv3_small_050"), TimmEncoder
    name = "squeezenet1_1" if kind == "torchvision" else "mobilenetv3_small_050"
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    module = DensePredictor(build(name, str(file)), UNetDecoder, [Segmentation(3)])
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    file.unlink()
    again = DensePredictor.load_from_checkpoint(tmp_path / "last.ckpt")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = module.eval().network(image)["segmentation"]
        torch.testing.assert_close(again.eval().network(image)["segmentation"], expected)


# timm


@pytest.mark.parametrize("name", TIMM)
def test_timms_maps_are_as_the_spec_says_and_an_odd_image_alone_trains_every_parameter(name):
    encoder = TimmEncoder(name)
    network = DenseNetwork(encoder, UNetDecoder, {"labels": 3}).train()
    planes = network(torch.rand(1, 3, 33, 47))["labels"]
    assert planes.shape == (1, 3, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []
    size = 5 * encoder.multiple, 7 * encoder.multiple
    with torch.inference_mode():
        maps = encoder.eval()(torch.rand(2, 3, *size))
    spec = zip(encoder.spec.channels, encoder.spec.strides, strict=True)
    assert [tuple(feature.shape) for feature in maps] == [(2, c, size[0] // s, size[1] // s) for c, s in spec]


def test_a_plain_vision_transformer_yields_its_state_after_each_quarter_of_its_blocks():
    model = timm.create_model("vit_tiny_patch16_224").eval()
    encoder = TimmEncoder("vit_tiny_patch16_224").eval()
    encoder.model.model.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 3, 224, 224)
    kept = []
    for block in (2, 5, 8, 11):
        model.blocks[block].register_forward_hook(lambda *args: kept.append(args[2]))
    with torch.inference_mode():
        model(normalised(image))
        maps = encoder(image)
    for ours, tokens in zip(maps, kept, strict=True):
        cells = tokens[:, 1:].transpose(1, 2).reshape(1, 192, 14, 14)  # the first token is the class's
        torch.testing.assert_close(ours, cells, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_a_file_with_timms_keys_loads_whole_with_timms_normalisation(name, tmp_path):
    model = with_statistics(timm.create_model(name))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = TimmEncoder(name, tmp_path / "weights.pth").eval()
    assert encoder.load_report.complete
    assert encoder.mean.flatten().tolist() == pytest.approx(model.pretrained_cfg["mean"])
    assert encoder.std.flatten().tolist() == pytest.approx(model.pretrained_cfg["std"])
    image = torch.rand(1, 3, 224, 224)
    values = (image - encoder.mean) / encoder.std
    expected = model.forward_intermediates(values, intermediates_only=True, norm=False)[-1]
    torch.testing.assert_close(encoder(image)[-1], expected, rtol=1e-4, atol=1e-4)


def test_timms_file_of_another_network_is_refused_with_timms_name(tmp_path):
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"fits TimmEncoder .*expected timm's keys"):
        TimmEncoder("mobilenetv3_small_050", tmp_path / "weights.pth")


def test_a_part_of_timms_tensors_is_reported_as_missing(tmp_path):
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    left = {key: value for key, value in state.items() if not key.startswith("blocks.3.")}
    torch.save(left, tmp_path / "weights.pth")
    report = TimmEncoder("mobilenetv3_small_050", tmp_path / "weights.pth").load_report
    assert report.missing
    assert all(key.startswith("model.blocks.3.") for key in report.missing)


def test_timm_dilates_where_it_can_and_says_where_not():
    encoder = TimmEncoder("resnet18", output_stride=8)
    assert encoder.spec.strides == (2, 4, 8, 8, 8)
    with pytest.raises(ConfigurationError, match="vit_tiny_patch16_224 has no output_stride"):
        TimmEncoder("vit_tiny_patch16_224", output_stride=8)


def test_chosen_maps_of_timm():
    assert TimmEncoder("vit_tiny_patch16_224", out_indices=(1, 11)).spec.strides == (16, 16)
    assert TimmEncoder("resnet18", out_indices=(1, 3)).spec == FeatureSpec((64, 256), (4, 16))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mixer_s16_224", "does not read images of any size"),
        ("inception_v3", "TorchvisionEncoder if it has this one"),
        ("no_such_network", "has no network 'no_such_network'"),
        ("convnxt_tiny", "has no network 'convnxt_tiny'"),
    ],
)
def test_networks_of_timm_that_cannot_serve_are_refused(name, words):
    with pytest.raises(ConfigurationError, match=words):
        TimmEncoder(name)


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'densepred\[timm\]'"):
        TimmEncoder("resnet18")
