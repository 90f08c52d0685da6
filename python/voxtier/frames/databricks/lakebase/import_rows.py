"""Import of a table with a row per frame; files that can be read are read and take precedence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from voxtier._core import FrameTable, file_key, path_fault
from voxtier.arguments import whole_number
from voxtier.errors import ENVIRONMENT_KINDS, ConfigError
from voxtier.frames.databricks.frame_dicts import frame_ranges
from voxtier.frames.databricks.lakebase.backend import keys_of
from voxtier.frames.databricks.lakebase.claims import check_ranges
from voxtier.frames.databricks.lakebase.frames import FrameMethods
from voxtier.frames.databricks.table_names import TableName
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.groups import restrict
from voxtier.postgres.connection import Connection
from voxtier.postgres.database import Database, quote_identifier
from voxtier.postgres.refusals import lacking_right

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
    jsonb_agg(DISTINCT to_jsonb(ALLOWED_GROUPS))
FROM TABLE
WHERE filename IS NOT NULL AND UC_TABLE_NAME IS NOT NULL
    AND (%(after)s::text IS NULL OR (filename, UC_TABLE_NAME) > (%(after)s, %(source)s))
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %(limit)s
"""

# Rows that tell no file, and rows of a file without a source, which the pages leave out.
_ODD_ROWS = """
SELECT count(*) FILTER (WHERE filename IS NULL), min(filename) FILTER (WHERE UC_TABLE_NAME IS NULL)
FROM TABLE
WHERE filename IS NULL OR UC_TABLE_NAME IS NULL
"""

# Repeating an import changes nothing. Each row of a frame has the access count of its file.
_COPY_STATS = """
INSERT INTO voxtier.file_stats AS s (key, last_used_at, access_count)
SELECT key, coalesce(max(at), 'epoch'), max(n)
FROM unnest(%(keys)s::uuid[], %(used)s::timestamptz[], %(counts)s::bigint[]) AS given (key, at, n)
WHERE at IS NOT NULL OR n > 0
GROUP BY key ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    last_used_at = greatest(s.last_used_at, excluded.last_used_at),
    access_count = greatest(s.access_count, excluded.access_count)
"""
_COPY_FILES = tuple(
    f"""
UPDATE voxtier.{table} AS f SET inserted_at = least(f.inserted_at, given.at)
FROM (
    SELECT key, min(at) AS at FROM unnest(%(keys)s::uuid[], %(inserted)s::timestamptz[]) AS each (key, at)
    GROUP BY key
) AS given
WHERE f.key = given.key
"""
    for table in ("file", "claim")
)


class _Row(NamedTuple):
    filename: str
    source: str
    frames: list[int | None]
    starts: list[int | None]
    ends: list[int | None]
    pixels: list[int | None]
    syntax: str | None
    inserted_at: datetime | None
    last_used_at: datetime | None
    access_count: int
    groups: list[list[str | None] | None]  # those that its frames have


@dataclass(slots=True)
class ImportReport:
    """The result of an import, in numbers of files; one whose rows spell its path in two ways counts twice.

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
        Files that were read and refused, and rows with an impossible or missing path, source or range.
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

    A file is for the groups that all its rows name; rows without groups do not count, and where a rule of
    access is in force, that decides.

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
        The numbers so far, once a batch is in the index; each report is one of its own.

    Raises
    ------
    ConfigError
        There is no such table, it lacks a column, its role may not read all its rows, or a row has no source.
        Nothing is imported.
    """
    batch_size, threads = whole_number("batch_size", batch_size, 1), whole_number("threads", threads, 1)
    database = from_database or index.store.database
    query, odd_rows = _queries(database, table, default_source)
    named = {"default": default_source}
    [(nameless, orphan)] = _read(database, table, odd_rows, named)
    if orphan is not None:
        raise ConfigError(
            f"{table}: the row of {orphan[:200]!r} has no uc_table_name: name the source of such rows"
        )
    total = ImportReport(files=nameless, refused=nameless)
    restricted: dict[bytes, frozenset[str]] = {}
    indexers: dict[str, FileIndexer] = {}
    after: _Row | None = None
    while page := _page(database, table, query, after, default_source, batch_size):
        by_source: dict[str, list[_Row]] = {}
        for row in page:
            try:
                name = str(TableName.parse(row.source))
            except ConfigError:
                total.files, total.refused = total.files + 1, total.refused + 1
            else:
                by_source.setdefault(index.source(name, is_written=True), []).append(row)
        for source, rows in sorted(by_source.items()):
            if source not in indexers:
                indexers[source] = FileIndexer(index.store, source=source, threads=threads)
            _import_rows(index, indexers[source], rows, total, restricted)
        after = page[-1]
        yield replace(total)
    if not total.files:
        yield replace(total)


