"""The door to object stores: opens one, reads a range of one state of an object, lists, says what is wrong.

Requests are tried again here, not by the client, so that one pause after "slow down" holds for all threads.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from voxtier.errors import MissingExtraError, SourceError
from voxtier.frames.sources.address import plain_key
from voxtier.frames.sources.clients import make_client
from voxtier.frames.sources.refusals import Failure, failure_of, replaced
from voxtier.frames.sources.requests.cost import Cost
from voxtier.frames.sources.requests.gate import Gate
from voxtier.system.fork import abandon, after_fork_in_child
from voxtier.system.s3_config import S3Config, bucket_region

_log = logging.getLogger(__name__)
_TRIES = 6
_PATIENCE = 60.0  # seconds, all tries together
_LONGEST_ETAG = 64
_NO_SUCH_RANGE = 416
_ENCODINGS = ("", "identity", "aws-chunked")
_LISTED_AT_ONCE = 1000
# Paths of https addresses that need a client of their own; each keeps a connection.
_WRITTEN = 32


class ObjectState(NamedTuple):
    """The state of an object, as the core has it of a file.

    Attributes
    ----------
    size : int
        Bytes.
    mtime_ns : int or None
        When it was written, where it has no entity tag.
    ctime_ns, inode : int or None
        Files have them.
    etag : str or None
        Its entity tag, without quotes.
    """

    size: int
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    etag: str | None = None


class Listed(NamedTuple):
    """An object that a listing names."""

    key: str
    state: ObjectState
    modified: datetime


class Store:
    """One bucket, or one host.

    Parameters
    ----------
    root : str
        ``s3://bucket``, ``gs://bucket``, ``az://container``, ``https://host``.
    config : S3Config
        How ``s3://`` is reached; the other stores are configured by the environment, as obstore reads it.
    """

    def __init__(self, root: str, config: S3Config) -> None:
        self.root, self.config = root, config
        self.cost = Cost()
        self.gate = Gate()
        self._lock = threading.Lock()
        self._signed_with: dict[str, str] | None = None
        self._client: Any = None
        self._region = ""
        self._has_etags = True
        self._client_of = lru_cache(_WRITTEN)(lambda path: make_client(f"{root}/{path}", config))

    def get(
        self,
        key: str,
        start: int,
        end: int,
        expected: ObjectState | None,
        *,
        unless: ObjectState | None = None,
        tries: int = _TRIES,
    ) -> tuple[ObjectState, Any]:
        """Read a range of an object.

        Parameters
        ----------
        key : str
            The object.
        start, end : int
            Bytes, half-open; what lies behind the end of the object is left out. An empty one has none.
        expected : ObjectState or None
            The state that the object must have; None for any.
        unless : ObjectState or None
            The state in which no bytes are wanted (If-None-Match).
        tries : int
            How often it is asked for at most.

        Returns
        -------
        tuple of (ObjectState, buffer)
            The state of the object, and the bytes; none in the state `unless`.

        Raises
        ------
        SourceError
            Names the object, what failed, and the remedy; ``changed_during_read`` where the object has
            another state.
        """
        options: dict[str, Any] = {"range": (start, end)}
        if expected is not None and expected.etag is not None:
            options["if_match"] = f'"{expected.etag}"'
        if unless is not None and unless.etag is not None:
            options["if_none_match"] = f'"{unless.etag}"'

        def work(obstore: Any, client: Any, asked: str) -> tuple[ObjectState, Any] | Failure:
            began = time.monotonic()
            try:
                answer = obstore.get(client, asked, options=options)
            except obstore.exceptions.NotModifiedError:
                if unless is None:
                    raise
                return unless, b""
            except Exception as error:
                if start > 0 or expected is not None or failure_of(error).status != _NO_SUCH_RANGE:
                    raise
                state = self._state_of(obstore.head(client, asked))
                if not state.size:  # no range of an empty object can be asked for
                    return state, b""
                return Failure("it was empty, and is not any more", may_help=True)
            state = self._state_of(answer.meta)
            encoding = str(answer.attributes.get("Content-Encoding", "")).lower()
            if encoding not in _ENCODINGS:
                return Failure(
                    f"it is stored with Content-Encoding {encoding}, and a range of that is no range of the "
                    "file: store it without (or unpack it)"
                )
            if expected is not None and differ(state, expected):
                raise replaced(self._name(key))
            wanted = (start, min(end, state.size))
            if tuple(answer.range) != wanted:
                return Failure(
                    f"bytes {wanted[0]} to {wanted[1]} were asked for, {answer.range[0]} to "
                    f"{answer.range[1]} came",
                    may_help=True,
                )
            body = answer.bytes()
            if len(body) != wanted[1] - wanted[0]:
                return Failure(f"{len(body)} of {wanted[1] - wanted[0]} bytes came", may_help=True)
            self.cost.add_request(len(body), time.monotonic() - began)
            return state, body

        found: tuple[ObjectState, Any] = self._try(work, key, end - start, start, tries)
        return found

    def head(self, key: str) -> ObjectState:
        """Return the state of an object, without its bytes.

        Raises
        ------
        SourceError
            See `get`.
        """
        return self._head(key).state

    def find(self, key: str) -> Listed | None:
        """Return an object as a listing would; None where there is none."""
        try:
            return self._head(key)
        except SourceError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _head(self, key: str) -> Listed:
        found: Listed = self._try(
            lambda obstore, client, asked: self._listed(obstore.head(client, asked)), key, 0, None
        )
        return found

    def entries(self, folder: str) -> tuple[list[str], list[Listed]]:
        """Return the folders and the objects directly in a folder, all of them.

        Raises
        ------
        SourceError
            See `list`.
        """

        def work(obstore: Any, client: Any, asked: str) -> tuple[list[str], list[Listed]]:
            found = obstore.list_with_delimiter(client, asked or None)
            return list(found["common_prefixes"]), [self._listed(meta) for meta in found["objects"]]

        found: tuple[list[str], list[Listed]] = self._try(work, folder, 0, None)
        return found

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """Yield the objects below a prefix, thousand by thousand; those behind a key, where one is given.

        Raises
        ------
        SourceError
            The store refuses, or ends in the middle: what was yielded is right. `KeyFaultError` where an
            answer holds a key that the client cannot name: `key_faults` lists around it.
        """
        last = after or None
        stream: Any = None
        lists: Any = None

        def next_page(obstore: Any, client: Any, asked: str) -> Any:
            nonlocal stream, lists
            if stream is None or lists is not client:  # the first, or behind what came before a fault
                pages = obstore.list(client, asked or None, offset=last, chunk_size=_LISTED_AT_ONCE)
                stream, lists = iter(pages), client
            try:
                return next(stream, None)
            except Exception:
                stream = None
                raise

        while (page := self._try(next_page, prefix, 0, None)) is not None:
            for meta in page:
                found = self._listed(meta)
                last = found.key
                yield found

    def _try(self, work: Any, key: str, size: int, offset: int | None, tries: int = _TRIES) -> Any:
        deadline = time.monotonic() + _PATIENCE
        obstore, client = self._open()
        has_renewed = has_moved = False
        for left in reversed(range(tries)):
            try:
                with self.gate.one(size):
                    found = work(obstore, *self._place(client, key))
            except SourceError:
                raise
            except obstore.exceptions.PreconditionError:
                raise replaced(self._name(key)) from None
            except Exception as error:
                found = failure_of(error)
            if not isinstance(found, Failure):
                self.gate.speed_up()
                return found
            if found.is_credentials and not has_renewed and self._renew(client) and left:
                has_renewed = True
                obstore, client = self._open()
            elif not has_moved and self._move(found.region, client) and left:
                has_moved = True
                obstore, client = self._open()
            elif found.may_help and left and time.monotonic() < deadline:
                self._pause(found, tries - left)
            else:
                raise found.as_error(self._name(key), offset)
        raise AssertionError("unreachable: the last try returns or raises")

    def _place(self, client: Any, key: str) -> tuple[Any, str]:
        """Return who is asked for what: one with the path for its root, where the client would change it."""
        if not self.root.startswith("http"):
            return client, key
        plain = plain_key(key)
        return (client, plain) if plain is not None else (self._client_of(key), "")

    def _pause(self, failure: Failure, tries: int) -> None:
        if failure.is_throttled:
            self.gate.slow_down()
        else:
            time.sleep(min(0.05 * 2**tries, 2.0))

    def _name(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _listed(self, meta: Any) -> Listed:
        return Listed(str(meta["path"]), self._state_of(meta), meta["last_modified"])

    def _state_of(self, meta: Any) -> ObjectState:
        size, tag = int(meta["size"]), meta["e_tag"] or ""
        etag = tag.strip('"')
        if not tag.startswith("W/") and 0 < len(etag) <= _LONGEST_ETAG and etag.isascii():
            return ObjectState(size, etag=etag)
        if self._has_etags:
            self._has_etags = False
            _log.warning(
                "%s gives no entity tags: an object replaced by one of its size and time is not found out",
                self.root,
            )
        written = int(meta["last_modified"].timestamp()) * 10**9
        return ObjectState(size, mtime_ns=written or None)

    def _open(self) -> tuple[Any, Any]:
        _check_process()
        obstore = load_obstore()
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return obstore, self._client

    def _make_client(self) -> Any:
        if self.root.startswith("s3:"):
            self._signed_with = self.config.credentials()
        return make_client(self.root, self.config, self._region)

    def _renew(self, failed: Any) -> bool:
        """Give up a client with refused credentials; False where there are no others by now."""
        with self._lock:
            if self._client is not failed:
                return True  # another thread was here first
            if self._signed_with is None or self._signed_with == self.config.credentials():
                return False
            self._client = None
            return True

    def _move(self, region: str | None, failed: Any) -> bool:
        """Give up a client of another region than the bucket's; False where nobody says which."""
        if region is None or not self.root.startswith("s3:"):
            return False
        if self._client is failed:
            region = region or bucket_region(self.root.removeprefix("s3://"), self.config)
        with self._lock:
            if self._client is not failed:
                return True  # another thread was here first
            if not region or region == self._region:
                return False
            _log.info("%s lies in region %s", self.root, region)
            self._region, self._client = region, None
            return True


