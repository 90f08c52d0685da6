"""What the published notebook and gateway pass and read: positions, keys, names, connections, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from frames.dicom.catalogue import TABLE, native, write_files
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import (
    LakebaseUtils,
    compute_bot_from_local_path,
    parse_uc_table_name,
    read_table,
)
from voxtier.frames.databricks.lakebase import (
    DICOM_FRAMES_TABLE,
    INSTANCE_PATHS_TABLE,
)
from voxtier.frames.indexing.run import FileIndexer

OTHER = "main.pixels.other_tenant"


def nested(depth: int) -> dict[str, object]:
    """Return a mapping that holds another, and so on."""
    found: dict[str, object] = {}
    for _ in range(depth):
        found = {"in": found}
    return found


def entry(number: int, **changes: object) -> dict[str, object]:
    """An entry as the gateway makes it."""
    uids = {"sop_instance_uid": f"1.2.{number}", "study_instance_uid": "1.0", "series_instance_uid": "1.1"}
    return {**uids, "local_path": f"/Volumes/x/{number}.dcm", "num_frames": 1, **changes}


def test_each_entry_lands_in_its_own_table(lakebase: LakebaseUtils) -> None:
    rows = [entry(1, uc_table_name=TABLE), entry(2, uc_table_name=OTHER), entry(3)]
    assert lakebase.insert_instance_paths_batch(rows) == 3
    of_this = lakebase.retrieve_instance_paths_by_series("1.0", "1.1", TABLE)
    of_other = lakebase.retrieve_instance_paths_by_series("1.0", "1.1", OTHER)
    assert of_this is not None
    assert of_other is not None
    assert (sorted(of_this), sorted(of_other)) == (["1.2.1", "1.2.3"], ["1.2.2"])
    assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.2", TABLE) is None
    assert of_other["1.2.2"]["path"] == "/Volumes/x/2.dcm"
    assert lakebase.insert_instance_paths_batch([entry(4)], "others", ["staff"], uc_table_name=OTHER) == 1
    assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.4", OTHER) is None
    assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.4", OTHER, "others", ["staff"]) is not None
    with pytest.raises(ConfigError, match="no identifier"):
        lakebase.insert_instance_paths_batch([entry(5), entry(6, uc_table_name="a b")])
    assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.5") is None, "all entries or none"


def test_entries_of_one_file_in_a_call_are_as_in_several(lakebase: LakebaseUtils) -> None:
    path, last = "/Volumes/c/6.dcm", {"study_instance_uid": "1.9", "sop_instance_uid": None}
    entries = [
        {"local_path": path, "sop_instance_uid": "1.2.6", "study_instance_uid": "1.2", "num_frames": 40},
        {"local_path": f"dbfs:{path}", "series_instance_uid": "1.3", "num_frames": None},
        {"local_path": f"/{path}", **last},
    ]
    found = []
    for calls in ([[each] for each in entries], [entries], [entries[:2], entries[2:]]):
        lakebase.execute_query("DELETE FROM voxtier.claim")
        assert [lakebase.insert_instance_paths_batch(call) for call in calls] == [1] * len(calls)
        found.append(lakebase.retrieve_instance_path(None, None, "1.2.6"))
    expected = {"path": path, "local_path": path, "num_frames": 40, "series_instance_uid": "1.3"}
    assert found == [expected | {"study_instance_uid": "1.9", "sop_instance_uid": "1.2.6"}] * 3


def test_groups_of_later_writers_are_added(lakebase: LakebaseUtils) -> None:
    for groups in (["a"], ["b", "c, d"], [], None):
        lakebase.insert_instance_paths_batch([entry(1)], allowed_groups=groups)
        lakebase.insert_frame_range("/x.dcm", 0, 0, 9, 0, allowed_groups=groups)
    for group in ("a", "b", "c, d"):
        assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.1", user_groups=[group]) is not None
        assert lakebase.retrieve_frame_range("/x.dcm", 0, user_groups=[group]) is not None
    assert lakebase.retrieve_frame_range("/x.dcm", 0, user_groups=["c", "d"]) is None


def test_an_empty_list_of_groups_is_no_restriction(lakebase: LakebaseUtils) -> None:
    lakebase.insert_instance_paths_batch([entry(1)], allowed_groups=[])
    lakebase.insert_frame_range("/x.dcm", 0, 0, 9, 0, allowed_groups=[])
    assert lakebase.retrieve_instance_path("1.0", "1.1", "1.2.1", user_groups=[]) is not None
    assert lakebase.retrieve_frame_range("/x.dcm", 0, user_groups=["whoever"]) is not None


class Warehouse:
    """Answers conditions with SOP Instance UIDs, as rows of one column."""

    def __init__(self, **found: list[Any]) -> None:
        self.found = found
        self.asked: list[str] = []

    def execute(self, query: str, parameters: object = None) -> list[Any]:
        assert parameters is None
        self.asked.append(query)
        return next(rows for word, rows in self.found.items() if word in query)


def test_rules_by_group_and_condition(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    paths = write_files(tmp_path, 3)
    uids = [read_table(path).sop_instance_uid for path in paths]
    FileIndexer(lakebase.store, source=TABLE).index_batch(paths)

    def seen(*groups: str) -> list[int]:
        found = lakebase.retrieve_frame_ranges_batch(paths, TABLE, DICOM_FRAMES_TABLE, groups)
        return [number for number, path in enumerate(paths) if path in found]

    assert seen("x") == [0, 1, 2]
    lakebase.upsert_access_rule(TABLE, "admins", "full", None, "sees all")
    lakebase.upsert_access_rule(TABLE, "ct", "conditional", "modality = 'CT' -- all of them")
    assert (seen("admins"), seen("ct"), seen("x")) == ([0, 1, 2], [], [])
    warehouse = Warehouse(CT=[(uids[1],), [uids[2] + "\0"], (None,)])
    assert lakebase.sync_uc_row_filters(TABLE, warehouse) == 2
    assert (seen("admins"), seen("ct"), seen("x", "ct")) == ([0, 1, 2], [1, 2], [1, 2])
    assert lakebase.sync_uc_row_filters(TABLE, warehouse) == 0
    assert "`main`.`pixels`.`object_catalog`" in warehouse.asked[0]
    assert [rule["group_name"] for rule in lakebase.get_access_rules(TABLE)] == ["admins", "ct"]
    assert lakebase.get_access_rules(TABLE)[1] == {
        "group_name": "ct", "access_type": "conditional", "uc_filter_sql": "modality = 'CT' -- all of them",
        "description": None, "path_prefix": "",
    }  # fmt: skip
    assert lakebase.sync_uc_row_filters(TABLE, Warehouse(CT=[])) == 2, "who no longer matches is out"
    assert seen("ct") == []
    assert lakebase.reset_allowed_groups(TABLE) == 3
    assert (seen("x"), lakebase.get_access_rules(TABLE)) == ([0, 1, 2], [])
    assert lakebase.sync_uc_row_filters(TABLE, warehouse) == 3, "the rules come back, as at the origin"
    assert (seen("ct"), seen("x")) == ([1, 2], [])
    for broken, error in ((Warehouse(), BackendError), (Warehouse(CT=[5]), ConfigError)):
        with pytest.raises(error, match="'ct'"):
            lakebase.sync_uc_row_filters(TABLE, broken)
    assert seen("ct") == [1, 2], "a failed synchronisation changes nothing"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda lake: lake.upsert_access_rule(TABLE, ["staff"]),
        lambda lake: lake.upsert_access_rule(TABLE, ""),
        lambda lake: lake.upsert_access_rule(TABLE, "a\0b"),
        lambda lake: lake.upsert_access_rule(TABLE, "staff", "some"),
        lambda lake: lake.upsert_access_rule(TABLE, "staff", "conditional"),
        lambda lake: lake.upsert_access_rule(TABLE, "staff", "full", "x = 1"),
        lambda lake: lake.upsert_access_rule(TABLE, "staff", path_prefix=5),
        lambda lake: lake.upsert_access_rule(TABLE, "staff", path_prefix="x" * 3000),
        lambda lake: lake.upsert_access_rule("a;b", "staff"),
        lambda lake: lake.upsert_access_rule(5, "staff"),
        lambda lake: lake.get_access_rules("a.b.c.d"),
        lambda lake: lake.retrieve_frame_range(None, 0),
        lambda lake: lake.retrieve_frame_range(b"/x.dcm", 0),
        lambda lake: lake.retrieve_frame_range("/x.dcm", "0"),
        lambda lake: lake.retrieve_frame_range("/x.dcm", None),
        lambda lake: lake.retrieve_frame_range("/x.dcm", 0, 7),
        lambda lake: lake.retrieve_frame_range("/x.dcm", 0, TABLE, None),
        lambda lake: lake.retrieve_max_frame_range("/x.dcm", None),
        lambda lake: lake.retrieve_max_frame_range("/x.dcm", ["a"]),
        lambda lake: lake.retrieve_all_frame_ranges(5),
        lambda lake: lake.retrieve_frame_ranges_batch("/x.dcm"),
        lambda lake: lake.retrieve_frame_ranges_batch(None),
        lambda lake: lake.retrieve_frame_ranges_batch([None]),
        lambda lake: lake.touch_frame_ranges(None),
        lambda lake: lake.touch_frame_ranges_batch("/x.dcm"),
        lambda lake: lake.get_preload_priority_list(TABLE, "many"),
        lambda lake: lake.get_preload_priority_list(TABLE, None),
        lambda lake: lake.get_preload_priority_list(TABLE, 5, "x y"),
        lambda lake: lake.insert_frame_ranges("/x.dcm", None),
        lambda lake: lake.insert_frame_ranges("/x.dcm", [None]),
        lambda lake: lake.insert_frame_ranges("", [{"frame_number": 0, "start_pos": 0, "end_pos": 1}]),
        lambda lake: lake.insert_frame_range("/x.dcm", True, 0, 1, 0),
        lambda lake: lake.insert_frame_range("/x.dcm", 0, 0, 1, 0, allowed_groups="staff"),
        lambda lake: lake.insert_frame_range("/x.dcm", 0, 0, 1, 0, allowed_groups=[""]),
        lambda lake: lake.insert_frame_range("/x.dcm", 0, 0, 1, 0, allowed_groups=[None]),
        lambda lake: lake.retrieve_instance_path("1", "1", None),
        lambda lake: lake.retrieve_instance_path(1, "1", "1"),
        lambda lake: lake.retrieve_instance_paths_by_series("1", None),
        lambda lake: lake.retrieve_instance_paths_by_local_paths("/x.dcm"),
        lambda lake: lake.retrieve_instance_paths_for_preload(TABLE, 1.5),
        lambda lake: lake.insert_instance_paths_batch(None),
        lambda lake: lake.insert_instance_paths_batch([None]),
        lambda lake: lake.insert_instance_paths_batch("abc"),
        lambda lake: lake.insert_instance_paths_batch([entry(1, local_path=5)]),
        lambda lake: lake.insert_instance_paths_batch([entry(1, num_frames="3")]),
        lambda lake: lake.insert_instance_paths_batch([entry(1, sop_instance_uid=5)]),
        lambda lake: lake.insert_instance_paths_batch([entry(1, sop_instance_uid="\ud800")]),
        lambda lake: lake.insert_instance_paths_batch([entry(1)], TABLE),
        lambda lake: lake.insert_metrics(None, {}),
        lambda lake: lake.insert_metrics("gateway", None),
        lambda lake: lake.insert_metrics("gateway", {"at": object()}),
        lambda lake: lake.insert_metrics("gateway", {"file": "a\0b"}),
        lambda lake: lake.insert_metrics("gateway", {"file": ["a\udcff"]}),
        lambda lake: lake.insert_metrics("gateway", {"by file": ({"\udcff": 1},)}),
        lambda lake: lake.insert_metrics("gateway", nested(100_000)),
        lambda lake: lake.get_latest_metrics(5),
        lambda lake: lake.get_latest_metrics(limit="x"),
        lambda lake: lake.get_latest_metrics(limit=True),
        lambda lake: lake.retrieve_frame_range("a.dcm", True),
        lambda lake: lake.retrieve_max_frame_range("a.dcm", [1, 2.0]),
        lambda lake: lake.insert_instance_paths_batch([entry(1, num_frames=True)]),
        lambda lake: lake.get_user_groups(None),
        lambda lake: lake.execute_query(None),
        lambda lake: lake.execute_and_fetch_query(5),
        lambda lake: lake.execute_and_fetch_query("CREATE TABLE public.made (a int)"),
        lambda lake: lake.execute_and_fetch_query("SELECT 1\0"),
        lambda lake: lake.execute_and_fetch_query("SELECT '\ud800'"),
        lambda lake: lake.execute_and_fetch_query("SELECT %s", ["\ud800"]),
        lambda lake: lake.execute_and_fetch_query("SELECT %s", ["a\0b"]),
        lambda lake: lake.execute_and_fetch_query("SELECT %s", []),
        lambda lake: lake.execute_and_fetch_query("SELECT %s", 5),
        lambda lake: lake.execute_query("SELECT %s", [object()]),
        lambda lake: lake.execute_and_fetch_query("SELECT 1", None, "staff"),
        lambda lake: lake.reset_allowed_groups("a b"),
        lambda lake: LakebaseUtils(dsn=5),
        lambda lake: LakebaseUtils(max_connections="4"),
        lambda lake: LakebaseUtils(min_connections=None),
        lambda lake: LakebaseUtils(max_connections=8.5),
        lambda lake: LakebaseUtils(capacity=1),
        lambda lake: LakebaseUtils(app_sp_id=5),
        lambda lake: LakebaseUtils(credentials={"user": "u"}),
        lambda lake: LakebaseUtils(None),
        lambda lake: LakebaseUtils(uc_table_name=5),
        lambda lake: LakebaseUtils(uc_table_name="a.b.c.d"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_config_errors(lakebase: LakebaseUtils, wrong: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError):
        wrong(lakebase)
    assert lakebase.execute_and_fetch_query("SELECT to_regclass('public.made')") == [(None,)]


def test_a_query_without_rows_names_the_method_that_takes_it(lakebase: LakebaseUtils) -> None:
    with pytest.raises(ConfigError, match=r"CREATE TABLE.*nothing is changed: execute_query\(\)"):
        lakebase.execute_and_fetch_query("CREATE TABLE public.made (a int)")
    lakebase.execute_query("CREATE TABLE public.made (a int)")
    assert lakebase.execute_and_fetch_query("INSERT INTO public.made VALUES (%s) RETURNING a", [5]) == [(5,)]
    with pytest.raises(BackendError, match="does not exist"):  # that is for the server to say
        lakebase.execute_query("INSERT INTO public.lost VALUES (5)")
    odd = {"text": "\\u0000 \\\\ \N{GRINNING FACE}", "of": [None, True, 1.5, {"": ()}]}
    lakebase.insert_metrics("gateway", odd)
    assert lakebase.get_latest_metrics()[0]["metrics"] == json.loads(json.dumps(odd))


ODD = [
    "o'brien",
    'quo"te',
    "back`quote",
    "a, b",
    "{x}",
    "NULL",
    "%s",
    "rö ntgen 像",
    "back\\slash",
    "--",
    "x;",
]


@pytest.mark.parametrize("odd", ODD)
def test_any_text_is_a_path_a_uid_a_group_and_a_user(lakebase: LakebaseUtils, odd: str) -> None:
    path = f"/Volumes/{odd}/{odd}.dcm"
    lakebase.insert_frame_range(path, 0, 0, 9, 0, allowed_groups=[odd])
    assert lakebase.retrieve_frame_range(f"dbfs:{path}", 0, user_groups=["x", odd]) is not None
    assert lakebase.retrieve_frame_range(path, 0, user_groups=["x"]) is None
    entries = [entry(1, local_path=path, sop_instance_uid=odd)]
    lakebase.insert_instance_paths_batch(entries, allowed_groups=[odd])
    found = lakebase.retrieve_instance_path("1.0", "1.1", odd, user_groups=[odd])
    assert found is not None
    assert found["path"] == path
    lakebase.upsert_access_rule(None, odd, "conditional", odd, odd, path_prefix=f"/Volumes/{odd}")
    assert lakebase.get_access_rules()[0]["description"] == odd
    lakebase.insert_metrics(odd, {odd: odd})
    assert lakebase.get_latest_metrics(odd)[0]["metrics"] == {odd: odd}
    assert json.dumps(lakebase.get_latest_metrics(odd))
    assert lakebase.get_user_groups(odd) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("main.pixels.object_catalog", ("main", "pixels", "object_catalog")),
        (" my-catalog.pix-els._t-1 ", ("my-catalog", "pix-els", "_t-1")),
        ("`my-catalog`.pixels.`object_catalog`", ("my-catalog", "pixels", "object_catalog")),
    ],
)
def test_names_with_hyphens_and_in_backquotes_are_split(text: str, parts: tuple[str, str, str]) -> None:
    assert parse_uc_table_name(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "a.b",
        "a.b.c.d",
        "",
        "a..c",
        "`a.b.c",
        "a`.b.c",
        "``.b.c",
        "a.b.`c``d`",
        "ü.b.c",
        "a.b.c;",
        None,
        5,
        b"a.b",
    ],
)
def test_what_is_no_full_name_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"name|identifier"):
        parse_uc_table_name(text)


def test_backquotes_and_hyphens_name_one_source(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, 1)
    lakebase.insert_frame_range(path, 0, 0, 9, 0, "`my-catalog`.`pix-els`.`t`", "`frames-2`")
    assert lakebase.retrieve_frame_range(path, 0, "my-catalog.pix-els.t", "frames-2") is not None
    assert lakebase.create_frames_view("`my-catalog`.`pix-els`.`t`", "`frames-2`") == "pix-els.frames-2"
    assert lakebase.execute_and_fetch_query('SELECT filename FROM "pix-els"."frames-2"') == [(path,)]


def test_attributes_of_the_published_class(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_PIXELS_TABLE", "`my-catalog`.pix.t")
    dbname = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with LakebaseUtils("an-instance", dsn=dsn) as lakebase:
        assert (lakebase.instance_name, lakebase.database, lakebase.schema) == ("an-instance", dbname, "pix")
        lakebase.insert_frame_range("/x.dcm", 0, 0, 9, 0)
        assert lakebase.retrieve_frame_range("/x.dcm", 0, "my-catalog.pix.t") is not None
    monkeypatch.delenv("DATABRICKS_PIXELS_TABLE")
    with LakebaseUtils(credentials=dict) as lakebase:
        assert (lakebase.database, lakebase.schema) == ("databricks_postgres", "pixels")
    with LakebaseUtils(credentials=dict, uc_table_name="c.s.t") as lakebase:
        assert (lakebase.database, lakebase.schema) == ("c", "s")
    assert (DICOM_FRAMES_TABLE, INSTANCE_PATHS_TABLE) == ("dicom_frames", "instance_paths")


def test_connections_are_lent_and_queries_may_be_composed(lakebase: LakebaseUtils) -> None:
    name = sql.Identifier('odd"na`me')
    lakebase.execute_query(sql.SQL("CREATE TABLE {} (x int)").format(name))
    for is_kept in (True, False):
        connection = lakebase.connection.getconn()
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(name), (5,))
        if is_kept:
            connection.commit()
        lakebase.connection.putconn(connection)
    query = sql.SQL("SELECT x FROM {} WHERE x = %s").format(name)
    assert lakebase.execute_and_fetch_query(query, (5,), user_groups=["staff"]) == [(5,)]
    assert lakebase.execute_and_fetch_query(b"SELECT 'a%'") == [("a%",)]
    with pytest.raises(ConfigError, match="not lent"):
        lakebase.connection.putconn(connection)
    groups = "SELECT voxtier.groups()"
    assert lakebase.execute_and_fetch_query(groups, None, ["a, b"]) == [(["a, b"],)]
    assert lakebase.execute_and_fetch_query(groups) == [(None,)]


def latin(connection: Any) -> None:
    connection.execute("SET client_encoding = 'LATIN1'")
    connection.commit()


def other_role(connection: Any) -> None:
    connection.execute("SET ROLE pg_monitor")
    connection.commit()


def rows_as_dicts(connection: Any) -> None:
    connection.row_factory = psycopg.rows.dict_row


@pytest.mark.parametrize("change", [latin, other_role, rows_as_dicts])
def test_what_a_caller_sets_on_a_lent_connection_ends_with_it(
    dsn: str, template: str, tmp_path: Path, change: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "é"
    folder.mkdir()
    paths = write_files(folder, 1)
    with LakebaseUtils(dsn=dsn, uc_table_name=TABLE, min_connections=1, max_connections=1) as lakebase:
        lakebase.upsert_access_rule(None, "staff", path_prefix=f"{folder}/")
        connection = lakebase.connection.getconn()
        change(connection)
        lakebase.connection.putconn(connection)
        assert [rule["group_name"] for rule in lakebase.get_access_rules()] == ["staff"]
        FileIndexer(lakebase.store, source=TABLE).index_batch(paths)
        assert lakebase.rows("SELECT path, allowed_groups FROM voxtier.file", None) == [(paths[0], ["staff"])]
    assert caplog.text == "", "that its session ends is no warning"


@pytest.mark.parametrize("close", [True, False])
def test_a_lent_connection_that_was_lost_is_taken_back(lakebase: LakebaseUtils, close: bool) -> None:
    connection = lakebase.connection.getconn()
    row = connection.execute("SELECT pg_backend_pid()").fetchone()  # and its transaction goes on
    lakebase.rows("SELECT pg_terminate_backend(%s, 60000)", row)
    lakebase.connection.putconn(connection, close=close)
    assert lakebase.rows("SELECT 1", None) == [(1,)]


def test_paths_may_be_uris_of_local_files(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    path = tmp_path / "a b.dcm"
    path.write_bytes(native(1, 3))
    FileIndexer(lakebase.store, source=TABLE).index_batch([str(path)])
    for name in (f"dbfs:{path}", f"file:{path}", path.as_uri(), f"file://localhost{path.as_uri()[7:]}"):
        assert compute_bot_from_local_path(name)["num_frames"] == 3
        assert compute_bot_from_local_path(path)["num_frames"] == 3  # type: ignore[arg-type]
        assert lakebase.retrieve_frame_range(name, 2) is not None
        assert set(lakebase.retrieve_frame_ranges_batch([name])) == {name}
        assert lakebase.touch_frame_ranges(name) == 1
        assert read_table(name) == read_table(path)


def test_priority_list_has_no_value_without_a_type(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    paths = write_files(tmp_path, 3)
    FileIndexer(lakebase.store, source=TABLE).index_batch(paths)
    rows = lakebase.get_preload_priority_list(TABLE, 10, "dicom_frames")
    assert len(rows) == 3
    assert all(value is not None and value != [] for row in rows for value in row.values())
    assert {row["last_used_at"].year for row in rows} == {1970}
    assert json.dumps(rows, default=str)
