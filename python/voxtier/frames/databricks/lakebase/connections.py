"""Connections of the index for callers who write their own statements, as the published pool lends them."""

from __future__ import annotations

import contextlib
from typing import Any

from voxtier.errors import ConfigError
from voxtier.postgres.connection import Connection
from voxtier.postgres.database import Database


class LentConnections:
    """Lends connections: `getconn` and `putconn`, with a transaction that begins by itself.

    Parameters
    ----------
    database : Database
        The connections are its own, and count towards its most.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # No lock: one operation on a dict is safe between threads, and a forked child would inherit it held.
        self._lent: dict[int, contextlib.AbstractContextManager[Connection]] = {}

    def getconn(self, key: Any = None) -> Connection:
        """Lend a connection; call ``commit()`` on it, or nothing of its transaction stays."""
        lent = self._database.connection()
        connection = lent.__enter__()
        connection.autocommit = False
        self._lent[id(connection)] = lent
        return connection

    def putconn(self, conn: Connection, key: Any = None, close: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take a connection back and end its session; what was not committed is rolled back.

        Another caller gets a new one: what this one set on it, such as a role, an encoding or a row factory,
        is nobody else's.

        Parameters
        ----------
        conn : psycopg.Connection
            From `getconn`.
        key, close : object
            Not used.

        Raises
        ------
        ConfigError
            It is not lent.
        """
        lent = self._lent.pop(id(conn), None)
        if lent is None:
            raise ConfigError("this connection is not lent: give back each connection of getconn() once")
        conn.close()
        lent.__exit__(None, None, None)

    def closeall(self) -> None:
        """Close the connections of the index; the next work opens them again."""
        self._database.close()
