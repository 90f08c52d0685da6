"""The log files and the status file of `generate`, where the predecessor's scripts wrote them."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from voxtier.system.durable import write_text
from voxtier.system.machine import available_memory
from voxtier.system.text import on_one_line
from voxtier.tensors.making.resources import resident_bytes

if TYPE_CHECKING:
    from voxtier.tensors.making.ledger import RunResult
    from voxtier.tensors.making.plan import Plan
    from voxtier.tensors.making.worker_pool import WorkerPool


class _OneLine(logging.Formatter):
    """Writes each record on one line, whatever the names in it hold."""

    def format(self, record: logging.LogRecord) -> str:
        return on_one_line(super().format(record))


def open_log(logger: logging.Logger, path: Path, level: int = logging.INFO) -> logging.Handler:
    """Append the records of a logger to a file.

    Parameters
    ----------
    logger : logging.Logger
        The logger, whose children's records are written too.
    path : Path
        The file, in a folder that exists.
    level : int
        The lowest level that is written.

    Returns
    -------
    logging.Handler
        For `logging.Logger.removeHandler`.

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
    """The log files and ``generate_cache_status.json``, which is replaced atomically.

    A log folder that cannot be written is a warning: the run goes on.

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
        self._write_status("started", "plan")

    def _open(self) -> None:
        room = logging.getLogger("voxtier.tensors")
        room.setLevel(logging.INFO)
        missing = logging.getLogger("voxtier.tensors.missing")
        for logger, name, level in (
            (room, "generate_cache.log", logging.INFO),
            (room, "generate_cache_errors.log", logging.ERROR),
            (missing, "generate_cache_missing_files.log", logging.WARNING),
        ):
            self._handlers.append((logger, open_log(logger, self._folder / name, level)))
        if not faulthandler.is_enabled():
            self._fatal = (self._folder / "generate_cache_fatal.log").open("a", encoding="utf-8")
            faulthandler.enable(self._fatal)

    def show(self, result: RunResult, pool: WorkerPool) -> None:
        """Update the status file, at most once a second."""
        if time.monotonic() - self._written >= 1.0:
            self._write_status("running", "generate", result, workers=pool.size, pids=pool.pids())

    def finish(self, status: str, result: RunResult) -> None:
        """Write the last status, ``completed`` or ``failed``, and close the logs."""
        self._write_status(status, "done", result, workers=result.workers)
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        if self._fatal is not None:
            faulthandler.disable()
            self._fatal.close()

    def _write_status(
        self,
        status: str,
        stage: str,
        result: RunResult | None = None,
        *,
        workers: int = 0,
        pids: Iterable[int] = (),
    ) -> None:
        self._written = time.monotonic()
        if not self._usable:
            return
        made, failed = (result.made, len(result.failed)) if result else (0, 0)
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
