"""The folders of an array or a group: what can be learned from their names, and their removal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from voxtier.volumes.tiledb.format.names import COMMITS, FRAGMENTS, GROUP, GROUP_MARK, META
from voxtier.volumes.tiledb.session import (
    Session,
    is_remote,
    list_entries,
    list_folders,
    remove_file,
    remove_tree,
)


def fragment_names(uri: str, session: Session) -> list[str]:
    """Return the names of the writes that readers of an array see, sorted; every write adds one that is new.

    They are those of the commits: the folder of a fragment is there before its voxels count. Other commits
    (lists of them, and what a consolidation has replaced) keep the names of their files.
    """
    return sorted(name.removesuffix(".wrt") for name in list_entries(f"{uri}/{COMMITS}", session))


def fragment_bytes(uri: str, name: str) -> int:
    """Return the bytes of the files of a fragment of a local array."""
    return sum(entry.stat().st_size for entry in Path(uri, FRAGMENTS, name).iterdir())


def remove_group(uri: str, session: Session) -> None:
    """Remove the files of a group, and its local folder where nothing else lies in it."""
    for name in (META, GROUP):
        remove_tree(f"{uri}/{name}", session)
    if is_remote(uri):
        if GROUP_MARK in list_folders(uri, session):
            remove_file(f"{uri}/{GROUP_MARK}", session)
        return
    Path(uri, GROUP_MARK).unlink(missing_ok=True)
    with suppress(OSError):
        Path(uri).rmdir()
