"""CRFRefined: labels that follow the edges of the image."""

from collections.abc import Iterator

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence
from densepred.refine.dense_crf import DenseCRF

_LEAST = 1e-5
"""Probabilities are at least this before their logarithm, as pydensecrf has it: a CRF can overrule what was sure."""


class CRFRefined(Evidence):
    """Probabilities of labels, refined by a dense CRF on the image at its own size; other tasks are left as they are.

    Of binary labels both probabilities are refined; labels that can hold at once (multilabel) are left as they are.

    Args:
        evidence: Is asked first.
        crf: The CRF, with its parameters.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If there are no labels to refine.
    """

    def __init__(self, evidence: Evidence, crf: DenseCRF) -> None:
        super().__init__(evidence.tasks)
        if not any(task.refinable for task in evidence.tasks):
            raise ConfigurationError(
                f"A dense CRF refines labels; the tasks are {', '.join(task.name for task in evidence.tasks)}, of "
                "which none has labels that exclude each other. Leave the CRF out."
            )
        self.evidence = evidence
        self.crf = crf.eval()

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Refined evidence by task name."""
        evidence = self.evidence(image)
        return {
            task.name: self._refined(evidence[task.name], image) if task.refinable else evidence[task.name]
            for task in self.tasks
        }

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Those that the refined evidence started from, unrefined."""
        return self.evidence.answers(image)

    @property
    def averages(self) -> bool:
        """It is no mean of its answers: refined is what is their mean."""
        return False

    def _refined(self, probabilities: Tensor, image: Tensor) -> Tensor:
        single = probabilities.shape[1] == 1
        both = torch.cat([1 - probabilities, probabilities], dim=1) if single else probabilities
        refined: Tensor = self.crf(both.clamp(min=_LEAST).log(), image)
        return refined[:, 1:] if single else refined
