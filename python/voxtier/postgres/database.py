"""Connections to PostgreSQL: which server, a pool of connections, credentials that expire, retries.

The store of frame tables uses it. Without ``dsn`` and ``VOXTIER_DSN`` the database is voxtier's own server:
`voxtier.postgres.embedded`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, LiteralString, TypeVar

from voxtier.errors import BackendError, ConfigError, MissingExtraError, VoxtierError

# Before this module's own exit hook: the pools close first, then the server stops.
from voxtier.postgres.embedded import EmbeddedServer, embedded_server
from voxtier.system.fork import abandon, after_fork_in_child

try:
    import psycopg
    import psycopg_pool
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    raise MissingExtraError("psycopg", "frames") from error

T = TypeVar("T")

ATTEMPTS = 6
"""Tries of work that a transient failure stopped: about six seconds in all."""
_log = logging.getLogger(__name__)
# The pool's own warnings name the connection; what matters of them reaches the caller as an exception.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

# SQLSTATEs of transient failures: lost connections (08), conflicts between transactions (40), a server that
# is stopping or starting (57P01 to 57P03), too many connections (53300).
_TRANSIENT = ("08", "40", "57P01", "57P02", "57P03", "53300")
# A peer that vanished is noticed within seconds instead of the two hours of TCP's own keepalive.
_LIVENESS = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Connection(psycopg.Connection[Any]):
    """A pooled connection and when it last worked, in seconds of the monotonic clock."""

    worked_at: float = 0.0


class Database:
    """A PostgreSQL database and the connections to it; safe to share between threads and to fork.

    Parameters
    ----------
    dsn : str, callable or None
        ``postgresql://...`` or ``key=value ...``, or a function that returns it, called for each new
        connection. None: ``VOXTIER_DSN``, and without that the embedded server.
    credentials : callable or None
        Returns connection parameters, such as ``{"user": ..., "password": token}``, for each new
        connection: tokens may expire. While it fails, open connections go on working.
    max_size : int
        Most connections; further threads wait for one.
    timeout : float
        Longest wait for a connection, in seconds.
    max_lifetime : float
        Seconds after which a connection is replaced; keep it below the lifetime of a token.
    on_open : callable or None
        Called with the first connection, before any other work.

    Raises
    ------
    ConfigError
        `dsn` is not a connection string.
    """

    def __init__(
        self,
        dsn: str | Callable[[], str] | None = None,
        *,
        credentials: Callable[[], Mapping[str, Any]] | None = None,
        max_size: int = 16,
        timeout: float = 30.0,
        max_lifetime: float = 45 * 60.0,
        on_open: Callable[[Connection], None] | None = None,
    ) -> None:
        dsn = dsn or os.environ.get("VOXTIER_DSN") or None
        if isinstance(dsn, str):
            _check_dsn(dsn)
        self._dsn = dsn
        self._credentials = credentials
        self._sizes: dict[str, Any] = {
            "min_size": 1,
            "max_size": max_size,
            "timeout": timeout,
            "max_lifetime": max_lifetime,
        }
        self.on_open = on_open
        self._pool: psycopg_pool.ConnectionPool[Connection] | None = None
        self._server: EmbeddedServer | None = None
        self._opening = threading.Lock()
        _databases.add(self)
        after_fork_in_child(self._forget_after_fork)

    @property
    def is_embedded(self) -> bool:
        """Whether this is voxtier's own server."""
        return self._dsn is None

    def describe(self) -> str:
        """Return host, port and name of the database, without secrets."""
        if self._dsn is None:
            return f"the embedded server in {self._embedded().folder}"
        parts = _parsed(self._dsn() if callable(self._dsn) else self._dsn)
        place = ":".join(str(parts[name]) for name in ("host", "port") if parts.get(name))
        return f"{place or 'the local socket'}, database {parts.get('dbname') or 'by default'}"

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in autocommit mode.

        Raises
        ------
        BackendError
            No connection could be obtained; the message says why and what to do.
        """
        pool = self._pool or self._open()
        try:
            connection = pool.getconn()
        except psycopg_pool.PoolTimeout as error:
            raise BackendError(
                f"no connection to {self.describe()} within {pool.timeout:g} s: {self._explain_empty_pool()}"
            ) from error
        try:
            yield connection
            connection.worked_at = time.monotonic()
        finally:
            pool.putconn(connection)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do idempotent work on a connection; repeat it when a transient failure stopped it.

        Transient failures: serialization failures, deadlocks, a lost connection, a server that restarts.

        Raises
        ------
        BackendError
            The failure is not transient, or occurred ``ATTEMPTS`` times.
        ConfigError
            The database role lacks a privilege.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.connection() as connection:
                    return work(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if attempt == ATTEMPTS or not _is_transient(error):
                    raise self._translate(error) from error
                _log.info("attempt %d of %d failed (%s), trying again", attempt, ATTEMPTS, _state(error))
            except psycopg.Error as error:
                raise self._translate(error) from error
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2**attempt)
            self._recover()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections and leave the embedded server."""
        with self._opening:
            pool, self._pool = self._pool, None
            server, self._server = self._server, None
        if pool is not None:
            pool.close()
        if server is not None:
            server.detach()

    def reset(self) -> None:
        """Drop the pool: the next work connects anew. Work under way keeps its connection to its end."""
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout=0)

    def probe(self, statement: LiteralString, *, seconds: float = 1.0) -> None:
        """Run a statement on a connection of its own, with little patience.

        Parameters
        ----------
        statement : str
            One that reads what matters.
        seconds : float
            Longest run of the statement; connecting may take two seconds more.

        Raises
        ------
        BackendError
            The database does not connect, or does not answer in time.
        ConfigError
            The role may not read it.
        """
        parameters = self._parameters() | {"connect_timeout": 2, "autocommit": False}
        try:
            with Connection.connect(self._conninfo(), **parameters) as connection:
                connection.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}".encode())
                connection.execute(statement)
        except psycopg.Error as error:
            raise self._translate(error) from error

    def _open(self) -> psycopg_pool.ConnectionPool[Connection]:
        with self._opening:
            if self._pool is not None:
                return self._pool
            if self._dsn is None:
                server = self._embedded()
                server.attach()
                self._server = server
            try:
                self._connect_once()
            except BaseException:
                if self._server is not None:
                    self._server.detach()
                    self._server = None
                raise
            self._pool = psycopg_pool.ConnectionPool(
                self._conninfo,
                kwargs=self._parameters,
                connection_class=Connection,
                check=_check,
                name="voxtier",
                open=True,
                **self._sizes,
            )
            return self._pool

    def _connect_once(self) -> None:
        """Connect outside the pool, which would retry for long and hide the reason of a failure."""
        deadline = time.monotonic() + 10
        while True:
            try:
                with Connection.connect(self._conninfo(), **self._parameters()) as connection:
                    _warn_of_plain_text(connection)
                    if self.on_open is not None:
                        self.on_open(connection)
                return
            except psycopg.Error as error:
                # After a crash the server runs before it accepts connections.
                if not isinstance(error, psycopg.errors.CannotConnectNow) or time.monotonic() > deadline:
                    raise self._translate(error) from error
                time.sleep(0.05)

    def _embedded(self) -> EmbeddedServer:
        return self._server or embedded_server()

    def _conninfo(self) -> str:
        if self._server is not None:
            self._server.ensure_running()
            return self._server.conninfo()
        assert self._dsn is not None
        return _call(self._dsn, "connection string") if callable(self._dsn) else self._dsn

    def _parameters(self) -> dict[str, Any]:
        given = _call(self._credentials, "credentials") if self._credentials is not None else {}
        return {
            "application_name": "voxtier",
            "connect_timeout": 15,
            "autocommit": True,
            **_LIVENESS,
            **given,
        }

    def _translate(self, error: psycopg.Error) -> BackendError | ConfigError:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return ConfigError(
                f"the database role may not do that: {error.diag.message_primary}; `voxtier db grants` prints"
                " the SQL that grants it"
            )
        return BackendError(f"{self.describe()}: {self._explain(error)}")

    def _recover(self) -> None:
        """Restart a server that was killed, and check every idle connection: if one is lost, most are."""
        if self._server is not None:
            self._server.ensure_running()  # else the pool notices, and waits a second before it reconnects
        if (pool := self._pool) is not None:
            with contextlib.suppress(psycopg.Error, psycopg_pool.PoolClosed):
                pool.check()

    def _explain_empty_pool(self) -> str:
        """Return why the pool has no connection to lend; the pool itself does not keep the reason."""
        try:
            Connection.connect(self._conninfo(), **self._parameters()).close()
        except psycopg.Error as error:
            return self._explain(error)
        except BackendError as error:
            return str(error)
        return f"all {self._sizes['max_size']} are in use: raise max_size, or the timeout"

    def _explain(self, error: psycopg.Error) -> str:
        """Return cause and remedy, without the details of PostgreSQL's message: they may quote values."""
        message = error.diag.message_primary
        if isinstance(error, psycopg.errors.DiskFull):
            return f"{message}; free some space on the database's disk, then try again"
        if message is None or _is_transient(error):  # the connection was lost, or never made
            cause = self._server.explain_failure() if self._server is not None else ""
            if cause:
                return cause
            if message is None and type(error) is psycopg.OperationalError:
                message = str(error).strip().splitlines()[0]
        remedy = "run `voxtier doctor`" if self.is_embedded else "check the server, --dsn, VOXTIER_DSN"
        return f"{message or type(error).__name__}; {remedy}"

    def _forget_after_fork(self) -> None:
        # Neither use the parent's connections nor close them, which would end its sessions.
        abandon(self._pool)
        self._pool = None
        self._server = None
        self._opening = threading.Lock()


