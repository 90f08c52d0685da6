"""A collection that was written where a RadiObject has its own is taken in as it lies, without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from voxtier.volumes.store.commits import Change, hold_still
from voxtier.volumes.store.names import refuse_duplicates
from voxtier.volumes.store.snapshots import OwnSnapshot, Store
from voxtier.volumes.tiledb.format.groups import create_group, write_group
from voxtier.volumes.tiledb.tables.dataframe import Dataframe


@contextmanager
def hold_collections(collections: Mapping[str, Store]) -> Iterator[dict[str, OwnSnapshot]]:
    """Keep writers away from collections until they are taken in.

    Yields
    ------
    dict
        Name -> what is visible in the collection.
    """
    with ExitStack() as stack:
        yield {name: stack.enter_context(hold_still(store)) for name, store in collections.items()}


def adopt_collections(
    change: Change,
    collections: Mapping[str, Store],
    snapshots: Mapping[str, OwnSnapshot],
    others: Iterable[str],
) -> set[str]:
    """Take collections that lie below the root into a change, as they lie.

    Parameters
    ----------
    change : Change
        Where they are listed.
    collections : mapping
        Name -> store of the collection, held by `hold_collections`.
    snapshots : mapping
        Name -> what is visible in it.
    others : iterable of str
        Observations that the change adds beside them.

    Returns
    -------
    set of str
        Their subjects.

    Raises
    ------
    ConfigError
        For an observation that would exist twice.
    """
    store, session = change.store, change.store.session
    group = f"{store.root}/collections"
    present = [*change.visible_ids(), *others]
    owners: set[str] = set()
    if collections:
        create_group(group, {}, session)
    for name, own in collections.items():
        rows = Dataframe(f"{own.root}/obs", session, timestamp=snapshots[name].commit).read_all()
        refuse_duplicates(map(str, rows["obs_id"]), present)
        present += map(str, rows["obs_id"])
        owners |= set(map(str, rows["obs_subject_id"]))
        folder = own.root.rpartition("/")[2]
        change.collections[name] = folder
        change.members.setdefault(group, []).append(folder)
        # Rows of the change, and readers as of its commit, come after every row that is taken in.
        change.timestamp = max(change.timestamp, snapshots[name].commit + 1)
        write_group(own.root, session, meta={"name": name})
    return owners
