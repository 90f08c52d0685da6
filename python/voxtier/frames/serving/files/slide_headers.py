"""What headers of slides say of tiles: from memory, else from the index, else from the files themselves."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from voxtier._core import SlideHeader
from voxtier.errors import BackendError, ConfigError, FormatError, SourceError
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.serving.counters import Counters
from voxtier.frames.serving.files.open_files import OpenFile, OpenFiles
from voxtier.frames.serving.files.remote_file import RemoteFile
from voxtier.frames.serving.index.index_client import IndexClient
from voxtier.frames.sources.listing import ListedObject
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.stores import ObjectState, differ
from voxtier.frames.store.store import FrameStore

# Headers in memory, in the form of the index: some thousand instances.
_MEMORY_BYTES = 4 << 20
_ATTEMPTS = 3


class SlideHeaders:
    """Finds headers of slides for a reader; a header of another state of its file is never returned.

    Parameters
    ----------
    files : OpenFiles
        Those of the reader.
    index : IndexClient or None
        The index; None: memory and files alone.
    source : str
        Name of the source that the files belong to.
    keep : callable
        Takes the path of a file and what is to be stored of its header.
    on_replaced : callable
        Called with the path of an object that has another state than memory knows.
    """

    def __init__(
        self,
        files: OpenFiles,
        index: IndexClient | None,
        source: str,
        *,
        keep: Callable[[str, bytes], object],
        on_replaced: Callable[[str], object],
    ) -> None:
        self._files, self._index, self._source = files, index, source
        self._keep, self._on_replaced = keep, on_replaced
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._counters = Counters("memory", "index", "file")
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """Reset in a child process: what is in memory stays."""
        self._counters.after_fork()
        self._lock = threading.Lock()

    def stats(self) -> dict[str, int]:
        """Return how many headers came from memory, from the index, and from the files."""
        return self._counters.read()

    def read(self, paths: Sequence[str]) -> list[SlideHeader]:
        """Return the headers of files, with one question to the index for all that memory does not hold.

        A reader of groups needs an index that answers and shows them each file: `FrameReader.slide_headers`.
        """
        names = [absolute(path) for path in paths]
        with self._lock:
            known = {name: self._memory[name] for name in names if name in self._memory}
        stored = self._recall([name for name in names if name not in known])
        return [self._current(name, known.get(name), stored.get(name)) for name in names]

    def _recall(self, names: list[str]) -> Mapping[str, bytes]:
        if self._index is None or not names or self._index.is_open:
            return {}

        def question(store: FrameStore) -> Mapping[str, bytes]:
            try:
                return store.slide_maps(self._source, names)
            except ConfigError:  # its rights are of an older version: no reason to leave the index alone
                return {}

        try:
            return self._index.ask(question)
        except BackendError:
            return {}

    def _current(self, name: str, known: bytes | None, stored: bytes | None) -> SlideHeader:
        header = None
        if (kept := known or stored) is not None:
            try:
                header = SlideHeader.from_bytes(kept)
            except FormatError:  # damaged, or of another version: the file says it again
                self._forget(name)
        for left in reversed(range(_ATTEMPTS)):
            file = self._files.take(name)
            try:
                if header is not None and _is_of(header, file, name):
                    self._counters.add("memory" if known else "index")
                    self._remember(name, kept or b"")
                    return header
                if header is None or isinstance(file, OpenFile):
                    return self._read(name, file)
            except SourceError as error:
                if error.kind != "changed_during_read" or not left:
                    raise
            finally:
                self._files.give_back(file)
            # An object that was replaced: what is known of the old one must not be expected of it.
            header = None
            self._files.forget(name)
            self._on_replaced(name)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self, name: str, file: OpenFile | RemoteFile) -> SlideHeader:
        header = SlideHeader.read(file.source)
        self._counters.add("file")
        kept = header.to_bytes() if 0 not in (*header.total, *header.tile) else None
        if kept is not None:
            self._remember(name, kept)
            self._keep(name, kept)
        return header

    def _remember(self, name: str, kept: bytes) -> None:
        with self._lock:
            self._bytes += len(kept) - len(self._memory.pop(name, b""))
            self._memory[name] = kept
            while self._bytes > _MEMORY_BYTES:
                self._bytes -= len(self._memory.popitem(last=False)[1])

    def _forget(self, name: str) -> None:
        with self._lock:
            self._bytes -= len(self._memory.pop(name, b""))


def _is_of(header: SlideHeader, file: OpenFile | RemoteFile, name: str | os.PathLike[str]) -> bool:
    """Return whether a header is of the present state of a file, without reading the file.

    An object is asked for its state, unless the name is out of a listing a moment ago.
    """
    source = file.source
    if isinstance(source, RemoteObject):
        state = ObjectState(*header.state)
        if isinstance(name, ListedObject):
            if differ(name.state, state):
                return False
            source.expect(state)
        else:
            source.expect(state)
            if not source.is_current():
                return False
    return header.describes(source)
