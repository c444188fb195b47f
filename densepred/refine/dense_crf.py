"""Dense CRF: labels that agree with those of pixels near by and of the same colour."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.masked import without_autocast
from densepred.refine.base import Refiner
from densepred.refine.permutohedral import PermutohedralFilter

Normalisation = Literal["symmetric", "after", "before", "none"]
"""How a kernel is divided by what it makes of ones, see `DenseCRF`."""

Published = Literal["example", "pydensecrf", "deeplab_v1", "deeplab_v2", "deconvnet", "crf_rnn"]
"""Whose parameters, see `PUBLISHED`."""

PUBLISHED: dict[str, dict[str, float]] = {
    "example": {"smooth": 3, "smooth_weight": 3, "near": 60, "colour": 20, "weight": 10},
    "pydensecrf": {"smooth": 3, "smooth_weight": 3, "near": 80, "colour": 13, "weight": 10},
    "deeplab_v1": {"smooth": 3, "smooth_weight": 3, "near": 49, "colour": 5, "weight": 4},
    "deeplab_v2": {"smooth": 1, "smooth_weight": 3, "near": 67, "colour": 3, "weight": 4},
    "deconvnet": {"smooth": 3, "smooth_weight": 3, "near": 20, "colour": 3, "weight": 5},
    "crf_rnn": {"smooth": 3, "smooth_weight": 3, "near": 160, "colour": 3, "weight": 5},
}
"""Parameters by who published them: the example program of the authors (the default), pydensecrf's README, and networks
that were refined with them."""


Answer = Callable[[Tensor], Tensor]

_ROWS = 2**15
"""So many pixels are worked on at a time, so that they stay in the processor's cache."""
_LONG = 16
"""From so many labels on torch's softmax is the faster one."""


