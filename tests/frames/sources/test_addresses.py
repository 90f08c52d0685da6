"""Odd keys and odd objects: read right, or refused by name with what to do."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pytest

from frames.sources.conftest import Bucket
from frames.sources.images import ct
from support.object_proxy import Fault
from voxtier.errors import FormatError, SourceError
from voxtier.frames import read_frame, read_table
from voxtier.frames.indexing.paths import absolute, iter_files
from voxtier.frames.sources.address import is_address, normal, parse

CONTENT = ct(5)
READ = (
    "a b  c.dcm",
    "größe/日本.dcm",
    "a%20b.dcm",
    "a+b&c=d;e,f.dcm",
    "q?x#y.dcm",
    "'\"<>[]{}|^`~.dcm",
    "x" * 250,
)
REFUSED = ("a//b.dcm", "/a.dcm", "a/", "a/./b", "../a", "a\nb", "a\x7fb", "x" * 1025, "", "\udcff.dcm")


@pytest.mark.parametrize("key", READ)
def test_an_odd_key_is_read(bucket: Bucket, key: str) -> None:
    address = bucket.put(f"odd/{key}", CONTENT)
    assert read_frame(address, read_table(address), 0) == read_frame(CONTENT, read_table(CONTENT), 0)


def test_a_key_of_1024_bytes_is_asked_for(bucket: Bucket) -> None:
    key = "/".join(["d" * 100] * 10) + "/" + "k" * 14
    assert len(key) == 1024
    with pytest.raises(SourceError) as caught:
        read_table(f"s3://frames/{key}")
    assert caught.value.errno == 2


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_no_client_can_ask_for_is_refused(bucket: Bucket, key: str) -> None:
    """Clients drop slashes and take other keys: a wrong object would be read."""
    bucket.put("a.dcm", CONTENT)
    bucket.put("a", CONTENT)
    with pytest.raises(SourceError, match="copy the object to another key"):
        read_table(f"s3://frames/{key}")
    assert bucket.proxy.requests == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/a.dcm", "no store of scheme 'ftp'"),
        ("s3:///a.dcm", "names no bucket"),
        ("https:///a.dcm", "names no host"),
        ("https://host/a.dcm?sig=1", "with a query"),
    ],
)
def test_an_address_of_nothing_is_refused(address: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        read_table(address)


def test_an_empty_object_is_an_empty_file(bucket: Bucket) -> None:
    with pytest.raises(FormatError) as caught:
        read_table(bucket.put("odd/empty.dcm", b""))
    assert caught.value.kind == "empty"


def test_the_status_says_that_an_object_is_empty_and_not_its_name(bucket: Bucket) -> None:
    """An object that may not be read is none that is empty, whatever it is called."""
    address = bucket.put("odd/status 416.dcm", ct(1))
    bucket.proxy.fault = lambda request: Fault(403, "AccessDenied") if request.method == "GET" else None
    with pytest.raises(SourceError, match="credentials may not read it"):
        read_table(address)
    assert [request.method for request in bucket.proxy.requests] == ["GET"]


def test_an_object_that_was_empty_a_moment_ago_is_read_anew(bucket: Bucket) -> None:
    content = ct(1)
    address = bucket.put("odd/grows.dcm", content)
    faults = iter([Fault(416, "InvalidRange")])
    bucket.proxy.fault = lambda request: next(faults, None)
    assert read_frame(address, read_table(address), 0) == read_frame(content, read_table(content), 0)


@pytest.mark.parametrize("count", [1, 100, 131, 133, 300])
def test_a_small_object_is_answered_as_its_bytes(bucket: Bucket, count: int) -> None:
    with pytest.raises(FormatError) as expected:
        read_table(CONTENT[:count])
    with pytest.raises(FormatError) as caught:
        read_table(bucket.put("odd/small.dcm", CONTENT[:count]))
    assert (caught.value.kind, caught.value.offset) == (expected.value.kind, expected.value.offset)


def test_an_archive_is_named(bucket: Bucket) -> None:
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.dcm"), io.BytesIO())
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.dcm", CONTENT)
    for content, word in ((tar.getvalue(), "tar archive"), (packed.getvalue(), "ZIP archive")):
        with pytest.raises(FormatError, match=f"a {word}, which is not read: unpack it"):
            read_table(bucket.put("odd/archive.dcm", content))


def test_one_object_has_one_name() -> None:
    assert normal("S3A://b/K") == "s3://b/K"
    assert absolute("gcs://b/k") == "gs://b/k"
    assert absolute("file:///a/b.dcm") == "/a/b.dcm"
    assert parse("az://c/a/b") == ("az://c", "a/b")
    assert parse("https://h:80/a%20b") == ("https://h:80", "a%20b")
    for name in ("/a/s3://b", "C://x", "s3:/b", "://b"):
        assert not is_address(name)


def test_a_listing_names_what_it_can_and_is_stopped_by_nothing_odd(bucket: Bucket) -> None:
    for key in (*READ, "plain.dcm", "plain.txt", "deep/er/x.DCM"):
        bucket.put(f"listed/{key}", b"x")
    found = set(iter_files(["s3://frames/listed/"]))
    names = {*(key for key in READ if key.endswith(".dcm")), "plain.dcm", "deep/er/x.DCM"}
    assert found == {f"s3://frames/listed/{key}" for key in names}
    assert "s3://frames/listed/plain.txt" in set(iter_files(["s3://frames/listed"], extension=None))


@pytest.mark.parametrize(
    "name",
    [
        "/a", "/a/b.dcm", "/", "//a", "/a//b", "/a/", "/a/.", "/a/..", "/a/./b", "/a/../b", "/.a", "/a/.b/c",
        "/a/...", "a", "./a", "../a", "a/", "/a b", "/ä", "/a/b.", "/a/b..", "///a", "/a/ ",
    ],
)  # fmt: skip
def test_a_path_is_made_absolute_as_the_standard_library_does_it(name: str) -> None:
    """But for //a, which POSIX lets mean something else than /a: here it is the same file, of one row."""
    assert absolute(name) == os.path.abspath("/a" if name == "//a" else name)
    assert os.path.samefile("//", "/")
