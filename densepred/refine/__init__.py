"""Refinement: stages between planes and answers that see the image again."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.refine.base import Refiner as Refiner
    from densepred.refine.crf_rnn import CRFAsRNN as CRFAsRNN
    from densepred.refine.dense_crf import DenseCRF as DenseCRF
    from densepred.refine.permutohedral import PermutohedralFilter as PermutohedralFilter

__getattr__, __all__ = lazy_exports(
    __name__,
    {"CRFAsRNN": "crf_rnn", "DenseCRF": "dense_crf", "PermutohedralFilter": "permutohedral", "Refiner": "base"},
)
