"""Normals as classes: which of some directions, the codewords, is right at every pixel."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.codebook import Codebook
from densepred.encoders.options import check_choice
from densepred.losses.codebook import CodebookLoss
from densepred.sample import valid_normals
from densepred.tasks.base import Batch, upsample
from densepred.tasks.normals import Normals

Decode = Literal["triangle", "expectation"]
"""How a distribution over codewords becomes a normal."""


class CodebookNormals(Normals):
    """Surface normals by classification over a codebook: a score for each codeword, on any decoder.

    A regression that is torn between two directions answers with the one between them, which is neither; a distribution
    can say both. The planes are scores of the codewords, their softmax is the distribution, and `Codebook` makes a
    normal of it: by the triangle of the greatest summed probability, as published, or by the expectation.

    Flips, rolls and crops of training samples need nothing further, since true normals are encoded when the loss is
    computed. Averages over networks, mirror images, sizes and tiles are averages of vectors: of decoded normals, or of
    expectations, whose mean is the expectation of the mean distribution; a mirror image's have their x turned around.

    Missing normals (the zero vector) neither train nor count, and are drawn grey.

    Args:
        codebook: A number of codewords, spread evenly over the hemisphere that faces the camera; a file that
            `densepred codebook` fits to the training normals (its codewords are what a checkpoint keeps); or unit
            vectors, x right, y down, z forward.
        name: Sample key, output key and metric prefix.
        soft: Targets are barycentric weights of three codewords; otherwise the nearest codeword alone.
        decode: "triangle" or "expectation".
        per_cell: The loss compares the decoder's own cells with the mean true normal of each, as published; otherwise
            distributions upsampled to the pixels with each pixel's normal.
        weight: Factor of its loss in the sum over tasks.

    Shape:
        planes, output: (B, K, H, W), scores of K codewords.
        prediction, target: (B, 3, H, W), unit vectors.

    Raises:
        ConfigurationError: If the codewords are no unit vectors, are equal, or there is no such file.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958;
        Ladický, Zeisl, Pollefeys. Discriminatively Trained Dense Surface Normal Estimation. ECCV 2014 (the coding).

    Example:
        >>> task = CodebookNormals(40)
        >>> task.out_channels
        40
        >>> normal = torch.tensor([0.0, -0.6, -0.8]).view(1, 3, 1, 1)
        >>> scores = task.codebook.encode(normal).log()
        >>> torch.allclose(task.predict(scores), normal, atol=1e-6)
        True
    """

    def __init__(
        self,
        codebook: int | str | Sequence[Sequence[float]] = 40,
        name: str = "normals",
        soft: bool = True,
        decode: Decode = "triangle",
        per_cell: bool = True,
        weight: float = 1.0,
    ) -> None:
        check_choice(type(self).__name__, "decode", decode, ("triangle", "expectation"))
        loss = CodebookLoss(codebook, soft)
        super().__init__(name, loss, weight)
        if "codebook" in self.init_args:  # a checkpoint needs no file
            self.init_args["codebook"] = loss.init_args["codebook"]
        self.out_channels = len(loss.codebook)
        self.decode = decode
        self.per_cell = per_cell

    @property
    def codebook(self) -> Codebook:
        """The codewords, and the way to them and back."""
        book: Codebook = self.loss.codebook  # type: ignore[assignment]
        return book

    def activate(self, planes: Tensor) -> Tensor:
        """Scores as they are."""
        return planes

    def output_from_planes(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores at `size`, of the distributions between the cells' own.

        Scores themselves are not interpolated: between two cells only codewords would be left that both know of.
        """
        shares = upsample(full_precision(planes).softmax(1), size)
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()

    def evidence(self, output: Tensor) -> Tensor:
        """Vectors (B, 3, H, W): the expectation, or the decoded normal."""
        probabilities = output.softmax(1)
        if self.decode == "expectation":
            return self.codebook.expectation(probabilities)
        return self.codebook.decode(probabilities)

    def decide(self, evidence: Tensor) -> Tensor:
        """Vectors to unit vectors."""
        return super().predict(evidence)

    def predict(self, output: Tensor) -> Tensor:
        """Scores to unit vectors."""
        return self.decide(self.evidence(output))

    def loss_from_planes(self, planes: Tensor, batch: Batch) -> Tensor:
        """Scores at the decoder's own stride to a scalar."""
        if not self.per_cell:
            return super().loss_from_planes(planes, batch)
        loss: Tensor = self.loss(planes, cell_normals(self.target(batch), (planes.shape[-2], planes.shape[-1])))
        return loss


def cell_normals(normals: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean direction of the known normals of each cell of a grid over the image; zero where there are none.

    Shape:
        normals: (B, 3, H, W). Returns (B, 3, *size).

    Example:
        >>> halves = torch.tensor([[0.6, 0.0, 0.6, 0.0], [0.0] * 4, [-0.8, 0.0, -0.8, 0.0]]).view(1, 3, 1, 4)
        >>> cell_normals(halves, (1, 2))[0, :, 0, 0]
        tensor([ 0.6000,  0.0000, -0.8000])
    """
    if tuple(normals.shape[-2:]) == tuple(size):
        return normals
    known = torch.where(valid_normals(normals)[:, None], normals, 0)
    mean = F.adaptive_avg_pool2d(known, size)
    length = torch.linalg.vector_norm(mean, dim=1, keepdim=True)
    # normals that cancel each other out have no direction in common
    return torch.where(length > 1e-3, mean / length.clamp(min=1e-12), 0)
