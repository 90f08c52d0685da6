"""What PostgreSQL refused or why it was lost, in words for people: the cause, and what helps."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from voxtier.errors import BackendError
from voxtier.postgres.connection import Connection
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded.failures import explain_full_disk, explain_loss
from voxtier.system.text import first_line

_log = logging.getLogger(__name__)

_CIRCUMSTANCES = """
SELECT quote_ident(current_user), quote_ident(current_database()), pg_is_in_recovery(),
    to_regnamespace('voxtier') IS NOT NULL,
    coalesce(has_schema_privilege(to_regnamespace('voxtier'), 'USAGE'), false),
    has_database_privilege(current_database(), 'TEMPORARY')
"""

# SQLSTATEs of transient failures: lost connections (08), conflicts between transactions (40), a server that
# is stopping or starting (57P01 to 57P03), too many connections (53300).
_TRANSIENT = ("08", "40", "57P01", "57P02", "57P03", "53300")


class _Circumstances(NamedTuple):
    """What is asked of the database once it has refused something."""

    role: str
    database: str
    is_standby: bool
    has_schema: bool
    may_use_schema: bool
    may_make_temporary_tables: bool


def is_refusal(error: psycopg.Error) -> bool:
    """Return whether the database said that this role, or any on this server, may not do that."""
    refusals = psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction
    return isinstance(error, refusals)


def lacking_right(error: Exception) -> str | None:
    """Return in PostgreSQL's words which right this role lacks; None: the error is another."""
    return error.diag.message_primary if isinstance(error, psycopg.errors.InsufficientPrivilege) else None


def explain_refusal(error: psycopg.Error, connect: Callable[[], Connection]) -> str:
    """Return what was refused, and the remedy for the circumstances, which a new connection is asked for."""
    found = None
    with contextlib.suppress(psycopg.Error, BackendError), connect() as connection:
        row = connection.execute(_CIRCUMSTANCES.encode()).fetchone()  # needs no rights
        found = row and _Circumstances(*row)
    return f"the database role may not do that: {error.diag.message_primary}; {_remedy(error, found)}"


def _remedy(error: psycopg.Error, found: _Circumstances | None) -> str:
    """Return what helps, to be put after a semicolon; None: the database did not tell."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        if found is not None and found.is_standby:
            return (
                "this server is a standby, which only reads: name its primary, or all hosts and "
                "target_session_attrs=read-write, in --dsn or VOXTIER_DSN"
            )
        return (
            "its sessions are read-only: set default_transaction_read_only = off for this role or database, "
            "or name another server with --dsn or VOXTIER_DSN"
        )
    if found is not None and not found.has_schema:
        return (
            f"the owner of the database runs GRANT CREATE ON DATABASE {found.database} TO {found.role}; or "
            f"CREATE SCHEMA voxtier AUTHORIZATION {found.role};"
        )
    if found is not None and found.may_use_schema and not found.may_make_temporary_tables:
        return (
            f"the owner of the database runs GRANT TEMPORARY ON DATABASE {found.database} TO {found.role};"
            " if it builds the index; `voxtier db grants` prints the other rights"
        )
    return "`voxtier db grants` prints the SQL that grants it"


def is_fault_of_arguments(error: Exception) -> bool:
    """Return whether a statement does not fit its parameters, and so did not get as far as the server."""
    if isinstance(error, psycopg.ProgrammingError | psycopg.DataError):
        return error.sqlstate is None
    return isinstance(error, TypeError | UnicodeEncodeError)


def is_transient(error: psycopg.Error) -> bool:
    """Return whether the same work may succeed a moment later."""
    return error.sqlstate is None or error.sqlstate.startswith(_TRANSIENT)


def explain(error: psycopg.Error, server: EmbeddedServer | None, since: float, *, is_embedded: bool) -> str:
    """Return cause and remedy, without the details of PostgreSQL's message: they may quote values.

    Parameters
    ----------
    error : psycopg.Error
        What ended the work.
    server : EmbeddedServer or None
        voxtier's own server, where it is used and runs.
    since : float
        When the work began, in seconds since 1970: what the server's log says of times before is of others.
    is_embedded : bool
        Whether the database is voxtier's own server.

    Returns
    -------
    str
        One line.
    """
    message = error.diag.message_primary
    if isinstance(error, psycopg.errors.DiskFull):
        return f"{message}; free some space on the database's disk, then try again"
    # Of a session that was lost without a word libpq says just that; why it cannot connect, it knows.
    is_connecting = error.pgconn is not None or isinstance(error, psycopg.errors.ConnectionTimeout)
    is_silent = message is None and not is_connecting
    if server is not None and (message is None or is_transient(error)):
        cause = explain_full_disk(server.folder)
        if not cause and is_silent:
            cause = explain_loss(server.folder, since)
        if cause:
            return cause
    if message is None and (is_connecting or type(error) is psycopg.OperationalError):
        message = first_line(error)
    remedy = "run `voxtier doctor`" if is_embedded else "check the server, --dsn, VOXTIER_DSN"
    if is_embedded and "PGSERVICE" in os.environ and "service" in (message or ""):
        remedy = "unset PGSERVICE: libpq looks it up even for this server, which needs none"
    return f"{message or type(error).__name__}; {remedy}"


def explain_empty_pool(
    connect: Callable[[], Connection], lent: int, most: int, explain_error: Callable[[psycopg.Error], str]
) -> str:
    """Return why a pool has no connection to lend; the pool itself does not keep the reason.

    Parameters
    ----------
    connect : callable
        Makes a connection outside of the pool.
    lent, most : int
        Connections that are in use, and those that the pool has at most.
    explain_error : callable
        Says why `connect` failed, as `explain` does.

    Returns
    -------
    str
        Cause and remedy.
    """
    try:
        with contextlib.closing(connect()) as connection, selectors.DefaultSelector() as answers:
            connection.pgconn.send_query(b"SELECT 1")
            answers.register(connection.fileno(), selectors.EVENT_READ)
            if not answers.select(2.0):
                return "it connects, but runs no statement: is a pooler before it out of sessions?"
            connection.pgconn.get_result()
    except psycopg.Error as error:
        return explain_error(error)
    except BackendError as error:
        return str(error)
    if lent < most:
        return (
            f"{lent} of {most} are in use, and the server ended the others at once, or took none for a "
            "while: its log says why"
        )
    return f"all {most} are in use: raise max_size, or the timeout"


def warn_of_plain_text(connection: Connection) -> None:
    """Say it where a connection goes through a network without TLS."""
    host = connection.info.host
    local = not host or host.startswith("/") or host in {"localhost", "127.0.0.1", "::1"}
    if not local and not connection.pgconn.ssl_in_use:
        _log.warning("the connection to the database is not encrypted: add sslmode=verify-full to the DSN")
