"""The index run: which files are new or changed, read at full speed, written in batches.

`FileIndexer` works on one batch of paths at a time, which is what a Spark task wants; `index_files` drives it
over any number of paths, with the database writing one batch while the next is read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from voxtier._core import PARSER_VERSION, Indexer, path_fault
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.store.row import Known
from voxtier.frames.store.store import FrameStore
from voxtier.frames.table import Verify

__all__ = ["BATCH_SIZE", "FileIndexer", "FileReport", "index_files"]

BATCH_SIZE = 5000
# Parts of batches that wait for the database while the next one is read: bounds memory, hides latency.
_PENDING = 2


class FileReport(NamedTuple):
    """What an index run says of one file.

    Attributes
    ----------
    path : str
        The file.
    status : str
        The status of its row (``ok``, ``truncated``, ``no_pixels``, ``ambiguous``, ``error``), or
        ``unchanged`` when the row is true already, or ``refused`` when the path cannot be a row: it
        cannot be stored, or it is a folder.
    frames : int
        Frames that can be addressed.
    truncated_from : int or None
        First frame that is not wholly in the file.
    error_kind, error : str or None
        Why the file was refused.
    """

    path: str
    status: str
    frames: int
    truncated_from: int | None
    error_kind: str | None
    error: str | None

    def as_status(self) -> dict[str, str | int]:
        """Return the origin's status object: ``cached``, ``skipped``, ``partial`` or ``error``."""
        match self.status:
            case "ok":
                return {"status": "cached", "num_frames": self.frames}
            case "unchanged":
                return {"status": "skipped", "reason": "already_cached", "num_frames": self.frames}
            case "no_pixels":
                return {"status": "skipped", "reason": "no_pixels", "num_frames": 0}
            case "truncated":
                cut = self.truncated_from or 0
                return {"status": "partial", "num_frames": self.frames, "truncated_from": cut}
            case _:
                return {"status": "error", "error": (self.error or "")[:500]}

    @property
    def failed(self) -> bool:
        """Whether the file has no usable table."""
        return self.error_kind is not None


class FileIndexer:
    """Indexes batches of files of one source; keeps its reading threads between batches.

    Parameters
    ----------
    store : FrameStore
        Where the rows go.
    source : str
        Name under which the files are indexed.
    threads : int
        Reads in flight.
    verify : {"all", "ends"}
        How far offset tables are held against the files.
    force : bool
        Read every file again, also those whose rows are true already.
    """

    def __init__(
        self,
        store: FrameStore,
        *,
        source: str = "default",
        threads: int = 16,
        verify: Verify = "all",
        force: bool = False,
    ) -> None:
        self.store = store
        self.source = source
        self.force = force
        self._indexer = Indexer(source, threads=threads, verify=verify)

    def index_batch(self, paths: Iterable[str]) -> list[FileReport]:
        """Index one batch: ask what is known, read what is new or changed, write it, report on each path."""
        reports: list[FileReport] = []
        for rows, part in self.read(paths):
            self.write(rows)
            reports += part
        return reports

    def read(self, paths: Iterable[str]) -> Iterator[tuple[bytes, list[FileReport]]]:
        """Read what is new or changed; yield rows to write and reports, in parts of bounded size and time."""
        faults = {path: path_fault(path) for path in map(os.fspath, paths)}
        refused = [
            FileReport(path, "refused", 0, None, "invalid_argument", fault)
            for path, fault in faults.items()
            if fault
        ]
        if refused:
            yield b"", refused
        wanted = [path for path, fault in faults.items() if not fault]
        known = [None] * len(wanted) if self.force else self.store.known(self.source, wanted)
        frames = {path: row.frame_count for path, row in zip(wanted, known, strict=True) if row}
        fingerprints = [_settled(row) for row in known]
        while wanted:
            rows, found = self._indexer.read(wanted, fingerprints)
            reports = [FileReport._make(report) for report in found]
            yield rows, [r._replace(frames=frames[r.path]) if r.status == "unchanged" else r for r in reports]
            wanted, fingerprints = wanted[len(found) :], fingerprints[len(found) :]

    def write(self, rows: bytes) -> None:
        """Write the rows of one part, all or none of them."""
        if rows:
            self.store.upsert_rows(self.source, rows, force=self.force)


def _settled(row: Known | None) -> tuple[int, int] | None:
    """Return the fingerprint of a row that needs no second look: complete, and of this parser."""
    if row is None or row.error_kind is not None or row.parser_version != PARSER_VERSION:
        return None
    if row.size is None or row.mtime_ns is None:
        return None
    return row.size, row.mtime_ns


def index_files(
    indexer: FileIndexer, paths: Iterable[str], *, batch_size: int = BATCH_SIZE
) -> Iterator[list[FileReport]]:
    """Index any number of files in bounded memory.

    Parameters
    ----------
    indexer : FileIndexer
        Does the work.
    paths : iterable of str
        Consumed batch by batch; each is made absolute, so that a file has one row however it is named.
    batch_size : int
        Files in one transaction at most.

    Yields
    ------
    list of FileReport
        The reports of one transaction, after its rows have been committed. Whatever ends the run early (an
        exception, Ctrl-C), what was yielded is in the database, and the next run does the rest.
    """
    iterator = map(absolute, paths)
    pending: deque[tuple[Future[None], list[FileReport]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="voxtier-write") as writer:
        try:
            while batch := list(islice(iterator, batch_size)):
                for rows, reports in indexer.read(batch):
                    pending.append((writer.submit(indexer.write, rows), reports))
                    while len(pending) > _PENDING or (pending and pending[0][0].done()):
                        written, done = pending.popleft()
                        written.result()
                        yield done
            while pending:
                written, done = pending.popleft()
                written.result()
                yield done
        finally:
            for written, _ in pending:
                written.cancel()
