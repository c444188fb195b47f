"""The look at a whole data set before training: faults, numbers, duplicates, class weights, a contact sheet."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.checking.inspection import Inspection as Inspection
    from densepred.checking.inspection import inspect_data as inspect_data
    from densepred.checking.look import Remark as Remark

__getattr__, __all__ = lazy_exports(
    __name__, {"Inspection": "inspection", "Remark": "look", "inspect_data": "inspection"}
)
