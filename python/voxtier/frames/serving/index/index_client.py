"""The index as a request may use it: no question waits longer than a budget, a sick database is left alone.

Questions run on threads of their own, because nothing else bounds a wait for a server that is frozen. The
first failure opens a breaker for all threads: questions then fail at once, and one thread tries the database
out until it answers. `FrameReader` asks here.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from voxtier.errors import BackendError, ConfigError
from voxtier.frames.store.store import FrameStore
from voxtier.system.fork import after_fork_in_child
from voxtier.system.workers import start_thread

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Questions at the same time; more wait for their turn, within their budget.
_THREADS = 8
_PROBE_SECONDS = 0.5
# Longest wait for the first connection: to voxtier's own server, whose start gives up before, and to another,
# which takes a dozen round trips and the import of what they need.
_START_SECONDS, _CONNECT_SECONDS = 180.0, 5.0


class IndexClient:
    """Asks a `FrameStore` within a time budget.

    Parameters
    ----------
    store : FrameStore
        The index.
    budget_seconds : float
        Longest wait of a request for the index: of one question, or of all that a thread puts
        ``with client.request``.
    """

    def __init__(self, store: FrameStore, budget_seconds: float = 0.25) -> None:
        self.store = store
        self.budget_seconds = budget_seconds
        self.request = _Request(weakref.proxy(self))
        self._start_fresh()
        after_fork_in_child(self._start_fresh)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._starting: _Question[None] | None = None
        self._start_began = 0.0
        self._closed = threading.Event()
        self._questions: queue.SimpleQueue[_Question[Any] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: the database failed, and has not answered since."""
        return self._is_open

    @property
    def is_starting(self) -> bool:
        """Whether the first connection is yet to be made: what the index alone can answer waits for it."""
        return self._starting is not None or self.store.database.is_new

    def ask(self, question: Callable[[FrameStore], T], *, awaits_start: bool = False) -> T:
        """Put a question to the store.

        Parameters
        ----------
        question : callable
            Takes the store.
        awaits_start : bool
            Nothing but the index can answer: the first connection of the process, with the start of voxtier's
            own server, is waited for beside the budget. Other questions fail meanwhile, and open no breaker.

        Returns
        -------
        object
            What `question` returned.

        Raises
        ------
        BackendError
            The database failed, did not answer within the budget, or the breaker is open.
        """
        if self._is_open:
            raise BackendError(
                "the index of frames is not asked: its database failed and has not answered since"
            )
        if self.is_starting:
            self._start(awaits_end=awaits_start)
        ends = self.request.ends
        left = self.budget_seconds if ends is None else ends - time.monotonic()
        asked = _Question(question)
        self._hand_over(asked)
        if not asked.done.wait(max(left, 0.0)):
            self._open_breaker(f"no answer within {self.budget_seconds:g} s")
            raise BackendError(f"the index of frames did not answer within {self.budget_seconds:g} s")
        return self._result_of(asked)

    def _result_of(self, asked: _Question[T]) -> T:
        try:
            return asked.result()
        except (BackendError, ConfigError) as error:  # ConfigError: the role's rights were revoked
            self._open_breaker(str(error))
            raise BackendError(str(error)) from error

    def close(self) -> None:
        """Stop trying the database out, and end the threads that wait for questions."""
        self._closed.set()
        with self._lock:
            self._end_threads()

    def _end_threads(self) -> None:
        for _ in range(self._threads):
            self._questions.put(None)

    def _start(self, *, awaits_end: bool) -> None:
        """Have the first connection made, by one thread: that it takes seconds is no sign of trouble."""
        began = time.monotonic()
        with self._lock:
            starting = self._starting
            if starting is None:
                starting = _Question(lambda store: store.database.start())
                start_thread(partial(self._answer_start, starting), "voxtier-index-start")
                self._starting, self._start_began = starting, began
        limit = _START_SECONDS if self.store.database.is_embedded else _CONNECT_SECONDS
        ends = self._start_began + (limit if awaits_end else self.budget_seconds)
        # It may be made already, by other work.
        if not starting.done.wait(max(ends - began, 0.0)):
            if time.monotonic() >= self._start_began + limit:
                self._forget_start(starting)
                self._open_breaker(f"no connection within {limit:g} s")
                raise BackendError(f"the index of frames cannot be asked: no connection within {limit:g} s")
            raise BackendError("the index of frames is not asked yet: its first connection is being made")
        self._result_of(starting)
        if self.request.ends is not None:
            self.request.ends += time.monotonic() - began

    def _answer_start(self, starting: _Question[None]) -> None:
        starting.answer(self.store)
        self._forget_start(starting)

    def _forget_start(self, starting: _Question[None]) -> None:
        with self._lock:
            if self._starting is starting:
                self._starting = None

    def _hand_over(self, asked: _Question[Any]) -> None:
        with self._lock:  # or the queue might be one whose threads have just been ended
            self._questions.put(asked)
            if not self._idle.acquire(blocking=False) and self._threads < _THREADS:
                start_thread(partial(self._answer, self._questions, self._idle), "voxtier-index")
                self._threads += 1

    def _answer(self, questions: queue.SimpleQueue[_Question[Any] | None], idle: threading.Semaphore) -> None:
        while (asked := questions.get()) is not None:
            asked.answer(self.store)
            idle.release()
            if questions is not self._questions:  # the breaker opened meanwhile: others took over
                return

    def _open_breaker(self, why: str) -> None:
        with self._lock:
            if self._is_open or self._closed.is_set():
                return
            try:
                start_thread(self._try_out, "voxtier-index-probe")
            except RuntimeError:  # the system has no thread to give, and none would close the breaker
                return
            self._is_open = True
            # Threads that wait for questions end now, those that wait for the database when it lets them go;
            # new questions get new threads.
            self._end_threads()
            self._questions, self._idle, self._threads = queue.SimpleQueue(), threading.Semaphore(0), 0
        _log.warning("the index of frames is left alone until its database answers: %s", why)

    def _try_out(self) -> None:
        while not self._closed.wait(_PROBE_SECONDS):
            try:
                self.store.database.reset()
                self.store.probe()
            except (BackendError, ConfigError):
                continue
            except Exception:
                _log.exception("trying out the index failed")
                continue
            self._is_open = False
            _log.warning("the database of the index of frames answers again")
            return


class _Request(threading.local):
    """The request of a thread: what is asked while it lasts shares one budget."""

    def __init__(self, client: IndexClient) -> None:
        self.ends: float | None = None
        self._client = client

    def __enter__(self) -> None:
        self.ends = time.monotonic() + self._client.budget_seconds

    def __exit__(self, *_: object) -> None:
        self.ends = None


class _Question(Generic[T]):
    """A question on its way to a thread, and its answer on its way back."""

    __slots__ = ("_answer", "_error", "_question", "done")

    def __init__(self, question: Callable[[FrameStore], T]) -> None:
        self._question = question
        self._answer: T | None = None
        self._error: BaseException | None = None
        self.done = threading.Event()

    def answer(self, store: FrameStore) -> None:
        try:
            self._answer = self._question(store)
        except BaseException as error:
            self._error = error
        self.done.set()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # an answer may be None
