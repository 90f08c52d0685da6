"""The preload: after a start, the best tables of the index into memory, in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.memory.ranking import preload_rows
from voxtier.frames.store.store import FrameStore

__all__ = ["Preload"]


class Preload:
    """Fills a cache by score; at most one run at a time, cancelable, its failure harms nobody.

    Rows arrive best first and enter at the *old* end of the list, so that the best ends as the newest of
    them and anything that was read meanwhile stays newer still. It evicts nothing, skips what does not fit,
    and is no access.
    """

    def __init__(self, cache: FrameCache, store: FrameStore | None, source: str) -> None:
        self.cache, self.store, self.source = cache, store, source
        self._progress: dict[str, Any] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """In a child: no thread runs."""
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        if self._progress.get("state") in (None, "running"):
            self._progress = {
                "state": "idle", "seen": 0, "loaded": 0, "skipped": 0, "damaged": 0, "total": 0, "error": None
            }  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether there is nothing to wait for: done, cancelled or failed. Never blocks."""
        return self._progress["state"] not in ("idle", "running")

    def progress(self) -> dict[str, Any]:
        """Return the state (idle, running, done, cancelled, failed) and the counts of files so far."""
        return dict(self._progress)

    def start(
        self, *, limit: int = 1_000_000, fraction: float = 0.8, on_done: Callable[[], None] | None = None
    ) -> None:
        """Run in the background.

        Parameters
        ----------
        limit : int
            Files at most.
        fraction : float
            Share of the budget to fill.
        on_done : callable, optional
            Called at the end, on the thread, whatever came of it.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction = {fraction}: must be in (0, 1]")
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._cancel.clear()
            self._progress = {
                "state": "running", "seen": 0, "loaded": 0, "skipped": 0, "damaged": 0, "total": limit,
                "error": None,
            }  # fmt: skip
            self._thread = threading.Thread(
                target=self._run, args=(limit, fraction, on_done), name="voxtier-preload", daemon=True
            )
            self._thread.start()

    def cancel(self) -> None:
        """Stop a run, soon; what was loaded stays."""
        self._cancel.set()
        self.wait()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of a run; True when there is none."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, limit: int, fraction: float, on_done: Callable[[], None] | None) -> None:
        state = "done"
        try:
            if self.store is not None:
                room = int(self.cache.counters()["budget"] * fraction)
                rows = preload_rows(self.store, self.source, limit)
                for batch in rows:
                    loaded, skipped, damaged = self.cache.preload_copy(batch, room)
                    self._progress["seen"] += loaded + skipped + damaged
                    self._progress["loaded"] += loaded
                    self._progress["skipped"] += skipped
                    self._progress["damaged"] += damaged
                    if self._cancel.is_set():
                        state = "cancelled"
                        rows.close()
                        break
                    if loaded == 0 and self._is_full(room):
                        rows.close()
                        break
        except Exception as error:  # nobody waits for this thread: whatever it was, `progress` tells
            state = "failed"
            self._progress["error"] = str(error) or type(error).__name__
        finally:
            self._progress["state"] = state
            if on_done is not None:
                on_done()

    def _is_full(self, room: int) -> bool:
        """Not even a table of one frame would fit: the rest of the stream cannot help."""
        return bool(self.cache.counters()["used"] + 96 > room)
