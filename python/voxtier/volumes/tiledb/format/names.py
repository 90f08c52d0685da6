"""The names of the folders and files of an array or a group."""

from __future__ import annotations

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


def is_reserved(name: str) -> bool:
    """Return whether a name inside a group or an array is TileDB's own."""
    return name.startswith(RESERVED)
