"""The resolver: a path or a SOP Instance UID and a frame number in, the frame's bytes out, by three tiers.

Memory, then Postgres, then the file itself; what a lower tier finds is promoted. A frame is read from an
open descriptor whose size and time are those of the table, or not at all.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from voxtier._core import FrameTable, read_frame, read_table
from voxtier.errors import BackendError, FormatError, NotFoundError, SourceError
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.memory.cache import Class, FrameCache, Recalled
from voxtier.frames.memory.preload import Preload
from voxtier.frames.memory.ranking import preload_priority_list
from voxtier.frames.serving.open_files import OpenFiles
from voxtier.frames.serving.status_files import Publisher, readers_folder
from voxtier.frames.serving.write_back import Bookkeeper
from voxtier.frames.store.row import Refusal
from voxtier.frames.store.store import FrameStore
from voxtier.frames.table import TableResult, Verify
from voxtier.system.fork import after_fork_in_child

__all__ = ["FrameReader"]

_UID = re.compile(r"[0-9.]{1,64}\Z")
_ATTEMPTS = 3
_DATABASE_PAUSE = 5.0
_MOST_UIDS = 100_000
_COUNTS = ("requests", "tier1", "tier2", "tier3", "stale_misses", "store_errors", "uncached")


class FrameReader:
    """Reads frames of indexed and of unknown files; one object serves all threads.

    Parameters
    ----------
    store : FrameStore or None
        The index; None works from memory and files alone.
    source : str
        Name of the source whose files are read.
    budget_bytes : int
        Memory for frame tables.
    cache : FrameCache or None
        A cache of one's own instead.
    open_files : int
        Descriptors that stay open.
    flush_seconds : float
        How often accesses are written to the index; what a crash loses at most.
    verify : {"ends", "all", "none"}
        How far a computed table is held against its file.
    publish : bool
        Write what `stats` returns to a small file in voxtier's folder every two seconds, for
        ``voxtier top`` and ``voxtier cache stats``.

    Notes
    -----
    When the database fails, memory and files go on serving; `stats` tells, and it is asked again after
    five seconds.
    """

    def __init__(
        self,
        store: FrameStore | None = None,
        source: str = "default",
        *,
        budget_bytes: int = 256 << 20,
        cache: FrameCache | None = None,
        open_files: int = 256,
        flush_seconds: float = 60.0,
        verify: Verify = "ends",
        publish: bool = True,
    ) -> None:
        self.store = store
        self.source = source
        self.cache = FrameCache(budget_bytes) if cache is None else cache
        self.verify: Verify = verify
        self.preload = Preload(self.cache, store, source)
        self._files = OpenFiles(open_files)
        self._books = Bookkeeper(self.cache, store, source, flush_seconds)
        self._publisher = Publisher(readers_folder() if publish else None, source, self.stats)
        self._uids: OrderedDict[str, str] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._start_fresh()
        after_fork_in_child(self._in_child)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._database_back_at = 0.0
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._asked_folders: set[str] = set()

    def frame(self, name: str, index: int, *, scan: bool = False) -> bytes:
        """Read one frame: fragments joined, item headers stripped.

        Parameters
        ----------
        name : str
            Path or SOP Instance UID. What could be either, such as a file named ``1.2``, is a UID.
        index : int
            Frame, counted from 0.
        scan : bool
            A bulk reader asks (a training epoch): it neither counts as an access nor pushes others out.

        Raises
        ------
        IndexError
            No such frame.
        NotFoundError
            A UID that the index does not hold.
        FormatError, SourceError
            The file is refused, or cannot be read.
        """
        return self.frames(name, [index], scan=scan)[0]

    def frames(self, name: str, indices: Sequence[int], *, scan: bool = False) -> list[bytes]:
        """Read frames of one file in the order asked; neighbours take one read."""
        path = self.path_of(name)
        wanted = list(indices)
        if wanted and min(wanted) < 0:
            raise IndexError(f"frame {min(wanted)}: frames count from 0")
        for left in reversed(range(_ATTEMPTS)):
            file = self._files.take(path)
            try:
                return self._read(path, file.fd, wanted, "scan" if scan else "normal")
            except SourceError as error:
                if error.kind != "changed_during_read" or not left:
                    raise
                self._count("stale_misses")
                self._files.forget(path)
                self.cache.invalidate(path)
            except FormatError as error:
                # The file's own offset table is wrong somewhere in the middle: hold it against a walk.
                if error.kind != "bad_table" or not left:
                    raise
                self._rebuild(path, file.fd, "scan" if scan else "normal")
            finally:
                self._files.give_back(file)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, path: str, fd: int, wanted: list[int], klass: Class) -> list[bytes]:
        scan = klass == "scan"
        tier = "tier1"
        read = self.cache.read(path, fd, wanted, scan=scan)
        if read is None:
            tier, table = self._load(path, fd, klass)
            read = self.cache.read(path, fd, wanted, scan=scan)
            if read is None:
                self._count("uncached")
                read = [read_frame(fd, table, index) for index in wanted]
        self._books.wake()
        self._publisher.wake()
        self._count("requests", tier)
        return read

    def table(self, name: str) -> FrameTable:
        """Return the frame table of a file, from the nearest tier."""
        path = self.path_of(name)
        file = self._files.take(path)
        try:
            table = self.cache.table(path)
            status = os.fstat(file.fd)
            if table is not None and (table.size, table.mtime_ns) == (status.st_size, status.st_mtime_ns):
                return table
            return self._load(path, file.fd, "normal")[1]
        finally:
            self._files.give_back(file)

    def path_of(self, name: str) -> str:
        """Return the path of a SOP Instance UID through the index; a path is made absolute, as indexed."""
        if not _UID.match(name):
            return absolute(name)
        with self._lock:
            if (path := self._uids.get(name)) is not None:
                self._uids.move_to_end(name)
                return path
        if self.store is None:
            raise NotFoundError(f"{name}: a UID needs an index to be found in")
        found = self.store.by_sop_instance(name, self.source)
        if not found:
            raise NotFoundError(f"{name}: source {self.source!r} of the index holds no such SOP Instance")
        path = found[0].path
        with self._lock:
            self._uids[name] = path
            while len(self._uids) > _MOST_UIDS:
                self._uids.popitem(last=False)
        return path

    async def aframe(self, name: str, index: int, *, scan: bool = False) -> bytes:
        """Read as `frame` does, on a thread: the event loop never waits for a disk or a database."""
        return (await self.aframes(name, [index], scan=scan))[0]

    async def aframes(self, name: str, indices: Sequence[int], *, scan: bool = False) -> list[bytes]:
        """Read as `frames` does, on a thread; a cancelled waiter does not stop the load for the others."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads(), lambda: self.frames(name, indices, scan=scan))

    def get_preload_priority_list(self, limit: int = 10_000) -> list[dict[str, Any]]:
        """Return the predecessor's rows of the best `limit` files: see `preload_priority_list`."""
        if self.store is None:
            return []
        return preload_priority_list(self.store, self.source, limit)

    def flush(self) -> int:
        """Write the accesses that are not in the index yet; return how many files they concern."""
        return self._books.flush()

    def stats(self) -> dict[str, Any]:
        """Return what was asked, which tier answered, how full memory is, whether the database answers."""
        with self._lock:
            counts = dict(self._counts)
            degraded = time.monotonic() < self._database_back_at
        return {
            **counts,
            "degraded": degraded,
            "open_files": len(self._files),
            **self._books.stats(),
            "cache": self.cache.stats(),
            "preload": self.preload.progress(),
        }

    def close(self) -> None:
        """Stop the threads, write the accesses, close the files. The store stays the caller's."""
        self._publisher.close()
        self.preload.cancel()
        self._books.close()
        self._files.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, path: str, fd: int, klass: Class) -> tuple[str, FrameTable]:
        """Table of a file that memory does not hold; one flight, however many threads ask."""
        tier = ["tier1"]

        def loader(_: str) -> FrameTable | Recalled:
            recalled = self._ask_store(path, fd, with_series=klass != "scan")
            if recalled is not None:
                tier[0] = "tier2"
                return recalled
            tier[0] = "tier3"
            return self._compute(path, fd, self.verify)

        table = self.cache.load(path, loader, klass=klass)
        return tier[0], table

    def _rebuild(self, path: str, fd: int, klass: Class) -> None:
        self.cache.invalidate(path)
        self.cache.load(path, lambda _: self._compute(path, fd, "all"), klass=klass)

    def _ask_store(self, path: str, fd: int, *, with_series: bool) -> Recalled | None:
        if self.store is None or time.monotonic() < self._database_back_at:
            return None
        # Whoever reads one slice reads the next: the rest of the series comes along. Not with a file that
        # came along a moment ago and is gone again, nor for each of those that a viewer asks for at once.
        folder = os.path.dirname(path)  # noqa: PTH120 - on the way of every miss
        with_series = with_series and folder not in self._asked_folders and not self.cache.is_primed(path)
        try:
            if with_series:
                self._asked_folders.add(folder)
            rows = self.store.recall(self.source, path, with_series=with_series)
        except BackendError:
            self._count("store_errors")
            self._database_back_at = time.monotonic() + _DATABASE_PAUSE
            return None
        finally:
            if with_series:
                self._asked_folders.discard(folder)
        if not rows:
            return None
        [(_, found, last_used), *others] = rows
        status = os.fstat(fd)
        if (found.size, found.mtime_ns) != (status.st_size, status.st_mtime_ns):
            self._count("stale_misses")
            return None
        if isinstance(found, Refusal):
            raise found.error
        if others:
            tables = {
                name: Recalled(table, at) for name, table, at in others if isinstance(table, FrameTable)
            }
            self.cache.prime(folder, list(tables), lambda wanted: tables)
        return Recalled(found, last_used)

    def _compute(self, path: str, fd: int, verify: Verify) -> FrameTable:
        table = read_table(fd, verify=verify)
        self._books.write_back(TableResult(path, table, None))
        return table

    def _count(self, *names: str) -> None:
        with self._lock:
            for name in names:
                self._counts[name] += 1

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(32, "voxtier-frame")
            return self._pool

    def _in_child(self) -> None:
        self._start_fresh()
        self._pool = None
        self._files.after_fork()
        self._books.after_fork()
        self._publisher.after_fork()
        self.preload.after_fork()
