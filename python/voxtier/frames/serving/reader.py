"""Serves frames: a path or a SOP Instance UID and frame numbers in, the frames' bytes out, by three tiers.

Memory, then PostgreSQL, then the file; what a lower tier finds is kept in the upper ones. A frame is read
from a file or an object in the state of its table, behind the header that the table names, or not at all.
"""

from __future__ import annotations

import asyncio
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from types import NoneType
from typing import Any, TypeVar

from voxtier._core import FrameTable, SlideHeader
from voxtier.arguments import as_several, check_kind
from voxtier.errors import ConfigError
from voxtier.frames.dicom.table import Fingerprint, Verify
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.memory.cache import Class, FrameCache
from voxtier.frames.memory.preload import Preload
from voxtier.frames.serving.counters import Counters
from voxtier.frames.serving.file_frames import FileFrames
from voxtier.frames.serving.files.group_files import GroupFiles
from voxtier.frames.serving.files.open_files import OpenFiles
from voxtier.frames.serving.files.slide_headers import SlideHeaders
from voxtier.frames.serving.index.index_client import IndexClient
from voxtier.frames.serving.index.uid_paths import UidPaths
from voxtier.frames.serving.index.write_back import WriteBack
from voxtier.frames.serving.pools import ThreadPools
from voxtier.frames.serving.status_files import StatusWriter, own_folder
from voxtier.frames.serving.table_loader import TableLoader
from voxtier.frames.sources.address import is_address, is_text
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.store import FrameStore
from voxtier.system.fork import after_fork_in_child
from voxtier.system.s3_config import S3Config

T = TypeVar("T")

_MOST_FRAMES = 0xFFFFFFFF
_PRELOAD_ENDS_WITHIN = 1.0  # seconds; one that waits for a sick database is left
_UID = re.compile(r"[0-9.]{1,64}\Z")


def _counted_from_0(indices: Iterable[int]) -> list[int]:
    """Return numbers of frames that a file may have, as Python's own."""
    wanted = list(map(operator.index, indices))
    if wanted and min(wanted) < 0:
        raise IndexError(f"frame {min(wanted)}: frames count from 0")
    if wanted and max(wanted) > _MOST_FRAMES:
        raise IndexError(f"frame {max(wanted)}: no file has so many")
    return wanted


