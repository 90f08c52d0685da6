"""What is visible in a store, and how a change becomes visible: all of it at once, or not at all.

Every table is read *as of* one time stamp, the last commit, which lies in the metadata of the store's root
group together with the list of collections. A writer, under the lock, writes voxel arrays (under names that
nobody looks for yet), then rows with a later time stamp, and at last the new commit: one small object. A
writer that dies before leaves rows from the future, which the next writer removes, and arrays without a row,
which `repair` removes or a repeated ingest takes over. Overwriting a store is such a change too: the new
tables and collections lie beside the old ones, in folders of other names, until the commit names them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, TypeVar

from voxtier.errors import (
    BackendError,
    ConfigError,
    FormatError,
    NotFoundError,
    SourceError,
    VoxtierError,
)
from voxtier.volumes.store.locks import only_writer
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.format import recovery as mending
from voxtier.volumes.tiledb.session import Session, checked_name
from voxtier.volumes.tiledb.tables import Dataframe, Table

FORMAT: Final = "1"
_SUBJECTS: Final = "obs_meta"
_PATIENCE: Final = 30.0  # seconds; a writer needs microseconds, unless its machine stops it there

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader sees. ``commit`` is None for a store that voxtier did not write: then the newest rows."""

    commit: int | None
    collections: Mapping[str, str]  # name -> folder below ``collections``
    meta: Mapping[str, Any]

    @property
    def subjects(self) -> str:
        """Folder of the table of subjects."""
        return checked_name("table", str(self.meta.get("voxtier_subjects", _SUBJECTS)))


