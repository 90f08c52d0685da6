"""The names of the folders and files of an array or a group."""

from __future__ import annotations

import re

RESERVED = "__"
"""Begins the names of TileDB's own folders and files, which never name an array or a group."""

SCHEMA = "__schema"
COMMITS = "__commits"
FRAGMENTS = "__fragments"
META = "__meta"
GROUP = "__group"
"""Folder of the members of a group."""
GROUP_MARK = "__tiledb_group.tdb"

ARRAY_FOLDERS = (SCHEMA, f"{SCHEMA}/__enumerations", COMMITS, FRAGMENTS, META, "__fragment_meta", "__labels")
"""What ``tiledb.Array.create`` makes, in its order."""

OLD_SCHEMA = "__array_schema.tdb"
"""The schema of an array in an older format."""

_OWN = frozenset({*ARRAY_FOLDERS, GROUP, GROUP_MARK, OLD_SCHEMA, "__lock.tdb"})


def is_reserved(name: str) -> bool:
    """Return whether a name inside a group or an array is TileDB's own."""
    return name.startswith(RESERVED)


def is_own(name: str) -> bool:
    """Return whether a name inside a group or an array is one that TileDB gives, or the lock of an S3 store.

    A name that is reserved may be a user's all the same: ``__init__.py``.
    """
    is_old_fragment = re.match(r"__\d+_\d+_[0-9a-f]{32}", name) is not None
    return name in _OWN or is_old_fragment or name.startswith(f"{RESERVED}voxtier_")


def is_file(name: str) -> bool:
    """Return whether a name that `is_own` is that of a file, not of a folder.

    Older formats have ``.ok`` and ``.vac`` beside the fragments: one is whole, one was merged.
    """
    return name.endswith((".tdb", ".json", ".ok", ".vac"))