class FrameReader:
    """Reads frames of files, indexed or not; one object serves all threads.

    Parameters
    ----------
    store : FrameStore or None
        The index; None works from memory and files alone.
    source : str
        Name of the source whose files are read.
    budget_bytes : int
        Memory for frame tables.
    cache : FrameCache or None
        Existing cache to use; `budget_bytes` is then ignored.
    open_files : int
        Descriptors that stay open while nobody uses them.
    flush_seconds : float
        Seconds between two writes of accesses to the index; a crash loses those of one interval.
    verify : {"ends", "all", "none"}
        How far a computed table is checked against its file: see `read_table`.
    index_seconds : float
        Longest wait of a request for the index. The start of voxtier's own server and the first connection
        to another are no part of it: what the index alone can answer waits for them, and paths are read
        meanwhile.
    publish : bool
        Write what `stats` returns to a small file in voxtier's folder every two seconds, for
        ``voxtier frames top`` and ``voxtier frames stats``.
    user_groups : iterable of str or None
        Groups of the user for whom files are read: only what the index shows to one of them is served, from
        any tier, and every request asks. None: whatever the source holds.
    other_sources : str or iterable of str
        Further sources whose files others read by the reader's memory: accesses and preload are of all.

    Raises
    ------
    ConfigError
        `user_groups` is given without `store`, or is no list of text.

    Notes
    -----
    The first failure of the database, or an answer that is late, opens a breaker for all threads: memory and
    files serve, `stats` says ``degraded``, and one thread tries the database out until it answers.

    Bytes asked for by UID come from a file that holds this SOP Instance, or not at all: the file of the very
    descriptor that is read is asked for its UID, again whenever its state changes.
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
        index_seconds: float = 0.25,
        publish: bool = True,
        user_groups: Iterable[str] | None = None,
        other_sources: str | Iterable[str] = (),
    ) -> None:
        check_kind("store", store, (FrameStore, NoneType), "a FrameStore(dsn), and the source behind it")
        self.store = store
        self._files, self.index = OpenFiles(open_files), None
        if user_groups is not None:
            if store is None:
                raise ConfigError("user_groups needs a store: the index knows which groups may see a file")
            self.index = IndexClient(GroupStore(store, user_groups), index_seconds)
            self._files = GroupFiles(open_files, self.index, source)
        elif store is not None:
            self.index = IndexClient(store, index_seconds)
        self._is_for_groups = user_groups is not None
        self._budget = nullcontext() if self.index is None else self.index.request
        self.source = source
        self.cache = FrameCache(budget_bytes) if cache is None else cache
        self.verify: Verify = verify
        sources = [source, *as_several(other_sources)]
        self.preload = Preload(self.cache, store, *sources)
        self._files.on_replaced = self.cache.invalidate
        self._files.known_state = self.cache.state
        self._write_back = WriteBack(self.cache, store, sources, flush_seconds)
        self._counters = Counters(
            "requests", "tier1", "tier2", "tier3", "stale_misses", "store_errors", "uncached"
        )
        self._tables = TableLoader(self.cache, self.index, self._write_back, source, verify, self._counters)
        self._slides = SlideHeaders(
            self._files,
            self.index,
            source,
            keep=self._write_back.add_slide_map,
            on_replaced=self.cache.invalidate,
        )
        self._status = StatusWriter(own_folder() if publish else None, source, self.stats)
        self._uids = UidPaths(self.index, source)
        self._frames = FileFrames(
            self.cache, self._files, self._uids, self._tables, self._counters, source, verify
        )
        self._pools = ThreadPools()
        after_fork_in_child(self._in_child)

    def frame(self, name: str, index: int, *, scan: bool = False, align: bool = False) -> bytes:
        """Read one frame: fragments joined, item headers stripped.

        Parameters
        ----------
        name : str
            Path or SOP Instance UID. A name that could be either, such as ``1.2``, is a UID.
        index : int
            Frame, counted from 0.
        scan : bool
            A bulk reader asks (a training epoch): the read does not count as an access and evicts nothing.
        align : bool
            Move a native frame of 1-bit pixels to the first bit: see `read_frame`.

        Returns
        -------
        bytes
            The frame as it is encoded in the file, or aligned.

        Raises
        ------
        IndexError
            The file has no such frame.
        NotFoundError
            The index does not hold the UID, or does not show the file to the reader's groups.
        BackendError
            The reader is for groups, and the index does not answer.
        FormatError
            The file is refused.
        SourceError
            The file cannot be read, or changes while it is read.
        """
        return self.frames(name, [index], scan=scan, align=align)[0]

    def frames(
        self, name: str, indices: Sequence[int], *, scan: bool = False, align: bool = False
    ) -> list[bytes]:
        """Read frames of one file; neighbours in the file take one read.

        Parameters
        ----------
        name : str
            Path or SOP Instance UID: see `frame`.
        indices : sequence of int
            Frames, counted from 0, in any order.
        scan, align : bool
            See `frame`.

        Returns
        -------
        list of bytes
            One item per index, in the order of `indices`.

        Raises
        ------
        IndexError, NotFoundError, FormatError, SourceError
            See `frame`.
        """
        wanted = _counted_from_0(indices)
        klass: Class = "scan" if scan else "normal"
        read = self._frames.read
        found: list[bytes] | None
        if _UID.match(name):
            with self._budget:
                found = self._frames.of_instance(
                    name, lambda path: read(path, name, wanted, klass, align=align)
                )
        elif self._is_for_groups:
            with self._budget:
                found = read(absolute(name), None, wanted, klass, align=align)
        else:  # a path has one question at most
            found = read(absolute(name), None, wanted, klass, align=align)
        assert found is not None  # a path holds what it holds, in whatever state
        self.wake()
        return found

    def frame_in_state(self, path: str, index: int, agrees: Callable[[Fingerprint], bool]) -> bytes | None:
        """Read one frame of a file of which something else is known, such as where its tiles lie.

        Parameters
        ----------
        path : str
            The file.
        index : int
            Frame, counted from 0.
        agrees : callable
            Takes the state of what was read (size, mtime_ns, ctime_ns, inode, etag), and returns whether it
            is the one that is meant.

        Returns
        -------
        bytes or None
            None where it is not.

        Raises
        ------
        IndexError, NotFoundError, FormatError, SourceError
            See `frame`.
        """
        wanted = _counted_from_0([index])
        with self._budget:
            read = self._frames.read(absolute(path), None, wanted, "normal", align=False, agrees=agrees)
        self.wake()
        return None if read is None else read[0]

    def table(self, name: str) -> FrameTable:
        """Return the frame table of a file, from the nearest tier; see `frame`.

        Memory keeps what frames are read by: a table that comes from there has no UIDs and no notes.
        """
        return self._of_file(name, self._frames.table)

    def slide_headers(self, paths: str | Iterable[str]) -> list[SlideHeader]:
        """Return what the headers of files say of tiles, for `Slide`.

        Each is read from its file once: then memory and the index hold it, with the state of the file, and
        whoever asks again, in this process or another, reads nothing of the file.

        Parameters
        ----------
        paths : str or iterable of str
            The files.

        Returns
        -------
        list of SlideHeader
            In the order of `paths`.

        Raises
        ------
        BackendError, FormatError, NotFoundError, SourceError
            See `frame`.
        """
        # Each question has its own time: headers may take longer.
        found = self._slides.read(list(as_several(paths)))
        self.wake()
        return found

    def path_of(self, name: str) -> str:
        """Return the path under which a file is indexed.

        Parameters
        ----------
        name : str
            SOP Instance UID, resolved through the index, or a path, made absolute.

        Raises
        ------
        NotFoundError
            The index does not hold the UID, or there is no index.
        """
        return self._of_file(name, str)

    def _of_file(self, name: str, answer: Callable[[str], T]) -> T:
        if not _UID.match(name):
            return answer(absolute(name))
        holds = self._frames.holds
        with self._budget:
            return self._frames.of_instance(name, lambda path: answer(path) if holds(path, name) else None)

    async def aframe(self, name: str, index: int, *, scan: bool = False, align: bool = False) -> bytes:
        """Read one frame on a thread: the event loop never waits for a disk or a database.

        Parameters
        ----------
        name : str
            Path or SOP Instance UID.
        index : int
            Frame, counted from 0.
        scan, align : bool
            See `frame`.

        Returns
        -------
        bytes
            See `frame`.
        """
        return (await self.aframes(name, [index], scan=scan, align=align))[0]

    async def aframes(
        self, name: str, indices: Sequence[int], *, scan: bool = False, align: bool = False
    ) -> list[bytes]:
        """Read frames: at once what memory and the page cache hold, all else on a thread.

        A frame that is at hand waits for no thread. Cancelling one task does not stop the load for others.

        Parameters
        ----------
        name : str
            Path or SOP Instance UID.
        indices : sequence of int
            Frames, counted from 0, in any order.
        scan, align : bool
            See `frame`.

        Returns
        -------
        list of bytes
            See `frames`.
        """
        path = self._path_in_memory(name)
        if path is not None:
            uid = name if _UID.match(name) else None
            read = self._frames.read_at_once(path, uid, indices, scan=scan, align=align)
            if read is not None:
                self.wake()
                return read
        pool = "hot" if path is not None else "waiting" if self._must_wait(name) else "cold"
        threads, loop = self._pools.get(pool), asyncio.get_running_loop()
        return await loop.run_in_executor(threads, lambda: self.frames(name, indices, scan=scan, align=align))

    def _must_wait(self, name: str) -> bool:
        """Return whether a request waits for the first connection: it has threads of its own, too."""
        return self.index is not None and _UID.match(name) is not None and self.index.is_starting

    def _path_in_memory(self, name: str) -> str | None:
        """Return the path of a file whose table memory holds: its requests have threads of their own."""
        if not _UID.match(name):
            path: str | None = absolute(name)
        else:
            path = self._uids.last(name)
        if path is None or not is_text(path) or is_address(path):
            return None
        return path if path in self.cache else None

    def wake(self) -> None:
        """Start the threads that write accesses and status: others read by the reader's memory."""
        self._write_back.wake()
        self._status.wake()

    def s3_config(self) -> S3Config:
        """Return how ``s3://`` is reached: as the block that asks says, or that made the reader."""
        return self._files.s3_config()

    def keep_row(self, source: str, row: bytes) -> None:
        """Have the row of a table that others computed written to the index."""
        self._write_back.add_row(source, row)

    def flush(self) -> int:
        """Write accesses and computed tables to the index; return the number of files accessed."""
        return self._write_back.flush()

    def stats(self) -> dict[str, Any]:
        """Return counters: requests by tier, memory, preload, writes to the index, state of the database."""
        return {
            **self._counters.read(),
            "degraded": self.index is not None and self.index.is_open,
            "open_files": len(self._files),
            **self._write_back.stats(),
            "cache": self.cache.stats(),
            "preload": self.preload.progress(),
            "slides": self._slides.stats(),
        }

    def close(self) -> None:
        """Stop the threads, write accesses and tables to the index, close the files, but not the store."""
        self._status.close()
        self.preload.cancel(_PRELOAD_ENDS_WITHIN)
        self._write_back.close()
        self._files.close()
        if self.index is not None:
            self.index.close()
        self._pools.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_child(self) -> None:
        self._pools.after_fork()
        self._counters.after_fork()
        self._files.after_fork()
        self._uids.after_fork()
        self._slides.after_fork()
        self._write_back.after_fork()
        self._status.after_fork()
        self.preload.after_fork()
