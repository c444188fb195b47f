"""Arrays from MATLAB files of version 5 to 7, read without trust: SciPy's reader ends the process on damaged ones."""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from math import prod

import numpy as np

HEADER = 128
LARGEST = 64 << 20
"""Bytes, unpacked: the largest of the data sets' files has some hundred thousand."""

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""How the numbers of an element are stored."""
STRUCT = 2
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""What the numbers of an array are in MATLAB, which stores them as narrow as they fit."""


def read_mat(content: bytes, name: str, field: str | None = None) -> np.ndarray:
    """An array of a MATLAB file; or of a struct in it, one of the fields.

    Args:
        content: The file's bytes.
        name: Of the variable.
        field: Of the first element of a struct.

    Shape:
        returns: As MATLAB shows it, of at least two axes.

    Raises:
        ValueError: If the file is damaged, has no such array of numbers, or unpacks to more than any of the data sets'.

    Reference:
        MathWorks. MAT-File Format. 2019 (level 5).
    """
    if content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is no MATLAB file of version 5 to 7")
    order = "<" if content[126:128] == b"IM" else ">"
    for payload in _variables(content, order):
        parts = _elements(payload, order)
        kind, shape, found = _begin(parts, order)
        if found != name:
            continue
        if field is None:
            return _array(parts, kind, shape, order, name)
        inner = _elements(_field(parts, kind, shape, order, field), order)
        kind, shape, _ = _begin(inner, order)
        return _array(inner, kind, shape, order, field)
    raise ValueError(f"there is no {name} in it")


def _variables(content: bytes, order: str) -> Iterator[bytes]:
    """The matrices of a file, those unpacked that are compressed."""
    left = LARGEST
    for kind, payload in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            # the format says nowhere how large it becomes
            try:
                unpacked = zlib.decompressobj().decompress(payload, left + 1)
            except zlib.error as error:
                raise ValueError(f"it is damaged: {error}") from error
            left -= len(unpacked)
            if left < 0:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
            yield from (inner for inside, inner in _elements(unpacked, order) if inside == MATRIX)
        elif kind == MATRIX:
            yield payload


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(kind, bytes) of the elements that follow each other; short ones have both in eight bytes."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind >> 16:
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, position + 4, 8
        else:
            begin, step = position + 8, 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[begin : begin + size]
        position += step


def _begin(parts: Iterator[tuple[int, bytes]], order: str) -> tuple[int, tuple[int, ...], str]:
    """Class, shape and name of a matrix: its first three elements."""
    begin = list(islice(parts, 3))
    if len(begin) < 3 or len(begin[0][1]) < 4:
        raise ValueError("it is damaged: a variable ends before its name")
    (_, flags), (_, sizes), (_, name) = begin
    shape = tuple(_numbers(5, sizes, order).tolist())
    if min(shape, default=-1) < 0:
        raise ValueError(f"it is damaged: a variable of shape {shape}")
    # the class is the lowest byte of the first word
    return int(_numbers(6, flags[:4], order)[0]) & 0xFF, shape, name.decode("latin-1")


def _array(parts: Iterator[tuple[int, bytes]], kind: int, shape: tuple[int, ...], order: str, name: str) -> np.ndarray:
    stored, data = next(parts, (0, b""))
    if kind not in CLASSES:
        raise ValueError(f"{name} holds no numbers")
    values = _numbers(stored, data, order)
    if len(values) != prod(shape):
        raise ValueError(f"it is damaged: {len(values)} numbers for a shape of {shape}")
    return values.astype(CLASSES[kind]).reshape(shape, order="F")


def _field(parts: Iterator[tuple[int, bytes]], kind: int, shape: tuple[int, ...], order: str, name: str) -> bytes:
    """A field of the first element of a struct: lengths and names of the fields, then their matrices."""
    (_, length), (_, names) = next(parts, (0, b"")), next(parts, (0, b""))
    if kind != STRUCT or prod(shape) < 1 or len(length) < 4:
        raise ValueError(f"there is no struct with a field {name} in it")
    step = max(1, int(_numbers(5, length[:4], order)[0]))
    known = [names[i : i + step].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), step)]
    if name not in known:
        raise ValueError(f"there is no field {name}, only {', '.join(known[:9])}")
    stored, data = next(islice(parts, known.index(name), None), (0, b""))
    if stored != MATRIX:
        raise ValueError(f"it is damaged: the field {name} is not there")
    return data


def _numbers(stored: int, data: bytes, order: str) -> np.ndarray:
    if stored not in NUMBERS:
        raise ValueError(f"it is damaged: numbers of the unknown kind {stored}")
    kind = np.dtype(f"{order}{NUMBERS[stored]}")
    if len(data) % kind.itemsize:
        raise ValueError("it is damaged: a number is cut short")
    return np.frombuffer(data, kind)
