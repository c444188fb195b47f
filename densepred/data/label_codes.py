"""What label files hold, class ids or colours, and how they become class indices."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from densepred.data.images import read_bytes
from densepred.data.rasters import ARRAYS, read_raster
from densepred.errors import ConfigurationError, DataError, LabelError
from densepred.sample import VOID, Kind, missing_value

VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore")
"""Names of lines that are no class: their pixels are missing."""
ILLEGAL = -2
INDEX_MODES = {"P", "L", "1", "I", "I;16", "I;16B"}
Colour = tuple[int, int, int]
Stored = Literal["ids", "colours", "binary"]


class ClassLine(NamedTuple):
    """A line of a class file: a name, and the colour that stands for it in masks, if any."""

    name: str
    colour: Colour | None


def read_classes(path: Path) -> list[ClassLine]:
    """The lines of a class file: `name`, `name R G B` or `R G B name`, parted by spaces, tabs, commas or semicolons.

    A line whose last or first three words are numbers up to 255 has a colour. Empty lines, those that start with #, and
    a heading such as `name,r,g,b` are passed over.

    Raises:
        DataError: If the file is missing, is no text, or names nothing or something twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file of classes: expected a name a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with the name of a class a line: {error}") from error
    heading = re.compile(r"(id\W+)?(class|name)\w*\W+r(ed)?\W+g(reen)?\W+b(lue)?\W*", re.IGNORECASE)
    kept = [line for line in lines if line.strip() and not line.startswith("#") and not heading.fullmatch(line.strip())]
    return class_lines([class_line(line) for line in kept], str(path))


def class_lines(lines: Sequence[ClassLine], where: str) -> list[ClassLine]:
    """The lines, if they name something, and nothing twice."""
    names = [line.name for line in lines]
    if not names:
        raise DataError(f"{where}: names no class; expected a name a line.")
    twice = [name for i, name in enumerate(names) if name in names[:i] and name.lower() not in VOID_NAMES]
    if twice:
        raise DataError(f"{where}: names {twice[0]!r} twice. Every class has one line.")
    colours = [line.colour for line in lines if line.colour]
    if len(set(colours)) < len(colours):
        double = next(colour for i, colour in enumerate(colours) if colour in colours[:i])
        raise DataError(f"{where}: gives the colour {double} to two classes. Every class has its own.")
    return list(lines)


def class_line(text: str) -> ClassLine:
    """A line of a class file as name and colour.

    Example:
        >>> class_line("64 128 64\tTraffic light"), class_line("sky")
        (ClassLine(name='Traffic light', colour=(64, 128, 64)), ClassLine(name='sky', colour=None))
    """
    words = re.split(r"[,;\s]+", text.strip().strip(",;"))
    for numbers, name in ((words[-3:], words[:-3]), (words[:3], words[3:])):
        if name and all(word.isdecimal() and int(word) <= 255 for word in numbers):
            return ClassLine(" ".join(name), (int(numbers[0]), int(numbers[1]), int(numbers[2])))
    return ClassLine(" ".join(text.split()), None)


