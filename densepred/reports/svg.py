"""Charts as inline SVG: no script, no font, no address, so that a page opens anywhere and for good."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from densepred.reports.axes import Axis, axis_for, drawable, exact_axis, short

COLOURS = ("#3b7dd8", "#e0702b", "#2e9e6b", "#b4499b", "#c9a21b", "#c8413f", "#1fa3b5", "#7b62c9", "#7d8590", "#9a6b3f")
"""One a series; legible on white and on near-black."""

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 40
_POINTS, _TOLD, _DOTTED = 400, 120, 24


@dataclass(frozen=True)
class Series:
    """Numbers drawn as one line, or as dots.

    Attributes:
        name: What the legend says.
        x: Positions, in growing order for a line.
        y: Values, as many; what is not finite is a gap, and the legend counts it.
        low: Lower end of a band around the line (mean less deviation, say); with `high`, or neither.
        high: Upper end.
        dots: Draw dots instead of a line.
        dashed: Draw a broken line.
        colour: By default the next of `COLOURS`.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dots: bool = False
    dashed: bool = False
    colour: str | None = None


@dataclass(frozen=True)
class Mark:
    """A vertical line at a position, with what it means."""

    x: float
    text: str


def chart(
    series: Sequence[Series],
    title: str,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """Lines or dots over two axes, with title and legend: an HTML `<figure>`.

    Args:
        series: What to draw; without a single number the figure says so.
        title: What stands above.
        x_label: Below the axis.
        y_label: Above the axis.
        log_x: Logarithmic positions.
        log_y: Logarithmic values.
        marks: Positions to point out.
    """
    across = [*(x for one in series for x in one.x), *(mark.x for mark in marks)]
    upward = [value for one in series for values in (one.y, one.low or (), one.high or ()) for value in values]
    if not any(drawable(value, log_y) for value in upward):
        return figure(title, '<p class="note">No values.</p>')
    dotted = any(one.dots for one in series)
    x_axis = (axis_for if dotted else exact_axis)(across, _LEFT, _WIDTH - _RIGHT, log_x)
    y_axis = axis_for(upward, _HEIGHT - _BOTTOM, _TOP, log_y)
    colours = [one.colour or COLOURS[index % len(COLOURS)] for index, one in enumerate(series)]
    parts = [*_frame(x_axis, y_axis, x_label)]
    parts += [part for mark in marks if drawable(mark.x, log_x) for part in _mark(mark, x_axis)]
    for one, colour in zip(series, colours, strict=True):
        parts += _drawn(one, colour, x_axis, y_axis)
    return figure(title, _svg(parts), _legend(series, colours, log_y), y_label)


def bars(heights: Sequence[float], edges: Sequence[float], title: str, x_label: str = "", y_label: str = "") -> str:
    """A histogram: an HTML `<figure>`.

    Args:
        heights: One a bar; what is not finite is left out.
        edges: Where the bars begin and end: one more than there are bars.
        title: What stands above.
        x_label: Below the axis.
        y_label: Above the axis.
    """
    x_axis = Axis(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    y_axis = axis_for(heights, _HEIGHT - _BOTTOM, _TOP, from_zero=True)
    parts = [*_frame(x_axis, y_axis, x_label)]
    for height, begin, end in zip(heights, edges[:-1], edges[1:], strict=True):
        if not math.isfinite(height):
            continue
        left, right, top = x_axis.place(begin), x_axis.place(end), y_axis.place(height)
        gap = min(1.0, (right - left) / 5)
        size = f'width="{right - left - gap:.2f}" height="{y_axis.place(0) - top:.2f}"'
        words = f"{short(begin)} to {short(end)}: {short(height)}"
        parts.append(f'<rect x="{left:.2f}" y="{top:.2f}" {size} fill="{COLOURS[0]}"><title>{words}</title></rect>')
    return figure(title, _svg(parts), "", y_label)


def figure(title: str, body: str, legend: str = "", note: str = "") -> str:
    """A chart's frame: its title, a note, the legend and the drawing."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<figure class="chart"><figcaption>{escape(title)}{small}</figcaption>{legend}{body}</figure>'


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


def _frame(x_axis: Axis, y_axis: Axis, x_label: str) -> Iterator[str]:
    left, right = x_axis.start, x_axis.end
    bottom = y_axis.start
    for value in y_axis.ticks():
        y = y_axis.place(value)
        yield f'<path d="M{left} {y:.1f}H{right}" stroke="currentColor" stroke-opacity=".14"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill-opacity=".75">{short(value)}</text>'
    for value in x_axis.ticks():
        x = x_axis.place(value)
        yield f'<path d="M{x:.1f} {bottom}v4" stroke="currentColor" stroke-opacity=".5"/>'
        text = short(value)
        # a wide number at the end would run out of the picture
        held = min(x, _WIDTH - 2 - 3.2 * len(text))
        yield f'<text x="{held:.1f}" y="{bottom + 16}" text-anchor="middle" fill-opacity=".75">{text}</text>'
    yield f'<path d="M{left} {bottom}H{right}" stroke="currentColor" stroke-opacity=".5"/>'
    yield (
        f'<text x="{(left + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle" fill-opacity=".75">'
        f"{escape(x_label)}</text>"
    )


def _mark(mark: Mark, x_axis: Axis) -> Iterator[str]:
    x = x_axis.place(mark.x)
    right_half = x > (x_axis.start + x_axis.end) / 2
    anchor, offset = ("end", -4) if right_half else ("start", 4)
    yield f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="currentColor" stroke-dasharray="2 3"/>'
    yield f'<text x="{x + offset:.1f}" y="{_TOP + 10}" text-anchor="{anchor}">{escape(mark.text)}</text>'


def _drawn(one: Series, colour: str, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    if one.low is not None and one.high is not None:
        for run in _runs(list(zip(one.x, one.low, one.high, strict=True)), x_axis, y_axis):
            there = [f"{x_axis.place(x):.1f} {y_axis.place(high):.1f}" for x, _, high in run]
            back = [f"{x_axis.place(x):.1f} {y_axis.place(low):.1f}" for x, low, _ in reversed(run)]
            yield f'<path d="M{"L".join(there + back)}Z" fill="{colour}" fill-opacity=".18"/>'
    runs = list(_runs(list(zip(one.x, one.y, strict=True)), x_axis, y_axis))
    dash = ' stroke-dasharray="5 4"' if one.dashed else ""
    count = sum(map(len, runs))
    for run in runs:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in run]
        if not one.dots:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in thinned(places, _POINTS))
            yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
        for (x, y), (value_x, value_y) in zip(places, run, strict=True) if one.dots or count <= _TOLD else ():
            words = escape(f"{one.name}: {short(value_y)} at {short(value_x)}")
            # of many points only what the pointer finds
            looks = 'r="3"' if one.dots else 'r="1.8"' if count <= _DOTTED else 'r="4" fill-opacity="0"'
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" {looks} fill="{colour}"><title>{words}</title></circle>'


def _runs(rows: list[tuple[float, ...]], x_axis: Axis, y_axis: Axis) -> Iterator[list[tuple[float, ...]]]:
    """Neighbours that can be drawn, without those that cannot."""
    run: list[tuple[float, ...]] = []
    for row in rows:
        if drawable(row[0], x_axis.log) and all(drawable(value, y_axis.log) for value in row[1:]):
            run.append(row)
        elif run:
            yield run
            run = []
    if run:
        yield run


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Fewer points of the same outline: of each stretch the lowest and the highest.

    Example:
        >>> thinned([(0, 5), (1, 9), (2, 1), (3, 5), (4, 6), (5, 4)], most=4)
        [(1, 9), (2, 1), (4, 6), (5, 4)]
    """
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most / 2))
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def _legend(series: Sequence[Series], colours: Sequence[str], log_y: bool) -> str:
    entries = []
    for one, colour in zip(series, colours, strict=True):
        lost = sum(not drawable(value, log_y) for value in one.y)
        text = escape(one.name) + (
            f" ({lost} not drawn: not finite{' or not above 0' if log_y else ''})" if lost else ""
        )
        entries.append(f'<li><i style="background:{colour}"></i>{text}</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>' if len(series) > 1 or "(" in entries[0] else ""
