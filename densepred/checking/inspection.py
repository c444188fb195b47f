"""A data set, looked at as a whole, on all cores."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from densepred.checking.duplicates import Picture, duplicates, same_list
from densepred.checking.look import Look, Remark, look_at
from densepred.checking.numbers import DepthSums, LabelSums, NormalsSums, Sums
from densepred.checking.pipeline import pipeline_faults
from densepred.data.datamodule import DenseDataModule, Split, default_workers
from densepred.data.dataset import DenseDataset
from densepred.data.listing import evenly
from densepred.data.loader import start_worker
from densepred.errors import DataError, UserError
from densepred.sample import Kind

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_FEW = 32
"""Samples for which it does not pay to start a process."""


@dataclass
class SplitNumbers:
    """What was found in one split.

    Attributes:
        listed: How many samples it has.
        looked_at: How many of them were looked at.
        usable: Places of those that nothing is wrong with.
        sizes: How many images there are of each size (height, width).
        sums: What was counted, by key.
        pictures: Names and fingerprints.
        overlapping: Keys of labels that overlap.
    """

    listed: int
    looked_at: int = 0
    usable: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    sums: dict[str, Sums] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    overlapping: set[str] = field(default_factory=set)

    def add(self, index: int, look: Look) -> None:
        """Counts one sample."""
        self.looked_at += 1
        if not any(remark.unsafe for remark in look.remarks):
            self.usable.append(index)
        if look.size is not None:
            self.sizes[look.size] += 1
        for key, sums in look.sums.items():
            self.sums[key] = self.sums[key] + sums if key in self.sums else sums
        if look.fingerprint is not None:
            self.pictures.append(Picture(look.name, look.fingerprint))
        self.overlapping |= set(look.overlapping)


@dataclass
class Inspection:
    """All that was found.

    Attributes:
        datamodule: Its class.
        classes: Names, by key of labels.
        splits: What was found in each.
        remarks: What is wrong, by split.
        datasets: The data sets, without transforms.
        seconds: How long it took.
    """

    datamodule: str
    classes: dict[str, list[str]]
    splits: dict[str, SplitNumbers] = field(default_factory=dict)
    remarks: list[tuple[str, Remark]] = field(default_factory=list)
    datasets: dict[str, DenseDataset] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def safe(self) -> bool:
        """Whether nothing was found that would stop training, or make its numbers mean something else."""
        return not any(remark.unsafe for _, remark in self.remarks)


class _Looks(Dataset[Look]):
    def __init__(self, places: list[tuple[str, int]], datasets: dict[str, DenseDataset], classes: dict[str, int]):
        self.places = places
        self.datasets = datasets
        self.classes = classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Look:
        split, index = self.places[place]
        return look_at(self.datasets[split], index, self.classes)


def inspect_data(
    data: DenseDataModule,
    classes: dict[str, list[str]] | None = None,
    splits: Sequence[Split] = SPLITS,
    limit: int | None = None,
    num_workers: int | None = None,
    as_configured: bool = True,
) -> Inspection:
    """Looks at every sample of a datamodule's splits, and through its training pipeline.

    Args:
        data: The datamodule.
        classes: Names of classes by key of labels, for those that the datamodule does not name itself.
        splits: Which to look at.
        limit: Look at so many samples of each split, evenly spread; None takes all.
        num_workers: Processes; None takes one for each core, 0 none beside this one.
        as_configured: Whether the datamodule is as a run will have it, transforms and batch size included: what stops
            these is then a fault, otherwise a warning.

    Raises:
        UserError: If the training split cannot be built at all.
    """
    begin = perf_counter()
    found = Inspection(type(data).__name__, dict(classes or {}))
    data.prepare_data()
    for wanted in splits:
        _open_split(found, data, wanted)
    places = [(split, index) for split, dataset in found.datasets.items() for index in _evenly(len(dataset), limit)]
    found.classes |= data.classes  # which some datamodules know when they have looked for their files
    counts = {key: len(names) for key, names in found.classes.items()}
    for (split, index), look in zip(places, _looks(_Looks(places, found.datasets, counts), num_workers), strict=True):
        found.splits[split].add(index, look)
        found.remarks += [(split, remark) for remark in look.remarks]
    found.remarks += duplicates({split: numbers.pictures for split, numbers in found.splits.items()})
    found.remarks += _remarks_on_splits(found)
    if "train" in found.splits and found.splits["train"].usable:
        faults = pipeline_faults(data, found.splits["train"].usable)
        found.remarks += [("train", remark._replace(unsafe=as_configured)) for remark in faults]
    _name_classes(found, data)
    found.seconds = perf_counter() - begin
    return found


def _open_split(found: Inspection, data: DenseDataModule, split: Split) -> None:
    try:
        dataset = data.dataset(split, None)
    except UserError as error:
        if split == "train":
            raise
        # a run trains without a test set, not without validation
        found.remarks.append((split, Remark("split", f"{split}: {str(error).splitlines()[0]}", unsafe=split == "val")))
        return
    dataset.kinds = data.kinds
    found.splits[split] = SplitNumbers(len(dataset))
    found.datasets[split] = dataset
    if not len(dataset):
        found.remarks.append((split, Remark("split", f"{split}: no sample is listed in it.", unsafe=split != "test")))


def _evenly(length: int, limit: int | None) -> list[int]:
    return [int(index) for index in evenly([str(i) for i in range(length)], limit)] if length else []


def _looks(dataset: _Looks, num_workers: int | None) -> Iterator[Look]:
    workers = default_workers() + 1 if num_workers is None else num_workers
    workers = 0 if len(dataset) <= _FEW else workers
    loader: Any = DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=start_worker,
        prefetch_factor=8 if workers else None,
    )  # fmt: skip
    try:
        yield from tqdm(loader, "Looking at the data", len(dataset), unit=" samples", leave=False, disable=None)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise DataError(
            f"check-data: a process that read the data died ({error}). A file may need more memory than there is; "
            "--num_workers 0 reads in one process, and ends at that file."
        ) from error


def _as_it_is(look: Any) -> Any:
    return look


def _remarks_on_splits(found: Inspection) -> Iterator[tuple[str, Remark]]:
    for split, numbers in found.splits.items():
        names = Counter(picture.name for picture in numbers.pictures)
        if twice := [name for name, count in names.items() if count > 1]:
            text = f"{split}: {len(twice)} names stand for several samples, such as {twice[0]}."
            yield split, Remark("name", text, unsafe=False)
        for key, sums in numbers.sums.items():
            yield from ((split, remark) for remark in _remarks_on(split, key, sums, found.classes.get(key)))
    for key, sums in _train_labels(found).items():
        names_of = found.classes.get(key) or [str(i) for i in range(len(sums.pixels))]
        absent = [name for name, count in zip(names_of, sums.pixels.tolist(), strict=False) if not count]
        if absent:
            text = f"train: no pixel of {key} is {', '.join(absent)}: nothing can be learnt of it."
            yield "train", Remark("classes", text, unsafe=False)


def _train_labels(found: Inspection) -> dict[str, LabelSums]:
    sums = found.splits["train"].sums if "train" in found.splits else {}
    return {key: value for key, value in sums.items() if isinstance(value, LabelSums)}


def _remarks_on(split: str, key: str, sums: Sums, classes: list[str] | None) -> Iterator[Remark]:
    if isinstance(sums, LabelSums):
        if classes is None:
            text = f"{split}: {key} has labels up to {len(sums.pixels) - 1}, and the datamodule names no classes, so "
            yield Remark("classes", f"{text}that illegal values cannot be told (`classes`).", unsafe=False)
        if sums.unlabelled:
            yield Remark("labels", f"{split}: {sums.unlabelled} images have no known {key} at all.", unsafe=False)
    if isinstance(sums, DepthSums) and sums.known and not 0.05 < sums.quantile(0.5) < 200:
        text = f"{split}: half of the {key} is beyond {sums.quantile(0.5):.3g} m. Is it in metres?"
        yield Remark("depth", text, unsafe=False)
    if isinstance(sums, NormalsSums) and sums.away > 0.01 * sums.known:
        text = f"{split}: {sums.away / sums.known:.1%} of the {key} face away from the camera. Expected x right, y "
        yield Remark("normals", f"{text}down, z forward, and normals towards the camera.", unsafe=False)


def _name_classes(found: Inspection, data: DenseDataModule) -> None:
    """Made-up names, as a task makes them up, where nobody has named the classes."""
    for numbers in found.splits.values():
        for key, sums in numbers.sums.items():
            if data.kinds.get(key) is Kind.LABEL and isinstance(sums, LabelSums):
                names = found.classes.get(key, [])
                found.classes[key] = [*names, *(f"class_{i}" for i in range(len(names), len(sums.pixels)))]


def repeated_splits(found: Inspection) -> list[str]:
    """Splits other than the first of those that hold the very same pictures."""
    names = [split for split in found.splits if split != "train"]
    return [
        name
        for i, name in enumerate(names)
        if any(same_list(found.splits[name].pictures, found.splits[other].pictures) for other in names[:i])
    ]
