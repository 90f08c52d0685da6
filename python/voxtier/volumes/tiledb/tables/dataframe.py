"""Observation tables: sparse TileDB arrays keyed by subject and observation.

TileDB gives rows back in lexicographic order of their keys, whatever the order of writing; so nothing here or
above ever counts on a position to mean an identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.arguments import several
from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.names import FRAGMENTS, SCHEMA
from voxtier.volumes.tiledb.format.recovery import remove_schemas_after
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import (
    LATEST,
    Session,
    Uri,
    as_uri,
    is_remote,
    next_timestamp,
    read_kind,
)
from voxtier.volumes.tiledb.tables.cells import (
    NULLS,
    column_cells,
    column_type,
    from_cells,
    make_attribute,
    to_cells,
)
from voxtier.volumes.tiledb.tables.columns import (
    Table,
    as_table,
    rows_table,
)
from voxtier.volumes.tiledb.tables.names import (
    INDEX_COLUMNS,
    OWN_COLUMNS,
    OWN_PREFIX,
    given_table,
    refuse_own_names,
)

_LONG_CELL = 4096  # bytes; more than a cell of most columns has


class Dataframe:
    """A table on disk, keyed by (obs_subject_id, obs_id).

    Writers take turns: each change reads, merges and writes under the lock of the table, or under that of its
    store, which the store takes. Where there are no locks, on some network file systems and on object stores
    that are not S3, a table that stands alone is changed without one.

    Parameters
    ----------
    uri : path or URI
        The sparse array.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    timestamp : int, optional
        Read and write as of this time (milliseconds since 1970), by default after all that was written.
    """

    def __init__(self, uri: Uri, ctx: object = None, *, timestamp: int | None = None) -> None:
        self.uri = as_uri(uri)
        session = Session.of(ctx)
        # One thread is no slower for 300,000 rows on a disk, and sooner for some hundred.
        self._session = session if is_remote(self.uri) else session.single_threaded()
        self._timestamp = timestamp
        self._keys: tuple[str, ...] | None = None

    def _open(self, mode: str = "r", timestamp: int | None = None, size: int = 1 << 40) -> Any:
        context = self._session.for_small_writes(self.uri, size).context()
        asked = timestamp if timestamp is not None else self._timestamp
        if asked is None:
            asked = LATEST if mode == "r" else self._next_timestamp()
        return tiledb.open(self.uri, mode, ctx=context, timestamp=asked)

    def _next_timestamp(self) -> int:
        return next_timestamp(self.uri, (FRAGMENTS, SCHEMA), self._session)

    @contextmanager
    def _only_writer(self) -> Iterator[Callable[[], None]]:
        """Hold the lock of a table that stands alone; one of a store is changed at a time, under its lock."""
        if self._timestamp is not None:
            yield lambda: None
            return
        self._schema  # noqa: B018  where there is no table, the lock would make its folder
        with only_writer(self.uri, self._session, needs_lock=False) as confirm:
            yield confirm

    @property
    def _schema(self) -> Any:
        with translate_errors(f"open the table {self.uri}"):
            return tiledb.ArraySchema.load(self.uri, ctx=self._session.context())

    @property
    def index_columns(self) -> tuple[str, ...]:
        """Names of the key columns."""
        if self._keys is None:
            domain = self._schema.domain
            self._keys = tuple(domain.dim(i).name for i in range(domain.ndim))
        return self._keys

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the keys."""
        schema = self._schema
        return [
            schema.attr(i).name for i in range(schema.nattr) if not schema.attr(i).name.startswith(OWN_PREFIX)
        ]

    @property
    def all_columns(self) -> list[str]:
        """Keys and columns."""
        return [*self.index_columns, *self.columns]

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Types of the columns; text is ``object``."""
        schema = self._schema
        return {
            name: np.dtype(object) if schema.attr(name).isvar else schema.attr(name).dtype
            for name in self.columns
        }

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (keys not counted)."""
        return len(self), len(self.columns)

    def __len__(self) -> int:
        return len(self.read(columns=[]))

    def __repr__(self) -> str:
        return f"Dataframe({len(self)} rows: {', '.join(self.all_columns)})"

    def read(
        self,
        columns: str | Iterable[str] | None = None,
        value_filter: str | None = None,
        include_index: bool = True,  # noqa: FBT001, FBT002
    ) -> Table:
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
        Table
            The rows that satisfy the filter.
        """
        table = self.read_all()
        keys = self.index_columns
        if value_filter is not None:
            table = table.filter(value_filter)
        others = [name for name in table.columns if name not in keys and not name.startswith(OWN_PREFIX)]
        wanted = others if columns is None else [n for n in several(columns) if n not in keys]
        return table.select([*(keys if include_index else []), *wanted])

    def read_all(self) -> Table:
        """Read every row and column, voxtier's own among them."""
        with translate_errors(f"read the table {self.uri}"), self._open() as array:
            cells = array[:]
            keys = self._keys = tuple(array.domain.dim(i).name for i in range(array.ndim))
        return from_cells(cells, keys)

    @classmethod
    def create(
        cls,
        uri: Uri,
        schema: Mapping[str, Any],
        ctx: object = None,
        index_columns: str | Iterable[str] = INDEX_COLUMNS,
    ) -> Dataframe:
        """Create an empty table.

        Parameters
        ----------
        uri : path or URI
            Place of the new array.
        schema : mapping
            Column name -> numpy dtype; any text type becomes UTF-8 of any length.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        index_columns : str or sequence of str
            Key columns.

        Returns
        -------
        Dataframe
            The new table.

        Raises
        ------
        ConfigError
            When something lies at the address, for a column that cannot be stored or is named as voxtier's
            own, and for key columns that are none or stand twice.
        """
        refuse_own_names(schema)
        created = cls(uri, ctx)
        created._store_schema(created._new_schema(schema, index_columns))
        return created

    def _new_schema(self, schema: Mapping[str, Any], index_columns: str | Iterable[str]) -> Any:
        """Return the schema of a new table here, or refuse it (see `create`)."""
        keys = several(index_columns)
        if not keys or len(set(keys)) < len(keys) or not all(isinstance(key, str) and key for key in keys):
            raise ConfigError(f"index_columns are names, each once, got {keys!r}")
        both = [name for name in schema if name in keys]
        if both:
            raise ConfigError(f"{both[0]!r} is a key column: leave it out of the schema")
        if read_kind(self.uri, self._session) is not None:
            raise ConfigError(f"{self.uri} already exists: choose another place or remove it first")
        context = self._session.context()
        attributes = [make_attribute(name, column_type(name, kind), context) for name, kind in schema.items()]
        attributes.append(make_attribute(NULLS, np.dtype(object), context))
        with translate_errors(f"create the table {self.uri}"):
            dimensions = [tiledb.Dim(name=key, dtype="ascii", ctx=context) for key in keys]
            domain = tiledb.Domain(*dimensions, ctx=context)
            return tiledb.ArraySchema(domain=domain, attrs=attributes, sparse=True, ctx=context)

    def _store_schema(self, schema: Any) -> None:
        with translate_errors(f"create the table {self.uri}"):
            tiledb.Array.create(self.uri, schema, ctx=self._session.context())

    @classmethod
    def from_pandas(
        cls, uri: Uri, df: object, ctx: object = None, index_columns: str | Iterable[str] = INDEX_COLUMNS
    ) -> Dataframe:
        """Create a table from rows in memory.

        Parameters
        ----------
        uri : path or URI
            Place of the new array.
        df : pandas.DataFrame, Table or mapping
            Columns, the keys among them.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        index_columns : str or sequence of str
            Key columns.

        Returns
        -------
        Dataframe
            The new table.

        Raises
        ------
        ConfigError
            When a key column or a key is missing, when two rows have one key, and for a column that cannot be
            stored. No table is made then.
        """
        table = given_table(df)
        keys = several(index_columns)
        missing = [name for name in keys if name not in table]
        if missing:
            raise ConfigError(f"the table lacks the key column {missing[0]!r}")
        schema = {name: table[name].dtype for name in table.columns if name not in keys}
        created = cls(uri, ctx)
        new = created._new_schema(schema, keys)
        cells = to_cells(table, new, keys, is_deletion=False, where=created.uri)
        created._store_schema(new)
        created._write_cells(*cells)
        return created

    def update(self, df: object) -> None:
        """Change values of rows that exist, matched by key; columns and rows that are not named stay.

        Raises
        ------
        ConfigError
            For a table without the key columns, for a row without its key, and for a column that this table
            lacks.
        NotFoundError
            For a key that the table does not hold.
        """
        self._merge(as_table(df), adds_rows=False)

    def _merge(self, changes: Table, *, adds_rows: bool) -> None:
        """Write rows over those of their keys, as one commit; one of a new key is added, or refuses all."""
        self.refuse_foreign(changes)
        keys = self.index_columns
        wanted = list(zip(*(changes.ids(k) for k in keys), strict=True))
        with self._only_writer() as confirm:
            current = self.read_all()
            places = {key: place for place, key in enumerate(zip(*(current[k] for k in keys), strict=True))}
            known = [key for key in wanted if key in places]
            if len(known) < len(wanted) and not adds_rows:
                unknown = next(key for key in wanted if key not in places)
                raise NotFoundError(f"{self.uri} holds no row {unknown}")
            before = dict(zip(known, current.take([places[key] for key in known]).rows(), strict=True))
            merged = [{**before.get(key, {}), **row} for key, row in zip(wanted, changes.rows(), strict=True)]
            if merged:
                confirm()
                self.write_rows(rows_table(merged))

    def refuse_foreign(self, changes: Table) -> None:
        """Refuse rows that lack a key column, or have one that this table lacks.

        Raises
        ------
        ConfigError
            Names the column.
        """
        missing = [name for name in self.index_columns if name not in changes]
        if missing:
            raise ConfigError(f"an update needs the key column {missing[0]!r}")
        unknown = [name for name in changes.columns if name not in self.all_columns]
        refuse_own_names(unknown)
        if unknown:
            raise ConfigError(f"no column {unknown[0]!r}: add_column() first")

    def delete(self, expression: str) -> int:
        """Delete the rows that satisfy a filter expression; return how many."""
        with self._only_writer() as confirm:
            rows = self.read_all().filter(expression)
            if len(rows):
                confirm()
                self.write_rows(rows, is_deletion=True)
        return len(rows)

    def add_column(self, name: str, dtype: Any, values: object = None, *, fill: object = None) -> None:
        """Add a column.

        Parameters
        ----------
        name : str
            Its name.
        dtype : numpy.dtype or what makes one
            Its type; any text type becomes UTF-8 of any length.
        values : sequence, optional
            One value per row, in the order of the keys; by default all are missing.
        fill : number, text or bool, optional
            The one value of all rows, instead of ``values``.

        Raises
        ------
        ConfigError
            When the table has the column, cannot store it, or has another number of rows.
        """
        if values is not None and fill is not None:
            raise ConfigError("give either values, one for each row, or one fill for all")
        refuse_own_names([name])
        kind = column_type(name, dtype)
        with self._only_writer() as confirm:
            if name in self.all_columns:
                raise ConfigError(f"{self.uri} already has a column {name!r}")
            table = self.read_all()
            given = [fill] * len(table) if values is None else values
            column = as_table({name: given})[name]
            if len(column) != len(table):
                raise ConfigError(f"column {name!r} has {len(column)} values, the table {len(table)} rows")
            attribute = make_attribute(name, kind, self._session.context())
            column_cells(attribute, column, np.ma.getmaskarray(column))  # refused before the schema changes
            confirm()
            self.add_attributes({name: kind})
            if len(table):
                self.write_rows(table.with_column(name, column))

    def drop_column(self, name: str) -> None:
        """Remove a column with its values.

        A column that earlier versions took, although it is named as voxtier's own are, can be removed too.

        Raises
        ------
        ConfigError
            For a key column, for one that voxtier needs, and for one that the table lacks.
        """
        if name in self.index_columns:
            raise ConfigError(f"{name!r} is a key column of {self.uri}: it cannot be removed")
        if name in OWN_COLUMNS:
            raise ConfigError(f"column {name!r} is voxtier's own: it cannot be removed")
        with self._only_writer() as confirm:
            if not self._schema.has_attr(name):
                raise ConfigError(f"{self.uri} has no column {name!r}; there are {', '.join(self.columns)}")
            confirm()
            with translate_errors(f"remove a column of {self.uri}"):
                evolution = self._evolution()
                evolution.drop_attribute(name)
                evolution.array_evolve(self.uri)

    def _evolution(self) -> Any:
        evolution = tiledb.ArraySchemaEvolution(self._session.context())
        # A reader as of this time looks for a schema that is no younger.
        evolution.timestamp(self._next_timestamp() if self._timestamp is None else self._timestamp)
        return evolution

    def add_attributes(self, columns: Mapping[str, np.dtype[Any]]) -> None:
        """Add columns to the schema alone, all in one step: of two with one time stamp, only one counts.

        Rows that exist read as zero or empty there until written again.
        """
        context = self._session.context()
        with translate_errors(f"add a column to {self.uri}"):
            evolution = self._evolution()
            for name, dtype in columns.items():
                evolution.add_attribute(make_attribute(name, dtype, context))
            evolution.array_evolve(self.uri)

    def write_rows(self, table: Table, *, timestamp: int | None = None, is_deletion: bool = False) -> None:
        """Write rows as one commit.

        Parameters
        ----------
        table : Table
            Rows with their keys; a column that it lacks becomes missing in them.
        timestamp : int, optional
            Milliseconds since 1970, by default that of the table.
        is_deletion : bool
            Delete the rows instead.

        Raises
        ------
        ConfigError
            For a key that is missing, empty or stands in two rows, and for a value that does not fit its
            column.
        """
        keys = self.index_columns
        coordinates, cells = to_cells(table, self._schema, keys, is_deletion=is_deletion, where=self.uri)
        self._write_cells(coordinates, cells, timestamp)

    def _write_cells(
        self,
        coordinates: Sequence[NDArray[Any]],
        cells: Mapping[str, NDArray[Any]],
        timestamp: int | None = None,
    ) -> None:
        size = len(coordinates[0]) * _LONG_CELL
        with translate_errors(f"write the table {self.uri}"), self._open("w", timestamp, size) as array:
            array[tuple(coordinates) if len(coordinates) > 1 else coordinates[0]] = cells

    def remove_after(self, timestamp: int) -> None:
        """Remove the rows and the columns that were written after a time stamp (an unfinished change)."""
        with translate_errors(f"roll back {self.uri}"):
            tiledb.Array.delete_fragments(self.uri, timestamp + 1, LATEST, ctx=self._session.context())
        remove_schemas_after(self.uri, timestamp, self._session)


def create_in_store(uri: str, schema: Mapping[str, Any], session: Session) -> None:
    """Create an empty table of a store, which may have columns of voxtier's own; else as `Dataframe.create`.

    Parameters
    ----------
    uri : str
        Place of the new array.
    schema : mapping
        Column name -> numpy dtype.
    session : Session
        How it is reached.
    """
    created = Dataframe(uri, session)
    created._store_schema(created._new_schema(schema, INDEX_COLUMNS))
