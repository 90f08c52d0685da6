"""Callbacks around fork: who is called where, in which order, and for how long."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from voxtier.system import fork
from voxtier.system.fork import after_fork_in_child, apart_from_forks, at_fork

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    # Tests that ran before in this process may have used TileDB.
    pytest.mark.filterwarnings("ignore:TileDB is a multithreading library"),
]


class Notes:
    """An object whose methods are registered."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told
        at_fork(before=self.before, after_in_parent=self.in_parent, after_in_child=self.in_child)

    def before(self) -> None:
        self.told.append(f"{self.name} before")

    def in_parent(self) -> None:
        self.told.append(f"{self.name} in parent")

    def in_child(self) -> None:
        self.told.append(f"{self.name} in child")


@pytest.fixture(autouse=True)
def only_of_this_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide what the rooms have registered, which reaches into other tests."""
    monkeypatch.setattr(fork, "_registered", {})
    yield
    gc.collect()


def test_a_fork_waits_while_a_program_is_started() -> None:
    """Else its child holds the pipe from which the program's end is read."""
    begun, may_end, forked = threading.Event(), threading.Event(), threading.Event()
    ends = list[bool]()

    def start() -> None:
        with apart_from_forks():
            begun.set()
            may_end.wait(50)
            ends.append(forked.is_set())

    def forks() -> None:
        assert in_child(lambda: "child") == b"'child'"
        forked.set()

    starting, forking = threading.Thread(target=start), threading.Thread(target=forks)
    starting.start()
    assert begun.wait(50)
    forking.start()
    forked.wait(0.3)  # time in which it would be done
    may_end.set()
    for thread in (starting, forking):
        thread.join(100)
    assert ends == [False]
    assert forked.is_set()


def test_who_starts_a_program_may_fork_and_so_may_its_child() -> None:
    with apart_from_forks():
        assert in_child(lambda: in_child(lambda: "grandchild")) == b"b\"'grandchild'\""


def in_child(work: Callable[[], object]) -> bytes:
    """Fork, and return what the child had to say."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def test_before_backwards_afterwards_in_order_of_registration() -> None:
    told: list[str] = []
    objects = [Notes("a", told), Notes("b", told)]
    assert in_child(lambda: told) == repr(["b before", "a before", "a in child", "b in child"]).encode()
    assert told == ["b before", "a before", "a in parent", "b in parent"]
    del objects


def test_a_function_stays_and_a_method_goes_with_its_object() -> None:
    told: list[str] = []
    after_fork_in_child(lambda: told.append("function"))
    notes = Notes("a", told)
    gone = weakref.ref(notes)
    del notes
    gc.collect()
    assert gone() is None
    assert len(fork._registered) == 1
    assert in_child(lambda: told) == b"['function']"
    assert told == []


def test_a_method_of_an_extension_type_goes_with_its_object_too() -> None:
    """`FrameCache` registers methods of its Rust base, to which a ``WeakMethod`` cannot point."""

    class Buffer(bytearray):
        pass

    buffers = [Buffer(b"parent")]
    after_fork_in_child(buffers[0].clear)
    assert in_child(lambda: bytes(buffers[0])) == b"b''"
    assert buffers == [b"parent"]
    buffers.clear()
    gc.collect()
    assert not fork._registered


def test_what_was_made_after_the_first_callbacks_is_not_called_in_the_parent() -> None:
    told: list[str] = []
    late: list[Notes] = []
    first = Notes("first", told)
    at_fork(before=lambda: late.append(Notes("late", told)))
    in_child(lambda: None)
    assert told == ["first before", "first in parent"]
    del first


def test_a_callback_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def fail() -> None:
        raise ValueError("on purpose")

    at_fork(before=fail, after_in_parent=fail)
    notes = Notes("a", told)
    with caplog.at_level(logging.ERROR):
        in_child(lambda: None)
    assert told == ["a before", "a in parent"]
    assert len(caplog.records) == 2
    del notes


def test_two_threads_that_fork_at_once_free_what_each_of_them_took() -> None:
    """Whoever waits in its first callback must not lose the list of what it has to free."""
    lock = threading.Lock()
    at_fork(before=lock.acquire, after_in_parent=lock.release)

    def fork_often() -> None:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)

    threads = [threading.Thread(target=fork_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert lock.acquire(blocking=False)
