"""Raw files: which one lies at a path, whose it is, and downloads, kept across kills and checked at the end.

worker.py notes the state of the file that it reads (`RawState`), ledger.py removes a file only while it is in
that state. hub.py drives a `Transfer`; run.py starts and collects several at once through `Downloads`.
"""

from __future__ import annotations

import contextlib
import email.message
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from voxtier.system.durable import appear, sync_folder
from voxtier.system.workers import ContextThreads

if TYPE_CHECKING:
    from voxtier.tensors.manifest import Entry

TaskT = TypeVar("TaskT")

CHUNK = 1 << 20
"""Bytes that are read at once."""
Fetched: TypeAlias = Literal["fetched", "same", "other"]
"""The end of a download: the file is ours, or somebody laid it there, with that content or another."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of the repository at the pinned commit."""

    path: str
    size: int
    sha256: str | None
    """Of LFS files; None for others, which ``git_oid`` identifies."""
    git_oid: str | None
    """SHA-1 of the git object: of its header ``blob <size>\\0`` and the content."""


class RawState(NamedTuple):
    """What tells one raw file from another that is laid in its place, or written over it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the state of a file; None where there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def as_source(self) -> Entry:
        """Return what the manifest keeps: other runs, and other mounts, must find it again."""
        return {"size": self.size, "mtime_ns": self.mtime_ns}


def part_paths(final: Path) -> tuple[Path, Path]:
    """Return the paths of an unfinished transfer and of the JSON file that identifies its content."""
    part = final.with_name(f".{final.name}.part")
    return part, part.with_name(part.name + ".json")


def is_ours(entry: Entry, path: Path) -> bool:
    """Whether a run downloaded the raw file of a volume; one that the user put in its place is not ours.

    Parameters
    ----------
    entry : dict
        Of the volume, from the manifest.
    path : Path
        The raw file. One that is gone already counts as ours.

    Returns
    -------
    bool
        False too for a download that was never finished.
    """
    raw = entry.get("raw") or {}
    if not raw.get("ours"):
        return False
    part, found = (RawState.of(each) for each in (part_paths(path)[0], path))
    if found is None:
        return part is None
    if found.size != raw.get("size", found.size):
        return False
    if part is not None:  # the file has both names: its run was killed between them
        return part == found
    if raw.get("mtime_ns") is not None:
        return bool(found.mtime_ns == raw["mtime_ns"])
    # Its run was killed before it could record the time, or was of an earlier version.
    sha256, git_oid = (raw.get("source") or {}).get("sha256"), raw.get("git_oid")
    return (sha256 or git_oid) is None or holds(path, RemoteFile("", found.size, sha256, git_oid))


class _Digest(Protocol):
    def update(self, content: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def _new_digest(remote: RemoteFile) -> _Digest:
    if remote.sha256 is not None:
        return hashlib.sha256()
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(f"blob {remote.size}\0".encode())  # the header of a git object
    return digest


def holds(path: Path, remote: RemoteFile) -> bool:
    """Whether a file on disk has the content of one of the repository."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != remote.size:
                return False
            digest = _new_digest(remote)
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == (remote.sha256 or remote.git_oid)


def is_of_commit(downloaded: Entry, repo: str, commit: str) -> bool:
    """Whether a file was downloaded from a commit of a repository.

    Parameters
    ----------
    downloaded : dict
        Where it came from, by the manifest.
    repo : str
        The repository.
    commit : str
        Its commit.

    Returns
    -------
    bool
        False where the manifest does not say.
    """
    return (downloaded.get("repo"), downloaded.get("commit")) == (repo, commit)


def is_current(downloaded: Entry, path: Path, remote: RemoteFile, source: Entry) -> bool:
    """Return whether what an earlier run downloaded is what a download would bring now.

    Parameters
    ----------
    downloaded : dict
        Where it came from, by the manifest.
    path : Path
        Where it lies.
    remote : RemoteFile
        The file of the repository now.
    source : dict
        Where that one comes from.

    Returns
    -------
    bool
        True for the same commit, or the same content.
    """
    if is_of_commit(downloaded, source["repo"], source["commit"]):
        return True
    if downloaded.get("sha256") is not None and remote.sha256 is not None:
        return bool(downloaded["sha256"] == remote.sha256)
    return holds(path, remote)


def describe_outdated(raw: Path, origin: str) -> str:
    """Return why a raw file is not used that an earlier run downloaded, and what to do."""
    where = f"{raw}: downloaded from {origin}"
    return f"{where}, and the configuration names another: remove it, or name that commit"


