"""What PostgreSQL refused or why it was lost, in words for people: the cause, and what helps."""

from __future__ import annotations

import os
from typing import NamedTuple

import psycopg

from voxtier.postgres.connection import Connection
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.system.text import first_line

_CIRCUMSTANCES = """
SELECT quote_ident(current_user), quote_ident(current_database()), pg_is_in_recovery(),
    to_regnamespace('voxtier') IS NOT NULL,
    coalesce(has_schema_privilege(to_regnamespace('voxtier'), 'USAGE'), false),
    has_database_privilege(current_database(), 'TEMPORARY')
"""

# SQLSTATEs of transient failures: lost connections (08), conflicts between transactions (40), a server that
# is stopping or starting (57P01 to 57P03), too many connections (53300).
_TRANSIENT = ("08", "40", "57P01", "57P02", "57P03", "53300")


class Circumstances(NamedTuple):
    """What is asked of the database once it has refused something."""

    role: str
    database: str
    is_standby: bool
    has_schema: bool
    may_use_schema: bool
    may_make_temporary_tables: bool


def ask_circumstances(connection: Connection) -> Circumstances:
    """Ask for the circumstances; needs no rights."""
    row = connection.execute(_CIRCUMSTANCES.encode()).fetchone()
    assert row is not None
    return Circumstances(*row)


def remedy_of(error: psycopg.Error, found: Circumstances | None) -> str:
    """Return what helps against a refusal.

    Parameters
    ----------
    error : psycopg.Error
        `InsufficientPrivilege` or `ReadOnlySqlTransaction`.
    found : Circumstances or None
        None where the database did not tell.

    Returns
    -------
    str
        A remedy, to be put after a semicolon.
    """
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


def is_transient(error: psycopg.Error) -> bool:
    """Return whether the same work may succeed a moment later."""
    return error.sqlstate is None or error.sqlstate.startswith(_TRANSIENT)


def explain(error: psycopg.Error, server: EmbeddedServer | None, *, is_embedded: bool) -> str:
    """Return cause and remedy, without the details of PostgreSQL's message: they may quote values.

    Parameters
    ----------
    error : psycopg.Error
        What ended the work.
    server : EmbeddedServer or None
        voxtier's own server, where it is used and runs.
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
    if message is None or is_transient(error):  # the connection was lost, or never made
        cause = server.explain_failure() if server is not None else ""
        if cause:
            return cause
        if message is None and type(error) is psycopg.OperationalError:
            message = first_line(error)
    remedy = "run `voxtier doctor`" if is_embedded else "check the server, --dsn, VOXTIER_DSN"
    if is_embedded and "PGSERVICE" in os.environ and "service" in (message or ""):
        remedy = "unset PGSERVICE: libpq looks it up even for this server, which needs none"
    return f"{message or type(error).__name__}; {remedy}"
