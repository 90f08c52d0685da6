"""Claims, which let several processes share work: each file is made by one of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from voxtier.system.durable import STALE_AFTER, boot_id, temporary_path
from voxtier.system.processes import is_alive, started

__all__ = ["Claim", "claim_is_live"]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a claim."""

    pid: int
    host: str
    boot: str
    started: str = ""
    """When the process was started, in the kernel's ticks: numbers of processes are used again."""


def _myself() -> Holder:
    return Holder(os.getpid(), socket.gethostname(), boot_id(), started(os.getpid()))


def _holder(path: Path) -> Holder:
    raw = json.loads(path.read_text())
    return Holder(int(raw["pid"]), str(raw["host"]), str(raw["boot"]), str(raw.get("started", "")))


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
        aside = temporary_path(path)
        try:
            aside.write_text(json.dumps(asdict(_myself())))
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return Claim._create_in_place(path)
        finally:
            aside.unlink(missing_ok=True)
        return True

    @staticmethod
    def _create_in_place(path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(json.dumps(asdict(_myself())))
        except OSError:
            path.unlink(missing_ok=True)
            raise
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
        """Give the claim up, unless another took it over while this machine slept."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if _holder(self.path) == _myself():
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
        holder = _holder(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        try:
            return time.time() - path.stat().st_mtime < STALE_AFTER
        except OSError:
            return False
    if holder.boot == boot_id() and holder.host == socket.gethostname():
        return is_alive(holder.pid) and holder.started in ("", started(holder.pid))
    return age < STALE_AFTER
