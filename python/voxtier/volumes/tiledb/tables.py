"""Observation tables: sparse TileDB arrays keyed by subject and observation.

TileDB gives rows back in lexicographic order of their keys, whatever the order of writing; so nothing here or
above ever counts on a position to mean an identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes.tiledb.columns import Column, Table, as_table, rows_table
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.recovery import remove_schemas_after
from voxtier.volumes.tiledb.session import LATEST, Session, Uri, as_uri, read_kind

INDEX_COLUMNS = ("obs_subject_id", "obs_id")
OWN_PREFIX = "voxtier_"
"""Begins the names of columns that users do not see."""

_NULLS = "voxtier_nulls"  # names of the missing columns of a row, separated by newlines
_DELETED = "\n"  # in place of names: the row is gone (one write, where TileDB's deletes need several)
_LONG_CELL = 4096  # bytes; more than a cell of most columns has


class Dataframe:
    """A table on disk, keyed by (obs_subject_id, obs_id).

    Parameters
    ----------
    uri : path or URI
        The sparse array.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    timestamp : int, optional
        Read as of this time (milliseconds since 1970), by default now.
    """

    def __init__(self, uri: Uri, ctx: object = None, *, timestamp: int | None = None) -> None:
        self.uri = as_uri(uri)
        self._session = Session.of(ctx)
        self._timestamp = timestamp

    def _open(self, mode: str = "r", timestamp: int | None = None, size: int = 1 << 40) -> Any:
        context = self._session.for_small_writes(self.uri, size).context()
        asked = timestamp if timestamp is not None else self._timestamp
        return tiledb.open(self.uri, mode, ctx=context, timestamp=asked)

    @property
    def _schema(self) -> Any:
        with translate_errors(f"open the table {self.uri}"):
            return tiledb.ArraySchema.load(self.uri, ctx=self._session.context())

    @property
    def index_columns(self) -> tuple[str, ...]:
        """Names of the key columns."""
        domain = self._schema.domain
        return tuple(domain.dim(i).name for i in range(domain.ndim))

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
        columns: Sequence[str] | None = None,
        value_filter: str | None = None,
        include_index: bool = True,  # noqa: FBT001, FBT002
    ) -> Table:
        """Read rows, in the order of their keys.

        Parameters
        ----------
        columns : sequence of str, optional
            Some columns only.
        value_filter : str, optional
            Filter expression, see `voxtier.volumes.tiledb.filters`.
        include_index : bool
            Give the key columns too.

        Returns
        -------
        Table
            The rows that satisfy the filter.
        """
        table = self.read_all()
        keys = [name for name in INDEX_COLUMNS if name in table]
        if value_filter is not None:
            table = table.filter(value_filter)
        others = [name for name in table.columns if name not in keys and not name.startswith(OWN_PREFIX)]
        wanted = others if columns is None else [name for name in columns if name not in keys]
        return table.select([*(keys if include_index else []), *wanted])

    def read_all(self) -> Table:
        """Read every row and column, voxtier's own among them."""
        with translate_errors(f"read the table {self.uri}"), self._open() as array:
            cells = array[:]
            keys = [array.domain.dim(i).name for i in range(array.ndim)]
        decode = unquote if _NULLS in cells else str
        columns: dict[str, Column] = {
            name: np.array([decode(_text(value)) for value in cells[name]], dtype=object) for name in keys
        }
        for name, values in cells.items():
            if name not in columns:
                plain = np.asarray(np.ma.getdata(values))
                if plain.dtype.kind in "SUO":
                    plain = np.array([_text(value) for value in plain], dtype=object)
                columns[name] = plain
        if _NULLS in columns:
            marks = columns.pop(_NULLS)
            present = np.flatnonzero(marks != _DELETED)
            if len(present) < len(marks):
                columns = {name: column[present] for name, column in columns.items()}
            missing = [set(text.split("\n")) for text in marks[present]]
            for name in columns.keys() & set().union(*missing):
                columns[name] = np.ma.MaskedArray(columns[name], mask=[name in names for names in missing])
        return Table(columns)

    @classmethod
    def create(
        cls, uri: Uri, schema: Mapping[str, Any], ctx: object = None, *, keys: Sequence[str] = INDEX_COLUMNS
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
        keys : sequence of str
            Key columns.

        Returns
        -------
        Dataframe
            The new table.

        Raises
        ------
        ConfigError
            When something lies at the address, and for a column that cannot be stored.
        """
        session, target = Session.of(ctx), as_uri(uri)
        if read_kind(target, session) is not None:
            raise ConfigError(f"{target} already exists: choose another place or remove it first")
        context = session.context()
        attributes = [
            _attribute(name, np.dtype(kind), context) for name, kind in schema.items() if name not in keys
        ]
        attributes.append(_attribute(_NULLS, np.dtype(object), context))
        with translate_errors(f"create the table {target}"):
            dimensions = [tiledb.Dim(name=key, dtype="ascii", ctx=context) for key in keys]
            domain = tiledb.Domain(*dimensions, ctx=context)
            created = tiledb.ArraySchema(domain=domain, attrs=attributes, sparse=True, ctx=context)
            tiledb.Array.create(target, created, ctx=context)
        return cls(target, session)

    @classmethod
    def from_pandas(cls, uri: Uri, df: object, ctx: object = None) -> Dataframe:
        """Create a table from rows in memory.

        Parameters
        ----------
        uri : path or URI
            Place of the new array.
        df : pandas.DataFrame, Table or mapping
            Columns, the keys among them.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        Dataframe
            The new table.

        Raises
        ------
        ConfigError
            When a key column is missing, or a column cannot be stored.
        """
        table = as_table(df)
        missing = [name for name in INDEX_COLUMNS if name not in table]
        if missing:
            raise ConfigError(f"the table lacks the key column {missing[0]!r}")
        schema = {name: table[name].dtype for name in table.columns if name not in INDEX_COLUMNS}
        created = cls.create(uri, schema, ctx)
        created.write_rows(table)
        return created

    def update(self, df: object) -> None:
        """Change values of rows that exist, matched by key; columns and rows that are not named stay.

        Raises
        ------
        ConfigError
            For a table without the key columns, or with a column that this one lacks.
        NotFoundError
            For a key that the table does not hold.
        """
        changes = as_table(df)
        keys = self.index_columns
        missing = [name for name in keys if name not in changes]
        if missing:
            raise ConfigError(f"an update needs the key column {missing[0]!r}")
        unknown = [name for name in changes.columns if name not in self.all_columns]
        if unknown:
            raise ConfigError(f"no column {unknown[0]!r}: add_column() first")
        current = self.read_all()
        place = {key: position for position, key in enumerate(zip(*(current[k] for k in keys), strict=True))}
        wanted = list(zip(*(map(str, changes[k]) for k in keys), strict=True))
        for key in wanted:
            if key not in place:
                raise NotFoundError(f"{self.uri} holds no row {key}")
        merged = list(current.take([place[key] for key in wanted]).rows())
        for row, change in zip(merged, changes.rows(), strict=True):
            row.update(change)
        if merged:
            self.write_rows(rows_table(merged))

    def delete(self, expression: str) -> int:
        """Delete the rows that satisfy a filter expression; return how many."""
        rows = self.read_all().filter(expression)
        if len(rows):
            self.write_rows(rows, is_deletion=True)
        return len(rows)

    def add_column(self, name: str, dtype: Any, values: object = None) -> None:
        """Add a column.

        Parameters
        ----------
        name : str
            Its name.
        dtype : numpy.dtype or what makes one
            Its type; any text type becomes UTF-8 of any length.
        values : sequence, optional
            One value per row, in the order of the keys; by default all are missing.

        Raises
        ------
        ConfigError
            When the table has the column, or cannot store it.
        """
        if name in self.all_columns:
            raise ConfigError(f"{self.uri} already has a column {name!r}")
        rows = list(self.read_all().rows())
        self.add_attributes({name: np.dtype(dtype)})
        column = [{name: None}] * len(rows) if values is None else as_table({name: values}).rows()
        for row, value in zip(rows, column, strict=True):
            row |= value
        if rows:
            self.write_rows(rows_table(rows))

    def add_attributes(self, columns: Mapping[str, np.dtype[Any]]) -> None:
        """Add columns to the schema alone, all in one step: of two with one time stamp, only one counts.

        Rows that exist read as zero or empty there until written again.
        """
        context = self._session.context()
        with translate_errors(f"add a column to {self.uri}"):
            evolution = tiledb.ArraySchemaEvolution(context)
            if self._timestamp is not None:
                # A reader as of this time looks for a schema that is no younger.
                evolution.timestamp(self._timestamp)
            for name, dtype in columns.items():
                evolution.add_attribute(_attribute(name, dtype, context))
            evolution.array_evolve(self.uri)

    def write_rows(self, table: Table, *, timestamp: int | None = None, is_deletion: bool = False) -> None:
        """Write rows as one commit.

        Parameters
        ----------
        table : Table
            Rows with their keys; a column that it lacks becomes missing in them.
        timestamp : int, optional
            Milliseconds since 1970, by default now.
        is_deletion : bool
            Delete the rows instead.

        Raises
        ------
        ConfigError
            For a key that is empty or stands in two rows, and for a value that does not fit its column.
        """
        schema = self._schema
        keys = self.index_columns
        is_own = schema.has_attr(_NULLS)
        coordinates = [
            np.array([(_ascii(str(v)) if is_own else str(v)).encode() for v in table[key]], dtype=object)
            for key in keys
        ]
        if any(b"\0" in value or not value for column in coordinates for value in column):
            raise ConfigError("subject and observation ids must not be empty or hold a zero byte")
        if len(set(zip(*coordinates, strict=True))) != len(table):
            raise ConfigError(f"two rows have the same {' and '.join(keys)}")
        nulls: list[list[str]] = [[] for _ in range(len(table))]
        cells: dict[str, NDArray[Any]] = {}
        for index in range(schema.nattr):
            attribute = schema.attr(index)
            if attribute.name == _NULLS:
                continue
            if attribute.name in table:
                column = table[attribute.name]
                mask = np.ma.getmaskarray(column)
            else:
                column, mask = np.zeros(len(table)), np.ones(len(table), bool)
            cells[attribute.name] = _cells(attribute, column, mask)
            for row in np.flatnonzero(mask):
                nulls[int(row)].append(attribute.name)
        if is_own:
            marks = [_DELETED if is_deletion else "\n".join(names) for names in nulls]
            cells[_NULLS] = np.array(marks, dtype=object)
        elif is_deletion or any(nulls):
            raise ConfigError(
                f"{self.uri} was not written by voxtier and cannot hold missing values or deletions"
            )
        size = len(table) * _LONG_CELL
        with translate_errors(f"write the table {self.uri}"), self._open("w", timestamp, size) as array:
            array[tuple(coordinates) if len(coordinates) > 1 else coordinates[0]] = cells

    def remove_after(self, timestamp: int) -> None:
        """Remove the rows and the columns that were written after a time stamp (an unfinished change)."""
        with translate_errors(f"roll back {self.uri}"):
            tiledb.Array.delete_fragments(self.uri, timestamp + 1, LATEST, ctx=self._session.context())
        remove_schemas_after(self.uri, timestamp, self._session)


def _ascii(key: str) -> str:
    """Return a key in ASCII (``%`` escapes): TileDB orders other bytes in two ways, so duplicates survive."""
    return quote(
        key, safe="".join(chr(code) for code in range(32, 127) if chr(code) != "%"), errors="surrogateescape"
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _attribute(name: str, dtype: np.dtype[Any], context: Any) -> Any:
    if not name or "\0" in name or "\n" in name or name in INDEX_COLUMNS:
        raise ConfigError(f"{name!r} cannot name a column")
    filters = tiledb.FilterList([tiledb.ZstdFilter(level=3, ctx=context)], ctx=context)
    if dtype.kind in "OUS":
        return tiledb.Attr(name=name, dtype="U0", var=True, filters=filters, ctx=context)
    if dtype.kind == "M":
        dtype = np.dtype("M8[ns]")
    if dtype.kind not in "biufM" or dtype.itemsize > 8 or dtype == np.float16:
        raise ConfigError(f"column {name!r}: the type {dtype} cannot be stored")
    return tiledb.Attr(name=name, dtype=dtype.newbyteorder("="), filters=filters, ctx=context)


def _cells(attribute: Any, column: Column, mask: NDArray[np.bool_]) -> NDArray[Any]:
    plain = np.asarray(np.ma.getdata(column))
    target = attribute.dtype
    if attribute.isvar or target.kind in "US":
        text = ["" if is_missing else str(value) for value, is_missing in zip(plain, mask, strict=True)]
        return np.array(text, dtype=object if attribute.isvar else target)
    if mask.all():
        return np.zeros(len(plain), target)
    if plain.dtype.kind in "OUS":
        raise ConfigError(f"column {attribute.name!r} holds {target}, got text")
    filled = np.where(mask, np.zeros((), plain.dtype), plain)
    converted: NDArray[Any] = filled.astype(target)
    if plain.dtype.kind in "iub" and target.kind in "iub" and not np.array_equal(converted, filled):
        raise ConfigError(f"column {attribute.name!r}: a value does not fit {target}")
    if plain.dtype.kind == "f" and target.kind in "iub":
        raise ConfigError(f"column {attribute.name!r} holds {target}, got fractions")
    return converted
