"""The preload: loads the best tables of the index into memory after a start, in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.memory.ranking import preload_rows
from voxtier.frames.store.store import FrameStore
from voxtier.system.workers import start_thread


class Preload:
    """Fills a cache by score, one run at a time; a run can be cancelled, and its failure only ends it.

    Rows arrive best first and enter at the *old* end of the list: the best is the newest of them, and entries
    that were read meanwhile are newer still. Never evicts, skips tables that do not fit, does not count as an
    access.

    Parameters
    ----------
    cache : FrameCache
        Where the tables go.
    store : FrameStore or None
        The index; None: a run is done at once.
    *sources : str
        Names of the sources whose files are loaded, one source after another.
    """

    def __init__(self, cache: FrameCache, store: FrameStore | None, *sources: str) -> None:
        self.cache, self.store, self.sources = cache, store, sources
        self._progress: dict[str, Any] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """Reset in a child process, where no thread runs."""
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        if self._progress.get("state") in (None, "running"):
            self._progress = _progress("idle", 0)

    @property
    def ready(self) -> bool:
        """Whether the run has ended: done, cancelled or failed. Never blocks."""
        return self._progress["state"] not in ("idle", "running")

    def progress(self) -> dict[str, Any]:
        """Return the state (idle, running, done, cancelled, failed) and the counts of files so far."""
        return dict(self._progress)

    def start(
        self, *, limit: int = 1_000_000, fraction: float = 0.8, on_done: Callable[[], None] | None = None
    ) -> None:
        """Begin a run in the background, unless one is under way.

        Parameters
        ----------
        limit : int
            Files at most.
        fraction : float
            Share of the cache's budget to fill, in (0, 1].
        on_done : callable, optional
            Called on the thread at the end of the run, also of one that was cancelled or failed.

        Raises
        ------
        ValueError
            `fraction` is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction}: must be in (0, 1]")
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._cancel.clear()
            self._progress = _progress("running", limit)
            try:
                self._thread = start_thread(partial(self._run, limit, fraction, on_done), "voxtier-preload")
            except BaseException:
                self._progress = _progress("idle", 0)
                raise

    def cancel(self, seconds: float | None = None) -> None:
        """Stop a run and wait (at most `seconds`) for its end; tables that it loaded stay."""
        self._cancel.set()
        self.wait(seconds)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait at most `seconds` for the end of a run; return whether no run is under way."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, limit: int, fraction: float, on_done: Callable[[], None] | None) -> None:
        state = "done"
        try:
            room = int(self.cache.counters()["budget"] * fraction)
            for source in self.sources if self.store is not None else ():
                if limit > self._progress["seen"] and not self._cancel.is_set():
                    self._load(source, limit - self._progress["seen"], room)
            if self._cancel.is_set():
                state = "cancelled"
        except Exception as error:  # `progress` tells: an exception would end in the thread
            state = "failed"
            self._progress["error"] = str(error) or type(error).__name__
        finally:
            self._progress["state"] = state
            if on_done is not None:
                on_done()

    def _load(self, source: str, limit: int, room: int) -> None:
        assert self.store is not None
        rows = preload_rows(self.store, source, limit)
        for batch in rows:
            loaded, skipped, damaged = self.cache.preload_rows(batch, room)
            self._progress["seen"] += loaded + skipped + damaged
            self._progress["loaded"] += loaded
            self._progress["skipped"] += skipped
            self._progress["damaged"] += damaged
            if self._cancel.is_set() or (loaded == 0 and self._is_full(room)):
                rows.close()
                return

    def _is_full(self, room: int) -> bool:
        """Return whether not even a table of one frame fits."""
        return bool(self.cache.counters()["used"] + 96 > room)


def _progress(state: str, total: int) -> dict[str, Any]:
    counts = dict.fromkeys(("seen", "loaded", "skipped", "damaged"), 0)
    return {"state": state, **counts, "total": total, "error": None}
