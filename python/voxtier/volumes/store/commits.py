"""How a change becomes visible: all of it at once, or not at all.

A writer, under the lock, writes voxel arrays (under names that nobody looks for yet), then rows with a later
time stamp than the last commit, and at last the new commit: one small object. A change that is refused
removes what it wrote; a first ingest removes its folder too. A writer that is killed before its commit leaves
rows from the future, which the next writer removes, and arrays without a row, which `repair` removes or a
repeated ingest takes over. Overwriting a store is such a change too: the new tables and collections lie
beside the old ones, in folders of other names, until the commit names them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtier.errors import ConfigError, NotFoundError, VoxtierError
from voxtier.system.workers import finish
from voxtier.volumes.store.leftovers import Leftovers, is_own_volume
from voxtier.volumes.store.names import checked_name, versioned
from voxtier.volumes.store.snapshots import (
    FORMAT,
    NOTHING_YET,
    SUBJECTS,
    OwnSnapshot,
    Snapshot,
    Store,
    find_unfinished,
    is_begun,
    refuse_occupied_root,
)
from voxtier.volumes.tiledb.format.groups import create_group, read_members, write_group
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import is_remote, list_folders
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.dataframe import Dataframe


@dataclass(slots=True)
class Change:
    """One change in the making.

    Parameters
    ----------
    store : Store
        What is changed.
    before : OwnSnapshot
        What is visible until the commit.
    timestamp : int
        Milliseconds since 1970; later than every visible row.
    collections : dict
        Collection name -> folder, as they will be visible.
    meta : dict
        Metadata of the root group to set.
    members : dict
        Address of a group -> folders to list in it.
    group_meta : dict
        Address of a group -> metadata to set.
    subjects : str
        Folder of the table of subjects.
    foreign : frozenset of str
        Folders below ``collections`` that are somebody's: no commit lists them, and no ingest left them.
    """

    store: Store
    before: OwnSnapshot
    timestamp: int
    collections: dict[str, str]
    meta: dict[str, Any] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    group_meta: dict[str, dict[str, Any]] = field(default_factory=dict)
    subjects: str = SUBJECTS
    foreign: frozenset[str] = frozenset()

    def start_over(self) -> None:
        """Begin an empty store, under names that the visible one does not use."""
        self.collections = {}
        if self.before.commit:
            self.subjects = versioned(SUBJECTS, self.before.commit)
            self.meta |= {"voxtier_store": uuid.uuid4().hex, "voxtier_subjects": self.subjects}

    def refuse_unlisted(self, uri: str) -> None:
        """Refuse to change a collection that is a part of the store no more: no commit would show the change.

        Raises
        ------
        NotFoundError
            When no collection of the store lies at the address.
        """
        folder = uri.rpartition("/")[2]
        if self.store.kind == "radi_object" and folder not in self.collections.values():
            raise NotFoundError(f"{uri} is no collection of {self.store.root}, or no more: open it again")

    def folder_of(self, name: str) -> str:
        """Return the folder of a collection; a new one gets a name that no visible collection has."""
        if name in self.collections:
            return self.collections[name]
        taken = {*self.collections.values(), *self.before.collections.values(), *self.foreign}
        folder = checked_name("collection", name)
        while folder in taken:
            folder = versioned(folder, self.before.commit)
        return folder

    def write_rows(self, table_uri: str, rows: Table) -> None:
        """Write rows that become visible with the commit."""
        if len(rows):
            Dataframe(table_uri, self.store.session).write_rows(rows, timestamp=self.timestamp)

    def visible_ids(self) -> list[str]:
        """Return the observations of the collections that were there before and stay."""
        before = set(self.before.collections.values())
        uris = [self.store.collection_uri(folder) for folder in self.collections.values() if folder in before]
        return [str(obs_id) for uri in uris for obs_id in self.table(f"{uri}/obs").read_all()["obs_id"]]

    def table(self, uri: str) -> Dataframe:
        """Return a table as the last commit left it."""
        return Dataframe(uri, self.store.session, timestamp=self.before.commit)

    def discard(self) -> None:
        """Remove what this change wrote, unless its commit was made after all.

        On an object store it stays for the ingest that is repeated, which takes finished volumes over.
        """
        if is_remote(self.store.root):
            return
        with suppress(NotFoundError):
            if self.store.snapshot().commit != self.before.commit:
                return
        left = Leftovers.find(self.store, self.before)
        if self.before.commit:
            left.remove_unfinished()
            left.remove(list(left.find_orphans()))
        else:
            left.remove_store()

    def remove_replaced(self) -> None:
        """Remove what the commit of this change replaced, whatever it was renamed to, and other leftovers."""
        store, before = self.store, self.before
        gone = set(before.collections.values()) - set(self.collections.values())
        replaced = [store.collection_uri(folder) for folder in gone]
        own = [uri for uri in replaced if not Store(uri, store.session, "collection").stands_alone()]
        left = Leftovers.find(store, store.own_snapshot())
        left.remove(dict.fromkeys([*own, *left.find_orphans()]))

    def commit(self) -> None:
        """Make the change visible: one write of the root's metadata."""
        session = self.store.session
        for group in {**self.members, **self.group_meta}:
            members = read_members(group, session)
            add = [name for name in self.members.get(group, ()) if name not in members]
            write_group(group, session, meta=self.group_meta.get(group), add=add)
        meta = dict(self.meta)
        if self.store.kind == "radi_object":
            meta["voxtier_collections"] = json.dumps(self.collections)
            meta["n_collections"] = len(self.collections)
        meta["voxtier_commit"] = self.timestamp
        # A clock that was set back, or is another machine's, must not put this before an earlier commit.
        write_group(self.store.root, session, meta=meta, timestamp=self.timestamp)


