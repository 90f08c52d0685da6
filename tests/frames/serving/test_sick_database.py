"""A sick database: hot frames cost the same, misses come from their files, and recovery is noticed.

Nothing here measures time: a request that waited for the database would not return while it is sick.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.builders import dicom, element, image, pattern
from voxtier.errors import BackendError
from voxtier.frames import FrameReader, FrameStore, read_tables
from voxtier.postgres.embedded import EmbeddedServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of this test alone: it is frozen and killed."""
    server = EmbeddedServer(tmp_path / "server")
    server.attach()
    yield server
    server.detach()


def content(number: int) -> bytes:
    elements = [e for e in image(frames=1) if e.tag not in (0x00080018, 0x0020000E)]
    elements[1:1] = [element("SOPInstanceUID", f"2.25.{number}")]
    elements.insert(-8, element("SeriesInstanceUID", f"2.25.9.{number}"))
    ordered = sorted(elements, key=lambda each: each.tag)
    return dicom([*ordered, element("PixelData", pattern(16, number))]).content


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Files of a series each, so that none comes along with another."""
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content(number))
        found.append(str(path))
    return found


def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact; the test's own limit ends a wait for one that never comes."""
    while not fact():
        time.sleep(0.02)


def processes_of(server: EmbeddedServer) -> list[int]:
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    pids = processes_of(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def locked(server: EmbeddedServer) -> Iterator[None]:
    with psycopg.connect(server.conninfo()) as connection:
        connection.execute("LOCK TABLE voxtier.file, voxtier.file_stats IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def refusing_connections(server: EmbeddedServer) -> Iterator[None]:
    name = psycopg.conninfo.conninfo_to_dict(server.conninfo())["dbname"]
    elsewhere = psycopg.conninfo.make_conninfo(server.conninfo(), dbname="template1")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


@pytest.mark.parametrize("sick", [frozen, locked, refusing_connections])
def test_misses_come_from_their_files_and_recovery_is_noticed(
    server: EmbeddedServer, paths: list[str], sick: Callable[[EmbeddedServer], contextmanager[None]]
) -> None:
    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
        with FrameReader(store, "s", publish=False, index_seconds=0.25) as reader:
            hot = paths[0]
            until(
                lambda: (reader.cache.invalidate(hot), reader.frame(hot, 0), reader.stats()["tier2"] > 0)[2]
            )
            with sick(server):
                for number in (1, 2, 3):
                    assert reader.frame(paths[number], 0) == pattern(16, number)
                    assert reader.frame(hot, 0) == pattern(16, 0)
                assert reader.stats()["degraded"]
                assert reader.stats()["tier3"] >= 3
                with pytest.raises(BackendError):
                    reader.frame("2.25.4", 0)  # only the index could tell
            until(lambda: not reader.stats()["degraded"])
            before = reader.stats()["tier2"]
            until(
                lambda: (
                    reader.cache.invalidate(paths[5]),
                    reader.frame(paths[5], 0),
                    reader.stats()["tier2"] > before,
                )[2]
            )


def test_hot_frames_pass_forty_misses_that_wait(
    server: EmbeddedServer, paths: list[str], tmp_path: Path
) -> None:
    """Misses hold every thread of theirs while the database is frozen; a hot frame needs none of them."""
    cold = []
    for number in range(100, 140):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content(number))
        cold.append(str(path))

    async def ask(reader: FrameReader) -> None:
        hot = await reader.aframe(paths[0], 0)
        with frozen(server):
            misses = [asyncio.create_task(reader.aframe(path, 0)) for path in cold]
            await asyncio.sleep(0)
            answered_first = 0
            for _ in range(20):
                assert await reader.aframe(paths[0], 0) == hot
                answered_first += sum(not miss.done() for miss in misses)
            assert answered_first
            assert [await miss for miss in misses] == [pattern(16, number) for number in range(100, 140)]

    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
        # The budget is far beyond what a busy machine takes for a hot frame, so that misses do wait.
        with FrameReader(store, "s", publish=False, index_seconds=5.0) as reader:
            asyncio.run(ask(reader))


def test_revoked_rights_degrade_and_a_grant_recovers(server: EmbeddedServer, paths: list[str]) -> None:
    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
        with psycopg.connect(server.conninfo(), autocommit=True) as admin:
            admin.execute("CREATE ROLE guest LOGIN")
            admin.execute("GRANT USAGE ON SCHEMA voxtier TO guest")
            admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO guest")
            theirs = psycopg.conninfo.make_conninfo(server.conninfo(), user="guest")
            with (
                FrameStore(theirs) as guest,
                FrameReader(guest, "s", publish=False, index_seconds=5.0) as reader,
            ):
                assert reader.frame(paths[0], 0) == pattern(16, 0)
                admin.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA voxtier FROM guest")
                assert reader.frame(paths[1], 0) == pattern(16, 1)
                assert reader.stats()["degraded"]
                admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO guest")
                until(lambda: not reader.stats()["degraded"])
                before = reader.stats()["tier2"]
                assert reader.frame(paths[2], 0) == pattern(16, 2)
                assert reader.stats()["tier2"] == before + 1
