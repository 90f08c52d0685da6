"""Which files to look at: folders walked, lists streamed, extensions matched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

__all__ = ["iter_files", "matches"]


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
        Paths, beginning as the given ones do. What is no regular file is yielded too when it was named:
        reading it says why not.
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
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder  # reading it as a file reports the folder and the reason as a row
            continue
        deeper = []
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                deeper.append(entry.path)
            elif matches(entry.name, extension):
                yield entry.path
        folders.extend(reversed(deeper))
