"""What a database role lacks when PostgreSQL refuses its work, and the SQL or the setting that helps."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from voxtier.postgres.connection import Connection

_CIRCUMSTANCES = """
SELECT quote_ident(current_user), quote_ident(current_database()), pg_is_in_recovery(),
    to_regnamespace('voxtier') IS NOT NULL,
    coalesce(has_schema_privilege(to_regnamespace('voxtier'), 'USAGE'), false),
    has_database_privilege(current_database(), 'TEMPORARY')
"""


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
