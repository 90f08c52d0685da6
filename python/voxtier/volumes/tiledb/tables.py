"""Observation tables: sparse TileDB arrays keyed by subject and observation. The third door to TileDB.

TileDB gives rows back in lexicographic order of their keys, whatever the order of writing; so nothing here or
above ever counts on a position to mean an identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes.tiledb import filters
from voxtier.volumes.tiledb.format.recovery import forget_schemas_after
from voxtier.volumes.tiledb.session import LATEST, Session, Uri, as_uri, object_kind, translated

INDEX_COLUMNS: Final = ("obs_subject_id", "obs_id")
_NULLS: Final = "voxtier_nulls"  # names of the missing columns of a row, separated by newlines
_DELETED: Final = "\n"  # in place of names: the row is gone (one write, where TileDB's deletes need several)
_LONG_CELL: Final = 4096  # bytes; more than a cell of most columns has

Column = NDArray[Any] | np.ma.MaskedArray[Any, Any]


class Table:
    """Columns read into memory: ``table["age"]`` is a numpy array, masked where values are missing."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)
        self._rows = len(next(iter(self._columns.values()))) if self._columns else 0

    @property
    def columns(self) -> list[str]:
        """Names of the columns, the keys first."""
        return list(self._columns)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> Column:
        if name not in self._columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self._columns)}")
        return self._columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self._columns)})"

    def take(self, positions: Sequence[int] | NDArray[Any]) -> Table:
        """Return the rows at these positions, in this order."""
        picked = np.asarray(positions, dtype=np.intp)
        return Table({name: column[picked] for name, column in self._columns.items()})

    def select(self, names: Sequence[str]) -> Table:
        """Return some of the columns."""
        return Table({name: self[name] for name in names})

    def matching(self, expression: str) -> NDArray[np.bool_]:
        """Return which rows satisfy a filter expression."""
        return filters.matching(expression, self._columns, len(self))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dicts of Python values; missing ones are None."""
        for position in range(len(self)):
            yield {name: _scalar(column, position) for name, column in self._columns.items()}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame (pandas is not installed with voxtier)."""
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("pandas is not installed: pip install pandas") from None
        return pd.DataFrame(
            {
                name: (
                    pd.Series(
                        [
                            None if m else v
                            for v, m in zip(column.data, np.ma.getmaskarray(column), strict=True)
                        ]
                    )
                    if isinstance(column, np.ma.MaskedArray)
                    else column
                )
                for name, column in self._columns.items()
            }
        )


def _scalar(column: Column, position: int) -> Any:
    if isinstance(column, np.ma.MaskedArray) and np.ma.getmaskarray(column)[position]:
        return None
    value = column[position]
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def as_table(frame: object) -> Table:
    """Return a `Table` for a Table, a mapping of columns or a pandas DataFrame."""
    if isinstance(frame, Table):
        return frame
    if isinstance(frame, Mapping):
        named = {str(name): column for name, column in frame.items()}
    elif hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        named = {str(name): frame[name] for name in frame.columns}
    else:
        raise ConfigError(f"a table is a mapping of columns or a DataFrame, got {type(frame).__name__}")
    columns = {name: _column(name, column) for name, column in named.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"the columns differ in length: {lengths}")
    return Table(columns)


def _column(name: str, values: Any) -> Column:
    """Return a column of one plain type; missing values (None, NaN among objects, NA, NaT) become a mask."""
    if isinstance(values, np.ma.MaskedArray):
        return values
    array = values if isinstance(values, np.ndarray) else None
    if array is None:
        items = list(values)
    elif array.dtype.kind in "biufMU":
        return array.astype(np.int64).astype("M8[ns]") if array.dtype == np.dtype("M8") else array
    else:
        items = array.tolist()
    missing = np.array([_is_missing(item) for item in items], dtype=bool)
    present = [item for item, gone in zip(items, missing, strict=True) if not gone]
    if not present:
        return (
            np.ma.MaskedArray(np.array([""] * len(items), dtype=object), mask=missing)
            if items
            else np.array([], dtype=object)
        )
    plain = np.array(present)
    if plain.dtype.kind == "f" and all(isinstance(item, int) for item in present):
        plain = np.array(present, dtype=np.uint64)  # numpy makes floats of integers on both sides of 2**63
    if plain.dtype.kind not in "biufMU" or plain.ndim != 1 or len({isinstance(p, str) for p in present}) > 1:
        raise ConfigError(
            f"column {name!r} mixes types or holds {type(present[0]).__name__}: use numbers, text or dates"
        )
    if plain.dtype.kind == "U":
        full = np.array(
            ["" if gone else str(item) for item, gone in zip(items, missing, strict=True)], dtype=object
        )
    else:
        full = np.zeros(len(items), plain.dtype)
        full[~missing] = plain
    return np.ma.MaskedArray(full, mask=missing) if missing.any() else full