def _queries(database: Database, table: str, default_source: str | None) -> list[str]:
    name = TableName.parse(table)
    if name.catalog is not None:
        raise ConfigError(f"{table}: write schema.table, as the connection names the database")
    quoted = quote_identifier(*(part for part in (name.schema, name.table) if part))
    rows = _read(database, table, _COLUMNS, (quoted,))
    columns = {column for (column,) in rows}
    if missing := [column for column in _REQUIRED if column not in columns]:
        what = f"it has no column {', '.join(missing)}" if columns else "there is no such table"
        raise ConfigError(f"{table} in {database.describe()} cannot be imported: {what}")
    queries = [each.replace("TABLE\n", f"{quoted}\n") for each in (_PAGE, _ODD_ROWS)]
    for column, type_ in _OPTIONAL.items():
        expression = f"{column}::{type_}" if column in columns else f"NULL::{type_}"
        if column == "uc_table_name":
            expression = f"coalesce({expression}, %(default)s::text)"
        if type_ == "timestamptz":  # Python knows no others
            expression = f"CASE WHEN {expression} BETWEEN '0001-01-02' AND '9999-12-30' THEN {expression} END"
        queries = [query.replace(column.upper(), expression) for query in queries]
    if "uc_table_name" not in columns and default_source is None:
        raise ConfigError(f"{table} has no column uc_table_name: name the source to import its rows into")
    return queries


def _page(
    database: Database, table: str, query: str, after: _Row | None, default_source: str | None, limit: int
) -> list[_Row]:
    parameters = {
        "after": after and after.filename,
        "source": after and after.source,
        "limit": limit,
        "default": default_source,
    }
    return [_Row(*row) for row in _read(database, table, query, parameters)]


def _read(database: Database, table: str, query: str, parameters: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query, or raise ConfigError where row security hides some, as pg_dump does."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        try:
            with connection.transaction():
                connection.execute(b"SET LOCAL row_security = off")
                return connection.execute(query.encode(), parameters).fetchall()
        except Exception as error:
            if (refused := lacking_right(error)) is None:
                raise
            raise ConfigError(
                f"{table} in {database.describe()} cannot be imported: {refused}; import "
                "it as a role that may read all its rows: its owner, or one with SELECT on it; under row "
                "security one with BYPASSRLS (its owner too, where that is forced)"
            ) from error

    return database.run(work)


def _import_rows(
    index: FrameMethods,
    indexer: FileIndexer,
    rows: list[_Row],
    total: ImportReport,
    restricted: dict[bytes, frozenset[str]],
) -> None:
    source = indexer.source
    total.files += len(rows)
    named = [(absolute(row.filename), row) for row in rows]
    # Several may name one file, such as with ``dbfs:`` and without: each counts, on whatever pages they come.
    good = [(path, row) for path, row in named if path_fault(path) is None]
    total.refused += len(rows) - len(good)
    paths = list(dict.fromkeys(path for path, _ in good))
    # Before anything of them is in the index, so that no file is open to others for a moment.
    restrict(index.store, source, _groups_of(source, named, restricted))
    unreadable = {
        report.path for report in indexer.index_batch(paths) if report.error_kind in ENVIRONMENT_KINDS
    }
    tables = dict(zip(paths, index.store.get_many(source, paths), strict=True))
    imported = []
    for path, row in good:
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
        imported.append((path, row))
    if imported:
        index.run(lambda connection: _copy_statistics(connection, source, imported))


def _groups_of(
    source: str, named: list[tuple[str, _Row]], restricted: dict[bytes, frozenset[str]]
) -> dict[str, list[str]]:
    """Return the groups of files that any row restricts: those that all such rows of the file name.

    `restricted` are those of the pages before: another spelling of a file comes with any page.
    """
    groups: dict[str, list[str]] = {}
    for path, row in named:
        for names in filter(None, row.groups):
            key = file_key(source, path)
            allowed = frozenset(name for name in names if name)
            restricted[key] = restricted.get(key, allowed) & allowed
            groups[path] = sorted(restricted[key])
    return groups


def _copy_statistics(connection: Connection, source: str, imported: list[tuple[str, _Row]]) -> None:
    keys, rows = keys_of(source, (path for path, _ in imported)), [row for _, row in imported]
    used = [row.last_used_at for row in rows]
    stats = {"keys": keys, "used": used, "counts": [max(row.access_count, 0) for row in rows]}
    connection.execute(_COPY_STATS.encode(), stats)
    files = {"keys": keys, "inserted": [row.inserted_at for row in rows]}
    for statement in _COPY_FILES:
        connection.execute(statement.encode(), files)


def _ranges(row: _Row) -> Iterator[dict[str, Any]]:
    for frame, start, end, pixels in zip(row.frames, row.starts, row.ends, row.pixels, strict=True):
        yield {"frame_number": frame, "start_pos": start, "end_pos": end, "pixel_data_pos": pixels}


def _is_plausible(row: _Row) -> bool:
    try:
        check_ranges(list(_ranges(row)))
    except ConfigError:
        return False
    return True


def _differs(row: _Row, table: FrameTable) -> bool:
    ranges = [(each["frame_number"], each["start_pos"], each["end_pos"]) for each in frame_ranges(table)]
    return ranges != list(zip(row.frames, row.starts, row.ends, strict=True))
