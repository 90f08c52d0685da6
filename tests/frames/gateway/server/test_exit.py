"""Programs that end while their gateway runs: nobody stops it, and the interpreter ends in order."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from frames.gateway.serving import index
from frames.serving.sick_servers import frozen, stopped
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer

ENDS_WITHIN = 120  # seconds; it has ended, or never does
# The hook was registered first, so that it runs last: it says what is left of the gateway by then.
PROGRAM = """
import atexit, os, socket, sys, threading
def say_what_is_left():
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("voxtier")]
    # Nobody waits for who is just connecting, nor for the threads of the connections.
    print("left", [name for name in names if name.split("-")[1] not in ("ready", "scheduler", "worker")])
    with socket.socket() as client:
        print("answers", client.connect_ex((gateway.host, gateway.port)) == 0)
atexit.register(say_what_is_left)
from voxtier.frames import FrameStore, Gateway
gateway = Gateway(FrameStore(), port=0, workers=2, hot_set=sys.argv[1])
"""
WAIT = """
import time, urllib.request
while True:
    try:
        urllib.request.urlopen(gateway.url + "/ready").close()
        break
    except OSError:
        time.sleep(0.01)
"""
START = "gateway.start()"
ENDS = {
    "at once": (START, 0, ""),
    "when it is ready": (START + WAIT, 0, ""),
    "by an exception": (START + WAIT + "raise ValueError('a mistake')", 1, "ValueError: a mistake\n"),
    "by sys.exit": (START + WAIT + "sys.exit('enough')", 1, "enough\n"),
    "with a thread that calls sys.exit": (
        START + WAIT + "threading.Thread(target=sys.exit, args=(3,)).start()",
        0,
        "",
    ),
    "without the name of the gateway": (START + WAIT + "Gateway(FrameStore(), port=0).start()", 0, ""),
    "in a child": (
        f"{START}{WAIT}pid = os.fork()\n"
        f"if pid: assert os.waitpid(pid, 0)[1] == 0\n"
        "else: atexit.unregister(say_what_is_left)",
        0,
        "",
    ),
    "in a child with a gateway of its own": (
        "pid = os.fork()\nif pid: os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n" + START,
        0,
        "",
    ),
    "after a stop": (START + WAIT + "gateway.stop()", 0, ""),
}


def run(program: str, hot_set: Path, dsn: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(hot_set)],
        env=os.environ | {"VOXTIER_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
        check=False,
    )


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_while_its_gateway_runs(
    tmp_path: Path, dsn: str, store: FrameStore, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path))
    index(store, [Path(str(get_testdata_file("CT_small.dcm")))])
    how, code, said = ENDS[end]
    done = run(PROGRAM + how, tmp_path / "hot", dsn)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(said)
    assert done.stderr.count("Traceback") == int("Error" in said), done.stderr
    assert bool(done.stderr) == bool(said), done.stderr
    assert set(done.stdout.splitlines()) == {"left []", "answers False"}
    assert (tmp_path / "hot").exists()  # as a stop does
    assert not list((tmp_path / "readers").glob("*.json"))


@pytest.mark.parametrize("sick", [stopped, frozen])
def test_a_program_ends_while_its_database_is_sick_and_a_client_is_connected(
    tmp_path: Path, server: EmbeddedServer, sick: object
) -> None:
    dsn = server.conninfo()
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{PROGRAM}{START}{WAIT}print(gateway.port, flush=True)\ninput()",
            str(tmp_path / "hot"),
        ],
        env=os.environ | {"VOXTIER_DSN": dsn, "VOXTIER_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    port = int(program.stdout.readline())
    with sick(server), socket.create_connection(("127.0.0.1", port)) as client:  # type: ignore[operator]
        client.sendall(b"GET /dicomweb/studies HTTP/1.1\r\nHost: x\r\n\r\n")
        _, stderr = program.communicate("\n", timeout=ENDS_WITHIN)
    assert (program.returncode, "Traceback" in stderr) == (0, False), stderr


def test_no_thread_comes_back_from_the_core_behind_the_last_hook(tmp_path: Path, dsn: str) -> None:
    """Python would end it there, by unwinding calls of the core: a crash with the unwinder of the wheels."""
    program = """
from voxtier._core import tile_stats
counts = dict.fromkeys(["jobs", "cache", "tiles"], 0)
def again(name, work):
    while True:
        work()
        counts[name] += 1
def say_who_came_back():
    before = dict(counts)
    time.sleep(0.5)
    # One that had come back before may only now get to count it.
    print(min(before.values()) > 0, [name for name in counts if counts[name] > before[name] + 1])
atexit.unregister(say_what_is_left)
calls = {
    "jobs": lambda: gateway._core.next_job(0.001),
    "cache": gateway.reader.cache.drain_access,
    "tiles": tile_stats,
}
for call in calls.items():
    threading.Thread(target=again, args=call, daemon=True).start()
while not all(counts.values()):
    time.sleep(0.01)
"""
    first = "import atexit, time\natexit.register(lambda: say_who_came_back())\n"
    done = run(first + PROGRAM + program, tmp_path / "hot", dsn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True []\n", "")
