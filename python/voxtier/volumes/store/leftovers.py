"""What voxtier itself left in a store and no commit names: told by its name and by what is inside.

Only that is ever removed. Whatever else lies in the folders of a store, a file, a folder or somebody's own
array, stays where it is, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from voxtier.errors import FormatError, NotFoundError
from voxtier.volumes.store.names import is_array_name, is_version_of
from voxtier.volumes.store.snapshots import SUBJECTS, Store
from voxtier.volumes.tiledb.format.folders import remove_group
from voxtier.volumes.tiledb.format.names import ARRAY_FOLDERS, is_reserved
from voxtier.volumes.tiledb.replicas import REPLICA_FOLDERS
from voxtier.volumes.tiledb.session import (
    LOCK_NAME,
    Session,
    holds_no_file,
    is_remote,
    is_removing,
    list_entries,
    list_folders,
    remove_tree,
)

_OF_A_TABLE = frozenset(ARRAY_FOLDERS)
_OF_A_VOLUME = _OF_A_TABLE | REPLICA_FOLDERS | {LOCK_NAME}


def is_own_volume(uri: str, session: Session) -> bool:
    """Return whether an ingest made what lies at an address: a volume, finished or not, and nothing else."""
    return is_array_name(uri.rpartition("/")[2]) and _holds_only(_OF_A_VOLUME, uri, session)


def is_own_table(uri: str, session: Session) -> bool:
    """Return whether what lies at an address is a table, finished or not, and nothing else."""
    return _holds_only(_OF_A_TABLE, uri, session)


def _holds_only(names: Collection[str], uri: str, session: Session) -> bool:
    return all(name in names or is_removing(name) for name in list_entries(uri, session))


def tables_of_subjects(root: str, session: Session) -> list[str]:
    """Return the folders of the tables of subjects of a store, visible or left over."""
    names = [name for name in list_folders(root, session) if is_version_of(name, SUBJECTS)]
    return [name for name in names if is_own_table(f"{root}/{name}", session)]


def is_own_collection(store: Store) -> bool:
    """Return whether a folder that no commit lists is what an ingest left of a collection.

    An ingest writes the collection's name before all else, and names the folder after it. A collection that
    was written as a store of its own, or copied by hand to another name, is somebody's.
    """
    with suppress(NotFoundError, FormatError):
        meta = store.meta()
        if meta.get("voxtier_kind") == "collection":
            return False
        if "name" in meta:
            return is_version_of(store.root.rpartition("/")[2], str(meta["name"]))
    if not is_remote(store.root) and holds_no_file(Path(store.root)):
        return True
    return all(is_reserved(name) for name in list_entries(store.root, store.session))


@dataclass(frozen=True, slots=True)
class CollectionParts:
    """What lies in the folder of a collection.

    Parameters
    ----------
    own : list of str
        Addresses of its table and of its volumes.
    is_all : bool
        Whether nothing else lies there.
    """

    own: list[str]
    is_all: bool

    @staticmethod
    def of(uri: str, session: Session) -> CollectionParts:
        """Look at a collection."""
        folders = [name for name in list_entries(uri, session) if not is_reserved(name)]
        volumes = [name for name in list_entries(f"{uri}/volumes", session) if not is_reserved(name)]
        own = [f"{uri}/volumes/{name}" for name in volumes]
        own = [address for address in own if is_own_volume(address, session)]
        is_all = len(own) == len(volumes) and set(folders) <= {"obs", "volumes"}
        if "obs" in folders:
            has_table = is_own_table(f"{uri}/obs", session)
            own += [f"{uri}/obs"] if has_table else []
            is_all = is_all and has_table
        return CollectionParts(own, is_all)


def remove_collection(uri: str, session: Session) -> None:
    """Remove a collection; what else lies in its folder stays there."""
    parts = CollectionParts.of(uri, session)
    if parts.is_all:
        remove_tree(uri, session)
        return
    for address in parts.own:
        remove_tree(address, session)
    remove_group(f"{uri}/volumes", session)
    remove_group(uri, session)  # last: its metadata says whose the folder is
