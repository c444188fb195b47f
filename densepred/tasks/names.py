"""What tasks and their classes are called: a task's name is a key of the sample, of the answer and of the metrics."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from densepred.errors import ConfigurationError
from densepred.refine.base import Refiner
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

_TAKEN = ("image", "intrinsics", "loss", "name", "shared", "size")


def check_names(names: Sequence[str]) -> None:
    """Refuses names of tasks that cannot be told apart, or that mean something else already.

    Raises:
        ConfigurationError: Naming the first such name, and what is wrong with it.

    Example:
        >>> check_names(["segmentation", "depth", "second_depth"])
    """
    for name in names:
        problem: Literal["is used twice", "is taken", "is not a plain name"] | None = None
        if names.count(name) > 1:
            problem = "is used twice"
        elif name in _TAKEN or hasattr(nn.ModuleDict, name) or name in ("training",):
            problem = "is taken"
        elif not name.isidentifier():
            problem = "is not a plain name"
        if problem:
            raise ConfigurationError(
                f"Task name {name!r} {problem}. Expected different names of letters, digits and underscores, other "
                f"than {', '.join(_TAKEN)}; got {', '.join(map(repr, names))}."
            )


def refined_tasks(tasks: Sequence[Task], refine: Refiner | None) -> list[str]:
    """Names of the tasks whose planes a refiner gets: labels of which one holds at each pixel.

    Raises:
        ConfigurationError: If there is a refiner, and nothing for it to refine.

    Example:
        >>> refined_tasks([Segmentation(3), Segmentation(2, name="tags", mode="multilabel")], None)
        ['segmentation']
    """
    names = [task.name for task in tasks if task.refinable]
    if refine is not None and not names:
        raise ConfigurationError(
            f"refine: {type(refine).__name__} refines labels; the tasks are {', '.join(task.name for task in tasks)}, "
            "of which none has labels that exclude each other. Leave `refine` out."
        )
    return names


def missing_names(task: Task, expected: list[str], data: str) -> list[str] | None:
    """The data's names of classes for a task that only knows how many there are; None where it needs none.

    Args:
        task: Any task.
        expected: The names of the data's classes, in their order.
        data: What the data are called, for the error.

    Raises:
        ConfigurationError: If the task, or its class weights, are for other classes than the data's.
    """
    names = getattr(task, "classes", None)
    if names is None or list(names) == expected:
        return None
    if len(names) != len(expected) or not isinstance(task.init_args.get("classes"), int):
        raise ConfigurationError(
            f"Task {task.name!r} has {len(names)} classes ({', '.join(names)}), {data} has "
            f"{len(expected)} ({', '.join(expected)}). Set the task's classes to {len(expected)}, or to the "
            "data's names in their order."
        )
    if isinstance(task, Segmentation):
        task.place_weights(expected)
    return expected
