"""Rows in memory: columns of one plain type each, masked where values are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, MissingExtraError
from voxtier.volumes.tiledb.filters import find_matches

Column: TypeAlias = NDArray[Any] | np.ma.MaskedArray[Any, Any]


class Table:
    """Columns read into memory: ``table["age"]`` is a numpy array, masked where values are missing.

    Parameters
    ----------
    columns : mapping
        Column name -> values, all of one length.
    """

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

    def with_column(self, name: str, column: Column) -> Table:
        """Return the table with one column more."""
        return Table({**self._columns, name: column})

    def select(self, names: Sequence[str]) -> Table:
        """Return some of the columns."""
        return Table({name: self[name] for name in names})

    def matching(self, expression: str) -> NDArray[np.bool_]:
        """Return which rows satisfy a filter expression (see `voxtier.volumes.tiledb.filters`)."""
        return find_matches(expression, self._columns, len(self))

    def filter(self, expression: str) -> Table:
        """Return the rows that satisfy a filter expression."""
        return self.take(np.flatnonzero(self.matching(expression)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dicts of Python values; missing ones are None."""
        for position in range(len(self)):
            yield {name: _scalar(column, position) for name, column in self._columns.items()}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame (pandas is not installed with voxtier)."""
        pandas = import_pandas()
        return pandas.DataFrame(
            {
                name: pandas.Series(_objects(column)) if isinstance(column, np.ma.MaskedArray) else column
                for name, column in self._columns.items()
            }
        )


def import_pandas() -> Any:
    """Return the module pandas.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas", "pandas") from None
    return pandas


def _objects(column: np.ma.MaskedArray[Any, Any]) -> list[Any]:
    pairs = zip(column.data, np.ma.getmaskarray(column), strict=True)
    return [None if is_missing else value for value, is_missing in pairs]


def _scalar(column: Column, position: int) -> Any:
    if isinstance(column, np.ma.MaskedArray) and np.ma.getmaskarray(column)[position]:
        return None
    value = column[position]
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def as_table(frame: object) -> Table:
    """Return a `Table` for a Table, a mapping of columns or a pandas DataFrame.

    Raises
    ------
    ConfigError
        For anything else, for columns of different lengths and for a column of mixed types.
    """
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


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of some rows; a column that a row lacks is missing there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return as_table({name: [row.get(name) for row in rows] for name in names})


def _column(name: str, values: Any) -> Column:
    """Return a column of one plain type; missing values (None, NaN among objects, NA, NaT) become a mask."""
    if isinstance(values, np.ma.MaskedArray):
        return values
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufMU":
        array = np.asarray(values)
        if dtype == np.dtype("M8"):
            array = array.astype(np.int64).astype("M8[ns]")
        unset = np.zeros(len(array), bool) if isinstance(values, np.ndarray) else array != array
        if unset.any():  # pandas' word for a missing number is NaN, for a missing time NaT
            return np.ma.MaskedArray(np.where(unset, np.zeros((), array.dtype), array), mask=unset)
        return array
    items = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if not items:
        return np.array([], dtype=object)
    missing = np.array([_is_missing(item) for item in items], dtype=bool)
    present = [item for item, is_missing in zip(items, missing, strict=True) if not is_missing]
    if not present:
        return np.ma.MaskedArray(np.array([""] * len(items), dtype=object), mask=missing)
    plain = np.array(present)
    if plain.dtype.kind == "f" and all(isinstance(item, int) for item in present):
        plain = np.array(present, dtype=np.uint64)  # numpy makes floats of integers on both sides of 2**63
    if plain.dtype.kind not in "biufMU" or plain.ndim != 1 or len({isinstance(p, str) for p in present}) > 1:
        raise ConfigError(
            f"column {name!r} mixes types or holds {type(present[0]).__name__}: use numbers, text or dates"
        )
    if plain.dtype.kind == "U":
        full = np.array([""] * len(items), dtype=object)
        full[~missing] = [str(item) for item in present]
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


def escape_key(key: str) -> str:
    """Return a key in ASCII (``%`` escapes): TileDB orders other bytes in two ways, so duplicates survive."""
    return quote(
        key, safe="".join(chr(code) for code in range(32, 127) if chr(code) != "%"), errors="surrogateescape"
    )


def decode_text(value: Any) -> str:
    """Return a cell of a text column as text."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def to_cells(attribute: Any, column: Column, mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the cells that store a column.

    Parameters
    ----------
    attribute : tiledb.Attr
        Where they are stored: ``name``, ``dtype``, ``isvar``.
    column : numpy.ndarray
        The values.
    mask : numpy.ndarray of bool
        Where a value is missing.

    Returns
    -------
    numpy.ndarray
        Of the type of the attribute.

    Raises
    ------
    ConfigError
        For a value that does not fit the type.
    """
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