def _is_missing(item: Any) -> bool:
    if item is None:
        return True
    if isinstance(item, (str, bytes, bool)):
        return False
    try:
        return bool(item != item)  # NaN and NaT differ from themselves
    except TypeError:  # pandas.NA has no truth value
        return True


class Dataframe:
    """A table on disk, keyed by (obs_subject_id, obs_id).

    Parameters
    ----------
    uri : path or URI
        The sparse array.
    ctx : optional
        See `Volume`.
    """

    def __init__(self, uri: Uri, ctx: object = None, *, timestamp: int | None = None) -> None:
        self.uri = as_uri(uri)
        self._session = Session.of(ctx)
        self._timestamp = timestamp

    def _open(self, mode: str = "r", timestamp: int | None = None, amount: int = 1 << 40) -> Any:
        stamp = timestamp if timestamp is not None else self._timestamp
        context = self._session.for_small(self.uri, amount).context()
        return tiledb.open(self.uri, mode, ctx=context, timestamp=stamp)

    @property
    def _schema(self) -> Any:
        with translated(f"open the table {self.uri}"):
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
            schema.attr(i).name for i in range(schema.nattr) if not schema.attr(i).name.startswith("voxtier_")
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
        """
        table = self.read_all()
        keys = [name for name in INDEX_COLUMNS if name in table]
        if value_filter is not None:
            table = table.take(np.flatnonzero(table.matching(value_filter)))
        others = [name for name in table.columns if name not in keys and not name.startswith("voxtier_")]
        wanted = others if columns is None else [name for name in columns if name not in keys]
        return table.select([*(keys if include_index else []), *wanted])

    def read_all(self) -> Table:
        """Read every row and column, voxtier's own among them."""
        with translated(f"read the table {self.uri}"), self._open() as array:
            found = array[:]
            keys = [array.domain.dim(i).name for i in range(array.ndim)]
        named: dict[str, Column] = {
            name: np.array(
                [(unquote if _NULLS in found else str)(_text(v)) for v in found[name]], dtype=object
            )
            for name in keys
        }
        for name, values in found.items():
            if name not in named:
                plain = np.asarray(np.ma.getdata(values))
                if plain.dtype.kind in "SUO":
                    plain = np.array([_text(value) for value in plain], dtype=object)
                named[name] = plain
        if _NULLS in named:
            marks = named.pop(_NULLS)
            kept = np.flatnonzero(marks != _DELETED)
            if len(kept) < len(marks):
                named = {name: column[kept] for name, column in named.items()}
            lists = [set(text.split("\n")) for text in marks[kept]]
            for name in [name for name in named if any(name in missing for missing in lists)]:
                named[name] = np.ma.MaskedArray(named[name], mask=[name in missing for missing in lists])
        return Table(named)

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
        ctx : optional
            See `Volume`.
        keys : sequence of str
            Key columns.
        """
        session, target = Session.of(ctx), as_uri(uri)
        if object_kind(target, session) is not None:
            raise ConfigError(f"{target} already exists")
        context = session.context()
        attributes = [
            _attribute(name, np.dtype(kind), context) for name, kind in schema.items() if name not in keys
        ]
        attributes.append(_attribute(_NULLS, np.dtype(object), context))
        with translated(f"create the table {target}"):
            domain = tiledb.Domain(
                *(tiledb.Dim(name=k, dtype="ascii", ctx=context) for k in keys), ctx=context
            )
            tiledb.Array.create(
                target,
                tiledb.ArraySchema(domain=domain, attrs=attributes, sparse=True, ctx=context),
                ctx=context,
            )
        return cls(target, session)

    @classmethod
    def from_pandas(cls, uri: Uri, df: object, ctx: object = None) -> Dataframe:
        """Create a table from a DataFrame (or mapping) that holds the key columns."""
        table = as_table(df)
        missing = [name for name in INDEX_COLUMNS if name not in table]
        if missing:
            raise ConfigError(f"the table lacks the key column {missing[0]!r}")
        found = cls.create(uri, {n: table[n].dtype for n in table.columns if n not in INDEX_COLUMNS}, ctx)
        found.write_rows(table)
        return found

    def update(self, df: object) -> None:
        """Change values of rows that exist, matched by key; columns and rows that are not named stay.

        Raises
        ------
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
        """Delete the rows that satisfy a filter expression; returns how many."""
        table = self.read_all()
        gone = np.flatnonzero(table.matching(expression))
        if len(gone):
            self.write_rows(table.take(gone), deleted=True)
        return len(gone)

    def add_column(self, name: str, dtype: Any, values: object = None) -> None:
        """Add a column; rows that exist hold a missing value unless ``values`` (one per row.

        In key order) are given.
        """
        if name in self.all_columns:
            raise ConfigError(f"{self.uri} already has a column {name!r}")
        rows = list(self.read_all().rows())
        self.add_attributes({name: np.dtype(dtype)})
        given = [None] * len(rows) if values is None else list(as_table({name: values}).rows())
        for row, value in zip(rows, given, strict=True):
            row[name] = value[name] if isinstance(value, dict) else value
        if rows:
            self.write_rows(rows_table(rows))

    def add_attributes(self, columns: Mapping[str, np.dtype[Any]]) -> None:
        """Add columns to the schema alone, all in one step: of two with one time stamp, only one counts.

        Rows that exist read as zero or empty there until written again.
        """
        context = self._session.context()
        with translated(f"add a column to {self.uri}"):
            evolution = tiledb.ArraySchemaEvolution(context)
            if (
                self._timestamp is not None
            ):  # a reader as of that time stamp looks for a schema that is no younger
                evolution.timestamp(self._timestamp)
            for name, dtype in columns.items():
                evolution.add_attribute(_attribute(name, dtype, context))
            evolution.array_evolve(self.uri)

    def write_rows(self, table: Table, *, timestamp: int | None = None, deleted: bool = False) -> None:
        """Write rows (new ones, whole new values of old ones, or their deletion) as one commit."""
        schema = self._schema
        keys = self.index_columns
        ours = schema.has_attr(_NULLS)
        coordinates = [
            np.array([(_ascii(str(v)) if ours else str(v)).encode() for v in table[key]], dtype=object)
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
        if schema.has_attr(_NULLS):
            cells[_NULLS] = np.array(
                [_DELETED if deleted else "\n".join(names) for names in nulls], dtype=object
            )
        elif deleted or any(nulls):
            raise ConfigError(
                f"{self.uri} was not written by voxtier and cannot hold missing values or deletions"
            )
        amount = len(table) * _LONG_CELL
        with translated(f"write the table {self.uri}"), self._open("w", timestamp, amount) as array:
            array[tuple(coordinates) if len(coordinates) > 1 else coordinates[0]] = cells

    def forget_after(self, timestamp: int) -> None:
        """Remove the rows and the columns that were written after a time stamp (an unfinished change)."""
        with translated(f"roll back {self.uri}"):
            tiledb.Array.delete_fragments(self.uri, timestamp + 1, LATEST, ctx=self._session.context())
        forget_schemas_after(self.uri, timestamp, self._session)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of some rows; a column that a row lacks is missing there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return as_table({name: [row.get(name) for row in rows] for name in names})


def _ascii(key: str) -> str:
    """Return a key in ASCII (``%`` escapes): TileDB orders other bytes in two ways: duplicates survive."""
    return quote(
        key, safe="".join(chr(code) for code in range(32, 127) if chr(code) != "%"), errors="surrogateescape"
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _attribute(name: str, dtype: np.dtype[Any], context: Any) -> Any:
    if not name or "\0" in name or "\n" in name or name in INDEX_COLUMNS:
        raise ConfigError(f"{name!r} cannot name a column")
    filters_ = tiledb.FilterList([tiledb.ZstdFilter(level=3, ctx=context)], ctx=context)
    if dtype.kind in "OUS":
        return tiledb.Attr(name=name, dtype="U0", var=True, filters=filters_, ctx=context)
    if dtype.kind == "M":
        dtype = np.dtype("M8[ns]")
    if dtype.kind not in "biufM" or dtype.itemsize > 8 or dtype == np.float16:
        raise ConfigError(f"column {name!r}: the type {dtype} cannot be stored")
    return tiledb.Attr(name=name, dtype=dtype.newbyteorder("="), filters=filters_, ctx=context)


def _cells(attribute: Any, column: Column, mask: NDArray[np.bool_]) -> NDArray[Any]:
    plain = np.asarray(np.ma.getdata(column))
    if attribute.isvar or attribute.dtype.kind in "US":
        text = ["" if gone else str(value) for value, gone in zip(plain, mask, strict=True)]
        if attribute.isvar:
            return np.array(text, dtype=object)
        return np.array(text, dtype=attribute.dtype)
    if mask.all():
        return np.zeros(len(plain), attribute.dtype)
    if plain.dtype.kind in "OUS":
        raise ConfigError(f"column {attribute.name!r} holds {attribute.dtype}, got text")
    target = attribute.dtype
    filled = np.where(mask, np.zeros((), plain.dtype), plain)
    converted: NDArray[Any] = filled.astype(target)
    if plain.dtype.kind in "iub" and target.kind in "iub" and not np.array_equal(converted, filled):
        raise ConfigError(f"column {attribute.name!r}: a value does not fit {target}")
    if plain.dtype.kind == "f" and target.kind in "iub":
        raise ConfigError(f"column {attribute.name!r} holds {target}, got fractions")
    return converted
