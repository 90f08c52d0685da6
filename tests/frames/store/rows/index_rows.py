"""Small tables for the index, and SQL asked beside the store."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg

from frames.dicom.cases import CASES
from support.builders import PIXEL_DATA, Element, dicom, element, image, pattern
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, TableResult, read_table

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


def results(count: int, start: int = 0) -> list[TableResult]:
    return [TableResult(f"/{n}", TABLE, None) for n in range(start, start + count)]