@dataclass(frozen=True, slots=True)
class Store:
    """The root of a store: that of a `RadiObject`, or of a collection that stands alone."""

    root: str
    session: Session
    kind: str  # radi_object | collection

    @staticmethod
    def of_collection(uri: str, session: Session) -> Store:
        """Return the store that a collection belongs to: the RadiObject around it, else itself."""
        parent, _, _ = uri.rpartition("/")
        root, _, folder = parent.rpartition("/")
        if folder == "collections" and root:
            with suppress(NotFoundError):
                around = Store(root, session, "radi_object")
                if "voxtier_format" in around._meta():
                    return around
        return Store(uri, session, "collection")

    def snapshot(self) -> Snapshot:
        """Read what is visible now.

        Raises
        ------
        NotFoundError
            When there is no store, or an ingest that was cut off before its first commit.
        """
        meta = self._meta()
        written_by_us = "voxtier_format" in meta
        if str(meta.get("voxtier_kind", self.kind)) != self.kind:
            raise ConfigError(f"{self.root} holds a {meta['voxtier_kind']}: open it as that")
        if "voxtier_commit" not in meta and (written_by_us or self._is_bare(meta)):
            raise NotFoundError(
                f"{self.root}: the ingest was cut off before its first commit;"
                " repeat it (finished volumes are taken over) or use overwrite=True"
            )
        if written_by_us and str(meta["voxtier_format"]) != FORMAT:
            raise ConfigError(
                f"{self.root} has the format {meta['voxtier_format']}, this voxtier reads {FORMAT}"
            )
        if self.kind == "collection":
            names: dict[str, str] = {}
        elif written_by_us:
            listed = json.loads(str(meta["voxtier_collections"]))
            names = {name: checked_name("collection", str(folder)) for name, folder in listed.items()}
        else:
            members = engine.group_members(f"{self.root}/collections", self.session)
            names = {name: uri.rsplit("/", 1)[-1] for name, uri in members.items()}
        return Snapshot(int(meta["voxtier_commit"]) if written_by_us else None, names, meta)

    def patiently(self, read: Callable[[], _Found]) -> _Found:
        """Read; what a living writer is about to finish is waited for, what a dead one began is removed."""
        deadline = time.monotonic() + _PATIENCE
        pause = 0.01
        while True:
            try:
                return read()
            except (FormatError, NotFoundError):
                if engine.is_remote(self.root) or time.monotonic() > deadline:
                    raise
                if not mending.torn_files(self.root):
                    return read()  # finished, or removed, since
            try:
                with only_writer(self.root, self.session, timeout=0):
                    mending.remove_torn(self.root)  # nobody is writing: it was killed
            except BackendError:
                pass  # somebody is
            except SourceError:  # a reader that may not write cannot tell, and cannot help
                deadline = min(deadline, time.monotonic() + 1)
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def meta_of(self, uri: str) -> dict[str, Any]:
        """Read the metadata of a group of this store."""
        return self.patiently(lambda: engine.group_meta(uri, self.session))

    def _meta(self) -> dict[str, Any]:
        return self.meta_of(self.root)

    def refuse_replaced(self, snapshot: Snapshot) -> None:
        """Refuse to read rows of a store that was replaced (overwritten) since the snapshot was taken."""
        identity = snapshot.meta.get("voxtier_store")
        if identity is not None and self._meta().get("voxtier_store") != identity:
            raise NotFoundError(f"{self.root} was replaced since it was opened: open it again")

    def collection_uri(self, folder: str) -> str:
        """Return the address of a collection."""
        return f"{self.root}/collections/{folder}" if self.kind == "radi_object" else self.root

    def _own_snapshot(self) -> Snapshot:
        """Read what is visible now, of a store that voxtier may change."""
        found = self.snapshot()
        if found.commit is None:
            raise ConfigError(
                f"{self.root} was written by RadiObject: voxtier reads it, but writes only into its own"
                " stores (materialize it first)"
            )
        return found

    def exists(self) -> bool:
        """Return whether a finished store lies here."""
        try:
            self.snapshot()
        except NotFoundError:
            return False
        return True

    def _begun(self) -> bool:
        """Return whether an ingest has made the root already, be it one that was cut off."""
        try:
            return "voxtier_format" in self._meta()
        except NotFoundError:
            return False

    def _is_bare(self, meta: Mapping[str, Any]) -> bool:
        """Return whether the root is a group that holds nothing: its maker was killed before it said more."""
        return (
            not meta
            and not engine.group_members(self.root, self.session)
            and all(name.startswith("__") for name in engine.subfolders(self.root, self.session))
        )

    def _refuse_occupied(self, *, overwrite: bool) -> None:
        """Refuse to begin a store where something else lies, or a finished one unless it may be replaced."""
        kind = engine.object_kind(self.root, self.session)
        if kind is None:
            return
        if kind != "group" or not (self._begun() or self._is_bare(self._meta())):
            raise ConfigError(f"{self.root} holds something that voxtier did not write: choose another place")
        if not overwrite and self.exists():
            way = ", or overwrite=True" if self.kind == "radi_object" else ""
            raise ConfigError(f"{self.root} already exists: append() to it{way}")

    def repair(self, *, dry_run: bool) -> list[str]:
        """Remove what no commit refers to; returns the addresses.

        Raises
        ------
        BackendError
            When somebody is writing: what is being written cannot be told from what was left.
        """
        with only_writer(self.root, self.session, timeout=0):
            mending.remove_torn(self.root)
            before = self._own_snapshot()
            change = Change(self, before, 0, dict(before.collections))
            orphans = list(change.orphans())
            if not dry_run:
                change.remove(orphans)
        return orphans

    @contextmanager
    def writing(self, *, new: bool = False, overwrite: bool = False) -> Iterator[Change]:
        """Collect one change under the writer's lock; leaving the block without an error commits it.

        A ``new`` store is begun, or taken over where its first ingest was cut off. With ``overwrite`` the
        change begins without collections, and what it replaces is removed afterwards.
        """
        if new:
            self._refuse_occupied(overwrite=overwrite)  # before a lock is left in somebody else's folder
        with only_writer(self.root, self.session) as confirm:
            mending.remove_torn(self.root)
            if new:
                self._refuse_occupied(overwrite=overwrite)
                if not self._begun():
                    engine.create_group(
                        self.root,
                        {
                            "voxtier_format": FORMAT,
                            "voxtier_kind": self.kind,
                            "voxtier_store": uuid.uuid4().hex,
                        },
                        self.session,
                    )
            try:
                before = self._own_snapshot()
            except NotFoundError:
                if not new:
                    raise
                before = Snapshot(0, {}, {})
            stamp = max(time.time_ns() // 1_000_000, (before.commit or 0) + 1)
            change = Change(self, before, stamp, dict(before.collections), subjects=before.subjects)
            change.forget_unfinished()
            if overwrite:
                change.start_over()
            yield change
            confirm()
            change.commit()
            if overwrite:
                with suppress(
                    VoxtierError
                ):  # the change is made: what cannot be removed now, `repair` removes
                    after = self.snapshot()
                    replaced = Change(self, after, 0, dict(after.collections), subjects=after.subjects)
                    replaced.remove(list(replaced.orphans()))


@dataclass(slots=True)
class Change:
    """One change in the making."""

    store: Store
    before: Snapshot
    stamp: int  # milliseconds; later than every visible row
    collections: dict[str, str]
    meta: dict[str, Any] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)  # group -> folders to list in it
    subjects: str = _SUBJECTS  # folder of their table

    def start_over(self) -> None:
        """Begin an empty store, under names that the visible one does not use."""
        self.collections = {}
        if self.before.commit:
            self.subjects = f"{_SUBJECTS}-{self.before.commit}"
            self.meta |= {"voxtier_store": uuid.uuid4().hex, "voxtier_subjects": self.subjects}

    def folder(self, name: str) -> str:
        """Return the folder of a collection; a new one gets a name that no visible collection has."""
        if name in self.collections:
            return self.collections[name]
        taken = {*self.collections.values(), *self.before.collections.values()}
        folder = checked_name("collection", name)
        while folder in taken:
            folder += f"-{self.before.commit}"
        return folder

    def rows(self, table_uri: str, rows: Table) -> None:
        """Write rows that become visible with the commit."""
        if len(rows):
            Dataframe(table_uri, self.store.session).write_rows(rows, timestamp=self.stamp)

    def table(self, uri: str) -> Dataframe:
        """Return a table as the last commit left it."""
        return Dataframe(uri, self.store.session, timestamp=self.before.commit)

    def tables(self) -> dict[str, bool]:
        """Return every table of the store, and whether it is visible."""
        root, session = self.store.root, self.store.session
        if self.store.kind == "collection":
            return {f"{root}/obs": True}
        seen = set(self.before.collections.values())
        return {f"{root}/{name}": name == self.before.subjects for name in self._tables_of_subjects()} | {
            f"{root}/collections/{name}/obs": name in seen
            for name in engine.subfolders(f"{root}/collections", session)
        }

    def _tables_of_subjects(self) -> list[str]:
        names = engine.subfolders(self.store.root, self.store.session)
        return [name for name in names if name == _SUBJECTS or name.startswith(f"{_SUBJECTS}-")]

    def forget_unfinished(self) -> None:
        """Remove what a writer left of tables without committing it, and tables that no commit names."""
        for uri, visible in self.tables().items():
            if engine.object_kind(uri, self.store.session) != "array":
                continue
            commit = (self.before.commit or 0) if visible else 0
            if commit or engine.is_remote(uri):  # some servers keep the folders of objects that are gone
                Dataframe(uri, self.store.session).forget_after(commit)
            else:
                engine.remove_tree(uri, self.store.session)

    def orphans(self) -> Iterator[str]:
        """Yield the addresses of arrays and collections that the last commit does not know."""
        root, session = self.store.root, self.store.session
        folders = [""]
        if self.store.kind == "radi_object":
            base = f"{root}/collections"
            folders = list(self.collections.values())
            yield from (
                f"{root}/{name}" for name in self._tables_of_subjects() if name != self.before.subjects
            )
            for folder in engine.subfolders(base, session):
                if not folder.startswith("__") and folder not in folders:
                    yield f"{base}/{folder}"
        for folder in folders:
            uri = self.store.collection_uri(folder)
            used = set(self.table(f"{uri}/obs").read_all()["voxtier_array"])
            for array in engine.subfolders(f"{uri}/volumes", session):
                if array not in used and not array.startswith("__"):
                    yield f"{uri}/volumes/{array}"

    def remove(self, uris: Iterable[str]) -> None:
        """Remove arrays and collections, from their groups first."""
        session = self.store.session
        for group, inside in groupby(sorted(uris), lambda uri: uri.rpartition("/")[0]):
            gone = list(inside)
            known = engine.group_members(group, session)
            listed = [name for uri in gone if (name := uri.rpartition("/")[2]) in known]
            if listed:
                engine.write_group(group, session, remove=listed)
            for uri in gone:
                engine.remove_tree(uri, session)

    def commit(self) -> None:
        """Make the change visible: one write of the root's metadata."""
        session = self.store.session
        for group, folders in self.members.items():
            known = engine.group_members(group, session)
            engine.write_group(group, session, add=[name for name in folders if name not in known])
        meta = dict(self.meta)
        if self.store.kind == "radi_object":
            meta["voxtier_collections"] = json.dumps(self.collections)
            meta["n_collections"] = len(self.collections)
        meta["voxtier_commit"] = self.stamp
        # a clock that was set back, or is another machine's, must not put this before an earlier commit
        engine.write_group(self.store.root, session, meta=meta, stamp=self.stamp)