def differ(state: ObjectState, expected: ObjectState) -> bool:
    """Return whether an object may have another state than it had.

    A state with an entity tag and one with a time alone are two: nothing tells that the bytes are the same.
    Where nothing but a size was known, it decides.
    """
    if state.size != expected.size:
        return True
    return _tells(expected) != (None, None) and _tells(state) != _tells(expected)


def covers(known: ObjectState, now: ObjectState) -> bool:
    """Return whether a known state has everything that an object's has now: it need not be read again."""
    return known.size == now.size and _tells(known) == _tells(now)


def _tells(state: ObjectState) -> tuple[str | None, int | None]:
    """Return by what a state is told from another: its time only where it has no entity tag."""
    return state.etag, state.mtime_ns if state.etag is None else None


_stores: dict[tuple[str, S3Config], Store] = {}
_opening = threading.Lock()
_used_by: int | None = None


def store_at(root: str, config: S3Config) -> Store:
    """Return the process's store at a root."""
    with _opening:
        store = _stores.get((root, config))
        if store is None:
            store = _stores[root, config] = Store(root, config)
        return store


def load_obstore() -> Any:
    """Return the package by which stores are read.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import obstore
    except ImportError:
        raise MissingExtraError("obstore", "cloud") from None
    return obstore


def _check_process() -> None:
    """Refuse to use the client in a forked child, which has none of its threads: it would wait for ever."""
    global _used_by
    if _used_by is None:
        _used_by = os.getpid()
    elif _used_by != os.getpid():
        raise SourceError(
            "io_error",
            None,
            "object stores cannot be read in a process that was forked after its parent read one: start "
            "workers by spawn or forkserver (multiprocessing_context='spawn' of a DataLoader)",
        )


def _after_fork() -> None:
    global _opening, _stores
    _opening = threading.Lock()
    abandon(_stores)  # to drop a client is to tell its threads, which may have held a lock
    _stores = {}


after_fork_in_child(_after_fork)
