"""The index run: finds out which files are new or changed, reads them, writes their rows in batches.

`FileIndexer` indexes one batch of paths at a time, as a Spark task does; `index_files` drives it over any
number of paths and lets the database write one batch while the next is read.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

from voxtier._core import Indexer, take_unchanged
from voxtier.arguments import as_several, check_kind, whole_number
from voxtier.frames.dicom.table import Verify
from voxtier.frames.indexing.paths import Shard, absolute
from voxtier.frames.sources.address import is_misread
from voxtier.frames.sources.listing import ListedObject
from voxtier.frames.sources.opening import Opener
from voxtier.frames.store.store import FrameStore
from voxtier.system.s3_config import S3Config
from voxtier.system.workers import Workers

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

BATCH_SIZE = 5000
# Files in one question to the index, and questions at a time: the database uses more than one core, and the
# first answers are looked through while it looks for the next.
_SHARE, _QUESTIONS = 1250, 2
# Parts of batches that wait for the database while the next one is read: bounds memory, hides latency.
_PENDING = 2


class FileReport(NamedTuple):
    """What an index run did with one file.

    Attributes
    ----------
    path : str
        The file.
    status : str
        The status of its row (``ok``, ``truncated``, ``no_pixels``, ``ambiguous``, ``error``); ``unchanged``
        where the row describes the file already; ``refused`` where the path cannot be a row: it cannot be
        stored, or it is a folder. Where ``error`` is of `voxtier.errors.ENVIRONMENT_KINDS`, nothing is known
        of the file, and a row that it has stays.
    frames : int
        Frames that can be addressed.
    truncated_from : int or None
        First frame that is not completely in the file.
    error_kind, error : str or None
        Why the file was refused: the kind, and the whole sentence.
    error_offset : int or None
        Byte that the refusal concerns.
    error_detail : str or None
        The sentence without kind and offset.
    """

    path: str
    status: str
    frames: int
    truncated_from: int | None
    error_kind: str | None
    error: str | None
    error_offset: int | None = None
    error_detail: str | None = None

    def as_status(self) -> dict[str, str | int]:
        """Return the origin's status object: ``cached``, ``skipped``, ``partial`` or ``error``."""
        match self.status:
            case "ok":
                return {"status": "cached", "num_frames": self.frames}
            # A task that runs twice, or a later run, says the same of what is wrong with a file.
            case "truncated" | "unchanged" if self.truncated_from is not None:
                return {"status": "partial", "num_frames": self.frames, "truncated_from": self.truncated_from}
            case "unchanged" if self.frames:
                return {"status": "skipped", "reason": "already_cached", "num_frames": self.frames}
            case "no_pixels" | "unchanged":
                return {"status": "skipped", "reason": "no_pixels", "num_frames": 0}
            case _:
                return {"status": "error", "error": (self.error or "")[:500]}

    @property
    def failed(self) -> bool:
        """Whether the file has no usable table."""
        return self.error_kind is not None


# As `FileReport._make`, at a third of what that costs for each of 10^8 files.
_report = partial(tuple.__new__, FileReport)


class Part(NamedTuple):
    """A part of a batch: what is to be written.

    Attributes
    ----------
    rows : bytes
        The rows of what was read.
    are_new : bool
        Whether the index knew none of the batch's files.
    reports : list of FileReport
        One for each file.
    """

    rows: bytes
    are_new: bool
    reports: list[FileReport]


def _refuse_misread(path: str) -> FileReport:
    detail = (
        f"names of files are read as {sys.getfilesystemencoding()} here (LC_ALL, LC_CTYPE, LANG), and the "
        "index holds UTF-8: set PYTHONUTF8=1"
    )
    return FileReport(path, "refused", 0, None, "io_error", f"io_error: {detail}", None, detail)


