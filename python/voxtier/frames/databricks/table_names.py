"""Names that become identifiers of SQL: checked against one pattern before anything is quoted."""

from __future__ import annotations

import re
from typing import NamedTuple

from voxtier.errors import ConfigError

__all__ = ["TableName", "local_path"]

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


class TableName(NamedTuple):
    """``catalog.schema.table``: the catalog is a database, the schema a schema; both may be missing."""

    catalog: str | None
    schema: str | None
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Take a name of one to three parts apart; parts may stand in backquotes.

        Raises
        ------
        ConfigError
            A part is no plain identifier: a letter or ``_``, then up to 62 letters, digits or ``_``.
        """
        parts = [part.removeprefix("`").removesuffix("`") for part in text.split(".")]
        for part in parts:
            check_identifier(part)
        if len(parts) > 3:
            raise ConfigError(f"{text[:200]!r} is no table name: write catalog.schema.table")
        missing: list[str | None] = [None] * (3 - len(parts))
        catalog, schema = (missing + list(parts))[:2]
        return cls(catalog, schema, parts[-1])

    def __str__(self) -> str:
        return ".".join(part for part in self if part)


def check_identifier(name: str) -> str:
    """Return a name that is a plain identifier, and refuse every other."""
    if not _PART.fullmatch(name):
        raise ConfigError(
            f"{name[:70]!r} is no identifier: a letter or _, then up to 62 letters, digits or _ (ASCII)"
        )
    return name


def local_path(path: str) -> str:
    """Return a path of a catalogue as the file system knows it: without ``dbfs:``."""
    return path.removeprefix("dbfs:")
