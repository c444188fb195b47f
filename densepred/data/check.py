"""The look at a data set's files before the first step, so that a broken one does not end a run hours later."""

from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from densepred.data.dataset import DenseDataset
from densepred.data.images import read_bytes, read_label, read_size, refuse_damage, refuse_values
from densepred.errors import DataError
from densepred.sample import VOID, Kind

SHOWN = 5
"""So many faults are spelled out; the rest is counted."""


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
        looks = threads.map(lambda index: sample_fault(dataset, index, full), range(len(dataset)))
        bar = tqdm(looks, f"Checking {title}", len(dataset), unit=" samples", delay=2, leave=False)
        faults = [fault for fault in bar if fault]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more." if len(faults) > SHOWN else ""
        shown = "\n  ".join(faults[:SHOWN])
        raise DataError(
            f"{title}: {len(faults)} of {len(dataset)} samples cannot be used:\n  {shown}{more}\n{dataset.advice}"
        )


def sample_fault(dataset: DenseDataset, index: int, full: bool = True) -> str | None:
    """What is wrong with the files of one sample; None if nothing."""
    files = dataset.files(index)
    try:
        size = read_size(files["image"])
        for key, path in files.items():
            kind = dataset.kinds[key]
            if read_size(path) != size:
                return (
                    f"{path}: its size is {read_size(path)} (height, width), but that of its image "
                    f"{files['image']} is {size}."
                )
            if not full:
                continue
            if kind is not Kind.LABEL:
                refuse_damage(read_bytes(path), path)
            else:
                refuse_values(read_label(path), dataset.classes_on_disk.get(key, VOID), path)
    except DataError as error:
        return str(error)
    return None
