"""Small tables for the index, and SQL asked beside the store."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg

from frames.dicom.cases import CASES
from support.builders import PIXEL_DATA, Element, dicom, element, image, pattern
from voxtier._core import Refusal
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, TableResult, read_table
from voxtier.frames.store.migrations import _VERSIONS, scripts
from voxtier.frames.store.row import FileState
from voxtier.frames.store.store import FrameStore

NOW = datetime.now(UTC)
TABLE = read_table(next(case for case in CASES if case.name == "e04_bot_multifrag").content, verify="all")


def ct(seed: int = 0, *, uid: str = "1.2.3", series: str = "1.2", frames: int = 1) -> bytes:
    """A small image."""
    uids = {"SOPInstanceUID": uid, "SeriesInstanceUID": series}
    own = {element(keyword, value).tag: element(keyword, value) for keyword, value in uids.items()}
    elements = [own.get(each.tag, each) for each in image(frames=frames)]
    return dicom([*elements, Element(PIXEL_DATA, "OW", pattern(16 * frames, seed))]).content


def table_of(content: bytes = b"") -> FrameTable:
    return read_table(content or ct(), verify="all")


def result(path: str, table: FrameTable | None = None, error: FormatError | None = None) -> TableResult:
    return TableResult(path, (table or table_of()) if error is None else None, error)


def ask(dsn: str, question: str, *values: object) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(question, values or None)
        return cursor.fetchall() if cursor.description else []


def run_migrations(dsn: str, first: int, last: int, *, makes_schema: bool = True) -> None:
    """Run the SQL of some migrations as this role, as their version did."""
    with psycopg.connect(dsn) as connection:
        if first == 1 and makes_schema:
            connection.execute("CREATE SCHEMA voxtier")
        if first == 1:
            connection.execute(_VERSIONS)
        for number, name, text in scripts()[first - 1 : last]:
            connection.execute(text.encode())
            values = (number, name)
            connection.execute("INSERT INTO voxtier.schema_version (version, name) VALUES (%s, %s)", values)


def results(count: int, start: int = 0) -> list[TableResult]:
    return [TableResult(f"/{n}", TABLE, None) for n in range(start, start + count)]


_STATUS = """
SELECT status::text FROM voxtier.file JOIN voxtier.source USING (source_id) WHERE name = %s AND path = %s
"""


def check_stored(store: FrameStore, source: str, results: dict[str, TableResult]) -> None:
    """Hold what the index answers for each path against what was written."""
    many = store.get_many(source, list(results))
    known = store.file_states(source, list(results))
    for (path, expected), found, row in zip(results.items(), many, known, strict=True):
        one = store.get(source, path)
        assert isinstance(row, FileState)
        if expected.table is not None:
            assert one == found == expected.table
            assert isinstance(found, FrameTable)
            assert (row.size, row.mtime_ns) == (expected.table.size, expected.table.mtime_ns)
            assert row.frame_count == len(found)
            assert store.query(_STATUS, (source, path)) == [(found.status,)]
            frames = range(len(found))
            assert [found.ranges(i) for i in frames] == [expected.table.ranges(i) for i in frames]
        else:
            assert isinstance(one, Refusal)
            assert expected.error is not None
            for refusal in (one, found):
                assert isinstance(refusal, Refusal)
                assert type(refusal.error) is type(expected.error)
                assert (refusal.error.kind, refusal.error.offset) == (
                    expected.error.kind, expected.error.offset
                )  # fmt: skip
                assert refusal.error.detail == expected.error.detail
            assert row.error_kind == expected.error.kind
