"""What was found in folders, kept small: of a million files a name each, and a path when it is asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class FolderSample(NamedTuple):
    """An image with what is known about it: its name, and its files by key."""

    name: str
    files: dict[str, Path]


class FoundFiles(Mapping[str, Path]):
    """The files of a folder and of the folders in it, by stem.

    Args:
        folder: Where the stems start.
        begin: What stands before a stem in the name of its file.
        endings: What stands behind it, by stem.

    Example:
        >>> FoundFiles(Path("masks"), "mask_", {"a/1": ".png"})["a/1"].as_posix()
        'masks/a/mask_1.png'
    """

    def __init__(self, folder: Path, begin: str, endings: Mapping[str, str]) -> None:
        self.folder = folder
        self.begin = begin
        self.endings = endings

    def path(self, stem: str, ending: str) -> Path:
        """The file of a stem."""
        inner, _, name = stem.rpartition("/")
        return Path(self.folder, inner, f"{self.begin}{name}{ending}")

    def __getitem__(self, stem: str) -> Path:
        return self.path(stem, self.endings[stem])

    def __contains__(self, stem: object) -> bool:
        return stem in self.endings

    def __iter__(self) -> Iterator[str]:
        return iter(self.endings)

    def __len__(self) -> int:
        return len(self.endings)


class FolderSamples(Sequence[FolderSample]):
    """Samples of stems, each with its files, made when they are asked for.

    All that is kept are bytes and numbers in arrays: a tenth of a million objects' memory, and none that a loading
    process has to copy. It shares the memory of the process that starts it until either writes there, and Python writes
    into every object that is merely looked at.

    Args:
        stems: In the order of the samples.
        found: Files by key and stem; a sample has those that are there.

    Example:
        >>> found = {"image": FoundFiles(Path("images"), "", {"a": ".jpg", "b": ".jpg"})}
        >>> [sample.name for sample in FolderSamples(["b", "a"], found)]
        ['b', 'a']
    """

    def __init__(self, stems: Sequence[str], found: Mapping[str, FoundFiles]) -> None:
        encoded = [os.fsencode(stem) for stem in stems]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        # without their endings, which are counted through: there are few different ones
        self._places = {key: FoundFiles(files.folder, files.begin, {}) for key, files in found.items()}
        self._endings = {key: ["", *dict.fromkeys(files.endings.values())] for key, files in found.items()}
        self._which: dict[str, np.ndarray] = {}
        for key, files in found.items():
            numbers = {ending: number for number, ending in enumerate(self._endings[key]) if number}
            chosen = (numbers[files.endings[stem]] if stem in files else 0 for stem in stems)
            self._which[key] = np.fromiter(chosen, np.uint16, len(stems))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> FolderSample:  # type: ignore[override]  # of slices nobody has need
        index = range(len(self))[index]
        begin = int(self._ends[index - 1]) if index else 0
        stem = os.fsdecode(self._text[begin : int(self._ends[index])])
        files = {}
        for key, which in self._which.items():
            if which[index]:
                files[key] = self._places[key].path(stem, self._endings[key][which[index]])
        return FolderSample(stem, files)
