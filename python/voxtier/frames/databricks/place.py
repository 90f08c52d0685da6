"""Which database the published classes use: one answer for the builder and for `LakebaseUtils`."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

Place: TypeAlias = Literal["dsn", "credentials", "databricks", "embedded"]


def choose_place(dsn: str | None, *, has_credentials: bool, workspace: bool) -> tuple[Place, str | None]:
    """Return where the index is, and its connection string, if any.

    A connection string is for voxtier alone, and wins over a workspace, which the published notebook names
    too: the argument, then ``VOXTIER_DSN``, then the workspace, then the embedded server.

    Parameters
    ----------
    dsn : str or None
        The argument.
    has_credentials : bool
        Whether a function returns the connection parameters.
    workspace : bool
        Whether a host or token of a Databricks workspace is given.

    Returns
    -------
    tuple of (str, str or None)
        The place, and the connection string of ``"dsn"``.
    """
    if found := dsn or os.environ.get("VOXTIER_DSN"):
        return "dsn", found
    if has_credentials:
        return "credentials", None
    if workspace or os.environ.get("DATABRICKS_HOST") or os.environ.get("DATABRICKS_RUNTIME_VERSION"):
        return "databricks", None
    return "embedded", None


def default_table(uc_table_name: str | None) -> str | None:
    """Return a table's name, or that of the environment where none is given."""
    return uc_table_name or os.environ.get("DATABRICKS_PIXELS_TABLE") or None
