"""The place of a volume or a store: refused where something lies, and cleared of what is TileDB's alone.

What else lies in a folder is the user's, whose path may have named it by mistake: it is never removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import tiledb

from voxtier.errors import ConfigError, SourceError
from voxtier.system.workers import finish
from voxtier.volumes.config import SliceOrientation
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.names import OLD_SCHEMA, SCHEMA, is_file, is_own, is_reserved
from voxtier.volumes.tiledb.session import (
    LOCK_NAME,
    Session,
    holds_no_file,
    is_remote,
    is_removing,
    list_entries,
    read_kind,
    remove_file,
    remove_tree,
)

REPLICA_PREFIX = "replica-"
REPLICA_FOLDERS = frozenset(f"{REPLICA_PREFIX}{orientation.value}" for orientation in SliceOrientation)
"""Names of the folders of replicas inside the folder of a volume."""

_Path = tuple[str, ...]
"""Names on the way from a place to something in it."""


def refuse_occupied(uri: str, session: Session) -> None:
    """Refuse to make an array where something lies; hidden files aside, and folders that a killed one left.

    An object store is asked once where nothing lies.

    Parameters
    ----------
    uri : str
        Address of the array.
    session : Session
        How it is reached.

    Raises
    ------
    ConfigError
        When something lies there.
    """
    with translate_errors(f"look at {uri}"):
        names = [name for name in list_entries(uri, session) if not name.startswith(".")]
    is_local = not is_remote(uri)
    if (is_local or names) and read_kind(uri, session) is not None:
        raise ConfigError(f"{uri} already exists: choose another place or remove it first")
    path = Path(uri)
    is_free = all(is_reserved(name) and not (is_local and _holds_file(path / name)) for name in names)
    if not is_free or (is_local and path.exists() and not path.is_dir()):
        raise ConfigError(f"{uri} holds something that is no volume: choose another place")


def _holds_file(path: Path) -> bool:
    return not holds_no_file(path)


def remove_own(uri: str, session: Session, *, keep_folder: bool = False) -> None:
    """Remove the array or the group of TileDB at an address, and nothing else that lies in its folder.

    Parameters
    ----------
    uri : str
        Its address; nothing there is fine.
    session : Session
        How it is reached.
    keep_folder : bool
        Leave the folder itself, also where nothing else lies in it.

    Raises
    ------
    SourceError
        When nobody can look into the folder, or a file lies there.
    """
    finish(lambda: _remove_own(uri, session, keep_folder=keep_folder))


def _remove_own(uri: str, session: Session, *, keep_folder: bool) -> None:
    entries = _entries(uri, session)
    own = _own(entries)
    # A link stays, with the empty folder that it leads to: renaming a link removes nothing.
    keep_folder = keep_folder or (not is_remote(uri) and Path(uri).is_symlink())
    if own == entries and not keep_folder:
        remove_tree(uri, session)
        return
    # The schema first: what is left of a removal that is killed must not look like an array.
    for entry in sorted(own, key=lambda entry: (entry[-1] not in (SCHEMA, OLD_SCHEMA), entry)):
        address = "/".join((uri, *entry))
        if is_file(entry[-1]) or entry[-1] == LOCK_NAME:
            remove_file(address, session)
        else:
            remove_tree(address, session)
    if is_remote(uri):
        return
    for folder in sorted({entry[:-1] for entry in own}, key=len, reverse=True):
        if folder or not keep_folder:
            with suppress(OSError):  # something else lies there
                Path(uri, *folder).rmdir()


def _is_whole(name: str) -> bool:
    """Return whether what has this name is own with all that it holds."""
    return is_own(name) or is_removing(name)


def _entries(uri: str, session: Session) -> set[_Path]:
    """Return what lies below an address: files, folders that are empty or unreadable, and own ones as one."""
    if is_remote(uri):
        with translate_errors(f"list {uri}"):
            keys = tiledb.VFS(ctx=session.context()).ls_recursive(uri)
        names = [key[len(uri) + 1 :] for key in keys if key.startswith(f"{uri}/")]
        # A key that ends with a slash is a folder that some servers keep of objects that are gone.
        return {entry for entry in (_to_own(tuple(name.split("/"))) for name in names) if entry[-1]}
    found: set[_Path] = set()

    def count_unreadable(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            return
        inside = Path(error.filename).relative_to(uri).parts
        if not inside:
            raise SourceError.from_os(error, f"look into {uri}")
        found.add(inside)  # nobody knows what lies in it, and its name alone is nobody's

    for folder, folders, files in os.walk(uri, onerror=count_unreadable):
        inside = Path(folder).relative_to(uri).parts
        leaves = [name for name in folders if _is_whole(name) or Path(folder, name).is_symlink()]
        if inside and not folders and not files:
            found.add(inside)
        found |= {(*inside, name) for name in (*leaves, *files)}
        folders[:] = [name for name in folders if name not in leaves]
    return found


def _to_own(path: _Path) -> _Path:
    for length, name in enumerate(path, 1):
        if _is_whole(name):
            return path[:length]
    return path


def _own(entries: set[_Path]) -> set[_Path]:
    """Return the entries that belong to the array or the group at the top."""
    objects = {entry[:-1] for entry in entries if is_own(entry[-1])}
    arrays = {entry[:-1] for entry in entries if entry[-1] in (SCHEMA, OLD_SCHEMA)}

    def belongs(folder: _Path) -> bool:
        if not folder:
            return True
        *outer, name = folder
        around = tuple(outer)
        return folder in objects and (around not in arrays or name in REPLICA_FOLDERS) and belongs(around)

    return {e for e in entries if (_is_whole(e[-1]) or e[-1] == LOCK_NAME) and belongs(e[:-1])}
