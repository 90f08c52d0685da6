"""What is visible in a store: read as of one commit, which a writer that dies never changes.

Every table is read *as of* one time stamp, the last commit, which lies in the metadata of the store's root
group together with the list of collections (`commits` writes it).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from voxtier.errors import BackendError, ConfigError, FormatError, NotFoundError, SourceError
from voxtier.volumes.store.names import checked_name, is_version_of
from voxtier.volumes.tiledb.format.groups import read_group_meta, read_members
from voxtier.volumes.tiledb.format.names import RESERVED, is_reserved
from voxtier.volumes.tiledb.format.recovery import partial_files, recover
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import (
    Session,
    holds_no_file,
    is_remote,
    is_removing,
    list_folders,
    read_kind,
)

FORMAT = "1"
"""Version of the layout of a store."""

SUBJECTS = "obs_meta"
"""Folder of the table of subjects; an overwritten store has it under this name and a suffix."""

_PATIENCE_SECONDS = 30.0  # a writer needs microseconds, unless its machine stops it there

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader sees.

    Parameters
    ----------
    commit : int or None
        Time stamp of the commit (milliseconds since 1970); None for a store that voxtier did not write, whose
        newest rows count.
    collections : mapping
        Collection name -> folder below ``collections``.
    meta : mapping
        Metadata of the root group.
    """

    commit: int | None
    collections: Mapping[str, str]
    meta: Mapping[str, Any]

    @property
    def subjects(self) -> str:
        """Folder of the table of subjects."""
        return checked_name("table", str(self.meta.get("voxtier_subjects", SUBJECTS)))


@dataclass(frozen=True, slots=True)
class OwnSnapshot(Snapshot):
    """What is visible in a store that voxtier wrote, and may change; a commit of 0 is none yet."""

    commit: int


NOTHING_YET = OwnSnapshot(0, {}, {})
"""What is visible in a store before its first commit."""


@dataclass(frozen=True, slots=True)
class Store:
    """The root of a store: that of a `RadiObject`, or of a collection that stands alone.

    Parameters
    ----------
    root : str
        Address of its root group.
    session : Session
        How it is reached.
    kind : str
        ``radi_object`` or ``collection``.
    """

    root: str
    session: Session
    kind: str

    @staticmethod
    def of_collection(uri: str, session: Session) -> Store:
        """Return the store that a collection belongs to: the RadiObject around it, else itself.

        A collection of its own may lie where a RadiObject has its collections, until that takes it in.
        """
        alone = Store(uri, session, "collection")
        around, is_listed = alone.around()
        return around if around is not None and (is_listed or not alone.stands_alone()) else alone

    def around(self) -> tuple[Store | None, bool]:
        """Return the RadiObject of voxtier below which this root lies, and whether it lists it."""
        parent, _, name = self.root.rpartition("/")
        root, _, folder = parent.rpartition("/")
        if folder == "collections" and root:
            with suppress(NotFoundError):
                store = Store(root, self.session, "radi_object")
                meta = store.meta()
                if "voxtier_format" in meta:
                    return store, name in json.loads(str(meta.get("voxtier_collections", "{}"))).values()
        return None, False

    def stands_alone(self) -> bool:
        """Return whether the root is that of a collection that was written as a store of its own."""
        with suppress(NotFoundError):
            return self.meta().get("voxtier_kind") == "collection"
        return False

    def snapshot(self) -> Snapshot:
        """Read what is visible now.

        Raises
        ------
        NotFoundError
            When there is no store, or an ingest that was cut off before its first commit.
        ConfigError
            When the store is of another kind or of a newer format.
        """
        try:
            meta = self.meta()
        except NotFoundError:
            raise NotFoundError(f"there is no store at {self.root}") from None
        is_own = "voxtier_format" in meta
        if str(meta.get("voxtier_kind", self.kind)) != self.kind:
            raise ConfigError(f"{self.root} holds a {meta['voxtier_kind']}: open it as that")
        if "voxtier_commit" not in meta and (is_own or self.is_empty(meta)):
            raise NotFoundError(
                f"{self.root}: the ingest was cut off before its first commit;"
                " repeat it (finished volumes are taken over) or use overwrite=True"
            )
        if is_own and str(meta["voxtier_format"]) != FORMAT:
            raise ConfigError(
                f"{self.root} has the format {meta['voxtier_format']}, this voxtier reads {FORMAT}"
            )
        if self.kind == "collection":
            names: dict[str, str] = {}
        elif is_own:
            folders = json.loads(str(meta["voxtier_collections"]))
            names = {name: checked_name("collection", str(folder)) for name, folder in folders.items()}
        else:
            members = read_members(f"{self.root}/collections", self.session)
            names = {name: uri.rsplit("/", 1)[-1] for name, uri in members.items()}
        return Snapshot(int(meta["voxtier_commit"]) if is_own else None, names, meta)

    def own_snapshot(self) -> OwnSnapshot:
        """Read what is visible now, of a store that voxtier may change.

        Raises
        ------
        ConfigError
            When RadiObject wrote it, and where `snapshot` raises it.
        NotFoundError
            As `snapshot` raises it.
        """
        found = self.snapshot()
        if found.commit is None:
            raise ConfigError(
                f"{self.root} was written by RadiObject: voxtier reads it, but writes only into its own"
                " stores (materialize it first)"
            )
        return OwnSnapshot(found.commit, found.collections, found.meta)

    def read_patiently(self, read: Callable[[], _Result]) -> _Result:
        """Read; wait for what a living writer is about to finish, remove what a dead one began.

        Raises
        ------
        FormatError, NotFoundError
            What ``read`` raises, when no file of the store is incomplete or 30 seconds have passed.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pause = 0.01
        while True:
            try:
                return read()
            except (FormatError, NotFoundError):
                if is_remote(self.root) or time.monotonic() > deadline:
                    raise
                groups, tables = self._local_folders()
                if not partial_files([*groups, *tables]):
                    return read()  # finished, or removed, since
            try:
                with only_writer(self.root, self.session, timeout=0):
                    self.recover()  # nobody is writing: it was killed
            except BackendError:
                pass  # somebody is
            except SourceError:  # a reader that may not write cannot tell, and cannot help
                deadline = min(deadline, time.monotonic() + 1)
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def recover(self) -> None:
        """Remove what a killed writer left incomplete; only for the holder of the writer's lock."""
        groups, tables = self._local_folders()
        recover(groups, tables)

    def _local_folders(self) -> tuple[list[Path], list[Path]]:
        """Return the groups and the tables that a local store may have; none of a remote one."""
        root = Path(self.root)
        if is_remote(self.root) or not root.is_dir():
            return [], []
        collections = root / "collections"
        bases = [root, collections]
        if collections.is_dir():
            bases += [e for e in collections.iterdir() if e.is_dir() and not is_reserved(e.name)]
        tables = [*(base / "obs" for base in bases), *_versions(root, SUBJECTS)]
        return [*bases, *(base / "volumes" for base in bases)], tables

    def meta_of(self, uri: str) -> dict[str, Any]:
        """Read the metadata of a group of this store."""
        return self.read_patiently(lambda: read_group_meta(uri, self.session))

    def meta(self) -> dict[str, Any]:
        """Read the metadata of the root group."""
        return self.meta_of(self.root)

    def refuse_replaced(self, snapshot: Snapshot, meta: Mapping[str, Any] | None = None) -> None:
        """Refuse to read or change a store that was replaced (overwritten) since the snapshot was taken.

        Parameters
        ----------
        snapshot : Snapshot
            What was visible when it was opened.
        meta : mapping, optional
            Metadata of the root group now; None reads it.

        Raises
        ------
        NotFoundError
            When it was.
        """
        identity = snapshot.meta.get("voxtier_store")
        if identity is None:
            return
        now = self.meta() if meta is None else meta
        if now.get("voxtier_store") != identity:
            raise NotFoundError(f"{self.root} was replaced since it was opened: open it again")

    def collection_uri(self, folder: str) -> str:
        """Return the address of a collection."""
        return f"{self.root}/collections/{folder}" if self.kind == "radi_object" else self.root

    def is_empty(self, meta: Mapping[str, Any]) -> bool:
        """Return whether a root of this metadata holds nothing: it was just begun, or all but removed."""
        return (
            not meta
            and not read_members(self.root, self.session)
            and all(is_reserved(n) or is_removing(n) for n in list_folders(self.root, self.session))
        )


