"""Pictures that stand in two splits, or twice in one."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from densepred.checking.fingerprint import Fingerprint, nearest
from densepred.checking.look import Remark


class Picture(NamedTuple):
    """A picture of a split: how to call it, and its fingerprint."""

    name: str
    fingerprint: Fingerprint


def same_list(one: Sequence[Picture], other: Sequence[Picture]) -> bool:
    """Whether two splits hold the very same pictures, under the same names."""
    return bool(one) and [(p.name, p.fingerprint.pixels) for p in one] == [
        (p.name, p.fingerprint.pixels) for p in other
    ]


def duplicates(splits: dict[str, list[Picture]]) -> Iterator[tuple[str, Remark]]:
    """Remarks on pictures found twice, each with the split it is about.

    A training picture that is also validated or tested on makes the scores mean nothing: that is unsafe. Twice in one
    split, or in validation and test, and near-duplicates between splits, are told as warnings. A test list that is the
    validation list, as of sets whose test labels are not published, is compared once.
    """
    for split, pictures in splits.items():
        yield from ((split, remark) for remark in _within(split, pictures))
    seen: list[str] = []
    for split in splits:
        if not any(same_list(splits[split], splits[other]) for other in seen if "train" not in (split, other)):
            seen.append(split)
    for one, other in combinations(seen, 2):
        yield from ((other, remark) for remark in _between(one, splits[one], other, splits[other]))


def _within(split: str, pictures: list[Picture]) -> Iterator[Remark]:
    first: dict[bytes, str] = {}
    for name, print_ in pictures:
        if print_.pixels in first:
            yield Remark("duplicate", f"{split}: {name} is the same picture as {first[print_.pixels]}.", unsafe=False)
        first.setdefault(print_.pixels, name)


def _between(one: str, first: list[Picture], other: str, second: list[Picture]) -> Iterator[Remark]:
    pixels = {print_.pixels: (name, print_) for name, print_ in reversed(first)}
    rest = []
    for name, print_ in second:
        if print_.pixels not in pixels:
            rest.append(Picture(name, print_))
            continue
        twin, theirs = pixels[print_.pixels]
        how = "the same file" if print_.file and print_.file == theirs.file else "the same picture, pixel for pixel,"
        yield Remark("duplicate", f"{other}: {name} is {how} as {twin} in {one}.", unsafe=one == "train")
    bits = [np.array([picture.fingerprint.bits for picture in pictures], bool) for pictures in (rest, first)]
    for place, twin_place, apart in sorted(nearest(*bits), key=lambda found: found[2]):
        yield Remark(
            "near-duplicate",
            f"{other}: {rest[place].name} looks like {first[twin_place].name} in {one} ({apart} of 128 bits differ).",
            unsafe=False,
        )
