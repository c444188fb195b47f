"""InferenceOptions: how an image is asked about, by name; the flags of `predict` and of `test`."""

from dataclasses import dataclass

from densepred.errors import ConfigurationError
from densepred.inference.augmented import TestTimeAugmentation
from densepred.inference.dropout import MonteCarloDropout
from densepred.inference.evidence import Evidence, Merge
from densepred.inference.refined import CRFRefined
from densepred.inference.rescaled import Rescaled
from densepred.refine.dense_crf import DenseCRF, Published

_NEGLIGIBLE = 0.01
"""Labels that the CRF leaves out, see `DenseCRF`: on VOC 99.9 % and more of the labels stay the same."""


@dataclass(frozen=True)
class InferenceOptions:
    """What is done around a network to answer for an image. The defaults ask it once, about the image as it is.

    They are applied from the inside out: the budget, tiles, samples of dropout, sizes and mirror images, the shorter
    side, the CRF.

    Args:
        scales: Ask at these factors of the image's size, see `TestTimeAugmentation`.
        flip: Ask about the mirror image too.
        short_sides: Ask at these shorter sides too (pixels); at these alone with `scales` empty.
        merge: How answers on labels are joined: mean (of probabilities), logit or max.
        mc_dropout: Samples of Monte Carlo dropout; 0 for none.
        tile: Side of the tiles in which large images are asked about, see `Tiled`; none for whole images.
        overlap: How far tiles overlap: a share of the tile below 1, or pixels; a quarter by default.
        short_side: Bring images to this shorter side first (pixels), see `Rescaled`.
        crf: Refine labels by a dense CRF with these published parameters, see `densepred.refine.dense_crf.PUBLISHED`.
        budget: What each asking of a network with exits may cost: operations (0.5gmac) or time (200ms), see
            `AnytimeEvidence`; every tile, size and mirror image has it anew, as every network of an ensemble has.
        confidence: Leave such a network at the first exit that is so sure: one number, or one an exit but the last.

    Raises:
        ConfigurationError: If an option is out of its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    short_sides: tuple[int, ...] = ()
    merge: Merge = "mean"
    mc_dropout: int = 0
    tile: int | None = None
    overlap: int | float | None = None
    short_side: int | None = None
    crf: Published | None = None
    budget: str | None = None
    confidence: tuple[float, ...] = ()

    def applied(self, evidence: Evidence) -> Evidence:
        """The evidence with all that is asked for around it; itself where nothing is."""
        if self.mc_dropout < 0:
            raise ConfigurationError(f"mc_dropout is {self.mc_dropout}; expected a number of samples, or 0.")
        if self.budget is not None or self.confidence:
            from densepred.inference.anytime import Budget, within

            evidence = within(evidence, None if self.budget is None else Budget.parse(self.budget), self.confidence)
        evidence = self._tiled(evidence)
        if self.mc_dropout:
            evidence = MonteCarloDropout(evidence, self.mc_dropout)
        if self.augments:
            evidence = TestTimeAugmentation(evidence, self.scales, self.flip, self.short_sides, self.merge)
        if self.short_side is not None:
            evidence = Rescaled(evidence, self.short_side)
        if self.crf is not None:
            evidence = CRFRefined(evidence, DenseCRF.published(self.crf, negligible=_NEGLIGIBLE))
        return evidence

    @property
    def augments(self) -> bool:
        """Whether other views of the image are asked about than itself."""
        return self.flip or bool(self.short_sides) or self.scales != (1.0,)

    def _tiled(self, evidence: Evidence) -> Evidence:
        if self.tile is None:
            return evidence
        from densepred.inference.tiling import Tiled

        return Tiled(evidence, self.tile) if self.overlap is None else Tiled(evidence, self.tile, self.overlap)
