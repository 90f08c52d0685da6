"""A store without a named database: the embedded server comes, goes and is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from frames.indexing.files import native, run
from frames.serving.sick_servers import pass_those_that_wait
from frames.store.rows.index_rows import results
from support.builders import pattern
from voxtier.errors import BackendError, NotFoundError
from voxtier.frames import FrameReader, FrameTable
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer, embedded_server


def running_pid() -> int:
    """The embedded server's process; a session may have outlived the last one, and nobody missed it yet."""
    deadline = time.monotonic() + 60
    while (pid := embedded_server().status().pid) is None:
        assert time.monotonic() < deadline
        embedded_server().ensure_running()
    return pid


def test_the_server_runs_while_a_store_is_open() -> None:
    with FrameStore() as store:
        assert store.upsert("s", results(2)).inserted == 2
        assert embedded_server().status().running
    assert not embedded_server().status().running
    with FrameStore() as store:
        assert isinstance(store.get("s", "/1"), FrameTable)


def test_a_program_that_ends_without_closing_stops_the_server() -> None:
    forgetful = """
        from voxtier.frames.store.store import FrameStore
        store = FrameStore()
        print(store.sources())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(forgetful)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert not embedded_server().status().running


def test_a_server_killed_in_mid_run_is_started_again() -> None:
    with FrameStore() as store:
        store.upsert("s", results(1))
        batches = 12
        for batch in range(batches):
            pid = running_pid()
            killer = threading.Timer(0.002 * batch, os.kill, (pid, signal.SIGKILL))
            if batch % 3 == 1:
                killer.start()
            store.upsert("s", results(100, 100 * batch))
            if killer.ident:
                killer.join()
                store.upsert("s", results(100, 100 * batch))
        assert None not in store.file_states("s", [f"/{n}" for n in range(batches * 100)])
        assert store.summary("s").total.files == batches * 100


def test_a_server_that_cannot_start_names_its_folder() -> None:
    with FrameStore() as store:
        store.upsert("s", results(1))
        folder = embedded_server().folder
        control = folder / "data" / "global" / "pg_control"
        pid = embedded_server().status().pid
        assert pid is not None
        saved = control.read_bytes()
        control.unlink()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=str(folder)):
            while True:  # the sessions live a little longer than their server
                store.get("s", "/0")
        control.write_bytes(saved)
        assert isinstance(store.get("s", "/0"), FrameTable)


def indexed(tmp_path: Path) -> str:
    """Index a file of the instance 2.25.1, and let the server stop."""
    path = tmp_path / "a.dcm"
    path.write_bytes(native(2))
    with FrameStore() as store:
        assert [report.status for report in run(store, [str(path)], source=tmp_path.name)] == ["ok"]
    assert not embedded_server().status().running
    return str(path)


@pytest.mark.parametrize("groups", [None, ["staff"]])
def test_what_the_index_alone_can_answer_waits_for_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[str] | None
) -> None:
    path, budget, attach = indexed(tmp_path), 1.0, EmbeddedServer.attach

    def attach_late(server: EmbeddedServer) -> None:
        time.sleep(1.2 * budget)
        attach(server)

    monkeypatch.setattr(EmbeddedServer, "attach", attach_late)
    for name in ("2.25.1", path if groups else "2.25.1", "2.25.404"):
        with (
            FrameStore() as store,
            FrameReader(store, tmp_path.name, index_seconds=budget, user_groups=groups) as reader,
        ):
            if name == "2.25.404":
                with pytest.raises(NotFoundError):
                    reader.frame(name, 0)
            else:
                assert reader.frame(name, 1) == pattern(32)[16:]
            assert not reader.stats()["degraded"]


def test_paths_are_read_while_the_server_starts_and_no_breaker_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, attach, may_start = indexed(tmp_path), EmbeddedServer.attach, threading.Event()

    def attach_when_told(server: EmbeddedServer) -> None:
        assert may_start.wait(20)
        attach(server)

    monkeypatch.setattr(EmbeddedServer, "attach", attach_when_told)
    with FrameStore() as store, FrameReader(store, tmp_path.name, index_seconds=60) as reader:
        assert reader.index is not None
        reader.index.budget_seconds = 0.05
        for number in (0, 1):
            reader.cache.invalidate(path)
            assert reader.frame(path, number) == pattern(32)[16 * number :][:16]
        assert (reader.stats()["tier3"], reader.stats()["degraded"]) == (2, False)
        reader.index.budget_seconds = 60
        may_start.set()
        assert reader.path_of("2.25.1") == path
        reader.cache.invalidate(path)
        assert reader.frame(path, 0) == pattern(32)[:16]
        assert reader.stats()["tier2"] == 1


def test_tasks_that_wait_for_the_start_leave_threads_for_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, attach, may_start = indexed(tmp_path), EmbeddedServer.attach, threading.Event()

    def attach_when_told(server: EmbeddedServer) -> None:
        assert may_start.wait(60)
        attach(server)

    monkeypatch.setattr(EmbeddedServer, "attach", attach_when_told)
    with FrameStore() as store, FrameReader(store, tmp_path.name, index_seconds=5.0) as reader:
        frames = asyncio.run(pass_those_that_wait(reader, 1, path, may_start))
    assert frames == [pattern(32)[:16], *[pattern(32)[16:]] * 40]


def test_a_server_that_cannot_start_is_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = indexed(tmp_path)

    def fail(_: EmbeddedServer) -> None:
        raise BackendError("no disk")

    with FrameStore() as store, FrameReader(store, tmp_path.name, publish=False) as reader:
        with monkeypatch.context() as broken:
            broken.setattr(EmbeddedServer, "attach", fail)
            with pytest.raises(BackendError, match="no disk"):
                reader.frame("2.25.1", 0)
            assert reader.stats()["degraded"]
            assert reader.frame(path, 0) == pattern(32)[:16]
        while reader.stats()["degraded"]:
            time.sleep(0.02)
        assert reader.frame("2.25.1", 0) == pattern(32)[:16]


def test_a_probe_starts_the_server_of_a_store_that_was_not_used_or_is_closed() -> None:
    store = FrameStore()
    store.probe()
    store.close()
    assert not embedded_server().status().running
    store.probe()
    assert store.sources() is not None
    store.close()
    assert not embedded_server().status().running
