"""VGG's classifier as convolutions, as small as wanted: fc6, fc7 and the scores, and ImageNet's weights for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.encoders.loading import LoadReport
from densepred.encoders.weights import read_state_dict, weights_file
from densepred.errors import ConfigurationError, WeightsError
from densepred.initialisers import initialise

_WINDOW = 7  # fc6 of VGG reads 7 x 7 cells
_CHANNELS = 512  # of the last pooling
_HIDDEN = 4096  # channels of fc6 and fc7
_TAPS = {1: [3], 2: [0, 6], 3: [0, 3, 6], 4: [0, 2, 4, 6], 7: list(range(7))}  # symmetric and evenly spaced
_NAMES = {"fc6": "classifier.0", "fc7": "classifier.3"}


class VGGClassifier(nn.Module):
    """fc6, a dilated convolution, fc7 and the scores, both 1x1, with dropout after fc6 and fc7.

    fc6 and fc7 start by the Kaiming rule, the scores from N(0, 0.01).

    Args:
        in_channels: Channels of the map.
        out_channels: Number of planes.
        kernel_size: Side of fc6's kernel.
        dilation: Of fc6.
        width: Channels of fc6 and fc7.
        dropout: Probability of dropping an activation of fc6 and of fc7.
        norm: Normalisation after fc6 and fc7.
        activation: Nonlinearity after them.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W).

    Raises:
        ConfigurationError: If no padding keeps the map's size: an even kernel with an odd dilation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int,
        width: int,
        dropout: float,
        norm: Norm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        padding, odd = divmod(dilation * (kernel_size - 1), 2)
        if kernel_size < 1 or odd:
            raise ConfigurationError(
                f"fc6 has a kernel of {kernel_size} x {kernel_size} and dilation {dilation} on this encoder's map: no "
                "padding keeps its cells in place. Give an odd kernel, or an even one and an encoder and a dilation "
                "that make its dilation even."
            )
        self.fc6 = ConvNormAct(in_channels, width, kernel_size, 1, dilation, norm, activation)
        cast(nn.Conv2d, self.fc6[0]).padding = (padding, padding)  # also of even kernels
        self.fc7 = ConvNormAct(width, width, 1, norm=norm, activation=activation)
        self.score = nn.Conv2d(width, out_channels, 1)
        self.dropout = nn.Dropout(dropout)
        initialise(self, "kaiming")
        initialise(self.score, "gaussian")

    def forward(self, feature: Tensor) -> Tensor:
        """A map to planes."""
        planes: Tensor = self.score(self.dropout(self.fc7(self.dropout(self.fc6(feature)))))
        return planes


def subsampled(weight: Tensor, width: int, kernel_size: int) -> Tensor:
    """Evenly spaced filters of fc6, and evenly spaced taps of each, symmetric about its centre.

    Args:
        weight: Of fc6, linear or as a convolution.
        width: Filters to keep of the 4096: filter i is their filter floor(i * 4096 / width).
        kernel_size: Taps to keep a side of the 7: all, 0 2 4 6, 0 3 6, 0 6, or the centre alone.

    Shape:
        weight: (4096, 25088) or (4096, 512, 7, 7); returns (width, 512, kernel_size, kernel_size).
    """
    taps = torch.tensor(_TAPS[kernel_size])
    kernels = weight.reshape(_HIDDEN, _CHANNELS, _WINDOW, _WINDOW)
    return kernels[_kept(width)][:, :, taps][..., taps]


def _kept(width: int) -> Tensor:
    return torch.arange(width) * _HIDDEN // width


def load_vgg_classifier(branches: Mapping[str, VGGClassifier], weights: str | Path, owner: str) -> LoadReport:
    """Sub-samples fc6 and fc7 of an ImageNet VGG into every branch, and logs what was done.

    Args:
        branches: What to load into, by the name of their tensors in the decoder.
        weights: "imagenet" for torchvision's VGG16 (IMAGENET1K_V1), or the path of any file with its keys.
        owner: The decoder's name.

    Raises:
        ConfigurationError: If VGG's weights have no place in these branches.
        WeightsError: If the file cannot be found or read, or has no fc6 and fc7 of VGG.
    """
    for branch in branches.values():
        _check_place(branch, owner)
    file = weights_file(weights, "vgg16")
    tensors = read_state_dict(file)
    found = _classifier_of(tensors, str(file), owner)
    adapted: dict[str, str] = {}
    for name, branch in branches.items():
        adapted |= {f"{name}{key}": change for key, change in _fill(branch, found).items()}
    used = {key for layer in _NAMES.values() for key in tensors if f"{layer}." in key}
    unused = tuple(key for key in tensors if key not in used)
    report = LoadReport(str(file), f"{owner} (vgg16's fc6 and fc7)", tuple(adapted), adapted, unused=unused)
    report.log()
    return report


