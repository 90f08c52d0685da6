"""The threads that put questions to the index: none outlives the breaker that opened, or the client."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from voxtier.errors import BackendError
from voxtier.frames.serving.index.index_client import IndexClient


def make_client(budget_seconds: float) -> IndexClient:
    database = SimpleNamespace(is_new=False, is_embedded=False, reset=lambda: None)
    store: Any = SimpleNamespace(database=database, probe=lambda: None)
    return IndexClient(store, budget_seconds)


def ask_eight_at_once(client: IndexClient) -> list[threading.Thread]:
    """Return the threads that answered: eight, as each waits for the other seven."""
    all_there = threading.Barrier(8)
    answered: list[threading.Thread] = []

    def question(_store: object) -> None:
        all_there.wait()
        answered.append(threading.current_thread())

    asking = [threading.Thread(target=client.ask, args=(question,)) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return answered


def assert_all_end(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(30)
    assert not [thread for thread in threads if thread.is_alive()]


def test_threads_end_when_the_breaker_opens_and_new_ones_answer_behind_it() -> None:
    client, frozen = make_client(30.0), threading.Event()
    answered = ask_eight_at_once(client)
    assert len(set(answered)) == 8
    client.budget_seconds = 0.01
    with pytest.raises(BackendError, match="did not answer"):
        client.ask(lambda _: frozen.wait())
    frozen.set()
    assert_all_end(answered)
    while client.is_open:
        time.sleep(0.01)
    client.budget_seconds = 30.0
    assert not set(ask_eight_at_once(client)) & set(answered)
    client.close()


def test_threads_end_with_their_client() -> None:
    client = make_client(30.0)
    answered = ask_eight_at_once(client)
    client.close()
    assert_all_end(answered)
