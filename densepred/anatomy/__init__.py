"""What a network is made of: stages and their costs, receptive fields, the memory of a training step, checkerboards."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.anatomy.checkerboards import checkerboard as checkerboard
    from densepred.anatomy.memory import StepMemory as StepMemory
    from densepred.anatomy.memory import step_memory as step_memory
    from densepred.anatomy.receptive_field import effective_receptive_fields as effective_receptive_fields
    from densepred.anatomy.receptive_field import theoretical_receptive_fields as theoretical_receptive_fields
    from densepred.anatomy.stages import Stage as Stage
    from densepred.anatomy.stages import trace as trace

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Stage": "stages",
        "StepMemory": "memory",
        "checkerboard": "checkerboards",
        "effective_receptive_fields": "receptive_field",
        "step_memory": "memory",
        "theoretical_receptive_fields": "receptive_field",
        "trace": "stages",
    },
)
