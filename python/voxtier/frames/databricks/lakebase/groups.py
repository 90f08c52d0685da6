"""Which groups may see which rows: groups of users, rules by group, and both as Databricks defines them.

Row security does not bind owners and superusers: for them, the statements test the groups of a user
themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from voxtier.errors import BackendError, ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    FRAMES_TABLE,
    Backend,
    add_source,
    check_prefix,
    check_text,
    uc_table_of,
)
from voxtier.frames.databricks.lakebase.credentials import row_filter_groups, workspace_groups
from voxtier.frames.databricks.table_names import parse_uc_table_name
from voxtier.frames.store.groups import is_group_name
from voxtier.frames.store.statements import lock_groups
from voxtier.postgres.connection import Connection

# How often a synchronisation asks about rules that others change meanwhile.
_MOST_ROUNDS = 5


class SqlClient(Protocol):
    """A client of a SQL warehouse, as the published gateway has one."""

    def execute(self, query: str, parameters: dict[str, Any] | None = None) -> Iterable[Any]:
        """Return the rows of a query."""


class GroupMethods(Backend):
    """Groups that may see rows: everyone, until a rule or the writer of a row names groups.

    The rules of a table hold for all its files, those indexed later too, from the moment that they are set: a
    table with rules shows its files to nobody else. Of rules with prefixes of paths, those of the longest
    prefix that fits a path decide.

    Rows under another `table` of the same table have rules of their own: each method takes it. Where the
    table has rules and they have none, no rows are inserted that name no groups.
    """

    host: str | None = None
    token: str | None = None

    def get_user_groups(self, user: str) -> list[str]:
        """Return the groups of a user at the last synchronisation; none for an unknown user."""
        rows = self.rows(statements.USER_GROUPS, (check_text(user, "user"),))
        return sorted(rows[0][0]) if rows else []

    def sync_user_groups_from_databricks(self) -> int:
        """Replace all users and their groups by those of the workspace; return the number of memberships.

        Raises
        ------
        ConfigError
            The workspace lists no user, as for a token without that right; nothing is changed.
        BackendError
            Databricks refuses, or does not answer; nothing is changed.
        """
        users = workspace_groups(self.host, self.token)
        if not users:
            raise ConfigError("the workspace lists no users: use a token with the right to list them")
        self.count(statements.SYNC_USER_GROUPS, {"users": json.dumps(users)})
        return sum(map(len, users.values()))

    def upsert_access_rule(
        self,
        uc_table_name: str | None,
        group_name: str,
        access_type: str = "full",
        uc_filter_sql: str | None = None,
        description: str | None = None,
        *,
        path_prefix: str = "",
        table: str = FRAMES_TABLE,
    ) -> int:
        """Let a group see files of a table, which from then on groups without a rule do not see.

        Parameters
        ----------
        uc_table_name : str or None
            ``catalog.schema.table``; None: that of the constructor.
        group_name : str
            Name of the group.
        access_type : {"full", "conditional"}
            All files, or the instances that `uc_filter_sql` finds, once `sync_uc_row_filters` has asked it. A
            condition that is set again as it was keeps what it found.
        uc_filter_sql : str or None
            Condition of a conditional rule, in the SQL of the catalogue.
        description : str or None
            For people.
        path_prefix : str
            The rule is for files whose paths begin so, in whatever spelling (``dbfs:/``, ``s3a://``, ``//``);
            empty for all.
        table : str
            ``dicom_frames``; another name is a source of its own, whose rows the rule is for instead.

        Returns
        -------
        int
            Number of files whose groups changed.

        Raises
        ------
        ConfigError
            The group has no name, `access_type` is another word, or goes without or with a condition against
            its meaning; or no file that is indexed has a path that begins so.
        """
        prefix = check_prefix(path_prefix)
        if not isinstance(group_name, str) or not is_group_name(group_name):
            raise ConfigError(f"group_name={group_name!r}: give the name of one group")
        if access_type not in ("full", "conditional"):
            raise ConfigError(f"access_type={access_type!r}: must be 'full' or 'conditional'")
        if (access_type == "conditional") != bool(uc_filter_sql):
            raise ConfigError(
                f"access_type={access_type!r}, uc_filter_sql={uc_filter_sql!r}: a conditional rule needs its "
                "condition, and no other rule has one"
            )
        rule = {
            "prefix": prefix,
            "group": group_name,
            "type": access_type,
            "filter": check_text(uc_filter_sql, "uc_filter_sql", optional=True) or None,
            "description": check_text(description, "description", optional=True),
        }
        rule["source"] = source = self.source(uc_table_name, table, is_written=True)

        def work(connection: Connection) -> int:
            add_source(connection, source, sets_groups=True)
            connection.execute(statements.FORGET_OTHER_CONDITION.encode(), rule)
            connection.execute(statements.ADD_RULE.encode(), rule)
            return _change_groups(connection, statements.APPLY_RULES, source, prefix)

        return self.run(work)

    def get_access_rules(
        self, uc_table_name: str | None = None, *, table: str = FRAMES_TABLE
    ) -> list[dict[str, Any]]:
        """Return the rules in force, in the order in which they were set.

        Each has ``group_name``, ``access_type``, ``uc_filter_sql``, ``description`` and ``path_prefix``.
        """
        names = ("group_name", "access_type", "uc_filter_sql", "description", "path_prefix")
        rows = self.rows(statements.RULES, {"source": self.source(uc_table_name, table)})
        return [dict(zip(names, row[1:-1], strict=True)) for row in rows if row[-1]]

    def sync_uc_row_filters(
        self,
        uc_table_name: str | None = None,
        sql_client: SqlClient | None = None,
        *,
        table: str = FRAMES_TABLE,
    ) -> int | list[str] | None:
        """Bring the groups of all files of a table up to date with Unity Catalog.

        Groups that a writer or an import named for a file stay where no rule is of it.

        Parameters
        ----------
        uc_table_name : str or None
            ``catalog.schema.table``; None: that of the constructor.
        sql_client : object or None
            Has ``execute(query, parameters)``, which returns the rows of a query on the warehouse: the
            conditions of the rules are asked through it, by an account that sees all rows. All rules are put
            in force, those too that `reset_allowed_groups` put out of it. None: the rules are replaced by the
            row filter that the table has in Unity Catalog.
        table : str
            ``dicom_frames``; another name is a source of its own, whose rules and rows are meant instead.

        Returns
        -------
        int, list of str or None
            With a client the number of files whose groups changed; without, the groups that pass the table's
            row filter, or None when it has none and everyone sees its files, but for those that a writer or
            an import restricted.

        Raises
        ------
        ConfigError
            The row filter tests more than membership in groups, or what the client returns are no rows.
            Nothing is changed.
        NotFoundError
            Unity Catalog has no such table, or not the function of its row filter. Nothing is changed.
        BackendError
            The warehouse refuses a condition, or others change the rules each time that it is asked;
            Databricks refuses, or does not answer. Nothing is changed.
        """
        source = self.source(uc_table_name, table)
        if sql_client is not None:
            return self._sync_conditions(source, sql_client)
        groups = row_filter_groups(self.host, self.token, uc_table_of(source))
        source = self.source(uc_table_name, table, is_written=True)

        def replace(connection: Connection) -> None:
            add_source(connection, source, sets_groups=True)
            if groups is None:
                _change_groups(connection, statements.LIFT_RULES, source)
            connection.execute(statements.DROP_RULES.encode(), {"source": source})
            for group in groups or ():
                rule = {"source": source, "prefix": "", "group": group, "type": "full"}
                connection.execute(statements.ADD_RULE.encode(), rule | {"filter": None, "description": None})
            _change_groups(connection, statements.APPLY_RULES, source)

        self.run(replace)
        return groups

    def _sync_conditions(self, source: str, client: SqlClient) -> int:
        """Ask the conditions of the rules, and put them in force; return the number of files changed.

        The warehouse takes its time, and no lock is held meanwhile: an answer counts for a rule that nobody
        wrote since, else the rule is asked again. So an older answer never replaces a newer one.
        """
        asked: dict[tuple[int, str], list[str]] = {}

        def work(connection: Connection) -> int | None:
            connection.execute(lock_groups(source, exclusive=True).encode())
            rules = connection.execute(statements.CONDITIONS.encode(), {"source": source}).fetchall()
            if any((rule_id, writer) not in asked for rule_id, writer, *_ in rules):
                return None
            connection.execute(statements.SET_IN_FORCE.encode(), {"source": source, "in_force": True})
            for rule_id, writer, *_ in rules:
                found = {"rule": rule_id, "uids": asked[rule_id, writer]}
                connection.execute(statements.FORGET_INSTANCES.encode(), found)
                connection.execute(statements.ADD_INSTANCES.encode(), found)
            return _change_groups(connection, statements.APPLY_RULES, source)

        for _ in range(_MOST_ROUNDS):
            for rule_id, writer, group, condition in self.rows(statements.CONDITIONS, {"source": source}):
                if (rule_id, writer) not in asked:
                    asked[rule_id, writer] = _ask(client, uc_table_of(source), group, condition)
            changed = self.run(work)
            if changed is not None:
                return changed
        raise BackendError(
            f"the rules of {source} were changed each of the {_MOST_ROUNDS} times that the warehouse was "
            "asked: synchronise again when nobody else sets or synchronises them"
        )

    def reset_allowed_groups(self, uc_table_name: str | None = None, *, table: str = FRAMES_TABLE) -> int:
        """Let everyone see all files of a table; return the number of files changed.

        Its rules are out of force until they are set again, or until `sync_uc_row_filters` asks their
        conditions.
        """
        source = self.source(uc_table_name, table)

        def work(connection: Connection) -> int:
            connection.execute(lock_groups(source, exclusive=True).encode())
            connection.execute(statements.SET_IN_FORCE.encode(), {"source": source, "in_force": False})
            return _change_groups(connection, statements.OPEN, source)

        return self.run(work)


def _ask(client: SqlClient, table: str, group: str, condition: str) -> list[str]:
    """Return the SOP Instance UIDs of the rows of a catalogue's table that meet a condition."""
    # The catalogue keeps each instance as a DICOM JSON object in its column `meta` (PS3.18 F.2).
    name = ".".join(f"`{part}`" for part in parse_uc_table_name(table))
    uid = "meta:['00080018'].Value[0]::string"
    query = f"SELECT DISTINCT {uid} AS sop_instance_uid\nFROM {name}\nWHERE (\n{condition}\n)"
    try:
        rows = list(client.execute(query, parameters=None))
    except Exception as error:
        raise BackendError(
            f"the warehouse does not answer the condition of group {group!r}: {type(error).__name__}: {error}"
        ) from error
    try:
        return [str(row[0]).strip(" \0") for row in rows if row[0]]
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"the condition of group {group!r}: sql_client returns no rows of one column"
        ) from error


def _change_groups(connection: Connection, statement: str, source: str, prefix: str = "") -> int:
    """Give the files of a source whose paths begin so other groups; return how many were changed."""
    changed: int
    parameters = {"source": source, "prefix": prefix}
    [(changed,)] = connection.execute(statement.encode(), parameters).fetchall()
    return changed
