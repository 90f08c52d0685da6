"""Files that appear complete or not at all.

A reader of a final name never sees a partial file: the content goes to a temporary name in the *same* folder,
is flushed to the disk, and is then linked or renamed. A killed writer leaves its temporary file; the name
holds the process and where its number counts, so that others there can tell whether the writer still runs.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxtier.system.machine import is_running, numbering, start_ticks

TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<where>[0-9a-f]{8})-(?P<pid>\d+)-(?:(?P<started>\d+)-)?(?P<serial>\d+)\.(?:tmp|part)"
)
"""``.<final name>.<where>-<pid>-<started>-<serial>.tmp``: hidden, and never ends in ``.pt``.

Where the number of the process counts, and its start, if the system tells (`voxtier.system.machine`).
Versions before wrote the boot alone and no start: nobody can tell of which container that number is.
"""

STALE_AFTER = 120.0
"""Seconds without a change after which a writer that runs on another machine, or in another container, counts
as ended: nobody here can tell."""
_CLOCK_DIFFERENCE = 86400.0
"""Seconds by which another machine's clock may be ahead; what is of a later time would never end."""

WRITE_STEP = 1 << 20
"""Bytes that are written before the disk is asked to take them."""

_serial = iter(range(1, 1 << 62))


def temporary_path(final: Path) -> Path:
    """Return a fresh temporary name beside ``final``."""
    name = os.fsdecode(os.fsencode(final.name)[:200])  # a file system's names end at 255 bytes
    pid = os.getpid()
    parts = [numbering(), str(pid), start_ticks(pid), str(next(_serial))]
    return final.with_name(f".{name}.{'-'.join(filter(None, parts))}.tmp")


def temporary_is_live(path: Path) -> bool:
    """Return whether the writer may still run: its process lives, or it wrote lately and nobody can tell."""
    match = TEMPORARY.fullmatch(path.name)
    running = is_running(match["where"], int(match["pid"]), match["started"] or "") if match else None
    return changed_lately(path) if running is None else running


def changed_lately(path: Path) -> bool:
    """Return whether a file is there and was changed within `STALE_AFTER`."""
    try:
        return -_CLOCK_DIFFERENCE < time.time() - path.stat().st_mtime < STALE_AFTER
    except OSError:
        return False


def remove_leftovers(final: Path) -> None:
    """Remove the temporary files that killed writers of ``final`` left."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.*"):
        match = TEMPORARY.fullmatch(path.name)
        if match and match["name"] == final.name and not temporary_is_live(path):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_from(link: Path, folder: Path) -> str | None:
    """Return where a link must lead in another folder to reach the same file; None if it can stay as it is.

    A relative link leads elsewhere from another folder; an absolute one, or a file, does not change.
    """
    here = os.path.realpath(link.parent)
    if not link.is_symlink() or here == os.path.realpath(folder):
        return None
    target = os.readlink(link)  # noqa: PTH115 (a path would lose a slash at the end)
    # Without taking ``..`` away: behind a link to a folder that is another place.
    return None if os.path.isabs(target) else os.path.join(here, target)  # noqa: PTH117, PTH118


class EagerFile(io.FileIO):
    """A file that hands its bytes to the disk while it is being written.

    The last flush then waits for the rest only: a third less time for a tensor of 30 MB.
    """

    error: OSError | None = None
    """The system's first error: libraries that write through this object may hide it behind their own."""
    _handed_over = 0
    _written = 0

    def write(self, content: Any, /) -> int:
        """Write the whole content."""
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
    sync: bool = True,
) -> bool:
    """Let ``write`` fill a file that then appears, complete, as ``final``.

    Parameters
    ----------
    final : Path
        In a folder that exists.
    write : callable
        Called with the open temporary file.
    check : callable
        Called with the path of the written file while the disk takes it; raises if it must not appear.
    mode : int
        Permission bits before the umask.
    replace : bool
        Replace an existing ``final``; otherwise the existing one stays.
    sync : bool
        Wait until the disk has the file; False for short-lived files, which a power cut may then lose.

    Returns
    -------
    bool
        Whether the file is now ``final``; False when an existing one stayed.

    Raises
    ------
    OSError
        Such as a full disk; no temporary file is left.
    """
    temporary = temporary_path(final)
    try:
        with EagerFile(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), "r+b") as stream:
            write(stream)
            check(temporary)
            if sync:
                os.fsync(stream.fileno())
        appeared = appear(temporary, final, replace=replace)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_folder(final.parent)
    return appeared


def write_output(output: Path, write: Callable[[Any], object]) -> None:
    """Let ``write`` fill a file that a user named: it appears complete, behind a link too.

    A pipe or a device is written to; to replace it by a file would take it from all others.
    """
    target = output.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            write(stream)
        return
    try:
        write_file(target, write)
    except OSError as error:
        error.filename = str(output)  # what the user named, not ours
        raise


def appear(temporary: Path, final: Path, *, replace: bool) -> bool:
    """Give a complete file its final name, or remove it.

    Parameters
    ----------
    temporary : Path
        In the folder of ``final``.
    final : Path
        The name.
    replace : bool
        Replace an existing ``final``; otherwise the existing one stays.

    Returns
    -------
    bool
        Whether it has the name.
    """
    if replace:
        temporary.replace(final)
        return True
    try:
        os.link(temporary, final)
        placed = True
    except FileExistsError:
        placed = False
    except OSError:  # a file system without hard links: check once more, then rename
        placed = not final.exists()
        if placed:
            temporary.replace(final)
            return True
    temporary.unlink()
    return placed


def write_text(final: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a small text file that appears complete.

    Parameters
    ----------
    final : Path
        In a folder that exists; an existing file is replaced.
    text : str
        Written as UTF-8.
    mode : int
        Permission bits before the umask.
    """
    write_file(final, lambda stream: stream.write(text.encode()), mode=mode)
