"""Which files to look at, and under which name: folders walked, extensions matched, paths made absolute."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

__all__ = ["absolute", "iter_files", "matches"]

# Entries of one folder that are sorted at once: all of them in most, and no more than this in memory.
_SORTED = 10_000


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the one spelling under which a file is indexed: absolute, links and case as they are."""
    name = os.fspath(path)
    # Neither is a file, and both are refused later: "" would become a folder, and CPython before 3.11.5 cuts
    # at NUL.
    return name if not name or "\0" in name else os.path.abspath(name)  # noqa: PTH100 - once for each of 10^8 files


def matches(path: str, extension: str | None) -> bool:
    """Return whether a path ends in `extension` (case-insensitive); None matches everything."""
    return extension is None or path.lower().endswith(extension.lower())


def iter_files(paths: Iterable[str], *, extension: str | None = ".dcm") -> Iterator[str]:
    """Yield the files below each path, in a stable order, in bounded memory.

    Parameters
    ----------
    paths : iterable of str
        Folders are walked (links to folders are not followed, so no walk runs in circles); anything else
        is yielded as it is, whatever its extension: whoever names a file means it.
    extension : str or None
        What files in folders must end in, case-insensitive; None takes every file.

    Yields
    ------
    str
        Paths, beginning as the given ones do. What is no file that can be read (a FIFO, a broken link, a
        folder that may not be entered) is yielded too: reading it says why not.
    """
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - strings all the way: this runs once for each of 10^8 files
            yield from _walk(path, extension)
        else:
            yield path


def _walk(root: str, extension: str | None) -> Iterator[str]:
    folders = [root]
    while folders:
        folder = folders.pop()
        deeper: list[str] = []
        try:
            with os.scandir(folder) as entries:
                while chunk := sorted(islice(entries, _SORTED), key=lambda entry: entry.name):
                    for entry in chunk:
                        if _is_folder(entry):
                            if not entry.is_symlink():
                                deeper.append(entry.path)
                        elif matches(entry.name, extension):
                            yield entry.path
        except OSError:
            yield folder  # reading it as a file reports the folder and the reason
        folders.extend(reversed(deeper))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, a file system that fails: reading it says so
        return False
