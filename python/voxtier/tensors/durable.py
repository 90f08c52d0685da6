"""Files that appear whole or not at all, and claims that let several processes share work.

A reader of a final name never sees a partial file: content goes to a temporary name in the *same* folder,
is flushed to the disk, and is then linked or renamed. After a kill the temporary name is left; it carries
host, boot and process, so that a later run can tell the dead from the living.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Claim",
    "EagerFile",
    "claim_is_live",
    "sync_folder",
    "temporary_is_live",
    "write_file",
    "write_text",
]

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<boot>[0-9a-f]{8})-(?P<pid>\d+)-(?P<serial>\d+)\.(?:tmp|part)")
"""``.<final name>.<boot>-<pid>-<serial>.tmp``: hidden, and never ends in ``.pt``."""

STALE_AFTER = 120.0
"""Seconds without a heartbeat after which a claim of another machine is free to take."""

WRITE_STEP = 1 << 20
"""Bytes that are written before the disk is told to take them."""

_serial = iter(range(1, 1 << 62))


def boot_id() -> str:
    """Return eight hexadecimal digits that name this machine since its last start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        import zlib

        return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def temporary_path(final: Path) -> Path:
    """Return a fresh temporary name beside ``final``."""
    return final.with_name(f".{final.name}.{boot_id()}-{os.getpid()}-{next(_serial)}.tmp")


def process_is_alive(pid: int) -> bool:
    """Whether a process of that number exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def temporary_is_live(path: Path, *, now: float | None = None) -> bool:
    """Whether the writer may still be at work: its process lives, or the file is young and foreign."""
    match = TEMPORARY.fullmatch(path.name)
    if match and match["boot"] == boot_id():
        return process_is_alive(int(match["pid"]))
    try:
        return (now or time.time()) - path.stat().st_mtime < STALE_AFTER
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class EagerFile(io.FileIO):
    """A file whose bytes are on their way to the disk while it is still being written.

    The last flush then waits for the rest only: a third less for a tensor of 30 MB.
    """

    error: OSError | None = None
    """The first refusal: libraries that write through this object tend to hide it behind their own."""
    _handed_over = 0
    _written = 0

    def write(self, content: Any, /) -> int:
        """Write all of it."""
        rest = view = memoryview(content).cast("B")
        try:
            while rest:
                count = super().write(rest[:WRITE_STEP]) or 0
                rest = rest[count:]
                self._written += count
                if self._written - self._handed_over >= WRITE_STEP:
                    self._hand_over()
        except OSError as error:
            self.error = self.error or error
            raise
        return len(view)

    def _hand_over(self) -> None:
        start, self._handed_over = self._handed_over, self._written
        if hasattr(os, "posix_fadvise"):  # pages that are not on the disk yet are sent there, and kept
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fileno(), start, self._written - start, os.POSIX_FADV_DONTNEED)


def write_file(
    final: Path,
    write: Callable[[EagerFile], object],
    *,
    check: Callable[[Path], None] = lambda _: None,
    mode: int = 0o666,
    replace: bool = True,
) -> bool:
    """Let ``write`` fill a file that then appears under ``final`` as a whole.

    Parameters
    ----------
    final : Path
        In a folder that exists.
    write : callable
        Gets the open temporary file.
    check : callable
        Gets the path of the written file, and raises if it must not appear. The disk works meanwhile.
    mode : int
        Permission bits before the umask.
    replace : bool
        Whether an existing ``final`` is replaced; otherwise it wins.

    Returns
    -------
    bool
        False when ``final`` existed and won.

    Raises
    ------
    OSError
        Including a full disk; no temporary file stays behind.
    """
    temporary = temporary_path(final)
    try:
        with EagerFile(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), "r+b") as stream:
            write(stream)
            check(temporary)
            os.fsync(stream.fileno())
        won = _appear(temporary, final, replace=replace)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(final.parent)
    return won


def _appear(temporary: Path, final: Path, *, replace: bool) -> bool:
    if replace:
        temporary.replace(final)
        return True
    try:
        os.link(temporary, final)
        won = True
    except FileExistsError:
        won = False
    except OSError:  # a file system without hard links: the last check before the rename has to do
        won = not final.exists()
        if won:
            temporary.replace(final)
            return True
    temporary.unlink()
    return won


def write_text(final: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a small text file that appears as a whole."""
    write_file(final, lambda stream: stream.write(text.encode()), mode=mode)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a claim."""

    pid: int
    host: str
    boot: str


class Claim:
    """The right to make one file, held by one process among many.

    An exclusive file beside the final name, whose modification time is the heartbeat. ``flock`` is not
    used: network file systems ignore it. A claim whose process is dead on this machine, or that has been
    silent for two minutes on another, may be taken over.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> claim = Claim.take(folder / "a.pt")
    >>> Claim.take(folder / "a.pt") is None  # held, and alive
    True
    >>> claim.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def path_for(final: Path) -> Path:
        """Return the claim's name: ``.<final name>.claim``."""
        return final.with_name(f".{final.name}.claim")

    @classmethod
    def take(cls, final: Path) -> Claim | None:
        """Take the claim on ``final``; None when another process holds it and lives."""
        path = cls.path_for(final)
        for _ in range(2):
            if cls._create(path):
                return cls(path)
            if claim_is_live(path):
                return None
            cls._remove_stale(path)
        return None

    @staticmethod
    def _create(path: Path) -> bool:
        """Create the claim exclusively: written aside, then linked, so that none is ever half-written."""
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot_id()}
        aside = temporary_path(path)
        aside.write_text(json.dumps(holder))
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w") as stream:
                stream.write(json.dumps(holder))
        finally:
            aside.unlink()
        return True

    @staticmethod
    def _remove_stale(path: Path) -> None:
        """Move a dead claim away first: of several processes that find it, one rename succeeds."""
        grave = temporary_path(path)
        try:
            path.rename(grave)
        except FileNotFoundError:
            return
        if claim_is_live(grave):  # another process took it over between our look and our rename
            with contextlib.suppress(OSError):
                os.link(grave, path)
        grave.unlink()

    def beat(self) -> None:
        """Show that the holder lives."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the claim up."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Beat in the background, and release at the end, come what may."""
        done = threading.Event()

        def keep_beating() -> None:
            while not done.wait(STALE_AFTER / 6):
                self.beat()

        thread = threading.Thread(target=keep_beating, name="voxtier-claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.release()


def claim_is_live(path: Path) -> bool:
    """Whether the claim file exists and its holder may be alive."""
    try:
        age = time.time() - path.stat().st_mtime
        raw = json.loads(path.read_text())
        holder = Holder(int(raw["pid"]), str(raw["host"]), str(raw["boot"]))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        try:
            return time.time() - path.stat().st_mtime < STALE_AFTER
        except OSError:
            return False
    if holder.boot == boot_id() and holder.host == socket.gethostname():
        return process_is_alive(holder.pid)
    return age < STALE_AFTER
