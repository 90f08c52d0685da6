"""Reads frame tables and frames from files, without an index: tier 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Literal, NamedTuple, TypeAlias

from voxtier._core import FrameTable, TableReader, read_frame, read_table
from voxtier.errors import FormatError, SourceError

__all__ = [
    "FrameTable",
    "RangedSource",
    "TableResult",
    "Verify",
    "read_frame",
    "read_table",
    "read_tables",
]

Verify: TypeAlias = Literal["none", "ends", "all"]
#: State of a file: size, mtime_ns, ctime_ns, inode; None for what its file system does not have.
Fingerprint: TypeAlias = tuple[int, int | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class RangedSource:
    """Bytes that a function returns by range: an object in a store, a member of an archive.

    Parameters
    ----------
    read : callable
        ``read(offset, length) -> bytes``: exactly `length` bytes from `offset`. An exception that it raises
        becomes the cause of a `SourceError`.
    size : int
        Bytes of the whole object.
    """

    read: Callable[[int, int], bytes]
    size: int


class TableResult(NamedTuple):
    """Result of reading one file of many: exactly one of `table` and `error` is not None.

    Attributes
    ----------
    path : path
        The file.
    table : FrameTable or None
        Its table.
    error : FormatError, SourceError or None
        Why it has none.
    fingerprint : tuple or None
        State of the file for which `error` holds: size, mtime_ns, ctime_ns, inode. None where it is not
        known, as for a file that could not be opened; a table has its own.
    """

    path: str | PathLike[str]
    table: FrameTable | None
    error: FormatError | SourceError | None
    fingerprint: Fingerprint | None = None


def read_tables(
    paths: Iterable[str | PathLike[str]], *, threads: int = 16, verify: Verify = "ends"
) -> Iterator[TableResult]:
    """Read the frame tables of many files, in order of completion, in bounded memory.

    Parameters
    ----------
    paths : iterable of path
        Consumed as results are taken, never far ahead: a generator over 10^6 paths is fine.
    threads : int
        Reads in flight. Files on cold storage want 16 to 32 whatever the number of cores.
    verify : {"none", "ends", "all"}
        How far an offset table is checked against the file: see `read_table`.

    Yields
    ------
    TableResult
        One for each path. A file that is refused or cannot be read is a row with `error`, never an
        exception.

    Examples
    --------
    >>> from voxtier.frames import read_tables
    >>> [result.error.kind for result in read_tables(["/no/such/file"])]
    ['io_error']
    """
    rows = TableReader(paths, threads=threads, verify=verify)
    # No per-file Python: a small file costs only a few microseconds.
    return map(partial(tuple.__new__, TableResult), rows)
