"""Rows in memory: columns of one plain type each, masked where values are missing."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import several
from voxtier.errors import ConfigError, MissingExtraError
from voxtier.volumes.tiledb.tables.filters import cast_dates, find_matches

Column: TypeAlias = NDArray[Any] | np.ma.MaskedArray[Any, Any]

_NOT_A_COLUMN = (str, bytes, Mapping, set, frozenset)  # of one value, or of values without an order
_FINE_UNITS = ("generic", "ns", "ps", "fs", "as")


@dataclass(frozen=True, slots=True)
class Missing:
    """A missing value that knows its column's type, for rows that become a table again.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the column.
    """

    dtype: np.dtype[Any]


class Table:
    """Columns read into memory: ``table["age"]`` is a numpy array, masked where values are missing.

    NaN and NaT are missing values, wherever a table came from, and they lie below the mask: ``numpy.asarray``
    of a column of floats or dates has them where others see the mask.

    Parameters
    ----------
    columns : mapping
        Column name -> values, all of one length.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = {name: _with_gaps(column) for name, column in columns.items()}
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

    def ids(self, name: str) -> list[str]:
        """Return a key column as text.

        Raises
        ------
        ConfigError
            For a row that has none: the text of a missing value would be an id like any other.
        """
        column = self[name]
        missing = np.flatnonzero(np.ma.getmaskarray(column))
        if len(missing):
            raise ConfigError(f"row {missing[0]} of the table has no {name}: give one, or leave the row out")
        return [str(key) for key in np.ma.getdata(column)]

    def select(self, names: str | Iterable[str]) -> Table:
        """Return some of the columns, or one."""
        return Table({name: self[name] for name in several(names)})

    def matching(self, expression: str) -> NDArray[np.bool_]:
        """Return which rows satisfy a filter expression (see `voxtier.volumes.tiledb.tables.filters`)."""
        return find_matches(expression, self._columns, len(self))

    def filter(self, expression: str) -> Table:
        """Return the rows that satisfy a filter expression."""
        return self.take(np.flatnonzero(self.matching(expression)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dicts of Python values; missing ones are None."""
        for position in range(len(self)):
            yield {name: _scalar(column, position) for name, column in self._columns.items()}

    def typed_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as `rows` does, with values that keep the types of their columns (`typed`)."""
        dtypes = {name: column.dtype for name, column in self._columns.items()}
        for row in self.rows():
            yield {name: typed(value, dtypes[name]) for name, value in row.items()}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame (pandas is not installed with voxtier).

        Where a value is missing, whole numbers become floats, as pandas makes them; ``Int64`` or ``UInt64``
        where floats would change them (beyond 2**53).
        """
        pandas = import_pandas()
        return pandas.DataFrame(
            {
                name: _for_pandas(column, pandas) if isinstance(column, np.ma.MaskedArray) else column
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


def _with_gaps(column: Column) -> Column:
    """Return a column that is masked where it is NaN or NaT, and NaN or NaT where it is masked."""
    if column.dtype.kind not in "fM":
        return column
    cells, mask = np.ma.getdata(column), np.ma.getmaskarray(column)
    unset = np.isnat(cells) if column.dtype.kind == "M" else np.isnan(cells)
    if np.array_equal(unset, mask):
        return column
    return np.ma.MaskedArray(put_gaps(cells.copy(), mask), mask=mask | unset)


def put_gaps(cells: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Set NaN or NaT where a value is missing, in cells whose type has one; return the cells."""
    if cells.dtype.kind in "fM":
        cells[mask] = np.datetime64("NaT") if cells.dtype.kind == "M" else np.nan
    return cells


def _for_pandas(column: np.ma.MaskedArray[Any, Any], pandas: Any) -> Any:
    mask = np.ma.getmaskarray(column)
    if column.dtype.kind in "fM":  # of a list, pandas would make nanoseconds, and 64 bits of 32
        return pandas.Series(column.data.copy())
    present = column.compressed()
    if column.dtype.kind in "iu" and len(present) and max(-int(present.min()), int(present.max())) > 2**53:
        return pandas.Series(pandas.arrays.IntegerArray(column.data.copy(), mask.copy()))
    pairs = zip(column.data, mask, strict=True)
    return pandas.Series([None if is_missing else value for value, is_missing in pairs])


def _scalar(column: Column, position: int) -> Any:
    if isinstance(column, np.ma.MaskedArray) and np.ma.getmaskarray(column)[position]:
        return None
    value = column[position]
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def typed(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a Python value of a column as one that knows the type of the column, for tables made of it."""
    if value is None:
        return Missing(dtype)
    return dtype.type(value) if dtype.kind in "biuf" else value


def as_table(frame: object) -> Table:
    """Return a `Table` for a Table, a mapping of columns, a DataFrame or a table of pyarrow.

    Raises
    ------
    ConfigError
        For anything else, for columns of different lengths and for a column of mixed types.
    """
    if isinstance(frame, Table):
        return frame
    if hasattr(type(frame), "collect"):  # a LazyFrame of polars, a DataFrame of Spark
        raise ConfigError(
            f"a {type(frame).__name__} holds no rows yet: give those that it computes (collect)"
        )
    if isinstance(frame, Mapping):
        named = _by_text(list(frame.items()))
    elif hasattr(type(frame), "schema") and hasattr(type(frame), "to_pydict"):  # pyarrow
        arrow: Any = frame
        names = arrow.schema.names
        pairs = _by_text(list(zip(names, arrow.columns, strict=True))).items()
        named = {name: _of_arrow(name, column) for name, column in pairs}
    elif hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        named = _by_text([(name, frame[name]) for name in frame.columns])
    else:
        raise ConfigError(
            f"a table is a mapping of columns, a DataFrame or a pyarrow Table, got {type(frame).__name__}"
        )
    columns = {name: _column(name, column) for name, column in named.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"the columns differ in length: {lengths}")
    return Table(columns)


def _by_text(columns: Sequence[tuple[object, Any]]) -> dict[str, Any]:
    """Return columns by their names as text; refuse two of one."""
    named = {str(name): column for name, column in columns}
    if len(named) < len(columns):
        raise ConfigError(f"two columns have one name: {', '.join(str(name) for name, _ in columns)}")
    return named


def rows_table(rows: Sequence[Mapping[str, Any]], dtypes: Mapping[str, np.dtype[Any]] | None = None) -> Table:
    """Return the table of some rows; a column that a row lacks is missing there.

    Parameters
    ----------
    rows : sequence of mapping
        Column name -> value; `Missing`, None and NaN are no values.
    dtypes : mapping, optional
        Types of columns in which no row has a value.

    Returns
    -------
    Table
        The rows.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    types = dtypes or {}
    return Table({name: _column(name, [row.get(name) for row in rows], types.get(name)) for name in names})


def _column(name: str, values: Any, dtype_without: np.dtype[Any] | None = None) -> Column:
    """Return a column of one plain type; missing values (None, NaN among objects, NA, NaT) become a mask."""
    if (
        isinstance(values, _NOT_A_COLUMN)
        or not hasattr(type(values), "__iter__")
        or getattr(values, "ndim", 1) != 1
    ):
        raise ConfigError(
            f"column {name!r} is no sequence of values ({type(values).__name__}): give one for each row"
        )
    if isinstance(values, np.ma.MaskedArray):
        return values
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufMU":
        array = np.asarray(values)
        if dtype == np.dtype("M8"):
            array = array.astype(np.int64).astype("M8[ns]")
        return array
    told = getattr(dtype, "numpy_dtype", None)  # pandas' own types: their items are plain Python
    is_plain = (
        isinstance(values, np.ndarray) and values.dtype.kind != "m"
    )  # of durations tolist makes numbers
    items = values.tolist() if is_plain else list(values)
    if not items:
        return np.array([], dtype=told if isinstance(told, np.dtype) and told.kind in "biufM" else object)
    missing = np.array([not is_value(item) for item in items], dtype=bool)
    present = [item for item, is_missing in zip(items, missing, strict=True) if not is_missing]
    if not present:
        return _column_without_values(items, dtype_without or told)
    plain = _plain_array(name, present)
    if isinstance(told, np.dtype) and told.kind in "biuf" and plain.dtype.kind in "biuf":
        plain = plain.astype(told)
    if plain.dtype.kind == "U":
        full = np.array([""] * len(items), dtype=object)
        full[~missing] = [str(item) for item in present]
    else:
        full = np.zeros(len(items), plain.dtype)
        full[~missing] = plain
    return np.ma.MaskedArray(full, mask=missing) if missing.any() else full


def _of_arrow(name: str, column: Any) -> Column:
    """Return a column of pyarrow, whose nulls become a mask."""
    if getattr(column.type, "tz", None) is not None:
        raise _zoned(name)
    if not _is_plain(column.type):
        return _column(name, column.to_pylist())
    mask, present = np.asarray(column.is_null()), np.asarray(column.drop_null())
    if not mask.any():
        return present
    full = np.zeros(len(mask), present.dtype)
    full[~mask] = present
    return np.ma.MaskedArray(full, mask=mask)


def _is_plain(kind: Any) -> bool:
    """Return whether numpy has a type of pyarrow: numbers, dates, times without a zone."""
    try:
        return np.dtype(kind.to_pandas_dtype()).kind in "biufM"
    except (NotImplementedError, TypeError):
        return False


def _column_without_values(items: Sequence[Any], dtype: np.dtype[Any] | None) -> Column:
    """Return a column in which all is missing: of the type that is stated, or that a missing value tells."""
    dtype = dtype or next((told for told in map(_told_dtype, items) if told is not None), np.dtype(object))
    if dtype.kind not in "biufM":
        return np.ma.MaskedArray(np.array([""] * len(items), dtype=object), mask=True)
    return np.ma.MaskedArray(np.zeros(len(items), dtype), mask=True)


def _told_dtype(item: Any) -> np.dtype[Any] | None:
    if isinstance(item, (Missing, np.floating)):
        return item.dtype
    if isinstance(item, (np.datetime64, datetime.date)):  # NaT
        return np.dtype("M8[us]")
    return np.dtype(np.float64) if isinstance(item, float) else None  # NaN


def _plain_array(name: str, present: Sequence[Any]) -> NDArray[Any]:
    """Return values, none of which is missing, as an array of numbers, dates or text."""
    if all(isinstance(item, (np.datetime64, datetime.date)) for item in present):
        return _dates(name, present)
    try:
        plain = np.array(present)
    except ValueError:  # of arrays that differ in shape
        plain = np.empty(len(present), dtype=object)
    integers = [item for item in present if isinstance(item, (int, np.integer))]
    is_whole = len(integers) == len(present)
    if plain.dtype.kind == "f" and (is_whole or any(int(float(item)) != item for item in integers)):
        # numpy makes floats of integers on both sides of 2**63, and of those beside floats.
        if not is_whole and not all(float(item).is_integer() for item in present):
            raise ConfigError(f"column {name!r} mixes fractions and integers that floats cannot hold")
        plain = np.array([int(item) for item in present], dtype=object)
    if plain.dtype == object and all(isinstance(item, int) for item in plain):
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= min(plain) and max(plain) <= np.iinfo(dtype).max:
                return plain.astype(dtype)
        raise ConfigError(
            f"column {name!r}: no type of 64 bits holds integers from {min(plain)} to {max(plain)}"
        )
    if plain.dtype.kind not in "biufU" or plain.ndim != 1 or len({isinstance(p, str) for p in present}) > 1:
        raise ConfigError(
            f"column {name!r} mixes types or holds {type(present[0]).__name__}: use numbers, text or dates"
        )
    return plain


def _dates(name: str, present: Sequence[Any]) -> NDArray[Any]:
    """Return dates in microseconds, or in nanoseconds where they are finer: numpy alone would wrap them."""
    if any(getattr(item, "tzinfo", None) is not None for item in present):
        raise _zoned(name)
    singles = [
        item.to_datetime64() if hasattr(item, "to_datetime64") else np.datetime64(item) for item in present
    ]
    is_fine = any(np.datetime_data(single)[0] in _FINE_UNITS for single in singles)
    for unit in ("ns", "us") if is_fine else ("us", "ns"):
        cells = [cast_dates(np.asarray(single), np.dtype(f"M8[{unit}]")) for single in singles]
        if all(cell is not None for cell in cells):
            return np.array(cells)
    raise ConfigError(f"column {name!r}: no unit of time holds dates from {min(singles)} to {max(singles)}")


def _zoned(name: str) -> ConfigError:
    return ConfigError(f"column {name!r} holds times of a time zone: convert them to UTC and drop the zone")


def stored_dates(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of a new column of dates: microseconds, unless they are given finer.

    Nanoseconds reach from 1677 to 2262 only, and shifted or open-ended dates of patients lie beyond.
    """
    return np.dtype("M8[ns]" if np.datetime_data(dtype)[0] in _FINE_UNITS else "M8[us]")


def is_value(item: Any) -> bool:
    """Return whether a cell is a value, and not None, NaN, NA, NaT or `Missing`."""
    if item is None or isinstance(item, Missing):
        return False
    if isinstance(item, (str, bytes, bool)):
        return True
    try:
        return bool(item == item)  # NaN and NaT differ from themselves
    except TypeError:  # pandas.NA has no truth value
        return False
    except ValueError:  # nor has an array
        return True
