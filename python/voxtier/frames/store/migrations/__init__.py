"""The schema of the frame index: numbered SQL files, each applied once, together with its number."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

from voxtier.errors import ConfigError
from voxtier.frames.store.migrations.respelling import respell
from voxtier.frames.store.migrations.rights import act_as_owner, check_rights

if TYPE_CHECKING:
    from voxtier.postgres.connection import Connection

__all__ = ["current_version", "migrate", "scripts"]

_MADE = re.compile(r"^CREATE (?:OR REPLACE )?(?:TABLE|VIEW|TYPE|FUNCTION) voxtier\.(\w+)", re.MULTILINE)
_LOCK = 0x766F_7874_6965_72  # "voxtier": one process migrates, the others wait
_VERSIONS = """
CREATE TABLE IF NOT EXISTS voxtier.schema_version (
    version int PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
# By the tables of the catalog: to_regclass says what the session remembers, and behind the wait for the lock
# that may be older than what the one before has made.
_HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'voxtier')"
_HAS_VERSIONS = """
SELECT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE nspname = 'voxtier' AND relname = 'schema_version')
"""

# As pg_dump does: what is meant for the questions of a role would cut off each attempt at a large index.
_TAKE_ALL_TIME = """
SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')
"""

# Before the first of these that is still to run, paths get one spelling: 9 would set rules in others beside
# those that mean the same.
_RESPELLED = (9, 10)


def scripts() -> list[tuple[int, str, str]]:
    """Return number, name and text of every migration, in order."""
    found = [file for file in files(__package__).iterdir() if file.name.endswith(".sql")]
    numbered = [(int(file.name.partition("_")[0]), file.name, file) for file in found]
    return [(number, name, file.read_text(encoding="utf-8")) for number, name, file in sorted(numbered)]


def current_version(connection: Connection) -> int:
    """Return the number of the last migration that this database has, 0 for none."""
    with connection.cursor() as cursor:
        if cursor.execute(_HAS_VERSIONS).fetchone() == (False,):
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
        check_rights(connection, version, newest)
    if version < newest:
        with connection.transaction():
            connection.execute(_TAKE_ALL_TIME)
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version = current_version(connection)
            if version == 0:
                # Not IF NOT EXISTS, which asks for the right to create it although it exists.
                if connection.execute(_HAS_SCHEMA).fetchone() == (False,):
                    connection.execute("CREATE SCHEMA voxtier")
                connection.execute(_VERSIONS)
            elif version < newest:
                act_as_owner(connection, {made for _, _, text in scripts() for made in _MADE.findall(text)})
            respelled = next((number for number in _RESPELLED if number > version), None)
            for number, name, text in scripts():
                if number > version:
                    if number == respelled:
                        respell(connection)
                    connection.execute(text.encode())
                    connection.execute(
                        "INSERT INTO voxtier.schema_version (version, name) VALUES (%s, %s)", (number, name)
                    )
    if version > newest:
        raise ConfigError(
            f"the database has schema version {version}, this voxtier knows {newest}: upgrade voxtier"
        )
