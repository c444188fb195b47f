"""Which files of a folder belong together, and to which split."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Literal

from densepred.data.folder_listing import FolderSamples, FoundFiles
from densepred.errors import ConfigurationError, DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
VAL_NAMES = ("val", "valid", "validation")
SPLIT = "{split}"
SHOWN = 5

Split = Literal["train", "val", "test"]
Unmatched = Literal["error", "skip", "missing"]


def find_files(root: Path, pattern: str) -> FoundFiles:
    """The picture files of a folder and of the folders in it, by stem.

    A stem is the path below the folder without the suffix; in a pattern with a star, what the star stands for.

    Args:
        root: Where the pattern starts.
        pattern: A folder ("labels"), or a folder and a name with a star ("labels/*_mask.png").

    Raises:
        DataError: If two files have one stem.
    """
    folder, begin, end = _parts(pattern)
    endings: dict[str, str] = {}
    found = FoundFiles(root / folder, begin, endings)
    for place, inner, names in os.walk(root / folder, followlinks=True):
        inner.sort()
        below = Path(place).relative_to(root / folder).as_posix()
        before = "" if below == "." else f"{below}/"
        for name in sorted(names):
            stem = _stem(name, begin, end)
            if stem is None:
                continue
            key = before + stem
            if key in endings:
                raise DataError(f"{Path(place, name)}: {found[key].name} has the same name. Take one of them away.")
            # one string for all files that end alike
            endings[key] = sys.intern(name[len(begin) + len(stem) :])
    return found


def _parts(pattern: str) -> tuple[str, str, str | None]:
    """The folder of a pattern, and what stands before and after the star; no end without a star."""
    if "*" not in pattern:
        return pattern, "", None
    folder, _, name = pattern.rpartition("/")
    if name.count("*") != 1 or "*" in folder:
        raise ConfigurationError(
            f"{pattern!r}: expected a folder, or a folder and a file name with one star, such as labels/*_mask.png."
        )
    begin, end = name.split("*")
    return folder, begin, end


def _stem(name: str, begin: str, end: str | None) -> str | None:
    whole, suffix = os.path.splitext(name)
    # a dot: what macOS leaves beside files
    if name.startswith(".") or suffix.lower() not in PICTURES:
        return None
    if end is None:
        return whole
    # "a/*" has no suffix of its own
    name, end = (whole, "") if not end else (name, end)
    fits = name.startswith(begin) and name.endswith(end) and len(name) > len(begin) + len(end)
    return name[len(begin) : len(name) - len(end)] if fits else None


def with_splits(root: Path, pattern: str, splits: Iterable[str]) -> str:
    """The pattern with {split} where folders of splits are: labels/{split}, {split}/labels, or as it is."""
    if SPLIT in pattern or "*" in pattern:
        return pattern
    for nested in (f"{pattern}/{SPLIT}", f"{SPLIT}/{pattern}"):
        if any((root / nested.replace(SPLIT, split)).is_dir() for split in splits):
            return nested
    return pattern


def share(stem: str, seed: int, group_by: str | None = None) -> float:
    """A number from 0 to 1 that the stem alone decides: which other files there are does not matter.

    Example:
        >>> share("0001", 0) == share("0001", 0) != share("0001", 1)
        True
    """
    found = re.search(group_by, stem) if group_by else None
    identity = found.group() if found else stem
    return int.from_bytes(sha256(f"{seed}/{identity}".encode()).digest()[:8]) / 2**64


class FolderSplits:
    """Finds the samples of a split: by folders of splits, lists of names, or shares.

    Args:
        root: The folder of everything.
        images: Folder or pattern of the images, below root.
        targets: The same of each key beside the image.
        names: What the folder or list of each split is called.
        val_share: Share of validation where it has no folder or list.
        test_share: The same of test, where there are neither folders nor lists.
        seed: Of the shares.
        group_by: A regular expression; stems in which it finds the same go to the same split.
        unmatched: What is done where a target's file is missing.
    """

    def __init__(
        self,
        root: Path,
        images: str,
        targets: Mapping[str, str],
        names: Mapping[Split, str],
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        group_by: str | None = None,
        unmatched: Unmatched = "error",
    ) -> None:
        self.root = root
        self.names = names
        splits = [*names.values(), *VAL_NAMES]
        self.images = with_splits(root, images, splits)
        self.targets = {key: with_splits(root, pattern, splits) for key, pattern in targets.items()}
        self.val_share, self.test_share, self.seed, self.group_by = val_share, test_share, seed, group_by
        self.unmatched = unmatched

    def samples(self, split: Split) -> FolderSamples:
        """The samples of a split, by name."""
        source, chosen = self._source(split)
        folder = self.names[source] if self.folder(source) is None else self.folder(source)
        found = {"image": find_files(self.root, self.images.replace(SPLIT, folder or ""))}
        for key, pattern in self.targets.items():
            found[key] = find_files(self.root, pattern.replace(SPLIT, folder or ""))
        if not found["image"]:
            raise DataError(f"{self.root / self.images.replace(SPLIT, folder or '')}: there are no images in it.")
        listed = self.list_file(source)
        stems = read_stems(listed, found["image"]) if listed.is_file() else self._matched(found)
        kept = [stem for stem in stems if chosen(stem)]
        if not kept:
            raise DataError(self._empty(split, stems))
        return self._complete(kept, found)

    def is_there(self, key: str) -> bool:
        """Whether a target has a folder, or files that fit its pattern."""
        pattern = self.targets[key]
        folders = [pattern.replace(SPLIT, name) for name in {*self.names.values(), *VAL_NAMES}]
        if "*" in pattern:
            return any(find_files(self.root, folder) for folder in folders)
        return any((self.root / folder).is_dir() for folder in folders)

    def some(self, key: str, count: int = 10) -> list[Path]:
        """The first files of a target."""
        names = [*self.names.values(), *VAL_NAMES]
        folders = dict.fromkeys(self.targets[key].replace(SPLIT, name) for name in names)
        return [path for folder in folders for path in find_files(self.root, folder).values()][:count]

    def _source(self, split: Split) -> tuple[Split, Callable[[str], bool]]:
        """Whose folder or list a split is taken from, and which of its stems."""
        grouped = any(self.list_file(name).is_file() or self.folder(name) for name in self.names)
        if self._has(split):
            return split, self._outside_val if split == "train" and not self._has("val") else lambda stem: True
        # a name that was given must be there; only the usual one may be made up for
        if grouped and split == "val" and self.names["val"] == "val" and self._has("train"):
            return "train", lambda stem: not self._outside_val(stem)
        if grouped:
            name = self.names[split]
            raise DataError(
                f"{self.root}: there is no {split} split: neither a folder {self.images.replace(SPLIT, name)} nor "
                f"{name}.txt, but there are such of others. Add one, or name another by data.{split}_split."
            )
        bounds = {"val": (0.0, self.val_share), "test": (self.val_share, self.val_share + self.test_share)}
        low, high = bounds.get(split, (self.val_share + self.test_share, 1.0))
        return split, lambda stem: low <= share(stem, self.seed, self.group_by) < high

    def _has(self, split: Split) -> bool:
        return self.list_file(split).is_file() or self.folder(split) is not None

    def _outside_val(self, stem: str) -> bool:
        return share(stem, self.seed, self.group_by) >= self.val_share

    def list_file(self, split: Split) -> Path:
        """Where the list of a split would be."""
        name = self.names[split]
        return Path(name) if name.endswith(".txt") and Path(name).is_file() else self.root / f"{Path(name).stem}.txt"

    def folder(self, split: Split) -> str | None:
        """The name of a split's folder, if there is one."""
        names = VAL_NAMES if self.names[split] == "val" else (self.names[split],)
        there = (name for name in names if (self.root / _parts(self.images.replace(SPLIT, name))[0]).is_dir())
        return next(there, None) if SPLIT in self.images else None

    def _matched(self, found: Mapping[str, Mapping[str, Path]]) -> list[str]:
        """Stems without a list: all that have every file, and no target without its image."""
        for key in self.targets:
            orphans = [stem for stem in found[key] if stem not in found["image"]]
            if orphans:
                # patterns may share a folder, in which files of other patterns are no orphans
                taken = {path for other, files in found.items() if other != key for path in files.values()}
                orphans = [stem for stem in orphans if found[key][stem] not in taken]
            if orphans and self.unmatched == "error":
                raise DataError(self._alone(orphans, len(found[key]), f"{key} file", "image"))
        if self.unmatched == "skip":
            return [stem for stem in found["image"] if all(stem in found[key] for key in self.targets)]
        return list(found["image"])

    def _complete(self, stems: list[str], found: Mapping[str, FoundFiles]) -> FolderSamples:
        """Samples of stems, each with its files."""
        for key in ("image", *self.targets):
            alone = [stem for stem in stems if stem not in found[key]]
            if not alone or (key != "image" and self.unmatched == "missing"):
                continue
            if self.unmatched == "skip":
                stems = [stem for stem in stems if stem in found[key]]
            else:
                raise DataError(self._alone(alone, len(stems), "image" if key != "image" else "listed name", key))
        return FolderSamples(stems, found)

    def _alone(self, stems: list[str], count: int, what: str, lacking: str) -> str:
        shown = ", ".join(stems[:SHOWN]) + (f" and {len(stems) - SHOWN} more" if len(stems) > SHOWN else "")
        pattern = self.images if lacking == "image" else self.targets[lacking]
        return (
            f"{self.root}: {len(stems)} of {count} {what}s have no {lacking} file in {pattern}: {shown}. Files match "
            'by their names without suffix; a name that differs needs a pattern, such as "labels/*_mask.png". Set '
            "data.unmatched to skip to leave them out, to missing to use images without the target."
        )

    def _empty(self, split: Split, stems: list[str]) -> str:
        if not stems:
            return f"{self.root}: the {split} split is empty: of its images none has all of {', '.join(self.targets)}."
        return (
            f"{self.root}: of {len(stems)} images none falls into the {split} split by val_share {self.val_share} and "
            f"test_share {self.test_share}. Set a larger share, another split_seed, or write lists train.txt, val.txt "
            "and test.txt: a name a line."
        )


def read_stems(path: Path, known: Mapping[str, Path]) -> list[str]:
    """The stems of a list file, one a line: a stem, a file name, or a path, of which a second column is not read.

    Raises:
        DataError: If the list is empty, no text, or names an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with the name of an image a line: {error}") from error
    stems = [_listed(line.strip(), known) for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{path}: the list is empty; expected the name of an image a line.")
    if twice := {stem for stem, times in Counter(stems).items() if times > 1}:
        raise DataError(f"{path}: lists {min(twice)!r} twice; every image counts once. Take one of the lines out.")
    return stems


def _listed(line: str, known: Mapping[str, Path]) -> str:
    """The stem that a line means: names may hold spaces, lists may hold paths."""
    for text in (line, line.split()[0]):
        path = Path(text)
        named = path.with_suffix("") if path.suffix.lower() in PICTURES else path
        for depth in range(len(named.parts)):
            stem = Path(*named.parts[depth:]).as_posix()
            if stem in known:
                return stem
    return Path(line.split()[0]).name