@contextmanager
def change_store(
    store: Store, *, new: bool = False, overwrite: bool = False, seen: Snapshot | None = None
) -> Iterator[Change]:
    """Collect one change under the writer's lock; leaving the block without an error commits it.

    Parameters
    ----------
    store : Store
        What is changed.
    new : bool
        Begin the store, or take it over where its first ingest was cut off.
    overwrite : bool
        Begin without collections; what the change replaces is removed afterwards.
    seen : Snapshot, optional
        What the caller saw of the store: one that was replaced since is another, and is not changed.

    Yields
    ------
    Change
        To be filled.

    Raises
    ------
    ConfigError
        When something else lies there, or a finished store that may not be replaced.
    BackendError
        When another writer does not finish in time.
    NotFoundError
        When the store that is to be changed is gone, or was replaced.
    """
    if store.kind == "collection":
        around, is_listed = store.around()
        if around is not None and is_listed:
            raise ConfigError(
                f"{store.root} is a part of the store {around.root}: change it as a collection of that, or"
                " choose another place"
            )
    if new:
        refuse_occupied_root(store, overwrite=overwrite)  # before a lock is left in somebody else's folder
    elif not is_remote(store.root) and not Path(store.root).exists():
        raise NotFoundError(f"there is no store at {store.root}")
    with _remove_made_folders(store), only_writer(store.root, store.session) as confirm:
        store.recover()
        if new:
            refuse_occupied_root(store, overwrite=overwrite)
        before = _snapshot_before(store, new=new)
        if seen is not None:
            store.refuse_replaced(seen, before.meta)
        left = Leftovers.find(store, before)
        change = Change(
            store,
            before,
            max(time.time_ns() // 1_000_000, before.commit + 1),
            dict(before.collections),
            subjects=before.subjects,
            foreign=left.foreign,
        )
        try:
            if new and not is_begun(store):
                _begin(store)
            left.remove_unfinished()
            if overwrite:
                change.start_over()
            yield change
            confirm()
            change.commit()
        except BaseException:
            # What cannot be removed now, `repair` removes, or the ingest that is repeated takes over.
            with suppress(VoxtierError, OSError):
                confirm()  # else another writer took the lock over, and what lies here is his
                finish(change.discard)
            raise
        if overwrite:
            with suppress(VoxtierError):  # the change is made: `repair` removes what cannot be removed now
                change.remove_replaced()


@contextmanager
def hold_still(store: Store) -> Iterator[OwnSnapshot]:
    """Keep writers away from a store, and remove what they left unfinished.

    Yields
    ------
    OwnSnapshot
        What is visible in it.
    """
    with only_writer(store.root, store.session):
        store.recover()
        snapshot = store.own_snapshot()
        Leftovers.find(store, snapshot).remove_unfinished()
        yield snapshot


@contextmanager
def _remove_made_folders(store: Store) -> Iterator[None]:
    """Remove the folders that are made for a local store, also those a killed ingest made, when all fails."""
    path = Path(store.root)
    made = (
        [] if is_remote(store.root) else [folder for folder in (path, *path.parents) if not folder.exists()]
    )
    if not made and not is_remote(store.root) and is_begun(store):
        made = [path]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something lies in one
            for folder in made:
                folder.rmdir()
        raise


def _snapshot_before(store: Store, *, new: bool) -> OwnSnapshot:
    try:
        return store.own_snapshot()
    except NotFoundError:
        if not new:
            raise
        return NOTHING_YET


def repair(store: Store, *, dry_run: bool) -> list[str]:
    """Remove what no commit refers to; return the addresses. A store without a commit is removed as a whole.

    Raises
    ------
    BackendError
        When somebody is writing: what is being written cannot be told from what was left.
    """
    with only_writer(store.root, store.session, timeout=0):
        store.recover()
        if find_unfinished(store.root, store.session) is not None:
            return _repair_unfinished(store, dry_run=dry_run)
        left = Leftovers.find(store, store.own_snapshot())
        orphans = list(left.find_orphans())
        if not dry_run:
            left.remove(orphans)
    return orphans


def _repair_unfinished(store: Store, *, dry_run: bool) -> list[str]:
    left = Leftovers.find(store, NOTHING_YET)
    folders = left.collections if store.kind == "radi_object" else ("",)
    groups = [f"{store.collection_uri(folder)}/volumes" for folder in folders]
    arrays = [f"{uri}/{name}" for uri in groups for name in list_folders(uri, store.session)]
    arrays = [uri for uri in arrays if is_own_volume(uri, store.session)]
    if not dry_run and is_remote(store.root):
        left.remove(arrays)
    elif not dry_run:
        left.remove_unfinished()
        left.remove_store()
        with suppress(OSError):  # something else lies there
            Path(store.root).rmdir()
    return arrays


def _begin(store: Store) -> None:
    meta = {"voxtier_format": FORMAT, "voxtier_kind": store.kind, "voxtier_store": uuid.uuid4().hex}
    create_group(store.root, meta, store.session)
