"""An encoder that sees, beside the image, what other networks say of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.codebook import Codebook
from densepred.decoders.base import DecoderFactory
from densepred.encoders.base import Encoder
from densepred.encoders.loading import misfit
from densepred.encoders.weights import read_state_dict
from densepred.errors import ConfigurationError, WeightsError
from densepred.recipe import Recorded
from densepred.sample import Kind, pad_planes


class NormalsPrior(Recorded, nn.Module):
    """A finished network whose normals another network sees: encoder, decoder and codebook, all of them frozen.

    It always runs as in evaluation and without gradients, and its weights are buffers, no parameters: no optimizer
    finds them, and a checkpoint of the network that sees it holds them too.

    Args:
        encoder: As it was trained.
        decoder: As it was trained.
        codebook: That of its `CodebookNormals`; None for a network of the task `Normals`.
        weights: A checkpoint of densepred, of a run with the task `task`; None leaves random weights, for whoever loads
            them later.
        task: The name of the task in that checkpoint.

    Shape:
        image: (B, C, H, W). Returns unit vectors (B, 3, H, W).

    Raises:
        WeightsError: If the file is of another network.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: DecoderFactory,
        codebook: int | str | Sequence[Sequence[float]] | None = 40,
        weights: str | None = None,
        task: str = "normals",
    ) -> None:
        super().__init__()
        self.codebook = None if codebook is None else Codebook(codebook)
        if self.codebook is not None and "codebook" in self.init_args:  # a checkpoint needs no file
            self.init_args["codebook"] = codebook if isinstance(codebook, int) else self.codebook.values
        self.encoder = encoder
        self.decoder = decoder(encoder.spec, 3 if self.codebook is None else len(self.codebook))
        if weights is not None:
            self._load(weights, task)
        for part in (self.encoder, self.decoder):
            _freeze(part)
        self.train(False)

    def train(self, mode: bool = True) -> "NormalsPrior":
        """Remains in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """A raw image to unit vectors."""
        height, width = image.shape[-2:]
        size = self.encoder.padded_size(height, width)
        planes = self.decoder(self.encoder(pad_planes(image, size, Kind.IMAGE)))
        # of a codebook the distributions are interpolated, as its task does
        planes = full_precision(planes) if self.codebook is None else full_precision(planes).softmax(1)
        planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)[..., :height, :width]
        return F.normalize(planes, dim=1) if self.codebook is None else self.codebook.decode(planes)

    def _load(self, weights: str, task: str) -> None:
        tensors = read_state_dict(Path(weights).expanduser())
        for name, part in (("encoder", self.encoder), (f"decoders.{task}", self.decoder)):
            own = part.state_dict()
            for key, value in own.items():
                given = tensors.get(f"network.{name}.{key}", tensors.get(f"{name}.{key}"))
                problem = "is not in it" if given is None else misfit(given, value)
                if problem:
                    raise WeightsError(
                        f"NormalsPrior: {weights} is of another network: {name}.{key} {problem}. Give encoder, decoder "
                        f"and codebook as they were trained, and the task's name ({task!r})."
                    )
                with torch.no_grad():
                    value.copy_(given)


def _freeze(module: nn.Module) -> None:
    """Makes buffers of all parameters."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, value.detach())


class FusionEncoder(Encoder):
    """Any encoder that sees the image and, as further channels, the normals that finished networks predict for it.

    Wang, Fouhey and Gupta's fusion network is `WangLocalEncoder(in_channels=9)` behind it, with the global and the
    local network as priors: RGB, global normals, local normals. Their version with vanishing points has 18 channels:
    there are also normals of the layout, edges, and local normals rectified to the directions of the room
    (`densepred.manhattan`). These depend on more than the image, and are expected as channels of it behind the colours,
    in any order: an image of 12 channels and two priors, or one of 18 and none. The release does not tell its order.

    Normals, -1 to 1, enter as n / 2 + 1 / 2, as a picture of them would.

    Args:
        encoder: Made for the image's channels and three for each prior.
        priors: Networks that see the image's first channels, as many as each was made for.
        in_channels: Channels of the image.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: the maps of `encoder`.

    Raises:
        ConfigurationError: If the numbers of channels do not fit together.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958.

    Example:
        >>> from functools import partial
        >>> from densepred.decoders.patches import PatchDecoder
        >>> from densepred.encoders.wang import WangGlobalEncoder, WangLocalEncoder
        >>> few = (2, 2, 2, 2)
        >>> prior = NormalsPrior(WangGlobalEncoder(widths=few), partial(PatchDecoder, cells=20), codebook=20)
        >>> encoder = FusionEncoder(WangLocalEncoder(6, few), [prior])
        >>> [tuple(feature.shape) for feature in encoder(torch.zeros(1, 3, 65, 91))]
        [(1, 288, 5, 7)]
    """

    def __init__(self, encoder: Encoder, priors: list[NormalsPrior], in_channels: int = 3) -> None:
        super().__init__(in_channels, (0.0,) * in_channels, (1.0,) * in_channels)
        if encoder.in_channels != in_channels + 3 * len(priors):
            raise ConfigurationError(
                f"FusionEncoder: an image of {in_channels} channels and {len(priors)} priors make "
                f"{in_channels + 3 * len(priors)}; {type(encoder).__name__} was built for {encoder.in_channels}. Set "
                "its in_channels."
            )
        wants = max((prior.encoder.in_channels for prior in priors), default=0)
        if wants > in_channels:
            raise ConfigurationError(
                f"FusionEncoder: a prior wants an image of {wants} channels, this one has {in_channels}."
            )
        self.encoder = encoder
        self.priors = nn.ModuleList(priors)
        self.spec = encoder.spec

    @property
    def multiple(self) -> int:
        """That of the encoder."""
        return self.encoder.multiple

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the encoder's maps."""
        maps: list[Tensor] = self.encoder(torch.cat([self.normalise(image), *self._seen(image)], dim=1))
        return maps

    def _seen(self, image: Tensor) -> Iterator[Tensor]:
        for prior in self.priors:
            normals: Tensor = prior(image[:, : cast(NormalsPrior, prior).encoder.in_channels])
            yield normals / 2 + 0.5
