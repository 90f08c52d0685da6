"""`Claim`: the right of one process to make one file, so that several processes share a list of work.

The ledger of `generate`, the downloads, `HealingPersistentDataset` and the joining of manifests take claims;
`verify --fix` leaves claimed files alone.
"""

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

from voxtier.errors import ConfigError
from voxtier.system.durable import STALE_AFTER, changed_lately, temporary_path
from voxtier.system.fork import after_fork_in_child
from voxtier.system.machine import is_running, numbering, start_ticks

BEAT_SECONDS = STALE_AFTER / 8
"""Between two heartbeats of a claim."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """The process that has a claim."""

    pid: int
    host: str
    boot: str
    """Where its number counts: see `numbering`. Versions before wrote the boot of the machine alone."""
    started: str = ""
    """When the process began, in the kernel's ticks: numbers of processes are used again."""


def _this_process() -> _Holder:
    return _Holder(os.getpid(), socket.gethostname(), numbering(), start_ticks(os.getpid()))


def _read_holder(path: Path) -> _Holder:
    raw = json.loads(path.read_text())
    return _Holder(int(raw["pid"]), str(raw["host"]), str(raw["boot"]), str(raw.get("started", "")))


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What `_read_holder` raises beside OSError: another program may have written the file."""


class Claim:
    """The right to make one file: an exclusive file beside the final name.

    The modification time of the claim file is the heartbeat. A claim may be taken over when its process is
    dead here, or has been silent for two minutes on another machine or in another container. ``flock`` is not
    used: network file systems ignore it.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> claim = Claim.take(folder / "a.pt")
    >>> Claim.take(folder / "a.pt") is None  # its process is alive
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
        """Take the claim on ``final``; None when another live process has it.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
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
        """Create the claim file, if there is none: written elsewhere and linked, it is never incomplete."""
        temporary = temporary_path(path)
        try:
            temporary.write_text(json.dumps(asdict(_this_process())))
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return Claim._create_in_place(path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    @staticmethod
    def _create_in_place(path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(json.dumps(asdict(_this_process())))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    @staticmethod
    def _remove_stale(path: Path) -> None:
        """Remove a dead claim by a rename, which succeeds in one of the processes that find it dead."""
        renamed = temporary_path(path)
        try:
            path.rename(renamed)
        except FileNotFoundError:
            return
        if claim_is_live(renamed):  # another process took it over after it was found dead
            with contextlib.suppress(OSError):
                os.link(renamed, path)
        renamed.unlink()

    def beat(self) -> None:
        """Renew the heartbeat."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Remove the claim, unless another process took it over while this machine was suspended."""
        with contextlib.suppress(OSError, *_UNREADABLE):
            if _read_holder(self.path) == _this_process():
                self.path.unlink()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Renew the heartbeat in a thread, and release the claim at the end."""
        done = threading.Event()

        def keep_beating() -> None:
            while not done.wait(BEAT_SECONDS):
                self.beat()

        thread = threading.Thread(target=keep_beating, name="voxtier-claim", daemon=True)
        thread.start()
        place = _place_of(self.path)
        _holders[place] = threading.get_ident()
        try:
            yield
        finally:
            _holders.pop(place, None)
            done.set()
            thread.join()
            self.release()


_holders: dict[Path | None, int] = {}
"""By claim file, the thread of this process that is in `Claim.hold`."""
_waiting: dict[int, Path] = {}
"""By thread, the claim file that it waits for."""


def _forget_threads() -> None:
    _holders.clear()
    _waiting.clear()


after_fork_in_child(_forget_threads)


def _place_of(path: Path) -> Path:
    return Path(os.path.realpath(path.parent), path.name)


def wait_for(final: Path, seconds: float) -> None:
    """Sleep, as another one has the claim on ``final``; to be called until that one is done.

    Raises
    ------
    ConfigError
        The claim is this thread's own, or that of a thread which waits for one of this thread's.
    """
    place, own = _place_of(Claim.path_for(final)), threading.get_ident()
    passed: set[int] = set()
    holder = _holders.get(place)
    while holder is not None and holder != own and holder not in passed:
        passed.add(holder)
        holder = _holders.get(_waiting.get(holder))
    if holder == own:
        raise ConfigError(
            f"{final}: is asked for while it is made, by the transforms that make it: two datasets share this"
            " file. Give each a cache_dir of its own, or hash_transform=pickle_hashing (monai.data.utils)"
        )
    _waiting[own] = place
    try:
        time.sleep(seconds)
    finally:
        _waiting.pop(own, None)


def claim_is_live(path: Path) -> bool:
    """Whether the claim file exists and its process may be alive."""
    running = None
    with contextlib.suppress(OSError, *_UNREADABLE):
        holder = _read_holder(path)
        running = is_running(holder.boot, holder.pid, holder.started)
    return changed_lately(path) if running is None else running


def claim_is_dead(path: Path) -> bool:
    """Whether this is a claim, and no process has it: a file of another program is no claim."""
    if claim_is_live(path):
        return False
    try:
        _read_holder(path)
    except OSError:
        return False
    except _UNREADABLE:
        with contextlib.suppress(OSError):
            return path.read_bytes()[:7] in (b"", b'{"pid":')  # its process was killed while it wrote
        return False
    return True
