"""Damage in a PNG that its header does not show: a cut or altered chunk."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_fault(content: bytes) -> str | None:
    """What is wrong with the chunks of a PNG file; None if nothing, or if it is no PNG.

    Each chunk ends in a checksum, so nothing need be decompressed to find changed bytes.

    Example:
        >>> png_fault(SIGNATURE)
        'its end is missing: it is truncated'
    """
    if not content.startswith(SIGNATURE):
        return None
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(content):
            break
        kind = content[position + 4 : position + 8]
        if zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"its data are damaged between bytes {position} and {end + 4}"
        if kind == b"IEND":
            return None
        position = end + 4
    return "its end is missing: it is truncated"
