"""Values in the forms in which PostgreSQL sends and takes them: keys as bytes, whole rows as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.abc import AdaptContext
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format

from voxtier.postgres.connection import ADAPTERS

# Object identifiers of types.
_RECORD, _UUID, _UUID_ARRAY = 2249, 2950, 2951

# Times travel as microseconds since 2000.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST, _MILLENNIUM = (
    (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
    for moment in (datetime.min, datetime.max, datetime(2000, 1, 1))
)
_NULL = bytes(8)


class Key(bytes):
    """A uuid as its 16 bytes."""


class Keys(list[bytes]):
    """An array of uuid as 16 bytes each; 20 times faster to send than UUID objects."""


class _KeyDumper(Dumper):
    format = Format.BINARY

    def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        self.oid = _UUID  # not of the class: registering it would take over every uuid of the program

    def dump(self, obj: Key) -> Buffer:
        return bytes(obj)


class _KeysDumper(Dumper):
    format = Format.BINARY

    def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        self.oid = _UUID_ARRAY

    def dump(self, obj: Keys) -> Buffer:
        # Dimensions, null flag, type of the elements (uuid), length, lower bound; then length and value each.
        head = b"".join(n.to_bytes(4, "big") for n in (1, 0, _UUID, len(obj), 1))
        return head + b"".join([b"\0\0\0\x10" + key for key in obj])


class _RowLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


# The connections' own map too: it is a copy of psycopg's, made before or after this module is imported.
for adapters in (psycopg.adapters, ADAPTERS):
    adapters.register_dumper(Key, _KeyDumper)
    adapters.register_dumper(Keys, _KeysDumper)


def fetch(connection: psycopg.Connection[Any], query: str, parameters: Any) -> list[tuple[Any, ...]]:
    """Run a query and return its rows; a value ``ROW(...)`` arrives as the bytes that `_core` decodes.

    Parameters
    ----------
    connection : psycopg.Connection
        Prepares the query when it sees it first.
    query : str
        One statement with placeholders.
    parameters : tuple or dict
        Their values.

    Returns
    -------
    list of tuple
        The rows.
    """
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_loader(_RECORD, _RowLoader)
        return cursor.execute(query.encode(), parameters, prepare=True).fetchall()


def literal_cursor(connection: psycopg.Connection[Any]) -> psycopg.ClientCursor[Any]:
    """Return a cursor that writes parameters into its statements, as COPY needs."""
    return psycopg.ClientCursor(connection)


def sent_times(column: Sequence[bytes | None]) -> NDArray[np.int64]:
    """Convert times as ``timestamptz_send`` gives them; a fiftieth of the time of as many datetimes.

    Returns
    -------
    ndarray of int64, shape (N,)
        Microseconds since 1970 UTC, the smallest number for NULL. Infinity, and what Python's datetime cannot
        hold, become the first or the last moment that it can.
    """
    sent = b"".join([_NULL if each is None else each for each in column])
    times = np.frombuffer(sent, ">i8").astype(np.int64)
    is_null = np.fromiter((each is None for each in column), bool, len(column))
    # Clipped first: infinity is the largest number.
    times = np.clip(times, _FIRST - _MILLENNIUM, _LAST - _MILLENNIUM) + _MILLENNIUM
    times[is_null] = np.iinfo(np.int64).min
    return times
