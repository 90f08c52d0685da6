"""Import of a table with a row per frame: held against the files where they can be read."""

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
from voxtier.frames.databricks.table_names import TableName, local_path
from voxtier.frames.indexing.run import FileIndexer
from voxtier.postgres.database import Connection, Database, identifier

__all__ = ["ImportReport", "import_dicom_frames"]

_NEEDED = ("filename", "frame", "start_pos", "end_pos")
_OPTIONAL = {
    "pixel_data_pos": "bigint", "uc_table_name": "text", "transfer_syntax_uid": "text",
    "inserted_at": "timestamptz", "last_used_at": "timestamptz", "access_count": "bigint",
    "allowed_groups": "text[]",
}  # fmt: skip

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

# Kept as they were; again does no harm. One access of a file had been counted in each row of its frames.
_CARRY_STATS = """
INSERT INTO voxtier.file_stats AS s (key, last_used_at, access_count)
SELECT key, coalesce(at, 'epoch'), n
FROM unnest(%(keys)s::uuid[], %(used)s::timestamptz[], %(counts)s::bigint[]) AS given (key, at, n)
WHERE at IS NOT NULL OR n > 0
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    last_used_at = greatest(s.last_used_at, excluded.last_used_at),
    access_count = greatest(s.access_count, excluded.access_count)
"""
_CARRY_FILES = tuple(
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
    """What an import came to, in files.

    Attributes
    ----------
    files : int
        All of them.
    verified : int
        Read again: the table of the file is in the index.
    differing : int
        Of these, the ones whose imported ranges were not those of the file; the file counts.
    unverified : int
        Their files cannot be read here; kept as given, never used to read a file, marked ``none``.
    refused : int
        The file can be read and is no image whose frames can be told, or the row cannot be one.
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
    """Import a table with a row per frame, batch by batch; again does no harm and goes on where it can.

    Parameters
    ----------
    index : LakebaseUtils
        The index to import into.
    table : str
        The table: ``dicom_frames`` or ``schema.dicom_frames``.
    from_database : Database or None
        Where it lies; None: in the database of the index.
    default_source : str or None
        Source of rows that name no ``uc_table_name``.
    batch_size, threads : int
        Files in one batch; files read at once.

    Yields
    ------
    ImportReport
        The sums so far, after each batch is in the index.

    Raises
    ------
    ConfigError
        There is no such table, or it lacks a column.
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
        raise ConfigError(f"{table}: name it as schema.table; the catalog is the database of the connection")
    quoted = identifier(*(part for part in (name.schema, name.table) if part))
    found = database.run(lambda connection: connection.execute(_COLUMNS.encode(), (quoted,)).fetchall())
    columns = {column for (column,) in found}
    if missing := [column for column in _NEEDED if column not in columns]:
        what = f"it has no column {', '.join(missing)}" if columns else "there is no such table"
        raise ConfigError(f"{table} in {database.describe()} cannot be imported: {what}")
    query = _PAGE.replace("TABLE\n", f"{quoted}\n")
    for column, type_ in _OPTIONAL.items():
        present = f"{column}::{type_}" if column in columns else f"NULL::{type_}"
        if column == "uc_table_name":
            present = f"coalesce({present}, %(default)s::text)"
        query = query.replace(column.upper(), present)
    if "uc_table_name" not in columns and default_source is None:
        raise ConfigError(f"{table} does not say whose rows these are: name the source to import them into")
    return query


def _page(
    database: Database, query: str, after: _Row | None, default_source: str | None, limit: int
) -> list[_Row]:
    parameters = {
        "after": after and after.filename, "source": after and after.source, "limit": limit,
        "default": default_source or "default",
    }  # fmt: skip
    rows = database.run(lambda connection: connection.execute(query.encode(), parameters).fetchall())
    return [_Row(*row) for row in rows]


def _import_rows(
    index: FrameMethods, source: str, rows: list[_Row], threads: int, total: ImportReport
) -> None:
    source = str(TableName.parse(source))
    total.files += len(rows)
    # Of two rows whose paths differ by ``dbfs:`` alone, the later counts.
    by_path = {local_path(row.filename): row for row in rows if path_fault(local_path(row.filename)) is None}
    total.refused += len(rows) - len(by_path)
    paths, good = list(by_path), list(by_path.values())
    indexer = FileIndexer(index.store, source=source, threads=threads)
    unreadable = {
        report.path for report in indexer.index_batch(paths) if report.error_kind in ENVIRONMENT_KINDS
    }
    tables = dict(zip(paths, index.store.get_many(source, paths), strict=True))
    carried = []
    for row, path in zip(good, paths, strict=True):
        found = tables[path]
        if isinstance(found, FrameTable):
            total.verified += 1
            total.differing += _differs(row, found)
        elif path in unreadable and _plausible(row):
            index.insert_frame_ranges(path, list(_ranges(row)), source, row.syntax)
            total.unverified += 1
        else:
            total.refused += 1
            continue
        carried.append(row)
    if carried:
        index.run(lambda connection: _carry(connection, source, carried))


def _carry(connection: Connection, source: str, rows: list[_Row]) -> None:
    keys = keys_of(source, [row.filename for row in rows])
    used = [row.last_used_at for row in rows]
    stats = {"keys": keys, "used": used, "counts": [max(row.access_count, 0) for row in rows]}
    connection.execute(_CARRY_STATS.encode(), stats)
    # An array of arrays must be rectangular: the groups travel as text. No group at all means everyone.
    groups = [_array_text(connection, row.groups) if row.groups else None for row in rows]
    files = {"keys": keys, "inserted": [row.inserted_at for row in rows], "groups": groups}
    for statement in _CARRY_FILES:
        connection.execute(statement.encode(), files)


def _array_text(connection: Connection, groups: list[str]) -> str:
    row = connection.execute(b"SELECT %s::text[]::text", (groups,)).fetchone()
    return str(row[0]) if row else "{}"


def _ranges(row: _Row) -> Iterator[dict[str, Any]]:
    for frame, start, end, pixels in zip(row.frames, row.starts, row.ends, row.pixels, strict=True):
        yield {"frame_number": frame, "start_pos": start, "end_pos": end, "pixel_data_pos": pixels}


def _plausible(row: _Row) -> bool:
    return all(
        frame >= 0 and 0 <= start <= end + 1
        for frame, start, end in zip(row.frames, row.starts, row.ends, strict=True)
    )


def _differs(row: _Row, table: FrameTable) -> bool:
    true = [(found["frame_number"], found["start_pos"], found["end_pos"]) for found in frame_ranges(table)]
    return true != list(zip(row.frames, row.starts, row.ends, strict=True))
