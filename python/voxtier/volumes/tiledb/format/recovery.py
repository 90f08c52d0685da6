"""What a killed writer leaves half made in a local store: found, waited for while it may live, removed.

TileDB creates a file of metadata, members or a schema, writes its header and then the rest; until then nobody
can open the group or the array that it lies in. Object stores show whole objects only.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import time
from pathlib import Path
from typing import Final

from voxtier.volumes.tiledb.session import GONE, Session, is_remote, remove_file, subfolders, translated

# how a file of metadata, members or a schema begins: version, stored bytes, plain bytes, type, cell size,
# encryption, bytes of the filters that follow (TileDB format, "generic tile")
_TILE_HEADER: Final = struct.Struct("<IQQBQBI")
_KNOWN: Final = 22  # the latest format that is judged: nothing goes that may mean something else
_STAMPED: Final = re.compile(r"__(\d+)_\d+_[0-9a-f]+")  # a schema's name: from, to (ms), a random number
_ABANDONED: Final = 10.0  # seconds; a file that was begun is finished within microseconds, or never


def _groups_and_tables(root: str) -> tuple[list[Path], list[Path]]:
    collections = Path(root) / "collections"
    bases = [Path(root), collections]
    if collections.is_dir():
        bases += [
            entry for entry in collections.iterdir() if entry.is_dir() and not entry.name.startswith("__")
        ]
    tables = [*(base / "obs" for base in bases), *Path(root).glob("obs_meta*")]
    return [*bases, *(base / "volumes" for base in bases)], tables


def torn_files(root: str) -> list[Path]:
    """Return the files of metadata, members and schemas of a local store that end before they should.

    One of a living writer is about to be filled.
    """
    if is_remote(root) or not Path(root).is_dir():
        return []
    groups, tables = _groups_and_tables(root)
    folders = [place / kind for place in (*groups, *tables) for kind in ("__meta", "__group", "__schema")]
    return [file for folder in folders for file in torn_below(folder)]


def torn_below(folder: Path) -> list[Path]:
    """Return the files in a folder of TileDB's that end before they should."""
    try:
        return [file for file in folder.iterdir() if not file.suffix and file.is_file() and _is_torn(file)]
    except OSError:
        return []


def _is_torn(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            header = stream.read(_TILE_HEADER.size)
            size = os.fstat(stream.fileno()).st_size
    except OSError:  # gone, or not ours to judge
        return False
    if len(header) < _TILE_HEADER.size:
        return True
    version, stored, _, _, _, _, filters = _TILE_HEADER.unpack(header)
    return version <= _KNOWN and size < _TILE_HEADER.size + int(filters) + int(stored)


def mend_volume(uri: str) -> None:
    """Wait for metadata of a local volume that is being written; remove what its writer did not finish.

    Volumes have no writer's lock: a file to which nothing is added for some seconds is a dead writer's.
    """
    if is_remote(uri):
        return
    seen: dict[Path, int] = {}
    since = time.monotonic()
    while torn := {file: _size(file) for file in torn_below(Path(uri) / "__meta")}:
        if torn != seen:
            seen, since = torn, time.monotonic()
        if time.monotonic() - since < _ABANDONED:
            time.sleep(0.02)
            continue
        for file in torn:
            with translated(f"mend {uri}"):
                file.unlink(missing_ok=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


def remove_torn(root: str) -> None:
    """Remove what a killed writer left half made, or half removed, in a local store.

    Only for the holder of the writer's lock.
    """
    if is_remote(root) or not Path(root).is_dir():
        return
    for file in torn_files(root):
        file.unlink()
    groups, tables = _groups_and_tables(root)
    for table in tables:  # made, but without a schema: it holds nothing
        if table.is_dir() and not any(f.is_file() for f in (table / "__schema").glob("*")):
            shutil.rmtree(table)
    for gone in [entry for group in groups for entry in group.glob(f"{GONE}*")]:
        shutil.rmtree(gone, ignore_errors=True)


def forget_schemas_after(uri: str, timestamp: int, session: Session) -> None:
    """Remove the schemas that a table got after a time stamp; the one that it was made with stays."""
    folder = f"{uri}/__schema"
    names = subfolders(folder, session) if is_remote(uri) else os.listdir(folder)  # noqa: PTH208
    stamps = {name: int(found[1]) for name in names if (found := _STAMPED.fullmatch(name))}
    for name in sorted(stamps, key=stamps.__getitem__)[1:]:
        if stamps[name] > timestamp:
            remove_file(f"{folder}/{name}", session)
