"""The rules of a run, apart from the loop that obeys them.

run.py asks `DiskPolicy` when a volume may begin, `HubPolicy` what a failed download means for the run,
`DeathPolicy` what the death of a worker means for the pool and for its volume, and `ChangePolicy` whether a
volume begins again whose raw file has gone. hub.py repeats its requests by
`RetryPolicy`.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from voxtier.errors import BackendError, ConfigError, NotFoundError, TransientError

T = TypeVar("T")


def is_disk_full(number: int | None) -> bool:
    """Whether an ``errno`` says that a disk or a quota is full: every later file would fail as well."""
    return number in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """When the disk has room for another volume."""

    min_free: int
    """Bytes that stay free."""
    output_bytes: int
    """Bytes of one tensor file."""
    max_raw_bytes: int | None = None
    """Most bytes of downloaded raw files at once; None for no limit."""

    def shortage(self, needed: int, free: int) -> str:
        """Return why a run that needs ``needed`` bytes must not start with ``free`` bytes, or ``""``."""
        if needed + self.min_free <= free:
            return ""
        return (
            f"needs {needed:,} bytes with {self.min_free:,} kept free, but the disk has {free:,};"
            " --until-full starts and stops in time"
        )

    def decide(
        self, *, free: int, under_way: int, raw_bytes: int, download_bytes: int
    ) -> Literal["begin", "wait", "stop"]:
        """Decide on the next volume.

        Parameters
        ----------
        free : int
            Free bytes of the disk that holds the cache.
        under_way : int
            Volumes that were begun and whose tensors are not written yet.
        raw_bytes : int
            Bytes of raw files that this run has downloaded, or downloads now.
        download_bytes : int
            Bytes of the next volume's download; 0 when its raw file lies on disk.

        Returns
        -------
        {"begin", "wait", "stop"}
            ``wait`` when a volume under way will make room, ``stop`` when none will.
        """
        if free - (under_way + 1) * self.output_bytes < self.min_free:
            return "wait" if under_way else "stop"
        if self.max_raw_bytes is not None and raw_bytes and raw_bytes + download_bytes > self.max_raw_bytes:
            return "wait"
        return "begin"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after which pauses, a request is repeated."""

    pause: float = 0.5
    """Seconds before the first repetition, within a fifth; doubled each time."""
    attempts: int = 6
    longest_pause: float = 60.0
    longest_retry_after: float = 300.0
    """The most seconds that a server may ask for."""

    def repeat(self, request: Callable[[], T], sleep: Callable[[float], None], *, where: str) -> T:
        """Make a request until it succeeds.

        Parameters
        ----------
        request : callable
            Raises `TransientError` for a fault that may pass.
        sleep : callable
            Gets the seconds of each pause.
        where : str
            What the request concerns, for the message.

        Returns
        -------
        object
            What ``request`` returned.

        Raises
        ------
        BackendError
            Every attempt failed.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except TransientError as fault:
                reason = str(fault)
                pause = self.pause * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
                wait = max(min(self.longest_pause, pause), fault.retry_after)
            if attempt < self.attempts:
                sleep(min(wait, self.longest_retry_after))
        raise BackendError(f"{where}: gave up after {self.attempts} attempts: {reason}")


@dataclass(frozen=True, slots=True)
class DownloadFailure:
    """The meaning of one failed download."""

    is_missing: bool = False
    """The pinned revision lacks the file: later runs need not ask again."""
    stop_reason: str = ""
    """Why the whole run must stop; empty when only this volume failed."""


class HubPolicy:
    """Whether the hub is down, and what a failed download means for the run.

    `RetryPolicy` has repeated the requests before: faults that pass do not come here.

    Parameters
    ----------
    images : Path
        The folder that downloads are written to.
    down : bool
        Whether the hub was down already when the run was planned.
    """

    FAILURES_IN_A_ROW = 5
    """Failed downloads after which the hub counts as down."""

    def __init__(self, images: Path, *, down: bool = False) -> None:
        self.down = down
        self._images = images
        self._failures = 0

    def succeeded(self) -> None:
        """Count a download that put its file there: the hub answers."""
        self._failures = 0

    def judge(self, error: Exception) -> DownloadFailure:
        """Count a failed download, and return what it means."""
        if isinstance(error, NotFoundError):
            return DownloadFailure(is_missing=True)
        if isinstance(error, ConfigError):  # the next download would be refused as well
            return DownloadFailure(stop_reason=str(error))
        if isinstance(error, BackendError):
            self._failures += 1
            self.down |= self._failures >= self.FAILURES_IN_A_ROW
        elif isinstance(error, OSError) and is_disk_full(error.errno):
            return DownloadFailure(stop_reason=f"the disk of {self._images} is full")
        return DownloadFailure()


class DeathPolicy:
    """What the death of a worker means: fewer workers, and a second try of its volume, but no third."""

    DEATHS_PER_VOLUME = 2
    """A volume that ends this many workers has failed."""

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()

    @staticmethod
    def next_size(size: int) -> int:
        """Return the size of the pool after a death: half, because memory is the usual cause."""
        return max(1, size // 2)

    def try_again(self, key: str) -> bool:
        """Count a death for a volume, and return whether the volume gets another worker."""
        self._deaths[key] += 1
        return self._deaths[key] < self.DEATHS_PER_VOLUME


class ChangePolicy:
    """What it means that a raw file changed before a worker had read it: the volume begins again.

    Runs over other configurations share the folder of images, and remove what they have downloaded.
    """

    CHANGES_PER_VOLUME = 10
    """A volume whose raw file changes that often has failed: more runs than that share no folder."""

    def __init__(self) -> None:
        self._changes: Counter[str] = Counter()

    def try_again(self, key: str) -> bool:
        """Count a change for a volume, and return whether it begins again."""
        self._changes[key] += 1
        return self._changes[key] < self.CHANGES_PER_VOLUME
