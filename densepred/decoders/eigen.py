"""Scales 2 and 3 of Eigen and Fergus's network: the image is looked at again, twice as finely each time."""

from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import kaiming_fan_in_

EigenStart = Literal["published", "kaiming"]
HandOn = Literal["unit", "softmax", "none"]

_MARGIN = 4
_KERNEL = 5


class EigenScale(nn.Module):
    """One scale: a first layer on the image, shared, and a branch of 5x5 convolutions for each task.

    The first layer is a 9x9 convolution of stride 2 with a padding of 1 and a 3x3 max-pooling; it leaves out a margin
    of the image.

    Args:
        in_channels: Channels of the image.
        first: Channels of the first layer.
        joined: Channels that join those of the first layer before the branches.
        width: Channels inside of the branches.
        hidden: Hidden layers of a branch.
        stride: Of the pooling.
        planes: Number of planes of each branch.
        dropout: Share of the values that is dropped before a branch's last layer in training.
        start: Initialisation; see `EigenDecoder`.
    """

    def __init__(
        self,
        in_channels: int,
        first: int,
        joined: int,
        width: int,
        hidden: int,
        stride: int,
        planes: tuple[int, ...],
        dropout: float,
        start: EigenStart,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, first, 9, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride)
        self.middle = nn.ModuleList(_middle(first + joined, width, hidden, dropout) for _ in planes)
        self.last = nn.ModuleList(nn.Conv2d(width, count, _KERNEL, padding=_KERNEL // 2) for count in planes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                if start == "kaiming":
                    kaiming_fan_in_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, 0.0, 0.001 if layer is self.first else 0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def look(self, image: Tensor) -> Tensor:
        """The first layer's map of an image with its margin."""
        features: Tensor = self.pool(F.relu(self.first(image)))
        return features

    def branches(self, features: Tensor) -> list[Tensor]:
        """The planes of each task."""
        return [last(middle(features)) for middle, last in zip(self.middle, self.last, strict=True)]


class EigenDecoder(Decoder):
    """Scales 2 and 3 of Eigen & Fergus: the coarsest map's answer is refined at stride 4 and then at stride 2.

    Scale 2 looks at the finest map, which is the image where `EigenEncoder` is, at stride 4, joins the coarsest map to
    what it sees, and predicts. Scale 3 looks again, at stride 2: the first of its channels are replaced by what scale 2
    has predicted for all tasks, and it predicts anew. Both are convolutional; of an image of 220 x 296 they make maps
    of 55 x 74 and 109 x 147 as published (the last row and column are repeated once, to end where the image does).

    As in the release, scale 3's loss does not reach scale 2: train with `scales=2` first, then with 3 from that
    checkpoint (`init_from`), where all but scale 3 rests by itself; freeze the encoder too (`Freeze`), so that its
    dropout rests and no gradients are kept. `end_to_end` lets the gradient through, to train all at once.

    With `share_decoder` tasks share the first layers, and scale 3 of each sees scale 2's planes of all, as the
    published network of depth and normals has it; a branch a task does the rest.

    Args:
        spec: The encoder's maps; the finest and the coarsest are read.
        out_channels: Number of planes.
        scales: 2 leaves scale 3 out.
        end_to_end: Whether scale 3's loss trains scale 2 and the encoder.
        width: Channels of scale 3 and of the branches; scale 2's first layer has half as many more.
        bias_image: Height and width of a learned image that is added to planes of scale 2 that stand alone for their
            task, as depth's do: what is usual at each place. It is stretched to the planes. None leaves it out.
        hand_on: What scale 3 sees of tasks of several planes: "unit", the planes divided by their length at each pixel
            (normals), "softmax" (labels), or "none", as they are; or a choice for each task by its name, "unit" where
            there is none. A single plane is handed on as it is.
        crop: Height and width, in cells of stride 2, of the window that scale 3 refines in training, elsewhere scale
            2's planes stand, from which it learns nothing: for memory (55 x 74 in the release). The window is drawn
            once a batch. A loss that is a mean over all pixels is so much the smaller. None refines everything.
        dropout: Share of the values that is dropped before the last layers of scale 3, or of scale 2 where that is
            trained.
        initialisation: "published", N(0, 0.01) and for the layers on the image N(0, 0.001), or "kaiming".

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0), enlarged from stride 2, or 4, of the finest map.

    Raises:
        ConfigurationError: If an option is none of the choices, the crop is empty, or there are as many planes as
            scale 3 has channels.

    Reference:
        Eigen, Fergus. Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture. ICCV 2015. arXiv:1411.4734. Details are the release's, where the paper's table has 96 + C channels
        enter scale 3's branches, not 64. Its networks of labels, which see depth and normals too, are not built here.

    Example:
        >>> decoder = EigenDecoder(FeatureSpec((3, 64), (1, 4)), out_channels=4)
        >>> decoder([torch.zeros(1, 3, 220, 296), torch.zeros(1, 64, 55, 74)]).shape
        torch.Size([1, 4, 220, 296])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        scales: Literal[2, 3] = 3,
        end_to_end: bool = False,
        width: int = 64,
        bias_image: tuple[int, int] | None = (55, 74),
        hand_on: HandOn | dict[str, HandOn] = "unit",
        crop: tuple[int, int] | None = None,
        dropout: float = 0.0,
        initialisation: EigenStart = "published",
    ) -> None:
        super().__init__(spec, out_channels)
        for option, value, choices in (
            ("scales", scales, (2, 3)),
            *(
                ("hand_on", way, get_args(HandOn))
                for way in (hand_on.values() if isinstance(hand_on, dict) else [hand_on])
            ),
            ("initialisation", initialisation, get_args(EigenStart)),
        ):
            if value not in choices:
                raise ConfigurationError(
                    f"{type(self).__name__}: {option} is {value!r}. Expected one of: {', '.join(map(str, choices))}."
                )
        if crop is not None and min(crop) < 1:
            raise ConfigurationError(f"{type(self).__name__}: crop is {crop}. Expected cells of stride 2, 55 x 74 say.")
        if scales == 3 and out_channels >= width:
            raise ConfigurationError(
                f"{type(self).__name__}: {out_channels} planes of scale 2 replace as many of scale 3's {width} "
                "channels, and leave none. Give a larger width."
            )
        self.scales = scales
        self.end_to_end = end_to_end
        self.width = width
        self.bias_image = bias_image
        self.hand_on = hand_on
        self.crop = crop
        self.dropout = dropout
        self.initialisation: EigenStart = initialisation
        self.divide({"all": out_channels})

    def divide(self, planes: Mapping[str, int]) -> None:
        """A branch for each task."""
        counts = tuple(planes.values())
        chosen = self.hand_on
        self.ways = [chosen.get(name, "unit") if isinstance(chosen, dict) else chosen for name in planes]
        image, coarse = self.spec.channels[0], self.spec.channels[-1]
        rests = self.scales == 3 and not self.end_to_end
        dropout = 0.0 if rests else self.dropout
        self.scale2 = EigenScale(
            image, self.width * 3 // 2, coarse, self.width, 3, 2, counts, dropout, self.initialisation
        )
        single = [index for index, count in enumerate(counts) if count == 1] if self.bias_image else []
        size = self.bias_image or (1, 1)
        self.usual = nn.ParameterDict({str(index): nn.Parameter(torch.zeros(1, 1, *size)) for index in single})
        self.scale3: EigenScale | None = None
        if self.scales == 3:
            self.scale3 = EigenScale(image, self.width, 0, self.width, 2, 1, counts, self.dropout, self.initialisation)
        for part in (self.scale2, self.usual) if rests else ():
            part.requires_grad_(False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        finest = features[0]
        height, width = finest.shape[-2:]
        # whole cells of stride 4, and the margin that the first layers leave out
        right, bottom = -width % 4, -height % 4
        image = F.pad(finest, (_MARGIN, _MARGIN + right, _MARGIN, _MARGIN + bottom), mode="replicate")
        if self.scale3 is None:
            planes = torch.cat(self._coarse(image, features[-1]), dim=1)
            return _enlarged(planes, 4, height, width)
        coarse = self._coarse(image, features[-1])
        if not self.end_to_end:
            coarse = [planes.detach() for planes in coarse]
        return _enlarged(self._refined(self.scale3, image, coarse), 2, height, width)

    def _coarse(self, image: Tensor, glance: Tensor) -> list[Tensor]:
        """Scale 2's planes of each task, at stride 4."""
        seen = self.scale2.look(image)
        glance = F.interpolate(glance, size=seen.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat([seen, glance.to(seen.dtype)], dim=1)
        planes = self.scale2.branches(joined)
        for index, usual in self.usual.items():
            place = F.interpolate(usual, size=seen.shape[-2:], mode="bilinear", align_corners=False)
            planes[int(index)] = planes[int(index)] + place
        return planes

    def _refined(self, scale3: EigenScale, image: Tensor, coarse: list[Tensor]) -> Tensor:
        """Scale 3's planes of all tasks, at stride 2."""
        seen = scale3.look(image)
        rows, columns = seen.shape[-2:]
        told = torch.cat([_handed_on(planes, way) for planes, way in zip(coarse, self.ways, strict=True)], dim=1)
        told = F.interpolate(told, scale_factor=2.0, mode="nearest")[..., :rows, :columns]
        features = torch.cat([told.to(seen.dtype), seen[:, told.shape[1] :]], dim=1)
        if self.crop is None or not self.training:
            planes = torch.cat(scale3.branches(features), dim=1)
        else:
            planes = F.interpolate(torch.cat(coarse, dim=1), scale_factor=2.0, mode="nearest")[..., :rows, :columns]
            top, left, height, width = _window((rows, columns), self.crop)
            window = (..., slice(top, top + height), slice(left, left + width))
            planes = planes.clone()
            planes[window] = torch.cat(scale3.branches(features[window]), dim=1).to(planes.dtype)
        # a cell of stride 4 is two of stride 2: the last is one more than the margin leaves room for
        return F.pad(planes, (0, 1, 0, 1), mode="replicate")


def _handed_on(planes: Tensor, way: HandOn) -> Tensor:
    if planes.shape[1] == 1 or way == "none":
        return planes
    if way == "softmax":
        return planes.softmax(1)
    length = cast(Tensor, torch.linalg.vector_norm(planes, dim=1, keepdim=True))
    return planes / length.clamp(min=1e-2)


def _middle(channels: int, width: int, hidden: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(hidden):
        before = channels if index == 0 else width
        layers += [nn.Conv2d(before, width, _KERNEL, padding=_KERNEL // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(dropout))


def _window(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window at a random place."""
    height, width = min(crop[0], size[0]), min(crop[1], size[1])
    top, left = (int(torch.randint(side - part + 1, ())) for side, part in zip(size, (height, width), strict=True))
    return top, left, height, width


def _enlarged(planes: Tensor, factor: int, height: int, width: int) -> Tensor:
    larger = F.interpolate(planes, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return larger[..., :height, :width]
