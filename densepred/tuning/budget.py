"""What a search has cost, and the commands of a fair comparison with the configuration it started from."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from densepred.tuning.bench import Config, changed
from densepred.tuning.search import OVERFIT, RATES, Search

WINNER = "winner.yaml"


@dataclass(frozen=True)
class Budget:
    """Optimizer steps, search and training.

    Args:
        search: Steps of the range search, by the name of the part of the search.
        planned: Steps of a run of the configuration as it stands; None where it has no end.
    """

    search: dict[str, int]
    planned: int | None

    @property
    def spent(self) -> int:
        """Steps of the whole search."""
        return sum(self.search.values())


def budget_of(search: Search) -> Budget:
    """Counts what a search has made, failed trials included."""
    spent = {
        RATES: len(search.rates.get("losses", ())),
        OVERFIT: len(search.overfitting.get("losses", ())),
    }
    for number, (_, trials) in enumerate(search.rounds):
        spent[f"round {number + 1}"] = sum(trial.steps for trial in trials)
    trainer = search.config["trainer"]
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    bounds = [steps] if steps is not None and steps >= 0 else []
    if epochs is not None and epochs >= 0:
        each = search.checks["steps_per_epoch"] // (trainer.get("accumulate_grad_batches") or 1)
        bounds.append(epochs * max(1, each))
    return Budget(spent, min(bounds, default=None))


def winner_config(search: Search) -> Config:
    """The configuration with the winner's values; options of the trainer that are Lightning's defaults left out."""
    config = changed(search.config, search.winner.values)
    defaults = {name: parameter.default for name, parameter in inspect.signature(pl.Trainer).parameters.items()}
    trainer = {name: value for name, value in config["trainer"].items() if value != defaults.get(name, ...)}
    return {**config, "trainer": trainer}


def write_winner(search: Search) -> Path:
    """Writes the winner's configuration, ready for `densepred fit --config`."""
    winner, budget = search.winner, budget_of(search)
    found = ", ".join(f"{name} {value}" for name, value in winner.values.items())
    path = search.folder / WINNER
    header = (
        f"# Found by densepred tune: {found}.\n"
        f"# Trial {winner.name} of {len(search.trials)}, score {winner.score:.4f}, epochs {winner.epochs:g}; seed "
        f"{search.plan.seed}; the search took {budget.spent} steps, on one device at a batch of "
        f"{search.checks['batch_size']}.\n#   densepred fit --config {path}\n"
    )
    path.write_text(header + yaml.safe_dump(winner_config(search), sort_keys=False))
    return path


def comparison(search: Search, budget: Budget) -> list[str]:
    """Commands that train the configuration as it was and the winner for the same number of steps, search included."""
    if budget.planned is None:
        return []
    total = max(budget.planned, 2 * budget.spent)
    runs: list[tuple[str, Any, int]] = [
        (str(search.folder / "config.yaml"), "default", total),
        (str(search.folder / WINNER), "winner", total - budget.spent),
    ]
    commands = []
    for path, name, steps in runs:
        root = f"--trainer.default_root_dir {search.folder}/compare/{name}_$seed"
        commands.append(
            f"for seed in 0 1 2; do densepred fit --config {path} --seed_everything $seed --trainer.max_epochs -1 "
            # a run that ends within an epoch has not been validated at its end
            f"--trainer.max_steps {steps} {root}; densepred validate --ckpt_path last {root}; done"
        )
    return commands
