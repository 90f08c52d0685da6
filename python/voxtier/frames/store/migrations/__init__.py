"""The schema of the frame index: numbered SQL files, each applied once, together with its number."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from voxtier.errors import ConfigError

if TYPE_CHECKING:
    from voxtier.postgres.connection import Connection

__all__ = ["current_version", "migrate", "scripts"]

_LOCK = 0x766F_7874_6965_72  # "voxtier": one process migrates, the others wait
_VERSIONS = """
CREATE TABLE IF NOT EXISTS voxtier.schema_version (
    version int PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

# One table stands for all, and for the functions: who made it made them.
_RIGHTS = """
SELECT CASE WHEN owns_table THEN nspowner ELSE relowner END::regrole::text, quote_ident(current_user),
    owns_table, has_schema_privilege(nspname, 'CREATE'), pg_is_in_recovery(),
    current_setting('transaction_read_only')::bool
FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid,
    LATERAL (SELECT pg_has_role(relowner, 'USAGE') AS owns_table) AS asked
WHERE nspname = 'voxtier' AND relname = 'schema_version'
"""


def scripts() -> list[tuple[int, str, str]]:
    """Return number, name and text of every migration, in order."""
    found = [file for file in files(__package__).iterdir() if file.name.endswith(".sql")]
    numbered = [(int(file.name.partition("_")[0]), file.name, file) for file in found]
    return [(number, name, file.read_text(encoding="utf-8")) for number, name, file in sorted(numbered)]


def current_version(connection: Connection) -> int:
    """Return the number of the last migration that this database has, 0 for none."""
    with connection.cursor() as cursor:
        if cursor.execute("SELECT to_regclass('voxtier.schema_version')").fetchone() == (None,):
            return 0
        row = cursor.execute("SELECT coalesce(max(version), 0) FROM voxtier.schema_version").fetchone()
        return int(row[0]) if row else 0


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema; does nothing when it has it, and then needs no rights.

    Raises
    ------
    ConfigError
        The database is newer than this package; or it is older, and this role or server may not change it.
    """
    newest = max(number for number, _, _ in scripts())
    version = current_version(connection)
    if 0 < version < newest:
        _check_rights(connection, version, newest)
    if version < newest:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            # Not IF NOT EXISTS, which asks for the right to create it although it exists.
            if connection.execute("SELECT to_regnamespace('voxtier')").fetchone() == (None,):
                connection.execute("CREATE SCHEMA voxtier")
            connection.execute(_VERSIONS)
            version = current_version(connection)
            for number, name, text in scripts():
                if number > version:
                    connection.execute(text.encode())
                    connection.execute(
                        "INSERT INTO voxtier.schema_version (version, name) VALUES (%s, %s)", (number, name)
                    )
    if version > newest:
        raise ConfigError(
            f"the database has schema version {version}, this voxtier knows {newest}: upgrade voxtier"
        )


def _check_rights(connection: Connection, version: int, newest: int) -> None:
    row = connection.execute(_RIGHTS).fetchone()
    assert row is not None
    owner, role, owns_tables, may_create, is_standby, is_read_only = row
    if owns_tables and may_create and not is_read_only:
        return
    obstacle = (
        "this server is a standby"
        if is_standby
        else "this role's sessions are read-only"
        if is_read_only
        else "this role does not own it"
    )
    # No grant lets a role change the tables of another.
    remedy = "" if owns_tables or is_read_only else f", or ALTER its tables and functions OWNER TO {role}"
    raise ConfigError(
        f"the index has schema version {version}, this voxtier needs {newest}, and {obstacle}: run any "
        f"command of this version as {owner} on the primary server first{remedy}"
    )
