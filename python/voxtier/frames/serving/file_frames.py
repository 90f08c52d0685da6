"""Reads frames of a file in the state of its table, or not at all; `FrameReader` asks it for each request."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

from voxtier._core import FrameTable, read_frames
from voxtier.errors import BackendError, FormatError, NotFoundError, SourceError
from voxtier.frames.dicom.table import Fingerprint, Verify, read_table
from voxtier.frames.memory.cache import Class, FrameCache, LoadResult, Tier
from voxtier.frames.serving.counters import Counters
from voxtier.frames.serving.files.open_files import GONE, OpenFile, OpenFiles
from voxtier.frames.serving.files.remote_file import RemoteFile
from voxtier.frames.serving.index.uid_paths import UidPaths
from voxtier.frames.serving.table_loader import Source, TableLoader
from voxtier.frames.sources.address import is_text
from voxtier.frames.sources.objects import RemoteObject

T = TypeVar("T")

_ATTEMPTS = 4
# Copies of an instance that are tried though those before them fail: a silent store takes long for each.
_MOST_FAILURES = 8


class FileFrames:
    """Frames of files: from memory's table, or from the one that is loaded; again when the file changed.

    Parameters
    ----------
    cache : FrameCache
        Memory's tables.
    files : OpenFiles
        The files.
    uids : UidPaths
        The paths of SOP Instances.
    tables : TableLoader
        Loads the tables that memory does not hold.
    counters : Counters
        Those of the reader.
    source : str
        Name of the source, for messages.
    verify : {"ends", "all", "none"}
        How far a table is checked that is read again: see `read_table`.
    """

    def __init__(
        self,
        cache: FrameCache,
        files: OpenFiles,
        uids: UidPaths,
        tables: TableLoader,
        counters: Counters,
        source: str,
        verify: Verify,
    ) -> None:
        self._cache, self._files, self._uids, self._tables = cache, files, uids, tables
        self._counters, self._source, self._verify = counters, source, verify

    def of_instance(self, uid: str, answer: Callable[[str], T | None]) -> T:
        """Return the first answer from a file that the index names for a UID; a bad copy hides no good one.

        Parameters
        ----------
        uid : str
            SOP Instance UID.
        answer : callable
            Takes a path; returns None where the file holds another instance.

        Returns
        -------
        object
            What `answer` returned.

        Raises
        ------
        BackendError
            The index does not answer.
        NotFoundError
            No file that the index names holds the instance.
        FormatError, OSError
            Why the first copy that is there is refused, or cannot be read.
        """
        failures: dict[str, FormatError | OSError] = {}
        hidden = others = 0
        try:
            for path in self._uids.candidates(uid):
                if path in failures:  # the one that was tried last comes first, and again in its place
                    failures[path] = failures.pop(path)
                    continue
                try:
                    found = answer(path)
                except NotFoundError:  # not for these groups; for others it may be the right file
                    hidden += 1
                    continue
                except BackendError:
                    raise
                except (FormatError, OSError) as error:
                    if getattr(error, "errno", None) not in GONE:
                        failures[path] = error
                        if len(failures) == _MOST_FAILURES:
                            break
                        continue
                    found = None
                if found is not None:
                    return found
                others += 1
                self._uids.forget(uid, path)
                self._cache.invalidate(path)
                self._files.forget(path)
        except BackendError:  # whether there is another copy
            if not failures:
                raise
        for failure in failures.values():
            raise failure
        if hidden and not others:  # in the words for one that the index does not hold
            raise self._uids.missing(uid)
        raise NotFoundError(
            f"{uid}: no file that source {self._source!r} of the index names holds this SOP Instance now: "
            "run `voxtier index` again"
        )

    def holds(self, path: str, uid: str) -> bool:
        """Return whether the file at a path holds a SOP Instance now."""
        file = self._files.take(path)
        try:
            return file.instance() == uid
        finally:
            self._files.give_back(file)

    def read(
        self,
        path: str,
        uid: str | None,
        wanted: list[int],
        klass: Class,
        *,
        align: bool,
        agrees: Callable[[Fingerprint], bool] | None = None,
    ) -> list[bytes] | None:
        """Read frames; neighbours in the file take one read.

        Parameters
        ----------
        path : str
            The file, as the index names it.
        uid : str or None
            SOP Instance that the file must hold.
        wanted : list of int
            Frames, counted from 0.
        klass : {"normal", "scan", "pinned"}
            See `FrameCache.put_table`.
        align : bool
            See `FrameReader.frame`.
        agrees : callable or None
            See `FrameReader.frame_in_state`.

        Returns
        -------
        list of bytes or None
            One item per frame; None when the file holds another instance, or is in another state.

        Raises
        ------
        IndexError, NotFoundError, FormatError, SourceError
            See `FrameReader.frame`.
        """
        if not is_text(path):
            return self._read_apart(path, uid, wanted, align=align, agrees=agrees)
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
                read = self._read_open(path, file.source, wanted, klass, rebuilt, align=align)
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
                    depth = depth or self._verify
            except FormatError as error:
                # The table describes other bytes than the file holds, or the file's own offset table is wrong
                # somewhere in the middle: only a walk tells.
                if error.kind != "bad_table" or not left:
                    raise
                depth = "all"
            finally:
                self._files.give_back(file)
            self._counters.add("stale_misses")
            self._cache.invalidate(path)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read_apart(
        self,
        path: str,
        uid: str | None,
        wanted: list[int],
        *,
        align: bool,
        agrees: Callable[[Fingerprint], bool] | None,
    ) -> list[bytes] | None:
        """Read frames of a file whose name is no text, so that neither memory nor the index has its table."""
        file = self._files.take(path)
        try:
            if uid is not None and file.instance() != uid:
                return None
            read = read_frames(file.source, read_table(file.source, verify=self._verify), wanted, align=align)
            self._counters.add("requests", "tier3")
            return read if agrees is None or agrees(file.state()) else None
        finally:
            self._files.give_back(file)

    def _read_open(
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
        read = self._cache.read(path, source, wanted, scan=scan, align=align)
        if read is None:
            loaded = loaded or self._tables.load(path, source, klass)
            tier = loaded.tier
            read = self._cache.read(path, source, wanted, scan=scan, align=align)
            if read is None:  # memory has no room for the table
                self._counters.add("uncached")
                read = read_frames(source, loaded.table, wanted, align=align)
        self._counters.add("requests", tier)
        return read

    def read_at_once(
        self, path: str, uid: str | None, indices: Sequence[int], *, scan: bool, align: bool
    ) -> list[bytes] | None:
        """Read frames if nothing has to be waited for: no index, no disk, no store.

        Parameters
        ----------
        path : str
            The file.
        uid : str or None
            SOP Instance that the file must be known to hold.
        indices : sequence of int
            Frames, counted from 0.
        scan, align : bool
            See `FrameReader.frame`.

        Returns
        -------
        list of bytes or None
            One item per frame; None where `read` must do it, or raise.
        """
        file = self._files.take_open(path)
        if not isinstance(file, OpenFile):
            return None
        try:
            read = self._cache.read_resident(path, file.source, indices, scan=scan, align=align)
            if read is None or (uid is not None and not file.is_known_as(uid)):
                return None
        except (FormatError, SourceError, OverflowError):
            return None
        finally:
            self._files.give_back(file)
        self._counters.add("requests", "tier1")
        return read

    def table(self, path: str) -> FrameTable:
        """Return the frame table of a file, from the nearest tier."""
        file = self._files.take(path)
        try:
            if isinstance(file, RemoteFile) and not file.source.is_current():
                self._files.forget(path)
                self._cache.invalidate(path)
                return self._tables.rebuild(
                    path, RemoteObject(path, file.source.config), "normal", self._verify
                ).table
            if not is_text(path):
                return read_table(file.source, verify=self._verify)
            table = self._cache.table(path)
            if table is not None and table.describes(file.source):
                return table
            return self._tables.load(path, file.source, "normal").table
        finally:
            self._files.give_back(file)
