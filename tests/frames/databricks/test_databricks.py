"""Credentials that expire: the real databricks-sdk against a control plane on 127.0.0.1.

Logins go to a real PostgreSQL that asks for passwords, which are changed while connections live.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyspark.ml import PipelineModel

from frames.dicom.catalogue import frames_of, native, write_files
from voxtier.errors import BackendError, ConfigError, NotFoundError
from voxtier.frames.databricks.lakebase import DatabricksCredentials, LakebaseUtils, credentials
from voxtier.frames.databricks.lakebase.credentials import _members
from voxtier.frames.databricks.spark import BOTCacheBuilder
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.database import Database

TABLE = "frames.pixels.object_catalog"
ROLE = "sp@example.org"
TOKEN = "dapi-workspace-token"


@dataclass
class ControlPlane:
    """What Databricks knows: an instance, a project, users, a table; and how it behaves."""

    postgres: str = ""
    instances: dict[str, str] = field(default_factory=dict)
    projects: dict[str, str] = field(default_factory=dict)
    password: str = "first"
    lifetime: float = 3600
    broken: int = 0  # status of every answer, 0 for none
    row_filter: str | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(f"{method} {path}")
        expires = (datetime.now(UTC) + timedelta(seconds=self.lifetime)).isoformat().replace("+00:00", "Z")
        match method, path.split("?")[0].strip("/").split("/")[2:]:
            case "GET", ["database", "instances", name] if name in self.instances:
                return 200, {"name": name, "state": "AVAILABLE", "read_write_dns": self.instances[name]}
            case "POST", ["database", "instances"]:
                self.instances[body["name"]] = self.postgres
                return 200, {**body, "state": "AVAILABLE", "read_write_dns": self.postgres}
            case "POST", ["database", "credentials"] if body["instance_names"][0] in self.instances:
                return 200, {"token": self.password, "expiration_time": expires}
            case "GET", ["postgres", "projects", project, "branches", branch, "endpoints"] if (
                project in self.projects
            ):
                name = f"projects/{project}/branches/{branch}/endpoints/primary"
                status = {
                    "endpoint_type": "ENDPOINT_TYPE_READ_WRITE", "hosts": {"host": self.projects[project]}
                }  # fmt: skip
                return 200, {"endpoints": [{"name": name, "status": status}]}
            case "POST", ["postgres", "credentials"]:
                return 200, {"token": self.password, "expire_time": expires}
            case "GET", ["preview", "scim", "v2", "Me"]:
                return 200, {"userName": ROLE}
            case "GET", ["preview", "scim", "v2", "Users"]:
                groups = [{"display": "staff, day"}, {"display": "admins"}]
                users = [
                    {"id": "1", "userName": "ann@example.org", "groups": groups},
                    {"id": "2", "userName": "bob@example.org"},
                ]
                page = {"totalResults": 2, "startIndex": 1, "itemsPerPage": 2}
                return 200, {**page, "Resources": users if "startIndex=1" in path else []}
            case "GET", ["unity-catalog", "tables", _]:
                found = {"function_name": "frames.pixels.only_staff", "input_column_names": []}
                return 200, {"row_filter": found} if self.row_filter else {}
            case "GET", ["unity-catalog", "functions", _]:
                return 200, {"routine_definition": self.row_filter}
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()

    class Answers(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, found = 401, {"error_code": "UNAUTHENTICATED", "message": "who are you?"}
            elif plane.broken:
                status, found = plane.broken, {"error_code": "INTERNAL_ERROR", "message": "out of order"}
            else:
                status, found = plane.answer(self.command, self.path, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        plane.url = f"http://127.0.0.1:{server.server_port}"
        yield plane
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def guarded(postgres: str) -> Iterator[str]:
    """The shared server, with a role that must give its password, and a database of the catalog's name."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        before = rules.read_text()
        rules.write_text(f'local all "{ROLE}" scram-sha-256\n{before}')
        connection.execute(f"CREATE ROLE \"{ROLE}\" LOGIN PASSWORD 'first'")
        connection.execute(f'CREATE DATABASE frames OWNER "{ROLE}" TEMPLATE template0')
        connection.execute("SELECT pg_reload_conf()")
        while lets_in_without_password(postgres):
            time.sleep(0.02)
        yield postgres
        connection.execute("DROP DATABASE frames WITH (FORCE)")
        connection.execute(f'DROP ROLE "{ROLE}"')
        rules.write_text(before)
        connection.execute("SELECT pg_reload_conf()")


def lets_in_without_password(server: str) -> bool:
    try:
        psycopg.connect(server, user=ROLE, dbname="frames").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def lakebase(plane: ControlPlane, guarded: str) -> ControlPlane:
    """The control plane with an instance whose address is the guarded server; its password is the first."""
    plane.postgres = str(psycopg.conninfo.conninfo_to_dict(guarded)["host"])
    plane.instances["pixels-lakebase"] = plane.postgres
    change_password(guarded, "first")
    return plane


