"""The base of all methods of the Lakebase interface: transactions, sources and checks of arguments."""

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
from voxtier.postgres.connection import Connection

T = TypeVar("T")
Groups = Sequence[str] | None

FRAMES_TABLE = "dicom_frames"


class Backend:
    """A frame index, and statements to it in the name of a user's groups.

    Parameters
    ----------
    store : FrameStore
        The index.
    uc_table_name : str or None
        ``catalog.schema.table`` for methods that are given none.
    """

    def __init__(self, store: FrameStore, uc_table_name: str | None) -> None:
        self.store = store
        self.uc_table_name = str(TableName.parse(uc_table_name)) if uc_table_name else None

    def source(self, uc_table_name: str | None, table: str = FRAMES_TABLE) -> str:
        """Return the source of a table name; a `table` other than ``dicom_frames`` is a source of its own.

        Raises
        ------
        ConfigError
            There is no name, or one of its parts is no plain identifier.
        """
        name = uc_table_name or self.uc_table_name
        if not name:
            raise ConfigError("name the catalogue: uc_table_name='catalog.schema.table'")
        source = str(TableName.parse(name))
        return source if check_identifier(table) == FRAMES_TABLE else f"{source}:{table}"

    def run(self, work: Callable[[Connection], T], groups: Groups = None) -> T:
        """Do work in one transaction.

        Parameters
        ----------
        work : callable
            Takes the connection.
        groups : sequence of str or None
            Groups of the user for whom it is done; None: as the database role.

        Returns
        -------
        object
            What `work` returns.
        """

        def in_transaction(connection: Connection) -> T:
            with connection.transaction():
                if groups is not None:
                    connection.execute(statements.SET_GROUPS.encode(), (_check_groups(groups),))
                return work(connection)

        return self.store.database.run(in_transaction)

    def rows(self, query: str, parameters: Any, groups: Groups = None) -> list[Any]:
        """Execute one query.

        Parameters
        ----------
        query : str
            SQL with placeholders.
        parameters : sequence or mapping
            Their values.
        groups : sequence of str or None
            As for `run`.

        Returns
        -------
        list of tuple
            Its rows.
        """
        return self.run(lambda connection: connection.execute(query.encode(), parameters).fetchall(), groups)

    def count(self, query: str, parameters: Any, groups: Groups = None) -> int:
        """Execute one statement that changes rows.

        Parameters
        ----------
        query : str
            SQL with placeholders.
        parameters : sequence or mapping
            Their values.
        groups : sequence of str or None
            As for `run`.

        Returns
        -------
        int
            Number of rows changed.
        """
        return self.run(lambda connection: connection.execute(query.encode(), parameters).rowcount, groups)


def add_source(connection: Connection, source: str) -> None:
    """Insert a source unless it exists."""
    connection.execute(ADD_SOURCE.encode(), {"name": source})


def keys_of(source: str, paths: Iterable[str]) -> list[UUID]:
    """Return the keys of files by their paths; a prefix ``dbfs:`` is dropped."""
    return [UUID(bytes=_core.file_key(source, local_path(path))) for path in paths]


def check_path(path: str) -> str:
    """Return a path without ``dbfs:``, or raise ConfigError for one that cannot be indexed."""
    path = local_path(path)
    if fault := path_fault(path):
        raise ConfigError(f"{path[:200]!r} cannot be indexed: {fault}")
    return path


def _check_groups(groups: Iterable[str]) -> list[str]:
    """Return names of groups as a list; any text is a name, with commas and braces too, but not with NUL."""
    if isinstance(groups, str):
        raise ConfigError(f"groups={groups!r}: give a list of names")
    return [group for group in groups if "\0" not in group]


def check_allowed_groups(groups: Sequence[str] | None) -> list[str] | None:
    """Return the groups that may see a row; None for everyone.

    Raises
    ------
    ConfigError
        The list is empty: nobody could see the row, although most callers mean everyone.
    """
    if groups is None:
        return None
    if not (names := _check_groups(groups)):
        raise ConfigError(
            "allowed_groups=[] would hide the rows from everyone: name a group, or None for all"
        )
    return names
