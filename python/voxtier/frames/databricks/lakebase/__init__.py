"""The published Lakebase interface to the frame index, on any PostgreSQL or a Databricks Lakebase instance.

``frames``      byte ranges: retrieve, count loads, rank
``claims``      byte ranges: insert without reading the file
``instances``   paths of SOP Instances, and metrics
``groups``      which groups may see which rows
``credentials`` addresses and short-lived credentials from Databricks
``import_rows`` import of a table with a row per frame
``backend``     what these share: transactions, sources, checks of arguments
``connections`` connections for callers who write their own statements
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from voxtier.arguments import whole_number
from voxtier.errors import BackendError, ConfigError
from voxtier.frames.databricks.lakebase.backend import (
    FRAMES_TABLE,
    INSTANCES_TABLE,
    Groups,
    check_text,
    uc_table_of,
)
from voxtier.frames.databricks.lakebase.connections import LentConnections
from voxtier.frames.databricks.lakebase.credentials import DatabricksCredentials
from voxtier.frames.databricks.lakebase.frames import FrameMethods
from voxtier.frames.databricks.lakebase.groups import GroupMethods
from voxtier.frames.databricks.lakebase.import_rows import ImportReport, import_dicom_frames
from voxtier.frames.databricks.lakebase.instances import InstanceMethods
from voxtier.frames.databricks.place import choose_place, default_table
from voxtier.frames.databricks.table_names import TableName, check_identifier, parse_uc_table_name
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.connection_string import Prepare, database_name
from voxtier.postgres.database import Database, quote_identifier

__all__ = [
    "DICOM_FRAMES_TABLE",
    "INSTANCE_PATHS_TABLE",
    "RLS_ENABLED",
    "DatabricksCredentials",
    "ImportReport",
    "LakebaseUtils",
    "import_dicom_frames",
    "parse_uc_table_name",
]

DICOM_FRAMES_TABLE, INSTANCE_PATHS_TABLE = FRAMES_TABLE, INSTANCES_TABLE

RLS_ENABLED = os.environ.get("LAKEBASE_RLS_ENABLED", "").strip().lower() == "true"
"""Whether the environment asks for row-level groups. voxtier honours groups whenever it is given any."""


class LakebaseUtils(FrameMethods, InstanceMethods, GroupMethods):
    """The frame index by its published names; threads may share it.

    Parameters
    ----------
    instance_name : str
        Lakebase instance or autoscaling project, on Databricks.
    capacity : str
        Size of an instance that is created.
    user : str or None
        Role of the database; None: the owner of the workspace token.
    app_sp_id : str or None
        Service principal to log in as, instead of `user`.
    create_instance : bool
        Create the instance when there is none; from then on it costs money.
    min_connections, max_connections : int
        Connections are opened when they are needed, `max_connections` at most; further threads wait.
    uc_table_name : str or None
        ``catalog.schema.table`` for methods that are given none; None: ``DATABRICKS_PIXELS_TABLE``. Its
        catalog is the database where the connection names none.
    min_cu, max_cu : float or None
        Limits of an autoscaling project that is created.
    branch_name : str or None
        Branch of an autoscaling project.
    dsn : str or None
        Connection string of any PostgreSQL instead. None: ``VOXTIER_DSN``, then Databricks (`host`, `token`,
        or its environment), then the embedded server.
    host, token : str or None
        Databricks workspace and access token.
    credentials : callable or None
        Returns connection parameters for each new connection, in addition to `dsn`.
    prepare : {"auto", "off"} or None
        Prepared statements: see `voxtier.postgres.database.Database`.

    Attributes
    ----------
    instance_name : str
        As given.
    database, schema : str
        Of the published names: the connection's database, else the catalog, else ``databricks_postgres``; the
        schema of `uc_table_name`, else ``pixels``. voxtier's own tables are in the schema ``voxtier``.
    connection : LentConnections
        Lends connections to callers with statements of their own.

    Raises
    ------
    ConfigError
        A name is no plain identifier, the numbers of connections contradict each other, or there is no
        connection string.
    """

    def __init__(
        self,
        instance_name: str = "pixels-lakebase",
        capacity: str = "CU_1",
        user: str | None = None,
        app_sp_id: str | None = None,
        create_instance: bool = False,  # noqa: FBT001, FBT002 - the published order
        min_connections: int = 8,
        max_connections: int = 64,
        uc_table_name: str | None = None,
        min_cu: float | None = None,
        max_cu: float | None = None,
        branch_name: str | None = None,
        *,
        dsn: str | None = None,
        host: str | None = None,
        token: str | None = None,
        credentials: Callable[[], Mapping[str, Any]] | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        check_text(instance_name, "instance_name")
        check_text(capacity, "capacity")
        given = {"user": user, "app_sp_id": app_sp_id, "branch_name": branch_name}
        for name, text in {**given, "dsn": dsn, "host": host, "token": token}.items():
            check_text(text, name, optional=True)
        min_connections = whole_number("min_connections", min_connections)
        max_connections = whole_number("max_connections", max_connections)
        if not 0 <= min_connections <= max_connections or max_connections < 1:
            raise ConfigError(
                f"min_connections={min_connections}, max_connections={max_connections}: "
                "use 0 <= min_connections <= max_connections and max_connections >= 1"
            )
        if not (credentials is None or callable(credentials)):
            raise ConfigError(f"credentials={credentials!r}: give a function that returns them")
        uc_table_name = default_table(uc_table_name)
        catalog, schema, _ = TableName.parse(uc_table_name) if uc_table_name else (None, None, "")
        self.instance_name, self.schema = instance_name, schema or "pixels"
        self.host, self.token = host, token
        place, dsn = choose_place(dsn, has_credentials=credentials is not None, workspace=bool(host or token))
        if place == "databricks":
            size = {"min_cu": min_cu, "max_cu": max_cu} if min_cu or max_cu else {"capacity": capacity}
            credentials = DatabricksCredentials(
                instance_name,
                host=host,
                token=token,
                user=app_sp_id or user,
                database=catalog,
                branch_name=branch_name,
                create=size if create_instance else None,
            )
        by_function = place in ("databricks", "credentials")
        database = Database(
            (lambda: "") if by_function else dsn,
            credentials=credentials,
            max_size=max_connections,
            prepare=prepare,
        )
        self.database = (dsn and database_name(dsn)) or catalog or "databricks_postgres"
        self.connection = LentConnections(database)
        super().__init__(FrameStore(database), uc_table_name)

    def __enter__(self) -> LakebaseUtils:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.store.close()

    def execute_query(self, query: Any, params: Any = None, user_groups: Groups = None) -> int:
        """Execute one statement; it is sent again after a transient failure, so it should be idempotent.

        Parameters
        ----------
        query : str, bytes or psycopg.sql.Composable
            The statement, with placeholders.
        params : sequence or mapping or None
            Their values.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        int
            Number of rows that it changed.

        Raises
        ------
        ConfigError
            It does not fit `params`, or the database role may not do that.
        BackendError
            The database refuses it, or does not answer.
        """
        return self.count(query, params, user_groups)

    def execute_and_fetch_query(
        self, query: Any, params: Any = None, user_groups: Groups = None
    ) -> list[tuple[Any, ...]]:
        """Execute one query.

        Parameters
        ----------
        query : str, bytes or psycopg.sql.Composable
            The query, with placeholders.
        params : sequence or mapping or None
            Their values.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of tuple
            Its rows.

        Raises
        ------
        ConfigError
            It does not fit `params`, the database role may not do that, or it returns no rows: then nothing
            is changed.
        BackendError
            The database refuses it, or does not answer.
        """
        return self.rows(query, params, user_groups)

    def create_frames_view(self, uc_table_name: str | None = None, table: str = "dicom_frames") -> str:
        """Create the view ``schema.table`` with a row per frame, for readers who use SQL.

        Parameters
        ----------
        uc_table_name : str or None
            ``catalog.schema.table`` whose frames it shows; its schema, or ``public``, is the view's.
        table : str
            Name of the view.

        Returns
        -------
        str
            ``schema.table``.

        Raises
        ------
        BackendError
            Another relation has that name, such as the imported table, or the view of another source: rename
            that first, or give another `table`.
        """
        source = self.source(uc_table_name, table)
        schema = TableName.parse(uc_table_of(source)).schema or "public"
        table = check_identifier(table)
        name = quote_identifier(schema, table)
        # The name of a source consists of plain identifiers and dots: it needs no escaping.
        view = f"SELECT * FROM voxtier.dicom_frames WHERE uc_table_name = '{source}'"
        # Not IF NOT EXISTS, which asks for the right to create it although it exists.
        if self.rows("SELECT to_regnamespace(%s)", (quote_identifier(schema),)) == [(None,)]:
            self.execute_query(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(schema)}")
        # As PostgreSQL writes a view down: it adds types and names of columns.
        shown = self.rows(
            "SELECT pg_get_viewdef(oid) FROM pg_class WHERE oid = to_regclass(%s) AND relkind = 'v'", (name,)
        )
        if shown and f"uc_table_name = '{source}'" not in shown[0][0]:
            raise BackendError(
                f"{schema}.{table} shows another source: drop or rename that view, or give another table"
            )
        self.run(lambda connection: connection.execute(f"CREATE OR REPLACE VIEW {name} AS {view}".encode()))
        return f"{schema}.{table}"
