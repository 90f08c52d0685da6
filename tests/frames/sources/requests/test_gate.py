"""What may be in flight to a store: as many requests as threads ask for, half of them after "slow down"."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from voxtier.frames.sources.requests import gate as gates
from voxtier.frames.sources.requests.gate import Gate


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(gates, "_FIRST_PAUSE", 0.0)
    return Gate()


def fits(gate: Gate, held: int) -> bool:
    """Return whether one more request passes while `held` others are in flight."""
    passed = threading.Event()

    def ask() -> None:
        with gate.one(1):
            passed.set()

    with ExitStack() as others:
        for _ in range(held):
            others.enter_context(gate.one(1))
        thread = threading.Thread(target=ask)
        thread.start()
        found = passed.wait(0.3)
    thread.join(30)
    assert passed.is_set()  # once there is room
    return found


def refuse(gate: Gate, in_flight: int) -> None:
    """Have one of so many requests refused as one too many."""
    with ExitStack() as others:
        for _ in range(in_flight - 1):
            others.enter_context(gate.one(1))
        gate.slow_down()


def test_as_many_pass_as_ask(gate: Gate) -> None:
    assert fits(gate, 200)
    assert not gate.is_limited


@pytest.mark.parametrize(("in_flight", "allowed"), [(200, 100), (64, 32), (3, 1), (1, 1)])
def test_half_of_those_that_were_too_many_pass_until_the_store_takes_all(
    gate: Gate, in_flight: int, allowed: int
) -> None:
    refuse(gate, in_flight)
    assert gate.is_limited
    assert fits(gate, allowed - 1)
    assert not fits(gate, allowed)
    for more in range(1, in_flight - allowed + 1):
        for _ in range(16):
            gate.speed_up()
        if more in (1, in_flight - allowed):
            assert fits(gate, allowed + more - 1)
            assert not fits(gate, allowed + more)
    assert gate.is_limited
    for _ in range(16):
        gate.speed_up()
    assert not gate.is_limited
    assert fits(gate, in_flight + 50)


def test_a_store_that_goes_on_refusing_is_asked_one_at_a_time(gate: Gate) -> None:
    for in_flight in (40, 20, 10, 5, 2, 1, 1):
        refuse(gate, in_flight)
    assert fits(gate, 0)
    assert not fits(gate, 1)
