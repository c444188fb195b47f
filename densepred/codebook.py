"""Normals as shares of codewords, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from densepred.blocks import full_precision
from densepred.codewords import resolved, triangulate
from densepred.largest import largest_plane
from densepred.losses.masked import without_autocast
from densepred.sample import valid_normals

_AT_ONCE = 1 << 15
"""Normals whose shares in all triangles are looked at together."""


class Codebook(nn.Module):
    """Surface normals as distributions over a few directions, the codewords, and back.

    The codewords are triangulated on the sphere. A normal lies in one triangle, and is encoded as its barycentric
    weights there: the three shares w >= 0, summing to 1, for which w1 c1 + w2 c2 + w3 c3 points along it. A normal
    outside of all triangles (beyond the outermost codewords) is encoded as the nearest point of an edge or codeword.

    A distribution is decoded by the triangle whose three codewords have the greatest summed probability: the sum of the
    three, weighted by their probabilities, made unit length. `expectation`, the sum over all codewords, is the other
    way; it blurs where a distribution has two peaks, and can be averaged. Both give back what was encoded.

    It has no parameters; codewords and triangles are buffers.

    Args:
        codebook: A number of codewords, spread over the hemisphere that faces the camera (`hemisphere_codewords`); a
            file that `densepred codebook` fits to normals; or unit vectors.

    Attributes:
        values: The codewords as plain numbers.
        codewords: (K, 3).
        triangles: (T, 3), indices of codewords.

    Raises:
        ConfigurationError: If the codewords are no unit vectors, are equal, or lie in a plane.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958;
        Ladický, Zeisl, Pollefeys. Discriminatively Trained Dense Surface Normal Estimation. ECCV 2014.

    Example:
        >>> book = Codebook(40)
        >>> normal = torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)
        >>> shares = book.encode(normal)
        >>> shares.shape, int((shares > 0).sum())
        (torch.Size([1, 40, 1, 1]), 3)
        >>> torch.allclose(book.decode(shares), normal, atol=1e-6)
        True
    """

    codewords: Tensor
    triangles: Tensor
    _inverses: Tensor

    def __init__(self, codebook: int | str | Sequence[Sequence[float]] = 40) -> None:
        super().__init__()
        self.values = resolved(codebook)
        words = np.array(self.values, np.float64)
        words /= np.linalg.norm(words, axis=1, keepdims=True)
        triangles = triangulate(words)
        # columns are corners: its inverse takes a direction to its weights
        inverses = np.linalg.inv(words[triangles].transpose(0, 2, 1))
        self.register_buffer("codewords", torch.tensor(words.tolist()))
        self.register_buffer("triangles", torch.tensor(triangles.tolist()))
        self.register_buffer("_inverses", torch.tensor(inverses.tolist()))

    def __len__(self) -> int:
        return len(self.values)

    def nearest(self, normals: Tensor) -> Tensor:
        """The codeword at the smallest angle: (B, 3, H, W) to indices (B, H, W)."""
        with without_autocast(normals):
            cosine = torch.einsum("bchw,kc->bkhw", full_precision(normals), self.codewords)
            return largest_plane(cosine, torch.int64)

    @torch.no_grad()
    def encode(self, normals: Tensor, soft: bool = True) -> Tensor:
        """Normals to shares of codewords.

        Args:
            normals: Unit vectors; of a missing normal (the zero vector) all shares are 0.
            soft: Barycentric weights; otherwise all is the nearest codeword's.

        Shape:
            normals: (B, 3, H, W). Returns (B, K, H, W).
        """
        batch, _, height, width = normals.shape
        known = valid_normals(normals)
        flat = torch.where(known[:, None], full_precision(normals), 0).permute(0, 2, 3, 1).reshape(-1, 3)
        with without_autocast(normals):
            shares = torch.cat([self._shares(part, soft) for part in torch.split(flat, _AT_ONCE)])
        shares = shares * known.reshape(-1, 1)
        return shares.view(batch, height, width, len(self)).permute(0, 3, 1, 2)

    def _shares(self, normals: Tensor, soft: bool) -> Tensor:
        cosine, nearest = (normals @ self.codewords.to(normals).T).max(1, keepdim=True)
        hard = normals.new_zeros(len(normals), len(self)).scatter_(1, nearest, 1.0)
        if not soft:
            return hard
        weights = torch.einsum("tij,nj->nti", self._inverses.to(normals), normals)
        # inside one triangle all three are at least 0; outside, the triangle that fails by least
        best = weights.amin(2).argmax(1)
        rows = torch.arange(len(normals), device=normals.device)
        corners = self.triangles[best]
        weights = weights[rows, best].clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        vectors = torch.einsum("ni,nic->nc", weights, self.codewords.to(normals)[corners])
        reached = (vectors * normals).sum(1, keepdim=True) / torch.linalg.vector_norm(
            vectors, dim=1, keepdim=True
        ).clamp(min=1e-12)
        soft_shares = torch.zeros_like(hard).scatter_(1, corners, weights)
        # rounding lets a codeword itself miss its triangles by a hair
        return torch.where(reached >= cosine - 1e-6, soft_shares, hard)

    def decode(self, probabilities: Tensor) -> Tensor:
        """The triangle of the greatest summed probability to the unit vector that its codewords' shares make.

        Shape:
            probabilities: (B, K, H, W). Returns (B, 3, H, W).
        """
        probabilities = full_precision(probabilities)
        corners = [probabilities.index_select(1, self.triangles[:, corner]) for corner in range(3)]
        best = largest_plane(corners[0] + corners[1] + corners[2], torch.int64)[:, None]
        words = self.codewords.to(probabilities)
        vectors = torch.zeros_like(probabilities[:, :3])
        for corner, shares in enumerate(corners):
            chosen = words[self.triangles[:, corner]][best[:, 0]].permute(0, 3, 1, 2)
            vectors = vectors + shares.gather(1, best) * chosen
        length: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors / length.clamp(min=1e-12)

    def expectation(self, probabilities: Tensor) -> Tensor:
        """The mean of all codewords under the distribution: at most of length 1, shorter the less sure it is.

        Shape:
            probabilities: (B, K, H, W). Returns (B, 3, H, W).
        """
        probabilities = full_precision(probabilities)
        # not by a matrix product, which autocast would round
        axes = [axis.view(1, -1, 1, 1) for axis in self.codewords.to(probabilities).unbind(1)]
        return torch.stack([(probabilities * axis).sum(1) for axis in axes], 1)
