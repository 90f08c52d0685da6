"""The tables in memory over a restart: saved at the stop and every few minutes, read before the start."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from voxtier._core import restore_hot_set, save_hot_set
from voxtier.errors import FormatError
from voxtier.frames.memory.cache import FrameCache
from voxtier.system.durable import remove_leftovers, temporary_path
from voxtier.system.workers import start_thread

_log = logging.getLogger(__name__)
_SECONDS = 300.0


class HotSet:
    """Keeps a cache in a file.

    Parameters
    ----------
    cache : FrameCache
        Memory.
    path : path or None
        The file; None: nothing is kept.
    """

    def __init__(self, cache: FrameCache, path: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._path = None if path is None else Path(path).absolute()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def restore(self) -> int:
        """Read the file; return the number of tables that came into memory, 0 where there is no good file."""
        try:
            if self._path is None or not self._path.exists():
                return 0
            return restore_hot_set(self._cache, self._path)
        except (FormatError, OSError) as error:
            _log.warning("the saved hot set is passed over: %s", error)
            return 0

    def start(self) -> None:
        """Save every few minutes, on a thread."""
        if self._path is not None:
            remove_leftovers(self._path)
            self._thread = start_thread(self._run, "voxtier-hot-set")

    def stop(self) -> None:
        """End the thread and save once more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._save()

    def _run(self) -> None:
        while not self._stopping.wait(_SECONDS):
            self._save()

    def _save(self) -> None:
        assert self._path is not None
        aside = temporary_path(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_hot_set(self._cache, aside)
            aside.replace(self._path)
        except OSError as error:
            _log.warning("the hot set could not be saved: %s", error)
            with suppress(OSError):
                aside.unlink()
