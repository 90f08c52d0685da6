"""How rows of a table lie in the cells of an array: keys in ASCII, missing values and deletions as marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.system.text import is_unicode, refuse_non_unicode
from voxtier.volumes.tiledb.creation import cast_numbers
from voxtier.volumes.tiledb.tables.columns import Column, Table, put_gaps, stored_dates
from voxtier.volumes.tiledb.tables.filters import cast_dates

NULLS = "voxtier_nulls"
"""Column that holds the names of the missing columns of a row, separated by newlines."""

_DELETED = "\n"  # in place of names: the row is gone (one write, where TileDB's deletes need several)


def from_cells(cells: Mapping[str, Any], keys: Sequence[str]) -> Table:
    """Return the rows that lie in cells.

    Parameters
    ----------
    cells : mapping
        Column name -> cells, as TileDB reads them.
    keys : sequence of str
        Key columns.

    Returns
    -------
    Table
        Without the rows that are marked as gone.
    """
    decode = _read_key if NULLS in cells else str
    columns: dict[str, Column] = {
        name: np.array([decode(_decode_text(value)) for value in cells[name]], dtype=object) for name in keys
    }
    for name, values in cells.items():
        if name not in columns:
            plain = np.asarray(np.ma.getdata(values))
            if plain.dtype.kind in "SUO":
                plain = np.array([_decode_text(value) for value in plain], dtype=object)
            columns[name] = plain
    if NULLS in columns:
        marks = columns.pop(NULLS)
        present = np.flatnonzero(marks != _DELETED)
        if len(present) < len(marks):
            columns = {name: column[present] for name, column in columns.items()}
        missing = [set(text.split("\n")) for text in marks[present]]
        for name in columns.keys() & set().union(*missing):
            columns[name] = np.ma.MaskedArray(columns[name], mask=[name in names for names in missing])
    return Table(columns)


def to_cells(
    table: Table, schema: Any, keys: Sequence[str], *, is_deletion: bool, where: str
) -> tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the cells that store rows.

    Parameters
    ----------
    table : Table
        Rows with their keys; a column that it lacks becomes missing in them.
    schema : tiledb.ArraySchema
        Of the array.
    keys : sequence of str
        Key columns.
    is_deletion : bool
        The rows are marked as gone.
    where : str
        The array, for messages.

    Returns
    -------
    list of numpy.ndarray
        For each key the coordinates of the rows.
    dict
        Column name -> cells.

    Raises
    ------
    ConfigError
        For a key that is missing, empty, cannot be stored or stands in two rows, for a value that does not
        fit its column, and for what an array of others cannot hold: missing values and deletions.
    """
    is_own = schema.has_attr(NULLS)
    coordinates = [
        np.array([_key_cell(v, key, is_own=is_own) for v in table.ids(key)], dtype=object) for key in keys
    ]
    if any(b"\0" in value or not value for column in coordinates for value in column):
        raise ConfigError("subject and observation ids must not be empty or hold a zero byte")
    if len(set(zip(*coordinates, strict=True))) != len(table):
        raise ConfigError(f"two rows have the same {' and '.join(keys)}")
    nulls: list[list[str]] = [[] for _ in range(len(table))]
    cells: dict[str, NDArray[Any]] = {}
    for index in range(schema.nattr):
        attribute = schema.attr(index)
        if attribute.name == NULLS:
            continue
        if attribute.name in table:
            column = table[attribute.name]
            mask = np.ma.getmaskarray(column)
        else:
            column, mask = np.zeros(len(table)), np.ones(len(table), bool)
        cells[attribute.name] = column_cells(attribute, column, mask)
        if not is_own and _has_gaps(attribute):
            continue
        for row in np.flatnonzero(mask):
            nulls[int(row)].append(attribute.name)
    if is_own:
        marks = [_DELETED if is_deletion else "\n".join(names) for names in nulls]
        cells[NULLS] = np.array(marks, dtype=object)
    elif is_deletion or any(nulls):
        raise ConfigError(f"{where} was not written by voxtier and cannot hold missing values or deletions")
    return coordinates, cells


