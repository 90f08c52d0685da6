"""Loads the table of a file that memory does not hold: from the index, else from the file itself."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

from voxtier._core import FrameTable
from voxtier.errors import BackendError, FormatError
from voxtier.frames.dicom.table import TableResult, Verify, read_table, state_of
from voxtier.frames.memory.cache import Class, FrameCache, LoadResult
from voxtier.frames.serving.counters import Counters
from voxtier.frames.serving.files.open_files import own_name
from voxtier.frames.serving.index.index_client import IndexClient
from voxtier.frames.serving.index.write_back import Linked, WriteBack
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.store.row import IndexAnswer

#: An open file: its descriptor, or the object of a store.
Source: TypeAlias = int | RemoteObject

_MOST_DISTRUSTED = 10_000


class TableLoader:
    """Tiers 2 and 3 of a reader; what they find is kept in memory, what the file says also in the index.

    Parameters
    ----------
    cache : FrameCache
        Keeps the tables, and lets one thread load for all that ask.
    index : IndexClient or None
        The index; None: every table is read from its file.
    write_back : WriteBack
        Takes the tables that were read from files.
    source : str
        Name of the source that the files belong to.
    verify : {"ends", "all", "none"}
        How far a table is checked against its file: see `read_table`.
    counters : Counters
        Those of the reader.
    """

    def __init__(
        self,
        cache: FrameCache,
        index: IndexClient | None,
        write_back: WriteBack,
        source: str,
        verify: Verify,
        counters: Counters,
    ) -> None:
        self._cache, self._index, self._write_back = cache, index, write_back
        self._source, self._verify = source, verify
        self._counters = counters
        self._distrusted: dict[str, None] = {}

    def load(self, path: str, source: Source, klass: Class) -> LoadResult:
        """Load the table of a file by one call for all threads that ask.

        Parameters
        ----------
        path : str
            The file, as the index names it.
        source : int or RemoteObject
            The same file, open.
        klass : {"normal", "scan", "pinned"}
            See `FrameCache.put_table`.

        Returns
        -------
        LoadResult
            The table, and the tier that had it.

        Raises
        ------
        FormatError, SourceError
            The file is refused, or cannot be read.
        """
        return self._cache.load(path, partial(self._find, source, klass), klass=klass)

    def rebuild(self, path: str, source: Source, klass: Class, verify: Verify) -> LoadResult:
        """Read the table from the file now, and from then on: its row in the index describes other bytes.

        Parameters
        ----------
        path : str
            The file, as the index names it.
        source : int or RemoteObject
            The same file, open.
        klass : {"normal", "scan", "pinned"}
            See `FrameCache.put_table`.
        verify : {"ends", "all", "none"}
            See `read_table`.

        Returns
        -------
        LoadResult
            The table.

        Raises
        ------
        FormatError, SourceError
            See `load`.
        """
        self._distrusted[path] = None
        if len(self._distrusted) > _MOST_DISTRUSTED:
            self._distrusted.clear()
        return self._cache.load(path, lambda _: LoadResult(self._compute(path, source, verify)), klass=klass)

    def _find(self, source: Source, klass: Class, path: str) -> LoadResult:
        answer = self._recall(path, with_series=klass != "scan" and self._cache.claim_series(path))
        if answer is not None:
            found, rows = answer
            if isinstance(source, RemoteObject) and isinstance(found, FrameTable):
                source.expect(state_of(found))  # its frames are read in this state or not at all
            is_stale = not found.describes(source)
            # Read already, and then with an entity tag, say, where the row has a time.
            if is_stale or (isinstance(source, RemoteObject) and not source.has(state_of(found))):
                self._counters.add("stale_misses")
            elif isinstance(found, FrameTable):
                return LoadResult(found, "tier2", rows)
            elif isinstance(found.error, FormatError):  # what the surroundings refused may be there again
                raise found.error
        return LoadResult(self._compute(path, source, self._verify))

    def _recall(self, path: str, *, with_series: bool) -> IndexAnswer | None:
        if self._index is None or self._index.is_open or path in self._distrusted:
            return None
        try:
            return self._index.ask(lambda store: store.recall(self._source, path, with_series=with_series))
        except BackendError:
            self._counters.add("store_errors")
            return None

    def _compute(self, path: str, source: Source, verify: Verify) -> FrameTable:
        table = read_table(source, verify=verify)
        result = TableResult(path, table, None)
        is_linked = isinstance(source, int) and own_name(path, source) != path
        self._write_back.add_table(Linked(result) if is_linked else result)
        return table
