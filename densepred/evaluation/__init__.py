"""Evaluation under named protocols: every choice that moves a number is stated, and checked before it is named."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.evaluation.callback import Evaluation as Evaluation
    from densepred.evaluation.names import named as named
    from densepred.evaluation.nyu import NYUDepth as NYUDepth
    from densepred.evaluation.nyu import NYUNormals as NYUNormals
    from densepred.evaluation.protocol import OwnSizeProtocol as OwnSizeProtocol
    from densepred.evaluation.protocol import Protocol as Protocol
    from densepred.evaluation.voc import VOC as VOC

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Evaluation": "callback",
        "NYUDepth": "nyu",
        "NYUNormals": "nyu",
        "OwnSizeProtocol": "protocol",
        "Protocol": "protocol",
        "VOC": "voc",
        "named": "names",
    },
)
