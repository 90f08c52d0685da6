"""The index in the name of a user's groups, as readers ask it; and the groups of files that others name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from voxtier._core import file_key, path_fault
from voxtier.errors import ConfigError
from voxtier.frames.store import statements
from voxtier.frames.store.adapters import Key, Keys, fetch
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.connection import Connection


class GroupStore(FrameStore):
    """A `FrameStore` that asks for the members of some groups, over the connections of another one.

    Row security lets those rows through that the groups may see. A role that it does not bind, such as the
    owner, gets all rows: ask `may_read` before anything of a file is handed out.

    Parameters
    ----------
    store : FrameStore
        The index; closing either closes both.
    groups : iterable of str
        Names of the groups.

    Raises
    ------
    ConfigError
        `groups` is no list of text.
    """

    def __init__(self, store: FrameStore, groups: Iterable[str]) -> None:
        super().__init__(store.database)
        self.groups = check_groups(groups)

    def may_read(self, source: str, path: str, sop_instance_uid: str | None) -> bool:
        """Return whether the groups may read a file, whether it is indexed or not.

        Parameters
        ----------
        source : str
            Name of the source.
        path : str
            The file.
        sop_instance_uid : str or None
            The instance that the file holds now: a row of another one says nothing of it.

        Returns
        -------
        bool
            False too for a path that cannot be stored, as no rule can name it.
        """
        if path_fault(path) is not None:
            return False
        asked: dict[str, Any] = {"key": Key(file_key(source, path)), "source": source, "path": path}
        asked |= {"sop": sop_instance_uid, "groups": self.groups}
        [(answer,)] = super().query(statements.MAY_READ, asked)
        return bool(answer)

    def may_read_each(self, source: str, files: Sequence[tuple[str, str | None]]) -> list[bool]:
        """Return which files the groups may read, by one question.

        Parameters
        ----------
        source : str
            Name of the source.
        files : sequence of (str, str or None)
            Path and instance of each: see `may_read`.

        Returns
        -------
        list of bool
            In the order of `files`.
        """
        if len(files) == 1:
            return [self.may_read(source, *files[0])]
        asked = [number for number, (path, _) in enumerate(files) if path_fault(path) is None]
        paths, sops = [files[number][0] for number in asked], [files[number][1] for number in asked]
        parameters: dict[str, Any] = {"source": source, "groups": self.groups, "numbers": asked}
        parameters |= {"paths": paths, "sops": sops, "keys": Keys(file_key(source, path) for path in paths)}
        found = dict(super().query(statements.MAY_READ_EACH, parameters))
        return [found.get(number, False) for number in range(len(files))]

    def query(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        """Run one idempotent statement, in a transaction in the name of the groups, and return its rows."""

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            with connection.transaction():
                connection.execute(statements.SET_GROUPS.encode(), (self.groups,))
                return fetch(connection, statement, parameters)

        return self.database.run(work)

    change = query


def restrict(store: FrameStore, source: str, groups: Mapping[str, Iterable[str]]) -> None:
    """Let only some groups see files, indexed or not; where a rule is in force, the rule decides.

    Parameters
    ----------
    store : FrameStore
        The index.
    source : str
        Name of the source, which is added where there is none.
    groups : mapping of str to iterable of str
        By the paths under which the files are or will be indexed; no group: nobody.

    Raises
    ------
    ConfigError
        What stands for a file is no list of text.
    """
    names = {path: check_groups(given) for path, given in groups.items()}
    paths = [path for path in names if path_fault(path) is None]
    values = {
        "source": source,
        "keys": [UUID(bytes=file_key(source, path)) for path in paths],
        "paths": paths,
        # Arrays of arrays must be rectangular, so groups are passed as text.
        "groups": [json.dumps(names[path]) for path in paths],
    }

    def work(connection: Connection) -> None:
        with connection.transaction():
            connection.execute(statements.lock_groups(source, exclusive=True).encode())
            connection.execute(statements.ADD_SOURCE.encode(), {"name": source})
            for statement in statements.RESTRICT:
                connection.execute(statement.encode(), values)

    if paths:
        store.database.run(work)


def check_groups(groups: Iterable[str]) -> list[str]:
    """Return names of groups as a list; any text is a name, with commas, quotes and braces too.

    Text that no group can have as its name (empty, with NUL, not UTF-8) is left out.

    Raises
    ------
    ConfigError
        It is no list of text.
    """
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise ConfigError(f"groups={groups!r}: give a list of names")
    names = list(groups)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"groups={names!r}: {name!r} is no name of a group")
    return [name for name in names if is_group_name(name)]


def is_group_name(name: str) -> bool:
    """Return whether a group can have this name in the database."""
    return bool(name) and "\0" not in name and not any("\ud800" <= char <= "\udfff" for char in name)
