"""The frame index in PostgreSQL: one row per file, written in sorted batches, read by key.

Every write is an idempotent upsert: a batch that may have been written is sent again. Rows are
keyed by a 16-byte hash of source and path; the path is stored too and compared whenever a row is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

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
from voxtier.errors import ConfigError
from voxtier.frames.dicom.table import Fingerprint, TableResult
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.store import statements
from voxtier.frames.store.adapters import Key, Keys, fetch, literal_cursor
from voxtier.frames.store.migrations import migrate
from voxtier.frames.store.row import (
    FileState,
    FoundTable,
    IndexAnswer,
    RefusedFile,
    Summary,
    Tally,
    TruncatedFile,
    UpsertCounts,
)
from voxtier.frames.store.writing import COPY_HEADER, COPY_TRAILER, write_rows
from voxtier.postgres.database import Database
from voxtier.system.html import rows_html
from voxtier.system.text import format_bytes

T = TypeVar("T")

# Files in one statement.
BATCH = 5000
_LONGEST_SOURCE = 300
# Files, and bytes of their tables, that come with the first one of a series.
_MOST_NEIGHBOURS, _MOST_NEIGHBOUR_BYTES = 2000, 16 << 20
# Rows handed out at once by `FrameStore.stream_rows`.
_PRELOAD_BYTES = 1 << 20


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

    def _repr_html_(self) -> str:
        """Return what notebooks show: the sources and what they hold."""
        names = ("source", "files", "frames", "bytes", "of tables")
        rows = []
        for source in self.sources():
            total = self.summary(source).total
            sizes = format_bytes(total.file_bytes), format_bytes(total.table_bytes)
            rows.append((source, f"{total.files:,}", f"{total.frames:,}", *sizes))
        return rows_html(f"frame index, {self.database.describe()}", names, rows)

    def close(self) -> None:
        """Close the connections; the last user of the embedded server stops it."""
        self.database.close()

    def upsert_rows(
        self, source: str, rows: bytes, *, force: bool = False, are_new: bool = False
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

        Returns
        -------
        UpsertCounts
            Rows inserted, updated and unchanged.
        """
        _check_source(source)

        return self.database.run(
            lambda connection: write_rows(connection, source, rows, force=force, are_new=are_new)
        )

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
        _check_source(source)
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

    def file_states(self, source: str, paths: Sequence[str]) -> list[FileState | None]:
        """Return what the index says of each path, in the order of `paths`; None for an unknown one."""
        found = decode_states(self.encoded_states(source, paths), list(paths))
        return [None if each is None else FileState._make(each) for each in found]

    def encoded_states(self, source: str, paths: Sequence[str]) -> bytes:
        """Return what the index says of the paths that it knows: see `_core.decode_states`."""
        parts = []
        for start in range(0, len(paths), BATCH):
            keys = _file_keys(source, paths[start : start + BATCH])
            parts += [part for (part,) in self.query(statements.FILE_STATES, (keys,)) if part is not None]
        return b"".join(parts)

    def get(self, source: str, path: str) -> FrameTable | Refusal | None:
        """Return the table of a file, or why it has none; None when the index does not know the file.

        A row of another parser version, or one that does not decode, counts as unknown. The caller asks
        whether what it finds `describes` the file.
        """
        answer = self._answer(statements.GET, source, path)
        return None if answer is None else answer.found

    def get_many(self, source: str, paths: Sequence[str]) -> list[FrameTable | Refusal | None]:
        """Return for each path what `get` returns, with one question per `BATCH` paths."""
        found: dict[str, FrameTable | Refusal] = {}
        for start in range(0, len(paths), BATCH):
            keys = _file_keys(source, paths[start : start + BATCH])
            rows = b"".join(row for (row,) in self.query(statements.GET_MANY, (keys,)))
            found.update((path, each) for path, each, _ in decode_rows(rows))
        return [found.get(path) for path in paths]

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

    def slide_maps(self, source: str, paths: Sequence[str]) -> dict[str, bytes]:
        """Return what is kept of the headers of slides, by path; `SlideHeader.from_bytes` checks it."""
        found: dict[str, bytes] = {}
        for start in range(0, len(paths), BATCH):
            keys = _file_keys(source, paths[start : start + BATCH])
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
        _check_source(source)
        kept = self.query(statements.KEEP_SLIDE_MAPS, (Keys(keys), list(maps.values())))
        return {keys[key.bytes] for (key,) in kept}

    def results(self, source: str) -> Iterator[TableResult]:
        """Iterate over all files of a source, in the order of their keys, as `read_tables` gives them.

        Rows of another version of the parser, and damaged ones, are left out.
        """
        _check_source(source)
        question: dict[str, Any] = {"source": source, "limit": BATCH, "after": Key(bytes(16))}
        while page := self.query(statements.ALL_ROWS, question):
            for path, found, _ in decode_rows(b"".join(row for _, row in page)):
                if isinstance(found, FrameTable):
                    yield TableResult(path, found, None)
                else:
                    yield TableResult(path, None, found.error, _state_of(found))
            question["after"] = Key(page[-1][0].bytes)

    def by_sop_instance(self, uid: str, source: str | None = None) -> list[FoundTable]:
        """Return the tables of all files that hold a SOP Instance, in the order of their paths."""
        return self._by_uid(statements.BY_SOP_INSTANCE, uid, source)

    def by_series(self, uid: str, source: str | None = None) -> list[FoundTable]:
        """Return the tables of all files of a series, in the order of their paths."""
        return self._by_uid(statements.BY_SERIES, uid, source)

    def sources(self) -> list[str]:
        """Return the names of all sources."""
        return [name for (name,) in self.query(statements.SOURCES, ())]

    def summary(self, source: str) -> Summary:
        """Return how many files, frames and bytes a source holds, in all and by its closed lists."""
        _check_source(source)
        by: dict[str, dict[str, Tally]] = {name: {} for name in ("", *Summary._fields[1:])}
        for field, value, *tally in self.query(statements.SUMMARY, (source,)):
            by[f"by_{field}" if field else ""][value] = Tally(*tally)
        return Summary(by.pop("").get("", Tally(0, 0, 0, 0)), **by)

    def refused_files(self, source: str) -> Iterator[RefusedFile]:
        """Iterate over the files without a table, in the order of their paths."""
        for path, kind, offset, detail in self._pages(statements.REFUSED_FILES, source):
            yield RefusedFile(path, kind, offset, detail or "")

    def truncated_files(self, source: str) -> Iterator[TruncatedFile]:
        """Iterate over the files that are cut off, in the order of their paths."""
        return map(TruncatedFile._make, self._pages(statements.TRUNCATED_FILES, source))

    def _pages(self, statement: str, source: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a statement that orders them by the path, which comes first."""
        _check_source(source)
        after = ""
        while page := self.query(statement, {"source": source, "after": after, "limit": BATCH}):
            yield from page
            after = page[-1][0]

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
        touched = self.query(statements.TOUCH, (Keys(keys), list(counts), list(last_used)))
        found = {key.bytes for (key,) in touched}
        return [key for key in keys if key not in found]

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

    def delete(self, source: str, paths: Sequence[str]) -> int:
        """Delete the rows of files and their statistics; return how many there were."""
        deleted = 0
        for start in range(0, len(paths), BATCH):
            wanted = [path for path in paths[start : start + BATCH] if path_fault(path) is None]
            [(count,)] = self.query(statements.DELETE, (_file_keys(source, wanted), wanted))
            deleted += count
        return deleted

    def missing_files(
        self, source: str, *, under: Sequence[str] = (), is_gone: Callable[[str], bool] | None = None
    ) -> Iterator[str]:
        """Iterate over the indexed paths whose files certainly no longer exist.

        Parameters
        ----------
        source : str
            Name of the source.
        under : sequence of str
            Only files that are, or lie below, one of these; empty for all.
        is_gone : callable or None
            Takes a path and returns whether its file is gone, False where it cannot tell. None: asks the file
            system, or the store of an object.

        Yields
        ------
        str
            A path.
        """
        is_gone = is_gone or file_is_gone
        return (path for path in self._paths(source, under) if is_gone(path))

    def prune(
        self,
        source: str,
        *,
        under: Sequence[str] = (),
        is_gone: Callable[[str], bool] | None = None,
        force: bool = False,
    ) -> int:
        """Delete the rows of the files that `missing_files` finds.

        Parameters
        ----------
        source : str
            Name of the source.
        under : sequence of str
            Only files that are, or lie below, one of these; empty for all.
        is_gone : callable or None
            See `missing_files`.
        force : bool
            Also when not one of the files exists.

        Returns
        -------
        int
            Rows that were deleted.

        Raises
        ------
        ConfigError
            None of the files exists, as when a disk is not mounted, and `force` is not given.
        """
        is_gone = is_gone or file_is_gone
        missing, present = [], 0
        for path in self._paths(source, under):
            if is_gone(path):
                missing.append(path)
            else:
                present += 1
        if missing and not present and not force:
            raise ConfigError(
                f"all {len(missing)} indexed files are gone: is their disk mounted? Nothing was pruned; use "
                "force to prune them all the same"
            )
        return self.delete(source, missing)

    def _paths(self, source: str, under: Sequence[str]) -> Iterator[str]:
        question: dict[str, Any] = {"source": source, "under": list(under) or None, "limit": 2 * BATCH}
        question["after"] = Key(bytes(16))
        while page := self.query(statements.PATHS, question):
            yield from (path for _, path in page)
            question["after"] = Key(page[-1][0].bytes)

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
        """Run one idempotent statement with bound parameters and return its rows: see `adapters.fetch`."""
        return self.database.run(lambda connection: fetch(connection, statement, parameters))

    def _answer(self, statement: str, source: str, path: str, **limits: int) -> IndexAnswer | None:
        [key] = _file_keys(source, [path])
        rows = b"".join(row for (row,) in self.query(statement, {"key": Key(key), **limits}))
        first = decode_rows(rows, most=1)
        return IndexAnswer(first[0][1], rows) if first and first[0][0] == path else None

    def _by_uid(self, statement: str, uid: str, source: str | None) -> list[FoundTable]:
        rows = self.query(statement, {"uid": uid, "source": source})
        decoded = ((name, *each) for name, row in rows for each in decode_rows(row))
        return [
            FoundTable(name, path, table) for name, path, table, _ in decoded if isinstance(table, FrameTable)
        ]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _file_keys(source: str, paths: Iterable[str]) -> Keys:
    _check_source(source)
    return Keys(file_keys(source, list(paths)))


def _state_of(refusal: Refusal) -> Fingerprint | None:
    if refusal.size is None:
        return None
    return refusal.size, refusal.mtime_ns, refusal.ctime_ns, refusal.inode, refusal.etag


def _check_source(source: str) -> None:
    if not 0 < len(source.encode(errors="replace")) <= _LONGEST_SOURCE or not source.isprintable():
        raise ConfigError(
            f"a source's name has 1 to {_LONGEST_SOURCE} bytes of printable text: {source[:40]!r} does not"
        )
