"""Damage in a JPEG that decoders pass over: they fill what is missing with grey and warn on the terminal."""

import re

START, END = b"\xff\xd8", b"\xff\xd9"
# in compressed data 0xff is followed by 0 (itself), D0 to D7 (restart) or 0xff (filling); all else is a marker
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SCAN, LAST = 0xDA, 0xD9
BETWEEN_SCANS = frozenset([0xC4, 0xCC, SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)])
"""Segments that may stand between the scans of a progressive file: tables, comments, applications' own."""


def jpeg_fault(content: bytes) -> str | None:
    """What is wrong with the structure of a JPEG file; None if nothing, or if it is no JPEG.

    Walks the segments to the end marker; within compressed data it finds the impossible markers that foreign bytes
    nearly always hold. A decoded picture cannot tell: decoders invent what is missing. A few bytes changed within the
    compressed data stay unseen.

    Example:
        >>> jpeg_fault(bytes.fromhex("ffd8ffe000044a46"))
        'its end is missing: it is truncated'
    """
    if not content.startswith(START):
        return None
    position, scanning = len(START), False
    while found := MARKER.search(content, position):
        marker = content[found.start() + 1]
        if marker == LAST:
            return None
        if scanning and marker not in BETWEEN_SCANS:
            return f"its data are damaged at byte {found.start()}"
        scanning = scanning or marker == SCAN
        # a segment's length counts its own two bytes
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    # foreign bytes may look like a segment that reaches past a whole file's end
    return "its data are damaged" if content.endswith(END) else "its end is missing: it is truncated"