class Transfer:
    """One file on its way: the part on disk, its identity, and the checksum of the bytes so far.

    Parameters
    ----------
    remote : RemoteFile
        The file.
    final : Path
        Where it appears. A part that lies beside it is continued if it belongs to this very file.
    commit : str
        The commit of ``remote``.

    Attributes
    ----------
    position : int
        Bytes that were fetched.
    etag : str or None
        Strong validator of the body (RFC 9110, 8.8.3), for ``If-Range``.
    disk_error : OSError or None
        The first refusal of the disk, to be told from errors of the network.
    wrong_contents : int
        How often the complete file had another checksum.
    is_placed : bool
        Whether `finish` gave the file its name: False where somebody had laid one there meanwhile.
    """

    def __init__(self, remote: RemoteFile, final: Path, commit: str) -> None:
        self.remote = remote
        self.disk_error: OSError | None = None
        self.etag: str | None = None
        self.position = 0
        self.wrong_contents = 0
        self.is_placed = False
        self._final = final
        self._part, self._sidecar = part_paths(final)
        self._identity = {"commit": commit, "size": remote.size, "content": remote.sha256 or remote.git_oid}
        self._digest: _Digest = _new_digest(remote)
        self._stream: IO[bytes] | None = None
        self._resume()

    def _resume(self) -> None:
        try:
            identity = json.loads(self._sidecar.read_text())
            if {key: identity.get(key) for key in self._identity} != self._identity:
                raise ValueError("another version of the file")
            with self._part.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    self._digest.update(chunk)
                    self.position += len(chunk)
            if self.position > self.remote.size:
                raise ValueError("longer than the file")
            self.etag = identity.get("etag")
        except (OSError, ValueError, AttributeError, RecursionError):
            self.restart()

    def restart(self) -> None:
        """Remove the part: the next request fetches the whole file."""
        self._close()
        for path in (self._part, self._sidecar):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self._digest = _new_digest(self.remote)
        self.position = 0
        self.etag = None

    def begin(self, status: int, headers: email.message.Message) -> None:
        """Prepare for the body of a response: a 206 continues the part, any other starts again."""
        if status == 206:
            start = (headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
            if start != str(self.position):
                self.restart()
                raise ConnectionError("the server continued at another place")
        elif self.position:
            self.restart()
        self.etag = headers.get("ETag") if not (headers.get("ETag") or "W/").startswith("W/") else None
        try:
            if self.position == 0:
                self._sidecar.write_text(json.dumps({**self._identity, "etag": self.etag}))
            self._close()
            self._stream = self._part.open("ab")
        except OSError as error:
            self.disk_error = error
            raise

    def write(self, chunk: bytes) -> None:
        """Append bytes to the part."""
        if self.position + len(chunk) > self.remote.size:
            self.restart()
            raise ConnectionError("the server sent more bytes than the file has")
        assert self._stream is not None
        try:
            self._stream.write(chunk)
        except OSError as error:
            self.disk_error = error
            raise
        self._digest.update(chunk)
        self.position += len(chunk)

    def pause(self) -> None:
        """Close the part, so that its bytes reach the disk."""
        self._close()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                self.disk_error = error

    def finish(self) -> bool:
        """Let the file appear if its bytes are right; else remove the part and return False.

        A file that lies there already stays: `is_placed` tells.
        """
        expected = self.remote.sha256 or self.remote.git_oid
        if expected is not None and self._digest.hexdigest() != expected:
            return self._refuse_content()
        if self.remote.size == 0:
            self._part.touch()
        self._close()
        if self.disk_error is not None:
            raise self.disk_error
        with self._part.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != self.remote.size:  # another process wrote to it
                return self._refuse_content()
            os.fsync(stream.fileno())
        self.is_placed = appear(self._part, self._final, replace=False)
        sync_folder(self._final.parent)
        self._sidecar.unlink(missing_ok=True)
        return True

    def _refuse_content(self) -> bool:
        self.wrong_contents += 1
        self.restart()
        return False


class Downloads(Generic[TaskT]):
    """Downloads that run in threads, each for one task.

    Parameters
    ----------
    threads : int
        The most downloads at once.
    on_end : callable
        Called in the thread of a download when it has ended.
    """

    def __init__(self, threads: int, *, on_end: Callable[[], None]) -> None:
        self._executor = ContextThreads(threads, "voxtier-download")
        self._on_end = on_end
        self._tasks: dict[Future[Fetched], TaskT] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, task: TaskT, fetch: Callable[[], Fetched]) -> None:
        """Run ``fetch`` in a thread, now or when one is free."""
        future = self._executor.submit(fetch)
        self._tasks[future] = task
        future.add_done_callback(lambda _: self._on_end())

    def collect(self) -> Iterator[tuple[TaskT, Fetched | BaseException]]:
        """Yield the tasks whose downloads have ended, each once, with the outcome or the error."""
        for future in [each for each in self._tasks if each.done()]:
            yield self._tasks.pop(future), future.exception() or future.result()

    def close(self, *, wait: bool) -> None:
        """Begin no further download; with ``wait`` return only when the running ones have ended."""
        self._executor.shutdown(wait=wait, cancel_futures=True)