class DenseCRF(Refiner):
    """Mean-field inference in a conditional random field in which every pixel is joined to every other one.

    The energy of labels x is the sum of -log P(x_i) and, for all pairs of pixels with different labels, of

        smooth_weight exp(-|p_i - p_j|^2 / (2 smooth^2))
        + weight exp(-|p_i - p_j|^2 / (2 near^2) - |I_i - I_j|^2 / (2 colour^2))

    with positions p in pixels and colours I from 0 to 255. Starting at Q = P, each iteration makes Q the softmax of the
    scores log P plus the weighted sum of both kernels' messages K Q. The kernels run on a permutohedral lattice, in
    time linear in the pixels, and each is normalised by n = K 1:

    - "symmetric": n^-1/2 K n^-1/2 Q (pydensecrf and the authors' later code);
    - "after": (K Q) / n (their code of 2011, CRF as RNN); "before": K (Q / n); "none": K Q.

    Gradients flow to the scores, not to the image.

    Args:
        smooth: Standard deviation of the smoothness kernel, pixels.
        smooth_weight: Its weight.
        near: Standard deviation of position in the appearance kernel, pixels.
        colour: Standard deviation of colour in it, of 255.
        weight: Its weight.
        iterations: How many; 0 gives the softmax of the scores.
        normalisation: See above.
        negligible: Labels that are at no pixel as probable as this after the first iteration take no part in the
            others, for speed; their probability is 0. With 0 all labels take part, as they do in `refined`.

    Shape:
        scores: (B, C, H, W), logits or logarithms of probabilities.
        image: (B, any channels, H, W), uint8, or floating point in [0, 1].
        returns: probabilities (B, C, H, W), float32 (float64 of float64 scores).

    Raises:
        ConfigurationError: If a standard deviation is not above 0, if image and scores differ in size, or standard
            deviations are too small for the image.

    Reference:
        Krähenbühl, Koltun. Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials. NIPS 2011.
        arXiv:1210.5644; the normalisations: Parameter Learning and Convergent Inference for Dense Random Fields. ICML
        2013. Parameters by other authors: `DenseCRF.published`.

    Example:
        >>> scores = torch.zeros(1, 2, 8, 8)
        >>> scores[:, 1, 3, 3] = 1.0  # one pixel thinks otherwise
        >>> scores[:, 0] += 0.5
        >>> DenseCRF()(scores, torch.zeros(1, 3, 8, 8)).argmax(1).sum().item()
        0
    """

    def __init__(
        self,
        smooth: float = 3.0,
        smooth_weight: float = 3.0,
        near: float = 60.0,
        colour: float = 20.0,
        weight: float = 10.0,
        iterations: int = 10,
        normalisation: Normalisation = "symmetric",
        negligible: float = 0.0,
    ) -> None:
        super().__init__()
        if min(smooth, near, colour) <= 0 or iterations < 0:
            raise ConfigurationError(
                f"DenseCRF wants standard deviations above 0 and at least 0 iterations; got smooth={smooth}, "
                f"near={near}, colour={colour}, iterations={iterations}."
            )
        if not 0 <= negligible <= 1:
            raise ConfigurationError(f"DenseCRF: negligible is {negligible}; expected a probability.")
        if normalisation not in ("symmetric", "after", "before", "none"):
            raise ConfigurationError(
                f"DenseCRF: normalisation is {normalisation!r}; expected symmetric, after, before or none."
            )
        self.smooth = smooth
        self.smooth_weight = smooth_weight
        self.near = near
        self.colour = colour
        self.weight = weight
        self.iterations = iterations
        self.normalisation: Normalisation = normalisation
        self.negligible = negligible

    @staticmethod
    def published(name: Published, iterations: int = 10, negligible: float = 0.0) -> "DenseCRF":
        """One with the parameters of `PUBLISHED`."""
        if name not in PUBLISHED:
            raise ConfigurationError(f"There is no published CRF {name!r}; expected one of {', '.join(PUBLISHED)}.")
        return DenseCRF(**PUBLISHED[name], iterations=iterations, negligible=negligible)  # type: ignore[arg-type]

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """Probabilities of labels."""
        with without_autocast(scores):
            return self._probable(scores, image)

    def refined(self, scores: Tensor, image: Tensor) -> Tensor:
        """Scores whose softmax the probabilities are, of all labels, to train on."""
        with without_autocast(scores):
            rows, kernels = self._rows(scores, image), self._kernels(image, scores)
            return _planes(self._iterated(rows, _probabilities(rows), kernels, self.steps(), _themselves), scores)

    def _probable(self, scores: Tensor, image: Tensor) -> Tensor:
        rows, kernels = self._rows(scores, image), self._kernels(image, scores)
        labels, steps, q = None, self.steps(), _probabilities(rows)
        if self.negligible and steps > 1:
            q, steps = self._iterated(rows, q, kernels, 1, _probabilities), steps - 1
            highest = q.detach().amax(0)
            labels = (highest >= highest.max().clamp(max=self.negligible)).nonzero()[:, 0]
            rows, q = rows[:, labels], q[:, labels]
        found = self._iterated(rows, q, kernels, steps, _probabilities)
        if labels is not None:
            found = found.new_zeros(len(found), scores.shape[1]).index_copy(1, labels, found)
        return _planes(found, scores)

    def joined(self, messages: list[Tensor]) -> Tensor:
        """What is added to the scores: the kernels' messages (rows, labels), which have their weights already."""
        return sum(messages[1:], start=messages[0])

    def steps(self) -> int:
        """How many iterations."""
        return self.iterations

    def _rows(self, scores: Tensor, image: Tensor) -> Tensor:
        """Scores with a row a pixel (B * H * W, C)."""
        if image.shape[-2:] != scores.shape[-2:] or image.shape[0] != scores.shape[0]:
            raise ConfigurationError(
                f"DenseCRF: scores of size {tuple(scores.shape)} for an image of size {tuple(image.shape)}. Both must "
                "cover the same pixels."
            )
        return full_precision(scores).movedim(1, -1).reshape(-1, scores.shape[1])

    def _iterated(
        self, unary: Tensor, q: Tensor, kernels: list[PermutohedralFilter], steps: int, answer: Answer
    ) -> Tensor:
        """The answer made of the scores after some iterations that start at q."""
        if steps == 0 or not kernels:
            return answer(unary)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (unary, *self.parameters())):
            return self._recorded(unary, q, kernels, steps, answer)
        return self._in_place(unary, q, kernels, steps, answer)

    def _recorded(
        self, unary: Tensor, q: Tensor, kernels: list[PermutohedralFilter], steps: int, answer: Answer
    ) -> Tensor:
        """With all that autograd needs."""
        for following in [*[_probabilities] * (steps - 1), answer]:
            q = following(unary + self.joined([kernel(q) for kernel in kernels]))
        return q

    @torch.no_grad()
    def _in_place(
        self, unary: Tensor, q: Tensor, kernels: list[PermutohedralFilter], steps: int, answer: Answer
    ) -> Tensor:
        """The same, a few rows at a time and in place of `q`: new memory costs more than the arithmetic in it."""
        pieces = [slice(start, start + _ROWS) for start in range(0, len(unary), _ROWS)]
        for following in [*[_probabilities] * (steps - 1), answer]:
            lattices = [kernel.gathered(q) for kernel in kernels]
            for rows in pieces:
                messages = [kernel.read(lattice, rows=rows) for kernel, lattice in zip(kernels, lattices, strict=True)]
                q[rows] = following(self.joined(messages).add_(unary[rows]))
        return q

    def _kernels(self, image: Tensor, scores: Tensor) -> list[PermutohedralFilter]:
        dtype = full_precision(scores[:0]).dtype
        # made for this image, not in whatever mode the caller is: a kernel may be used again in training
        with torch.inference_mode(False), torch.no_grad():
            kernels = []
            if self.smooth_weight:
                batch, _, height, width = image.shape
                size, options = (batch, height, width), (self.smooth, self.smooth_weight, self.normalisation)
                kernels.append(_smoothness(size, *options, image.device, dtype))
            if self.weight:
                colours = image.to(dtype) * (1 if image.dtype == torch.uint8 else 255)
                places = _places(image.shape[-2:], image.device, dtype).expand(len(image), -1, -1, -1) / self.near
                features = torch.cat([places, colours / self.colour], dim=1).flatten(2)
                kernels.append(_normalised(features, self.weight, self.normalisation))
            return kernels


