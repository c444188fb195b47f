"""The pixel-aligned network: an image's maps at a ray's pixel, and where along the ray, to the distance there."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.rays.field import rays_through
from densepred.sample import Kind, pad_planes


def positional_encoding(points: Tensor, octaves: int = 6) -> Tensor:
    """Coordinates in [-1, 1], then their sines and cosines at pi, 2 pi, 4 pi, ...

    Shape:
        points: (..., C). returns: (..., C * (1 + 2 * octaves)).

    Reference:
        Mildenhall et al. NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis. ECCV 2020.
        arXiv:2003.08934.

    Example:
        >>> positional_encoding(torch.zeros(2, 3)).shape
        torch.Size([2, 39])
    """
    waves = points.unsqueeze(-2) * (math.pi * 2.0 ** torch.arange(octaves, device=points.device))[:, None]
    return torch.cat([points, waves.sin().flatten(-2), waves.cos().flatten(-2)], -1)


class ResidualBlock(nn.Module):
    """x + fc(ReLU(fc(ReLU(x)))); the second layer starts at 0, so that the block starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _linear(width, width)
        self.second = _linear(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return cast(Tensor, x + self.second(F.relu(self.first(F.relu(x)))))


class PointDecoder(nn.Module):
    """Features of a ray's pixel, and points along the ray, to the ray distance at each point.

    The input is the features, the positional encoding of the point and that of the ray's direction, which is a distance
    function's constant 0 (the release keeps its place for other functions). All points of a ray share its features, so
    the first layer's product with them is taken once a ray: the same sum, several times cheaper.

    Args:
        features: Channels of the maps, in sum.
        width: Of the layers.
        blocks: How many residual blocks.
        octaves: Of the positional encoding.
        bounded: Whether the answer goes through tanh, which later code adds; without, any distance can be said.

    Shape:
        features: (B, R, features). points: (B, R, P, 3), in [-1, 1]. returns: (B, R, P).
    """

    def __init__(
        self, features: int, width: int = 128, blocks: int = 5, octaves: int = 6, bounded: bool = False
    ) -> None:
        super().__init__()
        self.features = features
        self.octaves = octaves
        self.bounded = bounded
        self.encoded = 3 * (1 + 2 * octaves)
        self.entry = _linear(features + 2 * self.encoded, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.score = _linear(width, 1)
        # answers start near 0, the mean of the field: its logarithm hardly corrects answers of many metres
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        """Ray distances, metres."""
        of_pixel, of_point, _ = torch.split(self.entry.weight, [self.features, self.encoded, self.encoded], dim=1)
        along = F.linear(positional_encoding(points, self.octaves), of_point)
        x = along + F.linear(features, of_pixel, self.entry.bias).unsqueeze(-2)
        answer = self.score(F.relu(self.blocks(x))).squeeze(-1)
        return cast(Tensor, answer.tanh() if self.bounded else answer)


class RayDistanceNetwork(nn.Module):
    """An encoder whose maps are read at the pixel of a ray, and a decoder that answers for points along it.

    All maps are resized to the size of the finest (bilinear, corners aligned, as released) and concatenated: 1024
    channels of a ResNet-18 or -34. A point is told by its place in the image, -1 to 1, and its depth, of which `near`
    to `far` is -1 to 1. Cells of the finest map cover pixels as everywhere in densepred.

    Args:
        encoder: Turns the image into maps.
        near: Metres of depth where rays begin.
        far: Metres of depth where they end.
        width: See `PointDecoder`.
        blocks: See `PointDecoder`.
        octaves: See `PointDecoder`.
        bounded: See `PointDecoder`.

    Shape:
        image: (B, C, H, W). pixels: (B, R, 2), (x, y). distances: (B, R, P), metres along the rays.
        intrinsics: (B, 3, 3). returns: (B, R, P), metres.

    Raises:
        ConfigurationError: If the range is none.

    Reference:
        Kulkarni, Johnson, Fouhey. Directed Ray Distance Functions for 3D Scene Reconstruction. ECCV 2022.
        arXiv:2112.04481. On ResNet-34 it has 21,591,105 parameters, as released.
        Yu, Ye, Tancik, Kanazawa. pixelNeRF. CVPR 2021. arXiv:2012.02190 (pixel-aligned features, blocks).

    Example:
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> network = RayDistanceNetwork(ResNetEncoder("resnet34"))
        >>> sum(p.numel() for p in network.parameters())
        21591105
    """

    def __init__(
        self,
        encoder: Encoder,
        near: float = 0.1,
        far: float = 10.0,
        width: int = 128,
        blocks: int = 5,
        octaves: int = 6,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < near < far:
            raise ConfigurationError(f"RayDistanceNetwork: near is {near} and far {far} m; expected 0 < near < far.")
        self.encoder = encoder
        self.near, self.far = near, far
        decoder = PointDecoder(sum(encoder.spec.channels), width, blocks, octaves, bounded)
        self.decoders = nn.ModuleDict({"rays": decoder})

    def maps(self, image: Tensor) -> Tensor:
        """All maps at the size of the finest, (B, sum of channels, H', W')."""
        size = self.encoder.padded_size(image.shape[-2], image.shape[-1])
        finest, *others = self.encoder(pad_planes(image, size, Kind.IMAGE))
        resized = [F.interpolate(one, size=finest.shape[-2:], mode="bilinear", align_corners=True) for one in others]
        return torch.cat([finest, *resized], 1)

    def along(self, maps: Tensor, pixels: Tensor, distances: Tensor, intrinsics: Tensor, size: Tensor) -> Tensor:
        """The ray distances, from the maps of an image of that size (width, height)."""
        # the finest map's cells may reach beyond the image
        stride = self.encoder.spec.strides[0]
        covered = pixels.new_tensor([maps.shape[-1] * stride, maps.shape[-2] * stride])
        place = (2 * pixels + 1) / covered - 1
        features = F.grid_sample(maps, place.unsqueeze(1).to(maps.dtype), padding_mode="border", align_corners=False)
        depth = distances * rays_through(pixels, intrinsics).forward
        in_range = 2 * (depth - self.near) / (self.far - self.near) - 1
        in_image = ((2 * pixels + 1) / size - 1).unsqueeze(-2).expand(*depth.shape, 2)
        points = torch.cat([in_image, in_range.unsqueeze(-1)], -1)
        return cast(Tensor, self.decoders["rays"](features.squeeze(2).transpose(1, 2), points))

    def forward(self, image: Tensor, pixels: Tensor, distances: Tensor, intrinsics: Tensor) -> Tensor:
        """The ray distances at points along rays, metres."""
        size = pixels.new_tensor([image.shape[-1], image.shape[-2]])
        return self.along(self.maps(image), pixels, distances, intrinsics, size)


def _linear(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.kaiming_normal_(layer.weight, mode="fan_in")
    nn.init.zeros_(layer.bias)
    return layer
