"""Worker processes that may die: each has its own pipe, so a death is seen at once and costs one item."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing

__all__ = ["Crew", "Event", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One volume to make."""

    volume: str
    raw: Path
    final: Path


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a task."""

    kind: Literal["done", "failed", "died"]
    task: Task
    facts: dict[str, Any]
    reason: str = ""
    errno: int | None = None


class _Member:
    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.task: Task | None = None
        self.ready = False


class Crew:
    """A set of workers, started from a server that has imported torch and MONAI once.

    Parameters
    ----------
    size : int
        Workers.
    processing : ImageProcessing
        What they build their transforms from.
    """

    start_method = "forkserver"

    def __init__(self, size: int, processing: ImageProcessing) -> None:
        context: Any = multiprocessing.get_context(self.start_method)
        context.set_forkserver_preload(["voxtier.tensors.making.worker"])
        self._context = context
        self._processing = processing
        self._members: list[_Member] = []
        self._bell, self._cord = context.Pipe(duplex=False)
        self._cord_in_hand = threading.Lock()
        self.size = size

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._processing), daemon=True)
        process.start()
        theirs.close()
        self._members.append(_Member(process, ours))

    @property
    def busy(self) -> int:
        """Tasks in work."""
        return sum(member.task is not None for member in self._members)

    def has_room(self) -> bool:
        """Whether `submit` has a worker for another task."""
        return self.busy < self.size

    def submit(self, task: Task) -> None:
        """Give a task to an idle worker, which is started if need be; `has_room` must hold."""
        idle = [member for member in self._members if member.task is None]
        if not idle:
            self._start()
            idle = self._members[-1:]
        member = max(idle, key=lambda candidate: candidate.ready)
        member.task = task
        with contextlib.suppress(OSError):  # a death is seen by `poll`
            member.connection.send((task.raw, task.volume, task.final))

    def wake(self) -> None:
        """Let `poll` return at once; from any thread."""
        with self._cord_in_hand, contextlib.suppress(OSError):  # a closed crew sleeps on
            if not self._bell.poll():
                self._cord.send(None)

    def poll(self, seconds: float) -> Iterable[Event]:
        """Return what happened within that time, or before somebody called `wake`."""
        events = []
        ready = wait([self._bell, *(member.connection for member in self._members)], timeout=seconds)
        if self._bell in ready:
            ready.remove(self._bell)
            self._bell.recv()
        for connection in ready:
            member = next(m for m in self._members if m.connection is connection)
            try:
                kind, payload, number = member.connection.recv()
            except (EOFError, OSError):
                self._bury(member)
                if member.task is not None:
                    events.append(Event("died", member.task, {}, _obituary(member.process)))
                continue
            if kind == "ready":
                member.ready = True
                continue
            task, member.task = member.task, None
            if task is None:
                continue
            if kind == "done":
                events.append(Event("done", task, payload))
            else:
                events.append(Event("failed", task, {}, payload, number))
        return events

    def _bury(self, member: _Member) -> None:
        self._members.remove(member)
        with contextlib.suppress(OSError):
            member.connection.send(None)
        member.connection.close()
        member.process.join(5)

    def halve(self) -> None:
        """Work with half as many from now on, but with one at least; idle surplus is sent home."""
        self.size = max(1, self.size // 2)
        for member in [m for m in self._members if m.task is None]:
            if len(self._members) <= self.size:
                break
            self._bury(member)

    def pids(self) -> list[int]:
        """Return the process ids."""
        return [member.process.pid for member in self._members if member.process.pid is not None]

    def close(self, *, kill: bool = False) -> None:
        """Send everyone home; with ``kill`` at once, else after their current items."""
        with self._cord_in_hand:
            self._cord.close()
            self._bell.close()
        members, self._members = self._members, []
        for member in members:
            if kill:
                member.process.kill()
            else:
                with contextlib.suppress(OSError):
                    member.connection.send(None)
            member.connection.close()
        for member in members:
            member.process.join(None if not kill else 5)


def _serve(connection: Connection, processing: ImageProcessing) -> None:
    from voxtier.tensors.making.worker import serve  # torch and MONAI, which the coordinator does without

    serve(connection, processing)


def _obituary(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        hint = ": out of memory?" if code == -9 else ""
        return f"the worker was killed by signal {-code}{hint}"
    return f"the worker ended with code {code}"
