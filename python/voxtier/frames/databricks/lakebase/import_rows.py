"""Import of a table with a row per frame; files that can be read are read and take precedence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from voxtier._core import FrameTable, path_fault
from voxtier.errors import ENVIRONMENT_KINDS, ConfigError
from voxtier.frames.databricks.frame_dicts import frame_ranges
from voxtier.frames.databricks.lakebase.backend import keys_of
from voxtier.frames.databricks.lakebase.frames import FrameMethods
from voxtier.frames.databricks.table_names import TableName
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.indexing.run import FileIndexer
from voxtier.postgres.connection import Connection
from voxtier.postgres.database import Database, quote_identifier

_REQUIRED = ("filename", "frame", "start_pos", "end_pos")
_OPTIONAL = {
    "pixel_data_pos": "bigint",
    "uc_table_name": "text",
    "transfer_syntax_uid": "text",
    "inserted_at": "timestamptz",
    "last_used_at": "timestamptz",
    "access_count": "bigint",
    "allowed_groups": "text[]",
}

_COLUMNS = (
    "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
)

_PAGE = """
SELECT filename, UC_TABLE_NAME AS source,
    array_agg(frame ORDER BY frame), array_agg(start_pos::bigint ORDER BY frame),
    array_agg(end_pos::bigint ORDER BY frame), array_agg(PIXEL_DATA_POS ORDER BY frame),
    max(TRANSFER_SYNTAX_UID), min(INSERTED_AT), max(LAST_USED_AT), coalesce(max(ACCESS_COUNT), 0),
    (array_agg(ALLOWED_GROUPS::text ORDER BY frame))[1]::text[]
FROM TABLE
WHERE %(after)s::text IS NULL OR (filename, UC_TABLE_NAME) > (%(after)s, %(source)s)
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %(limit)s
"""

# Repeating an import changes nothing. Each row of a frame has the access count of its file.
_COPY_STATS = """
INSERT INTO voxtier.file_stats AS s (key, last_used_at, access_count)
SELECT key, coalesce(at, 'epoch'), n
FROM unnest(%(keys)s::uuid[], %(used)s::timestamptz[], %(counts)s::bigint[]) AS given (key, at, n)
WHERE at IS NOT NULL OR n > 0
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    last_used_at = greatest(s.last_used_at, excluded.last_used_at),
    access_count = greatest(s.access_count, excluded.access_count)
"""
_COPY_FILES = tuple(
    f"""
UPDATE voxtier.{table} AS f SET inserted_at = least(f.inserted_at, given.at),
    allowed_groups = coalesce(given.groups::text[], f.allowed_groups)
