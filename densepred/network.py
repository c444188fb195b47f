"""Encoder and decoders joined: a plain nn.Module, exportable, without Lightning."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.decoders.base import Decoder, DecoderFactory
from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.refine.base import Refiner
from densepred.sample import Kind, pad_planes

AUXILIARY = "auxiliary"
EXIT = "exit"


class DenseNetwork(nn.Module):
    """An encoder and a decoder for each task.

    Cell i of a map of stride s covers pixels [s*i, s*(i+1)). The image is therefore padded right and bottom (by
    replication) to the encoder's `multiple`; planes cover the padded image exactly, and what is upsampled from them is
    cropped to the image.

    Args:
        encoder: Turns the image into maps.
        decoder: Builds a decoder from the encoder's spec and a number of planes.
        out_channels: Number of planes of each task, by name.
        share_decoder: One decoder for all tasks, its planes split between them, instead of one each; it is told which
            are whose (`Decoder.divide`).
        auxiliary: Builds a second decoder for each task on all maps but the coarsest (PSPNet, Zhao et al. 2017,
            arXiv:1612.01105; torchvision's `aux_classifier`). It runs in training only.
        auxiliary_depth: How many such decoders: the k-th sees all maps but the k coarsest. More than one is deep
            supervision (Lee et al. Deeply-Supervised Nets. AISTATS 2015. arXiv:1409.5185).
        refine: Sees the image and planes of labels, upsampled to its size, and makes better ones of them: a dense CRF.
            Auxiliary planes are left as they are.
        refined: Names of the tasks whose planes it gets; all, where it is empty.

    Shape:
        image: (B, C, H, W), uint8 or floating point in [0, 1], above 32 pixels a side.
        returns: planes (B, out_channels[task], H, W) for each task; in training those of the auxiliary decoders too,
            under `<task>/auxiliary` (the further ones under `<task>/auxiliary2`, ...), and of decoders with several
            exits (`AnytimeDecoder`) those of the earlier ones, under `<task>/exit1`, ...

    Raises:
        ConfigurationError: If the encoder yields too few maps for the auxiliary decoders; if the refiner is made for
            another number of labels; if an image has 32 pixels a side or fewer.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: DecoderFactory,
        out_channels: dict[str, int],
        share_decoder: bool = False,
        auxiliary: DecoderFactory | None = None,
        auxiliary_depth: int = 1,
        refine: Refiner | None = None,
        refined: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_channels = dict(out_channels)
        self.share_decoder = share_decoder
        self.decoders = self._build(decoder, encoder.spec)
        self.auxiliary_decoders: nn.ModuleList | None = None
        if auxiliary is not None:
            maps = len(encoder.spec.strides)
            if not 1 <= auxiliary_depth < maps:
                way_out = f"Give 1 to {maps - 1}, or leave `auxiliary` out." if maps > 1 else "Leave `auxiliary` out."
                raise ConfigurationError(
                    f"auxiliary_depth is {auxiliary_depth}: {type(encoder).__name__} yields {maps} maps, and the k-th "
                    f"auxiliary decoder sees all but the k coarsest. {way_out}"
                )
            specs = [encoder.spec.without_coarsest(k) for k in range(1, auxiliary_depth + 1)]
            self.auxiliary_decoders = nn.ModuleList(self._build(auxiliary, spec) for spec in specs)
        self.refine = refine
        self.refined_tasks = tuple(refined or out_channels) if refine is not None else ()
        if refine is not None:
            for name in self.refined_tasks:
                refine.check(name, out_channels[name])

    def _build(self, decoder: DecoderFactory, spec: FeatureSpec) -> nn.ModuleDict:
        if self.share_decoder:
            shared = decoder(spec, sum(self.out_channels.values()))
            shared.divide(self.out_channels)
            return nn.ModuleDict({"shared": shared})
        return nn.ModuleDict({name: decoder(spec, channels) for name, channels in self.out_channels.items()})

    def _decode(self, decoders: nn.ModuleDict, features: list[Tensor], exit: int | None = None) -> dict[str, Tensor]:
        def planes_of(name: str) -> Tensor:
            decoder = cast(Decoder, decoders[name])
            return cast(Tensor, decoder(features)) if exit is None else decoder.at_exit(features, exit)

        if self.share_decoder:
            planes = torch.split(planes_of("shared"), list(self.out_channels.values()), dim=1)
            return dict(zip(self.out_channels, planes, strict=True))
        return {name: planes_of(name) for name in self.out_channels}

    @property
    def exits(self) -> int:
        """At how many places on the encoder's way there is an answer, the end included."""
        return min(cast(Decoder, decoder).exits for decoder in self.decoders.values())

    def planes(self, image: Tensor) -> dict[str, Tensor]:
        """Raw planes at the decoder's own stride, covering the image padded to the encoder's `multiple`.

        In training there are the auxiliary decoder's too, under `<task>/auxiliary`. Refined planes have stride 1.
        """
        return self.refined(self.planes_from(self.maps(image), (image.shape[-2], image.shape[-1])), image)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The encoder's maps of the image padded to its `multiple`."""
        maps: list[Tensor] = self.encoder(self._padded(image))
        return maps

    def maps_at_exits(self, image: Tensor) -> Iterator[list[Tensor]]:
        """As `maps`, at one exit after the other where the decoders have some; see `Encoder.exits`."""
        return self.encoder.exits(self._padded(image)) if self.exits > 1 else iter([self.maps(image)])

    def _padded(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if min(height, width) <= 32 and self.encoder.multiple > 1:
            raise ConfigurationError(
                f"The image is {height} x {width}; encoders and decoders need more than 32 pixels a side. "
                "Enlarge or pad the image first."
            )
        return pad_planes(image, self.padded_size(height, width), Kind.IMAGE)

    def planes_from(self, maps: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """As `planes`, from the maps of an image of that size, and not refined."""
        planes = self._decode(self.decoders, maps)
        if self.training:
            for exit in range(self.exits - 1):
                earlier = self._decode(self.decoders, maps, exit)
                planes |= {f"{name}/{EXIT}{exit + 1}": value for name, value in earlier.items()}
        if self.training and self.auxiliary_decoders is not None:
            for k, decoders in enumerate(self.auxiliary_decoders, start=1):
                extra = self._decode(cast(nn.ModuleDict, decoders), maps[:-k])
                planes |= {f"{name}/{AUXILIARY}{k if k > 1 else ''}": value for name, value in extra.items()}
        return self._cropped(planes, size)

    def planes_at_exit(self, exit: int, maps: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """As `planes_from`, of one of the exits, counted from 0, and its maps; no other one answers."""
        return self._cropped(self._decode(self.decoders, maps, exit), size)

    def _cropped(self, planes: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        # planes of stride 1 may go beyond an image whose encoder sets its own sizes; others end with the padded image
        height, width = self.padded_size(*size)
        return {name: value[..., :height, :width] for name, value in planes.items()}

    def refined(self, planes: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """The planes of an image, those of `refined_tasks` refined."""
        if self.refine is None:
            return planes
        height, width = image.shape[-2:]
        size = self.padded_size(height, width)
        refined = dict(planes)
        for name in self.refined_tasks:
            scores = F.interpolate(full_precision(planes[name]), size=size, mode="bilinear", align_corners=False)
            # what was padded is no part of the image, and nobody looks at the zeros that come back there
            answer = self.refine.planes(scores[..., :height, :width], image)
            refined[name] = F.pad(answer, (0, size[1] - width, 0, size[0] - height))
        return refined

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that planes of an image of this size cover."""
        return self.encoder.padded_size(height, width)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Planes upsampled (bilinear) and cropped to the image's size."""
        height, width = image.shape[-2:]
        size = self.padded_size(height, width)
        return {
            name: F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[..., :height, :width]
            if planes.shape[-2:] != (height, width)
            else planes
            for name, planes in self.planes(image).items()
        }
