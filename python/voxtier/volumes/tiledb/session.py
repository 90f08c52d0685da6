"""TileDB's contexts and files: where to connect, with which options, and what lies at an address.

A context owns threads, and threads do not survive a fork; so contexts and open arrays are kept per process,
and a forked child drops what it inherited without closing it (closing would wait for threads that are gone).
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import tiledb

from voxtier.arguments import check_kind
from voxtier.errors import ConfigError
from voxtier.system.durable import write_text
from voxtier.system.fork import abandon, after_fork_in_child
from voxtier.system.s3_config import S3Config
from voxtier.system.text import refuse_non_unicode
from voxtier.system.workers import finish
from voxtier.volumes.config import Config, get_config
from voxtier.volumes.tiledb.format.messages import translate_errors

Uri: TypeAlias = str | os.PathLike[str]

LATEST = 2**63 - 1
"""Time stamp of reads that see everything, also what a machine wrote whose clock is ahead."""

LOCK_NAME = ".voxtier.lock"
"""File whose lock a writer of a local store holds, and who consolidates a local volume."""

REMOVING = ".gone-"
"""Begins the names of local folders that are being removed; 32 hex digits follow."""

_MB = 1 << 20
_MULTIPART = "vfs.s3.use_multipart_upload"
# Those of RadiObject, whatever the environment says.
_REGION, _REQUEST_TIMEOUT = "us-east-1", 3.0
_SMALL = 3 << 20  # bytes of a local write that one thread does sooner than several
_SINGLE_THREAD = {"sm.compute_concurrency_level": "1", "sm.io_concurrency_level": "1"}


@dataclass(frozen=True, slots=True)
class Session:
    """What it takes to reach a store: the options and TileDB keys on top. Picklable; owns nothing.

    Every object of this room carries one, so that a worker that was spawned (and has the default
    configuration) still reaches the same endpoint with the same threads.

    Parameters
    ----------
    config : Config
        Options of this room.
    keys : tuple of (str, str)
        TileDB keys that replace what the options say, sorted.
    """

    config: Config
    keys: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def of(ctx: object = None) -> Session:
        """Return the session for a ``ctx=`` argument: None, a mapping of keys, a Config or a Ctx of TileDB.

        Raises
        ------
        ConfigError
            For anything else, and for a key that TileDB does not know.
        """
        if isinstance(ctx, Session):
            return ctx
        if ctx is None:
            return Session(get_config())
        if isinstance(ctx, tiledb.Ctx):
            ctx = ctx.config()
        chosen = ctx.dict() if isinstance(ctx, tiledb.Config) else ctx
        if not isinstance(chosen, Mapping):
            raise ConfigError(
                "ctx must be a tiledb.Ctx, a tiledb.Config or a mapping of TileDB keys,"
                f" got {type(ctx).__name__}"
            )
        defaults = _default_keys()
        unknown = sorted(key for key in chosen if key not in defaults and not key.startswith("py."))
        if unknown:
            raise ConfigError(
                f"TileDB {'.'.join(map(str, tiledb.libtiledb.version()))} knows no key {unknown[0]!r}"
            )
        session = Session(get_config())
        own = session.keys_in_force()
        texts = {key: str(value) for key, value in chosen.items()}
        # What TileDB or our options say anyway changes nothing, so a context of ours is none of the user's.
        changed = {k: text for k, text in texts.items() if text not in (defaults.get(k), own.get(k))}
        return Session(session.config, tuple(sorted(changed.items())))

    def context(self) -> tiledb.Ctx:
        """Return this process's context for these options: one for all, as it costs 16 ms and threads."""
        credentials = _credentials(self.config.s3)
        key = (self.config.read.concurrency, self.config.s3, self.keys, credentials)
        state = _state
        with state.lock:
            if key not in state.contexts:
                state.contexts[key] = _make_context(self._tiledb_keys(dict(credentials)))
            return state.contexts[key]

    def for_small_writes(self, uri: str, size: int) -> Session:
        """Return the session that writes objects of at most so many bytes best: locally by one thread.

        To an object store it puts each in one request: TileDB sends anything, however small, as an upload of
        parts, four requests instead of two.
        """
        if not is_remote(uri):
            return self.single_threaded() if size <= _SMALL else self
        if size > self.config.s3.multipart_part_size_mb * _MB:
            return self
        return Session(self.config, tuple(sorted({**dict(self.keys), _MULTIPART: "false"}.items())))

    def single_threaded(self) -> Session:
        """Return the session whose TileDB has one thread: for small work, and for callers that are threads.

        TileDB makes as many compressors for each tile as it has threads, and handing small pieces from thread
        to thread takes it longer than the pieces do.
        """
        return Session(self.config, tuple(sorted({**_SINGLE_THREAD, **dict(self.keys)}.items())))

    @property
    def is_plain(self) -> bool:
        """Whether no key of the user's changes what TileDB writes."""
        return set(self.keys) <= set(_SINGLE_THREAD.items())

    @property
    def region(self) -> str:
        """Region that requests to ``s3://`` are signed for."""
        return self.config.s3.region or _REGION

    def credentials(self) -> dict[str, str]:
        """Return the TileDB keys that sign requests now (empty: the machine's role, or none)."""
        return dict(_credentials(self.config.s3))

    def keys_in_force(self) -> dict[str, str]:
        """Return the TileDB keys by which stores are reached now, those that ``ctx=`` gave among them."""
        return self._tiledb_keys(self.credentials())

    def _tiledb_keys(self, credentials: dict[str, str]) -> dict[str, str]:
        read, s3 = self.config.read, self.config.s3
        timeout = _REQUEST_TIMEOUT if s3.timeout is None else s3.timeout
        keys = {
            "sm.mem.malloc_trim": "false",
            # Its handler calls the one before it, also where that is SIG_IGN: no address, a crash.
            "sm.enable_signal_handlers": "false",
            "sm.compute_concurrency_level": str(read.concurrency),
            "sm.io_concurrency_level": str(read.concurrency),
            "vfs.s3.region": self.region,
            "vfs.s3.use_virtual_addressing": str(s3.use_virtual_addressing).lower(),
            "vfs.s3.max_parallel_ops": str(s3.max_parallel_ops),
            "vfs.s3.multipart_part_size": str(s3.multipart_part_size_mb * _MB),
            "vfs.s3.request_timeout_ms": str(int(timeout * 1000)),
            "vfs.s3.no_sign_request": str(s3.anonymous or not s3.include_credentials).lower(),
        }
        if s3.endpoint_url is not None:
            keys["vfs.s3.scheme"], _, keys["vfs.s3.endpoint_override"] = s3.endpoint_url.partition("://")
        own = dict(self.keys)
        if (
            "vfs.s3.aws_access_key_id" not in own
        ):  # else a token of the environment would go with another's name
            keys |= credentials
        keys |= own
        unknown = sorted(key for key in set(keys) - set(_default_keys()) if not key.startswith("py."))
        if unknown:
            raise ConfigError(f"this TileDB knows no key {unknown[0]!r}: install another version")
        # A key of tiledb-py, not of TileDB: its default takes 10 MB for each column of a table that is read.
        return {"py.init_buffer_bytes": str(_MB // 4)} | keys


def _make_context(keys: Mapping[str, str]) -> tiledb.Ctx:
    """Make a context that leaves `os.fork` as it is.

    Before Python 3.12 tiledb-py makes `os.fork` warn of deadlocks once a context was made. This module's are
    dropped by a forked child; a context that somebody else makes still brings the warning.
    """
    fork = os.fork
    context = tiledb.Ctx(tiledb.Config(keys))
    if os.fork is not fork:
        os.fork = fork
        tiledb.ctx._needs_fork_wrapper = True
    return context


def _default_keys() -> dict[str, str]:
    defaults: dict[str, str] = tiledb.Config().dict()
    return defaults


def _credentials(s3: S3Config) -> tuple[tuple[str, str], ...]:
    """Return the keys that sign requests; part of the context's key, so a rotation makes a new context."""
    # Without explicit keys TileDB asks the machine's role and refreshes by itself.
    return tuple((f"vfs.s3.{name}", value) for name, value in s3.credentials().items())


class _ProcessState:
    """The contexts of one process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.contexts: dict[object, tiledb.Ctx] = {}


_state = _ProcessState()


def _after_fork() -> None:
    global _state
    abandon(_state)  # its destructors would wait for threads that the child lacks
    _state = _ProcessState()


after_fork_in_child(_after_fork)


def as_uri(path: Uri) -> str:
    """Return a store's address as text without a trailing slash; ``file://`` becomes a plain path.

    Raises
    ------
    ConfigError
        For anything but a non-empty text or path in UTF-8.
    """
    way = "; Volume.from_numpy(uri, array) stores an array" if hasattr(path, "__array__") else ""
    check_kind("a store's address", path, (str, os.PathLike), f"a path or a URI{way}")
    uri = os.fspath(path)
    if not isinstance(uri, str) or not uri:
        raise ConfigError(f"a store's address must be a non-empty path or URI, got {path!r}")
    uri = uri.removeprefix("file://")
    if not is_remote(uri):
        uri = str(Path(uri).expanduser().absolute())
    refuse_non_unicode(uri, "a store's address")
    if "\0" in uri:
        raise ConfigError(f"a store's address: {uri!r} holds a zero byte")
    return uri.rstrip("/") or "/"


def is_remote(uri: str) -> bool:
    """Return whether the address names an object store rather than a local folder."""
    return "://" in uri


def read_kind(uri: str, session: Session) -> str | None:
    """Return ``"array"``, ``"group"`` or None for what lies at the address."""
    with translate_errors(f"look at {uri}"):
        kind = tiledb.object_type(uri, ctx=session.context())
        if kind is None and not is_remote(uri):
            _check_entry(Path(uri))
    return str(kind) if kind else None


def _check_entry(path: Path) -> None:
    """Raise PermissionError where nobody can look: TileDB takes that for what is not there."""
    try:
        (path / LOCK_NAME).stat()
    except PermissionError:
        raise
    except OSError:
        return


def now_ms() -> int:
    """Return the milliseconds since 1970, as time stamps of TileDB count them."""
    return time.time_ns() // 1_000_000


def next_timestamp(uri: str, folders: Iterable[str], session: Session) -> int:
    """Return a time stamp for a write that has to count more than all before it.

    It is now, but where the clock of who wrote last was ahead of this one: TileDB goes by the time stamps,
    not by which write came last.

    Parameters
    ----------
    uri : str
        Address of an array or a group.
    folders : iterable of str
        Names of its folders that the write adds a file to.
    session : Session
        How it is reached.

    Returns
    -------
    int
        Milliseconds since 1970.
    """
    names = [name for folder in folders for name in list_entries(f"{uri}/{folder}", session)]
    return max([now_ms(), *(last + 1 for _, last in map(stamps_of, names))])


def stamps_of(name: str) -> tuple[int, int]:
    """Return the first and the last time stamp in the name of a file or a fragment; -1 where it has none."""
    match = re.match(r"__(\d+)_(\d+)_[0-9a-f]{32}", name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def list_folders(uri: str, session: Session) -> list[str]:
    """Return the sorted names of the folders below an address (on an object store, also of objects there)."""
    if not is_remote(uri):
        path = Path(uri)
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    vfs = tiledb.VFS(ctx=session.context())
    with translate_errors(f"list {uri}"):
        return sorted({as_uri(entry).rsplit("/", 1)[-1] for entry in vfs.ls(uri)})


def list_entries(uri: str, session: Session) -> list[str]:
    """Return the sorted names of what lies directly below an address, files too; nothing there is fine."""
    if is_remote(uri):
        own = uri.rsplit("/", 1)[-1]
        return [name for name in list_folders(uri, session) if name != own]  # an empty folder lists itself
    return sorted(os.listdir(uri)) if Path(uri).is_dir() else []  # noqa: PTH208


def holds_no_file(folder: Path) -> bool:
    """Return whether nothing but folders lies in a local folder, at any depth; not there is no folder.

    A folder that cannot be read may hold files.
    """
    try:
        with os.scandir(folder) as entries:
            return all(e.is_dir(follow_symlinks=False) and holds_no_file(Path(e)) for e in entries)
    except OSError:
        return False


def is_removing(name: str) -> bool:
    """Return whether a folder of this name is one that `remove_tree` had begun to remove."""
    return re.fullmatch(re.escape(REMOVING) + "[0-9a-f]{32}", name) is not None


def remove_tree(uri: str, session: Session) -> None:
    """Remove whatever lies at the address; nothing there is fine.

    A local folder is renamed first, so that a removal that is killed leaves nothing that looks complete.
    """
    if not is_remote(uri):
        path = Path(uri)
        renamed = path.with_name(f"{REMOVING}{uuid.uuid4().hex}")
        try:
            path.rename(renamed)
        except OSError:
            renamed = path
        finish(lambda: shutil.rmtree(renamed, ignore_errors=True))
        return
    vfs = tiledb.VFS(ctx=session.context())
    with translate_errors(f"remove {uri}"):
        if vfs.is_dir(uri):
            vfs.remove_dir(uri)
            _remove_empty_folders(uri, vfs)


def _remove_empty_folders(uri: str, vfs: tiledb.VFS) -> None:
    """Remove the folders that some servers keep of objects that are gone: they would look like an array.

    A folder is the key that ends with a slash; removing it leaves alone what was put into it meanwhile.
    """
    if vfs.is_dir(uri):
        for entry in map(as_uri, vfs.ls(uri)):
            if entry != uri:  # an empty folder lists itself
                _remove_empty_folders(entry, vfs)
        vfs.remove_file(f"{uri}/")


def remove_file(uri: str, session: Session) -> None:
    """Remove one file or object."""
    with translate_errors(f"remove {uri}"):
        if is_remote(uri):
            tiledb.VFS(ctx=session.context()).remove_file(uri)
        else:
            Path(uri).unlink()


def read_file(uri: str, session: Session) -> bytes:
    """Return the content of one small file or object."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    with translate_errors(f"read {uri}"), tiledb.VFS(ctx=session.context()).open(uri, "rb") as file:
        return bytes(file.read())


def write_file(uri: str, text: str, session: Session) -> None:
    """Write one small file or object that is new: whole, or not at all.

    Parameters
    ----------
    uri : str
        Its address.
    text : str
        Its content.
    session : Session
        How it is reached.
    """
    if not is_remote(uri):
        with translate_errors(f"write {uri}"):
            write_text(Path(uri), text)
        return
    with translate_errors(f"write {uri}"), tiledb.VFS(ctx=session.context()).open(uri, "wb") as file:
        file.write(text.encode())


def measure_bytes(uri: str, session: Session) -> int:
    """Return the bytes that everything below the address occupies."""
    if not is_remote(uri):
        return sum(
            (Path(folder) / name).stat().st_size for folder, _, names in os.walk(uri) for name in names
        )
    vfs = tiledb.VFS(ctx=session.context())
    with translate_errors(f"measure {uri}"):
        return int(vfs.dir_size(uri))


def start_counting() -> None:
    """Let TileDB count what it does in this process, from zero."""
    tiledb.stats_enable()
    tiledb.stats_reset()


def stop_counting() -> str:
    """Let TileDB count no more, and return its counters as JSON text (``{}``: it did nothing)."""
    try:
        return str(tiledb.stats_dump(print_out=False, json=True, verbose=False))
    except IndexError:  # what tiledb-py raises for nothing to tell
        return "{}"
    finally:
        tiledb.stats_disable()
