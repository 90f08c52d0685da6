"""Serves frames: a path or a SOP Instance UID and frame numbers in, the frames' bytes out, by three tiers.

Memory, then PostgreSQL, then the file; what a lower tier finds is kept in the upper ones. A frame is read
from a file or an object in the state of its table, behind the header that the table names, or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

from voxtier._core import FrameTable, SlideHeader, read_frames
from voxtier.errors import ConfigError, FormatError, NotFoundError, SourceError
from voxtier.frames.dicom.table import Fingerprint, Verify
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.memory.cache import Class, FrameCache, LoadResult, Tier
from voxtier.frames.memory.preload import Preload
from voxtier.frames.serving.counters import Counters
from voxtier.frames.serving.files.group_files import GroupFiles
from voxtier.frames.serving.files.open_files import OpenFile, OpenFiles
from voxtier.frames.serving.files.remote_file import RemoteFile
from voxtier.frames.serving.files.slide_headers import SlideHeaders
from voxtier.frames.serving.index_client import IndexClient
from voxtier.frames.serving.pools import ThreadPools
from voxtier.frames.serving.status_files import StatusWriter, readers_folder
from voxtier.frames.serving.table_loader import Source, TableLoader
from voxtier.frames.serving.uid_paths import UidPaths
from voxtier.frames.serving.write_back import WriteBack
from voxtier.frames.sources.address import is_address
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.store import FrameStore
from voxtier.system.fork import after_fork_in_child

T = TypeVar("T")

_UID = re.compile(r"[0-9.]{1,64}\Z")
_ATTEMPTS = 4


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
        Longest wait of a request for the index, connection and statement together.
    publish : bool
        Write what `stats` returns to a small file in voxtier's folder every two seconds, for
        ``voxtier frames top`` and ``voxtier frames stats``.
    user_groups : iterable of str or None
        Groups of the user for whom files are read: only what the index shows to one of them is served, from
        any tier, and every request asks. None: whatever the source holds.
    other_sources : sequence of str
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
        other_sources: Sequence[str] = (),
    ) -> None:
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
        self.preload = Preload(self.cache, store, source, *other_sources)
        self._files.on_replaced = self.cache.invalidate
        self._files.known_state = self.cache.state
        self._write_back = WriteBack(self.cache, store, [source, *other_sources], flush_seconds)
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
        self._status = StatusWriter(readers_folder() if publish else None, source, self.stats)
        self._uids = UidPaths(self.index, source)
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
        wanted = list(indices)
        if wanted and min(wanted) < 0:
            raise IndexError(f"frame {min(wanted)}: frames count from 0")
        klass: Class = "scan" if scan else "normal"
        if not _UID.match(name):
            path = absolute(name)
            if not self._is_for_groups:  # then a path has one question at most
                return self._frames_of(path, None, wanted, klass, align=align) or []
            with self._budget:
                return self._frames_of(path, None, wanted, klass, align=align) or []
        read = partial(self._frames_of, wanted=wanted, klass=klass, align=align)
        with self._budget:
            return self._of_instance(name, lambda path: read(path, name))

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
        with self._budget:
            read = self._frames_of(absolute(path), None, [index], "normal", align=False, agrees=agrees)
        return None if read is None else read[0]

    def _of_instance(self, uid: str, answer: Callable[[str], T | None]) -> T:
        """Return the first answer from a file that the index names for a UID; None says: another instance."""
        for path in self._uids.candidates(uid):
            try:
                found = answer(path)
            except NotFoundError:  # not for these groups; for others it may be the right file
                continue
            except FileNotFoundError:
                found = None
            if found is not None:
                return found
            self._uids.forget(uid, path)
            self.cache.invalidate(path)
            self._files.forget(path)
        raise NotFoundError(
            f"{uid}: no file that source {self.source!r} of the index names holds this SOP Instance now: "
            "run `voxtier index` again"
        )

    def _frames_of(
        self,
        path: str,
        uid: str | None,
        wanted: list[int],
        klass: Class,
        *,
        align: bool,
        agrees: Callable[[Fingerprint], bool] | None = None,
    ) -> list[bytes] | None:
        """Read frames; None when the file holds another instance than `uid`, or is in another state."""
        depth: Verify | None = None
        for left in reversed(range(_ATTEMPTS)):
            file = self._files.take(path)
            try:
                if uid is not None:
                    file.promise(uid, self._uids.state(uid, path))
                    if file.instance() != uid:
                        return None
                if agrees is not None and isinstance(file, OpenFile) and not agrees(file.state()):
                    return None  # it may lack the frame
                rebuilt = None if depth is None else self._tables.rebuild(path, file.source, klass, depth)
                read = self._read(path, file.source, wanted, klass, rebuilt, align=align)
                return read if agrees is None or agrees(file.state()) else None
            except SourceError as error:
                if uid is not None and error.errno == errno.ENOENT:
                    return None
                if error.kind != "changed_during_read" or not left:
                    raise
                self._files.forget(path)
                is_remote = isinstance(file, RemoteFile)
                if uid is not None and is_remote:
                    self._uids.remember(uid, path)
                if left < _ATTEMPTS - 1 or is_remote:  # by the state that the index knows: it does not help
                    depth = depth or self.verify
            except FormatError as error:
                # The table describes other bytes than the file holds, or the file's own offset table is wrong
                # somewhere in the middle: only a walk tells.
                if error.kind != "bad_table" or not left:
                    raise
                depth = "all"
            finally:
                self._files.give_back(file)
            self._counters.add("stale_misses")
            self.cache.invalidate(path)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(
        self,
        path: str,
        source: Source,
        wanted: list[int],
        klass: Class,
        loaded: LoadResult | None,
        *,
        align: bool,
    ) -> list[bytes]:
        scan = klass == "scan"
        tier: Tier = "tier1"
        read = self.cache.read(path, source, wanted, scan=scan, align=align)
        if read is None:
            loaded = loaded or self._tables.load(path, source, klass)
            tier = loaded.tier
            read = self.cache.read(path, source, wanted, scan=scan, align=align)
            if read is None:  # memory has no room for the table
                self._counters.add("uncached")
                read = read_frames(source, loaded.table, wanted, align=align)
        self._finish(tier)
        return read

    def _finish(self, tier: Tier) -> None:
        self.wake()
        self._counters.add("requests", tier)

    def table(self, name: str) -> FrameTable:
        """Return the frame table of a file, from the nearest tier."""
        path = self.path_of(name)
        file = self._files.take(path)
        try:
            if isinstance(file, RemoteFile) and not file.source.is_current():
                self._files.forget(path)
                self.cache.invalidate(path)
                return self._tables.rebuild(path, RemoteObject(path), "normal", self.verify).table
            table = self.cache.table(path)
            if table is not None and table.describes(file.source):
                return table
            return self._tables.load(path, file.source, "normal").table
        finally:
            self._files.give_back(file)

    def slide_headers(self, paths: Sequence[str]) -> list[SlideHeader]:
        """Return what the headers of files say of tiles, for `Slide`.

        Each is read from its file once: then memory and the index hold it, with the state of the file, and
        whoever asks again, in this process or another, reads nothing of the file.

        Parameters
        ----------
        paths : sequence of str
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
        found = self._slides.read(paths)  # each question has its own time: headers may take longer
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
        if not _UID.match(name):
            return absolute(name)
        with self._budget:
            return self._of_instance(name, lambda path: self._if_holds(path, name))

    def _if_holds(self, path: str, uid: str) -> str | None:
        file = self._files.take(path)
        try:
            return path if file.instance() == uid else None
        finally:
            self._files.give_back(file)

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
            read = self._read_at_once(path, name, indices, scan=scan, align=align)
            if read is not None:
                return read
        threads = self._pools.get("cold" if path is None else "hot")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, lambda: self.frames(name, indices, scan=scan, align=align))

    def _path_in_memory(self, name: str) -> str | None:
        """Return the path of a file whose table memory holds: its requests have threads of their own."""
        if not _UID.match(name):
            path: str | None = absolute(name)
        else:
            path = self._uids.last(name)
        return path if path is not None and path in self.cache and not is_address(path) else None

    def _read_at_once(
        self, path: str, name: str, indices: Sequence[int], *, scan: bool, align: bool
    ) -> list[bytes] | None:
        """Read frames if nothing has to be waited for; None where `frames` must do it or raise."""
        file = self._files.take_open(path)
        if not isinstance(file, OpenFile):
            return None
        try:
            read = self.cache.read_resident(path, file.source, indices, scan=scan, align=align)
            if read is None or (_UID.match(name) and not file.is_known_as(name)):
                return None
        except (FormatError, SourceError, OverflowError):
            return None
        finally:
            self._files.give_back(file)
        self._finish("tier1")
        return read

    def wake(self) -> None:
        """Start the threads that write accesses and status: others read by the reader's memory."""
        self._write_back.wake()
        self._status.wake()

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
        self.preload.cancel()
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
