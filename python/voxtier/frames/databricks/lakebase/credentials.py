"""Databricks: addresses of Lakebase instances and short-lived credentials; the only importer of its SDK."""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from voxtier.errors import BackendError, ConfigError, MissingExtraError, NotFoundError, VoxtierError
from voxtier.system.fork import abandon, after_fork_in_child

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

T = TypeVar("T")
_log = logging.getLogger(__name__)
REUSE_FOR = 60.0  # seconds for which new connections share one credential
_RETRIES_WITHIN = 20  # seconds for which the SDK repeats a failing request, as a pool waits for 30


class _Token(NamedTuple):
    value: str
    asked_at: float
    expires_at: float


class DatabricksCredentials:
    """Connection parameters for a Lakebase instance, as `voxtier.postgres.database.Database` calls for them.

    Parameters
    ----------
    instance_name : str
        Database instance or autoscaling project.
    host, token : str or None
        Databricks workspace and access token; None: as the SDK finds them (environment, profile, notebook).
    user : str or None
        Role of the database; None: the owner of the token.
    database : str or None
        Name of the database; None: ``databricks_postgres``.
    branch_name : str or None
        Branch of an autoscaling project; None: an instance of that name, else the project's branch
        ``production``.
    create : dict or None
        Create what does not exist: ``capacity`` of an instance, or ``min_cu`` and ``max_cu`` of a project.

    Notes
    -----
    Every call returns a credential that is at most a minute old: a revoked one is replaced, and new
    connections never meet the end of a token's hour. While Databricks does not answer, the last credential is
    used until it expires; open connections are not affected.
    """

    def __init__(
        self,
        instance_name: str,
        *,
        host: str | None = None,
        token: str | None = None,
        user: str | None = None,
        database: str | None = None,
        branch_name: str | None = None,
        create: dict[str, Any] | None = None,
    ) -> None:
        self.instance_name = instance_name
        self._what = f"Lakebase instance {instance_name!r}"
        self._host, self._token = host, token
        self._user, self._database = user, database
        self._branch, self._create = branch_name, create
        self._lock = threading.Lock()
        self._place: dict[str, str] | None = None
        self._ask: Callable[[], tuple[str | None, float | None]] | None = None
        self._last: _Token | None = None
        after_fork_in_child(self._forget_after_fork)

    def __call__(self) -> dict[str, str]:
        """Return ``host``, ``dbname``, ``user``, ``password`` and ``sslmode``.

        Raises
        ------
        BackendError
            Databricks does not answer or refuses, and the last credential has expired.
        NotFoundError
            Databricks has no such instance.
        """
        with self._lock:  # who comes while another asks gets what that one gets
            token = self._last
            if token is None or time.time() - token.asked_at > REUSE_FOR or token.expires_at <= time.time():
                token = self._renew(token)
            assert self._place is not None
            return {**self._place, "password": token.value, "sslmode": "require"}

    def _renew(self, last: _Token | None) -> _Token:
        asked_at = time.time()
        try:
            if self._ask is None or self._place is None:
                self._place = _call(self._find, self._what)
            assert self._ask is not None
            value, expires_at = _call(self._ask, self._what)
            if not value:
                raise BackendError(f"Databricks gave no credential for {self.instance_name}")
        except VoxtierError:
            if last is None or last.expires_at <= time.time():
                raise
            _log.warning("no new database credential from Databricks: using the last one until it expires")
            return last
        self._last = _Token(value, asked_at, expires_at or asked_at + 3600)
        return self._last

    def _forget_after_fork(self) -> None:
        # A thread of the parent may hold the lock, and requests of both would go through one connection.
        self._lock = threading.Lock()
        abandon(self._ask)
        self._ask = None

    def _find(self) -> dict[str, str]:
        from databricks.sdk.errors import NotFound

        client = open_client(self._host, self._token)
        host = None
        if self._branch is None and "min_cu" not in (self._create or {}):
            try:
                host = self._find_instance(client)
            except NotFound:
                if self._create is not None:
                    raise
        if host is None:
            host = self._find_project(client)
        return {
            "host": host,
            "dbname": self._database or "databricks_postgres",
            "user": self._user or client.current_user.me().user_name or "",
        }

    def _find_instance(self, client: WorkspaceClient) -> str:
        from databricks.sdk.errors import NotFound
        from databricks.sdk.service.database import DatabaseInstance

        name = self.instance_name
        try:
            instance = client.database.get_database_instance(name)
        except NotFound:
            if self._create is None:
                raise
            _log.warning("creating the Lakebase instance %s", name)
            new = DatabaseInstance(name=name, capacity=self._create.get("capacity"))
            instance = client.database.create_database_instance_and_wait(new)
        self._ask = functools.partial(_instance_credential, client, name)
        return instance.read_write_dns or self._not_ready()

    def _find_project(self, client: WorkspaceClient) -> str:
        from databricks.sdk.errors import NotFound
        from databricks.sdk.service import postgres

        project = f"projects/{self.instance_name}"
        branch = f"{project}/branches/{self._branch or 'production'}"
        try:
            endpoints = list(client.postgres.list_endpoints(branch))
        except NotFound:
            if self._create is None:
                raise
            _log.warning("creating the Lakebase project %s", self.instance_name)
            limits = postgres.ProjectDefaultEndpointSettings(
                autoscaling_limit_min_cu=self._create.get("min_cu"),
                autoscaling_limit_max_cu=self._create.get("max_cu"),
            )
            spec = postgres.ProjectSpec(display_name=self.instance_name, default_endpoint_settings=limits)
            client.postgres.create_project(postgres.Project(spec=spec), self.instance_name).wait()
            endpoints = list(client.postgres.list_endpoints(branch))
        writable = postgres.EndpointType.ENDPOINT_TYPE_READ_WRITE
        for endpoint in endpoints:
            status = endpoint.status
            if status and status.endpoint_type == writable and status.hosts and status.hosts.host:
                self._ask = functools.partial(_endpoint_credential, client, endpoint.name or "")
                return status.hosts.host
        return self._not_ready()

    def _not_ready(self) -> str:
        raise BackendError(
            f"the Lakebase instance {self.instance_name!r} has no address: start it, or wait until it runs"
        )