def _check_place(branch: VGGClassifier, owner: str) -> None:
    fc6, fc7 = cast(nn.Conv2d, branch.fc6[0]), cast(nn.Conv2d, branch.fc7[0])
    width, channels, (kernel_size, _) = fc6.out_channels, fc6.in_channels, fc6.kernel_size
    problem = ""
    if channels != _CHANNELS:
        problem = f"the encoder's coarsest map has {channels} channels, VGG's {_CHANNELS}. Take DeepLabVGGEncoder"
    elif not isinstance(branch.fc6[1], nn.Identity) or is_parametrized(fc6):
        problem = "fc6 and fc7 are normalised, VGG's are not. Set norm to none"
    elif fc7.in_channels != width:
        problem = "maxout doubles the filters. Take another activation"
    elif width > _HIDDEN or kernel_size not in _TAPS:
        problem = (
            f"fc6 has {width} filters of {kernel_size} x {kernel_size} taps, which {_HIDDEN} of {_WINDOW} x {_WINDOW} "
            f"cannot be thinned to. Take a width of at most {_HIDDEN} and a kernel of {', '.join(map(str, _TAPS))}"
        )
    if problem:
        raise ConfigurationError(f"{owner}: weights cannot be used: {problem}, or set weights to null.")


def _classifier_of(tensors: dict[str, Tensor], source: str, owner: str) -> dict[str, Tensor]:
    """fc6's and fc7's tensors, whatever stands before their names in the file."""
    shapes = {
        "fc6.weight": _HIDDEN * _CHANNELS * _WINDOW**2,
        "fc6.bias": _HIDDEN,
        "fc7.weight": _HIDDEN**2,
        "fc7.bias": _HIDDEN,
    }
    found = {}
    for name, count in shapes.items():
        layer, _, kind = name.partition(".")
        theirs = f"{_NAMES[layer]}.{kind}"
        fitting = [value for key, value in tensors.items() if f".{key}".endswith(f".{theirs}")]
        if not fitting or fitting[0].numel() != count or not fitting[0].isfinite().all():
            shape = f"one of shape {tuple(fitting[0].shape)}" if fitting else ""
            came = f"it has {shape or ', '.join(list(tensors)[:3]) + ', ...'}"
            raise WeightsError(
                f"weights: {source} has no {theirs} of {count} finite numbers, VGG's {layer}, for {owner}: {came}. "
                "Give a file with the keys of torchvision's vgg16, classifier included, or null for random weights."
            )
        found[name] = fitting[0]
    return found


@torch.no_grad()
def _fill(branch: VGGClassifier, found: dict[str, Tensor]) -> dict[str, str]:
    """Copies what is kept of fc6 and fc7; returns what was done, by the tensors' names."""
    fc6 = cast(nn.Conv2d, branch.fc6[0])
    width, kernel_size = fc6.out_channels, fc6.kernel_size[0]
    kept = _kept(width)
    own = {
        "fc6.0.weight": subsampled(found["fc6.weight"], width, kernel_size),
        "fc6.0.bias": found["fc6.bias"][kept],
        "fc7.0.weight": found["fc7.weight"].reshape(_HIDDEN, _HIDDEN, 1, 1)[kept][:, kept],
        "fc7.0.bias": found["fc7.bias"][kept],
    }
    state = branch.state_dict()
    for name, value in own.items():
        state[name].copy_(value)  # a state dict shares the parameters' memory
    taps = f", {kernel_size} x {kernel_size} of {_WINDOW} x {_WINDOW} taps"
    return {name: f"{width} of {_HIDDEN} filters{taps if name == 'fc6.0.weight' else ''}" for name in own}
