"""The index's rows of files, by key: what a run of the index writes, and what a request for a frame asks.

Every write is an idempotent upsert: a batch that may have been written is sent again. Rows are
keyed by a 16-byte hash of source and path; the path is stored too and compared whenever a row is read.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Self, TypeVar

from voxtier._core import (
    FrameTable,
    Refusal,
    decode_rows,
    decode_states,
    encode_rows,
    file_key,
    file_keys,
    path_fault,
)
from voxtier.arguments import as_several
from voxtier.errors import ConfigError
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store import statements
from voxtier.frames.store.adapters import Key, Keys, fetch, literal_cursor
from voxtier.frames.store.migrations import migrate
from voxtier.frames.store.row import FileState, IndexAnswer, UpsertCounts
from voxtier.frames.store.writing import COPY_HEADER, COPY_TRAILER, write_rows
from voxtier.postgres.connection import Connection
from voxtier.postgres.database import Database

T = TypeVar("T")

# Files in one statement.
BATCH = 5000
_LONGEST_SOURCE = 300
# Files, and bytes of their tables, that come with the first one of a series.
_MOST_NEIGHBOURS, _MOST_NEIGHBOUR_BYTES = 2000, 16 << 20
# Rows handed out at once by `FileRows.stream_rows`.
_PRELOAD_BYTES = 1 << 20


class FileRows:
    """The rows of a database's files, written in batches and read by key; `FrameStore` is what users open.

    Parameters
    ----------
    database : Database or str or None
        See `FrameStore`.
    """

    def __init__(self, database: Database | str | None = None) -> None:
        self.database = database if isinstance(database, Database) else Database(database)
        self.database.on_open = migrate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the last user of the embedded server stops it."""
        self.database.close()

    def probe(self) -> None:
        """Ask whether the index can be read, on a connection of its own; raises when it cannot.

        Raises
        ------
        BackendError
            The database does not answer.
        ConfigError
            The role may not read the index.
        """
        self.database.probe("SELECT 1 FROM voxtier.file, voxtier.file_stats LIMIT 0")

    def query(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement that reads, with bound parameters, and return its rows: see `adapters.fetch`."""
        return self.database.run(lambda connection: fetch(connection, statement, parameters))

    def change(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        """Run one idempotent statement that writes, in a transaction: see `Connection` for its isolation."""

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            with connection.transaction():
                return fetch(connection, statement, parameters)

        return self.database.run(work)

    def upsert_rows(
        self,
        source: str,
        rows: bytes,
        *,
        force: bool = False,
        are_new: bool = False,
        by_reader: bool = False,
    ) -> UpsertCounts:
        """Write one batch of rows, all or none of them.

        Parameters
        ----------
        source : str
            Name of the source, which the rows' keys contain.
        rows : bytes
            Rows of `encode_rows` or `Indexer.read`.
        force : bool
            Also write rows that change nothing.
        are_new : bool
            Whether the index knew none of the files a moment ago: then the rows are inserted, and merged
            only if that fails.
        by_reader : bool
            Whether somebody read the files, which shows them to nobody else: rows of instances of which
            another file is for some groups alone are left out, and count as unchanged.

        Returns
        -------
        UpsertCounts
            Rows inserted, updated and unchanged.
        """
        check_source(source)

        return self.database.run(
            lambda connection: write_rows(
                connection, source, rows, force=force, are_new=are_new, by_reader=by_reader
            )
        )

    def names_paths(self) -> bool:
        """Return whether rules or claims name paths, by which groups may see what lies there."""
        [(answer,)] = self.query(statements.NAMES_PATHS, ())
        return bool(answer)

    def upsert(self, source: str, results: Iterable[TableResult], *, force: bool = False) -> UpsertCounts:
        """Write results of reading files, in batches.

        Parameters
        ----------
        source : str
            Name of the source.
        results : iterable of TableResult
            Consumed batch by batch.
        force : bool
            Also write rows that change nothing.

        Returns
        -------
        UpsertCounts
            Rows inserted, updated and unchanged, and the paths that cannot be stored.
        """
        check_source(source)
        counts = UpsertCounts(0, 0, 0)
        for batch in _batches(results, BATCH):
            rows, refused = encode_rows(source, batch)
            done = self.upsert_rows(source, rows, force=force)
            counts = UpsertCounts(
                counts.inserted + done.inserted,
                counts.updated + done.updated,
                counts.unchanged + done.unchanged,
                (*counts.refused, *((os.fspath(path), fault) for path, fault in refused)),
            )
        return counts

    def file_states(self, source: str, paths: str | Iterable[str]) -> list[FileState | None]:
        """Return what the index says of each path, in the order of `paths`; None for an unknown one."""
        wanted = list(as_several(paths))
        found = decode_states(self.encoded_states(source, wanted), wanted)
        return [None if each is None else FileState._make(each) for each in found]

    def encoded_states(self, source: str, paths: str | Iterable[str]) -> bytes:
        """Return what the index says of the paths that it knows: see `_core.decode_states`."""
        parts, wanted = [], list(as_several(paths))
        for start in range(0, len(wanted), BATCH):
            keys = _file_keys(source, wanted[start : start + BATCH])
            parts += [part for (part,) in self.query(statements.FILE_STATES, (keys,)) if part is not None]
        return b"".join(parts)

    def get(self, source: str, path: str) -> FrameTable | Refusal | None:
        """Return the table of a file, or why it has none; None when the index does not know the file.

        A row of another parser version, or one that does not decode, counts as unknown. The caller asks
        whether what it finds `describes` the file.
        """
        answer = self._answer(statements.GET, source, path)
        return None if answer is None else answer.found

    def get_many(self, source: str, paths: str | Iterable[str]) -> list[FrameTable | Refusal | None]:
        """Return for each path what `get` returns, with one question per `BATCH` paths."""
        found: dict[str, FrameTable | Refusal] = {}
        wanted = list(as_several(paths))
        for start in range(0, len(wanted), BATCH):
            keys = _file_keys(source, wanted[start : start + BATCH])
            rows = b"".join(row for (row,) in self.query(statements.GET_MANY, (keys,)))
            found.update((path, each) for path, each, _ in decode_rows(rows))
        return [found.get(path) for path in wanted]

    def recall(self, source: str, path: str, *, with_series: bool = False) -> IndexAnswer | None:
        """Return what the index holds of a file in the form that memory takes, in one round trip.

        Parameters
        ----------
        source : str
            Name of the source.
        path : str
            The file.
        with_series : bool
            Also return the rows of the other files of its series, those behind it in the order of paths
            first: at most 2,000 of them and 16 MiB of tables.

        Returns
        -------
        IndexAnswer or None
            None where `get` returns it.
        """
        if with_series:
            limits = {"most": _MOST_NEIGHBOURS, "bytes": _MOST_NEIGHBOUR_BYTES}
            return self._answer(statements.RECALL_SERIES, source, path, **limits)
        return self._answer(statements.RECALL, source, path)

    def _answer(self, statement: str, source: str, path: str, **limits: int) -> IndexAnswer | None:
        [key] = _file_keys(source, [path])
        rows = b"".join(row for (row,) in self.query(statement, {"key": Key(key), **limits}))
        first = decode_rows(rows, most=1)
        return IndexAnswer(first[0][1], rows) if first and first[0][0] == path else None

    def slide_maps(self, source: str, paths: str | Iterable[str]) -> dict[str, bytes]:
        """Return what is kept of the headers of slides, by path; `SlideHeader.from_bytes` checks it."""
        found: dict[str, bytes] = {}
        wanted = list(as_several(paths))
        for start in range(0, len(wanted), BATCH):
            keys = _file_keys(source, wanted[start : start + BATCH])
            found.update(self.query(statements.SLIDE_MAPS, (keys,)))
        return found

    def keep_slide_maps(self, source: str, maps: Mapping[str, bytes]) -> set[str]:
        """Keep what `SlideHeader.to_bytes` gives for each path; it goes with the row of its file.

        Parameters
        ----------
        source : str
            Name of the source.
        maps : mapping of str to bytes
            At most `BATCH` of them.

        Returns
        -------
        set of str
            The paths of `maps` that have a row: those of the others are not kept.
        """
        keys = {file_key(source, path): path for path in maps}
        check_source(source)
        kept = self.change(statements.KEEP_SLIDE_MAPS, (Keys(keys), list(maps.values())))
        return {keys[key.bytes] for (key,) in kept}

    def touch(
        self, keys: Sequence[bytes], counts: Sequence[int], last_used: Sequence[datetime]
    ) -> list[bytes]:
        """Add file loads to the access statistics; the latest time wins.

        Parameters
        ----------
        keys : sequence of bytes
            Keys of files: see `file_key`.
        counts : sequence of int
            Loads of each since the last call.
        last_used : sequence of datetime
            Last load of each, with time zone; a time in the future counts as now.

        Returns
        -------
        list of bytes
            The keys that no file of the index has.
        """
        touched = self.change(statements.TOUCH, (Keys(keys), list(counts), list(last_used)))
        found = {key.bytes for (key,) in touched}
        return [key for key in keys if key not in found]

    def delete(self, source: str, paths: str | Iterable[str]) -> int:
        """Delete the rows of files and their statistics; return how many there were."""
        return self._delete_rows(source, [(path, None) for path in as_several(paths)])

    def _delete_rows(self, source: str, rows: Sequence[tuple[str, str | None]]) -> int:
        """Delete rows by path and the transaction that wrote each last, None for any; return their number."""
        deleted = 0
        for start in range(0, len(rows), BATCH):
            batch = [row for row in rows[start : start + BATCH] if path_fault(row[0]) is None]
            paths = [path for path, _ in batch]
            writers = [writer for _, writer in batch]
            deleted += self._delete_batch(source, (_file_keys(source, paths), paths, writers))
        return deleted

    def _delete_batch(self, source: str, rows: tuple[Keys, list[str], list[str | None]]) -> int:
        def work(connection: Connection) -> int:
            with connection.transaction():
                connection.execute(statements.lock_groups(source).encode())
                [(count,)] = fetch(connection, statements.DELETE, rows)
                return int(count)

        return self.database.run(work)

    def stream_rows(self, statement: str, parameters: Mapping[str, Any]) -> Generator[bytes, None, int]:
        """Stream what a statement copies to memory.

        Parameters
        ----------
        statement : str
            ``COPY ... TO STDOUT (FORMAT binary)`` of rows.
        parameters : mapping
            Its values, which become literals, as COPY binds none.

        Yields
        ------
        bytes
            Rows for `FrameCache.preload_rows`, about a MiB of them.

        Returns
        -------
        int
            Rows of the whole stream.
        """
        with self.database.stream() as connection, connection.transaction():
            cursor = literal_cursor(connection)
            # The rows are sorted with their tables: in memory, not through files.
            cursor.execute(b"SET LOCAL work_mem = '256MB'")
            with cursor.copy(statement.encode(), parameters) as copy:
                rows, count = bytearray(), -1  # the trailer is a message too
                for message in copy:  # one row; the header stands before the first
                    count += 1
                    rows += message
                    if len(rows) >= _PRELOAD_BYTES:
                        yield bytes(rows).removeprefix(COPY_HEADER)
                        rows.clear()
                if len(rows) > len(COPY_TRAILER) and count:
                    yield bytes(rows).removeprefix(COPY_HEADER).removesuffix(COPY_TRAILER)
        return count


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _file_keys(source: str, paths: Iterable[str]) -> Keys:
    check_source(source)
    return Keys(file_keys(source, list(paths)))


def check_source(source: str) -> None:
    """Refuse a name that no source can have."""
    if not 0 < len(source.encode(errors="replace")) <= _LONGEST_SOURCE or not source.isprintable():
        raise ConfigError(
            f"a source's name has 1 to {_LONGEST_SOURCE} bytes of printable text: {source[:40]!r} does not"
        )