@pytest.fixture
def lakebase_of_plane(plane: ControlPlane, dsn: str, template: str) -> Iterator[LakebaseUtils]:
    """An index in a database of its own, whose groups are those of the control plane."""
    with LakebaseUtils(uc_table_name=TABLE, dsn=dsn, host=plane.url, token=TOKEN) as utils:
        yield utils


def change_password(server: str, password: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE \"{ROLE}\" PASSWORD '{password}'")


@pytest.mark.usefixtures("_in_this_process")
def test_a_copied_builder_logs_in_and_a_pickled_one_says_what_it_lacks(guarded: str, tmp_path: Path) -> None:
    change_password(guarded, "first")
    paths: list[str | None] = [*write_files(tmp_path, 1)]
    dsn = psycopg.conninfo.make_conninfo(guarded, user=ROLE, dbname="frames", password="first")
    builder = BOTCacheBuilder("frames.pixels.copied", dsn=dsn, threads=1)
    session: Any = None  # asked for nothing where there is a dsn

    def index(builder: BOTCacheBuilder) -> str | int:
        return builder._task(session).statuses(paths)[0]["status"]

    with pytest.raises(BackendError, match=r"no password supplied.*; a builder that was pickled or saved"):
        index(pickle.loads(pickle.dumps(builder)))
    # `transform(frame, params)` works on such a copy, of a pipeline's stages too.
    assert index(builder.copy({builder.outputCol: "x"})) == "cached"
    assert index(copy.deepcopy(PipelineModel([builder]).copy().stages[0])) == "skipped"


def test_a_password_rotated_under_a_running_pool_is_asked_for_again(
    lakebase: ControlPlane, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "REUSE_FOR", 0.2)
    given = DatabricksCredentials("pixels-lakebase", host=lakebase.url, token=TOKEN, database="frames")
    with FrameStore(Database(lambda: "", credentials=given, max_size=4)) as store:
        indexer = FileIndexer(store, source=TABLE)
        indexer.index_batch(write_files(tmp_path, 5))
        change_password(guarded, "second")
        lakebase.password = "second"
        with psycopg.connect(guarded, autocommit=True) as connection:  # and every connection is lost
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,)
            )
        time.sleep(0.25)
        reports = indexer.index_batch(write_files(tmp_path, 5, first=5))
        assert {report.status for report in reports} == {"ok"}
        assert store.summary(TABLE).total.files == 10


