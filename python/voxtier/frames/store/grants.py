"""The rights that a database role needs to read or to build the index, as statements.

The owner of the schema runs them; voxtier itself does not. The first to open the index becomes the owner and
needs the right to create the schema.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from voxtier.errors import ConfigError

Duty = Literal["reader", "builder"]

# Names of people and services, as Databricks makes roles of them, beside plain identifiers.
_ROLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}")


def checked_identifier(name: str) -> str:
    """Return the name of a role or database quoted for SQL.

    Raises
    ------
    ConfigError
        The name does not consist of 1 to 63 letters, digits and ``_.@+-``.
    """
    if not _ROLE.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} is not a name for SQL: use 1 to 63 ASCII letters, digits, _.@+-")
    return f'"{name}"'


def grants(role: str, duty: Duty) -> list[str]:
    """Return the statements that give a role its rights; they can be run again.

    Parameters
    ----------
    role : str
        An existing role.
    duty : {"reader", "builder"}
        A reader finds frames (of its groups, where rows have any) and counts accesses; a builder also
        writes and prunes rows of all groups.
    """
    name = checked_identifier(role)
    statements = [
        f"GRANT USAGE ON SCHEMA voxtier TO {name};",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO {name};",
        f"GRANT INSERT, UPDATE ON voxtier.file_stats TO {name};",
        f"GRANT INSERT ON voxtier.metric TO {name};",
    ]
    if duty == "builder":
        statements += [
            f"GRANT INSERT ON voxtier.source TO {name};",
            f"GRANT INSERT, UPDATE, DELETE ON voxtier.file, voxtier.claim, voxtier.claimed_frame TO {name};",
            f"GRANT INSERT, UPDATE, DELETE ON voxtier.slide_map TO {name};",
            f"GRANT DELETE ON voxtier.file_stats TO {name};",
        ]
        # A policy for each builder, by its name: PostgreSQL has no way to add a role to one.
        policy, old = _policies(role)
        for table in ("file", "claim"):
            if old is not None:
                statements.append(_DROP_OLD_POLICY.format(table=table, policy=old, role=role))
            statements += [
                f"DROP POLICY IF EXISTS {policy} ON voxtier.{table};",
                f"CREATE POLICY {policy} ON voxtier.{table} TO {name} USING (true) WITH CHECK (true);",
            ]
    return statements


def search_grants(role: str, *, may_fill: bool) -> list[str]:
    """Return the statements that let a role search, or fill the search index too; the owner runs them."""
    name = checked_identifier(role)
    rights = "SELECT, INSERT, UPDATE, DELETE" if may_fill else "SELECT"
    return [
        f"GRANT USAGE ON SCHEMA voxtier_search TO {name};",
        f"GRANT {rights} ON ALL TABLES IN SCHEMA voxtier_search TO {name};",
    ]


# Under its old name a policy may be of another role.
_DROP_OLD_POLICY = """DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_policies WHERE schemaname = 'voxtier' AND tablename = '{table}'
        AND policyname = '{policy}' AND roles = ARRAY['{role}'::name]) THEN
        DROP POLICY "{policy}" ON voxtier.{table};
    END IF;
END $$;"""


def _policies(role: str) -> tuple[str, str | None]:
    """Return the quoted name of a builder's policy, and the bare one of earlier versions if that was another.

    A name that is too long for PostgreSQL was cut, so that long roles could share it.
    """
    name = f"all_for_{role}"
    if len(name) <= 63:
        return checked_identifier(name), None
    digest = hashlib.sha256(role.encode()).hexdigest()[:12]
    return checked_identifier(f"{name[:50]}_{digest}"), name[:63]


def grant_script(owner: str, builder: str, reader: str, *, database: str) -> str:
    """Return the script for three existing roles that create the schema, index files and read the index.

    Parameters
    ----------
    owner, builder, reader : str
        The roles. The owner opens the index once, which creates the schema, before the rest can be run.
    database : str
        Name of the database.

    Returns
    -------
    str
        SQL with comments.
    """
    place, names = (
        checked_identifier(database),
        [checked_identifier(role) for role in (owner, builder, reader)],
    )
    return "\n".join(
        (
            "-- as the owner of the database",
            f"GRANT CREATE ON DATABASE {place} TO {names[0]};",
            f"GRANT TEMPORARY ON DATABASE {place} TO {', '.join(names[:2])};",
            f"GRANT CONNECT ON DATABASE {place} TO {', '.join(names)};",
            f"-- as {owner}, after any command of voxtier has made the schema; again after an upgrade",
            *grants(builder, "builder"),
            *grants(reader, "reader"),
            "",
        )
    )
