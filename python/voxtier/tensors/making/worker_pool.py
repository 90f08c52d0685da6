"""A pool of worker processes that may die: each has a pipe of its own, so a death costs one volume.

run.py submits a `Task` to the pool and polls for `Event` objects; worker.py runs in the processes.
`concurrent.futures.ProcessPoolExecutor` is not used: one killed worker breaks the whole pool.
"""

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


@dataclass(frozen=True, slots=True)
class Task:
    """One volume to make."""

    volume: str
    """Its name in the lists."""
    raw: Path
    """Where its raw file lies, or is downloaded to."""
    final: Path
    """Where its tensor file appears."""

    @property
    def key(self) -> str:
        """The name of the tensor file without ``.pt``: the volume's key in manifest and claims."""
        return self.final.stem


@dataclass(frozen=True, slots=True)
class Event:
    """The end of a task in a worker."""

    kind: Literal["done", "failed", "changed", "died"]
    """``changed``: it failed, and its raw file was removed or replaced meanwhile."""
    task: Task
    facts: dict[str, Any]
    """For ``done``: what `make_tensor` returned."""
    reason: str = ""
    errno: int | None = None


class _Worker:
    """One process, its pipe and the task that it has."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.task: Task | None = None
        self.has_imported = False


class WorkerPool:
    """Worker processes, forked from a server process that has imported torch and MONAI once.

    Parameters
    ----------
    size : int
        The most workers. They are started when `submit` needs them.
    processing : ImageProcessing
        The settings that they build their transforms from.
    folder : Path
        The cache folder, which gets ``cache_params.json`` from the first worker.
    accepted : frozenset of str
        Findings that do not keep a tensor from being made.
    is_proved : bool
        Whether an earlier process has proved the engine: workers need no self-test.
    """

    start_method = "forkserver"

    def __init__(
        self,
        size: int,
        processing: ImageProcessing,
        folder: Path,
        accepted: frozenset[str] = frozenset(),
        *,
        is_proved: bool = False,
    ) -> None:
        context: Any = multiprocessing.get_context(self.start_method)
        context.set_forkserver_preload(["voxtier.tensors.making.worker"])
        self._context = context
        self._arguments = processing, folder, accepted
        self._is_proved = is_proved
        self._workers: list[_Worker] = []
        self._wake_pipe, self._wake_end = context.Pipe(duplex=False)
        self._wake_lock = threading.Lock()
        self.size = size

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(theirs, *self._arguments),
            kwargs={"is_proved": self._is_proved},
            daemon=True,
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    @property
    def busy(self) -> int:
        """Number of workers that have a task."""
        return sum(worker.task is not None for worker in self._workers)

    def has_room(self) -> bool:
        """Whether `submit` has a worker for another task."""
        return self.busy < self.size

    def submit(self, task: Task, mode: str = "stock") -> None:
        """Give a task to an idle worker, which is started if need be; `has_room` must hold.

        ``mode`` is ``fused``, ``stock`` or, for both and a comparison, ``check``.
        """
        idle = [worker for worker in self._workers if worker.task is None] or [self._start()]
        worker = max(idle, key=lambda candidate: candidate.has_imported)
        worker.task = task
        with contextlib.suppress(OSError):  # `poll` sees that the worker is dead
            worker.connection.send((task.raw, task.volume, task.final, mode))

    def wake(self) -> None:
        """Make `poll` return at once; may be called from any thread."""
        with self._wake_lock, contextlib.suppress(OSError):  # the pool may be closed
            if not self._wake_pipe.poll():
                self._wake_end.send(None)

    def poll(self, seconds: float) -> Iterable[Event]:
        """Return the tasks that ended, after at most ``seconds``, or as soon as `wake` is called."""
        events = []
        ready = wait([self._wake_pipe, *(worker.connection for worker in self._workers)], timeout=seconds)
        if self._wake_pipe in ready:
            ready.remove(self._wake_pipe)
            self._wake_pipe.recv()
        for connection in ready:
            worker = next(each for each in self._workers if each.connection is connection)
            try:
                kind, payload, number = worker.connection.recv()
            except (EOFError, OSError):
                self._remove(worker)
                if worker.task is not None:
                    events.append(Event("died", worker.task, {}, _exit_reason(worker.process)))
                continue
            if kind == "ready":
                worker.has_imported = True
                continue
            task, worker.task = worker.task, None
            if task is None:
                continue
            if kind == "done":
                events.append(Event("done", task, payload))
            else:
                events.append(Event(kind, task, {}, payload, number))
        return events

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(OSError):
            worker.connection.send(None)
        worker.connection.close()
        worker.process.join(5)

    def shrink(self, size: int) -> None:
        """Use at most ``size`` workers from now on; idle surplus ends now, busy surplus is not replaced."""
        self.size = size
        for worker in [each for each in self._workers if each.task is None]:
            if len(self._workers) <= size:
                break
            self._remove(worker)

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def close(self, *, kill: bool = False) -> None:
        """End the workers: after their current volumes, or with ``kill`` at once."""
        with self._wake_lock:
            self._wake_end.close()
            self._wake_pipe.close()
        workers, self._workers = self._workers, []
        for worker in workers:
            if kill:
                worker.process.kill()
            else:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            worker.connection.close()
        for worker in workers:
            worker.process.join(5 if kill else None)


def _serve(connection: Connection, *arguments: Any, **options: Any) -> None:
    from voxtier.tensors.making.worker import serve  # torch and MONAI: the coordinator imports neither

    serve(connection, *arguments, **options)


def _exit_reason(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        hint = ": out of memory?" if code == -9 else ""
        return f"the worker was killed by signal {-code}{hint}"
    return f"the worker ended with code {code}"
