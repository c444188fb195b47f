"""densepred: labels, depth and surface normals at every pixel, with PyTorch Lightning.

Importing it imports neither torch nor Lightning; names are found when they are used.
"""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.features import FeatureSpec as FeatureSpec
    from densepred.module import DensePredictor as DensePredictor
    from densepred.network import DenseNetwork as DenseNetwork

__version__ = "0.1.0"

__getattr__, __all__ = lazy_exports(
    __name__, {"FeatureSpec": "features", "DenseNetwork": "network", "DensePredictor": "module"}
)
