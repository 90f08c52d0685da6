"""Names of tables in a catalogue, checked before they become identifiers of SQL."""

from __future__ import annotations

import re
from typing import NamedTuple

from voxtier.errors import ConfigError

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


class TableName(NamedTuple):
    """``catalog.schema.table``: database, schema and table; the first two may be missing."""

    catalog: str | None
    schema: str | None
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Split a name into its one to three parts, which may be quoted by backquotes.

        Raises
        ------
        ConfigError
            A part is not a letter or ``_`` and then up to 62 letters, digits or ``_``.
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
    """Return the name if it is a plain identifier, or raise ConfigError."""
    if not _PART.fullmatch(name):
        raise ConfigError(
            f"{name[:70]!r} is no identifier: use a letter or _, then up to 62 letters, digits or _ (ASCII)"
        )
    return name


def local_path(path: str) -> str:
    """Return a path of a catalogue without its prefix ``dbfs:``, as the file system names it."""
    return path.removeprefix("dbfs:")
