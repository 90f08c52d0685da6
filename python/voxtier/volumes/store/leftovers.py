"""What voxtier itself left in a store and no commit names: told by its name and by what is inside.

Only that is ever removed. Whatever else lies in the folders of a store, a file, a folder or somebody's own
array, stays where it is, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from voxtier.errors import FormatError, NotFoundError
from voxtier.volumes.store.names import is_array_name, is_version_of
from voxtier.volumes.store.snapshots import SUBJECTS, OwnSnapshot, Store
from voxtier.volumes.tiledb.format.folders import remove_group
from voxtier.volumes.tiledb.format.groups import read_members, write_group
from voxtier.volumes.tiledb.format.names import ARRAY_FOLDERS, is_reserved
from voxtier.volumes.tiledb.locks import s3_lock
from voxtier.volumes.tiledb.places import REPLICA_FOLDERS
from voxtier.volumes.tiledb.session import (
    LOCK_NAME,
    Session,
    holds_no_file,
    is_remote,
    is_removing,
    list_entries,
    list_folders,
    read_kind,
    remove_tree,
)
from voxtier.volumes.tiledb.tables.dataframe import Dataframe
from voxtier.volumes.tiledb.tables.names import ARRAYS

_OF_A_TABLE = frozenset(ARRAY_FOLDERS) | {LOCK_NAME, s3_lock.LOCK_NAME}
_OF_A_VOLUME = _OF_A_TABLE | REPLICA_FOLDERS


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


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What lies in a store and no commit names; only for the holder of the writer's lock.

    Parameters
    ----------
    store : Store
        Where it lies.
    seen : OwnSnapshot
        What the last commit names.
    collections : tuple of str
        Folders below ``collections`` that ingests left.
    foreign : frozenset of str
        Folders there that are somebody's: no commit lists them, and no ingest left them.
    """

    store: Store
    seen: OwnSnapshot
    collections: tuple[str, ...]
    foreign: frozenset[str]

    @staticmethod
    def find(store: Store, seen: OwnSnapshot) -> Leftovers:
        """Look at a store of which a commit names what is seen."""
        if store.kind == "collection":
            return Leftovers(store, seen, (), frozenset())
        found = list_folders(f"{store.root}/collections", store.session)
        listed = set(seen.collections.values())
        unlisted = [name for name in found if name not in listed and not is_reserved(name)]
        left = tuple(name for name in unlisted if is_own_collection(_collection(store, name)))
        return Leftovers(store, seen, left, frozenset(unlisted).difference(left))

    def remove_unfinished(self) -> None:
        """Remove what a writer left of tables without committing it, and tables that no commit names."""
        session = self.store.session
        for uri, is_visible in self._tables().items():
            if read_kind(uri, session) != "array" or not is_own_table(uri, session):
                continue
            commit = self.seen.commit if is_visible else 0
            if commit or is_remote(uri):  # some servers keep the folders of objects that are gone
                Dataframe(uri, session).remove_after(commit)
            else:
                remove_tree(uri, session)

    def _tables(self) -> dict[str, bool]:
        """Return every table of the store, and whether it is visible."""
        store, root = self.store, self.store.root
        if store.kind == "collection":
            return {f"{root}/obs": True}
        visible = [f"{store.collection_uri(folder)}/obs" for folder in self.seen.collections.values()]
        visible.append(f"{root}/{self.seen.subjects}")
        unlisted = [f"{root}/{name}" for name in tables_of_subjects(root, store.session)]
        unlisted += [f"{store.collection_uri(folder)}/obs" for folder in self.collections]
        return dict.fromkeys(unlisted, False) | dict.fromkeys(visible, True)

    def find_orphans(self) -> Iterator[str]:
        """Yield the addresses of what ingests left: arrays, tables of subjects and collections."""
        store, session = self.store, self.store.session
        folders = [""]
        if store.kind == "radi_object":
            folders = list(self.seen.collections.values())
            tables = tables_of_subjects(store.root, session)
            yield from (f"{store.root}/{name}" for name in tables if name != self.seen.subjects)
            yield from map(store.collection_uri, self.collections)
        for folder in folders:
            uri = store.collection_uri(folder)
            rows = Dataframe(f"{uri}/obs", session, timestamp=self.seen.commit).read_all()
            used = set(rows[ARRAYS])
            for array in list_folders(f"{uri}/volumes", session):
                if array not in used and is_own_volume(f"{uri}/volumes/{array}", session):
                    yield f"{uri}/volumes/{array}"

    def remove(self, uris: Iterable[str]) -> None:
        """Remove arrays and collections, from their groups first."""
        session = self.store.session
        for group, inside in groupby(sorted(uris), lambda uri: uri.rpartition("/")[0]):
            addresses = list(inside)
            members = read_members(group, session)
            names = [name for uri in addresses if (name := uri.rpartition("/")[2]) in members]
            if names:
                write_group(group, session, remove=names)
            remove = remove_collection if group == f"{self.store.root}/collections" else remove_tree
            for uri in addresses:
                remove(uri, session)

    def remove_store(self) -> None:
        """Remove a store that was never committed, its lock last."""
        root, session = self.store.root, self.store.session
        if self.store.kind == "collection":
            remove_collection(root, session)
        else:
            for name in tables_of_subjects(root, session):
                remove_tree(f"{root}/{name}", session)
            for folder in self.collections:
                remove_collection(self.store.collection_uri(folder), session)
            remove_group(f"{root}/collections", session)
            remove_group(root, session)
        Path(root, LOCK_NAME).unlink(missing_ok=True)


def _collection(store: Store, folder: str) -> Store:
    return Store(store.collection_uri(folder), store.session, "collection")
