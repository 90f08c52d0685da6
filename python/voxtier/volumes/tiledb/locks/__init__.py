"""One writer at a time: a kernel lock on local disks, a conditional put on object stores."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from voxtier.errors import BackendError, ConfigError, SourceError
from voxtier.system.locks import hold_lock
from voxtier.volumes.tiledb.locks.s3_lock import hold_remote_lock
from voxtier.volumes.tiledb.session import LOCK_NAME, Session, is_remote

__all__ = ["LOCK_NAME", "only_writer"]

_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What file systems say that have no locks."""


@contextmanager
def only_writer(
    root: str, session: Session, *, timeout: float = 300.0, needs_lock: bool = True
) -> Iterator[Callable[[], None]]:
    """Hold the writer's lock of a store, or of a table that stands alone.

    A local lock belongs to the kernel and ends with the process that holds it, also by kill -9.

    Parameters
    ----------
    root : str
        Its address.
    session : Session
        How it is reached.
    timeout : float
        Seconds to wait for another writer.
    needs_lock : bool
        Refuse where there are no locks. Else it goes on there without one: of two changes at once to a table,
        one may take back values of the other, and nothing is damaged.

    Yields
    ------
    callable
        Raises when the lock was lost; to be called before anything is made visible.

    Raises
    ------
    BackendError
        When the other writer does not finish in time; the message names it.
    ConfigError
        When a lock is needed and the object store is not S3.
    SourceError
        When the lock's file cannot be made, or a lock is needed and the file system has none.
    """
    if not is_remote(root):
        with _hold_local_lock(root, timeout, needs_lock=needs_lock):
            yield _confirm_local
    elif root.startswith("s3://"):
        with hold_remote_lock(root, session, timeout) as lock:
            yield lock.confirm
    elif needs_lock:
        raise ConfigError(f"{root}: stores are changed under a lock, which only s3:// and local folders have")
    else:
        yield _confirm_local


def _confirm_local() -> None:
    """Do nothing: the kernel takes a local lock from nobody, and none cannot be lost."""


@contextmanager
def _hold_local_lock(root: str, timeout: float, *, needs_lock: bool) -> Iterator[None]:
    path = Path(root, LOCK_NAME)
    deadline = time.monotonic() + timeout
    descriptor = None
    with ExitStack() as stack:
        try:
            while descriptor is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                # A holder whose first ingest is refused removes the folder that others wait in.
                with suppress(FileNotFoundError):
                    left = max(deadline - time.monotonic(), 0.0)
                    descriptor = stack.enter_context(hold_lock(path, left, mode=0o666))
        except TimeoutError:
            raise BackendError(
                f"{root} is being written by {_read_holder(path)}; gave up after {timeout:g} s"
            ) from None
        except OSError as error:
            if needs_lock or error.errno not in _WITHOUT_LOCKS:
                raise SourceError.from_os(error, f"cannot write into {root}") from None
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield


def _read_holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_bytes()[:200].decode(errors="replace") or "another process"
    return "another process"
