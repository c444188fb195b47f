"""Which way a metric is better: for what tables set in bold."""

from collections.abc import Sequence

from densepred.reports.page import Best

_GREATER = ("miou", "iou", "pixel_accuracy", "mean_accuracy", "fw_iou", "delta1", "delta2", "delta3")
_SMALLER = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "mean_angle", "median_angle", "rmse_angle")


def sign_of(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 for what is not known: losses too, whose sums differ between runs.

    Example:
        >>> sign_of("delta1"), sign_of("rmse"), sign_of("loss")
        (1, -1, 0)
    """
    if metric in _GREATER or metric.startswith("within_"):
        return 1
    return -1 if metric in _SMALLER else 0


def best_marked(metric: str, values: Sequence[float | None], cells: Sequence[float | str | None]) -> list[object]:
    """The cells of a row, in bold those whose value is the best of two or more.

    Args:
        metric: The last part of a key.
        values: What is compared.
        cells: What is shown, one a value.
    """
    sign, known = sign_of(metric), [value for value in values if value is not None and value == value]
    if not sign or len(known) < 2:
        return list(cells)
    best = max(known, key=lambda value: sign * value)
    return [
        Best(cell) if value == best and cell is not None else cell for value, cell in zip(values, cells, strict=True)
    ]
