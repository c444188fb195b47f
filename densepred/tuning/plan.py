"""What a search is going to do, and the files in which it is written down."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.tuning.bench import Config

PLAN, CONFIG = "plan.json", "config.yaml"


@dataclass(frozen=True)
class Plan:
    """What a search is going to do.

    Args:
        trials: In the first round; the later ones have half as many.
        epochs: Length of the trials, a number a round; the last one holds for the rounds that follow.
        rounds: The first one is coarse, each further one looks around the best.
        seed: Of the values that are drawn. The runs keep the configuration's own seed, so that they differ in nothing
            else.
        range_steps: Steps of the range search; 0 leaves it out.
        overfit_steps: Steps of the overfitting at most; 0 leaves it out.
        search: Ranges by option, as the user writes them; `lr` and `weight_decay` are there by themselves.
    """

    trials: int = 12
    epochs: tuple[float, ...] = (2.0,)
    rounds: int = 2
    seed: int = 0
    range_steps: int = 100
    overfit_steps: int = 200
    search: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.trials < 1 or self.rounds < 1 or min(self.range_steps, self.overfit_steps) < 0:
            raise ConfigurationError(
                f"tune: --trials {self.trials}, --rounds {self.rounds}, --range_steps {self.range_steps} and "
                f"--overfit_steps {self.overfit_steps}; expected at least one trial and round, and no negative steps."
            )
        if not self.epochs or any(not 0 < e < math.inf or (e > 1 and e != round(e)) for e in self.epochs):
            raise ConfigurationError(
                f"tune: --epochs {' '.join(f'{e:g}' for e in self.epochs)}; expected whole numbers, or a part of one "
                "epoch such as 0.5."
            )

    def epochs_of(self, number: int) -> float:
        """The length of the trials of a round, counted from 0."""
        return self.epochs[min(number, len(self.epochs) - 1)]

    def trials_of(self, number: int) -> int:
        """The number of trials of a round, counted from 0."""
        return self.trials if number == 0 else max(1, (self.trials + 1) // 2)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def start(folder: Path, config: Config, plan: Plan) -> Path:
    """Makes a search's folder: its configuration and its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(folder / PLAN, vars(plan))
    return folder


def reopen(folder: Path) -> tuple[Config, Plan]:
    """The configuration and the plan of a search that was begun.

    Raises:
        ConfigurationError: If there is none in the folder.
    """
    if not (folder / PLAN).is_file():
        raise ConfigurationError(
            f"tune: --resume {folder}: there is no {PLAN}. Expected the folder of a search, such as "
            "runs/rooms_multitask/tune_0."
        )
    saved = json.loads((folder / PLAN).read_text())
    saved["epochs"] = tuple(saved["epochs"])
    saved["search"] = tuple((name, text) for name, text in saved["search"])
    return yaml.safe_load((folder / CONFIG).read_text()), Plan(**saved)
