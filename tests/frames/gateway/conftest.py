"""Gateways that are stopped when a test ends."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from frames.gateway.serving import Client
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

Start = Callable[..., Gateway]
Connect = Callable[..., Client]


@pytest.fixture
def start(store: FrameStore) -> Iterator[Start]:
    running: list[Gateway] = []

    def begin(*arguments: Any, **options: Any) -> Gateway:
        # A busy machine may let the database wait: the tests that want it late say so.
        gateway = Gateway(store, *arguments, port=0, **{"index_seconds": 60.0} | options)
        running.append(gateway)
        return gateway.start(preload=False)

    yield begin
    for gateway in running:
        gateway.stop(drain_seconds=0)


@pytest.fixture
def connect(start: Start) -> Iterator[Connect]:
    """Start a gateway and connect to it."""
    clients: list[Client] = []

    def begin(*arguments: Any, **options: Any) -> Client:
        client = Client(start(*arguments, **options))
        clients.append(client)
        return client

    yield begin
    for client in clients:
        client.connection.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process, which is client and server, have 2 descriptors for each of 2,000 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_000:
        pytest.skip(f"2,000 connections: the system allows {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
