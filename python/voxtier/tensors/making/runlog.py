"""What a run of `generate` did, and its log and status files, where the predecessor's scripts wrote them."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from voxtier.system.durable import write_text
from voxtier.system.machine import available_memory
from voxtier.system.text import format_duration, on_one_line
from voxtier.tensors.making.resources import resident_bytes

if TYPE_CHECKING:
    from voxtier.tensors.engine.outcome import Outcome
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


@dataclass(slots=True)
class RunResult:
    """What a run did."""

    made: int = 0
    made_by_others: int = 0
    """Volumes whose tensors other processes have made since the plan."""
    failed: dict[str, str] = field(default_factory=dict)
    """Volume name to reason."""
    unavailable: int = 0
    """Volumes that are neither on disk nor on the hub."""
    raw_files_removed: int = 0
    engines: Counter[str] = field(default_factory=Counter)
    """Number of tensors by who made them: ``fused``, ``stock`` or ``stock(reason)``."""
    engine_difference: str = ""
    """The volume of which core and MONAI made different tensors, with numbers."""
    engine_seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds of ``fused`` and ``stock`` for volumes that both made, of ``all`` that the core made."""
    earlier_seconds: dict[str, float] = field(default_factory=dict)
    """As ``fused`` and ``stock`` of `engine_seconds`, of earlier runs on this machine."""
    workers: int = 0
    """Size of the worker pool at the end."""
    stopped: bool = False
    stop_reason: str = ""
    """Why the run stopped by itself, such as a full disk."""
    hub_down: bool = False

    def count_engine(self, volume: str, outcome: Outcome) -> None:
        """Count who made a tensor: an `Outcome` of the engine."""
        self.engines[outcome.label()] += 1
        seconds = outcome.seconds
        if outcome.difference:
            self.engine_difference = f"{volume}: {outcome.difference}"
        if outcome.engine == "fused":
            names = ("fused", "stock") if outcome.is_checked else ()
            for name, more in [("all", seconds["fused"]), *((name, seconds[name]) for name in names)]:
                self.engine_seconds[name] = self.engine_seconds.get(name, 0.0) + more

    def engine_summary(self) -> str:
        """Return who made how many tensors and why, and what that saved; empty where nothing was made."""
        by_engine = Counter({"fused": self.engines["fused"]})
        reasons = []
        for label, count in sorted(self.engines.items(), key=lambda each: -each[1]):
            if label != "fused":
                by_engine["stock"] += count
                reasons += [label.removeprefix("stock").strip("()")] if label != "stock" else []
        if not self.engines:
            return ""
        text = ", ".join(f"{count} {name}" for name, count in by_engine.items() if count)
        if reasons:
            text += f": {', '.join(reasons)}"
        here = self.engine_seconds
        compared = here if here.get("fused", 0) > 0 else self.earlier_seconds
        if compared.get("fused", 0) > 0 and "all" in here:
            times = compared["stock"] / compared["fused"]
            saved = here["all"] * (times - 1) - here.get("stock", 0.0)
            text += f"; {times:.1f} times the speed of MONAI, {format_duration(max(0.0, saved))} of CPU saved"
        return text

    def exit_code(self) -> int:
        """Return 0 when every tensor is there, 4 when the hub is down, else 3."""
        if self.hub_down:
            return 4
        return 3 if self.failed or self.unavailable or self.stop_reason else 0


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