class FileIndexer:
    """Indexes batches of files of one source; keeps its reading threads between batches.

    Parameters
    ----------
    store : FrameStore
        Where the rows go.
    source : str
        Name of the source that the files belong to.
    threads : int
        Reads in flight.
    verify : {"all", "ends"}
        How far offset tables are checked against the files: see `read_table`. Those of objects are checked
        at their ends: each entry would take a request, or all bytes.
    force : bool
        Also read files whose rows describe them already.
    s3 : S3Config or None
        How ``s3://`` is reached; None: as configured now.
    """

    def __init__(
        self,
        store: FrameStore,
        *,
        source: str = "default",
        threads: int = 16,
        verify: Verify = "all",
        force: bool = False,
        s3: S3Config | None = None,
    ) -> None:
        check_kind("store", store, FrameStore, "a FrameStore(dsn), and the source by its name, source=")
        self.store = store
        self.source = source
        self.force = force
        self._indexer = Indexer(source, threads=threads, verify=verify, opener=Opener(s3))

    def index_batch(self, paths: Paths) -> list[FileReport]:
        """Index one batch of paths, each made absolute as by `index_files`; return a report on each file."""
        reports: list[FileReport] = []
        for part in self.read(map(absolute, map(os.fsdecode, as_several(paths)))):
            self.write(part)
            reports += part.reports
        return reports

    def read(self, paths: Paths) -> Iterator[Part]:
        """Read what is new or changed; yield parts of bounded size and time."""
        several: Iterable[Any] = as_several(paths)
        wanted = list(dict.fromkeys(map(os.fspath, several)))
        if misread := [path for path in wanted if is_misread(path)]:
            yield Part(b"", False, list(map(_refuse_misread, misread)))  # noqa: FBT003 - nothing is written
            wanted = [path for path in wanted if not is_misread(path)]
        if self.force:
            yield from self._read(wanted, b"", are_new=False)
            return
        left, states, are_new = list[str](), list[bytes](), True
        for share, known in self._ask(wanted):
            are_new = are_new and not known
            listed = [path.state if isinstance(path, ListedObject) else None for path in share]
            unchanged, others, of_others = take_unchanged(share, known, listed)
            if unchanged:
                yield Part(b"", False, list(map(_report, unchanged)))  # noqa: FBT003 - nothing is written
            left += others
            states.append(of_others)
        yield from self._read(left, b"".join(states), are_new=are_new)

    def _ask(self, wanted: list[str]) -> Iterator[tuple[list[str], bytes]]:
        """Yield the files of a batch in shares, with what the index says of each share."""
        shares = [wanted[start : start + _SHARE] for start in range(0, len(wanted), _SHARE)]
        ask = partial(self.store.encoded_states, self.source)
        if len(shares) == 1:
            yield shares[0], ask(shares[0])
            return
        with Workers(_QUESTIONS, "voxtier-ask") as workers:
            yield from zip(shares, workers.map(ask, shares), strict=True)

    def _read(self, paths: list[str], states: bytes, *, are_new: bool) -> Iterator[Part]:
        first = 0
        while first < len(paths):
            rows, done = self._indexer.read(paths[first:], states)
            yield Part(rows, are_new, list(map(_report, done)))
            first += len(done)

    def write(self, part: Part) -> None:
        """Write the rows of one part, all or none of them."""
        if part.rows:
            self.store.upsert_rows(self.source, part.rows, force=self.force, are_new=part.are_new)


def index_files(
    indexer: FileIndexer, paths: Paths, *, batch_size: int = BATCH_SIZE, shard: Shard | None = None
) -> Iterator[list[FileReport]]:
    """Index any number of files in bounded memory.

    Parameters
    ----------
    indexer : FileIndexer
        Reads and writes the batches.
    paths : path or iterable of path
        Consumed batch by batch; each is made absolute, so that a file has one row however it is named.
    batch_size : int
        Files in one transaction at most.
    shard : Shard or None
        Only files of this share: several runs, on several machines, divide the files of a source so.

    Yields
    ------
    list of FileReport
        The reports of one transaction, after its rows have been committed. When the run ends early (an
        exception, Ctrl-C) or the server crashes, what was yielded is in the database, and the next run does
        the rest.
    """
    check_kind("indexer", indexer, FileIndexer, "a FileIndexer(store, source=...)")
    check_kind("shard", shard, (Shard, NoneType), "a share, such as Shard.parse('1/2')")
    batch_size = whole_number("batch_size", batch_size, 1)
    iterator: Iterator[str] = map(absolute, as_several(paths))
    if shard is not None:
        iterator = (path for path in iterator if shard.holds(indexer.source, path))
    pending: deque[tuple[Future[None], list[FileReport]]] = deque()
    broken: list[Exception] = []
    with Workers(1, "voxtier-write") as writer:
        for batch in _batches(iterator, batch_size, broken):
            for part in indexer.read(batch):
                pending.append((writer.submit(indexer.write, part), part.reports))
                while len(pending) > _PENDING or (pending and pending[0][0].done()):
                    written, done = pending.popleft()
                    written.result()
                    yield done
        while pending:
            written, done = pending.popleft()
            written.result()
            yield done
        if broken:
            raise broken[0]


def _batches(paths: Iterator[str], size: int, broken: list[Exception]) -> Iterator[list[str]]:
    """Yield batches; a listing that fails in its middle is an end too, and noted: what it named counts."""
    while not broken:
        batch: list[str] = []
        try:
            batch.extend(islice(paths, size))
        except Exception as error:
            broken.append(error)
        if not batch:
            return
        yield batch