def test_a_failed_refresh_leaves_live_connections_alone(
    lakebase: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "REUSE_FOR", 0.0)
    monkeypatch.setattr(credentials, "_RETRIES_WITHIN", 1)
    given = DatabricksCredentials("pixels-lakebase", host=lakebase.url, token=TOKEN, database="frames")
    database = Database(lambda: "", credentials=given, max_size=3)
    with FrameStore(database) as store:
        store.sources()
        lakebase.broken = 500
        assert given()["password"] == "first"  # the last one serves while it lives
        with database.connection() as first, database.connection() as second:
            for connection in (first, second):
                assert connection.execute("SELECT 1").fetchone() == (1,)
        lakebase.broken, lakebase.lifetime = 0, -1
        given()
        lakebase.broken = 500
        with pytest.raises(BackendError, match="Databricks does not answer"):
            given()
        assert store.sources() is not None


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_a_credential_is_asked_for_asks_itself(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.instances["pixels-lakebase"] = "/tmp"
    given = DatabricksCredentials("pixels-lakebase", host=plane.url, token=TOKEN)
    monkeypatch.setattr(credentials, "REUSE_FOR", -1.0)  # each call asks
    given()
    waits, may_go_on = threading.Event(), threading.Event()
    answer = plane.answer

    def answer_late(*question: Any) -> tuple[int, dict[str, Any]]:
        if not waits.is_set():
            waits.set()
            may_go_on.wait(100)
        return answer(*question)

    monkeypatch.setattr(plane, "answer", answer_late)
    asking = threading.Thread(target=given)
    asking.start()
    assert waits.wait(100)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # ends a child that waits for the parent's thread
            os._exit(given()["password"] != "first")
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    may_go_on.set()
    asking.join(100)
    asked = [each for each in plane.asked if each == "POST /api/2.0/database/credentials"]
    assert len(asked) == 3


def test_what_databricks_refuses_leaves_no_method_as_an_error_of_its_sdk(
    plane: ControlPlane, lakebase_of_plane: LakebaseUtils, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = lakebase_of_plane
    with monkeypatch.context() as patch:
        patch.setattr(utils, "token", "expired")
        with pytest.raises(BackendError, match=r"refuses access to the list of users: renew the workspace"):
            utils.sync_user_groups_from_databricks()
        with pytest.raises(BackendError, match=f"refuses access to the table '{TABLE}': renew the workspace"):
            utils.sync_uc_row_filters()
    monkeypatch.setattr(credentials, "_RETRIES_WITHIN", 1)
    plane.broken = 500
    for method in (utils.sync_user_groups_from_databricks, utils.sync_uc_row_filters):
        with pytest.raises(BackendError, match="does not answer about the"):
            method()
    plane.broken = 404
    with pytest.raises(NotFoundError, match=f"knows no table '{TABLE}'"):
        utils.sync_uc_row_filters()


def test_ranges_groups_and_row_filters_over_databricks(
    lakebase: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_files(tmp_path, 1)
    with LakebaseUtils(uc_table_name=TABLE, host=lakebase.url, token=TOKEN) as utils:
        assert utils.execute_and_fetch_query("SELECT current_database(), current_user::text") == [
            ("frames", ROLE)
        ]
        FileIndexer(utils.store, source=TABLE).index_batch([path])
        assert utils.retrieve_frame_range(path, 0) is not None
        assert utils.sync_user_groups_from_databricks() == 2
        assert utils.get_user_groups("ann@example.org") == ["admins", "staff, day"]
        assert utils.get_user_groups("bob@example.org") == utils.get_user_groups("nobody") == []

        lakebase.row_filter = "RETURN is_account_group_member('staff, day') OR is_member('o''brien or co')"
        assert utils.sync_uc_row_filters() == ["staff, day", "o'brien or co"]
        assert utils.retrieve_frame_range(path, 0, user_groups=["staff, day"]) is not None
        assert utils.retrieve_frame_range(path, 0, user_groups=["staff"]) is None
        lakebase.row_filter = "is_account_group_member('staff') AND region = 'EU'"
        with pytest.raises(ConfigError, match="not a plain question of membership"):
            utils.sync_uc_row_filters()
        assert utils.retrieve_frame_range(path, 0, user_groups=["staff"]) is None
        lakebase.row_filter = None
        assert utils.sync_uc_row_filters() is None
        assert utils.retrieve_frame_range(path, 0, user_groups=[]) is not None


@pytest.mark.parametrize(
    ("body", "groups"),
    [
        ("is_member('a')", ["a"]),
        ("return IS_ACCOUNT_GROUP_MEMBER( 'a b' ) or\n is_member('c');", ["a b", "c"]),
        ("is_member('a') AND is_member('b')", []),
        ("NOT is_member('a')", []),
        ("is_member('a') OR true", []),
        ("is_member(region)", []),
        ("", []),
    ],
)
def test_a_row_filter_is_taken_as_groups_or_not_at_all(body: str, groups: list[str]) -> None:
    assert list(_members(body)) == groups


def test_instances_projects_and_branches_are_found_or_named(lakebase: ControlPlane) -> None:
    lakebase.projects["slides"] = "/tmp"
    found = DatabricksCredentials("slides", host=lakebase.url, token=TOKEN)()
    assert found == {
        "host": "/tmp", "dbname": "databricks_postgres", "user": ROLE, "password": "first",
        "sslmode": "require",
    }  # fmt: skip
    DatabricksCredentials("slides", host=lakebase.url, token=TOKEN, branch_name="dev", user="me")()
    assert any("/branches/dev/endpoints" in asked for asked in lakebase.asked)
    with pytest.raises(NotFoundError, match="knows no Lakebase instance 'nothing'"):
        DatabricksCredentials("nothing", host=lakebase.url, token=TOKEN)()
    assert not any(asked.startswith("POST /api/2.0/database/instances") for asked in lakebase.asked)
    made = DatabricksCredentials("new", host=lakebase.url, token=TOKEN, create={"capacity": "CU_1"})()
    assert made["host"] == lakebase.postgres
    with pytest.raises(BackendError, match="renew the workspace token"):
        DatabricksCredentials("slides", host=lakebase.url, token="expired")()
    lakebase.instances["asleep"] = ""
    with pytest.raises(BackendError, match="'asleep' has no address: start it"):
        DatabricksCredentials("asleep", host=lakebase.url, token=TOKEN)()
    with pytest.raises(NotFoundError), LakebaseUtils("nothing", host=lakebase.url, token=TOKEN) as utils:
        utils.execute_query("SELECT 1")


def test_a_workspace_that_is_not_named_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="set DATABRICKS_HOST and DATABRICKS_TOKEN"):
        DatabricksCredentials("pixels-lakebase")()


def test_the_builder_logs_in_from_its_workers_without_a_secret_in_the_closure(
    spark: Any, lakebase: ControlPlane, guarded: str, tmp_path: Path
) -> None:
    """Through Databricks by host and token, and by a password in the DSN: neither is in the closure."""
    paths = write_files(tmp_path, 3)
    frame = spark.createDataFrame([(path,) for path in paths], "local_path string")
    builder = BOTCacheBuilder(TABLE, host=lakebase.url, token=TOKEN)
    rows = builder.transform(frame).collect()
    assert {row.local_path: json.loads(row.bot_cache_status)["num_frames"] for row in rows} == {
        path: frames_of(path) for path in paths
    }
    Path(paths[0]).write_bytes(native(70, 5))
    dsn = psycopg.conninfo.make_conninfo(guarded, user=ROLE, password="first", dbname="frames")
    rows = BOTCacheBuilder(TABLE, dsn=dsn).transform(frame).collect()
    found = {row.local_path: json.loads(row.bot_cache_status) for row in rows}
    assert found[paths[0]] == {"status": "cached", "num_frames": 5}
    assert found[paths[1]]["reason"] == "already_cached"
