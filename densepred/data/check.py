"""The look at a data set's files before the first step, so that a broken one does not end a run hours later."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from tqdm import tqdm

from densepred.data.dataset import DenseDataset
from densepred.errors import DataError, LabelError

SHOWN = 5
"""So many faults are spelled out; the rest is counted."""
_HANDED_OUT = 4096
"""Samples that wait for a thread; to hand out a million at once takes a gigabyte."""


class Fault(NamedTuple):
    """What is wrong with a file.

    Attributes:
        what: That it cannot be read, has not its image's size, or holds values that are no classes.
        text: A sentence that names the file, what was found and what was expected.
    """

    what: Literal["unreadable", "size", "labels"]
    text: str


def check_files(dataset: DenseDataset, title: str, full: bool = True) -> None:
    """Looks at every file of a data set and names the broken ones in one error.

    Every header is read, and sizes are compared; with `full`, the structure of JPEG and PNG files is followed to its
    end, and labels are decoded and their values compared with the number of classes.

    Args:
        dataset: Whose `files` are looked at; one that names none passes.
        title: How to call it in the error and the progress bar, which shows itself after two seconds.
        full: Whether to read the files too, not only their headers.

    Raises:
        DataError: Naming the file and the cause; of several, the first ones and their number.
    """
    if not len(dataset) or not dataset.files(0):
        return
    with ThreadPoolExecutor() as threads:
        every = range(len(dataset))
        looks = (
            fault
            for start in every[::_HANDED_OUT]
            for fault in threads.map(
                lambda index: next(file_faults(dataset, index, full), None), every[start : start + _HANDED_OUT]
            )
        )
        bar = tqdm(looks, f"Checking {title}", len(dataset), unit=" samples", delay=2, leave=False)
        faults = [fault.text for fault in bar if fault]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more." if len(faults) > SHOWN else ""
        shown = "\n  ".join(faults[:SHOWN])
        raise DataError(
            f"{title}: {len(faults)} of {len(dataset)} samples cannot be used:\n  {shown}{more}\n{dataset.advice}"
        )


def file_faults(dataset: DenseDataset, index: int, full: bool = True) -> Iterator[Fault]:
    """What is wrong with the files of one sample, at most one fault a file."""
    files = dataset.files(index)
    size: tuple[int, int] | None = None
    for key in sorted(files, key=lambda key: key != "image"):
        path = files[key]
        try:
            own = dataset.file_size(key, path)
            size = own if key == "image" else size
            if size is not None and own != size:
                yield Fault(
                    "size",
                    f"{path}: its size is {own} (height, width), but that of its image {files['image']} is {size}.",
                )
            elif full:
                dataset.check_file(key, path)
        except LabelError as error:
            yield Fault("labels", str(error))
        except DataError as error:
            yield Fault("unreadable", str(error))
