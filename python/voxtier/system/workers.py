"""Threads of the background; in the context of who submits; whose work ends with a block; or with its end."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread of the background, and return it: who has it may join it.

    It has no context: that of the caller, as of a request, would live as long as the thread.

    Parameters
    ----------
    work : callable
        What it does.
    name : str
        Its name.

    Returns
    -------
    Thread
        A started one. Where the system has none to give, that is a RuntimeError, and nothing is left of it.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def finish(work: Callable[[], object], on_interrupt: Callable[[], object] = lambda: None) -> None:
    """Do some work to its end: Ctrl-C, or what a handler of SIGTERM raises, counts once it is done.

    Python interrupts the main thread only, so another one does the work. It is for what tidies up after an
    exception, of which a second Ctrl-C would leave half, and for what such tidying must not overtake.

    Parameters
    ----------
    work : callable
        What to do. What it raises is raised, unless an interrupt came.
    on_interrupt : callable
        Lets the work end soon; called at each interrupt.
    """
    # While the interpreter ends, and in other threads, nothing interrupts; and there a thread may not start.
    if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
        work()
        return
    context = contextvars.copy_context()
    outcome: list[BaseException | None] = []
    begun, done = threading.Lock(), threading.Lock()
    done.acquire()

    def do() -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            context.run(work)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)
        done.release()

    def wait() -> None:
        while not outcome:
            try:
                if not begun.locked():  # again, where an interrupt came before a thread had it
                    start_thread(do, "voxtier-finish")
                done.acquire()
            except RuntimeError:  # there is no thread to be had
                do()

    interrupt: BaseException | None = None
    while not outcome:
        try:
            if interrupt is not None:
                on_interrupt()
            wait()
        except BaseException as error:
            interrupt = error
    raised, interrupt = interrupt or outcome.pop(), None
    try:
        if raised is not None:
            raise raised
    finally:
        del raised  # which holds this frame, which held it


class ContextThreads(ThreadPoolExecutor):
    """A pool of threads that do each piece of work in a copy of the context of who submits it.

    A thread has no context of its own: in a plain pool the work of a block of ``configured(s3=...)`` would
    ask the store of the process.
    """

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let a thread do the work; see `ThreadPoolExecutor`.

        Parameters
        ----------
        work : callable
            What to do.
        *args, **kwargs : object
            What it is called with.

        Returns
        -------
        Future
            What it returns or raises.
        """
        context = contextvars.copy_context()
        return super().submit(lambda: context.run(work, *args, **kwargs))


class Workers(ContextThreads):
    """A pool of threads for one ``with`` block: when an exception leaves it, no work begins and none is left.

    A plain pool joins the threads that it knows of. One that was just being started when Ctrl-C came it does
    not know, and that thread goes on while the caller already takes back what was done; and what had been
    submitted until then is all done first.

    Parameters
    ----------
    count : int
        Threads at most.
    name : str
        Begins the names of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_given_up = False

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let a thread do the work, unless the block is left by an exception before.

        Parameters
        ----------
        work : callable
            What to do.
        *args, **kwargs : object
            What it is called with.

        Returns
        -------
        Future
            What it returns or raises; `CancelledError` where it was not begun.
        """
        return super().submit(self._do, work, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with self._changed:
                self._is_given_up = True
                self._changed.wait_for(lambda: not self._under_way)
        super().__exit__(kind, error, trace)

    def stop(self) -> None:
        """Let no further work begin: what was submitted raises `CancelledError`."""
        self._is_given_up = True

    def _do(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._changed:
            if self._is_given_up:
                raise CancelledError
            self._under_way += 1
        try:
            return work(*args, **kwargs)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
