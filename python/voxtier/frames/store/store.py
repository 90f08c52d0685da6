"""The frame index in PostgreSQL: one row per file, written in sorted batches, read by key.

Every write is an idempotent upsert, so that a batch that may or may not have arrived is sent again. Rows are
keyed by a 16-byte hash of source and path; the path is kept beside it and compared whenever a row is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import psycopg

from voxtier import _core
from voxtier._core import FrameTable, path_fault
from voxtier.errors import ConfigError
from voxtier.frames.store import statements
from voxtier.frames.store.migrations import migrate
from voxtier.frames.store.row import (
    STAGING_COLUMNS,
    Known,
    Outcome,
    Refusal,
    StoredError,
    StoredTable,
    Upserted,
    staging_row,
    stored,
)
from voxtier.frames.store.uuids import Key, Keys
from voxtier.postgres.database import Connection, Database

T = TypeVar("T")

BATCH = 5000  # files in one statement
_LONGEST_SOURCE = 300
# Files, and bytes of their tables, that come with the first one of a series.
_MOST_NEIGHBOURS, _MOST_NEIGHBOUR_BYTES = 2000, 16 << 20
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of an extension
_COPY_TRAILER = b"\xff\xff"


class Tally(NamedTuple):
    """Files, their addressable frames, their bytes, and the bytes of their packed tables."""

    files: int
    frames: int
    file_bytes: int
    table_bytes: int


class Summary(NamedTuple):
    """What a source of the index holds, in all and by each closed list, most files first."""

    total: Tally
    by_status: Mapping[str, Tally]
    by_kind: Mapping[str, Tally]
    by_transfer_syntax_uid: Mapping[str, Tally]
    by_method: Mapping[str, Tally]


class FrameStore:
    """The frame index of a database; one object serves all threads of a process, and survives a fork.

    Parameters
    ----------
    database : Database or str or None
        A database, or its connection string; None: ``VOXTIER_DSN``, else the embedded server.

    Notes
    -----
    A *source* is a name under which files are indexed (a table, a bucket, an archive); the same path in two
    sources is two rows. Methods raise `BackendError` when the database cannot be reached or fails, after
    trying again where that may help.
    """

    def __init__(self, database: Database | str | None = None) -> None:
        self.database = database if isinstance(database, Database) else Database(database)
        self.database.on_open = migrate

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the last user of the embedded server stops it."""
        self.database.close()

    def upsert_rows(self, source: str, rows: bytes, *, force: bool = False) -> Upserted:
        """Write one batch of rows, all or none of them.

        Parameters
        ----------
        source : str
            Name of the source, which the rows' keys contain.
        rows : bytes
            Rows of PostgreSQL's binary COPY format with the columns `STAGING_COLUMNS`, without its header
            and trailer.
        force : bool
            Also write rows that say of a file what the index says already.
        """

        def feed(copy: psycopg.Copy) -> None:
            for part in (_COPY_HEADER, rows, _COPY_TRAILER):
                copy.write(part)

        return self._upsert(source, feed, force=force)

    def upsert(self, source: str, outcomes: Iterable[Outcome], *, force: bool = False) -> Upserted:
        """Write what came of reading files, in batches; a path that cannot be stored is named, not raised.

        Parameters
        ----------
        source : str
            Name of the source.
        outcomes : iterable of TableResult
            Consumed batch by batch.
        force : bool
            Also write rows that say of a file what the index says already.
        """
        _check_source(source)
        inserted = updated = unchanged = 0
        refused: list[tuple[str, str]] = []
        for batch in _batches(outcomes, BATCH):
            paths = [os.fspath(outcome.path) for outcome in batch]
            faults = [path_fault(path) for path in paths]
            refused += [(path, fault) for path, fault in zip(paths, faults, strict=True) if fault]
            rows = [
                staging_row(source, path, outcome)
                for path, fault, outcome in zip(paths, faults, batch, strict=True)
                if fault is None
            ]

            def feed(copy: psycopg.Copy, rows: list[tuple[Any, ...]] = rows) -> None:
                types = STAGING_COLUMNS.values()
                copy.set_types(["text" if "." in type_ else type_ for type_ in types])
                for row in rows:
                    copy.write_row(row)

            done = self._upsert(source, feed, force=force)
            inserted, updated = inserted + done.inserted, updated + done.updated
            unchanged += done.unchanged
        return Upserted(inserted, updated, unchanged, tuple(refused))

    def known(self, source: str, paths: Sequence[str]) -> list[Known | None]:
        """Return what the index holds of each path, in the order of `paths`; None for what it does not."""
        found: list[Known | None] = [None] * len(paths)
        for start in range(0, len(paths), BATCH):
            wanted = paths[start : start + BATCH]
            for number, path, *known in self._rows(statements.KNOWN, (_file_keys(source, wanted),)):
                if path == wanted[number - 1]:
                    found[start + number - 1] = Known(*known)
        return found

    def get(self, source: str, path: str) -> FrameTable | Refusal | None:
        """Return the table of a file, or why it has none; None when the index does not know the file.

        The caller compares the fingerprint (`size`, `mtime_ns`) with the file's.
        """
        [key] = _file_keys(source, [path])
        rows = self._rows(statements.GET, (Key(key),))
        return stored(rows[0][1:]) if rows and rows[0][0] == path else None

    def recall(
        self, source: str, path: str, *, with_series: bool = False
    ) -> list[tuple[str, FrameTable | Refusal, int]]:
        """Return what memory keeps of a file: its path, what `get` returns, its last access.

        The access is in µs since 1970, 0 if there was none.

        Parameters
        ----------
        source, path : str
            The file; an empty list when the index does not know it.
        with_series : bool
            Also return the other files of its series, those behind it first, in the same round trip: at most
            2,000 of them and 16 MiB of tables.
        """
        [key] = _file_keys(source, [path])
        if with_series:
            limits = {"key": Key(key), "most": _MOST_NEIGHBOURS, "bytes": _MOST_NEIGHBOUR_BYTES}
            rows = self._rows(statements.RECALL_SERIES, limits)
        else:
            rows = self._rows(statements.RECALL, (Key(key),))
        if not rows or rows[0][0] != path:
            return []
        found = [(name, stored(row), used) for name, used, *row in rows]
        if found[0][1] is None:
            return []
        return [(name, table, used) for name, table, used in found if table is not None]

    def get_many(self, source: str, paths: Sequence[str]) -> list[FrameTable | Refusal | None]:
        """Return for each path what `get` would, in one question per `BATCH` paths."""
        found: list[FrameTable | Refusal | None] = [None] * len(paths)
        for start in range(0, len(paths), BATCH):
            wanted = paths[start : start + BATCH]
            for number, path, *row in self._rows(statements.GET_MANY, (_file_keys(source, wanted),)):
                if path == wanted[number - 1]:
                    found[start + number - 1] = stored(row)
        return found

    def by_sop_instance(self, uid: str, source: str | None = None) -> list[StoredTable]:
        """Return the tables of all files that hold a SOP Instance, in the order of their paths."""
        return self._by_uid(statements.BY_SOP_INSTANCE, uid, source)

    def by_series(self, uid: str, source: str | None = None) -> list[StoredTable]:
        """Return the tables of all files of a series, in the order of their paths."""
        return self._by_uid(statements.BY_SERIES, uid, source)

    def sources(self) -> list[str]:
        """Return the names of all sources."""
        return [name for (name,) in self._rows(statements.SOURCES, ())]

    def summary(self, source: str) -> Summary:
        """Return how many files, frames and bytes a source holds, in all and by its closed lists."""
        _check_source(source)
        by: dict[str, dict[str, Tally]] = {name: {} for name in ("", *Summary._fields[1:])}
        for field, value, *tally in self._rows(statements.SUMMARY, (source,)):
            by[f"by_{field}" if field else ""][value] = Tally(*tally)
        return Summary(by.pop("").get("", Tally(0, 0, 0, 0)), **by)

    def errors(self, source: str) -> Iterator[StoredError]:
        """Iterate over the files without a table, in the order of their paths."""
        _check_source(source)
        after = ""
        while page := self._rows(statements.ERRORS, {"source": source, "after": after, "limit": BATCH}):
            for path, kind, offset, detail in page:
                yield StoredError(path, kind, offset, detail or "")
            after = page[-1][0]

    def touch(
        self, keys: Sequence[bytes], counts: Sequence[int], last_used: Sequence[datetime]
    ) -> list[bytes]:
        """Add file loads to the access statistics; later times win. Return the keys that no file has.

        Parameters
        ----------
        keys : sequence of bytes
            As `file_key` makes them.
        counts : sequence of int
            Loads since the last call.
        last_used : sequence of datetime
            With time zones; the future counts as now.
        """
        touched = self._rows(statements.TOUCH, (Keys(keys), list(counts), list(last_used)))
        known = {key.bytes for (key,) in touched}
        return [key for key in keys if key not in known]

    def get_preload_priority_list(self, uc_table_name: str, limit: int = 10_000) -> list[dict[str, Any]]:
        """Return the predecessor's rows of the best `limit` files of a source, best first."""
        from voxtier.frames.memory.ranking import preload_priority_list

        return preload_priority_list(self, uc_table_name, limit)

    def delete(self, source: str, paths: Sequence[str]) -> int:
        """Forget files and their statistics; return how many were known."""
        deleted = 0
        for start in range(0, len(paths), BATCH):
            wanted = [path for path in paths[start : start + BATCH] if _core.path_fault(path) is None]
            [(count,)] = self._rows(statements.DELETE, (_file_keys(source, wanted), wanted))
            deleted += count
        return deleted

    def vanished(
        self, source: str, *, under: Sequence[str] = (), is_gone: Callable[[str], bool] | None = None
    ) -> Iterator[str]:
        """Iterate over the indexed paths whose files are certainly gone.

        Parameters
        ----------
        source : str
            Name of the source.
        under : sequence of str
            Only files that are, or lie below, one of these; empty for all.
        is_gone : callable or None
            Tells whether a path is gone; it says False when it cannot tell. None: asks the file system.
        """
        is_gone = is_gone or _is_gone
        return (path for path in self._paths(source, under) if is_gone(path))

    def prune(
        self,
        source: str,
        *,
        under: Sequence[str] = (),
        is_gone: Callable[[str], bool] | None = None,
        force: bool = False,
    ) -> int:
        """Forget the files that `vanished` finds; return how many.

        Raises
        ------
        ConfigError
            All of them are gone, as they are when a disk is not mounted, and `force` is not given.
        """
        is_gone = is_gone or _is_gone
        gone, kept = [], 0
        for path in self._paths(source, under):
            if is_gone(path):
                gone.append(path)
            else:
                kept += 1
        if gone and not kept and not force:
            raise ConfigError(
                f"all {len(gone)} indexed files are gone: is their disk mounted? Nothing was pruned; to "
                "prune them all the same, use force"
            )
        return self.delete(source, gone)

    def _paths(self, source: str, under: Sequence[str]) -> Iterator[str]:
        question = {
            "source": source, "under": list(under) or None, "limit": 2 * BATCH, "after": Key(bytes(16))
        }  # fmt: skip
        while page := self._rows(statements.PATHS, question):
            yield from (path for _, path in page)
            question["after"] = Key(page[-1][0].bytes)

    def _upsert(self, source: str, feed: Callable[[psycopg.Copy], None], *, force: bool) -> Upserted:
        _check_source(source)

        def work(connection: Connection) -> Upserted:
            connection.execute(statements.ADD_SOURCE.encode(), {"name": source})
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(statements.STAGE.encode())
                with cursor.copy(statements.COPY.encode()) as copy:
                    feed(copy)
                staged = cursor.rowcount
                cursor.execute(statements.MERGE.encode(), {"source": source, "force": force})
                inserted, updated = cursor.fetchone() or (0, 0)
            return Upserted(inserted, updated, staged - inserted - updated)

        return self.database.run(work)

    def _by_uid(self, query: str, uid: str, source: str | None) -> list[StoredTable]:
        rows = self._rows(query, {"uid": uid, "source": source})
        found = [(name, path, stored(row)) for name, path, *row in rows]
        return [
            StoredTable(name, path, table) for name, path, table in found if isinstance(table, FrameTable)
        ]

    def _rows(self, query: str, parameters: Any) -> list[Any]:
        def work(connection: Connection) -> list[Any]:
            with connection.cursor(binary=True) as cursor:
                return cursor.execute(query.encode(), parameters, prepare=True).fetchall()

        return self.database.run(work)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _file_keys(source: str, paths: Iterable[str]) -> Keys:
    _check_source(source)
    return Keys(_core.file_key(source, path) for path in paths)


def _check_source(source: str) -> None:
    if not 0 < len(source.encode(errors="replace")) <= _LONGEST_SOURCE or not source.isprintable():
        raise ConfigError(
            f"a source's name has 1 to {_LONGEST_SOURCE} bytes of printable text: {source[:40]!r} does not"
        )


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # no permission, for instance: it may well be there
        return False
    return False
