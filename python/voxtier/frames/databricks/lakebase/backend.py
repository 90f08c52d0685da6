"""The base of all methods of the Lakebase interface: transactions, sources and checks of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, overload
from uuid import UUID

from voxtier import _core
from voxtier._core import local_path, path_fault
from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.frames.databricks.table_names import TableName, check_identifier
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.sources.address import is_address, prefix_as_indexed
from voxtier.frames.store.groups import check_groups, is_group_name
from voxtier.frames.store.statements import ADD_SOURCE, SET_GROUPS, lock_groups
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.connection import Connection
from voxtier.postgres.refusals import is_fault_of_arguments
from voxtier.system.text import first_line

T = TypeVar("T")
Groups = Sequence[str] | None

FRAMES_TABLE = "dicom_frames"
INSTANCES_TABLE = "instance_paths"


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
        self._sources: dict[str, str] = {}
        self.uc_table_name = str(TableName.parse(uc_table_name)) if uc_table_name else None

    def source(
        self, uc_table_name: str | None, table: str = FRAMES_TABLE, *, is_written: bool = False
    ) -> str:
        """Return the source of a table; a `table` of another name than the published two has its own.

        A source that exists is meant in whatever case its name is written.

        Parameters
        ----------
        uc_table_name : str or None
            ``catalog.schema.table``; None: that of the constructor.
        table : str
            Name of the table of rows.
        is_written : bool
            Rows or rules of it are about to be written: it is added where there is none, so that no other
            spelling of it can come up.

        Returns
        -------
        str
            Name of the source.

        Raises
        ------
        ConfigError
            There is no name, one of its parts is no plain identifier, or several sources differ from it by
            case alone.
        """
        name = self.uc_table_name if uc_table_name is None or uc_table_name == "" else uc_table_name
        if not name:
            raise ConfigError(
                "name the catalogue: uc_table_name='catalog.schema.table', or DATABRICKS_PIXELS_TABLE"
            )
        source, table = str(TableName.parse(name)), check_identifier(table)
        if table not in (FRAMES_TABLE, INSTANCES_TABLE):
            source = f"{source}:{table}"
        if source not in self._sources:
            find = self.store.add_source_of_table if is_written else self.store.source_of_table
            found = find(source)
            if found is None:
                return source
            self._sources[source] = found
        return self._sources[source]

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
                if names is not None:
                    connection.execute(SET_GROUPS.encode(), (names,))
                return work(connection)

        names = None if groups is None else check_groups(groups)
        return self.store.database.run(in_transaction)

    def rows(self, query: Any, parameters: Any, groups: Groups = None) -> list[Any]:
        """Execute one query.

        Parameters
        ----------
        query : str, bytes or psycopg.sql.Composable
            SQL with placeholders.
        parameters : sequence or mapping
            Their values.
        groups : sequence of str or None
            As for `run`.

        Returns
        -------
        list of tuple
            Its rows.

        Raises
        ------
        ConfigError
            It has none, as a statement that changes rows, and is undone; or it does not fit its parameters.
        """
        sql = _sql(query)

        def work(connection: Connection) -> list[Any]:
            cursor = _execute(connection, sql, parameters)
            if cursor.description is None:
                raise ConfigError(
                    f"the query returns no rows ({cursor.statusmessage}), and nothing is changed: "
                    "execute_query() takes such statements"
                )
            found: list[Any] = cursor.fetchall()
            return found

        return self.run(work, groups)

    def count(self, query: Any, parameters: Any, groups: Groups = None) -> int:
        """Execute one statement that changes rows.

        Parameters
        ----------
        query : str, bytes or psycopg.sql.Composable
            SQL with placeholders.
        parameters : sequence or mapping
            Their values.
        groups : sequence of str or None
            As for `run`.

        Returns
        -------
        int
            Number of rows changed.

        Raises
        ------
        ConfigError
            It does not fit its parameters.
        """
        sql = _sql(query)

        def work(connection: Connection) -> int:
            changed: int = _execute(connection, sql, parameters).rowcount
            return changed

        return self.run(work, groups)


def add_source(connection: Connection, source: str, *, sets_groups: bool) -> None:
    """Insert a source unless it exists, for writers of rows or of groups.

    Parameters
    ----------
    connection : Connection
        In a transaction.
    source : str
        Name of the source.
    sets_groups : bool
        See `lock_groups`.
    """
    connection.execute(lock_groups(source, exclusive=sets_groups).encode())
    connection.execute(ADD_SOURCE.encode(), {"name": source})


def uc_table_of(source: str) -> str:
    """Return the ``catalog.schema.table`` that a source is made of, without the name of another `table`."""
    return source.partition(":")[0]


def keys_of(source: str, paths: Iterable[str]) -> list[UUID]:
    """Return the keys of files by their paths, in the form of `check_path`."""
    return [UUID(bytes=_core.file_key(source, path)) for path in paths]


def check_path(path: str) -> str:
    """Return the path under which a file is indexed: see `absolute`.

    Raises
    ------
    ConfigError
        It cannot be indexed.
    """
    path = absolute(_check_type(path, "path"))
    if fault := path_fault(path):
        raise ConfigError(f"{path[:200]!r} cannot be indexed: {fault}")
    return path


def check_paths(paths: Iterable[str], what: str = "filenames") -> list[str]:
    """Return the paths under which files are indexed, or raise ConfigError for what is no list of text."""
    return list(map(absolute, check_texts(paths, what)))


def check_texts(paths: Iterable[str], what: str) -> list[str]:
    """Return paths as they were given, or raise ConfigError for what is no list of text."""
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Iterable):
        raise ConfigError(f"{what}={paths!r}: give a list of paths")
    return [_check_type(path, what) for path in paths]


def check_prefix(prefix: object) -> str:
    """Return a beginning of paths in the spelling of the index: see `prefix_as_indexed`.

    Raises
    ------
    ConfigError
        No file that is indexed has a path that begins so.
    """
    text = local_path(check_text(prefix, "path_prefix"))
    if fault := path_fault(text) if text else None:
        raise ConfigError(f"path_prefix={text[:200]!r}: {fault}")
    if is_address(text):
        parts = text.partition("://")[2].split("/")
        if "" in parts[:-1] or "." in parts or ".." in parts:
            raise ConfigError(
                f"path_prefix={prefix!r}: no object is indexed whose key has //, /./ or /../: write one slash"
            )
    elif text and text[0] != "/":
        raise ConfigError(
            f"path_prefix={prefix!r}: give an absolute path, or an address such as s3://bucket/"
        )
    elif text.rpartition("/")[2] in (".", ".."):
        raise ConfigError(f"path_prefix={prefix!r}: end the folder with a slash")
    return prefix_as_indexed(text)


@overload
def check_text(value: object, what: str) -> str: ...
@overload
def check_text(value: object, what: str, *, optional: Literal[True]) -> str | None: ...
def check_text(value: object, what: str, *, optional: bool = False) -> str | None:
    """Return text that the database can hold.

    Parameters
    ----------
    value : object
        What the caller gave.
    what : str
        Name of the argument, for the message.
    optional : bool
        Whether None is allowed.

    Returns
    -------
    str or None
        `value`.

    Raises
    ------
    ConfigError
        It is no text, or holds a NUL.
    """
    if value is None and optional:
        return None
    text = _check_type(value, what)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(f"{what}={text!r}: give text that is UTF-8 without NUL")
    return text


def _check_type(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what}={value!r}: give text")
    return value


def check_limit(limit: object) -> int:
    """Return a number of rows, at least 0 and at most 2**31 - 1, or raise ConfigError."""
    return min(max(whole_number("limit", limit), 0), 2**31 - 1)


def check_allowed_groups(groups: Groups) -> list[str] | None:
    """Return the groups that may see a row; None, as for an empty list, for those of the rules, or everyone.

    Raises
    ------
    ConfigError
        It is no list of names.
    """
    if groups is None:
        return None
    given = list(groups) if isinstance(groups, Iterator) else groups  # it is gone through twice
    names = check_groups(given)
    if wrong := [name for name in given if not is_group_name(name)]:
        raise ConfigError(f"allowed_groups holds {wrong[0]!r}, which is no name of a group")
    return names or None


def _sql(query: Any) -> Any:
    """Return SQL as psycopg takes it: text as bytes, a composed query as it is."""
    if isinstance(query, str):
        return check_text(query, "query").encode()
    if isinstance(query, bytes) or hasattr(query, "as_bytes"):
        return query
    raise ConfigError(f"query is {type(query).__name__}: give text or a query of psycopg.sql")


def _execute(connection: Connection, sql: Any, parameters: Any) -> Any:
    """Return the cursor of a statement; what does not get as far as the server is an error of the caller."""
    try:
        return connection.execute(sql, parameters)
    except Exception as error:
        if not is_fault_of_arguments(error):
            raise
        raise ConfigError(f"the query does not fit its parameters: {first_line(error)}") from error
