"""A connection as voxtier uses it: statements prepared by content, times within those that Python knows."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from typing import Any

from voxtier.errors import ConfigError, MissingExtraError

try:
    import psycopg
    from psycopg._preparing import Prepare, PrepareManager
    from psycopg._queries import PostgresQuery
    from psycopg.adapt import AdaptersMap, Buffer
    from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader
except ImportError as error:
    raise MissingExtraError("psycopg", "frames") from error

# Statements are prepared when they say so, never because they were seen often.
_ONLY_WHEN_TOLD = 1 << 62
# Of every transaction.
ISOLATION = psycopg.IsolationLevel.READ_COMMITTED
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)


class Connection(psycopg.Connection[Any]):
    """A pooled connection and when it last worked, in seconds of the monotonic clock.

    Its transactions are READ COMMITTED: each ``BEGIN`` says so, as behind a pooler no setting of the session
    would stay. A statement that follows a lock must see what was committed while it waited, which with the
    ``default_transaction_isolation`` of a role or database it might not. Single statements in autocommit mode
    have that default: they only read, or are tried again when they fail.
    """

    worked_at: float = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._prepared = _ContentNames()
        self.prepare_threshold = _ONLY_WHEN_TOLD
        self.isolation_level = ISOLATION

    def allow_preparing(self, *, allowed: bool) -> None:
        """Prepare the statements that ask for it, or none."""
        self.prepare_threshold = _ONLY_WHEN_TOLD if allowed else None


def configure(connection: Connection) -> None:
    """Hold a new session to what voxtier's statements expect, whatever its role and database set.

    The server has told what it reports of the session with its greeting: it is asked for nothing, unless
    backslashes in literals are not plain or times are not written as ISO 8601. Both settings are among those
    that pgbouncer keeps for each of its clients.

    Raises
    ------
    ConfigError
        The encoding of the database is not UTF8. Others cannot hold every path, and a file that has no row is
        one that no rule of access names; SQL_ASCII takes any bytes and gives them back as bytes. So none is
        taken, though LATIN1 would do for many archives.
    """
    encoding = connection.pgconn.parameter_status(b"server_encoding")
    if encoding not in (b"UTF8", None):
        raise ConfigError(
            f"the database {connection.info.dbname} has the encoding {encoding.decode()}, which cannot hold "
            "every path: name one that was made with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    if connection.pgconn.parameter_status(b"standard_conforming_strings") == b"off":
        connection.execute("SET standard_conforming_strings = on")
    style = connection.pgconn.parameter_status(b"DateStyle")
    if style is not None and not style.startswith(b"ISO"):
        connection.execute("SET DateStyle = 'ISO'")


class _ContentNames(PrepareManager):
    """Names each prepared statement after its text and types.

    A pooler in transaction mode gives a client one session now and another then. With psycopg's own names,
    which count from 0 in each client, a client may execute what another prepared under the same name, with an
    answer that looks right. By content, a session has the very statement, or an error says that it is unknown
    or known already.
    """

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:  # noqa: FBT001
        how, name = super().get(query, prepare)
        if how is Prepare.SHOULD:
            content = b"%s %r" % (query.query, query.types)
            name = b"voxtier_" + hashlib.blake2b(content, digest_size=16).hexdigest().encode()
        return how, name


def is_pooler_sign(error: BaseException) -> bool:
    """Whether a prepared statement is not where it was left: another session answers."""
    signs = psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName
    return isinstance(error, signs)


class _TextLoader(TimestamptzLoader):
    """Times as text; those that Python has no number for are the earliest or the latest that it has."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return _EARLIEST if text.startswith(b"-") or text.endswith(b"BC") else _LATEST


class _BinaryLoader(TimestamptzBinaryLoader):
    """The same for times as a number of microseconds, negative before 2000."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _EARLIEST if bytes(data)[0] & 0x80 else _LATEST


ADAPTERS = AdaptersMap(psycopg.adapters)
ADAPTERS.register_loader("timestamptz", _TextLoader)
ADAPTERS.register_loader("timestamptz", _BinaryLoader)


def _is_of_others(record: logging.LogRecord) -> bool:
    return not any(isinstance(each, Connection) for each in record.args or ())


# The pool's own warnings name the connection; what matters of them reaches the caller as an exception.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
logging.getLogger("psycopg.pool").addFilter(_is_of_others)