def column_type(name: str, given: object) -> np.dtype[Any]:
    """Return the type of numpy that somebody names, also as pandas names it (``"Int64"``, ``"string"``).

    Raises
    ------
    ConfigError
        For what names none.
    """
    try:
        return np.dtype(given)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        told = str(given).lower()
    try:
        return np.dtype({"string": "O", "boolean": "bool"}.get(told, told))
    except (TypeError, ValueError):
        raise ConfigError(
            f"column {name!r}: {given!r} is no type of a column: give one of numpy, or str for text"
        ) from None


def make_attribute(name: str, dtype: np.dtype[Any], context: Any) -> Any:
    """Return the attribute that stores a column.

    Parameters
    ----------
    name : str
        Of the column.
    dtype : numpy.dtype
        Its type; any text type becomes UTF-8 of any length.
    context : tiledb.Ctx
        Of the array.

    Returns
    -------
    tiledb.Attr
        The attribute.

    Raises
    ------
    ConfigError
        For a name or a type that no column can have.
    """
    if not name or "\0" in name or "\n" in name:
        raise ConfigError(f"{name!r} cannot name a column")
    refuse_non_unicode(name, "the name of a column")
    filters = tiledb.FilterList([tiledb.ZstdFilter(level=3, ctx=context)], ctx=context)
    if dtype.kind in "OUS":
        return tiledb.Attr(name=name, dtype="U0", var=True, filters=filters, ctx=context)
    if dtype.kind == "M":
        dtype = stored_dates(dtype)
    if dtype.kind not in "biufM" or dtype.itemsize > 8 or dtype == np.float16:
        raise ConfigError(f"column {name!r}: the type {dtype} cannot be stored")
    return tiledb.Attr(name=name, dtype=dtype.newbyteorder("="), filters=filters, ctx=context)


_PLAIN = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")


def _key_cell(key: str, name: str, *, is_own: bool) -> bytes:
    """Return a key in ASCII (``%`` escapes): TileDB orders other bytes in two ways, so duplicates survive.

    A byte that is no UTF-8, which Python makes half a surrogate pair of, is escaped as it is.
    """
    try:
        cell = quote(key, safe=_PLAIN, errors="surrogateescape") if is_own else key
        if is_own and not key.isascii() and _read_key(cell) != key:
            raise ConfigError(f"{name} {key!r} cannot be told from {_read_key(cell)!r}")
        return cell.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name}: {key!r} is no UTF-8 text") from None


def _read_key(cell: str) -> str:
    return unquote(cell, errors="surrogateescape")


def _decode_text(value: Any) -> str:
    """Return a cell of a text column as text."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def column_cells(attribute: Any, column: Column, mask: NDArray[np.bool_]) -> NDArray[Any]:
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
    target, where = attribute.dtype, f"column {attribute.name!r}"
    is_text = attribute.isvar or target.kind in "US"
    if mask.all() and not is_text:
        return put_gaps(np.zeros(len(plain), target), mask)
    if not mask.all() and _kind(target, is_text=is_text) != _kind(plain.dtype):
        held = "text" if is_text else target
        given = "text" if plain.dtype.kind in "OUS" else plain.dtype
        raise ConfigError(
            f"{where} holds {held}, got {given}: give what it holds, or make the column anew (drop_column,"
            " add_column)"
        )
    if is_text:
        text = ["" if is_missing else str(value) for value, is_missing in zip(plain, mask, strict=True)]
        if not is_unicode("".join(text)):  # sooner than one by one
            for value in text:
                refuse_non_unicode(value, where)
        return np.array(text, dtype=object if attribute.isvar else target)
    filled = np.where(mask, np.zeros((), plain.dtype), plain)
    if target.kind != "M":
        return put_gaps(cast_numbers(filled, target, where), mask)
    dates = cast_dates(filled, target)
    if dates is None:
        raise ConfigError(f"{where} holds {target}, and a date is too far off or too fine for that unit")
    return put_gaps(dates, mask)


def _has_gaps(attribute: Any) -> bool:
    """Return whether the cells of a column can be NaN or NaT, which are missing without a mark."""
    return not attribute.isvar and attribute.dtype.kind in "fM"


def _kind(dtype: np.dtype[Any], *, is_text: bool = False) -> str:
    """Return which columns a type belongs to: text, dates or numbers."""
    return "text" if is_text or dtype.kind in "OUS" else "dates" if dtype.kind == "M" else "numbers"
