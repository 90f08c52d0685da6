"""One writer at a time: a kernel lock on local disks, a conditional put on object stores."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxtier.errors import BackendError, SourceError
from voxtier.volumes.store.s3_lock import hold_remote_lock
from voxtier.volumes.tiledb.session import Session, is_remote

__all__ = ["LOCK_NAME", "only_writer"]

LOCK_NAME = ".voxtier.lock"


@contextmanager
def only_writer(root: str, session: Session, *, timeout: float = 300.0) -> Iterator[Callable[[], None]]:
    """Hold the writer's lock of a store.

    A local lock belongs to the kernel and ends with the process that holds it, also by kill -9.

    Parameters
    ----------
    root : str
        Address of the store.
    session : Session
        How it is reached.
    timeout : float
        Seconds to wait for another writer.

    Yields
    ------
    callable
        Raises when the lock was lost; to be called before anything is made visible.

    Raises
    ------
    BackendError
        When the other writer does not finish in time; the message names it.
    """
    if is_remote(root):
        with hold_remote_lock(root, session, timeout) as lock:
            yield lock.confirm
    else:
        with _hold_local_lock(root, timeout):
            yield _confirm_local


def _confirm_local() -> None:
    """Do nothing: the kernel takes a local lock from nobody."""


@contextmanager
def _hold_local_lock(root: str, timeout: float) -> Iterator[None]:
    import fcntl

    path = Path(root) / LOCK_NAME
    descriptor = _open_lock_file(path)
    try:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file(descriptor, path):
                    break
                # The store was replaced while this waited: its lock is another file.
                replaced = descriptor
                descriptor = _open_lock_file(path)
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


def _open_lock_file(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SourceError.from_os(error, f"cannot write into {path.parent}") from None


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
