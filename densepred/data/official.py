"""The published set that a split is, and how it departs from it: what a number is comparable with."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OfficialSet:
    """A split as its publisher counts it.

    Args:
        name: Of the set and the split, such as Pascal VOC 2012 val.
        images: How many the publisher's split has.
        departures: What was chosen otherwise than its publisher does, a clause each that says which option.
        truth: Where what is true comes from, by key of the sample, where there are several ways.
    """

    name: str
    images: int
    departures: tuple[str, ...] = ()
    truth: dict[str, str] = field(default_factory=dict)
