"""The logs and the status file of `generate`, in the predecessor's places."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from voxtier.system.durable import write_text
from voxtier.system.text import on_one_line
from voxtier.tensors.making.resources import available_memory, resident_bytes

if TYPE_CHECKING:
    from voxtier.tensors.making.plan import Plan
    from voxtier.tensors.making.worker_pool import Crew

__all__ = ["RunLog", "open_log"]


class _OneLine(logging.Formatter):
    """A line a record, whatever the names in it hold."""

    def format(self, record: logging.LogRecord) -> str:
        return on_one_line(super().format(record))


def open_log(logger: logging.Logger, path: Path, level: int = logging.INFO) -> logging.Handler:
    """Append what a logger says to a file.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setLevel(level)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    return handler


class RunLog:
    """Log files and the atomic ``generate_cache_status.json``; without a log folder the run goes on.

    Parameters
    ----------
    folder : Path
        ``paths.logs_dir``.
    plan : Plan
        The work.
    batch_size : int
        Items that the status file counts as one batch.
    """

    def __init__(self, folder: Path, plan: Plan, batch_size: int) -> None:
        self._folder = folder
        self._batch_size = batch_size
        self._batches = -(-len(plan.names) // batch_size) if plan.names else 0
        self._written = 0.0
        self._handlers: list[tuple[logging.Logger, logging.Handler]] = []
        self._fatal: IO[str] | None = None
        self._usable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self._usable = False
            logging.getLogger("voxtier.tensors").warning("no logs: %s", error)
        self._state("started", "plan", 0, 0, 0, [])

    def _open(self) -> None:
        everything = logging.getLogger("voxtier.tensors")
        everything.setLevel(logging.INFO)
        for logger, name, level in (
            (everything, "generate_cache.log", logging.INFO),
            (everything, "generate_cache_errors.log", logging.ERROR),
            (
                logging.getLogger("voxtier.tensors.missing"),
                "generate_cache_missing_files.log",
                logging.WARNING,
            ),
        ):
            self._handlers.append((logger, open_log(logger, self._folder / name, level)))
        if not faulthandler.is_enabled():
            self._fatal = (self._folder / "generate_cache_fatal.log").open("a", encoding="utf-8")
            faulthandler.enable(self._fatal)

    def show(self, status: str, made: int, failed: int, crew: Crew) -> None:
        """Update the status file, at most once a second."""
        if time.monotonic() - self._written >= 1.0:
            self._state(status, "generate", made, failed, crew.size, crew.pids())

    def _state(self, status: str, stage: str, made: int, failed: int, workers: int, pids: list[int]) -> None:
        self._written = time.monotonic()
        if not self._usable:
            return
        row = {
            "timestamp_utc": datetime.now(UTC).isoformat(),
            "status": status,
            "stage": stage,
            "batch": (made + failed) // self._batch_size,
            "num_batches": self._batches,
            "cached_in_batch": made % self._batch_size if status == "running" else made,
            "download_failed_in_batch": failed,
            "workers_used_for_cache": workers,
            "process_rss_mb": round((resident_bytes() + sum(map(resident_bytes, pids))) / 1e6, 1),
            "system_available_mb": round(available_memory() / 1e6, 1),
        }
        with contextlib.suppress(OSError):
            write_text(self._folder / "generate_cache_status.json", json.dumps(row, indent=2))

    def finish(self, status: str, made: int, failed: int, workers: int) -> None:
        """Write the last status and close the logs."""
        self._state(status, "done", made, failed, workers, [])
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        if self._fatal is not None:
            faulthandler.disable()
            self._fatal.close()
