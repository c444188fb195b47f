"""What was found, as JSON and as tables for a terminal."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from densepred.checking.inspection import Inspection, SplitNumbers, repeated_splits
from densepred.checking.numbers import DepthSums, ImageSums, LabelSums, NormalsSums
from densepred.losses.class_weights import KEY, SCHEMES, inverse_frequency_weights, median_frequency_weights

SHOWN = 5
"""So many remarks of a kind are spelled out on the terminal."""


def as_json(found: Inspection) -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "datamodule": found.datamodule,
        "safe": found.safe,
        "faults": _plain(found, unsafe=True),
        "warnings": _plain(found, unsafe=False),
        "splits": {split: _split(numbers) for split, numbers in found.splits.items()},
        "classes": found.classes,
        KEY: class_weights(found),
        "seconds": round(found.seconds, 1),
    }


def _plain(found: Inspection, unsafe: bool) -> list[dict[str, str]]:
    return [
        {"what": remark.what, "split": split, "text": remark.text}
        for split, remark in found.remarks
        if remark.unsafe is unsafe
    ]


def _split(numbers: SplitNumbers) -> dict[str, Any]:
    sizes = {f"{height}x{width}": count for (height, width), count in numbers.sizes.most_common()}
    counted = {key: sums.summary() for key, sums in numbers.sums.items()}
    return {
        "samples": numbers.listed,
        "looked_at": numbers.looked_at,
        "usable": len(numbers.usable),
        "sizes": sizes,
    } | counted


def class_weights(found: Inspection) -> dict[str, dict[str, dict[str, float]]]:
    """Weights by target, scheme and class, from the training labels; none for labels that overlap."""
    train = found.splits.get("train")
    weights = {}
    for key, sums in (train.sums if train else {}).items():
        if train is None or not isinstance(sums, LabelSums) or not sums.pixels.any() or key in train.overlapping:
            continue
        counts, image_counts = sums.pixels.tolist(), sums.image_pixels.tolist()
        both = (median_frequency_weights(counts, image_counts), inverse_frequency_weights(counts))
        names = found.classes[key]
        weights[key] = {
            scheme: {name: float(f"{weight:.6g}") for name, weight in zip(names, numbers, strict=True)}
            for scheme, numbers in zip(SCHEMES, both, strict=True)
        }
    return weights


def tables(found: Inspection) -> str:
    """The numbers, a table for each key."""
    parts = [_splits_table(found)]
    keys = dict.fromkeys(key for numbers in found.splits.values() for key in numbers.sums)
    for key in keys:
        of_key = {split: numbers.sums[key] for split, numbers in found.splits.items() if key in numbers.sums}
        kind = type(next(iter(of_key.values())))
        lines = {ImageSums: _image_lines, LabelSums: _label_lines, DepthSums: _depth_lines, NormalsSums: _normals_lines}
        parts.append("\n".join(lines[kind](found, key, of_key)))
    return "\n\n".join(parts)


def _splits_table(found: Inspection) -> str:
    lines = [f"{'split':<8}{'samples':>9}{'usable':>9}   image sizes (height x width)"]
    again = repeated_splits(found)
    for split, numbers in found.splits.items():
        some = "" if numbers.looked_at == numbers.listed else f"   ({numbers.looked_at} looked at)"
        same = "   (the validation pictures)" if split in again else ""
        lines.append(f"{split:<8}{numbers.listed:>9,}{len(numbers.usable):>9,}   {_sizes(numbers)}{some}{same}")
    return "\n".join(lines)


def _sizes(numbers: SplitNumbers) -> str:
    if not numbers.sizes:
        return "-"
    (height, width), count = numbers.sizes.most_common(1)[0]
    if len(numbers.sizes) == 1:
        return f"{height} x {width}"
    heights, widths = zip(*numbers.sizes, strict=True)
    return (
        f"{len(numbers.sizes)} sizes, {min(heights)} to {max(heights)} x {min(widths)} to {max(widths)}, mostly "
        f"{height} x {width} ({count / numbers.sizes.total():.0%})"
    )


def _image_lines(found: Inspection, key: str, sums: dict[str, Any]) -> Iterator[str]:
    yield f"{key}: mean and standard deviation of each channel, 0 to 1"
    for split, one in sums.items():
        both = one.summary()
        channels = [f"{mean:.4f} +- {std:.4f}" for mean, std in zip(both["mean"], both["std"], strict=True)]
        yield f"{split:<8}{'   '.join(channels)}"


def _label_lines(found: Inspection, key: str, sums: dict[str, Any]) -> Iterator[str]:
    missing = ", ".join(f"{split} {one.missing / max(one.all, 1):.1%}" for split, one in sums.items())
    yield f"{key}: share of the known pixels, training images that hold the class, weights"
    weights = class_weights(found).get(key, {})
    names = found.classes.get(key, [])
    width = max([len(name) for name in names] + [5]) + 2
    titles = "".join(f"{split:>9}" for split in sums) + f"{'images':>9}"
    yield f"{'class':<{width}}{titles}" + "".join(f"{scheme.replace('_', ' '):>19}" for scheme in weights)
    first = sums.get("train", next(iter(sums.values())))
    for number, name in enumerate(names):
        shares = "".join(f"{_share(one, number):>9.2%}" for one in sums.values())
        images = int(first.images[number]) if number < len(first.images) else 0
        columns = "".join(f"{by_name[name]:>19.4g}" for by_name in weights.values())
        yield f"{name:<{width}}{shares}{images:>9,}{columns}"
    yield f"missing: {missing}"


def _share(sums: LabelSums, number: int) -> float:
    return float(sums.pixels[number] / max(sums.all - sums.missing, 1)) if number < len(sums.pixels) else 0.0


def _depth_lines(found: Inspection, key: str, sums: dict[str, Any]) -> Iterator[str]:
    columns = {"min": "nearest", "p05": "5 %", "median": "median", "p95": "95 %", "max": "farthest"}
    yield f"{key}: metres"
    yield f"{'split':<8}" + "".join(f"{title:>10}" for title in columns.values()) + f"{'missing':>10}"
    for split, one in sums.items():
        numbers = one.summary()
        metres = "".join(f"{'-' if numbers[name] is None else format(numbers[name], '.3f'):>10}" for name in columns)
        yield f"{split:<8}{metres}{numbers['missing_share']:>10.1%}"


def _normals_lines(found: Inspection, key: str, sums: dict[str, Any]) -> Iterator[str]:
    yield f"{key}: lengths, mean vector"
    yield f"{'split':<8}{'shortest':>10}{'longest':>10}{'x':>9}{'y':>9}{'z':>9}{'away':>8}{'missing':>10}"
    for split, one in sums.items():
        numbers = one.summary()
        ends = "".join(
            f"{'-' if numbers[end] is None else format(numbers[end], '.4f'):>10}" for end in ("shortest", "longest")
        )
        mean = "".join(f"{part:>9.3f}" for part in (numbers["mean"] or [0, 0, 0]))
        yield f"{split:<8}{ends}{mean}{numbers['facing_away_share']:>8.1%}{numbers['missing_share']:>10.1%}"


def remark_lines(found: Inspection) -> Iterator[str]:
    """Faults, then warnings, the first ones of each kind."""
    for unsafe, title in ((True, "Faults"), (False, "Warnings")):
        remarks = [(split, remark) for split, remark in found.remarks if remark.unsafe is unsafe]
        if not remarks:
            continue
        yield f"{title}: {len(remarks):,}"
        for (split, what), count in Counter((split, remark.what) for split, remark in remarks).items():
            mine = [remark.text for where, remark in remarks if (where, remark.what) == (split, what)]
            yield f"  {what}, {split}: {count:,}"
            yield from (f"    {text}" for text in mine[:SHOWN])
            if count > SHOWN:
                yield f"    and {count - SHOWN:,} more"
        yield ""