def open_client(host: str | None, token: str | None) -> WorkspaceClient:
    """Return a client of a workspace, with limits on the time of a request.

    Raises
    ------
    MissingExtraError
        databricks-sdk is not installed.
    ConfigError
        No workspace or no credential is configured.
    """
    try:
        from databricks.sdk import WorkspaceClient
        from databricks.sdk.core import Config
    except ImportError as error:
        raise MissingExtraError("databricks-sdk", "databricks") from error
    options: dict[str, Any] = {name: value for name, value in (("host", host), ("token", token)) if value}
    try:
        config = Config(**options, retry_timeout_seconds=_RETRIES_WITHIN, http_timeout_seconds=15)
        return WorkspaceClient(config=config)
    except ValueError as error:
        raise ConfigError(
            "Databricks: no workspace or no credential; set DATABRICKS_HOST and DATABRICKS_TOKEN, or use "
            "host= and token= (which a pickled or saved builder has no more)"
        ) from error


def _call(ask: Callable[[], T], what: str) -> T:
    """Return what Databricks answers to a question about a thing, or raise an error that names it."""
    try:
        from databricks.sdk.errors import NotFound, PermissionDenied, Unauthenticated
    except ImportError as error:
        raise MissingExtraError("databricks-sdk", "databricks") from error
    try:
        return ask()
    except NotFound as error:
        raise NotFoundError(f"Databricks knows no {what}") from error
    except (Unauthenticated, PermissionDenied) as error:
        raise BackendError(
            f"Databricks refuses access to the {what}: renew the workspace token (DATABRICKS_TOKEN) or ask "
            "for the right to use it"
        ) from error
    except VoxtierError:
        raise
    except OSError as error:  # those of the SDK are, too
        raise BackendError(
            f"Databricks does not answer about the {what} ({type(error).__name__}): check DATABRICKS_HOST "
            "and the network"
        ) from error


def workspace_groups(host: str | None, token: str | None) -> dict[str, list[str]]:
    """Return the groups of every user of a workspace, by user name.

    Raises
    ------
    BackendError
        Databricks refuses, or does not answer.
    """

    def ask() -> dict[str, list[str]]:
        return {
            user.user_name: sorted(group.display for group in user.groups or [] if group.display)
            for user in open_client(host, token).users.list(attributes="id,userName,groups")
            if user.user_name
        }

    return _call(ask, "list of users")


def row_filter_groups(host: str | None, token: str | None, table: str) -> list[str] | None:
    """Return the groups that pass the row filter of a table in Unity Catalog; None when it has no filter.

    Parameters
    ----------
    host, token : str or None
        Databricks workspace and access token.
    table : str
        ``catalog.schema.table``.

    Returns
    -------
    list of str or None
        Names of groups.

    Raises
    ------
    ConfigError
        The filter tests more than membership in groups.
    NotFoundError
        Databricks has no such table, or not the function of its filter.
    BackendError
        Databricks refuses, or does not answer.
    """
    client = _call(lambda: open_client(host, token), "workspace")
    row_filter = _call(lambda: client.tables.get(table).row_filter, f"table {table!r}")
    if row_filter is None:
        return None
    name = row_filter.function_name
    body = _call(lambda: client.functions.get(name).routine_definition, f"row filter {name!r} of {table}")
    groups = list(_members(body or ""))
    if not groups:
        raise ConfigError(
            f"the row filter {name} of {table} is not a plain question of membership "
            "(is_account_group_member('a') OR ...): set the groups with upsert_access_rule"
        )
    return groups


_MEMBER = re.compile(
    r"\s*(?:is_account_group_member|is_member)\s*\(\s*'((?:[^'\\]|'')*)'\s*\)\s*", re.IGNORECASE
)


def _members(body: str) -> Iterator[str]:
    text = re.sub(r"^\s*return\b", "", body.strip().rstrip(";"), flags=re.IGNORECASE)
    terms = re.split(r"\bor\b(?=(?:[^']*'[^']*')*[^']*$)", text, flags=re.IGNORECASE)
    matched = [_MEMBER.fullmatch(term) for term in terms]
    if all(matched):
        yield from (term[1].replace("''", "'") for term in matched if term)


def _instance_credential(client: WorkspaceClient, name: str) -> tuple[str | None, float | None]:
    credential = client.database.generate_database_credential(instance_names=[name])
    expires = credential.expiration_time
    return credential.token, datetime.fromisoformat(expires).timestamp() if expires else None


def _endpoint_credential(client: WorkspaceClient, name: str) -> tuple[str | None, float | None]:
    credential = client.postgres.generate_database_credential(endpoint=name)
    expires = credential.expire_time
    return credential.token, float(expires.ToSeconds()) if expires else None
