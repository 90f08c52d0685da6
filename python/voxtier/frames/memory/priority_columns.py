"""Checks columns of times, counts and names, as users pass them, and converts them for the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Moment: TypeAlias = datetime | np.datetime64 | int
Times: TypeAlias = ArrayLike | Sequence[datetime | None]

_NULL = np.iinfo(np.int64).min
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Tie:
    """Decides among equal scores: by ids, by names, or by row number where both are None."""

    ids: NDArray[np.int64] | None = None
    names: list[str] | None = None


def times_of(name: str, values: Times, *, assume_utc: bool) -> NDArray[np.int64]:
    """Convert a column of times.

    Parameters
    ----------
    name : str
        Name of the column in messages.
    values : array_like, shape (N,)
        ``datetime64``, int64 microseconds since 1970 UTC, or datetimes and None.
    assume_utc : bool
        Take naive datetimes as UTC.

    Returns
    -------
    ndarray of int64, shape (N,)
        Microseconds since 1970 UTC; the smallest int64 is NULL.

    Raises
    ------
    ValueError
        A time outside the range of microseconds, or a column of another type.
    TypeError
        A naive datetime without `assume_utc`.
    """
    array = values if isinstance(values, np.ndarray) else _boxed(values)
    if array.dtype.kind == "M":
        exact = array.astype("datetime64[us]")
        # A finer unit may lose digits; a coarser one must not overflow.
        if np.datetime_data(array.dtype)[0] not in ("ns", "ps", "fs", "as"):
            wrong = np.flatnonzero((exact.astype(array.dtype) != array) & ~np.isnat(array))
            if len(wrong):
                raise ValueError(f"{name}[{wrong[0]}] = {array[wrong[0]]}: outside the range of microseconds")
        return np.ascontiguousarray(exact).view(np.int64)
    if array.dtype.kind in "iu":
        return integers(name, array)
    if array.dtype.kind == "O" or array.size == 0:
        moments = array.tolist()
        if all(each is None or (type(each) is datetime and each.tzinfo is not None) for each in moments):
            found = [_NULL if each is None else (each - _EPOCH) // _MICROSECOND for each in moments]
        else:
            found = [
                _NULL if each is None else microseconds(f"{name}[{row}]", each, assume_utc=assume_utc)
                for row, each in enumerate(moments)
            ]
        return np.array(found, np.int64)
    raise ValueError(f"{name} is {array.dtype}: must be datetime64, int64 microseconds or aware datetimes")


def _boxed(values: Times) -> NDArray[Any]:
    """Return an array; numpy would silently take datetimes as local wall time."""
    items = list(values) if isinstance(values, Sequence) else values
    if isinstance(items, list) and any(item is None or isinstance(item, datetime) for item in items):
        boxed = np.empty(len(items), object)
        boxed[:] = items
        return boxed
    return np.asarray(items)


def microseconds(name: str, moment: Moment, *, assume_utc: bool) -> int:
    """Convert one moment.

    Parameters
    ----------
    name : str
        Name of the argument in messages.
    moment : datetime, numpy.datetime64 or int
        An int is microseconds since 1970 UTC.
    assume_utc : bool
        Take a naive datetime as UTC.

    Returns
    -------
    int
        Microseconds since 1970 UTC.

    Raises
    ------
    TypeError
        A naive datetime without `assume_utc`, or a value of another type.
    """
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            if not assume_utc:
                raise TypeError(f"{name} is a naive datetime: pass an aware one, or assume_utc=True")
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // _MICROSECOND
    if isinstance(moment, np.datetime64):
        return int(moment.astype("datetime64[us]").astype(np.int64))
    if isinstance(moment, bool) or not isinstance(moment, int | np.integer):
        raise TypeError(f"{name} is {type(moment).__name__}: must be a datetime, datetime64 or microseconds")
    return int(moment)


def integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """Return a column as int64, shape (N,).

    Raises
    ------
    ValueError
        The values are not whole numbers below 2^63 in one dimension.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} dimensions: must be one column")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        row = int(np.argmax(array > np.iinfo(np.int64).max))
        raise ValueError(f"{name}[{row}] = {array[row]}: must be below 2^63")
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{name}[0] is {array.dtype}: must be an integer")
    return np.ascontiguousarray(array, np.int64)


def ids_of(ids: ArrayLike | Sequence[str] | None) -> tuple[NDArray[Any] | None, Tie]:
    """Return the names of the rows (None: row numbers), and what decides among equal scores."""
    if ids is None:
        return None, Tie()
    table = np.asarray(ids)
    if table.dtype.kind in "iu":
        table = integers("ids", table)
        return table, Tie(ids=table)
    names = table.tolist()
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"ids[{row}] is {type(name).__name__}: must be int64 or str")
    return table, Tie(names=names)
