"""Balance between tasks that are learned together."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.balance.base import Balance as Balance
    from densepred.balance.equal_gradients import EqualGradientBalance as EqualGradientBalance
    from densepred.balance.gradnorm import GradNormBalance as GradNormBalance
    from densepred.balance.measured import MeasuredBalance as MeasuredBalance
    from densepred.balance.task_losses import TaskLosses as TaskLosses
    from densepred.balance.uncertainty import UncertaintyBalance as UncertaintyBalance

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Balance": "base",
        "EqualGradientBalance": "equal_gradients",
        "GradNormBalance": "gradnorm",
        "MeasuredBalance": "measured",
        "TaskLosses": "task_losses",
        "UncertaintyBalance": "uncertainty",
    },
)