def split_secrets(dsn: str) -> tuple[str, dict[str, str]]:
    """Split a connection string into one without secrets, and the passwords that it held, by their names."""
    parts = {name: str(value) for name, value in _parsed(dsn).items() if value is not None}
    secrets = {str(name): parts.pop(name) for name in ("password", "sslpassword") if name in parts}
    return make_conninfo(**parts), secrets


def quote_identifier(*parts: str) -> str:
    """Return a name as SQL quotes it; the caller has checked that its parts are plain identifiers."""
    return sql.Identifier(*parts).as_string(None)


def _check_dsn(dsn: str) -> None:
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's own message quotes what it was given, and that may be the password.
        raise ConfigError(
            "--dsn or VOXTIER_DSN is not a connection string: write postgresql://user@host:5432/database or "
            "'host=... dbname=...'"
        ) from None


def _parsed(dsn: str) -> Mapping[str, Any]:
    _check_dsn(dsn)
    return conninfo_to_dict(dsn)


def _call(function: Callable[[], T], what: str) -> T:
    try:
        return function()
    except VoxtierError:  # its message holds no secret
        raise
    except Exception as error:
        raise BackendError(f"cannot obtain the database {what}: {type(error).__name__}") from error


def _check(connection: Connection) -> None:
    """Check that a connection still works, unless it did within the last second."""
    if time.monotonic() - connection.worked_at > 1.0:
        psycopg_pool.ConnectionPool.check_connection(connection)


def _is_transient(error: psycopg.Error) -> bool:
    return error.sqlstate is None or error.sqlstate.startswith(_TRANSIENT)


def _state(error: psycopg.Error) -> str:
    return error.sqlstate or type(error).__name__


def _warn_of_plain_text(connection: Connection) -> None:
    host = connection.info.host
    local = not host or host.startswith("/") or host in {"localhost", "127.0.0.1", "::1"}
    if not local and not connection.pgconn.ssl_in_use:
        _log.warning("the connection to the database is not encrypted: add sslmode=verify-full to the DSN")


@atexit.register
def _close_all() -> None:
    for database in list(_databases):
        database.close()
