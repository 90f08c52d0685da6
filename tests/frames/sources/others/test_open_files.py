"""Open files: their bytes are read, whatever lies at their path by now, and by one thread at a time."""

from __future__ import annotations

import gzip
import io
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from frames.sources.images import slide, tile
from voxtier.errors import SourceError
from voxtier.frames import read_frame, read_frames, read_table, read_tables

FRAMES, LENGTH = 40, 9000
OLD = slide(FRAMES, LENGTH, "bot")
NEW = slide(FRAMES, LENGTH, "bot").replace(tile(7, LENGTH), tile(8, LENGTH)).replace(b"\xff\xd8", b"\xff\xd7")
APART = [0, 20, 39]


# The file, and what puts another one in its place.
Opened = tuple[Any, Callable[[bytes], object]]


def replace(path: Path, content: bytes) -> None:
    (path.parent / "new").write_bytes(content)
    os.replace(path.parent / "new", path)


def on_disk(folder: Path, system: Any, name: str = "") -> Opened:
    path = folder / "a.dcm"
    path.write_bytes(OLD)
    return system.open(name or str(path), "rb"), lambda content: replace(path, content)


def local(folder: Path) -> Opened:
    return on_disk(folder, fsspec.filesystem("file"))


def in_folder(folder: Path) -> Opened:
    return on_disk(folder, fsspec.filesystem("dir", path=str(folder), target_protocol="file"), "a.dcm")


def cached(kind: str) -> Callable[[Path], Opened]:
    return lambda folder: on_disk(
        folder, fsspec.filesystem(kind, target_protocol="file", cache_storage=str(folder / "cache"))
    )


def packed(folder: Path) -> Opened:
    path = folder / "a.dcm.gz"
    path.write_bytes(gzip.compress(OLD, 1))
    file = fsspec.filesystem("file")._open(str(path), "rb", compression="gzip")
    return file, lambda content: replace(path, gzip.compress(content, 1))


def zipped(folder: Path) -> Opened:
    def archive(content: bytes) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as files:
            files.writestr("a.dcm", content)
        return made.getvalue()

    path = folder / "a.zip"
    path.write_bytes(archive(OLD))
    system = fsspec.filesystem("zip", fo=str(path))  # closes the archive where nobody holds it

    def renew(content: bytes) -> None:
        assert system.protocol == "zip"
        replace(path, archive(content))

    return system.open("a.dcm", "rb"), renew


def in_memory(folder: Path) -> Opened:
    system, name = fsspec.filesystem("memory"), f"/{folder.name}"
    system.pipe(name, OLD)
    return system.open(name, "rb"), lambda content: system.pipe(name, content)


class Versions(AbstractFileSystem):
    """Keeps all versions of one object; by its path the newest is read."""

    cachable = False

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.kept = [content]
        self.by_file: list[tuple[int, int]] = []

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.kept[-1]), "type": "file"}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        return self.kept[-1][start:end]


class VersionFile(AbstractBufferedFile):
    """The file of a version: what it carries beside its path (headers, credentials) is its own affair."""

    version_id = "0"

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.by_file.append((start, end))
        return self.fs.kept[0][start:end]


def s3_file(**has: Any) -> Any:
    """Return a class as that of s3fs: its requests name the version or the tag, where it knows one."""
    names = {"__module__": "s3fs.core", "version_id": "null", "read_kw": {}} | has
    return type("S3File", (VersionFile,), names)


VERSION, TAGGED, NEITHER = s3_file(version_id="0"), s3_file(read_kw={"IfMatch": '"1"'}), s3_file()


def of_version(kind: Any) -> Callable[[Path], Opened]:
    def opened(folder: Path) -> Opened:
        system = Versions(OLD)
        return kind(system, "a.dcm", block_size=50 << 20), system.kept.append

    return opened


FILES = {
    "local": local, "dir": in_folder,
    "blockcache": cached("blockcache"), "simplecache": cached("simplecache"),
    "gzip": packed, "zip": zipped,
    "memory": in_memory, "version": of_version(VersionFile), "s3 version": of_version(VERSION),
    "s3 tag": of_version(TAGGED), "s3 neither": of_version(NEITHER),
}  # fmt: skip


# fsspec leaves a cache's file and a packed one open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FILES)
def test_an_open_file_is_read_and_not_its_path(name: str, tmp_path: Path) -> None:
    file, renew = FILES[name](tmp_path)
    with file:
        table = read_table(file)
        renew(NEW)
        right = [tile(index, LENGTH) for index in APART]
        assert read_frames(file, table, APART) == right
        assert [read_frame(file, table, index) for index in APART] == right


def test_frames_of_s3fs_that_lie_apart_do_not_bring_what_lies_between() -> None:
    length, block = 1 << 20, 4 << 20  # a gap that is not read over, and what a read brings beyond its end
    content = slide(30, length, "bot")
    table = read_table(content)
    moved = {}
    for kind in (VERSION, TAGGED, NEITHER):
        system = Versions(content)
        file = kind(system, "a.dcm", block_size=block)
        assert read_frames(file, table, [3, 12, 25]) == [tile(index, length) for index in (3, 12, 25)]
        moved[kind] = sum(min(end, len(content)) - start for start, end in system.by_file)
    # Each call reads the header first.
    assert moved[VERSION] == moved[TAGGED] < block + 4 * length < 3 * block < moved[NEITHER]


def test_an_error_of_the_open_file_is_told() -> None:
    system = Versions(OLD)
    table = read_table(OLD)
    file = VERSION(system, "a.dcm", block_size=1)
    system.kept[0] = OLD[:-5000]
    with pytest.raises(SourceError, match="ended 5000 bytes too early"):
        read_frames(file, table, APART)
    file.version_id = None
    with pytest.raises(SourceError, match="ended 5000 bytes too early"):
        read_frames(file, table, APART)


def test_a_local_file_that_is_written_over_while_it_is_open_is_found_out(tmp_path: Path) -> None:
    file, _ = local(tmp_path)
    with file:
        table = read_table(file)
        (tmp_path / "a.dcm").write_bytes(NEW + b"\0\0")
        with pytest.raises(SourceError) as caught:
            read_frames(file, table, APART)
        assert caught.value.kind == "changed_during_read"


class Slow(io.RawIOBase):
    """A file whose reads let other threads run."""

    def __init__(self, content: bytes) -> None:
        self._inner = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        time.sleep(0.0005)
        return self._inner.read(size)

    def seek(self, *place: int) -> int:
        return self._inner.seek(*place)

    def tell(self) -> int:
        return self._inner.tell()


def test_threads_that_read_one_open_file_take_turns() -> None:
    file, table = Slow(OLD), read_table(OLD)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda index: read_frame(file, table, index), range(FRAMES)))
    assert found == [tile(index, LENGTH) for index in range(FRAMES)]
    assert [result.error for result in read_tables([file] * 8, threads=4)] == [None] * 8
