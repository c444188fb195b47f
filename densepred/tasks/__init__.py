"""Tasks: what is predicted at every pixel."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.tasks.base import Task as Task
    from densepred.tasks.codebook import CodebookNormals as CodebookNormals
    from densepred.tasks.depth import Depth as Depth
    from densepred.tasks.normals import Normals as Normals
    from densepred.tasks.regression import Regression as Regression
    from densepred.tasks.segmentation import Segmentation as Segmentation

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Task": "base",
        "CodebookNormals": "codebook",
        "Depth": "depth",
        "Normals": "normals",
        "Regression": "regression",
        "Segmentation": "segmentation",
    },
)
