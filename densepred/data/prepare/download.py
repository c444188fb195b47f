"""Downloads that go on where they stopped and are whole, or not there."""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from densepred import __version__
from densepred.errors import ConfigurationError, DataError

CHUNK = 1 << 20
SPARE_BYTES = 64 << 20
WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


class _InterruptedError(Exception):
    """A connection that failed in a way that another attempt may mend."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Args:
        name: Its file name.
        urls: Where it is, in the order to try: the checksum makes mirrors as good as the source.
        md5: Its published checksum; None where none is known.
        ways_out: What to do when no address answers.
    """

    name: str
    urls: tuple[str, ...]
    md5: str | None
    ways_out: str


def fetch(remote: RemoteFile, folder: Path, url: str | None = None) -> Path:
    """The file in `folder`, downloaded from its addresses (or from `url` alone) unless it is there already.

    Raises:
        DataError: If no address gives the file, with each one's reason; if a file of that name is there with another
            checksum.
    """
    path = folder / remote.name
    if path.exists():
        _check_existing(path, remote)
        return path
    failures = []
    print(f"Downloading {remote.name} to {path.parent}", flush=True)
    for address in (url,) if url else remote.urls:
        print(f"  from {address}", flush=True)
        try:
            return download(address, path, remote.md5)
        except DataError as error:
            failures.append(f"  {error}")
    raise DataError(f"{remote.name} could not be downloaded:\n" + "\n".join(failures) + f"\n{remote.ways_out}")


def download(
    url: str, path: Path, md5: str | None = None, attempts: int = 5, wait: float = 1.0, timeout: float = 30.0
) -> Path:
    """Downloads `url` to `path`, which appears only when it is complete and its checksum agrees.

    What has arrived stands in `path` + `.part` and stays there when the connection breaks or the program is killed; the
    next attempt, or the next run, asks for the rest (HTTP `Range`, with `If-Range` so that a file that changed on the
    server is not glued to the old one). A server that ignores the question is read from the start.

    Args:
        url: An http or https address.
        path: The file to make.
        md5: The checksum it must have.
        attempts: Failures in a row, without a new byte, before it gives up; only 2 while nothing has come at all.
        wait: Seconds before the second attempt; doubled for each further one, up to 30.
        timeout: Seconds without an answer that count as a failure.

    Raises:
        ConfigurationError: If the address is neither http nor https.
        DataError: If the server refuses, the disk is too small, the connection stays broken or the checksum differs.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError(f"download: expected an http or https address, got {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    most, failures = _size(part), 0
    while True:
        try:
            _request_rest(url, part, anywhere=md5 is not None, timeout=timeout)
            break
        except _InterruptedError as error:
            failures = 1 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= (attempts if most else min(attempts, 2)):
                kept = f"; {size_text(_size(part))} are kept, the same command goes on from there" if most else ""
                raise DataError(f"{url}: {error}{kept}") from error
            time.sleep(min(wait * 2 ** (failures - 1), 30))
    _check_download(part, url, md5)
    part.replace(path)
    _note(part).unlink(missing_ok=True)
    return path


def size_text(count: float) -> str:
    """A number of bytes for people.

    Example:
        >>> size_text(1_999_639_040), size_text(812)
        ('1.9 GiB', '812 bytes')
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


def is_web_page(path: Path) -> bool:
    """Whether a file is what servers send in place of one that has moved."""
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))


def md5_of(path: Path) -> str:
    """The MD5 checksum of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar(path.stat().st_size, "checking", leave=False) as bar:
        while block := file.read(CHUNK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _request_rest(url: str, part: Path, anywhere: bool, timeout: float) -> None:
    """One request for what `part` still lacks; returns when it is complete."""
    note = _read_note(part)
    if not (anywhere or note.get("url") == url):
        part.unlink(missing_ok=True)  # nothing says that this address holds the same file
    have = _size(part)
    headers = {"User-Agent": f"densepred/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if note.get("url") == url and note.get("validator"):
            headers["If-Range"] = note["validator"]
    try:
        with urlopen(Request(url, headers=headers), timeout=timeout) as response:
            _receive(response, url, part, have, note.get("total"))
    except HTTPError as error:
        _judge_refusal(error, url, part, have)
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise _InterruptedError(f"no connection ({getattr(error, 'reason', error)})") from error


def _judge_refusal(error: HTTPError, url: str, part: Path, have: int) -> None:
    """What an HTTP error means; returns when it means that `part` is complete already."""
    if error.code == 416 and have:
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        part.unlink()
        raise _InterruptedError("the file on the server is another one than before; starting again") from error
    if error.code in WORTH_ANOTHER_TRY:
        raise _InterruptedError(f"the server answered {error.code} {error.reason}") from error
    raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error


def _receive(response: HTTPResponse, url: str, part: Path, have: int, expected: int | None) -> None:
    """Appends a response to `part`, or starts it anew where the server sends the whole file."""
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        total = int(span[2]) if span and span[2] != "*" else expected
        if span is None or int(span[1]) != have or (expected is not None and total != expected):
            part.unlink(missing_ok=True)
            raise _InterruptedError("the server sent another part than the one asked for; starting again")
    else:
        have = 0
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
    _check_space(part, (total or have) - have)
    _write_note(part, url, response, total)
    with part.open("ab" if have else "wb") as file, _bar(total, part.stem, have) as bar:
        while block := _read(response):
            _append(file, block, part)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise _InterruptedError(f"the connection ended after {size_text(_size(part))} of {size_text(total)}")


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _InterruptedError(f"the connection broke ({error})") from error


def _append(file: Any, block: bytes, part: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"{part}: the disk is full; make room and run the same command again, it goes on from there"
        ) from error


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed + SPARE_BYTES > free:
        raise DataError(
            f"{part.parent}: {size_text(needed)} are still to come and only {size_text(free)} are free; make room, or "
            "choose another folder"
        )


def _check_download(part: Path, url: str, md5: str | None) -> None:
    found = md5_of(part) if md5 else None
    if found != md5:
        size = _size(part)
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise DataError(
            f"{url}: what came ({size_text(size)}) has the MD5 checksum {found}, expected {md5}; it was deleted. Run "
            "the command again; if the same comes, that address serves another file"
        )


def _check_existing(path: Path, remote: RemoteFile) -> None:
    found = md5_of(path) if remote.md5 else None
    if found != remote.md5:
        raise DataError(
            f"{path}: is there already, with the MD5 checksum {found}; the published {remote.name} has {remote.md5}. "
            "Delete it to download it again, or give it on the command line to use it as it is"
        )


def _bar(total: int | None, text: str, initial: int = 0, leave: bool = True) -> Any:
    # disable=None: a bar for people, none in a log file
    scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    return tqdm(total=total, initial=initial, desc=text, leave=leave, disable=None, **scale)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> dict[str, Any]:
    """What the server said of the file that `part` is the beginning of; empty when nothing is known."""
    try:
        note = json.loads(_note(part).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(part: Path, url: str, response: HTTPResponse, total: int | None) -> None:
    tag = response.headers.get("ETag", "")
    # RFC 9110, 13.1.5: If-Range takes strong validators only
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    _note(part).write_text(json.dumps({"url": url, "validator": validator, "total": total}))
