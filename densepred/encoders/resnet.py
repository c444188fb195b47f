"""ResNet, ResNeXt and Wide ResNet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn
from torchvision.models import get_model

from densepred.encoders.base import Encoder
from densepred.encoders.dilation import dilate
from densepred.encoders.loading import LoadReport, load_pretrained
from densepred.encoders.options import OutputStride, check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

ResNetName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class ResNetEncoder(Encoder):
    """torchvision's ResNet without its classifier: the stem (stride 2) and the four stages (4, 8, 16, 32).

    The tensors have torchvision's names, so any of its state dicts loads by keys. Where `output_stride` takes a stage's
    stride away, the convolutions after it are dilated instead: at every second row and column the dilated maps equal
    the strided ones (of an image whose sides are multiples of 32). For Bottleneck networks that is torchvision's
    `replace_stride_with_dilation`; BasicBlock networks (18, 34) follow the same rule. With `multi_grid` it is DeepLab's
    rule instead, whose maps are no longer the strided ones.

    Args:
        name: torchvision's name of the network.
        weights: "imagenet" for torchvision's IMAGENET1K_V1, which its segmentation networks and most published figures
            start from (V2 is better on ImageNet itself, not in transfer; give its file to have it); the path of any
            file with torchvision's keys; None for torchvision's random initialisation. Downloads go to torch.hub's
            cache. What was loaded, missing and skipped is logged and kept in `load_report`.
        in_channels: Channels of the image. Other than 3, the pretrained first convolution is adapted by
            `adapt_input_channels`: grey images keep their response.
        mean: Mean of each channel, of an image in [0, 1]; by default that of all of torchvision's ImageNet weights.
        std: As `mean`.
        output_stride: Stride of the coarsest map: 32, or 16 or 8 by dilation.
        multi_grid: Factors on the dilation of the last stage's blocks, a number a block: (1, 2, 4) in DeepLab v3, which
            dilates them by 2, 4, 8 at `output_stride` 16 and by 4, 8, 16 at 8. All convolutions of a dilated stage then
            have their block's dilation; (1, 1, 1) is that rule without a grid, as in DeepLab v2 and
            segmentation_models_pytorch. None is torchvision's rule: a dilated stage's first convolution, which reads
            the finer map, keeps the dilation of the stage before.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: maps of 64, 64, 128, 256, 512 channels (Bottleneck: 64, 256, 512, 1024, 2048) at 1/2, 1/4, 1/8, 1/16,
            1/32 of the size, rounded up, none coarser than `output_stride`.

    Raises:
        ConfigurationError: If there is no such network or output stride; if `multi_grid` is given without dilation, or
            for another number of blocks.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. arXiv:1512.03385.
        Xie et al. Aggregated Residual Transformations for Deep Neural Networks. CVPR 2017. arXiv:1611.05431.
        Zagoruyko, Komodakis. Wide Residual Networks. BMVC 2016. arXiv:1605.07146.
        Yu, Koltun, Funkhouser. Dilated Residual Networks. CVPR 2017. arXiv:1705.09914 (the dilation).
        Chen, Papandreou, Schroff, Adam. Rethinking Atrous Convolution for Semantic Image Segmentation. 2017.
        arXiv:1706.05587 (the multi-grid; its release has a stem of three 3x3 convolutions, here one 7x7).

    Example:
        >>> import torch
        >>> encoder = ResNetEncoder("resnet18", output_stride=8)
        >>> encoder.spec
        FeatureSpec(channels=(64, 64, 128, 256, 512), strides=(2, 4, 8, 8, 8))
        >>> encoder(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))[-1].shape
        torch.Size([1, 512, 8, 12])
    """

    def __init__(
        self,
        name: ResNetName = "resnet18",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output_stride: OutputStride = 32,
        multi_grid: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(in_channels, mean, std)
        check_choice(type(self).__name__, "name", name, get_args(ResNetName))
        check_choice(type(self).__name__, "output_stride", output_stride, get_args(OutputStride))
        self.name = name
        model = get_model(name, weights=None)
        self.conv1 = model.conv1 if in_channels == 3 else _input_convolution(in_channels)
        self.bn1, self.relu, self.maxpool = model.bn1, model.relu, model.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = model.layer1, model.layer2, model.layer3, model.layer4
        coarsest = model.fc.in_features
        self.spec = FeatureSpec(
            channels=(64, coarsest // 8, coarsest // 4, coarsest // 2, coarsest),
            strides=(2, 4, *(min(stride, output_stride) for stride in (8, 16, 32))),
        )
        if multi_grid is not None:
            _check_grid(multi_grid, name, len(self.layer4), output_stride)
        dilated = [stage for stage, stride in ((self.layer3, 16), (self.layer4, 32)) if stride > output_stride]
        dilate(dilated, name)
        if multi_grid is not None:
            for i, stage in enumerate(dilated, start=1):
                _dilate_blocks(stage, 2**i, multi_grid if stage is self.layer4 else (1,) * len(stage))
        self.load_report: LoadReport | None = None
        if weights is not None:
            keep = [key for key, given in (("mean", mean), ("std", std)) if given is not None]
            self.load_report = load_pretrained(self, weights, name, "conv1.weight", ("fc.",), keep)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the stem's map and the four stages', finest first."""
        x = self.relu(self.bn1(self.conv1(self.normalise(image))))
        features = [x]
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _input_convolution(in_channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _check_grid(multi_grid: tuple[int, ...], name: str, blocks: int, output_stride: int) -> None:
    if output_stride == 32 and set(multi_grid) != {1}:
        raise ConfigurationError(
            f"ResNetEncoder: multi_grid {tuple(multi_grid)} multiplies the dilation of the last stage, which has none "
            "at output_stride 32. Set output_stride to 16 or 8, or leave multi_grid out."
        )
    if len(multi_grid) != blocks or min(multi_grid) < 1:
        raise ConfigurationError(
            f"ResNetEncoder: multi_grid is {tuple(multi_grid)}; the last stage of {name} has {blocks} blocks. Give "
            f"{blocks} numbers, 1 or more, such as {tuple(2**i for i in range(blocks))}."
        )


def _dilate_blocks(stage: nn.Sequential, dilation: int, factors: tuple[int, ...]) -> None:
    """Gives all convolutions of a block that look beyond a cell `dilation` times the block's factor."""
    for block, factor in zip(stage, factors, strict=True):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layer.dilation = layer.padding = (dilation * factor, dilation * factor)
