"""A sick database: hot frames cost the same, misses come from their files, and recovery is noticed.

Nothing here measures time: a request that waited for the database would not return while it is sick.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from frames.serving.sick_servers import (
    UNREADABLE,
    Trouble,
    add_reader,
    frozen,
    pass_those_that_wait,
    read_only,
)
from support.builders import dicom, element, image, pattern
from voxtier.errors import BackendError, NotFoundError, SourceError
from voxtier.frames import FrameCache, FrameReader, FrameStore, read_table, read_tables
from voxtier.frames.serving.files import open_files
from voxtier.frames.serving.index import index_client
from voxtier.frames.store.row import FoundFile
from voxtier.postgres.database import Database
from voxtier.postgres.embedded import EmbeddedServer


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


@pytest.mark.parametrize("trouble", UNREADABLE)
def test_misses_come_from_their_files_and_recovery_is_noticed(
    server: EmbeddedServer, paths: list[str], trouble: Trouble
) -> None:
    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
    with (
        FrameStore(add_reader(server)) as store,
        FrameReader(store, "s", publish=False, index_seconds=0.25) as reader,
    ):
        hot = paths[0]
        until(lambda: (reader.cache.invalidate(hot), reader.frame(hot, 0), reader.stats()["tier2"] > 0)[2])
        with trouble(server):
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


def test_what_the_index_alone_can_answer_waits_for_the_first_connection(
    server: EmbeddedServer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server far away takes a dozen round trips before it is asked anything."""
    budget, connect = 1.0, Database._connect_once

    def connect_late(database: Database) -> None:
        time.sleep(1.2 * budget)
        connect(database)

    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
    monkeypatch.setattr(Database, "_connect_once", connect_late)
    monkeypatch.setattr(index_client, "_CONNECT_SECONDS", 60.0)
    for name in ("2.25.1", "2.25.404"):
        with (
            FrameStore(server.conninfo()) as store,
            FrameReader(store, "s", publish=False, index_seconds=budget) as reader,
        ):
            if name == "2.25.404":
                with pytest.raises(NotFoundError):
                    reader.frame(name, 0)
            else:
                assert reader.frame(name, 0) == pattern(16, 1)
            assert not reader.stats()["degraded"]


def test_paths_are_read_while_others_wait_for_the_first_connection(
    server: EmbeddedServer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may_connect = Database._connect_once, threading.Event()

    def connect_when_told(database: Database) -> None:
        assert may_connect.wait(60)
        connect(database)

    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
    monkeypatch.setattr(Database, "_connect_once", connect_when_told)
    monkeypatch.setattr(index_client, "_CONNECT_SECONDS", 60.0)
    with (
        FrameStore(server.conninfo()) as store,
        FrameReader(store, "s", publish=False, index_seconds=4.0) as reader,
    ):
        assert asyncio.run(pass_those_that_wait(reader, 0, paths[2], may_connect)) == [
            pattern(16, 2),
            *[pattern(16, 1)] * 40,
        ]


def test_a_first_connection_that_does_not_come_is_given_up(
    server: EmbeddedServer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_client, "_CONNECT_SECONDS", 0.5)
    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
    with (
        FrameStore(server.conninfo()) as store,
        FrameReader(store, "s", publish=False, index_seconds=0.25) as reader,
    ):
        with frozen(server):
            with pytest.raises(BackendError, match=r"within 0\.5 s"):
                reader.frame("2.25.1", 0)
            assert reader.stats()["degraded"]
            assert reader.frame(paths[1], 0) == pattern(16, 1)
        monkeypatch.setattr(index_client, "_CONNECT_SECONDS", 60.0)
        until(lambda: not reader.stats()["degraded"])
        assert reader.path_of("2.25.1") == paths[1]


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


def test_the_questions_of_a_request_share_one_budget(
    server: EmbeddedServer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UID asks for its path, which takes the hour here, and then for its table, which never comes."""
    late = [0.0]
    monkeypatch.setattr(index_client, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))
    ended = threading.Event()

    class Slow(FrameStore):
        def copies_of(self, uid: str, source: str) -> list[FoundFile]:
            late[0] += 3600
            return super().copies_of(uid, source)

        def recall(self, *_: object, **__: object) -> None:
            ended.wait()

    with Slow(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
        with FrameReader(store, "s", publish=False, index_seconds=3600) as reader:
            assert reader.frame("2.25.3", 0) == pattern(16, 3)
            assert reader.stats()["store_errors"] == reader.stats()["tier3"] == 1
            ended.set()


def test_a_read_only_database_still_answers(server: EmbeddedServer, paths: list[str]) -> None:
    with FrameStore(server.conninfo()) as store:
        store.upsert("s", read_tables(paths))
    with FrameStore(add_reader(server)) as store, FrameReader(store, "s", publish=False) as reader:
        with read_only(server):
            assert reader.frame(paths[0], 0) == pattern(16, 0)
            assert reader.stats()["tier2"] == 1
            assert reader.frame("2.25.2", 0) == pattern(16, 2)
            reader.flush()
            assert reader.stats()["flush_errors"] == 1
            assert not reader.stats()["degraded"]
        reader.flush()
        assert reader.stats()["flushed"] == 2


def test_a_hot_frame_waits_for_no_thread(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_RECHECK_SECONDS", 3600)  # a busy machine takes a second for 128 threads

    async def ask(reader: FrameReader) -> list[bytes]:
        names = [(paths[0], 0), ("2.25.0", 0)]
        reader._uids.remember("2.25.0", paths[0])
        return [await reader.aframe(name, index) for name, index in names]

    busy = threading.Event()
    with FrameReader(None, publish=False) as reader:
        assert reader.frame(paths[0], 0) == pattern(16, 0)
        file = reader._files.take(paths[0])
        assert file.instance() == "2.25.0"
        reader._files.give_back(file)
        for name in ("hot", "cold"):
            for _ in range(100):
                reader._pools.get(name).submit(busy.wait)
        try:
            assert asyncio.run(asyncio.wait_for(ask(reader), 60)) == [pattern(16, 0)] * 2
        finally:
            busy.set()
        assert reader.stats()["tier1"] == 2


def test_bytes_that_are_not_in_the_page_cache_are_left_to_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(1) + bytes(1 << 20))
    cache = FrameCache(1 << 20)
    cache.put_table("file", read_table(path))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    # A look starts the kernel reading ahead, and bytes may come while it lasts: one look of many finds none.
    for _ in range(100):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        read = cache.read_resident("file", fd, [0])
        if read is None:
            break
        assert read == [pattern(16, 1)]
    else:  # a file system that keeps everything in memory
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    os.pread(fd, 1 << 20, 0)
    before = cache.counters()["hits"]
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        assert cache.read_resident("file", fd, [0]) is None  # the file system cannot tell
    else:
        assert cache.read_resident("file", fd, [0]) == [pattern(16, 1)]
        assert cache.counters()["hits"] == before + 1
    assert cache.read_resident("other", fd, [0]) is None
    assert cache.read_resident("file", fd, [7]) is None
    path.write_bytes(content(2))
    with pytest.raises(SourceError, match="read its table again"):
        cache.read_resident("file", fd, [0])
    os.close(fd)
