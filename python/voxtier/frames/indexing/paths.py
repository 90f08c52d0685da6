"""Finds the files to index: walks folders, matches extensions, makes paths absolute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import groupby, islice
from typing import Any, NamedTuple

from voxtier._core import file_key, local_path
from voxtier.arguments import as_several
from voxtier.frames.sources.address import as_indexed, is_address
from voxtier.frames.sources.listing import ListedObject, file_is_gone, objects_named
from voxtier.frames.sources.stores import load_obstore
from voxtier.system.text import parse_share

# Entries of one folder that are sorted at once: all of them in most, and no more than this in memory.
_SORTED = 10_000


class Shard(NamedTuple):
    """One of `shares` shares of the files of a source, `number` from 1: each file is in exactly one.

    A share is told by a file's key, whatever runs there are and however they name the file, and so are all
    files of one folder divided.
    """

    number: int
    shares: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the share that ``"2/4"`` names: see `parse_share`."""
        return cls(*parse_share(text))

    def holds(self, source: str, path: str) -> bool:
        """Return whether a file, by its absolute path, is in this share."""
        # Not the first four, which are the same for all files of a folder.
        place = int.from_bytes(file_key(source, path)[4:8], "big")
        return place * self.shares >> 32 == self.number - 1


def absolute(path: str | os.PathLike[str], folder: str = "") -> str:
    """Return the path under which a file is indexed: see `as_indexed`. What a listing named is spelled so."""
    return path if isinstance(path, ListedObject) else as_indexed(os.fspath(path), folder)


def matches(path: str, extension: str | None) -> bool:
    """Return whether a path ends in an extension, in any case; None matches everything."""
    return extension is None or path.lower().endswith(extension.lower())


def iter_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    extension: str | None = ".dcm",
    since: datetime | None = None,
) -> Iterator[str]:
    """Yield the files below each path, in a stable order, in bounded memory.

    Parameters
    ----------
    paths : path or iterable of path
        Folders are walked (links to folders are not followed, so no walk runs in circles), prefixes of
        stores (``s3://bucket/prefix``) listed; any other path is yielded as it is, whatever its extension.
    extension : str or None
        End of the names of files in folders, in any case; None takes every file.
    since : datetime or None
        Take only what was written then or later, with a time zone; None takes everything.

    Yields
    ------
    str
        Paths, beginning as the given ones do. A path that cannot be read (a FIFO, a broken link, a folder
        without permission) is yielded too: reading it gives the reason.
    """
    several: Iterable[Any] = as_several(paths)
    named = groupby(map(local_path, map(os.fspath, several)), key=is_address)
    for are_addresses, group in named:
        if are_addresses:
            load_obstore()  # else each object would be called unreadable
            yield from objects_named(group, extension, since)
            continue
        for path in group:
            yield from _local(path, extension, since)


def without_absent(files: Iterable[str], named: Iterable[str], absent: list[str]) -> Iterator[str]:
    """Yield files, but none of those that were named of which their store says that there is no such object.

    Parameters
    ----------
    files : iterable of str
        Those of `iter_files`.
    named : iterable of str
        What it was given.
    absent : list of str
        Takes the others.

    Yields
    ------
    str
        A file.
    """
    addresses = set(filter(is_address, named))
    for path in files:
        if path in addresses and not isinstance(path, ListedObject) and file_is_gone(path):
            absent.append(path)
        else:
            yield path


def _local(path: str, extension: str | None, since: datetime | None) -> Iterator[str]:
    if os.path.isdir(path):  # noqa: PTH112 - strings all the way: this runs once for each of 10^8 files
        yield from _walk(path, extension, since)
    elif since is None or _is_newer(lambda: os.stat(path), since):  # noqa: PTH116 - strings all the way
        yield path


def _walk(root: str, extension: str | None, since: datetime | None) -> Iterator[str]:
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
                        elif matches(entry.name, extension) and (
                            since is None or _is_newer(entry.stat, since)
                        ):
                            yield entry.path
        except OSError:
            yield folder  # reading it as a file gives the reason, of whatever age the folder is
        folders.extend(reversed(deeper))


def _is_newer(look: Callable[[], os.stat_result], since: datetime) -> bool:
    try:
        return look().st_mtime >= since.timestamp()
    except OSError:  # reading it gives the reason
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, a failing file system: reading it gives the reason
        return False
