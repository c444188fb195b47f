"""`densepred tune`: is the network sound, at which rate does it learn, and which options are worth a long run."""

import argparse
import logging
import warnings
from pathlib import Path

from densepred.commands.arguments import ROOT
from densepred.errors import ConfigurationError
from densepred.tuning.bench import read_arguments
from densepred.tuning.budget import WINNER, budget_of
from densepred.tuning.plan import Plan, reopen, start
from densepred.tuning.report import write_report
from densepred.tuning.search import Search

PASSES_OPTIONS_ON = True
"""Options of the run may stand on the command line, as in `fit`."""

_DEFAULT = Plan()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to search, for how long, and where to."""
    parser.usage = (
        "densepred tune --config FILE [--trials N] [--epochs E ...] [--rounds N] [--search OPTION=RANGE ...] "
        "[--model.OPTION VALUE ...]\n       densepred tune --resume FOLDER"
    )
    parser.add_argument("--config", "-c", action="append", metavar="FILE", help="a run's YAML file, as for fit")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a search that was stopped")
    parser.add_argument(
        "--trials", type=int, default=_DEFAULT.trials, metavar="N",
        help="in the first round, later ones have half as many (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=float, nargs="+", default=list(_DEFAULT.epochs), metavar="E",
        help="length of a trial, 1 to 5 or a part of one; several: one a round (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=_DEFAULT.rounds, metavar="N",
        help="of trials, each around the best of the one before (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed, help="of the values drawn (default: %(default)s)")
    parser.add_argument(
        "--search", action="append", default=[], metavar="OPTION=RANGE",
        help="log:LOW:HIGH, uniform:LOW:HIGH or choice:A,B; such as model.encoder_lr_scale=log:0.01:1. "
        "lr and weight_decay are searched anyway",
    )  # fmt: skip
    parser.add_argument(
        "--range_steps", type=int, default=_DEFAULT.range_steps, metavar="N",
        help="of the range search of the rate; 0: none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--overfit_steps", type=int, default=_DEFAULT.overfit_steps, metavar="N",
        help="at most, on a handful of images; 0: none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: tune_0, tune_1, ... in the run's default_root_dir"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs a search, or goes on with one, and writes its report."""
    if arguments.resume is not None:
        folder = arguments.resume
        if arguments.config or arguments.options or arguments.output:
            raise ConfigurationError(
                "tune: --resume goes on with a search as it was begun; leave out --config, --output and options of the "
                "run, or start a new search without --resume."
            )
        config, plan = reopen(folder)
    else:
        if not arguments.config:
            raise ConfigurationError("tune: give --config FILE, or --resume with the folder of a search.")
        plan = _plan(arguments)
        config = read_arguments([*(f"--config={file}" for file in arguments.config), *arguments.options])
        folder = arguments.output or _next_folder(Path(config["trainer"].get("default_root_dir") or ROOT))
        if (folder / "plan.json").exists():
            raise ConfigurationError(f"tune: {folder} holds a search already. Go on with it: --resume {folder}.")
    _quiet()
    search = Search(folder, config, plan)
    if arguments.resume is None:
        start(folder, config, plan)
    try:
        search.run()
    except (KeyboardInterrupt, SystemExit):  # the trainer turns the first into the second
        print(f"\nstopped; go on with: densepred tune --resume {folder}")
        return 130
    print(f"\nthe best: trial {search.winner.name}, score {search.winner.score:.4f}")
    for name, value in search.winner.values.items():
        print(f"  {name} {value}")
    print(f"the search took {budget_of(search).spent} steps")
    report = write_report(search)
    print(f"report: {report}\ntrain:  densepred fit --config {folder / WINNER}")
    return 0


def _quiet() -> None:
    """Leaves out what Lightning says at the start and the end of every run: a search has many."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in ("You defined a `validation_step` but have no", "The number of training batches", "The '.*dataloader'"):
        warnings.filterwarnings("ignore", text)


def _plan(arguments: argparse.Namespace) -> Plan:
    pairs = [entry.partition("=") for entry in arguments.search]
    if bad := next((entry for entry, pair in zip(arguments.search, pairs, strict=True) if not pair[2]), None):
        raise ConfigurationError(f"tune: --search {bad}: expected OPTION=RANGE, such as lr=log:1e-4:1e-1.")
    return Plan(
        trials=arguments.trials,
        epochs=tuple(arguments.epochs),
        rounds=arguments.rounds,
        seed=arguments.seed,
        range_steps=arguments.range_steps,
        overfit_steps=arguments.overfit_steps,
        search=tuple((name, text) for name, _, text in pairs),
    )


def _next_folder(root: Path) -> Path:
    number = 0
    while (root / f"tune_{number}").exists():
        number += 1
    return root / f"tune_{number}"