class LabelReader:
    """Reads label files as class indices.

    Ids are what the file's pixels hold: numbers of grey pictures, of palette pictures (not their colours), of TIFF and
    .npy. Line i of the class file is id i. Colour pictures are read by the colours of the class file, in which every
    pixel must have exactly the colour of a class. A grey picture that was saved as RGB is read as ids where the classes
    have no colours.

    Args:
        lines: The classes, with their colours where masks are coloured. Lines named void, unlabelled, unlabeled or
            ignore are no classes, and their pixels missing.
        stored: "ids", "colours" (of palette pictures too), or "binary" (0 is class 0; 255, or 1, is class 1). None
            takes colour pictures as colours and all others as ids.
        ids: Class index by id, where the files' ids are others; ids that are not in it become missing.
        void_ids: Ids that are missing, beside 255 (where that is no class's own) and numbers below 0.
        unknown: What an id or a colour of no class is: an "error", or "void".

    Shape:
        returns: (H, W), uint8 with 255 for missing; for more than 255 classes int32, with -1.

    Raises:
        ConfigurationError: If options contradict each other.
        DataError: On a call, if the file is broken or holds an id or a colour of no class.
    """

    def __init__(
        self,
        lines: Sequence[ClassLine],
        stored: Stored | None = None,
        ids: Mapping[int, int] | None = None,
        void_ids: Sequence[int] = (),
        unknown: Literal["error", "void"] = "error",
    ) -> None:
        self.stored = stored
        self.unknown = unknown if ids is None else "void"
        kept = [line for line in lines if line.name.lower() not in VOID_NAMES]
        self.classes = [line.name for line in kept]
        self.dtype = np.dtype(np.uint8 if len(kept) <= VOID else np.int32)
        self.missing = missing_value(Kind.LABEL, self.dtype)
        if stored == "binary" and (len(kept) != 2 or ids is not None):
            raise ConfigurationError(f"Binary masks have 2 classes and no ids; got {len(kept)} classes, ids {ids}.")
        self.ids = self._ids(lines, {0: 0, 1: 1, VOID: 1} if stored == "binary" else ids, void_ids)
        self.table = np.full(max(256, 1 + max(self.ids)), ILLEGAL, np.int32)
        self.table[list(self.ids)] = list(self.ids.values())
        self.illegal = (self.table[:256] == ILLEGAL).astype(np.uint8)
        self.narrow = np.where(self.table[:256] == ILLEGAL, self.missing, self.table[:256]).astype(np.uint8)
        self.colours = {line.colour: self._index(line) for line in lines if line.colour}
        if stored == "colours" and not self.colours:
            raise ConfigurationError(
                'Masks of colours need the colour of each class: lines "name R G B" in the class file.'
            )
        self.modulus, self.keys, self.values = _colour_table(self.colours)

    def __call__(self, path: Path) -> np.ndarray:
        """The class indices (H, W) of a file."""
        return self.decode(self.read(path), path)

    def read(self, path: Path) -> np.ndarray:
        """What the file holds: ids (H, W), or colours (H, W, 3)."""
        if path.suffix.lower() in ARRAYS:
            return self._ids_or_colours(read_raster(path), path)
        content = read_bytes(path)
        try:
            with Image.open(io.BytesIO(content)) as picture:
                if picture.mode not in INDEX_MODES or (self.stored == "colours" and picture.mode == "P"):
                    return self._ids_or_colours(np.array(picture.convert("RGB")), path)
                pixels = np.array(picture)
        except DataError:
            raise
        # Pillow raises nearly anything over damaged files
        except (Exception, Image.DecompressionBombError) as error:
            cause = "it is no picture, or damaged" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{path}: cannot be read: {cause}. Fetch it again, or take it out of the list.") from error
        return pixels

    def _ids_or_colours(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        if pixels.dtype.kind not in "bui":
            raise DataError(f"{path}: expected whole numbers, class ids, but it holds {pixels.dtype}.")
        if pixels.shape[2] == 1:
            return pixels[..., 0]
        colours = np.ascontiguousarray(pixels[..., :3])
        if self.colours and self.stored != "binary" and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8:
            return colours
        if pixels.shape[2] in (3, 4) and (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
        raise DataError(
            f"{path}: is a colour picture of {pixels.shape[2]} channels, but the classes have no colours. Write a line "
            '"name R G B" for each class into the class file (classes.txt), or convert the masks to ids: one number a '
            f"class, {VOID} where unlabelled."
        )

    def decode(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Class indices of what a file holds.

        Raises:
            LabelError: If it holds an id or a colour of no class, and `unknown` says that this is an error.
        """
        # the usual case, a fifth of the time
        narrow = stored.ndim == 2 and stored.dtype == np.uint8 and self.dtype == np.uint8
        if narrow and (self.unknown == "void" or not np.any(cv2.LUT(stored, self.illegal))):
            return np.asarray(cv2.LUT(stored, self.narrow))
        labels = self._of_colours(stored) if stored.ndim == 3 else self._of_ids(stored)
        illegal = labels == ILLEGAL
        if self.unknown == "error" and illegal.any():
            raise LabelError(self._unknown(stored, illegal, path))
        labels[illegal] = self.missing
        return labels.astype(self.dtype)

    def _of_ids(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.bool_ or stored.dtype == np.uint8:
            return self.table[stored.astype(np.uint8)]
        wide = stored.astype(np.int64)
        known = (wide >= 0) & (wide < len(self.table))
        labels = np.where(wide < 0, np.int32(self.missing), np.int32(ILLEGAL))
        labels[known] = self.table[wide[known]]
        return labels

    def _of_colours(self, stored: np.ndarray) -> np.ndarray:
        codes = _codes(stored)
        place = codes % self.modulus
        return np.where(self.keys[place] == codes, self.values[place], np.int32(ILLEGAL))

    def _unknown(self, stored: np.ndarray, illegal: np.ndarray, path: Path) -> str:
        found, counts = np.unique(stored[illegal], axis=0, return_counts=True)
        shown = ", ".join(str(tuple(value.tolist())) if stored.ndim == 3 else str(value) for value in found[:5])
        row, column = np.argwhere(illegal)[0].tolist()
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        what = f"{shown}{more} in {int(counts.sum())} pixels, first at row {row}, column {column}"
        if stored.ndim == 3:
            return (
                f"{path}: colours of no class: {what}. Expected the {len(self.colours)} colours of the classes, such "
                f"as {', '.join(map(str, list(self.colours)[:3]))}. Add lines to the class file, or set data.unknown "
                "to void; masks saved as JPEG or resized smoothly hold mixed colours and must be written again."
            )
        known = sorted(self.ids)
        expected = f"{known[0]} to {known[-1]}" if known == list(range(len(known))) else _listed(known)
        return (
            f"{path}: label value {what}. Expected {expected} for the {len(self.classes)} classes. Name the class, "
            "list what is unlabelled in data.void_ids, give data.ids (id: class index), or set data.unknown to void."
        )

    def _index(self, line: ClassLine) -> int:
        return self.classes.index(line.name) if line.name in self.classes else self.missing

    def _ids(
        self, lines: Sequence[ClassLine], ids: Mapping[int, int] | None, void_ids: Sequence[int]
    ) -> dict[int, int]:
        table = {number: self._index(line) for number, line in enumerate(lines)} if ids is None else dict(ids)
        for number, index in table.items():
            if not 0 <= number < 2**24 or not (0 <= index < len(self.classes) or index == self.missing):
                raise ConfigurationError(
                    f"ids: {number}: {index} is no class index. Expected 0 to {len(self.classes) - 1} for the "
                    f"{len(self.classes)} classes; ids that are not listed become missing."
                )
        table.setdefault(VOID, self.missing)
        return table | {number: self.missing for number in void_ids if number >= 0}


def stored_values(paths: Sequence[Path]) -> str:
    """A sentence on the ids that label files hold, for who has yet to name them."""
    reader = LabelReader([ClassLine("any", None)])
    try:
        values = sorted({int(value) for path in paths for value in np.unique(reader.read(path))})
    except DataError as error:
        return str(error)
    return f"The first {len(paths)} files hold the ids {_listed(values)}."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (f" and {len(numbers) - 12} more" if len(numbers) > 12 else "")


def _codes(colours: np.ndarray) -> np.ndarray:
    red, green, blue = (np.asarray(plane, np.uint32) for plane in cv2.split(np.ascontiguousarray(colours)))
    codes: np.ndarray = (red << 16) | (green << 8) | blue
    return codes


def _colour_table(colours: Mapping[Colour, int]) -> tuple[np.uint32, np.ndarray, np.ndarray]:
    """A table of which colour lies at the remainder of its code: the smallest one in which no two colours meet.

    A search of sorted colours would take ten times as long, a table of all colours 64 MB in every loading process.
    """
    if not colours:
        return np.uint32(1), np.full(1, 2**32 - 1, np.uint32), np.full(1, ILLEGAL, np.int32)
    codes = _codes(np.array([list(colours)], np.uint8))[0]
    # of so many remainders, one try in fifty has none twice
    first = max(len(codes), len(codes) ** 2 // 8)
    modulus = next(m for m in range(first, 2**24 + 1) if len(np.unique(codes % np.uint32(m))) == len(codes))
    keys, values = np.full(modulus, 2**32 - 1, np.uint32), np.full(modulus, ILLEGAL, np.int32)
    keys[codes % np.uint32(modulus)] = codes
    values[codes % np.uint32(modulus)] = list(colours.values())
    return np.uint32(modulus), keys, values
