"""Which groups may see which rows: groups of users, rules by path, and both as Databricks defines them.

Row security does not bind owners and superusers: for them, the statements test the groups of a user
themselves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import Backend, add_source, check_allowed_groups
from voxtier.frames.databricks.lakebase.credentials import open_client, row_filter_groups, workspace_groups
from voxtier.frames.databricks.table_names import local_path
from voxtier.postgres.connection import Connection


class GroupMethods(Backend):
    """Groups that may see rows: everyone, until a rule or the writer of a row names groups."""

    host: str | None = None
    token: str | None = None

    def get_user_groups(self, user: str) -> list[str]:
        """Return the groups of a user at the last synchronisation; none for an unknown user."""
        rows = self.rows(statements.USER_GROUPS, (user,))
        return list(rows[0][0]) if rows else []

    def sync_user_groups_from_databricks(self) -> int:
        """Replace all users and their groups by those of the workspace; return the number of users.

        Raises
        ------
        ConfigError
            The workspace lists no user, as for a token without that right; nothing is changed.
        """
        users = workspace_groups(open_client(self.host, self.token))
        if not users:
            raise ConfigError("the workspace lists no users: use a token with the right to list them")
        return self.count(statements.SYNC_USER_GROUPS, {"users": json.dumps(users)})

    def upsert_access_rule(
        self, uc_table_name: str | None, allowed_groups: Sequence[str], path_prefix: str = ""
    ) -> int:
        """Let only these groups see the files whose paths begin with a prefix, those indexed later too.

        Parameters
        ----------
        uc_table_name : str or None
            ``catalog.schema.table``; None: that of the constructor.
        allowed_groups : sequence of str
            Names of groups, at least one.
        path_prefix : str
            Empty for all files; of several rules that match, the longest prefix decides.

        Returns
        -------
        int
            Number of files whose groups changed.

        Raises
        ------
        ConfigError
            There is no group.
        """
        source = self.source(uc_table_name)
        rule = {
            "source": source,
            "prefix": local_path(path_prefix),
            "groups": check_allowed_groups(list(allowed_groups)),
        }

        def work(connection: Connection) -> int:
            add_source(connection, source)
            connection.execute(statements.ADD_RULE.encode(), rule)
            return _apply(connection, source, local_path(path_prefix))

        return self.run(work)

    def get_access_rules(self, uc_table_name: str | None = None) -> list[dict[str, Any]]:
        """Return the rules of a source, each with ``path_prefix`` and ``allowed_groups``."""
        rows = self.rows(statements.RULES, {"source": self.source(uc_table_name)})
        return [{"path_prefix": prefix, "allowed_groups": groups} for prefix, groups in rows]

    def sync_uc_row_filters(self, uc_table_name: str | None = None) -> list[str] | None:
        """Let the groups that pass the table's row filter in Unity Catalog see all its files.

        Returns
        -------
        list of str or None
            The groups; None when the table has no filter: then all its rules are dropped.

        Raises
        ------
        ConfigError
            The filter tests more than membership in groups; nothing is changed.
        """
        source = self.source(uc_table_name)
        groups = row_filter_groups(open_client(self.host, self.token), source)
        if groups is None:
            self.reset_allowed_groups(uc_table_name)
        else:
            self.upsert_access_rule(uc_table_name, groups)
        return groups

    def reset_allowed_groups(self, uc_table_name: str | None = None) -> int:
        """Drop all rules of a source and let everyone see its files; return the number of files changed."""
        source = self.source(uc_table_name)

        def work(connection: Connection) -> int:
            connection.execute(statements.DROP_RULES.encode(), {"source": source})
            return _apply(connection, source, "")

        return self.run(work)


def _apply(connection: Connection, source: str, prefix: str) -> int:
    changed = 0
    for statement in statements.APPLY_RULES:
        cursor = connection.execute(statement.encode(), {"source": source, "prefix": prefix})
        changed += max(cursor.rowcount, 0)
    return changed
