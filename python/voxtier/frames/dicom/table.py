"""Reads frame tables and frames from files and objects, without an index: tier 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Literal, NamedTuple, TypeAlias

from voxtier import _core
from voxtier._core import FrameTable, Refusal, TableReader
from voxtier.arguments import as_several
from voxtier.errors import FormatError, SourceError
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.opening import Opener, name_source, open_source
from voxtier.frames.sources.stores import ObjectState

__all__ = [
    "FrameTable",
    "RangedSource",
    "TableResult",
    "Verify",
    "read_frame",
    "read_frames",
    "read_table",
    "read_tables",
]

Verify: TypeAlias = Literal["none", "ends", "all"]
#: State of a file or object: size, mtime_ns, ctime_ns, inode, etag; None for what it does not have.
Fingerprint: TypeAlias = tuple[int, int | None, int | None, int | None, str | None]


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
        State of the file for which `error` holds: size, mtime_ns, ctime_ns, inode, etag. None where it is not
        known, as for a file that could not be opened; a table has its own.
    """

    path: str | PathLike[str]
    table: FrameTable | None
    error: FormatError | SourceError | None
    fingerprint: Fingerprint | None = None


def read_table(source: Any, *, verify: Verify = "ends") -> FrameTable:
    """Read the frame table of one file.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        A local path or a URI of one (``file://``, ``dbfs:/``); an address (``s3://``, ``gs://``, ``az://``,
        ``https://``); an open binary file (fsspec's too) or ``BytesIO``; bytes; a descriptor; a
        `RangedSource`.
    verify : {"none", "ends", "all"}
        How far an offset table is checked against the file: its count alone, its first and last entry, or
        every entry. ``"all"`` walks over every fragment; of an object it may read every byte. A table that
        fails is not used, and a file without one is walked (PS3.5 A.4, PS3.3 C.7.6.3.1.8).

    Returns
    -------
    FrameTable
        Where each frame lies.

    Raises
    ------
    FormatError
        The file is refused: see its `kind`.
    SourceError
        The file cannot be read, or changes while it is read.
    """
    opened = open_source(source)
    try:
        table = _core.read_table(opened, verify=verify)
    except (FormatError, SourceError) as error:
        name_source(error, source)
        raise
    if isinstance(opened, RemoteObject) and table.pixel_data_pos is not None:
        opened.note_header(table.pixel_data_pos)
    return table


def read_frame(source: Any, table: FrameTable, index: int, *, align: bool = False) -> bytes:
    """Read one frame: its fragments joined, Item headers stripped.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        The file that the table describes: see `read_table`.
    table : FrameTable
        Its table. An object is read only in the state that the table describes.
    index : int
        Frame, counted from 0; negative from the end.
    align : bool
        Move a native frame of pixels that are no whole bytes (Bits Allocated 1) to bit 0 (PS3.5 8.1.1).

    Returns
    -------
    bytes
        The frame as it is encoded in the file.

    Raises
    ------
    IndexError
        There is no such frame.
    FormatError
        The frame lies behind the end of a truncated file, or the file is refused.
    SourceError
        The file cannot be read, or is not the one that the table describes.
    """
    opened = open_source(source)
    if isinstance(opened, RemoteObject):
        opened.expect(state_of(table))
    try:
        return _core.read_frame(opened, table, index, align=align)
    except (FormatError, SourceError) as error:
        name_source(error, source)
        raise


def read_frames(
    source: Any, table: FrameTable, indices: Sequence[int], *, align: bool = False
) -> list[bytes]:
    """Read several frames of one file; those of an object by few requests at the same time.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        The file that the table describes: see `read_table`.
    table : FrameTable
        Its table.
    indices : sequence of int
        Frames, counted from 0, in any order; negative from the end.
    align : bool
        See `read_frame`.

    Returns
    -------
    list of bytes
        One item per index, in the order of `indices`.

    Raises
    ------
    IndexError, FormatError, SourceError
        See `read_frame`.
    """
    opened = open_source(source)
    if isinstance(opened, RemoteObject):
        opened.expect(state_of(table))
    try:
        return _core.read_frames(opened, table, list(indices), align=align)
    except (FormatError, SourceError) as error:
        name_source(error, source)
        raise


def state_of(found: FrameTable | Refusal) -> ObjectState:
    """Return the state of the object that a table describes, or for which it was refused."""
    return ObjectState(found.size or 0, found.mtime_ns, etag=found.etag)


def read_tables(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    threads: int = 16,
    verify: Verify = "ends",
) -> Iterator[TableResult]:
    """Read the frame tables of many files, in order of completion, in bounded memory.

    Parameters
    ----------
    paths : path, address or file, or iterable of them
        See `read_table`. Consumed as results are taken, never far ahead: a generator over 10^6 paths is fine.
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
    rows = TableReader(as_several(paths), threads=threads, verify=verify, opener=Opener())
    # No per-file Python: a small file costs only a few microseconds.
    return map(partial(tuple.__new__, TableResult), rows)
