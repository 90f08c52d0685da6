"""One notion of a source: makes of whatever a caller names what the core reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxtier._core import local_path
from voxtier.errors import FormatError, SourceError
from voxtier.frames.sources.address import is_address
from voxtier.frames.sources.files import source_of_file
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.stores import ObjectState, load_obstore
from voxtier.system.s3_config import S3Config, get_s3_config


class Opener:
    """Opens sources as configured when it was made: threads of the core have no context of their own.

    Parameters
    ----------
    config : S3Config or None
        How ``s3://`` is reached; None: as configured now.
    """

    def __init__(self, config: S3Config | None = None) -> None:
        self._config = config or get_s3_config()

    def __call__(self, source: Any, known: tuple[Any, ...] | None = None) -> Any:
        """Return a source of the core: see `open_source`; None for an object that still has a known state."""
        opened = open_source(source, self._config)
        if known is not None and isinstance(opened, RemoteObject) and opened.is_still(ObjectState(*known)):
            return None
        return opened


def open_source(source: Any, config: S3Config | None = None) -> Any:
    """Return what the core reads.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        A local path or a URI of one (``file://``, ``dbfs:/``); an address (``s3://``, ``gs://``, ``az://``,
        ``https://``); an open binary file (fsspec's too) or ``BytesIO``; bytes; a descriptor; a
        `RangedSource`.
    config : S3Config or None
        How ``s3://`` is reached; None: as configured now.

    Returns
    -------
    object
        `source` itself, unless it is an address or an open file.

    Raises
    ------
    SourceError
        The address is of no store that is read.
    MissingExtraError
        The package by which stores are read is not installed.
    TypeError
        The file is open for text.
    """
    if isinstance(source, str):
        if is_address(source) and not source[:7].lower().startswith("file://"):
            load_obstore()  # else each file would be told to be unreadable
            return RemoteObject(source, config)
        return source
    if hasattr(source, "seek") and hasattr(source, "read"):
        return source_of_file(source)
    return source


def name_source(error: FormatError | SourceError, source: object) -> None:
    """Note of which file an error is: its text goes into the index and into logs, where no path belongs."""
    if isinstance(source, str | os.PathLike):
        is_folder = os.path.isdir(source)  # noqa: PTH112  # a Path raises where it may not look
        error.add_note(f"{'folder' if is_folder else 'file'}: {os.fspath(source)}")
        if is_folder:
            error.add_note("name its files; `voxtier index` takes folders")


def read_ranges(
    source: Any, ranges: Sequence[tuple[int, int]], *, state: ObjectState | None = None
) -> list[bytes]:
    """Return the bytes of ranges of a source, fewer of those that reach past its end.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        See `open_source`.
    ranges : sequence of (int, int)
        Half open, ``[start, end)``.
    state : ObjectState or None
        An object is read in this state alone.

    Returns
    -------
    list of bytes
        One item a range.

    Raises
    ------
    SourceError
        The source cannot be read; an object or an open file ends before a range does.
    """
    opened = open_source(source)
    if isinstance(opened, bytes | bytearray | memoryview):
        content = memoryview(opened).cast("B")
        return [bytes(content[start:end]) for start, end in ranges]
    if hasattr(opened, "fetch"):
        if isinstance(opened, RemoteObject) and state is not None:
            opened.expect(state)
        opened.open_ranges()
        return [bytes(each) for each in opened.fetch(list(ranges))]
    if hasattr(opened, "read"):
        return [opened.read(start, max(min(end, opened.size) - start, 0)) for start, end in ranges]
    try:
        if isinstance(opened, int):
            return [os.pread(opened, end - start, start) for start, end in ranges]
        with Path(local_path(os.fspath(opened))).open("rb") as file:
            return [os.pread(file.fileno(), end - start, start) for start, end in ranges]
    except OSError as error:
        raise SourceError.from_os(error, source) from error
