"""What `densepred predict` does about networks with exits: confidences are calibrated, and exits told."""

import argparse
import math
from collections.abc import Callable

from densepred.errors import ConfigurationError
from densepred.inference.anytime import Budget, anytime_in
from densepred.inference.budgeted import calibrated
from densepred.inference.inputs import find_sources
from densepred.inference.photos import read_photo
from densepred.inference.predictor import Predictor


def calibrated_confidences(arguments: argparse.Namespace, predictor: Callable[[], Predictor]) -> list[float]:
    """The confidences with which pictures like those of `--calibrate` cost the `--budget` on average.

    The budget is thereby used up: it is taken out of the arguments.

    Args:
        arguments: Of `predict`.
        predictor: Builds one as the arguments say.

    Raises:
        ConfigurationError: If the budget is none of operations, or confidences are given too.
    """
    if arguments.budget is None or arguments.confidence or (macs := Budget.parse(arguments.budget).macs) is None:
        raise ConfigurationError(
            "--calibrate finds the --confidence for a --budget of operations, such as 0.5gmac. Give that one alone."
        )
    # nothing is as sure as that, so that every exit is asked
    arguments.budget, arguments.confidence = None, [math.inf]
    asked = predictor()
    pictures = [source.path for source in find_sources(arguments.calibrate) if not source.is_video]
    images = (read_photo(path, asked.channels).image[None].to(asked.device) for path in pictures)
    found = list(calibrated(asked.evidence, images, macs))
    told = " ".join(f"{value:.4f}" for value in found)
    print(f"Calibrated on {len(pictures):,} pictures: --confidence {told}")
    return found


def tell_exits(predictor: Predictor) -> None:
    """Prints at which exits networks were left, where they have a budget."""
    for member in anytime_in(predictor.evidence):
        if count := member.taken.total():
            shares = ", ".join(f"{exit}: {times:,}" for exit, times in sorted(member.taken.items()) if times)
            print(f"Answers by exit: {shares}. {member.macs / count / 1e6:,.1f} MMAC each, on average.")
