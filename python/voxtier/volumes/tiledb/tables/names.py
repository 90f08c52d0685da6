"""Names of columns: the keys, those of voxtier's own, and what users may not give."""

from __future__ import annotations

from collections.abc import Iterable

from voxtier.errors import ConfigError
from voxtier.volumes.tiledb.tables.cells import NULLS
from voxtier.volumes.tiledb.tables.columns import Table, as_table

INDEX_COLUMNS = ("obs_subject_id", "obs_id")
SHAPES = "dimensions"
"""The column of a collection that holds the shape of each volume, as text: ``(240, 240, 155)``."""

ARRAYS = "voxtier_array"
"""The column of a collection that holds the name of each volume's array."""

OWN_PREFIX = "voxtier_"
"""Begins the names of columns that users do not see."""

OWN_COLUMNS = frozenset({NULLS, ARRAYS})
"""Columns without which a table or a store cannot be read."""


def given_table(frame: object) -> Table:
    """Return a `Table` of what a user gives to be stored (see `as_table`).

    Raises
    ------
    ConfigError
        For a name that begins as those of voxtier's own columns do: nobody would see the column again.
    """
    table = as_table(frame)
    refuse_own_names(table.columns)
    return table


def refuse_own_names(names: Iterable[str]) -> None:
    """Refuse names that begin as those of voxtier's own columns do.

    Raises
    ------
    ConfigError
        Names the first of them.
    """
    own = next((name for name in names if name.startswith(OWN_PREFIX)), None)
    if own is not None:
        raise ConfigError(
            f"column {own!r}: names that begin with {OWN_PREFIX!r} are voxtier's own, rename it"
        )
