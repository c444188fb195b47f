"""The parts of a search's page that tell about the checks before the trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from densepred.reports.page import charts, folded, heading, paragraph, table, warning
from densepred.reports.svg import Mark, Series, chart
from densepred.tuning.curves import smoothed


def start_section(checks: Mapping[str, Any]) -> str:
    """Initial losses and activations."""
    rows = [
        [entry["task"], entry["verdict"], entry["loss"], entry["blank"], entry["constant"], entry["reason"]]
        for entry in checks["losses"]
    ]
    losses = table(["initial loss of", "verdict", "loss", "of zeros", "of the mean answer", "what was seen"], rows)
    layers = checks["layers"]
    numbers = list(range(1, len(layers) + 1))
    spread = [
        Series("layers with weights", *_columns(numbers, layers, "std", False)),
        Series("rectifiers", *_columns(numbers, layers, "std", True)),
    ]
    dead = [
        Series("values that are zero", *_columns(numbers, layers, "zeros", True)),
        Series("channels that are zero everywhere (dead)", *_columns(numbers, layers, "dead", True)),
    ]
    every = table(
        ["layer", "kind", "mean", "std", "zeros", "dead"],
        [[layer[key] for key in ("layer", "kind", "mean", "std", "zeros", "dead")] for layer in layers],
    )
    verdict = f"Activations at initialisation: {checks['verdict']}: {checks['reason']}."
    return (
        losses
        + heading("Activations")
        + _verdict(checks["verdict"], verdict)
        + charts(
            chart(spread, "Standard deviation by layer", "layer, in the order in which they run", log_y=True),
            chart(dead, "Silent rectifiers", "layer, in the order in which they run", "share"),
        )
        + folded(f"All {len(layers)} layers", every)
    )


def _columns(numbers: Sequence[int], layers: Sequence[dict[str, Any]], key: str, rectifiers: bool) -> tuple[Any, Any]:
    rows = [
        (number, layer[key])
        for number, layer in zip(numbers, layers, strict=True)
        # a layer of zeros has no place on a logarithmic axis; the table below has it
        if (layer["dead"] is not None) == rectifiers and (key != "std" or layer["std"] > 0)
    ]
    return [number for number, _ in rows], [value for _, value in rows]


def _verdict(verdict: str, text: str) -> str:
    return (warning if verdict == "bad" else paragraph)(text)


def rates_section(found: Mapping[str, Any]) -> str:
    """The range search."""
    if not found:
        return ""
    marks = [
        Mark(found[key], f"{word} {found[key]:.2g}")
        for key, word in (("suggested", "suggested"), ("diverged", "diverges"))
        if found[key]
    ]
    # what lies far above would flatten the rest
    top = 3 * max(abs(loss) for loss in found["losses"][:3])
    shown = [min(loss, top) if math.isfinite(loss) else math.nan for loss in found["losses"]]
    noisy = Series("training loss", found["rates"], shown)
    series = [noisy, Series("smoothed", found["rates"], smoothed(shown, 0.15).tolist())]
    drawn = chart(series, "Range search", "learning rate", "loss", True, marks=marks)
    text = f"Range search over {len(shown)} steps: {found['verdict']}: {found['reason']}."
    if found["suggested"]:
        text += f" Suggested: {found['suggested']:.2g}, the steepest rate but at most a tenth of where it diverges."
    return _verdict(found["verdict"], text) + drawn


def overfitting_section(found: Mapping[str, Any], blank: float) -> str:
    """The handful of images."""
    if not found:
        return ""
    steps = list(range(1, len(found["losses"]) + 1))
    series = [
        Series("training loss", steps, found["losses"]),
        Series("knowing nothing", [1, len(steps)], [blank, blank], dashed=True),
    ]
    how = f"{found['images']} images at a rate of {found['rate']:.2g}, without decay"
    text = f"{how}: {found['verdict']}: {found['reason']}."
    return _verdict(found["verdict"], text) + chart(series, "Overfitting", "step", "loss")
