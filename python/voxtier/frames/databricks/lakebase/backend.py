"""What all methods of the Lakebase interface stand on: the database, and for whose groups it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from voxtier import _core
from voxtier._core import path_fault
from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.table_names import TableName, check_identifier, local_path
from voxtier.frames.store.statements import ADD_SOURCE
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.database import Connection

T = TypeVar("T")
Groups = Sequence[str] | None

FRAMES_TABLE = "dicom_frames"


class Backend:
    """A frame index, its name, and questions to it.

    Parameters
    ----------
    store : FrameStore
        The index.
    uc_table_name : str or None
        ``catalog.schema.table`` that methods mean when they are not told.
    """

    def __init__(self, store: FrameStore, uc_table_name: str | None) -> None:
        self.store = store
        self.uc_table_name = str(TableName.parse(uc_table_name)) if uc_table_name else None

    def source(self, uc_table_name: str | None, table: str = FRAMES_TABLE) -> str:
        """Return the source that a table name means; another `table` than the usual is a source of its own.

        Raises
        ------
        ConfigError
            There is no name, or a part of one is no plain identifier.
        """
        name = uc_table_name or self.uc_table_name
        if not name:
            raise ConfigError("name the catalogue: uc_table_name='catalog.schema.table'")
        source = str(TableName.parse(name))
        return source if check_identifier(table) == FRAMES_TABLE else f"{source}:{table}"

    def run(self, work: Callable[[Connection], T], groups: Groups = None) -> T:
        """Do work in one transaction for a user who is in `groups`; None: as the database role itself."""

        def in_transaction(connection: Connection) -> T:
            with connection.transaction():
                if groups is not None:
                    connection.execute(statements.SET_GROUPS.encode(), (checked_groups(groups),))
                return work(connection)

        return self.store.database.run(in_transaction)

    def rows(self, query: str, parameters: Any, groups: Groups = None) -> list[Any]:
        """Ask one question."""
        return self.run(lambda connection: connection.execute(query.encode(), parameters).fetchall(), groups)

    def count(self, query: str, parameters: Any, groups: Groups = None) -> int:
        """Change rows; return how many."""
        return self.run(lambda connection: connection.execute(query.encode(), parameters).rowcount, groups)


def add_source(connection: Connection, source: str) -> None:
    """Make sure that a source has a number."""
    connection.execute(ADD_SOURCE.encode(), {"name": source})


def keys_of(source: str, paths: Iterable[str]) -> list[UUID]:
    """Return the keys of files by their paths, without ``dbfs:``."""
    return [UUID(bytes=_core.file_key(source, local_path(path))) for path in paths]


def checked_path(path: str) -> str:
    """Return a path as the index knows it, or refuse one that it cannot hold."""
    path = local_path(path)
    if fault := path_fault(path):
        raise ConfigError(f"{path[:200]!r} cannot be indexed: {fault}")
    return path


def checked_groups(groups: Iterable[str]) -> list[str]:
    """Return names of groups as a list; any text may be a name, commas and braces too."""
    if isinstance(groups, str):
        raise ConfigError(f"groups={groups!r}: give a list of names")
    return [group for group in groups if "\0" not in group]


def allowed(groups: Sequence[str] | None) -> list[str] | None:
    """Return the groups that may see a row; None is everyone.

    Raises
    ------
    ConfigError
        The list is empty: nobody could see the row, and most would mean everyone.
    """
    if groups is None:
        return None
    if not (named := checked_groups(groups)):
        raise ConfigError(
            "allowed_groups=[] would hide the rows from everyone: name a group, or None for all"
        )
    return named
