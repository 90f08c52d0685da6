"""The writer's lock of a store on S3: one small object, changed by conditional puts only.

A writer that finds the lock free, or expired because its owner died, puts its own name there on condition
that the object is still the one that it saw (``If-None-Match``, ``If-Match``): of any number that try, one
succeeds. A writer renews its lock while it works, and asks before it commits whether it still holds it. A
released lock stays as an object that anyone may take, as a delete cannot be made conditional.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from voxtier.errors import BackendError, MissingExtraError
from voxtier.volumes.tiledb.format.names import RESERVED
from voxtier.volumes.tiledb.session import Session

LOCK_NAME = f"{RESERVED}voxtier_lock.json"
"""A reserved name, so that a root that holds nothing but its lock still counts as empty."""

_EXPIRY = 600.0  # seconds without a renewal after which a writer counts as dead
_RENEWAL = 120.0
_RETRIES = 5
_PAUSE = 0.2


class RemoteLock:
    """One writer's claim to a store.

    Parameters
    ----------
    root : str
        ``s3://`` address of the store.
    session : Session
        How it is reached; credentials are asked for anew at every request, as they may expire meanwhile.
    """

    def __init__(self, root: str, session: Session) -> None:
        self.root, self._session = root, session
        self._owner = uuid.uuid4().hex
        self._etag: str | None = None
        self._lock = threading.Lock()

    def acquire(self, timeout: float) -> None:
        """Take the lock, waiting for a living writer up to ``timeout`` seconds.

        Raises
        ------
        BackendError
            When that writer does not finish in time, or the object store does not answer.
        """
        deadline = time.monotonic() + timeout
        while True:
            current = self._read()
            if current is None:
                if self._put("create"):
                    return
            elif float(current[0].get("until", 0)) < time.time():
                if self._put({"e_tag": current[1]}):
                    return
            elif time.monotonic() > deadline:
                raise BackendError(
                    f"{self.root} is being written by {_name(current[0])}; gave up after {timeout:g} s."
                    f" If that writer is dead, wait until the lock expires, or remove {LOCK_NAME}"
                )
            else:
                time.sleep(_PAUSE)

    def renew(self) -> None:
        """Put the expiry of the lock off."""
        with self._lock:
            if self._etag is not None and not self._put({"e_tag": self._etag}):
                self._etag = None

    def confirm(self) -> None:
        """Check that this writer still holds the lock.

        Raises
        ------
        BackendError
            When another writer has taken it over.
        """
        self.renew()
        if self._etag is None:
            raise BackendError(
                f"{self.root}: another writer took the lock over, as this one did not answer for"
                f" {_EXPIRY:g} s; nothing of this change is visible, repeat it"
            )

    def release(self) -> None:
        """Leave the lock to anyone; one that cannot be released expires by itself."""
        with self._lock, suppress(BackendError):
            if self._etag is not None:
                self._put({"e_tag": self._etag}, lifetime=-1.0)
                self._etag = None

    def _read(self) -> tuple[dict[str, Any], str] | None:
        store = _bucket(self.root, self._session)
        try:
            answer = store.get(LOCK_NAME)
            content, etag = bytes(answer.bytes()), str(answer.meta["e_tag"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _refusal(self.root, error) from None
        try:
            owner: dict[str, Any] = json.loads(content)
            float(owner["until"])
        except (ValueError, KeyError, TypeError):
            raise BackendError(f"{self.root}/{LOCK_NAME} is no lock of voxtier: remove it") from None
        return owner, etag

    def _put(self, mode: Any, lifetime: float = _EXPIRY) -> bool:
        """Put this writer's name there; False when somebody else was quicker."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        body = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": time.time() + lifetime,
            "put": uuid.uuid4().hex,
        }
        try:
            answer = _bucket(self.root, self._session).put(LOCK_NAME, json.dumps(body).encode(), mode=mode)
        except (AlreadyExistsError, PreconditionError):
            current = self._read()  # a put that was repeated, as its answer got lost, finds itself there
            if current is None or current[0].get("owner") != self._owner:
                return False
            self._etag = current[1]
        except Exception as error:
            raise _refusal(self.root, error) from None
        else:
            self._etag = str(answer["e_tag"])
        return True


@contextmanager
def hold_remote_lock(root: str, session: Session, timeout: float) -> Iterator[RemoteLock]:
    """Hold the lock of a store, renewed in the background.

    Parameters
    ----------
    root : str
        ``s3://`` address of the store.
    session : Session
        How it is reached.
    timeout : float
        Seconds to wait for a living writer.

    Yields
    ------
    RemoteLock
        To be confirmed before anything is made visible.
    """
    lock = RemoteLock(root, session)
    lock.acquire(timeout)
    ended = threading.Event()

    def renew_until_ended() -> None:
        while not ended.wait(_RENEWAL):
            with suppress(BackendError):  # the next renewal, or `confirm`, will tell
                lock.renew()

    threading.Thread(target=renew_until_ended, name="voxtier-lock", daemon=True).start()
    try:
        yield lock
    finally:
        ended.set()
        lock.release()


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}"


def _refusal(root: str, error: Exception) -> BackendError:
    status = "timed out" if "timed out" in str(error) else type(error).__name__
    return BackendError(f"{root}: the object store refused the writer's lock or did not answer: {status}")


def _bucket(root: str, session: Session) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise MissingExtraError("obstore", "volumes") from None
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    # All of it is TileDB's, whatever the environment says: both ask one server, in one name.
    keys = session.keys_in_force()
    seconds = int(keys["vfs.s3.request_timeout_ms"]) / 1000
    options: dict[str, Any] = {
        "region": keys["vfs.s3.region"],
        "virtual_hosted_style_request": keys["vfs.s3.use_virtual_addressing"] == "true",
        "skip_signature": keys["vfs.s3.no_sign_request"] == "true",
        "retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRIES * seconds)},
    }
    client: Any = {"timeout": timedelta(seconds=seconds)}
    if server := keys.get("vfs.s3.endpoint_override"):
        scheme = keys.get("vfs.s3.scheme", "https")
        options["endpoint"] = f"{scheme}://{server}"
        client["allow_http"] = scheme == "http"
    if keys.get("vfs.s3.verify_ssl") == "false":
        client["allow_invalid_certificates"] = True
    if name := keys.get("vfs.s3.aws_access_key_id"):
        token = keys.get(
            "vfs.s3.aws_session_token"
        )  # not that of the environment, which obstore adds to options
        signing = {"access_key_id": name, "secret_access_key": keys.get("vfs.s3.aws_secret_access_key", "")}
        options["credential_provider"] = lambda: {**signing, "token": token, "expires_at": None}
    return S3Store(bucket, prefix=prefix, client_options=client, **options)
