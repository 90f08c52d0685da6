"""A batch of rows on its way into the index: staged by COPY, then inserted or merged, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from voxtier.frames.store import statements
from voxtier.frames.store.row import UpsertCounts
from voxtier.postgres.connection import Connection

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of an extension
COPY_TRAILER = b"\xff\xff"


def write_rows(
    connection: Connection, source: str, rows: bytes, *, force: bool, are_new: bool, by_reader: bool
) -> UpsertCounts:
    """Write rows, all or none of them.

    Parameters
    ----------
    connection : Connection
        Outside a transaction.
    source : str
        Name of the source.
    rows : bytes
        As COPY takes them, without header and trailer.
    force : bool
        Also write rows that change nothing.
    are_new : bool
        Insert the rows, and merge them only if one is there already.
    by_reader : bool
        Leave out what a reader must not add: see `FileRows.upsert_rows`.

    Returns
    -------
    UpsertCounts
        Rows inserted, updated and unchanged.
    """
    values = {"source": source, "force": force}
    connection.execute(statements.ADD_SOURCE.encode(), {"name": source})
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(f"{statements.lock_groups(source)};{statements.STAGE}".encode())
        with cursor.copy(statements.COPY.encode()) as copy:
            for part in (COPY_HEADER, rows, COPY_TRAILER):
                copy.write(part)
        staged = cursor.rowcount
        if by_reader:
            cursor.execute(statements.LEAVE_OUT_COPIES.encode(), values)
        if not are_new or not _inserts(cursor, values):
            cursor.execute(statements.MERGE.encode(), values)
        inserted, updated = cursor.fetchone() or (0, 0)
    return UpsertCounts(inserted, updated, staged - inserted - updated)


def _inserts(cursor: psycopg.Cursor[Any], values: Mapping[str, Any]) -> bool:
    """Insert what is staged; return False, with nothing inserted, where one of the files is there already."""
    try:
        with cursor.connection.transaction():
            cursor.execute(statements.INSERT.encode(), values)
    except psycopg.errors.UniqueViolation:
        return False
    return True
