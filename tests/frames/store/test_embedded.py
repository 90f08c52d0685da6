"""A store without a named database: the embedded server comes, goes and is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from frames.store.rows.index_rows import results
from voxtier.errors import BackendError
from voxtier.frames import FrameTable
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import embedded_server


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
