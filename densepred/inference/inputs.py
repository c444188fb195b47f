"""What a user means by his input: files, folders, patterns, lists of files; each with a name of its own for outputs."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from densepred.errors import DataError
from densepred.inference.predictor import PICTURES

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
"""Endings of files that are videos."""
LISTS = (".txt", ".lst")
"""Endings of files that list others."""


class Source(NamedTuple):
    """A file to predict.

    Args:
        path: Where it is.
        name: Of its outputs, without an ending, folders parted by slashes; no two sources have the same.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether its ending is a video's."""
        return self.path.suffix.lower() in VIDEOS


def find_sources(given: Sequence[str | Path], recursive: bool = False, outside: Path | None = None) -> list[Source]:
    """The pictures and videos that are meant, each once, in the order in which they are given.

    A folder stands for its pictures and videos, in the order of their names. What does not exist but has a star, a
    question mark or brackets is a pattern (`**` goes through all folders). A file that ends in .txt lists others, a
    path a line, from the list's folder or from here; lines that start with # are passed over.

    Outputs are named after the files, without their endings. Where two would share a name (a.jpg and a.png, or the same
    name in two folders), their endings are kept, or the names of their folders are put before, as far as it needs.

    Args:
        given: Files, folders, patterns, lists.
        recursive: Look into the folders within a folder too; their names are kept in the outputs' names.
        outside: A folder to leave out, where outputs go.

    Raises:
        DataError: If something is not there, or there is nothing to predict.
    """
    found = [one for text in given for one in _expand(str(text), recursive, outside)]
    once: dict[Path, tuple[Path, Path]] = {}
    for path, root in found:
        once.setdefault(_absolute(path), (path, _absolute(root)))
    if not once:
        raise DataError("Nothing to predict: give pictures, videos, folders of them, patterns or lists.")
    names = _names([(key, root) for key, (_, root) in once.items()])
    return [Source(path, name) for (path, _), name in zip(once.values(), names, strict=True)]


def only_named(sources: Iterable[Source], wanted: Sequence[str]) -> list[Source]:
    """Those whose file has one of these names (without its ending), in the order of the names.

    Raises:
        DataError: If one is missing, or there twice.
    """
    by_stem: dict[str, list[Source]] = {}
    for source in sources:
        by_stem.setdefault(source.path.stem, []).append(source)
    missing = [name for name in wanted if name not in by_stem]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} listed names are not among the input, such as {missing[0]!r}. Give the "
            "folder that holds them, with --recursive where they are in folders of it."
        )
    twice = next((by_stem[name] for name in wanted if len(by_stem[name]) > 1), None)
    if twice:
        raise DataError(f"The listed name {twice[0].path.stem!r} means {' and '.join(str(one.path) for one in twice)}.")
    return [by_stem[name][0]._replace(name=name) for name in wanted]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # links stay: they are how users name their files


def _expand(text: str, recursive: bool, outside: Path | None) -> Iterator[tuple[Path, Path]]:
    """Files, each with the folder from which its name is counted."""
    path = Path(text).expanduser()
    if path.is_dir():
        yield from ((one, path) for one in _folder(path, recursive, outside))
    elif path.suffix.lower() in LISTS and path.is_file():
        yield from _listed(path)
    elif path.exists():
        yield path, path.parent
    elif glob.has_magic(text):
        root = Path(*_before_magic(path))
        outside = _below(outside, root)
        matches = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if _is_wanted(Path(one), outside)]
        if not matches:
            raise DataError(f"--input {text}: no picture or video matches it (seen from {Path.cwd()}).")
        yield from ((one, root) for one in matches)
    else:
        raise DataError(f"--input {text}: there is no such file or folder (seen from {Path.cwd()}).")


def _folder(folder: Path, recursive: bool, outside: Path | None) -> list[Path]:
    outside = _below(outside, folder)
    try:
        everything = folder.rglob("*") if recursive else folder.iterdir()
        found = sorted(path for path in everything if _is_wanted(path, outside))
    except OSError as error:
        raise DataError(f"--input {folder}: cannot be read: {error.strerror or error}.") from error
    if not found:
        inner = not recursive and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        hint = " It has folders: --recursive looks into them." if inner else ""
        raise DataError(f"--input {folder}: it holds no picture or video ({', '.join(PICTURES + VIDEOS)}).{hint}")
    return found


def _below(outside: Path | None, folder: Path) -> Path | None:
    """A folder to leave out, where it lies in the one that is searched: pictures may lie beside their outputs."""
    return outside if outside is not None and folder.resolve() in outside.resolve().parents else None


def _is_wanted(path: Path, outside: Path | None) -> bool:
    if path.suffix.lower() not in PICTURES + VIDEOS or path.name.startswith(".") or not path.is_file():
        return False
    return outside is None or outside.resolve() not in path.resolve().parents


def _listed(file: Path) -> Iterator[tuple[Path, Path]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--input {file}: expected a text file with a path a line: {error}") from error
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        path = Path(text).expanduser()
        places = [path] if path.is_absolute() else [file.parent / path, path]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            looked = " and ".join(str(place) for place in places)
            raise DataError(f"{file}, line {number}: there is no file {text!r} (looked for {looked}).")
        yield found, found.parent


def _before_magic(path: Path) -> tuple[str, ...]:
    parts = path.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return parts[:first]


def _names(files: Sequence[tuple[Path, Path]]) -> list[str]:
    """A name for each file, as short as they differ by; letters of either case count as the same, as on some disks."""
    levels = [0] * len(files)
    while True:
        names = [_name(path, root, level) for (path, root), level in zip(files, levels, strict=True)]
        count = Counter(name.casefold() for name in names)
        folders = {str(parent) for name in names for parent in PurePosixPath(name.casefold()).parents}
        # the frames of a video get a folder of its name
        twins = [index for index, name in enumerate(names) if count[name.casefold()] > 1 or name.casefold() in folders]
        if not twins:
            return names
        if all(levels[index] > 2 * len(files[index][0].parts) for index in twins):
            return [f"{name}_{index}" for index, name in enumerate(names)]  # they differ in the case of letters alone
        for index in twins:
            levels[index] += 1


def _name(path: Path, root: Path, level: int) -> str:
    """The path from its root, at odd levels with its ending, and from a folder further up every second level."""
    parts = path.parts[1:]
    name = "/".join(parts[-len(path.relative_to(root).parts) - level // 2 :])
    return name if level % 2 else name.removesuffix(path.suffix)
