"""Who may see which rows: groups of users, rules by path, and what Databricks says of both.

Row security binds every role but the owner (and superusers); for these, and for all, the methods ask
themselves whenever they are told the groups of a user.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import Backend, add_source, allowed
from voxtier.frames.databricks.lakebase.credentials import client_of, row_filter_groups, workspace_groups
from voxtier.frames.databricks.table_names import local_path
from voxtier.postgres.database import Connection


class GroupMethods(Backend):
    """Row-level groups: every row is for everyone until a rule, or its writer, names groups."""

    host: str | None = None
    token: str | None = None

    def get_user_groups(self, user: str) -> list[str]:
        """Return the groups of a user as last synchronised; none for an unknown one."""
        rows = self.rows(statements.USER_GROUPS, (user,))
        return list(rows[0][0]) if rows else []

    def sync_user_groups_from_databricks(self) -> int:
        """Replace what is known of users by what the workspace says; return the users.

        Raises
        ------
        ConfigError
            The workspace shows no user at all: the token may not list them, and nothing is changed.
        """
        users = workspace_groups(client_of(self.host, self.token))
        if not users:
            raise ConfigError("the workspace shows no users: the token needs the right to list them")
        return self.count(statements.SYNC_USER_GROUPS, {"users": json.dumps(users)})

    def upsert_access_rule(
        self, uc_table_name: str | None, allowed_groups: Sequence[str], path_prefix: str = ""
    ) -> int:
        """Let only these groups see the files whose paths begin with a prefix, now and when they are indexed.

        Parameters
        ----------
        uc_table_name : str or None
            Where.
        allowed_groups : sequence of str
            Any names; at least one.
        path_prefix : str
            Empty for all files; of several rules that fit, the longest prefix decides.

        Returns
        -------
        int
            Files whose groups changed.
        """
        source = self.source(uc_table_name)
        rule = {"source": source, "prefix": local_path(path_prefix), "groups": allowed(list(allowed_groups))}

        def work(connection: Connection) -> int:
            add_source(connection, source)
            connection.execute(statements.ADD_RULE.encode(), rule)
            return _apply(connection, source, local_path(path_prefix))

        return self.run(work)

    def get_access_rules(self, uc_table_name: str | None = None) -> list[dict[str, Any]]:
        """Return the rules of a source: ``path_prefix`` and ``allowed_groups``."""
        rows = self.rows(statements.RULES, {"source": self.source(uc_table_name)})
        return [{"path_prefix": prefix, "allowed_groups": groups} for prefix, groups in rows]

    def sync_uc_row_filters(self, uc_table_name: str | None = None) -> list[str] | None:
        """Make the groups that the table's row filter in Unity Catalog lets in the rule for all its files.

        Returns
        -------
        list of str or None
            The groups; None when the table has no filter, and then the rule for all files is dropped.

        Raises
        ------
        ConfigError
            The filter is more than a question of membership: nothing is changed.
        """
        source = self.source(uc_table_name)
        groups = row_filter_groups(client_of(self.host, self.token), source)
        if groups is None:
            self.reset_allowed_groups(uc_table_name)
        else:
            self.upsert_access_rule(uc_table_name, groups)
        return groups

    def reset_allowed_groups(self, uc_table_name: str | None = None) -> int:
        """Drop all rules of a source and open its files to everyone; return the files that changed."""
        source = self.source(uc_table_name)

        def work(connection: Connection) -> int:
            connection.execute(statements.DROP_RULES.encode(), {"source": source})
            return _apply(connection, source, "")

        return self.run(work)


def _apply(connection: Connection, source: str, prefix: str) -> int:
    changed = 0
    for statement in statements.APPLY_RULES:
        done = connection.execute(statement.encode(), {"source": source, "prefix": prefix})
        changed += max(done.rowcount, 0)
    return changed
