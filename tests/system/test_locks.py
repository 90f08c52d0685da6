"""File locks: between processes and threads, under kills and forks, and when the file is replaced."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from voxtier.system import locks
from voxtier.system.locks import hold_lock, release, take

HOLDER = """
import sys
from pathlib import Path
from voxtier.system.locks import take
assert take(Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def start_holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock until its stdin ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_one_holder_or_several_who_share(path: Path) -> None:
    before = set(locks._held)  # the tests' own database server holds one
    first = take(path)
    assert first is not None
    assert take(path) is None
    assert take(path, shared=True) is None
    release(first)
    release(first)  # no longer ours: nothing is closed that got the same number meanwhile
    sharing = [take(path, shared=True) for _ in range(3)]
    assert None not in sharing
    assert take(path) is None
    for lock in sharing:
        release(lock)
    release(take(path))
    assert locks._held == before


def test_a_kill_frees_the_lock(path: Path) -> None:
    holder = start_holder(path)
    assert take(path) is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with hold_lock(path, 10.0):
        pass


def test_whoever_waits_too_long_is_told_where_and_how_long(path: Path) -> None:
    lock = take(path)
    with (
        pytest.raises(TimeoutError, match=rf"{path} was held by another process for 0.05 s"),
        hold_lock(path, 0.05),
    ):
        pass
    release(lock)


def test_a_lock_whose_file_was_replaced_while_it_was_waited_for(path: Path) -> None:
    """What is locked is the file of that name, not the one that once was."""
    old = take(path)
    entered = threading.Event()

    def wait() -> None:
        with hold_lock(path, 60.0):
            entered.set()

    path.unlink()
    new = take(path)
    assert new is not None
    thread = threading.Thread(target=wait)
    thread.start()
    release(old)
    assert not entered.wait(0.2)
    release(new)
    assert entered.wait(60)
    thread.join()


def test_the_permissions_of_a_lock_file_are_the_callers_choice(path: Path, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        for name, options, mode in (("private", {}, 0o600), ("open", {"mode": 0o666}, 0o666)):
            with hold_lock(tmp_path / name, 1.0, **options) as descriptor:
                assert stat.S_IMODE(os.fstat(descriptor).st_mode) == mode
    finally:
        os.umask(previous)


def test_an_unusable_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    before = set(locks._held)
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "absent" / "one.lock")
    assert locks._held == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TileDB is a multithreading library")
def test_a_forked_child_neither_frees_nor_keeps_the_lock(path: Path) -> None:
    lock = take(path)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        release(lock)
        os.write(theirs, b"free" if take(path) is not None else b"held")
        time.sleep(120)
        os._exit(0)
    try:
        assert os.read(ours, 4) == b"held"
        assert lock is not None
        os.close(lock)  # as by a kill of the parent: nobody unlocks
        locks._held.discard(lock)
        with hold_lock(path, 10.0):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(theirs)
