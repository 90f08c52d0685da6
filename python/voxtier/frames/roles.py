"""What a database role needs to read or to build the index, as statements for its owner to run.

The owner of the schema, who opens the index first, needs no more. Nothing here is run by voxtier itself.
"""

from __future__ import annotations

import re
from typing import Literal

from voxtier.errors import ConfigError

Duty = Literal["reader", "builder"]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def checked_identifier(name: str) -> str:
    """Return a name quoted for SQL.

    Raises
    ------
    ConfigError
        It is not one of letters, digits and underscores, of at most 63.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} is no name for SQL: 1 to 63 letters, digits and underscores, no digit first"
        )
    return f'"{name}"'


def grants(role: str, duty: Duty) -> list[str]:
    """Return the statements that give a role its rights.

    Parameters
    ----------
    role : str
        An existing role.
    duty : {"reader", "builder"}
        A reader finds frames and counts accesses; a builder also writes and prunes rows.
    """
    name = checked_identifier(role)
    statements = [
        f"GRANT USAGE ON SCHEMA voxtier TO {name};",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA voxtier TO {name};",
        f"GRANT INSERT, UPDATE ON voxtier.file_stats TO {name};",
    ]
    if duty == "builder":
        statements += [
            f"GRANT INSERT ON voxtier.source TO {name};",
            f"GRANT INSERT, UPDATE, DELETE ON voxtier.file TO {name};",
            f"GRANT DELETE ON voxtier.file_stats TO {name};",
        ]
    return statements
