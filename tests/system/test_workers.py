"""Work that threads do for a block ends with the block, however that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from voxtier.system.workers import ContextThreads, Workers, finish, start_thread


def test_what_was_submitted_is_done_when_the_block_ends() -> None:
    done: list[int] = []
    with Workers(2, "test") as workers:
        for number in range(50):
            workers.submit(done.append, number)
        assert list(workers.map(str, range(3))) == ["0", "1", "2"]
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("kind", [ContextThreads, Workers])
def test_work_is_done_in_the_context_of_who_submits_it(kind: type[ContextThreads]) -> None:
    name = ContextVar("name", default="nobody")
    with kind(2, "test") as threads:
        before = threads.submit(name.get)
        token = name.set("one")
        within = threads.submit(name.get)
        assert list(threads.map(lambda _: name.get(), range(3))) == ["one"] * 3
        assert threads.submit(name.set, "of the thread").result()  # and leaves nothing behind
        name.reset(token)
        assert [each.result() for each in (before, within, threads.submit(name.get))] == [
            "nobody",
            "one",
            "nobody",
        ]


def test_a_thread_of_the_background_keeps_nothing_of_who_starts_it() -> None:
    request: ContextVar[object] = ContextVar("request", default=None)
    seen = list[object]()
    token = request.set("of the first request")
    start_thread(lambda: seen.append(request.get()), "test").join()
    request.reset(token)
    assert seen == [None]


def test_work_that_fails_says_so_and_stops_nothing_else() -> None:
    with Workers(1, "test") as workers:
        failed, done = workers.submit(int, "x"), workers.submit(int, "7")
        assert isinstance(failed.exception(), ValueError)
        assert done.result() == 7


def test_an_exception_lets_no_work_begin_and_waits_for_what_is_under_way() -> None:
    begun, release = threading.Event(), threading.Event()
    steps: list[str] = []

    def slow() -> None:
        begun.set()
        release.wait(60)
        time.sleep(0.05)
        steps.append("slow")

    with pytest.raises(KeyboardInterrupt), Workers(1, "test") as workers:
        workers.submit(slow)
        waiting = workers.submit(steps.append, "never")
        begun.wait(60)
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt
    assert steps == ["slow"]
    assert waiting.exception() is not None or waiting.cancelled()


def test_a_thread_whose_start_was_interrupted_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come while a pool starts a thread, which runs then and is not among those it joins."""
    begun, steps = threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        steps.append("slow")

    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("test"):
            begun.wait(60)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Workers(4, "test") as workers:
        workers.submit(slow)
    assert steps == ["slow"]


def test_what_tidies_up_is_finished_before_an_interrupt_counts(interrupt_main: Callable[[], None]) -> None:
    steps: list[int] = []

    def tidy() -> None:
        for step in range(3):
            interrupt_main()
            steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        finish(tidy)
    assert steps == [0, 1, 2]
    name = ContextVar("name", default="nobody")
    name.set("one")
    finish(lambda: steps.append(len(name.get())))
    assert steps[3:] == [3]
    with pytest.raises(ZeroDivisionError):
        finish(lambda: print(1 // 0))


def test_an_interrupt_as_the_thread_starts_repeats_and_skips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start, steps = threading.Thread.start, list[str]()

    def interrupted(thread: threading.Thread) -> None:
        turns.append(thread)
        if len(turns) == 2:
            start(thread)
        if len(turns) < 4:
            raise KeyboardInterrupt

    turns: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(lambda: steps.append("done"))
    assert steps == ["done"]


def test_without_a_thread_to_be_had_it_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    steps: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    finish(lambda: steps.append("done"))
    assert steps == ["done"]


def test_an_interrupt_stops_what_has_not_begun_and_waits_for_the_rest(
    interrupt_main: Callable[[], None],
) -> None:
    workers, steps, deadline = Workers(1, "test"), list[str](), time.monotonic() + 60

    def slow(name: str) -> None:
        interrupt_main()
        while not workers._is_given_up and time.monotonic() < deadline:
            time.sleep(0.001)
        interrupt_main()
        steps.append(name)

    def work() -> None:
        with workers:
            list(workers.map(slow, ["first", "never"]))

    with pytest.raises(KeyboardInterrupt):
        finish(work, workers.stop)
    assert steps == ["first"]