FROM unnest(%(keys)s::uuid[], %(inserted)s::timestamptz[], %(groups)s::text[]) AS given (key, at, groups)
WHERE f.key = given.key
"""
    for table in ("file", "claim")
)


class _Row(NamedTuple):
    filename: str
    source: str
    frames: list[int]
    starts: list[int]
    ends: list[int]
    pixels: list[int | None]
    syntax: str | None
    inserted_at: datetime | None
    last_used_at: datetime | None
    access_count: int
    groups: list[str] | None


@dataclass(slots=True)
class ImportReport:
    """The result of an import, in numbers of files.

    Attributes
    ----------
    files : int
        All files.
    verified : int
        Files that were read: their tables are in the index.
    differing : int
        Those of them whose imported ranges were wrong; the index has the ranges of the file.
    unverified : int
        Files that cannot be read here: their ranges are kept as imported and never used to read a file.
    refused : int
        Files that were read and refused, and rows with an impossible path or range.
    """

    files: int = 0
    verified: int = 0
    differing: int = 0
    unverified: int = 0
    refused: int = 0


def import_dicom_frames(
    index: FrameMethods,
    table: str = "dicom_frames",
    *,
    from_database: Database | None = None,
    default_source: str | None = None,
    batch_size: int = 500,
    threads: int = 16,
) -> Iterator[ImportReport]:
    """Import a table with a row per frame, batch by batch. It may be repeated, after an interruption too.

    Parameters
    ----------
    index : LakebaseUtils
        The index to import into.
    table : str
        Name of the table, or ``schema.table``.
    from_database : Database or None
        Database of the table; None: that of the index.
    default_source : str or None
        Source of rows without ``uc_table_name``.
    batch_size, threads : int
        Files in one batch, and files read at once.

    Yields
    ------
    ImportReport
        The numbers so far, once a batch is in the index.

    Raises
    ------
    ConfigError
        There is no such table, it lacks a column, or a row has no source.
    """
    database = from_database or index.store.database
    query = _page_query(database, table, default_source)
    total = ImportReport()
    after: _Row | None = None
    while page := _page(database, query, after, default_source, batch_size):
        for source in sorted({row.source for row in page}):
            _import_rows(index, source, [row for row in page if row.source == source], threads, total)
        after = page[-1]
        yield total
    if not total.files:
        yield total


def _page_query(database: Database, table: str, default_source: str | None) -> str:
    name = TableName.parse(table)
    if name.catalog is not None:
        raise ConfigError(f"{table}: write schema.table, as the connection names the database")
    quoted = quote_identifier(*(part for part in (name.schema, name.table) if part))
    rows = database.run(lambda connection: connection.execute(_COLUMNS.encode(), (quoted,)).fetchall())
    columns = {column for (column,) in rows}
    if missing := [column for column in _REQUIRED if column not in columns]:
        what = f"it has no column {', '.join(missing)}" if columns else "there is no such table"
        raise ConfigError(f"{table} in {database.describe()} cannot be imported: {what}")
    query = _PAGE.replace("TABLE\n", f"{quoted}\n")
    for column, type_ in _OPTIONAL.items():
        expression = f"{column}::{type_}" if column in columns else f"NULL::{type_}"
        if column == "uc_table_name":
            expression = f"coalesce({expression}, %(default)s::text)"
        query = query.replace(column.upper(), expression)
    if "uc_table_name" not in columns and default_source is None:
        raise ConfigError(f"{table} has no column uc_table_name: name the source to import its rows into")
    return query


def _page(
    database: Database, query: str, after: _Row | None, default_source: str | None, limit: int
) -> list[_Row]:
    parameters = {
        "after": after and after.filename,
        "source": after and after.source,
        "limit": limit,
        "default": default_source or "default",
    }
    rows = database.run(lambda connection: connection.execute(query.encode(), parameters).fetchall())
    return [_Row(*row) for row in rows]


def _import_rows(
    index: FrameMethods, source: str, rows: list[_Row], threads: int, total: ImportReport
) -> None:
    source = str(TableName.parse(source))
    total.files += len(rows)
    # Of two rows that name one file, such as with ``dbfs:`` and without, the later one is imported.
    named = {absolute(row.filename): row for row in rows}
    by_path = {path: row for path, row in named.items() if path_fault(path) is None}
    total.refused += len(rows) - len(by_path)
    paths, good = list(by_path), list(by_path.values())
    indexer = FileIndexer(index.store, source=source, threads=threads)
    unreadable = {
        report.path for report in indexer.index_batch(paths) if report.error_kind in ENVIRONMENT_KINDS
    }
    tables = dict(zip(paths, index.store.get_many(source, paths), strict=True))
    imported = []
    for row, path in zip(good, paths, strict=True):
        read = tables[path]
        if isinstance(read, FrameTable):
            total.verified += 1
            total.differing += _differs(row, read)
        elif path in unreadable and _is_plausible(row):
            index.insert_frame_ranges(path, list(_ranges(row)), source, row.syntax)
            total.unverified += 1
        else:
            total.refused += 1
            continue
        imported.append(row)
    if imported:
        index.run(lambda connection: _copy_statistics(connection, source, imported))


def _copy_statistics(connection: Connection, source: str, rows: list[_Row]) -> None:
    keys = keys_of(source, [absolute(row.filename) for row in rows])
    used = [row.last_used_at for row in rows]
    stats = {"keys": keys, "used": used, "counts": [max(row.access_count, 0) for row in rows]}
    connection.execute(_COPY_STATS.encode(), stats)
    # Arrays of arrays must be rectangular, so groups are passed as text. No group means everyone.
    groups = [_array_text(connection, row.groups) if row.groups else None for row in rows]
    files = {"keys": keys, "inserted": [row.inserted_at for row in rows], "groups": groups}
    for statement in _COPY_FILES:
        connection.execute(statement.encode(), files)


def _array_text(connection: Connection, groups: list[str]) -> str:
    row = connection.execute(b"SELECT %s::text[]::text", (groups,)).fetchone()
    return str(row[0]) if row else "{}"


def _ranges(row: _Row) -> Iterator[dict[str, Any]]:
    for frame, start, end, pixels in zip(row.frames, row.starts, row.ends, row.pixels, strict=True):
        yield {"frame_number": frame, "start_pos": start, "end_pos": end, "pixel_data_pos": pixels}


def _is_plausible(row: _Row) -> bool:
    return all(
        frame >= 0 and 0 <= start <= end + 1
        for frame, start, end in zip(row.frames, row.starts, row.ends, strict=True)
    )


def _differs(row: _Row, table: FrameTable) -> bool:
    ranges = [(each["frame_number"], each["start_pos"], each["end_pos"]) for each in frame_ranges(table)]
    return ranges != list(zip(row.frames, row.starts, row.ends, strict=True))
