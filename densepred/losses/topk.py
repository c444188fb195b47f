"""Cross-entropy of the hardest pixels only."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.segmentation import known_labels, require_label_size
from densepred.sample import Kind


class TopKCrossEntropyLoss(Loss):
    """Cross-entropy of the hardest pixels: the K with the largest loss, or a share, or all below a probability.

    Mean of -ln p(true class) over the pixels that are kept. Kept are, in each image, the `pixels` known ones with the
    largest loss (bootstrapped cross-entropy), or the `share` of the known ones with the largest loss; with `threshold`
    also every pixel whose true class has a probability below it (online hard example mining, OHEM; `pixels` is then how
    many are kept at least). An image with fewer known pixels than that keeps them all. Every kept pixel of the batch
    weighs the same. Which pixels are kept is not differentiated through. Differs from FRRN's release where an image has
    fewer known pixels than `pixels`: missing ones count there, with loss 0, so that this image weighs less.

    Missing labels (255 in uint8, negative in wider integers) are never kept and give exactly zero gradient; without any
    valid pixel the loss is 0. Computed in float32 under autocast.

    Args:
        pixels: How many pixels of an image are kept; give this or `share`. FRRN: 32768 of 256 x 512.
        share: Which share of an image's known pixels is kept, above 0 up to 1.
        threshold: Probability of the true class below which pixels are kept anyway; 0.7 with `pixels` 100000 is what
            mmsegmentation calls OHEM (there over the batch).
        per_image: Keep so many of each image; otherwise so many times the batch size of the whole batch.

    Shape:
        output: (B, C, H, W), logits.
        target: (B, H, W), class indices of any integer dtype.

    Raises:
        ConfigurationError: If not exactly one of `pixels` and `share` is given, or a number is out of range.
        DataError: If a label is neither a class nor missing (as in `CrossEntropyLoss`).

    Reference:
        Pohlen, Hermans, Mathias, Leibe. Full-Resolution Residual Networks for Semantic Segmentation in Street Scenes.
        CVPR 2017. arXiv:1611.08323 (K = 512 * 64 pixels of each image).
        Wu, Shen, van den Hengel. Bridging Category-level and Instance-level Semantic Image Segmentation. 2016.
        arXiv:1605.06885 (online bootstrapping with a threshold and a least number).
        Shrivastava, Gupta, Girshick. Training Region-based Object Detectors with Online Hard Example Mining. CVPR 2016.
        arXiv:1604.03540.

    Example:
        >>> output = torch.tensor([[[[0.0, 50.0, 9.0]], [[0.0, 0.0, 0.0]]]])
        >>> TopKCrossEntropyLoss(pixels=1)(output, torch.tensor([[[0, 0, 255]]])).exp()
        tensor(2.)
    """

    kind = Kind.LABEL
    exclusive = True

    def __init__(
        self,
        pixels: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        per_image: bool = True,
    ) -> None:
        super().__init__()
        if (pixels is None) == (share is None):
            raise ConfigurationError(
                f"TopKCrossEntropyLoss: expected either pixels or share; got pixels={pixels} and share={share}."
            )
        if pixels is not None and pixels < 1:
            raise ConfigurationError(f"TopKCrossEntropyLoss: pixels must be at least 1; got {pixels}.")
        if share is not None and not 0 < share <= 1:
            raise ConfigurationError(f"TopKCrossEntropyLoss: share must be above 0 and at most 1; got {share}.")
        if threshold is not None and not 0 < threshold <= 1:
            raise ConfigurationError(f"TopKCrossEntropyLoss: threshold is a probability; got {threshold}.")
        self.pixels = pixels
        self.share = share
        self.threshold = threshold
        self.per_image = per_image

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits and labels to a scalar."""
        require_label_size("TopKCrossEntropyLoss", output, target)
        known, alarm = known_labels(target, output.shape[1])
        logits = torch.where(known.unsqueeze(1), full_precision(output), 0)
        loss = F.cross_entropy(logits, torch.where(known, target, 0).long(), reduction="none")
        # missing pixels come last, behind known ones without loss; who competes with whom stands in one row
        rows = torch.where(known, loss, -1).reshape(len(output) if self.per_image else 1, -1)
        hardest, kept = self._keep(rows, known.reshape(rows.shape).sum(1, keepdim=True), len(output))
        return torch.where(kept, hardest, 0).sum() / kept.sum().clamp(min=1) + alarm

    def _keep(self, loss: Tensor, known: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Losses (n, k), largest first, and which of them are kept, of losses (n, N) of which (n, 1) are known."""
        pixels = None if self.pixels is None else self.pixels * (1 if self.per_image else batch)
        if pixels is not None and self.threshold is None:
            # not a full sort: several times cheaper
            hardest = loss.topk(min(pixels, loss.shape[1]), sorted=False).values
            return hardest, hardest >= 0
        hardest = loss.sort(1, descending=True).values
        rank = torch.arange(loss.shape[1], device=loss.device)
        kept = rank < ((self.share or 0) * known).ceil() if pixels is None else rank < pixels
        if self.threshold is not None:
            kept = kept | (hardest > -math.log(self.threshold))
        return hardest, kept & (rank < known)