def _versions(folder: Path, name: str) -> list[Path]:
    return [entry for entry in folder.glob(f"{name}*") if is_version_of(entry.name, name)]


def find_unfinished(root: str, session: Session) -> Store | None:
    """Return the store that an ingest began at an address and was killed before it committed."""
    store = Store(root, session, "radi_object")
    meta = store.meta() if read_kind(root, session) == "group" else {}
    if "voxtier_format" not in meta or "voxtier_commit" in meta:
        return None
    return Store(root, session, str(meta["voxtier_kind"]))


def is_begun(store: Store) -> bool:
    """Return whether an ingest has made the root already, be it one that was cut off."""
    try:
        return "voxtier_format" in store.meta()
    except NotFoundError:
        return False


def refuse_occupied_root(store: Store, *, overwrite: bool) -> None:
    """Refuse to begin a store where something else lies, or a finished one unless it may be replaced."""
    kind = read_kind(store.root, store.session)
    if kind is None and _is_free(store):
        return
    if kind != "group" or not (is_begun(store) or store.is_empty(store.meta())):
        raise ConfigError(f"{store.root} holds something that voxtier did not write: choose another place")
    if not overwrite and _is_finished(store):
        way = " (--append), or overwrite=True (--overwrite)" if store.kind == "radi_object" else ""
        raise ConfigError(f"{store.root} already exists: append() to it{way}")


def _is_free(store: Store) -> bool:
    """Return whether a local folder holds nothing, or what an ingest may begin with.

    That is folders without a file, which an ingest left that was killed, and, for a RadiObject, collections
    that it may be made around. What is voxtier's own it may remove: nobody else's files may lie among it.
    """
    root = Path(store.root)
    if is_remote(store.root) or not root.is_dir():
        return is_remote(store.root) or not root.exists()
    own = "collections" if store.kind == "radi_object" else "volumes"
    visible = _visible(root)
    if [entry.name for entry in visible] != [own]:
        return not visible
    return holds_no_file(visible[0]) or (
        store.kind == "radi_object"
        and all(
            holds_no_file(entry) or Store(str(entry), store.session, "collection").stands_alone()
            for entry in _visible(visible[0])
        )
    )


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith((RESERVED, "."))]


def _is_finished(store: Store) -> bool:
    try:
        store.snapshot()
    except NotFoundError:
        return False
    return True
