"""List files: which images are in a split."""

from collections import Counter
from pathlib import Path

from densepred.data.atomic import settle, whole_file
from densepred.errors import ConfigurationError, DataError


def read_list(path: Path) -> list[str]:
    """The names in a list file, one a line; of `/JPEGImages/NAME.jpg /Labels/NAME.png` the NAME of the first column.

    Raises:
        DataError: If there is no such file, it is empty, or it names an image twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such list of images.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with the name of an image a line: {error}") from error
    names = [_name(line) for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: the list is empty; expected the name of an image a line.")
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise DataError(f"{path}: lists {twice!r} twice; every image counts once. Take one of the lines out.")
    return names


def _name(line: str) -> str:
    first = Path(line.split()[0])
    return first.stem if first.suffix in {".jpg", ".jpeg", ".png"} else first.name


def write_list(path: Path, names: list[str]) -> None:
    """Writes a list file, a name a line."""
    with whole_file(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))
        settle([temporary])


def evenly(names: list[str], limit: int | None) -> list[str]:
    """At most `limit` of the names, evenly spread over the list: the same ones every time. None takes all.

    Raises:
        ConfigurationError: If the limit is below 1.

    Example:
        >>> evenly(["a", "b", "c", "d", "e"], 2)
        ['a', 'c']
    """
    if limit is None or limit >= len(names):
        return names
    if limit < 1:
        raise ConfigurationError(f"A limit of {limit} leaves nothing of a list. Give at least 1, or null for all.")
    return [names[i * len(names) // limit] for i in range(limit)]


def carve(names: list[str], share: float, block: int = 10) -> tuple[list[str], list[str]]:
    """Splits a list into (rest, carved), the second about `share` of it, in blocks of neighbours.

    Neighbours in the list are often views of one scene; single ones would put a scene on both sides. Short lists have
    smaller blocks, and at least one name is carved.

    Example:
        >>> carve(["a", "b", "c", "d", "e", "f"], 1 / 3, block=2)
        (['a', 'b', 'c', 'd'], ['e', 'f'])
    """
    block = min(block, max(1, round(share * len(names))))
    # the 1e-9 keeps 10 blocks of 0.1 from summing to a little under one
    carved = [int((i // block + 1) * share + 1e-9) > int(i // block * share + 1e-9) for i in range(len(names))]
    if not any(carved):
        carved[-1:] = [True]
    rest = [name for name, taken in zip(names, carved, strict=True) if not taken]
    return rest, [name for name, taken in zip(names, carved, strict=True) if taken]
