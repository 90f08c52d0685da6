"""Gateways that are stopped when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

Start = Callable[..., Gateway]


@pytest.fixture
def start(store: FrameStore) -> Iterator[Start]:
    running: list[Gateway] = []

    def begin(*arguments: Any, **options: Any) -> Gateway:
        gateway = Gateway(store, *arguments, port=0, **options)
        running.append(gateway)
        return gateway.start(preload=False)

    yield begin
    for gateway in running:
        gateway.stop(drain_seconds=0)
