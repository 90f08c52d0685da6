"""Gateways that are stopped when a test ends."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.gateway.serving import Client, index
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

Start = Callable[..., Gateway]
Connect = Callable[..., Client]
Begin = Callable[..., Gateway]

_numbers = count()


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


@pytest.fixture(scope="module")
def begin(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Start gateways that serve a whole module, each over an index of its own, of files by source."""
    with ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXTIER_HOME", str(tmp_path_factory.mktemp("home")))

        def start(sources: Mapping[str, Iterable[Path]], **options: Any) -> Gateway:
            name = f"gateway_{next(_numbers)}"
            connection = running.enter_context(psycopg.connect(postgres, autocommit=True))
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            running.callback(connection.execute, f"DROP DATABASE {name} WITH (FORCE)")
            store = running.enter_context(FrameStore(psycopg.conninfo.make_conninfo(postgres, dbname=name)))
            for source, paths in sources.items():
                index(store, paths, source)
            gateway = Gateway(store, list(sources), port=0, **{"index_seconds": 60} | options)
            running.callback(gateway.stop, drain_seconds=0)
            return gateway.start(preload=False)

        yield start
