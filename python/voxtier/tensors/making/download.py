"""One file on its way from the hub: kept across kills, and checked before it appears."""

from __future__ import annotations

import contextlib
import email.message
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from voxtier.system.durable import sync_folder

__all__ = ["CHUNK", "RemoteFile", "Transfer", "part_paths"]

CHUNK = 1 << 20
"""Bytes at a time."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of the repository at the pinned revision."""

    path: str
    size: int
    sha256: str | None
    """For LFS files; others carry ``git_oid``."""
    git_oid: str | None


class _Digest(Protocol):
    def update(self, content: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def part_paths(final: Path) -> tuple[Path, Path]:
    """Return the names of an unfinished transfer and of what identifies it."""
    part = final.with_name(f".{final.name}.part")
    return part, part.with_name(part.name + ".json")


class Transfer:
    """One file on its way: the part, its identity, and the checksum of what is there."""

    def __init__(self, remote: RemoteFile, final: Path, commit: str) -> None:
        self.remote = remote
        self.disk_error: OSError | None = None
        self.etag: str | None = None
        self.position = 0
        self._final = final
        self._part, self._sidecar = part_paths(final)
        self._identity = {"commit": commit, "size": remote.size, "content": remote.sha256 or remote.git_oid}
        self._digest: _Digest = self._new_digest()
        self._stream: IO[bytes] | None = None
        self._resume()

    def _new_digest(self) -> _Digest:
        if self.remote.sha256 is not None:
            return hashlib.sha256()
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {self.remote.size}\0".encode())  # a git object's name covers its header
        return digest

    def _resume(self) -> None:
        try:
            known = json.loads(self._sidecar.read_text())
            if {key: known.get(key) for key in self._identity} != self._identity:
                raise ValueError("another version of the file")
            with self._part.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    self._digest.update(chunk)
                    self.position += len(chunk)
            if self.position > self.remote.size:
                raise ValueError("longer than the file")
            self.etag = known.get("etag")
        except (OSError, ValueError, AttributeError, RecursionError):
            self.restart()

    def restart(self) -> None:
        """Forget what was fetched."""
        self._close()
        for path in (self._part, self._sidecar):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self._digest = self._new_digest()
        self.position = 0
        self.etag = None

    def begin(self, status: int, headers: email.message.Message) -> None:
        """Prepare for a body: behind what is there when the server continues, else from the start."""
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
        """Take the next bytes."""
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
        """Put what was fetched on the disk."""
        self._close()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                self.disk_error = error

    def finish(self) -> bool:
        """Check, and let the file appear; False when the bytes are wrong (everything is forgotten then)."""
        expected = self.remote.sha256 or self.remote.git_oid
        if expected is not None and self._digest.hexdigest() != expected:
            self.restart()
            return False
        if self.remote.size == 0:
            self._part.touch()
        self._close()
        if self.disk_error is not None:
            raise self.disk_error
        with self._part.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != self.remote.size:  # somebody else appended, or began anew
                self.restart()
                return False
            os.fsync(stream.fileno())
        self._part.replace(self._final)
        sync_folder(self._final.parent)
        self._sidecar.unlink(missing_ok=True)
        return True
