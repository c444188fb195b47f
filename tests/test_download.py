"""Downloads that break, lie or stop, and archives that reach outside."""

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from densepred.data.prepare.archives import entries, unpack
from densepred.data.prepare.download import RemoteFile, download, fetch
from densepred.errors import ConfigurationError, DataError
from tests.local_server import CONTENT, MD5, LocalServer


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


def test_a_download_is_whole_and_leaves_nothing_else(server, tmp_path):
    path = download(server.url, tmp_path / "new" / "file.tar", MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["file.tar"]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    server.cuts = [100_000, 50_000]
    path = download(server.url, tmp_path / "file.tar", MD5, wait=0)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_run_goes_on_from_what_the_last_one_kept(server, tmp_path):
    server.cuts = [120_000, 0, 0]
    with pytest.raises(DataError, match=r"117\.2 KiB are kept, the same command goes on from there"):
        download(server.url, tmp_path / "file.tar", MD5, attempts=3, wait=0)
    assert not (tmp_path / "file.tar").exists()
    server.asked.clear()
    assert download(server.url, tmp_path / "file.tar", MD5).read_bytes() == CONTENT
    assert server.asked == ["bytes=120000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.cuts, server.ranges = [100_000], False
    assert download(server.url, tmp_path / "file.tar", MD5, wait=0).read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_not_glued_to_the_old_beginning(server, tmp_path):
    server.cuts = [100_000, 0, 0]
    with pytest.raises(DataError):
        download(server.url, tmp_path / "file.tar", attempts=3, wait=0)
    server.content, server.etag = CONTENT[::-1], '"second"'
    assert download(server.url, tmp_path / "file.tar").read_bytes() == CONTENT[::-1]


def test_without_a_checksum_another_address_does_not_continue_the_file_of_the_first(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(b"from elsewhere")
    assert download(server.url, tmp_path / "file.tar").read_bytes() == CONTENT


def test_with_a_checksum_a_mirror_continues_what_another_began(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:1000])
    assert download(server.url, tmp_path / "file.tar", MD5).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_download_killed_after_its_last_byte_is_recognised_as_complete(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "file.tar", MD5).read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_what_came_and_names_both(server, tmp_path):
    with pytest.raises(DataError, match=f"{MD5}, expected {'0' * 32}; it was deleted"):
        download(server.url, tmp_path / "file.tar", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path):
    server.refusals = [404, 404]
    with pytest.raises(DataError, match=f"{re.escape(server.url)}: the server answered 404"):
        download(server.url, tmp_path / "file.tar", MD5, wait=0)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.refusals = [503]
    assert download(server.url, tmp_path / "file.tar", MD5, wait=0).read_bytes() == CONTENT


def test_a_connection_that_always_breaks_ends_in_an_error(server, tmp_path):
    server.ranges, server.cuts = False, [1000] * 50
    with pytest.raises(DataError, match=r"the connection ended after 1000 bytes of 293\.0 KiB"):
        download(server.url, tmp_path / "file.tar", MD5, wait=0)
    assert len(server.asked) <= 6


def test_a_file_larger_than_the_disk_is_not_begun(server, tmp_path):
    server.claimed_size = 10**18
    with pytest.raises(DataError, match=r"are still to come and only .* are free"):
        download(server.url, tmp_path / "file.tar", MD5)


def test_an_address_on_the_own_disk_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="http or https"):
        download("file:///etc/passwd", tmp_path / "file.tar")


def test_fetch_turns_to_the_mirror_and_says_all_failures_and_the_ways_out(server, tmp_path):
    dead = server.url.replace(str(server.http.server_port), "9")
    remote = RemoteFile("a.tar", (dead, server.url), MD5, "Ways out: ask Oxford.")
    server.refusals = [404]
    with pytest.raises(DataError) as error:
        fetch(remote, tmp_path)
    assert dead in str(error.value)
    assert "404" in str(error.value)
    assert str(error.value).endswith("Ways out: ask Oxford.")
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_fetch_takes_a_file_that_is_there_and_refuses_another_of_its_name(server, tmp_path):
    remote = RemoteFile("a.tar", (server.url,), MD5, "")
    (tmp_path / "a.tar").write_bytes(CONTENT)
    assert fetch(remote, tmp_path) == tmp_path / "a.tar"
    assert server.asked == []
    (tmp_path / "a.tar").write_bytes(b"something of the user's")
    with pytest.raises(DataError, match="is there already, with the MD5 checksum"):
        fetch(remote, tmp_path)
    assert (tmp_path / "a.tar").exists()


def tar_of(path: Path, name: str, **properties: object) -> Path:
    """A tar with an ordinary file and one member made as told."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("a/good.txt"), io.BytesIO())
        member = tarfile.TarInfo(name)
        for key, value in properties.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return path


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("../evil.txt", {}),
        ("a/../../evil.txt", {}),
        ("/tmp/densepred-evil.txt", {}),
        ("C:/evil.txt", {}),
        ("a\\..\\..\\evil.txt", {}),
        ("a/link", {"type": tarfile.SYMTYPE, "linkname": "../../evil.txt"}),
        ("a/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "../evil.txt"}),
        ("a/device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("a/pipe", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path, name, properties):
    archive = tar_of(tmp_path / "evil.tar", name, **properties)
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(DataError, match="the archive is refused") as error:
        unpack(entries(archive), inside)
    assert str(archive) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "inside"]
    assert not Path("/tmp/densepred-evil.txt").exists()


def test_a_zip_that_reaches_outside_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with pytest.raises(DataError, match="refused"):
        list(entries(tmp_path / "evil.zip"))


def test_links_that_stay_inside_are_refused_too(tmp_path):
    archive = tar_of(tmp_path / "a.tar", "a/b/link", type=tarfile.SYMTYPE, linkname="../good.txt")
    with pytest.raises(DataError, match="'a/b/link' is a link"):
        list(entries(archive))


def test_an_archive_that_claims_to_unpack_to_more_than_any_data_set_is_refused(tmp_path):
    member = tarfile.TarInfo("huge.bin")
    member.size = 40 << 30
    (tmp_path / "bomb.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match=r"unpacks to more than 32\.0 GiB"):
        list(entries(tmp_path / "bomb.tar"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_cut_short_is_named(tmp_path, mode):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, mode) as tar:
        member = tarfile.TarInfo("a.bin")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    os.truncate(archive, 100_000)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"a\.tar: damaged or cut short at 97\.7 KiB"):
        unpack(entries(archive), tmp_path / "out")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("keep", [60, None], ids=["cut within its header", "changed in its checksum"])
def test_a_compressed_archive_is_compared_with_its_checksum_to_the_end(tmp_path, mode, keep):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, mode) as tar:
        member = tarfile.TarInfo("a.bin")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    content = bytearray(archive.read_bytes())
    content[-6] ^= 0x55
    archive.write_bytes(content[:keep])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"a\.tar: (damaged or cut short|neither a tar nor a zip)"):
        unpack(entries(archive), tmp_path / "out")


def test_a_web_page_in_place_of_an_archive_is_called_one(tmp_path):
    (tmp_path / "a.tar").write_text("<!DOCTYPE html><html>We moved</html>")
    with pytest.raises(DataError, match="but a web page"):
        entries(tmp_path / "a.tar")
