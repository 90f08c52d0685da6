"""Names of tables in a catalogue, checked before they become identifiers of SQL."""

from __future__ import annotations

import re
from typing import NamedTuple

from voxtier.errors import ConfigError

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", re.ASCII)


class TableName(NamedTuple):
    """``catalog.schema.table``: database, schema and table; the first two may be missing."""

    catalog: str | None
    schema: str | None
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Split a name into its one to three parts, each as it is or in backquotes.

        Raises
        ------
        ConfigError
            It is no text, or a part is not a letter or ``_`` and then up to 62 letters, digits, ``_`` or
            ``-``.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{text!r} is no table name: write catalog.schema.table")
        parts = [check_identifier(part) for part in text.split(".")]
        if len(parts) > 3:
            raise ConfigError(f"{text[:200]!r} is no table name: write catalog.schema.table")
        missing: list[str | None] = [None] * (3 - len(parts))
        catalog, schema = (missing + list(parts))[:2]
        return cls(catalog, schema, parts[-1])

    def __str__(self) -> str:
        return ".".join(part for part in self if part)


def parse_uc_table_name(uc_table_name: str) -> tuple[str, str, str]:
    """Split ``catalog.schema.table`` into its three parts.

    Raises
    ------
    ConfigError
        It has not three parts, or one that is no identifier.
    """
    stripped = uc_table_name.strip() if isinstance(uc_table_name, str) else uc_table_name
    catalog, schema, table = TableName.parse(stripped)
    if catalog is None or schema is None:
        raise ConfigError(f"{uc_table_name[:200]!r} is no full table name: write catalog.schema.table")
    return catalog, schema, table


def check_identifier(name: str) -> str:
    """Return a plain identifier without its backquotes, or raise ConfigError."""
    quoted = isinstance(name, str) and len(name) > 2 and name.startswith("`") and name.endswith("`")
    bare = name[1:-1] if quoted else name
    if not isinstance(bare, str) or not _PART.fullmatch(bare):
        raise ConfigError(
            f"{str(name)[:70]!r} is no identifier: use a letter or _, then up to 62 letters, digits, _ or - "
            "(ASCII)"
        )
    return bare
