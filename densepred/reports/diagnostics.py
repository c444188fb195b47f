"""Charts and tables of what `Diagnostics` wrote about a task."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from densepred.reports.page import charts, folded, side_by_side, table
from densepred.reports.svg import bars, figure

CLASS_COLUMNS = ("class", "IoU", "recall", "precision", "share of pixels")
_WIDEST_NAMES = 14
_ANGLE_ENDS = (60, 90, 120)


def ious(found: Mapping[str, Any]) -> dict[str, float]:
    """IoU by class from the confusion matrix; NaN for a class that is neither true nor predicted.

    Example:
        >>> ious({"mode": "multiclass", "classes": ["floor", "wall"], "confusion": [[[1, 1], [0, 2]]]})
        {'floor': 0.5, 'wall': 0.6666666666666666}
    """
    names, matrices = found["classes"], found["confusion"]
    if found["mode"] == "multilabel":
        return {name: _iou(matrix, 1) for name, matrix in zip(names, matrices, strict=True)}
    return {name: _iou(matrices[0], index) for index, name in enumerate(names)}


def _iou(matrix: Sequence[Sequence[int]], index: int) -> float:
    union = sum(matrix[index]) + sum(row[index] for row in matrix) - matrix[index][index]
    return matrix[index][index] / union if union else math.nan


def class_table(found: Mapping[str, Any]) -> str:
    """A line for each class as `class_rows` says, the worst first."""
    return table(list(CLASS_COLUMNS), class_rows(found), f"{len(found['classes'])} classes, the worst first", 4)


def class_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    """Each class's name, IoU, recall, precision and share of the true pixels; the worst first, None for no pixel."""
    rows: list[list[Any]] = []
    several = found["mode"] == "multilabel"
    for index, (name, iou) in enumerate(ious(found).items()):
        matrix = found["confusion"][index if several else 0]
        at = 1 if several else index
        hit, true, predicted = matrix[at][at], sum(matrix[at]), sum(row[at] for row in matrix)
        total = sum(map(sum, matrix))
        rows.append([name, iou, _ratio(hit, true), _ratio(hit, predicted), _ratio(true, total)])
    rows.sort(key=lambda row: (math.isnan(row[1]), row[1]))
    return [[cell if not isinstance(cell, float) or math.isfinite(cell) else None for cell in row] for row in rows]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def confusion_chart(found: Mapping[str, Any]) -> str:
    """The confusion matrix as a grid of shares: of the pixels of a true class (row), what they were taken for."""
    if found["mode"] == "multilabel":
        grids = [
            _grid(matrix, ["no", "yes"], name)
            for name, matrix in zip(found["classes"], found["confusion"], strict=True)
        ]
        return folded("Confusion matrix of each class", side_by_side(*grids))
    return _grid(found["confusion"][0], found["classes"], "Confusion matrix")


def _grid(counts: Sequence[Sequence[int]], names: Sequence[str], title: str) -> str:
    cell = max(10, min(34, 560 // len(names)))
    left = 12 + 7 * min(max(map(len, names)), _WIDEST_NAMES)
    side, above = cell * len(names), 12 + 5 * min(max(map(len, names)), _WIDEST_NAMES)
    parts = [
        f'<text x="{left - 6}" y="{above + cell * (i + 0.5) + 4:.1f}" text-anchor="end">{escape(_cut(name))}</text>'
        f'<text transform="translate({left + cell * (i + 0.5) + 3:.1f} {above - 6}) rotate(-45)">'
        f"{escape(_cut(name))}</text>"
        for i, name in enumerate(names)
    ]
    for i, row in enumerate(counts):
        whole = sum(row)
        for j, count in enumerate(row):
            share = count / whole if whole else 0.0
            x, y = left + cell * j, above + cell * i
            words = escape(f"{names[i]} taken for {names[j]}: {100 * share:.1f} % ({count:,} pixels)")
            colour = "#2e9e6b" if i == j else "#c8413f"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{colour}" '
                f'fill-opacity="{0.04 + 0.96 * share:.3f}"><title>{words}</title></rect>'
            )
            if cell >= 22 and share >= 0.005:
                parts.append(
                    f'<text x="{x + (cell - 1) / 2}" y="{y + cell / 2 + 3}" font-size="10" text-anchor="middle" '
                    f'pointer-events="none">{100 * share:.0f}</text>'
                )
    width, height = left + side + above, above + side + 4
    svg = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" fill="currentColor" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )
    return figure(title, svg, "", "rows: true, columns: predicted, in per cent of the row").replace(
        'class="chart"', 'class="wide"'
    )


def _cut(name: str) -> str:
    return name if len(name) <= _WIDEST_NAMES else name[: _WIDEST_NAMES - 1] + "…"


def angle_chart(found: Mapping[str, Any]) -> str:
    """The histogram of angles between predicted and true normals, a bar a degree; the few above its end are counted."""
    counts = found["angles"]
    total = sum(counts) or 1
    last = next((end for end in _ANGLE_ENDS if sum(counts[end:]) <= 0.05 * total), len(counts))
    beyond = sum(counts[last:])
    title = "Angle errors" + (f" ({100 * beyond / total:.1f} % above {last} degrees)" if beyond else "")
    shown = [100 * count / total for count in counts[:last]]
    return bars(shown, list(range(last + 1)), title, "degrees", "per cent of pixels")


def distance_chart(found: Mapping[str, Any]) -> str:
    """The error of depth, relative and in metres, and how much there is to see, by true depth: three charts."""
    numbers = found["by_distance"]
    edges = numbers["edges"]
    total = sum(value or 0 for value in numbers["pixels"]) or 1
    shares = [100 * (value or 0) / total for value in numbers["pixels"]]
    return charts(
        *(
            bars(heights, edges, title, "true depth in metres", unit)
            for heights, title, unit in (
                (_numbers(numbers["relative"]), "Mean relative error by depth", "of the true depth"),
                (_numbers(numbers["absolute"]), "Mean absolute error by depth", "metres"),
                (shares, "Pixels by depth", "per cent"),
            )
        )
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