@lru_cache(maxsize=4)
def _smoothness(
    size: tuple[int, int, int],
    width: float,
    weight: float,
    normalisation: Normalisation,
    device: torch.device,
    dtype: torch.dtype,
) -> PermutohedralFilter:
    """The kernel of positions alone, the same for all images of a size."""
    places = _places(size[1:], device, dtype).expand(size[0], -1, -1, -1) / width
    return _normalised(places.flatten(2), weight, normalisation)


def _places(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Column and row of each pixel (2, H, W)."""
    rows, columns = (torch.arange(side, device=device, dtype=dtype) for side in size)
    return torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))])


def _normalised(features: Tensor, weight: float, normalisation: Normalisation) -> PermutohedralFilter:
    """The kernel of these features, divided by what it makes of ones, times its weight."""
    kernel = PermutohedralFilter(features)
    ones = features.new_ones(features.shape[0] * features.shape[2])
    norm = kernel(ones[:, None])[:, 0]
    if normalisation == "symmetric":
        root = (norm + 1e-20).rsqrt()
        kernel.scale(root, weight * root)
    elif normalisation == "after":
        kernel.scale(ones, weight / norm)
    elif normalisation == "before":
        kernel.scale(1 / norm, weight * ones)
    else:
        kernel.scale(ones, weight * ones)
    return kernel


def _planes(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of pixels as (B, C, H, W)."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).movedim(-1, 1)


def _probabilities(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; torch's own is several times slower where that is short."""
    if scores.shape[-1] >= _LONG:
        return scores.softmax(-1)
    raised = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True)


def _themselves(scores: Tensor) -> Tensor:
    return scores
