"""A database server in trouble, one kind each: a context in which it is sick, and after which it is well."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psycopg

from voxtier.frames import FrameReader
from voxtier.frames.store.grants import grants
from voxtier.postgres.embedded import EmbeddedServer

Trouble = Callable[[EmbeddedServer], AbstractContextManager[None]]

ROLE = "guest"


def add_reader(server: EmbeddedServer) -> str:
    """Make an ordinary role that may read the index; return its connection string."""
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
        admin.execute("".join(grants(ROLE, "reader")).encode())
    return psycopg.conninfo.make_conninfo(server.conninfo(), user=ROLE)


def processes_of(server: EmbeddedServer) -> list[int]:
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    EmbeddedServer(server.folder.parent).stop(force=True)
    try:
        yield
    finally:
        server.ensure_running()


@contextmanager
def killed(server: EmbeddedServer) -> Iterator[None]:
    for pid in processes_of(server):
        with suppress(ProcessLookupError):  # children end by themselves when the postmaster has gone
            os.kill(pid, signal.SIGKILL)
    try:
        yield
    finally:
        server.ensure_running()


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    pids = processes_of(server)
    _send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        _send(signal.SIGCONT, pids)


def _send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # of a session that was just ending
            os.kill(pid, number)


@contextmanager
def locked(server: EmbeddedServer) -> Iterator[None]:
    with psycopg.connect(server.conninfo()) as connection:
        connection.execute("LOCK TABLE voxtier.file, voxtier.file_stats IN ACCESS EXCLUSIVE MODE")
        yield


def out_of_connections(server: EmbeddedServer) -> AbstractContextManager[None]:
    return _altered(server, "ALTER ROLE guest CONNECTION LIMIT 0", "ALTER ROLE guest CONNECTION LIMIT -1")


def refusing_connections(server: EmbeddedServer) -> AbstractContextManager[None]:
    return _altered(server, "ALTER ROLE guest NOLOGIN", "ALTER ROLE guest LOGIN")


def read_only(server: EmbeddedServer) -> AbstractContextManager[None]:
    return _altered(
        server,
        "ALTER ROLE guest SET default_transaction_read_only = on",
        "ALTER ROLE guest RESET default_transaction_read_only",
    )


@contextmanager
def revoked(server: EmbeddedServer) -> Iterator[None]:
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(b"REVOKE SELECT ON ALL TABLES IN SCHEMA voxtier FROM guest")
        try:
            yield
        finally:
            admin.execute(b"GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO guest")


@contextmanager
def _altered(server: EmbeddedServer, alter: str, restore: str) -> Iterator[None]:
    """Alter the reader's role and end its sessions, then restore it and end those that it has now."""
    end = b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guest'"
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(alter.encode())
        admin.execute(end)
        try:
            yield
        finally:
            admin.execute(restore.encode())
            admin.execute(end)


#: Those in which the index cannot be asked.
UNREADABLE: tuple[Trouble, ...] = (
    stopped,
    killed,
    frozen,
    locked,
    out_of_connections,
    refusing_connections,
    revoked,
)


async def pass_those_that_wait(
    reader: FrameReader, index: int, path: str, release: threading.Event
) -> list[bytes]:
    """Return the first frame of a path, read while 40 tasks wait for the index, and then what these read.

    They ask for frame ``index`` of the instance 2.25.1, and go on when ``release`` is set.
    """
    waiting = [asyncio.create_task(reader.aframe("2.25.1", index)) for _ in range(40)]
    await asyncio.sleep(0)  # all of them have asked for a thread
    read = await asyncio.wait_for(reader.aframe(path, 0), 50)
    assert not any(task.done() for task in waiting)
    assert not reader.stats()["degraded"]
    release.set()
    return [read, *await asyncio.gather(*waiting)]
