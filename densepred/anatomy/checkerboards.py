"""Checkerboards: the pattern that upsampling draws over a map in which there is nothing to see."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

# what is left of a constant after layers that take the mean away is rounding
_ROUNDING = 1e-9


@torch.no_grad()
def checkerboard(
    decoder: Callable[[list[Tensor]], Tensor],
    spec: FeatureSpec,
    equal_weights: bool = False,
    cells: int = 16,
) -> float:
    """How much the planes vary where the maps do not: 0 for a clean decoder, 1 for a pattern around zero.

    The decoder reads maps of ones. Away from the border, what it answers can only repeat itself from one cell of the
    coarsest map to the next; within a cell any difference is the decoder's own drawing, seen later wherever the image
    is flat. The measure is the standard deviation of each plane over the cell, in relation to the plane's root mean
    square (both taken over all planes together).

    With the decoder's own weights it says what is there now: transposed convolutions with random weights draw a
    pattern, bilinear and nearest upsampling do not, nor does a pixel shuffle initialised by ICNR before it is trained.
    With equal weights it says what the geometry builds in, whatever is learned: a kernel that the stride does not
    divide gives neighbouring cells different numbers of taps.

    Args:
        decoder: A decoder, or any callable from maps to planes. A module is measured on a copy in evaluation mode and
            double precision, whose convolutions repeat the border instead of padding with zeros: that edge is not seen.
        spec: The maps that it reads; they start at the image's corner.
        equal_weights: Measure a copy whose kernels have equal weights and whose norms and biases do nothing.
        cells: Cells a side of the coarsest map. Of these the middle two are looked at; raise it where transposed
            convolutions carry the border further than `cells / 2 - 1` cells.

    Shape:
        returns: a number from 0 to 1.

    Raises:
        ConfigurationError: If the weights of what is no module should be made equal; if there are fewer than 4 cells,
            or an odd number; if the planes do not cover the maps.

    Reference:
        Odena, Dumoulin, Olah. Deconvolution and Checkerboard Artifacts. Distill 2016.

    Example:
        >>> from functools import partial
        >>> from densepred.decoders.transposed import TransposedConvDecoder
        >>> spec = FeatureSpec((1,), (2,))
        >>> build = partial(TransposedConvDecoder, spec, 1, widths=(1,))
        >>> [round(checkerboard(build(kernel_size=size), spec, equal_weights=True), 3) for size in (3, 4)]
        [0.436, 0.0]
    """
    if cells < 4 or cells % 2:
        raise ConfigurationError(f"checkerboard: cells is {cells}. Give an even number from 4.")
    read = _prepared(decoder, equal_weights)
    side = cells * spec.strides[-1]
    planes = read(
        [
            torch.ones(1, channels, side // stride, side // stride, dtype=torch.float64)
            for channels, stride in zip(spec.channels, spec.strides, strict=True)
        ]
    )
    height, width = planes.shape[-2:]
    if height % cells or height != width:
        raise ConfigurationError(
            f"checkerboard: the planes of {cells} x {cells} cells are {height} x {width}. Expected planes that cover "
            "the maps, with the same number of their cells for each; a decoder that crops cannot be measured."
        )
    period = height // cells
    middle = slice(height // 2 - period, height // 2 + period)
    seen = planes[0, :, middle, middle].flatten(1).double()
    size = math.sqrt(seen.square().mean().item())
    spread = math.sqrt(seen.var(1, correction=0).mean().item())
    return spread / size if spread > _ROUNDING * max(size, 1.0) else 0.0


def _prepared(decoder: Callable[[list[Tensor]], Tensor], equal_weights: bool) -> Callable[[list[Tensor]], Tensor]:
    if isinstance(decoder, nn.Module):
        twin = copy.deepcopy(decoder).to(device="cpu", dtype=torch.float64).eval()
        for layer in twin.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "replicate"
        if equal_weights:
            _make_equal(twin)
        return twin
    if equal_weights:
        raise ConfigurationError(
            f"checkerboard: equal_weights wants a module whose weights can be set; got a {type(decoder).__name__}."
        )
    return decoder


def _make_equal(module: nn.Module) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.ndim > 1:
            tensor.fill_(1 / tensor[0].numel())
        elif tensor.is_floating_point():
            tensor.fill_(0 if name.endswith(("bias", "running_mean")) else 1)
