"""The index as Arrow tables and Parquet files: one row a file, or one a fragment of a frame, for other tools.

Rows of files hold the packed record of the table too, with checksum and version, so that such a file can be
brought into another index. pyarrow is imported on first use.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from voxtier.errors import ConfigError, LeftOutWarning, MissingExtraError
from voxtier.frames.dicom.table import TableResult, read_tables
from voxtier.frames.exchange.imported_rows import imported_results
from voxtier.frames.store.groups import restrict
from voxtier.frames.store.row import UpsertCounts
from voxtier.frames.store.store import FrameStore
from voxtier.system.durable import write_output

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = Literal["file", "frame"]

# Files of one group of rows; a slide has as many rows of frames as it has tiles.
_FILES_AT_ONCE = 5000

# Columns of a row of a file that a table has as a property of the same name, with their types in Arrow.
_OF_TABLE = {
    "status": "string",
    "kind": "string",
    "method": "string",
    "verified": "string",
    "offsets_in": "string",
    "transfer_syntax_uid": "string",
    "number_of_frames": "uint32",
    "truncated_from": "uint32",
    "rows": "uint32",
    "columns": "uint32",
    "samples_per_pixel": "uint16",
    "bits_allocated": "uint16",
    "photometric_interpretation": "string",
    "pixel_data_pos": "uint64",
    "sop_instance_uid": "string",
    "series_instance_uid": "string",
    "study_instance_uid": "string",
}
_OF_FILE = {"size": "uint64", "mtime_ns": "int64", "ctime_ns": "int64", "inode": "uint64", "etag": "string"}
_OF_ERROR = {"error_kind": "string", "error_offset": "uint64", "error_detail": "string"}
_FILE_COLUMNS = {
    "path": "string",
    "frame_count": "uint32",
    **_OF_TABLE,
    **_OF_FILE,
    **_OF_ERROR,
    "record": "binary",
}
_GROUPS = "allowed_groups"
_FRAME_COLUMNS = {
    "path": "string",
    "sop_instance_uid": "string",
    "frame": "uint32",
    "fragment": "uint32",
    "offset": "uint64",
    "length": "uint64",
    "bit_offset": "uint8",
}


def to_arrow(results: Iterable[TableResult], *, rows: Rows = "file") -> pa.Table:
    """Return what was read of files as an Arrow table, for polars, pandas, DuckDB and the like.

    Parameters
    ----------
    results : iterable of TableResult
        As `read_tables` yields them.
    rows : {"file", "frame"}
        One row a file; or one a fragment, so that each is a range of bytes of its file, and a frame has as
        many as it has fragments (PS3.5 A.4). Refused files, and frames that are not wholly in their files,
        have none of the latter. A Basic Offset Table does not tell fragments: files with one that was not
        read with ``verify="all"`` are read again for such rows, each fragment's header.

    Returns
    -------
    pyarrow.Table
        Frames and fragments count from 0. A file that was refused has ``error_kind`` and the two beside it.
        ``bit_offset`` is the bit of its first byte at which a frame begins, from the least significant: of
        pixels that are no whole bytes (Bits Allocated 1) two frames may share a byte (PS3.5 8.1.1).

    Raises
    ------
    ConfigError
        `rows` is neither; a result is of an open file or of bytes, which have no path.
    MissingExtraError
        pyarrow is not installed.

    Warns
    -----
    LeftOutWarning
        For each file without rows whose path is no UTF-8, or that had to be read again and could not.
    """
    pa, schema = _arrow(), _schema(rows)
    return pa.Table.from_batches(_batches(results, rows), schema)


def export_index(store: FrameStore, source: str, path: str | os.PathLike[str], *, rows: Rows = "file") -> int:
    """Write a source of the index to a Parquet file, which appears complete or not at all.

    Rows of files have one more column than those of `to_arrow`: ``allowed_groups``, the groups that may see
    the file, null where everyone may. Rules of access are not written.

    Parameters
    ----------
    store : FrameStore
        The index.
    source : str
        Name of the source.
    path : path
        The file; an existing one is replaced.
    rows : {"file", "frame"}
        See `to_arrow`.

    Returns
    -------
    int
        Rows that were written.

    Raises
    ------
    ConfigError
        `rows` is neither.
    MissingExtraError
        pyarrow is not installed.

    Warns
    -----
    LeftOutWarning
        See `to_arrow`: rows of frames need the files that were indexed without ``verify="all"``.
    """
    _arrow()
    import pyarrow.parquet as pq

    pa, schema, count = _arrow(), _schema(rows), 0
    if rows == "file":
        schema = schema.append(pa.field(_GROUPS, pa.list_(pa.string())))
    groups: dict[str, list[str]] = {}

    def results() -> Iterator[TableResult]:
        for result, names in store.results_and_groups(source):
            if names is not None:
                groups[os.fsdecode(result.path)] = names
            yield result

    def write(file: Any) -> None:
        nonlocal count
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in _batches(results(), rows):
                if rows == "file":
                    names = [groups.get(path) for path in batch.column("path").to_pylist()]
                    columns = [*batch.columns, pa.array(names, schema.field(_GROUPS).type)]
                    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
                groups.clear()
                writer.write_batch(batch)
                count += batch.num_rows

    write_output(Path(path), write)
    return count


def import_index(store: FrameStore, source: str, path: str | os.PathLike[str]) -> UpsertCounts:
    """Bring a Parquet file of `export_index`, one row a file, into a source of the index.

    The groups that may see a file are set before its row is written; where a rule of the source is in force
    for it, the rule decides. An export of an earlier version tells no groups.

    Parameters
    ----------
    store : FrameStore
        The index.
    source : str
        Name of the source; that of the export or another.
    path : path
        The file; pandas, polars, DuckDB and the like may have written it again.

    Returns
    -------
    UpsertCounts
        Rows inserted, updated and unchanged, and the paths that cannot be stored. Rows of files that have
        changed since are misses when they are read, as all rows are.

    Raises
    ------
    FormatError
        ``bad_table``: a record is damaged, or of another version of the parser; what stands before it has
        been written.
    ConfigError
        The file is no such file, or is damaged, or a value is none of its column; what stands before it has
        been written.
    MissingExtraError
        pyarrow is not installed.
    OSError
        The file cannot be read.
    """
    _arrow()
    import pyarrow.parquet as pq

    with _parquet_faults(f"{path} is no Parquet file"):
        file = pq.ParquetFile(path)
    with file:
        names = file.schema_arrow.names
        if missing := set(_FILE_COLUMNS) - set(names):
            raise ConfigError(f"{path} lacks the columns {', '.join(sorted(missing))}: export rows of files")
        if twice := {name for name in (*_FILE_COLUMNS, _GROUPS) if names.count(name) > 1}:
            raise ConfigError(f"{path} has more than one column {', '.join(sorted(twice))}: export it again")
        columns = [name for name in names if name in (*_FILE_COLUMNS, _GROUPS)]
        rows = _rows_of(file.iter_batches(_FILES_AT_ONCE, columns=columns), path)
        results = imported_results(path, rows, lambda groups: restrict(store, source, groups))
        return store.upsert(source, results)


def _rows_of(
    batches: Iterator[pa.RecordBatch], path: str | os.PathLike[str]
) -> Iterator[list[dict[str, Any]]]:
    while True:
        with _parquet_faults(f"{path} is damaged"):
            batch = next(batches, None)
            rows = None if batch is None else batch.to_pylist()
        if rows is None:
            return
        yield rows


@contextlib.contextmanager
def _parquet_faults(what: str) -> Iterator[None]:
    """Tell what is wrong with a file; what the system refuses, by its number, is nothing of the file."""
    try:
        yield
    except (_arrow().ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ConfigError(f"{what}: {error}. Export the index again") from error


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "arrow") from None
    return pyarrow


def _schema(rows: Rows) -> pa.Schema:
    pa = _arrow()
    if rows not in ("file", "frame"):
        raise ConfigError(f"rows={rows!r}: give 'file' or 'frame'")
    columns = _FILE_COLUMNS if rows == "file" else _FRAME_COLUMNS
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])


def _batches(results: Iterable[TableResult], rows: Rows) -> Iterator[pa.RecordBatch]:
    schema = _schema(rows)
    make = _file_columns if rows == "file" else _frame_columns
    iterator = iter(results)
    while batch := list(islice(iterator, _FILES_AT_ONCE)):
        named = [result for result in map(_with_name, batch) if result is not None]
        yield _arrow().RecordBatch.from_arrays(make(named, schema), schema=schema)


def _with_name(result: TableResult) -> TableResult | None:
    """Return a result with its path as a string of Arrow; None, with a warning, where it cannot be one."""
    try:
        path = os.fsdecode(result.path)
    except TypeError:
        raise ConfigError(
            f"{result.path!r} has no path, which a row needs: give paths to read_tables"
        ) from None
    try:
        path.encode()
    except UnicodeEncodeError:
        _warn(ascii(path), "its path is no UTF-8, which a row needs: rename it")
        return None
    return result._replace(path=path)


def _warn(path: str, why: str) -> None:
    warnings.warn(LeftOutWarning(path, why), stacklevel=2)


def _file_columns(results: list[TableResult], schema: pa.Schema) -> list[Any]:
    tables = [result.table for result in results]
    states = [
        (table.size, table.mtime_ns, table.ctime_ns, table.inode, table.etag)
        if table is not None
        else result.fingerprint or (None,) * len(_OF_FILE)
        for table, result in zip(tables, results, strict=True)
    ]
    values: dict[str, list[Any]] = {
        "path": [os.fspath(result.path) for result in results],
        "frame_count": [0 if table is None else len(table) for table in tables],
        "record": [None if table is None else table.to_bytes() for table in tables],
        "error_kind": [result.error.kind if result.error else None for result in results],
        "error_offset": [result.error.offset if result.error else None for result in results],
        "error_detail": [result.error.detail if result.error else None for result in results],
    }
    values |= dict(zip(_OF_FILE, map(list, zip(*states, strict=True)), strict=True))
    values |= {
        name: [None if table is None else getattr(table, name) for table in tables] for name in _OF_TABLE
    }
    return [_arrow().array(values[name], kind) for name, kind in zip(schema.names, schema.types, strict=True)]


def _frame_columns(results: list[TableResult], schema: pa.Schema) -> list[Any]:
    found: list[tuple[str, str, int, int, int, int, int]] = []
    for result in _walked(results):
        path, table = os.fspath(result.path), result.table
        if table is None or table.offsets_in != "file":
            continue
        is_of_bits = (table.frame_bits or 0) % 8 != 0
        whole = len(table) if table.truncated_from is None else table.truncated_from
        for frame in range(whole):
            bit = table.bit_offset(frame) if is_of_bits else 0
            for fragment, (start, end) in enumerate(table.ranges(frame)):
                found.append((path, table.sop_instance_uid, frame, fragment, start, end - start, bit))
    columns = zip(*found, strict=True) if found else ((),) * len(schema)
    return [_arrow().array(list(values), kind) for values, kind in zip(columns, schema.types, strict=True)]


def _walked(results: list[TableResult]) -> list[TableResult]:
    """Return the results with tables whose ranges are fragments: others are read anew, with a walk."""
    paths = {result.path: None for result in results if result.table is not None and result.table.holds_spans}
    anew = {result.path: result for result in read_tables(paths, verify="all")} if paths else {}
    for result in anew.values():
        if result.error is not None:
            why = f"its table does not tell fragments, and it cannot be read again: {result.error}"
            _warn(os.fspath(result.path), why)
    return [anew.get(result.path, result) for result in results]
