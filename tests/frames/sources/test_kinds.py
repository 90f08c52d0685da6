"""One class of tests for every way to name a file: path, URI, object, HTTP server, open file, function."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from frames.dicom.cases import CASES
from frames.sources.conftest import Bucket
from frames.sources.images import ct, slide
from voxtier.errors import FormatError, SourceError, VoxtierError
from voxtier.frames import (
    RangedSource,
    Slide,
    generate_frames,
    read_frame,
    read_frames,
    read_metadata,
    read_table,
    read_tables,
)

FILES = {"ct": ct(3), "bot": slide(30, 3000, "bot"), "eot": slide(30, 3000, "eot"), "none": slide(30, 70_000)}
KINDS = ("path", "file", "dbfs", "s3", "s3a", "http", "bytesio", "open", "gzip", "fsspec", "function")


@contextmanager
def opened(kind: str, name: str, content: bytes, folder: Path, bucket: Bucket) -> Iterator[Any]:
    path = folder / f"{name}.dcm"
    path.write_bytes(content)
    key = f"kinds/{name}.dcm"
    match kind:
        case "path":
            yield path
        case "file" | "dbfs":
            yield f"{kind}:{path}"
        case "s3" | "s3a":
            yield bucket.put(key, content).replace("s3:", f"{kind}:")
        case "http":  # what anybody may read, without a signature
            public = bucket.public.put(key, content).removeprefix("s3://")
            yield f"http://127.0.0.1:{bucket.proxy.port}/{public}"
        case "bytesio":
            yield io.BytesIO(content)
        case "open":
            with path.open("rb") as file:
                file.seek(77)
                yield file
                assert file.tell() == 77
        case "gzip":
            path.write_bytes(gzip.compress(content, 1))
            with gzip.open(path) as file:
                yield file
        case "fsspec":
            import fsspec

            with fsspec.filesystem("memory").open(f"/{name}", "wb") as file:
                file.write(content)
            with fsspec.open(f"memory://{name}", "rb") as file:
                yield file
        case "function":
            yield RangedSource(lambda offset, length: content[offset : offset + length], len(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_table_and_frames(
    kind: str, name: str, tmp_path: Path, bucket: Bucket
) -> None:
    content = FILES[name]
    right = read_table(content)
    with opened(kind, name, content, tmp_path, bucket) as source:
        table = read_table(source)
        assert [table.ranges(i) for i in range(len(table))] == [right.ranges(i) for i in range(len(right))]
        assert (table.method, table.notes) == (right.method, right.notes)
        last = len(right) - 1
        wanted = [last, 0, last // 2]
        frames = [read_frame(content, right, index) for index in wanted]
        assert read_frames(source, table, wanted) == frames
        assert [read_frame(source, table, index) for index in wanted] == frames
        assert read_metadata(source) == read_metadata(content)
        [result] = read_tables([source])
        assert result.error is None
        assert result.table is not None
        assert len(result.table) == len(right)
        with pytest.raises(IndexError):
            read_frame(source, table, len(right))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_case_is_answered_as_from_memory(case: Any) -> None:
    """Each case of the parser through planned requests of a store in memory."""

    class Object:
        def open_ranges(self) -> tuple[Any, int, bytes]:
            return (len(case.content), None, None, None, "tag"), 1 << 20, case.content[:100]

        def fetch(self, ranges: list[tuple[int, int]]) -> list[bytes]:
            assert all(0 <= start < end <= len(case.content) for start, end in ranges)
            return [case.content[start:end] for start, end in ranges]

    from voxtier import _core

    def answer(source: Any) -> Any:
        try:
            table = _core.read_table(source, verify="all")
        except VoxtierError as error:
            return error.kind, error.offset
        frames = []
        for index in range(len(table)):
            try:
                frames.append(_core.read_frame(source, table, index))
            except FormatError as error:
                frames.append(error.kind)
        return table.status, table.method, table.notes, table.packed, frames

    assert answer(Object()) == answer(case.content)


def test_a_file_open_for_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with (tmp_path / "a").open() as file, pytest.raises(TypeError, match="'rb'"):
        read_table(file)


def test_rows_of_many_sources_name_their_sources(bucket: Bucket, tmp_path: Path) -> None:
    content = FILES["ct"]
    (tmp_path / "a.dcm").write_bytes(content)
    memory = io.BytesIO(content)
    sources = [
        str(tmp_path / "a.dcm"),
        bucket.put("kinds/many.dcm", content),
        memory,
        "s3://frames/kinds/no.dcm",
    ]
    found = {id(result.path): result for result in read_tables(sources)}
    assert [found[id(each)].error is None for each in sources] == [True, True, True, False]
    error = found[id(sources[3])].error
    assert isinstance(error, SourceError)
    assert error.errno == 2


READERS: dict[str, Callable[[Any], object]] = {
    "table": read_table,
    "metadata": read_metadata,
    "frame": lambda path: read_frame(path, read_table(ct(3)), 0),
    "frames": lambda path: read_frames(path, read_table(ct(3)), [0]),
    "generator": lambda path: list(generate_frames(path)),
    "slide": lambda path: Slide([path]),
}


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("name", ["text", "nothing", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_an_error_of_one_file_notes_which(reader: str, name: str, as_type: type, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no image")
    (tmp_path / "folder").mkdir()
    if (reader, name) == ("slide", "folder"):
        (tmp_path / "folder" / "text").write_bytes(b"no image")  # a slide of a folder is its files
    with pytest.raises((FormatError, SourceError)) as caught:
        READERS[reader](as_type(tmp_path / name))
    assert str(tmp_path / name) in caught.value.__notes__[0]
    assert str(tmp_path) not in str(caught.value)  # which is kept and logged
