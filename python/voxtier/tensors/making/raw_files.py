"""Raw files on disk: which one lies at a path, and whether a run put it there.

worker.py notes the state of the file that it reads, ledger.py removes a file only while it is in that state.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple, Self

from voxtier.tensors.manifest import Entry


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
    if part is not None and part != found:  # else it has both names: its run was killed between them
        return False
    return found is None or bool(found.size == raw.get("size", found.size))
