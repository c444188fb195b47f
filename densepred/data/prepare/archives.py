"""Archives read without trust: no name of theirs reaches outside the folder, no link of theirs is ever made."""

import errno
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from densepred.data.prepare.download import CHUNK, SPARE_BYTES, is_web_page, size_text
from densepred.errors import DataError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, RuntimeError, NotImplementedError)
LARGEST = 32 << 30
MOST_FILES = 500_000
MOST_BEHIND = 64 << 20
"""Bytes behind the last file of a tar, which pads itself to some kilobytes."""
LONGEST_HEADER = 1 << 20
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Members of a tar that are no files, but say something of the next one."""


@dataclass(frozen=True)
class Entry:
    """A regular file in an archive or a folder.

    Args:
        source: The archive or folder.
        path: Its path there; relative, without `..`.
        size: Bytes.
        open: Opens it for reading; valid until the next entry is taken.
    """

    source: Path
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]

    def read(self) -> bytes:
        """All of its bytes."""
        with _damage_named(self.source), self.open() as data:
            return data.read()

    def copy_to(self, path: Path) -> None:
        """Writes its bytes to `path`."""
        with _damage_named(self.source), self.open() as data, path.open("wb") as file:
            shutil.copyfileobj(data, file, CHUNK)


def entries(source: Path) -> Iterator[Entry]:
    """The files of a tar (plain, gz, bz2, xz), a zip or a folder, one after the other, read when opened.

    An archive that holds a link is refused: no data set here needs one, and a link may lead a later entry out of its
    folder. A folder's links are the user's own.

    Raises:
        DataError: If `source` is not there, is no archive, is damaged or cut short, holds an absolute path, `..`, a
            link, or a device, or would unpack to more than 32 GiB or 500,000 files.
    """
    if source.is_dir():
        return _folder_entries(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder")
    with _damage_named(source):
        return _limited(source, _archive_entries(source))


def unpack(files: Iterable[Entry], folder: Path) -> None:
    """Writes files, as `entries` gives them, below `folder`, with this machine's default permissions.

    Raises:
        DataError: If one is damaged or the disk is too small.
    """
    for entry in files:
        target = folder / entry.path
        free = shutil.disk_usage(folder).free
        if entry.size + SPARE_BYTES > free:
            raise DataError(
                f"{folder}: only {size_text(free)} are free, too little for {entry.path} of {entry.source}; make room "
                "and run the same command again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        entry.copy_to(target)


def _folder_entries(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inside = PurePosixPath(path.relative_to(folder).as_posix())
            yield Entry(folder, inside, path.stat().st_size, partial(_open_file, path))


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _archive_entries(archive: Path) -> Iterator[Entry]:
    if _is_tar(archive):
        return _tar_entries(archive)
    if zipfile.is_zipfile(archive):
        return _zip_entries(archive)
    raise DataError(f"{archive}: neither a tar nor a zip archive{_looks_like(archive)}")


def _is_tar(archive: Path) -> bool:
    # tarfile.is_tarfile would read the first header, however long it says it is
    try:
        tarfile.open(archive, tarinfo=_BoundedInfo).close()
    except (tarfile.ReadError, tarfile.CompressionError):
        return False
    return True


def _limited(archive: Path, found: Iterator[Entry]) -> Iterator[Entry]:
    total = 0
    with _damage_named(archive):
        for count, entry in enumerate(found, start=1):
            total += entry.size
            if total > LARGEST or count > MOST_FILES:
                raise DataError(
                    f"{archive}: unpacks to more than {size_text(LARGEST)} or {MOST_FILES:,} files, which none of the "
                    "data sets does; it is refused"
                )
            yield entry


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Whatever the readers of archives raise on damaged bytes becomes one error that names the archive."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        # the system's own, such as a full disk; a damaged offset is an invalid argument
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        size = size_text(archive.stat().st_size)
        raise DataError(f"{archive}: damaged or cut short at {size} ({error}); get it again") from error


def _tar_entries(archive: Path) -> Iterator[Entry]:
    with tarfile.open(archive, tarinfo=_BoundedInfo) as tar:
        for member in tar:
            path = _safe_path(archive, member.name)
            if member.issym() or member.islnk():
                raise DataError(_linked(archive, member.name))
            if member.isreg() and path.parts:
                yield Entry(archive, path, member.size, partial(_opened, tar, member))
            elif not member.isdir():
                raise DataError(f"{archive}: {member.name} is no file, but a device or a pipe; the archive is refused")
        # the checksum of a compressed stream is compared at its end, behind the last file
        behind = 0
        while tar.fileobj and (block := tar.fileobj.read(CHUNK)):
            behind += len(block)
            if behind > MOST_BEHIND:
                raise DataError(f"{archive}: holds more than {size_text(MOST_BEHIND)} behind its files; it is refused")


class _BoundedInfo(tarfile.TarInfo):
    """Refuses long names and headers of many bytes, which the reader would keep in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type in HEADERS and not 0 <= info.size <= LONGEST_HEADER:
            raise tarfile.TarError(f"a header in it says that it has {size_text(info.size)}")
        return info


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise DataError(f"{tar.name!s}: {member.name} is not a file")
    return file


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            path = _safe_path(archive, info.filename)
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if is_link:
                raise DataError(_linked(archive, info.filename))
            if not info.is_dir() and path.parts:
                yield Entry(archive, path, info.file_size, partial(file.open, info))


def _linked(archive: Path, name: str) -> str:
    return f"{archive}: {name!r} is a link, which could lead out of the folder to unpack to; the archive is refused"


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """The path of an entry, once it is known to stay inside."""
    outside = ".." in PurePosixPath(name).parts or name.startswith("/")
    windows = PureWindowsPath(name)
    if outside or windows.drive or windows.root or "\\" in name:
        raise DataError(f"{archive}: it holds {name!r}, outside the folder to unpack to; the archive is refused")
    return PurePosixPath(name)


def _looks_like(path: Path) -> str:
    if is_web_page(path):
        return ", but a web page: the address it was downloaded from no longer holds the file"
    return f" ({size_text(path.stat().st_size)}); get it again"
