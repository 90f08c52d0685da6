"""The origin's tables: ours, read as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from voxtier.arguments import several
from voxtier.volumes.cohort import observations
from voxtier.volumes.tiledb.tables import dataframe as tables
from voxtier.volumes.tiledb.tables.columns import as_table
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS

__all__ = ["INDEX_COLUMNS", "Dataframe", "ObservationFrame", "SubjectFrame"]


class Dataframe(tables.Dataframe):
    """A table on disk, read as a pandas DataFrame.

    Parameters
    ----------
    uri : path or URI
        The sparse array.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    def read(
        self,
        columns: str | Iterable[str] | None = None,
        value_filter: str | None = None,
        include_index: bool = True,  # noqa: FBT001, FBT002
    ) -> Any:
        """Read rows, in the order of their keys.

        Parameters
        ----------
        columns : str or sequence of str, optional
            Some columns only.
        value_filter : str, optional
            Filter expression, see `voxtier.volumes.tiledb.tables.filters`.
        include_index : bool
            Give the key columns too.

        Returns
        -------
        pandas.DataFrame
            The rows that satisfy the filter.
        """
        return super().read(columns, value_filter, include_index).to_pandas()

    def update(self, df: object) -> None:
        """Change values of rows by key, and add the rows whose key the table does not hold."""
        self._merge(as_table(df), adds_rows=True)


class _Frame(observations._ViewTable):
    """What the origin's table of a collection or a cohort answers beside ours."""

    @property
    def index_columns(self) -> tuple[str, ...]:
        """Names of the key columns."""
        return self._keys

    @property
    def all_columns(self) -> list[str]:
        """Keys and columns."""
        return [*self._keys, *self.columns]

    @property
    def dtypes(self) -> dict[str, Any]:
        """Types of the columns."""
        table = self._table()
        return {name: table[name].dtype for name in self.columns}

    def read(
        self,
        columns: str | Iterable[str] | None = None,
        value_filter: str | None = None,
        include_index: bool = True,  # noqa: FBT001, FBT002
    ) -> Any:
        """Read rows, in the order of the view.

        Parameters
        ----------
        columns : str or sequence of str, optional
            Some columns only.
        value_filter : str, optional
            Filter expression, see `voxtier.volumes.tiledb.tables.filters`.
        include_index : bool
            Give the key columns too.

        Returns
        -------
        pandas.DataFrame
            The rows that satisfy the filter.
        """
        table = super().read(None, value_filter)
        wanted = self.columns if columns is None else [n for n in several(columns) if n not in self._keys]
        return table.select([*(self._keys if include_index else ()), *wanted]).to_pandas()


class ObservationFrame(_Frame, observations.ObservationTable):
    """The rows of a collection, read as a pandas DataFrame."""


class SubjectFrame(_Frame, observations.SubjectTable):
    """The rows of the subjects, read as a pandas DataFrame."""
