"""Files that a killed writer left incomplete in local groups, tables and volumes: found, and removed.

TileDB creates a file of metadata, members or a schema, writes its header and then the rest; until then nobody
can open the group or the array that it lies in. Object stores show complete objects only.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from voxtier.volumes.tiledb.format import VERSION
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.names import ARRAY_FOLDERS, GROUP, META, SCHEMA
from voxtier.volumes.tiledb.session import (
    REMOVING,
    Session,
    holds_no_file,
    is_remote,
    is_removing,
    list_folders,
    remove_file,
)

# How a file of metadata, members or a schema begins (TileDB's "generic tile"): version, stored bytes,
# original bytes, type, cell size, encryption, bytes of the filter pipeline. Pipeline and stored bytes follow.
_HEADER = struct.Struct("<IQQBQBI")
_SCHEMA_NAME = re.compile(r"__(\d+)_\d+_[0-9a-f]+")  # first and last millisecond, a random number
_ABANDONED_SECONDS = 10.0  # a file that was begun is finished within microseconds, or never


def partial_files(places: Iterable[Path]) -> list[Path]:
    """Return the files of metadata, members and schemas of local groups and arrays that end too early.

    One that belongs to a living writer is about to be filled.
    """
    return [
        file for place in places for name in (META, GROUP, SCHEMA) for file in _partial_below(place / name)
    ]


def has_partial_metadata(uri: str) -> bool:
    """Return whether the metadata of a local array holds a file that ends too early."""
    return bool(_partial_below(Path(uri, META)))


def _partial_below(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if not file.suffix and file.is_file() and _is_partial(file)]
    except OSError:
        return []


def _is_partial(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            header = stream.read(_HEADER.size)
            size = os.fstat(stream.fileno()).st_size
    except OSError:  # gone, or not ours to judge
        return False
    if len(header) < _HEADER.size:
        return True
    version, stored, _, _, _, _, filters = _HEADER.unpack(header)
    # Files of newer formats are never judged: their header may mean something else.
    return version <= VERSION and size < _HEADER.size + int(filters) + int(stored)


def recover_volume(uri: str) -> None:
    """Wait for metadata of a local volume that is being written; remove what its writer did not finish.

    Volumes have no writer's lock: a file that has not grown for 10 seconds is taken for a dead writer's.
    """
    if is_remote(uri):
        return
    seen: dict[Path, int] = {}
    since = time.monotonic()
    while partial := {file: _size(file) for file in _partial_below(Path(uri, META))}:
        if partial != seen:
            seen, since = partial, time.monotonic()
        if time.monotonic() - since < _ABANDONED_SECONDS:
            time.sleep(0.02)
            continue
        for file in partial:
            with translate_errors(f"remove incomplete metadata of {uri}"):
                file.unlink(missing_ok=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


def recover(groups: Sequence[Path], tables: Sequence[Path]) -> None:
    """Remove what a killed writer left half made, or half removed, in local groups and tables.

    Only for the holder of the writer's lock.
    """
    for file in partial_files([*groups, *tables]):
        file.unlink()
    for table in filter(_is_half_made, tables):
        shutil.rmtree(table)
    for folder in [entry for group in groups for entry in group.glob(f"{REMOVING}*")]:
        if is_removing(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_half_made(table: Path) -> bool:
    """Return whether a folder holds what TileDB makes before the schema of an array: folders, and no file."""
    names = {entry.name for entry in table.iterdir()} if holds_no_file(table) else set()
    return bool(names) and names <= set(ARRAY_FOLDERS)


def remove_schemas_after(uri: str, timestamp: int, session: Session) -> None:
    """Remove the schemas that a table got after a time stamp; the one that it was made with stays.

    Parameters
    ----------
    uri : str
        Address of the table.
    timestamp : int
        Milliseconds since 1970.
    session : Session
        How it is reached.
    """
    folder = f"{uri}/{SCHEMA}"
    names = list_folders(folder, session) if is_remote(uri) else os.listdir(folder)  # noqa: PTH208
    times = {name: int(match[1]) for name in names if (match := _SCHEMA_NAME.fullmatch(name))}
    for name in sorted(times, key=times.__getitem__)[1:]:
        if times[name] > timestamp:
            remove_file(f"{folder}/{name}", session)
