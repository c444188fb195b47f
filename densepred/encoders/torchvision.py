"""Any of torchvision's classification networks that is a chain of modules."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models import DenseNet, SwinTransformer, get_model

from densepred.encoders.base import Encoder
from densepred.encoders.dilation import dilate
from densepred.encoders.loading import LoadReport, load_pretrained
from densepred.encoders.options import OutputStride, check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

TorchvisionName = Literal[
    "alexnet",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_s",
    "efficientnet_v2_m",
    "efficientnet_v2_l",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_8gf",
    "regnet_x_16gf",
    "regnet_x_32gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_1_6gf",
    "regnet_y_3_2gf",
    "regnet_y_8gf",
    "regnet_y_16gf",
    "regnet_y_32gf",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_s",
    "swin_b",
    "swin_v2_t",
    "swin_v2_s",
    "swin_v2_b",
]


class Border(NamedTuple):
    """What a network whose convolutions and poolings eat the border needs so that its maps cover the image.

    Args:
        before: Pixels that are added at the left and at the top.
        after: Pixels that are added at the right and at the bottom.
        surplus: Cells of the finest map that then lie before the image.
    """

    before: int = 0
    after: int = 0
    surplus: int = 0


# without: the first cells are centred on pixels 3, 7, 15, 31 (alexnet), 3, 5, 9, 17 and 1, 3, 7, 15 (squeezenet), and
# 3, 9, 13, 21, 37 (inception), and the maps of 224 x 224 have 55, 27, 13, 6 cells instead of 56, 28, 14, 7
_BORDERS = {
    "alexnet": Border(3, 28),
    "squeezenet1_0": Border(3, 2),
    "squeezenet1_1": Border(1, 0),
    "inception_v3": Border(9, 34, 3),
}
# torchvision's files of these came from TensorFlow; its own networks turn the usual normalisation into this one
_OTHER_MEANS = ("googlenet", "inception_v3")
_BUILDING: dict[str, dict[str, Any]] = {name: {"aux_logits": False, "init_weights": True} for name in _OTHER_MEANS}
_HEADS = ("avgpool", "classifier", "dropout", "fc", "flatten", "head", "permute")
_CLASSIFIER = ("classifier.", "fc.", "head.", "aux1.", "aux2.", "AuxLogits.")
_PROBE = 512  # pixels a side: large enough that eaten borders do not blur the strides
# the names that torchvision's files of DenseNets still have
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class TorchvisionEncoder(Encoder):
    """Any of torchvision's classification networks that is a chain of modules, without its classifier.

    The chain is run once, without data, and the deepest map of each stride is yielded: of AlexNet, ConvNeXt, DenseNet,
    EfficientNet, GoogLeNet, Inception, MNASNet, MobileNet, RegNet, ShuffleNet, SqueezeNet and Swin Transformers.
    ResNets and VGGs have encoders of their own. The tensors have torchvision's names, so any of its state dicts loads
    by keys.

    Cell i of a map of stride s lies on pixels [s*i, s*(i+1)). AlexNet, SqueezeNet and Inception v3 eat the border of
    the image and would shift and shrink their maps; here the image is enlarged by repeating its border, by as many
    pixels as put every cell in its place. Their maps are exactly torchvision's of the image so enlarged.

    Args:
        name: torchvision's name of the network.
        weights: "imagenet" for torchvision's IMAGENET1K_V1; the path of any file with torchvision's keys; None for
            torchvision's random initialisation. Downloads go to torch.hub's cache. What was loaded, missing and
            skipped is logged and kept in `load_report`.
        in_channels: Channels of the image. Other than 3, the pretrained first convolution is adapted by
            `adapt_input_channels`: grey images keep their response.
        mean: Mean of each channel, of an image in [0, 1]; by default that of torchvision's weights: 0.5 for googlenet
            and inception_v3, ImageNet's for the others.
        std: As `mean`.
        output_stride: Stride of the coarsest map: 32, or 16 or 8 by dilation, for networks that make their coarse maps
            by strided convolutions of odd size alone (EfficientNet, MNASNet, MobileNet, RegNet, ShuffleNet). Where
            there is squeeze and excitation, it then averages over more cells.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: a map (B, C_i, about H / s_i, about W / s_i) for each stride, finest first; exact for multiples of the
            coarsest stride.

    Raises:
        ConfigurationError: If there is no such network, or it cannot be dilated.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        torchvision.models, which names each network's paper. AlexNet is Krizhevsky's "One weird trick for
        parallelizing convolutional neural networks", 2014. arXiv:1404.5997. GoogLeNet and Inception v3 come without
        their auxiliary classifiers, and Inception v3's image sizes need not be odd.

    Example:
        >>> TorchvisionEncoder("squeezenet1_1").spec
        FeatureSpec(channels=(64, 128, 256, 512), strides=(2, 4, 8, 16))
        >>> TorchvisionEncoder("mobilenet_v3_small", output_stride=8).spec
        FeatureSpec(channels=(16, 16, 24, 48, 576), strides=(2, 4, 8, 8, 8))
    """

    def __init__(
        self,
        name: TorchvisionName = "mobilenet_v3_large",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output_stride: OutputStride = 32,
    ) -> None:
        half = (0.5,) * in_channels if name in _OTHER_MEANS else None
        super().__init__(in_channels, half if mean is None else mean, half if std is None else std)
        _check_name(type(self).__name__, name)
        check_choice(type(self).__name__, "output_stride", output_stride, get_args(OutputStride))
        self.name = name
        self.border = _BORDERS.get(name, Border())
        model = _model(name)
        self.channels_last = isinstance(model, SwinTransformer)
        self.chain = list(_chain(model))
        for part in dict.fromkeys(path.split(".")[0] for path in self.chain):
            self.add_module(part, getattr(model, part))
        if isinstance(model, DenseNet):  # its forward, not its modules, applies the last ReLU
            self.chain.append("relu")
            self.relu = nn.ReLU()
        first = next(path for path, layer in self.named_modules() if isinstance(layer, nn.Conv2d))
        self._accept(first)
        strides, channels = self._probe()
        # the last of each stride
        self.taps = [i for i, stride in enumerate(strides) if stride not in strides[i + 1 :]]
        self.spec = FeatureSpec(
            tuple(channels[i] for i in self.taps), tuple(min(strides[i], output_stride) for i in self.taps)
        )
        coarse = [self.get_submodule(path) for path, stride in zip(self.chain, strides, strict=True)
                  if stride > output_stride]  # fmt: skip
        if coarse and self.channels_last:
            raise ConfigurationError(f"output_stride: {name} attends in windows; set output_stride to 32.")
        dilate(coarse, name)
        self.load_report: LoadReport | None = None
        if weights is not None:
            keep = [key for key, given in (("mean", mean), ("std", std)) if given is not None]
            self.load_report = load_pretrained(
                self, weights, name, f"{first}.weight", _CLASSIFIER, keep, partial(_OLD_DENSENET.sub, r"\1\2")
            )

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the deepest map of each stride, finest first."""
        before, after, surplus = self.border
        x = self.normalise(image)
        if before or after:
            x = F.pad(x, (before, after, before, after), mode="replicate")
        features = []
        for i, path in enumerate(self.chain):
            x = self.get_submodule(path)(x)
            if i in self.taps:
                features.append(x.permute(0, 3, 1, 2) if self.channels_last else x)
        if before or after:
            features = [
                _crop(feature, stride, surplus if i == 0 else 0, image)
                for i, (feature, stride) in enumerate(zip(features, self.spec.strides, strict=True))
            ]
        return features

    def _accept(self, first: str) -> None:
        """Replaces the first convolution by one that takes the image's channels."""
        if self.in_channels == 3:
            return
        old = cast(nn.Conv2d, self.get_submodule(first))
        size, stride, padding = old.kernel_size, old.stride, cast(tuple[int, int], old.padding)
        new = nn.Conv2d(self.in_channels, old.out_channels, size, stride, padding, bias=old.bias is not None)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        self.set_submodule(first, new)

    @torch.no_grad()
    def _probe(self) -> tuple[list[int], list[int]]:
        """Stride and channels after each module of the chain, of an image without data."""
        x = torch.empty(1, self.in_channels, _PROBE, _PROBE, device="meta")
        strides, channels = [], []
        for path in self.chain:
            module = self.get_submodule(path)
            x = functional_call(module, {key: value.to("meta") for key, value in module.state_dict().items()}, x)
            count, side = (x.shape[3], x.shape[1]) if self.channels_last else (x.shape[1], x.shape[2])
            strides.append(2 ** round(math.log2(_PROBE / side)))
            channels.append(count)
        return strides, channels


def _check_name(owner: str, name: str) -> None:
    for family, encoder in (("resnet", "ResNetEncoder"), ("resnext", "ResNetEncoder"), ("vgg", "VGGEncoder")):
        if family in name:
            raise ConfigurationError(f"{owner}: {name} has an encoder of its own. Use {encoder}(name={name!r}).")
    check_choice(owner, "name", name, get_args(TorchvisionName))


def _model(name: str) -> nn.Module:
    device = torch.get_default_device()
    # RegNet's builder reads numbers off tensors, and those on "meta" have none
    with torch.device("cpu" if name.startswith("regnet") else device):
        model: nn.Module = get_model(name, weights=None, **_BUILDING.get(name, {}))
    return model.to(device)


def _chain(model: nn.Module) -> Iterator[str]:
    """Paths of the modules that run one after the other, down to the classifier."""
    for name, child in model.named_children():
        if name in _HEADS:
            continue
        if type(child) is nn.Sequential:
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())
        else:
            yield name


def _crop(feature: Tensor, stride: int, surplus: int, image: Tensor) -> Tensor:
    """The cells that lie on the image."""
    rows, columns = (-(-side // stride) for side in image.shape[-2:])
    return feature[..., surplus : surplus + rows, surplus : surplus + columns]
