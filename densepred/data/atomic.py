"""Files that are whole or not there: written under another name, then renamed.

A kill at any moment leaves nothing half-written. Against a power cut the bytes must be on the disk too: `settle` sees
to that for many files at once.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to, and renames it to `path` when the block ends without an error.

    The temporary name is always the same, so what a killed run leaves behind is overwritten by the next one; with
    `shared` it is this process's own, so that several may write the file at once (and the last one's stays).

    Example:
        >>> from tempfile import mkdtemp
        >>> list_file = Path(mkdtemp()) / "train.txt"
        >>> with whole_file(list_file) as temporary:
        ...     _ = temporary.write_text("0001")
        ...     list_file.exists()
        False
        >>> list_file.read_text()
        '0001'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished" if shared else f".{path.name}.unfinished")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def settle(files: Iterable[Path]) -> None:
    """Returns when the bytes of these files are on the disk."""
    if hasattr(os, "sync"):  # once for all: a call a file takes 10 ms each, minutes for a data set
        os.sync()
        return
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def is_written(path: Path) -> bool:
    """Whether a file is there; an empty one, which a power cut leaves, is not."""
    return path.is_file() and path.stat().st_size > 0
