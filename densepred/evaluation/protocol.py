"""What a protocol promises: how a number is made, and what keeps it from bearing the protocol's name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchmetrics import Metric

from densepred.errors import ConfigurationError
from densepred.tasks.base import Task

if TYPE_CHECKING:
    from densepred.data.official import OfficialSet


@dataclass(frozen=True)
class Setting:
    """What is about to be evaluated.

    Args:
        data: The datamodule's class, by name.
        split: train, val or test.
        images: How many the split has here.
        official: What is known of it as a published set.
    """

    data: str
    split: str
    images: int
    official: "OfficialSet | None" = None


class Protocol(ABC):
    """A named way to a number: which set, what is scored, at which size, how it is averaged.

    All protocols score at the size that the labels are stored at, without crops by `eval_transforms`, and every image
    counts once. A protocol brings its own metric, whatever the task was configured with.

    How a number is made is never let off: a broken rule refuses the name. That a part of the published set is missing,
    on the disk or by a limit, is told in the name instead (`voc (150 of 1,449 images)`), for it is a number of the same
    kind, but comparable with none that was published.

    Args:
        name: As the command line has it.
        published: The `OfficialSet` it is about, by name; none for any data.
    """

    def __init__(self, name: str, published: str | None = None) -> None:
        self.name = name
        self.published = published

    @abstractmethod
    def concerns(self, task: Task) -> bool:
        """Whether a task is of the kind that is scored."""

    @abstractmethod
    def metric(self, task: Task, stage: str) -> Metric:
        """The metric that makes the number."""

    def task_faults(self, task: Task) -> list[str]:
        """Which rules the task breaks."""
        return []

    def chosen(self, tasks: Sequence[Task], setting: Setting) -> list[Task]:
        """The tasks that are scored by it.

        Raises:
            ConfigurationError: If a rule is broken; all that are stand in the message.
        """
        concerned = [task for task in tasks if self.concerns(task)]
        faults = [*self._data_faults(setting), *(fault for task in concerned for fault in self.task_faults(task))]
        if len(concerned) != 1 and self.published is not None:
            there = ", ".join(f"{task.name} ({type(task).__name__})" for task in tasks)
            faults.append(f"it scores one task, but of its kind there are {len(concerned)} among {there}")
        if faults:
            broken = "\n".join(f"  - {fault}" for fault in faults)
            raise ConfigurationError(
                f"Protocol {self.name} is not followed, so no number may bear its name:\n{broken}\nChange that; or "
                "take --protocol own_size, which scores any data at the size of their labels; or leave --protocol out."
            )
        return concerned

    def called(self, setting: Setting, images: int) -> str:
        """The name that a number over so many images may bear."""
        whole = setting.official.images if self.published and setting.official else setting.images
        return self.name if images == whole else f"{self.name} ({images:,} of {whole:,} images)"

    def _data_faults(self, setting: Setting) -> list[str]:
        official = setting.official
        if self.published is None:
            return []
        if official is None or official.name != self.published:
            return [f"it is about {self.published}; these data are of {setting.data}"]
        faults = list(official.departures)
        if setting.images > official.images:
            faults.append(f"the {setting.split} split here has {setting.images:,} images, theirs {official.images:,}")
        return faults


class OwnSizeProtocol(Protocol):
    """Any data and tasks, by the tasks' own metrics, at the size that the labels are stored at."""

    def __init__(self) -> None:
        super().__init__("own_size")

    def concerns(self, task: Task) -> bool:
        """All do."""
        return True

    def metric(self, task: Task, stage: str) -> Metric:
        """The task's own."""
        return task.metrics(stage)
