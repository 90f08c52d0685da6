"""Who may change the schema, and in whose name: what a migration makes belongs to the owner of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from voxtier.errors import ConfigError

if TYPE_CHECKING:
    from voxtier.postgres.connection import Connection

__all__ = ["act_as_owner", "check_rights"]

# One table stands for all, and for the functions: who made it made them. From PostgreSQL 16 on not every
# member of a role may act as it.
_RIGHTS = """
SELECT relowner::regrole::text, nspowner::regrole::text, quote_ident(current_user),
    pg_has_role(relowner,
        CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END),
    has_schema_privilege(relowner, n.oid, 'CREATE'), pg_is_in_recovery(),
    current_setting('transaction_read_only')::bool,
    has_database_privilege(relowner, current_database(), 'TEMPORARY'), quote_ident(current_database())
FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
WHERE nspname = 'voxtier' AND relname = 'schema_version'
"""
# What others own of the things of these names: the statement that changes it, the owner, and whether this
# role may run it.
_OF_OTHERS = """
WITH owner AS (
    SELECT relowner AS oid FROM pg_class WHERE oid = 'voxtier.schema_version'::regclass
), made AS (
    SELECT CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind, relname AS name, relowner AS owned_by,
        '' AS arguments, relnamespace AS space
    FROM pg_class WHERE relkind IN ('r', 'p', 'v')
    UNION ALL SELECT 'FUNCTION', proname, proowner,
        format('(%%s)', pg_get_function_identity_arguments(oid)), pronamespace FROM pg_proc
    UNION ALL SELECT 'TYPE', typname, typowner, '', typnamespace FROM pg_type WHERE typtype = 'e'
)
SELECT format('ALTER %%s voxtier.%%I%%s OWNER TO %%s;', kind, name, arguments, owner.oid::regrole),
    owned_by::regrole::text, pg_has_role(owned_by, 'USAGE')
FROM made, owner
WHERE space = 'voxtier'::regnamespace AND owned_by <> owner.oid AND name = ANY(%s::text[])
ORDER BY kind, name, arguments
"""


def check_rights(connection: Connection, version: int, newest: int) -> None:
    """Refuse to bring a schema up to date that this role or server may not change.

    Parameters
    ----------
    connection : Connection
        Outside a transaction.
    version, newest : int
        What the schema has, and what it is to have.

    Raises
    ------
    ConfigError
        Says why, and whose task it is.
    """
    row = connection.execute(_RIGHTS).fetchone()
    assert row is not None
    owner, schema_owner, role, is_owner, may_create, is_standby, is_read_only, may_use_temp, database = row
    if is_owner and may_create and may_use_temp and not is_read_only:
        return
    task = f"run any command of this version as {owner} on the primary server first"
    if is_standby:
        obstacle = "this server is a standby"
    elif is_read_only:
        obstacle = "this role's sessions are read-only"
    elif is_owner and may_create:
        obstacle = f"{owner}, who owns its tables, may not make temporary ones"
        task = f"run GRANT TEMPORARY ON DATABASE {database} TO {owner}; as the owner of the database first"
    elif is_owner:
        obstacle = f"{owner}, who owns its tables, may not create others"
        task = f"run GRANT CREATE ON SCHEMA voxtier TO {owner}; as {schema_owner} first"
    else:
        obstacle = "this role does not own it"
        # No grant lets a role change the tables of another.
        task += f", or ALTER its tables and functions OWNER TO {role}"
    raise ConfigError(
        f"the index has schema version {version}, this voxtier needs {newest}, and {obstacle}: {task}"
    )


def act_as_owner(connection: Connection, names: Iterable[str]) -> None:
    """Change the schema from here to the end of the transaction as its owner, who is to own all of it.

    What a member of the owner made of it, as earlier versions let her, becomes the owner's.

    Parameters
    ----------
    connection : Connection
        In a transaction, of a role that `check_rights` lets pass.
    names : iterable of str
        What migrations make in the schema.

    Raises
    ------
    ConfigError
        Some of it belongs to a role for which this one may not act.
    """
    found = connection.execute(_OF_OTHERS, (list(names),)).fetchall()
    if not all(may_act for _, _, may_act in found):
        owners = ", ".join(sorted({owner for _, owner, _ in found}))
        raise ConfigError(
            f"parts of the index belong to {owners}, who upgraded it once: as a superuser or {owners}, run "
            + " ".join(statement for statement, _, _ in found)
        )
    for statement, _, _ in found:
        connection.execute(statement.encode())
    row = connection.execute(_RIGHTS).fetchone()
    assert row is not None
    if row[0] != row[2]:
        connection.execute(f"SET LOCAL ROLE {row[0]}".encode())
