"""What is visible in a store, and how a change becomes visible: all of it at once, or not at all.

Every table is read *as of* one time stamp, the last commit, which lies in the metadata of the store's root
group together with the list of collections. A writer, under the lock, writes voxel arrays (under names that
nobody looks for yet), then rows with a later time stamp, and at last the new commit: one small object. A
writer that dies before leaves rows from the future, which the next writer removes, and arrays without a row,
which `repair` removes or a repeated ingest takes over.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from voxtier.errors import BackendError, ConfigError, FormatError, NotFoundError, SourceError
from voxtier.volumes import engine
from voxtier.volumes.engine import Session
from voxtier.volumes.locks import only_writer
from voxtier.volumes.tables import Dataframe, Table

FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader sees. ``commit`` is None for a store that voxtier did not write: then the newest rows."""

    commit: int | None
    collections: Mapping[str, str]  # name -> folder below ``collections``
    meta: Mapping[str, Any]


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
                if "voxtier_format" in engine.group_meta(root, session):
                    return Store(root, session, "radi_object")
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
        if written_by_us and "voxtier_commit" not in meta:
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
            names = json.loads(str(meta["voxtier_collections"]))
        else:
            members = engine.group_members(f"{self.root}/collections", self.session)
            names = {name: uri.rsplit("/", 1)[-1] for name, uri in members.items()}
        return Snapshot(int(meta["voxtier_commit"]) if written_by_us else None, names, meta)

    def _meta(self) -> dict[str, Any]:
        """Read the root's metadata; a file that a writer made but did not fill is waited for, or removed."""
        for pause in (0.01, 0.05, 0.2):
            try:
                return engine.group_meta(self.root, self.session)
            except FormatError:
                time.sleep(pause)
        with suppress(BackendError, SourceError), only_writer(self.root, self.session, timeout=0):
            engine.remove_torn(self.root)  # nobody is writing: it was killed
        return engine.group_meta(self.root, self.session)

    def refuse_replaced(self, snapshot: Snapshot) -> None:
        """Refuse to read rows of a store that was replaced (overwritten) since the snapshot was taken."""
        identity = snapshot.meta.get("voxtier_store")
        if (
            identity is not None
            and engine.group_meta(self.root, self.session).get("voxtier_store") != identity
        ):
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
        """Return whether an earlier, unfinished ingest has made the root already."""
        try:
            return "voxtier_format" in engine.group_meta(self.root, self.session)
        except NotFoundError:
            return False

    def repair(self, *, dry_run: bool) -> list[str]:
        """Remove what no commit refers to; returns the addresses.

        Raises
        ------
        BackendError
            When somebody is writing: what is being written cannot be told from what was left.
        """
        with only_writer(self.root, self.session, timeout=0):
            before = self._own_snapshot()
            orphans = list(Change(self, before, 0, dict(before.collections)).orphans())
            for uri in [] if dry_run else orphans:
                engine.remove_tree(uri, self.session)
        return orphans

    @contextmanager
    def writing(self, *, new: bool = False) -> Iterator[Change]:
        """Collect one change under the writer's lock; leaving the block without an error commits it."""
        with only_writer(self.root, self.session) as confirm:
            engine.remove_torn(self.root)
            if new and not self._begun():
                engine.create_group(
                    self.root,
                    {"voxtier_format": FORMAT, "voxtier_kind": self.kind, "voxtier_store": uuid.uuid4().hex},
                    self.session,
                )
            try:
                before = self._own_snapshot()
            except NotFoundError:
                if not new:
                    raise
                before = Snapshot(0, {}, {})
            stamp = max(time.time_ns() // 1_000_000, (before.commit or 0) + 1)
            change = Change(self, before, stamp, dict(before.collections))
            change.forget_unfinished()
            yield change
            confirm()
            change.commit()


@dataclass(slots=True)
class Change:
    """One change in the making."""

    store: Store
    before: Snapshot
    stamp: int  # milliseconds; later than every visible row
    collections: dict[str, str]
    meta: dict[str, Any] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)  # group -> folders to list in it

    def rows(self, table_uri: str, rows: Table) -> None:
        """Write rows that become visible with the commit."""
        if len(rows):
            Dataframe(table_uri, self.store.session).write_rows(rows, timestamp=self.stamp)

    def table(self, uri: str) -> Dataframe:
        """Return a table as the last commit left it."""
        return Dataframe(uri, self.store.session, timestamp=self.before.commit)

    def tables(self) -> list[str]:
        """Return every table of the store, those of collections that are not visible yet included."""
        root, session = self.store.root, self.store.session
        if self.store.kind == "collection":
            return [f"{root}/obs"]
        folders = engine.subfolders(f"{root}/collections", session)
        return [f"{root}/obs_meta", *(f"{root}/collections/{name}/obs" for name in folders)]

    def forget_unfinished(self) -> None:
        """Remove rows that a writer left behind without committing them."""
        commit = self.before.commit or 0
        for uri in self.tables():
            if engine.object_kind(uri, self.store.session) == "array":
                Dataframe(uri, self.store.session).forget_after(commit)

    def orphans(self) -> Iterator[str]:
        """Yield the addresses of arrays and collections that the last commit does not know."""
        root, session = self.store.root, self.store.session
        folders = [""]
        if self.store.kind == "radi_object":
            base = f"{root}/collections"
            folders = list(self.collections.values())
            for folder in engine.subfolders(base, session):
                if not folder.startswith("__") and folder not in folders:
                    yield f"{base}/{folder}"
        for folder in folders:
            uri = self.store.collection_uri(folder)
            used = set(self.table(f"{uri}/obs").read_all()["voxtier_array"])
            for array in engine.subfolders(f"{uri}/volumes", session):
                if array not in used and not array.startswith("__"):
                    yield f"{uri}/volumes/{array}"

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
        engine.write_group(self.store.root, session, meta=meta)
