"""One writer at a time: a kernel lock on local disks, a conditional put on object stores."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voxtier.errors import BackendError, SourceError
from voxtier.volumes.tiledb.session import Session, is_remote

LOCK_NAME: Final = ".voxtier.lock"


@contextmanager
def only_writer(root: str, session: Session, *, timeout: float = 300.0) -> Iterator[Callable[[], None]]:
    """Hold the writer's lock of a store; waits for another writer up to ``timeout`` seconds.

    A local lock belongs to the kernel and ends with the process that holds it, also by kill -9. Yields a
    function that raises when the lock was lost, to be called before anything is made visible.

    Raises
    ------
    BackendError
        When the other writer does not finish in time; the message names it.
    """
    if is_remote(root):
        from voxtier.volumes.store.s3_lock import held

        with held(root, session, timeout) as lock:
            yield lock.confirm
    else:
        with _local(root, timeout):
            yield _never_lost


def _never_lost() -> None:
    """Do nothing: the kernel takes a local lock from nobody."""


@contextmanager
def _local(root: str, timeout: float) -> Iterator[None]:
    import fcntl

    path = Path(root) / LOCK_NAME
    descriptor = _lock_file(path)
    try:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file(descriptor, path):
                    break
                replaced = descriptor  # the store was, while this waited: its lock is another file
                descriptor = _lock_file(path)
                os.close(replaced)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                    raise BackendError(
                        f"{root} is being written by {holder or 'another process'}; gave up after"
                        f" {timeout:g} s"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 1.5, 0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock_file(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SourceError.from_os(error, f"lock the store in {path.parent}") from None


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
