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
from functools import partial
from pathlib import Path
from typing import Any, LiteralString, TypeVar

from voxtier.arguments import check_kind
from voxtier.errors import BackendError, ConfigError, MissingExtraError, VoxtierError

# Before this module's own exit hook: the pools close first, then the server stops.
from voxtier.postgres.embedded import EmbeddedServer, embedded_server
from voxtier.system.fork import abandon, after_fork_in_child

try:
    import psycopg
    import psycopg_pool
    from psycopg import sql

    from voxtier.postgres import connection_string, refusals
    from voxtier.postgres.connection import ADAPTERS, Connection, configure, is_pooler_sign
except ImportError as error:
    raise MissingExtraError("psycopg", "frames") from error

T = TypeVar("T")

ATTEMPTS = 6
"""Tries of work that a transient failure stopped: about six seconds in all."""
_log = logging.getLogger(__name__)

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


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
    home : Path or None
        The embedded server of this folder, whatever `dsn` and the environment say.
    max_size : int
        Most connections; further threads wait for one.
    timeout : float
        Longest wait for a connection, in seconds.
    max_lifetime : float
        Seconds after which a connection is replaced; keep it below the lifetime of a token.
    on_open : callable or None
        Called with the first connection, before any other work.
    prepare : {"auto", "off"} or None
        Whether frequent statements are prepared; "auto" stops at the first sign of a pooler in transaction
        mode that keeps none. None: as ``prepare=...`` in `dsn` says, then ``VOXTIER_PREPARE``, then "auto".

    Raises
    ------
    ConfigError
        `dsn` is not a connection string, or `prepare` is not one of its values.
    """

    def __init__(
        self,
        dsn: str | Callable[[], str] | None = None,
        *,
        credentials: Callable[[], Mapping[str, Any]] | None = None,
        home: Path | None = None,
        max_size: int = 16,
        timeout: float = 30.0,
        max_lifetime: float = 45 * 60.0,
        on_open: Callable[[Connection], None] | None = None,
        prepare: connection_string.Prepare | None = None,
    ) -> None:
        self._prepare = connection_string.check_prepare(
            prepare or os.environ.get("VOXTIER_PREPARE") or "auto"
        )
        self._prepare_is_told = prepare is not None
        if not (dsn is None or callable(dsn)):
            check_kind("dsn", dsn, str, "a connection string, or a function that makes one")
        self._home = None if home is None else home.absolute()
        dsn = None if home is not None else dsn or os.environ.get("VOXTIER_DSN") or None
        self._dsn = self._read(dsn) if isinstance(dsn, str) else dsn
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
        self._has_started = False
        self._lent: set[object] = set()  # no lock, as a forked child would inherit it held
        self._opening = threading.Lock()
        self._attaching = threading.Lock()
        _databases.add(self)
        after_fork_in_child(self._forget_after_fork)

    @property
    def is_embedded(self) -> bool:
        """Whether this is voxtier's own server."""
        return self._dsn is None

    @property
    def is_new(self) -> bool:
        """Whether no work was done on it yet: the first one connects."""
        return not self._has_started

    def start(self) -> None:
        """Connect, and start the embedded server before that if it does not run, as any work would.

        Raises
        ------
        BackendError, ConfigError
            See `run`.
        """
        with self.connection():
            pass

    def describe(self) -> str:
        """Return host, port and name of the database, without secrets."""
        if self._dsn is None:
            return f"the embedded server in {self._embedded().folder}"
        return connection_string.describe(self._current_dsn())

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in autocommit mode.

        Raises
        ------
        BackendError
            No connection could be obtained; the message says why and what to do.
        """
        pool, connection = self._obtain()
        lent = object()
        try:
            self._lent.add(lent)
            connection.allow_preparing(allowed=self._prepare == "auto")
            yield connection
            connection.worked_at = time.monotonic()
        except ValueError as error:
            # psycopg expects one result at the end of COPY, and a session that ends just then has two.
            if not connection.broken:
                raise
            raise psycopg.OperationalError("the connection was lost") from error
        finally:
            self._lent.discard(lent)
            pool.putconn(connection)

    @contextlib.contextmanager
    def stream(self) -> Iterator[Connection]:
        """Lend a connection for work that cannot be done again once it has begun.

        Raises
        ------
        BackendError, ConfigError
            See `run`.
        """
        begun = time.time()
        try:
            with self.connection() as connection:
                yield connection
        except psycopg.Error as error:
            raise self._translate(error, begun) from error

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do idempotent work on a connection; repeat it when a transient failure stopped it.

        Transient failures: serialization failures, deadlocks, a lost connection, a server that restarts. Work
        that a read-only server refused is done once more if a new connection leads to one that takes it:
        after a hand-over the old connections would stay where they are.

        Raises
        ------
        BackendError
            The failure is not transient, or occurred ``ATTEMPTS`` times.
        ConfigError
            The database role lacks a privilege.
        """
        has_moved, begun = False, time.time()
        for attempt in range(1, ATTEMPTS + 1):
            pool = self._pool
            try:
                with self.connection() as connection:
                    return work(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if attempt == ATTEMPTS or not refusals.is_transient(error):
                    raise self._translate(error, begun) from error
                _log.info(
                    "attempt %d of %d failed (%s), trying again",
                    attempt,
                    ATTEMPTS,
                    error.sqlstate or type(error).__name__,
                )
            except psycopg.errors.ReadOnlySqlTransaction as error:
                if has_moved or attempt == ATTEMPTS or not self._writes_anew():
                    raise self._translate(error, begun) from error
                has_moved = True
                if self._pool is pool:  # else another thread has dropped it
                    _log.info("the server has become read-only: its connections are left for another's")
                    self.reset()
                continue
            except psycopg.Error as error:
                if attempt == ATTEMPTS or not is_pooler_sign(error):
                    raise self._translate(error, begun) from error
                self._stop_preparing()
                continue
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2**attempt)
            self._recover()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections and leave the embedded server."""
        self.reset(seconds=5.0)
        self._detach()

    def reset(self, *, seconds: float = 0.0) -> None:
        """Drop the pool: the next work connects anew. Work under way keeps its connection to its end.

        Parameters
        ----------
        seconds : float
            How long to wait for the pool's threads. A thread that is just connecting is not waited for.
        """
        pool, self._pool, self._opening = self._pool, None, threading.Lock()
        if pool is not None:
            pool.close(timeout=seconds)

    def probe(self, statement: LiteralString, *, seconds: float = 1.0) -> None:
        """Run a statement on a connection of its own, with little patience; the embedded server is started.

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
            The role may not read it, or the database's encoding is not UTF8.
        """
        if self.is_embedded and self.is_new:
            self.start()
        begun = time.time()
        try:
            patience = {"connect_timeout": 2, "tcp_user_timeout": 2000}
            with Connection.connect(self._conninfo(**patience), autocommit=False) as connection:
                configure(connection)
                connection.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}".encode())
                connection.execute(statement)
        except psycopg.Error as error:
            raise self._translate(error, begun) from error

    def _obtain(self) -> tuple[psycopg_pool.ConnectionPool[Connection], Connection]:
        """Return a connection and the pool that takes it back."""
        while True:
            pool = self._pool or self._open()
            try:
                return pool, pool.getconn()
            except psycopg_pool.PoolClosed:
                continue  # another thread dropped it meanwhile: see `reset`
            except psycopg_pool.PoolTimeout as error:
                lent, explain = len(self._lent), partial(self._explain, begun=time.time())
                reason = refusals.explain_empty_pool(self._connect, lent, pool.max_size, explain)
                raise BackendError(
                    f"no connection to {self.describe()} within {pool.timeout:g} s: {reason}"
                ) from error

    def _open(self) -> psycopg_pool.ConnectionPool[Connection]:
        opening = self._opening
        with opening:
            if self._pool is not None:
                return self._pool
            self._attach()
            try:
                self._connect_once()
            except BaseException:
                if self._pool is None:
                    self._detach()
                raise
            if opening is self._opening:
                self._pool = psycopg_pool.ConnectionPool(
                    self._conninfo,
                    kwargs={"autocommit": True, "context": ADAPTERS},
                    connection_class=Connection,
                    configure=configure,
                    check=_check,
                    name="voxtier",
                    open=True,
                    **self._sizes,
                )
                self._has_started = True
                return self._pool
        return self._open()  # it was reset while this thread connected

    def _attach(self) -> None:
        with self._attaching:
            if self._dsn is None and self._server is None:
                server = self._embedded()
                server.attach()
                self._server = server

    def _detach(self) -> None:
        with self._attaching:
            server, self._server, self._has_started = self._server, None, False
        if server is not None:
            server.detach()

    def _connect_once(self) -> None:
        """Connect outside the pool, which would retry for long and hide the reason of a failure."""
        begun, deadline = time.time(), time.monotonic() + 10
        while True:
            try:
                with self._connect() as connection:
                    connection.allow_preparing(allowed=False)  # for once; connect() sets psycopg's own limit
                    configure(connection)
                    refusals.warn_of_plain_text(connection)
                    if self.on_open is not None:
                        self.on_open(connection)
                return
            except psycopg.Error as error:
                # After a crash the server runs before it accepts connections.
                if not isinstance(error, psycopg.errors.CannotConnectNow) or time.monotonic() > deadline:
                    raise self._translate(error, begun) from error
                time.sleep(0.05)

    def _connect(self) -> Connection:
        return Connection.connect(self._conninfo(), autocommit=True, context=ADAPTERS)

    def _writes_anew(self) -> bool:
        """Return whether a new connection, which may lead to another server, takes writes."""
        question = "SELECT current_setting('transaction_read_only')"
        with contextlib.suppress(psycopg.Error, BackendError), self._connect() as connection:
            return connection.execute(question).fetchone() == ("off",)
        return False

    def _stop_preparing(self) -> None:
        if self._prepare != "off":
            self._prepare = "off"
            _log.info(
                "%s is behind a pooler that keeps no prepared statements: voxtier works without; prepare=off "
                "in the connection string, or VOXTIER_PREPARE=off, says so from the start",
                self.describe(),
            )

    def _embedded(self) -> EmbeddedServer:
        return self._server or embedded_server(self._home)

    def _conninfo(self, **changes: str | int) -> str:
        server = self._server  # another thread may close the database meanwhile
        if server is not None:
            server.ensure_running()
            dsn = connection_string.without_environment(server.conninfo())
        elif self.is_embedded:
            raise BackendError(f"{self.describe()}: the database was closed while a thread connected to it")
        else:
            dsn = self._current_dsn()
        given = _call(self._credentials, "credentials") if self._credentials is not None else {}
        return connection_string.complete(dsn, given, **changes)

    def _current_dsn(self) -> str:
        assert self._dsn is not None
        return self._read(_call(self._dsn, "connection string")) if callable(self._dsn) else self._dsn

    def _read(self, dsn: str) -> str:
        libpq, prepare = connection_string.parse(dsn)
        if prepare is not None and not self._prepare_is_told:
            self._prepare, self._prepare_is_told = prepare, True
        return libpq

    def _translate(self, error: psycopg.Error, begun: float) -> BackendError | ConfigError:
        if refusals.is_refusal(error):
            return ConfigError(refusals.explain_refusal(error, self._connect))
        return BackendError(f"{self.describe()}: {self._explain(error, begun)}")

    def _explain(self, error: psycopg.Error, begun: float) -> str:
        return refusals.explain(error, self._server, begun, is_embedded=self.is_embedded)

    def _recover(self) -> None:
        """Restart a server that was killed, and check every idle connection: if one is lost, most are."""
        if (server := self._server) is not None:
            server.ensure_running()  # else the pool notices, and waits a second before it reconnects
        if (pool := self._pool) is not None:
            with contextlib.suppress(psycopg.Error, psycopg_pool.PoolClosed):
                pool.check()

    def _forget_after_fork(self) -> None:
        # Neither use the parent's connections nor close them, which would end its sessions.
        abandon(self._pool)
        self._pool, self._lent = None, set()
        self._server, self._has_started = None, False
        self._opening, self._attaching = threading.Lock(), threading.Lock()


def quote_identifier(*parts: str) -> str:
    """Return a name as SQL quotes it; the caller has checked that its parts are plain identifiers."""
    return sql.Identifier(*parts).as_string(None)


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


@atexit.register
def _close_all() -> None:
    for database in list(_databases):
        database.close()
