"""One writer at a time: a kernel lock on local disks, a conditional put on object stores."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from voxtier.errors import BackendError, MissingExtraError, SourceError
from voxtier.volumes.engine import Session, is_remote

LOCK_NAME: Final = ".voxtier.lock"
_REMOTE_NAME: Final = "__voxtier_lock.json"
_EXPIRY: Final = 3600.0  # seconds after which a remote lock of a dead writer may be taken over


@contextmanager
def only_writer(root: str, session: Session, *, timeout: float = 300.0) -> Iterator[None]:
    """Hold the writer's lock of a store; waits for another writer up to ``timeout`` seconds.

    A local lock belongs to the kernel and ends with the process that holds it, also by kill -9.

    Raises
    ------
    BackendError
        When the other writer does not finish in time; the message names it.
    """
    held = _remote(root, session, timeout) if is_remote(root) else _local(root, timeout)
    with held:
        yield


@contextmanager
def _local(root: str, timeout: float) -> Iterator[None]:
    import fcntl

    path = Path(root) / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SourceError(
            "io_error", None, f"{root} cannot be written: {error.strerror}", error.errno
        ) from None
    try:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
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


@contextmanager
def _remote(root: str, session: Session, timeout: float) -> Iterator[None]:
    store, exists = _bucket(root, session)
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + timeout
    while True:
        body = json.dumps(
            {"owner": mine, "host": socket.gethostname(), "pid": os.getpid(), "until": time.time() + _EXPIRY}
        )
        try:
            store.put(_REMOTE_NAME, body.encode(), mode="create")
            break
        except exists:
            holder = _holder(store)
            if holder is not None and holder.get("until", 0) < time.time():
                store.delete(_REMOTE_NAME)
                continue
            if time.monotonic() > deadline:
                raise BackendError(
                    f"{root} is being written by {holder}; gave up after {timeout:g} s."
                    f" If that writer is dead, remove {_REMOTE_NAME}"
                ) from None
            time.sleep(0.2)
        except Exception as error:
            raise BackendError(f"{root}: the lock cannot be put: {type(error).__name__}") from None
    try:
        yield
    finally:
        holder = _holder(store)
        if holder is not None and holder.get("owner") == mine:
            store.delete(_REMOTE_NAME)


def _holder(store: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(bytes(store.get(_REMOTE_NAME).bytes()))
        return found
    except Exception:
        return None


def _bucket(root: str, session: Session) -> tuple[Any, type[Exception]]:
    try:
        from obstore.exceptions import AlreadyExistsError
        from obstore.store import S3Store
    except ImportError:
        raise MissingExtraError("obstore", "volumes") from None
    s3 = session.config.s3
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    options: dict[str, Any] = {"region": s3.region, "virtual_hosted_style_request": s3.use_virtual_addressing}
    if s3.endpoint is not None:
        options["endpoint"] = s3.endpoint if "://" in s3.endpoint else f"https://{s3.endpoint}"
        options["client_options"] = {"allow_http": options["endpoint"].startswith("http://")}
    if s3.anonymous:
        options["skip_signature"] = True
    options |= {key.removeprefix("vfs.s3."): value for key, value in session.credentials().items()}
    names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
    }
    options = {names.get(key, key): value for key, value in options.items()}
    return S3Store(bucket, prefix=prefix, **options), AlreadyExistsError
