"""Rules of access that change, and what they leave alone: groups of writers, other instances."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from frames.databricks.groups.locks import waits_for_lock
from frames.dicom.catalogue import TABLE, native
from voxtier.errors import BackendError
from voxtier.frames import LakebaseUtils, read_table
from voxtier.frames.databricks.lakebase import groups as group_methods
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store.groups import GroupStore, restrict
from voxtier.frames.store.statements import lock_groups


class Warehouse:
    """Answers each condition with the SOP Instances that it finds."""

    def __init__(self, **found: list[str]) -> None:
        self.found = found

    def execute(self, query: str, parameters: object = None) -> list[tuple[str]]:
        assert parameters is None
        condition = query.split("WHERE (\n")[1].removesuffix("\n)")
        return [(uid,) for uid in self.found[condition]]


def add_row(lakebase: LakebaseUtils, path: str, seed: int = 1) -> None:
    """Add a row as an index run does, of the SOP Instance 2.25.1.`seed`."""
    lakebase.store.upsert(TABLE, [TableResult(path, read_table(native(seed)), None)], force=True)


def seen_by(lakebase: LakebaseUtils, path: str, *groups: str) -> list[str]:
    """Return which of the groups, and of a group that nothing names, see frames of a file."""
    query = "SELECT FROM voxtier.dicom_frames WHERE filename = %s LIMIT 1"
    return [each for each in (*groups, "a stranger") if lakebase.rows(query, (path,), [each])]


WRITERS: dict[str, Callable[[LakebaseUtils, str], object]] = {
    "claim": lambda lake, path: lake.insert_frame_range(path, 0, 0, 9, 0, allowed_groups=["ward"]),
    "import": lambda lake, path: restrict(lake.store, TABLE, {path: ["ward"]}),
}


@pytest.mark.parametrize("with_client", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_synchronisation_keeps_what_a_writer_restricted(
    lakebase: LakebaseUtils, writer: str, monkeypatch: pytest.MonkeyPatch, *, indexed: bool, with_client: bool
) -> None:
    """Files that no rule is of: with one for another folder, and with none."""
    path, trial = "/data/a.dcm", "/trial/a.dcm"
    add_row(lakebase, trial)
    if indexed:
        add_row(lakebase, path, 2)
    else:
        lakebase.insert_frame_range(path, 0, 0, 9, 0)
    WRITERS[writer](lakebase, path)
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent", path_prefix="/trial/")
    lakebase.insert_frame_range(trial, 0, 0, 9, 0, allowed_groups=["ward"])  # beside those of the rule
    monkeypatch.setattr(group_methods, "row_filter_groups", lambda *_: None)
    client = Warehouse(consent=["2.25.1.1"]) if with_client else None
    for changed in (1, 0):
        done = lakebase.sync_uc_row_filters(TABLE, client)
        assert done == (changed if with_client else None)
        assert seen_by(lakebase, path, "ward", "team") == ["ward"]
        assert seen_by(lakebase, trial, "ward", "team") == (["team"] if with_client else ["ward"])
    monkeypatch.setattr(group_methods, "row_filter_groups", lambda *_: ["staff"])
    assert lakebase.sync_uc_row_filters(TABLE) == ["staff"], "a rule of all files decides for all"
    assert seen_by(lakebase, path, "ward", "staff") == seen_by(lakebase, trial, "ward", "staff") == ["staff"]
    assert lakebase.reset_allowed_groups(TABLE) == 2
    assert seen_by(lakebase, path) == seen_by(lakebase, trial) == ["a stranger"]


def synchronise_anew(lakebase: LakebaseUtils) -> None:
    """What the catalogue says by now: the older answer is still on its way."""
    lakebase.sync_uc_row_filters(TABLE, Warehouse(consent=["2.25.1.2"], public=[]))


# What happens while the warehouse answers; and which instances the group sees in the end: those that it would
# see if that had come before the synchronisation.
MEANWHILE: dict[str, tuple[Callable[[LakebaseUtils], object], list[int]]] = {
    "another condition": (lambda lake: lake.upsert_access_rule(TABLE, "team", "conditional", "public"), [3]),
    "the same, described": (
        lambda lake: lake.upsert_access_rule(TABLE, "team", "conditional", "consent", "as before"),
        [2],
    ),
    "all files": (lambda lake: lake.upsert_access_rule(TABLE, "team"), [1, 2, 3]),
    "rules that go": (lambda lake: lake.sync_uc_row_filters(TABLE), []),
    "a reset": (lambda lake: lake.reset_allowed_groups(TABLE), [2]),
    "another synchronisation": (synchronise_anew, [2]),
    "a rule more": (
        lambda lake: lake.upsert_access_rule(TABLE, "team", "conditional", "public", path_prefix="/data/"),
        [3],
    ),
    "nothing": (lambda _: None, [1]),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_an_answer_of_the_warehouse_counts_for_the_rule_that_was_asked(
    lakebase: LakebaseUtils, dsn: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_methods, "row_filter_groups", lambda *_: ["staff"])
    paths = {seed: f"/data/{seed}.dcm" for seed in (1, 2, 3)}
    for seed, path in paths.items():
        add_row(lakebase, path, seed)
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")
    change, visible = MEANWHILE[what]

    class Slow(Warehouse):
        def execute(self, query: str, parameters: object = None) -> list[tuple[str]]:
            answer = super().execute(query, parameters)
            if self.found["consent"] == ["2.25.1.1"]:
                with LakebaseUtils(dsn=dsn, uc_table_name=TABLE) as other:
                    change(other)
                if what != "nothing":
                    self.found["consent"] = ["2.25.1.2"]
            return answer

    lakebase.sync_uc_row_filters(TABLE, Slow(consent=["2.25.1.1"], public=["2.25.1.3"]))
    assert [seed for seed, path in paths.items() if seen_by(lakebase, path, "team") == ["team"]] == visible


def test_rules_that_change_whenever_they_are_asked_end_a_synchronisation(
    lakebase: LakebaseUtils, dsn: str
) -> None:
    add_row(lakebase, "/a.dcm")
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")

    class Restless(Warehouse):
        def execute(self, query: str, parameters: object = None) -> list[tuple[str]]:
            with LakebaseUtils(dsn=dsn, uc_table_name=TABLE) as other:
                other.upsert_access_rule(TABLE, "team", "conditional", "consent")
            return super().execute(query, parameters)

    with pytest.raises(BackendError, match=f"rules of {TABLE} were changed .* synchronise again"):
        lakebase.sync_uc_row_filters(TABLE, Restless(consent=["2.25.1.1"]))
    assert seen_by(lakebase, "/a.dcm", "team") == []


@pytest.mark.parametrize("after_reset", [False, True])
def test_a_condition_that_is_set_again_as_it_was_keeps_what_it_found(
    lakebase: LakebaseUtils, *, after_reset: bool
) -> None:
    def seen() -> list[str]:
        return [path for path in paths if seen_by(lakebase, path, "team") == ["team"]]

    paths = ["/data/1.dcm", "/data/2.dcm"]
    for seed, path in enumerate(paths, 1):
        add_row(lakebase, path, seed)
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")
    lakebase.upsert_access_rule(TABLE, "others", "conditional", "public")
    lakebase.sync_uc_row_filters(TABLE, Warehouse(consent=["2.25.1.1"], public=["2.25.1.2"]))
    if after_reset:
        assert lakebase.reset_allowed_groups(TABLE) == 2
    changed = lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent", "described")
    assert changed == (2 if after_reset else 0)
    assert seen() == paths[:1]
    assert lakebase.get_access_rules(TABLE)[0]["description"] == "described"
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "public")
    assert seen() == [], "of another condition nothing is known"
    lakebase.upsert_access_rule(TABLE, "team")
    assert seen() == paths
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")
    assert seen() == []
    lakebase.upsert_access_rule(TABLE, "others", "conditional", "public")
    assert seen_by(lakebase, paths[1], "others") == ["others"], "that of another rule stays"


def name_instance(lakebase: LakebaseUtils, path: str, seed: int, groups: list[str] | None = None) -> None:
    entry = {"local_path": path, "sop_instance_uid": f"2.25.1.{seed}"}
    assert lakebase.insert_instance_paths_batch([entry], allowed_groups=groups) == 1


@pytest.mark.parametrize("writer", [None, ["ward"]])
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (None, 1), (None, 2), (1, 1), (1, None)])
def test_a_claim_of_another_instance_has_its_groups(
    lakebase: LakebaseUtils, before: int | None, now: int | None, writer: list[str] | None
) -> None:
    """The condition found instance 1: whoever is claimed last decides, and then the file itself."""
    path = "/data/a.dcm"
    lakebase.upsert_access_rule(TABLE, "staff")
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")
    lakebase.sync_uc_row_filters(TABLE, Warehouse(consent=["2.25.1.1"]))
    for seed, groups in ((before, writer), (now, None)):
        if seed is None:
            lakebase.insert_frame_range(path, 0, 0, 9, 0, allowed_groups=groups)
        else:
            name_instance(lakebase, path, seed, groups)
    lakebase.insert_frame_range(path, 0, 0, 9, 0)
    rest = ["staff", *(writer or [])]
    asked = ("staff", "ward", "team")
    is_of_team = (now or before) == 1
    assert seen_by(lakebase, path, *asked) == rest + ["team"] * is_of_team
    lakebase.reset_allowed_groups(TABLE)
    lakebase.sync_uc_row_filters(TABLE, Warehouse(consent=["2.25.1.1"]))
    if writer:
        name_instance(lakebase, path, 2, writer)
    for seed in (3, 1):
        add_row(lakebase, path, seed)
        assert seen_by(lakebase, path, *asked) == rest + ["team"] * (seed == 1)


@pytest.mark.parametrize("writer", [None, ["ward"]])
@pytest.mark.parametrize("level", ["full", "conditional"])
def test_a_file_that_comes_back_with_another_instance_has_its_groups(
    lakebase: LakebaseUtils, level: str, writer: list[str] | None
) -> None:
    """What the condition found for the instance that is gone was no group of the path."""
    path = "/data/a.dcm"
    lakebase.upsert_access_rule(TABLE, "staff", level, None if level == "full" else "staffed")
    lakebase.upsert_access_rule(TABLE, "team", "conditional", "consent")
    lakebase.sync_uc_row_filters(TABLE, Warehouse(consent=["2.25.1.1"], staffed=["2.25.1.1", "2.25.1.2"]))
    add_row(lakebase, path, 1)
    if writer:
        lakebase.insert_frame_range(path, 0, 0, 9, 0, allowed_groups=writer)
    asked, rest = ("staff", "ward", "team"), ["staff", *(writer or [])]
    assert seen_by(lakebase, path, *asked) == [*rest, "team"]
    for seed, seen in ((2, rest), (3, rest[level == "conditional" :]), (1, [*rest, "team"])):
        assert lakebase.store.prune(TABLE, is_gone=lambda _: True, force=True) == 1
        for group in ("team", "a stranger"):
            may = GroupStore(lakebase.store, [group]).may_read(TABLE, path, f"2.25.1.{seed}")
            assert not may or (group, writer, seed) == ("team", None, 1)
        add_row(lakebase, path, seed)
        assert seen_by(lakebase, path, *asked) == seen


def test_a_rule_that_is_set_while_rows_are_pruned_decides_for_them(lakebase: LakebaseUtils, dsn: str) -> None:
    path = "/data/a.dcm"
    add_row(lakebase, path)
    WRITERS["claim"](lakebase, path)
    with psycopg.connect(dsn) as change, ThreadPoolExecutor(1) as pool:
        change.execute(lock_groups(TABLE, exclusive=True).encode())
        pruned = pool.submit(lakebase.store.delete, TABLE, [path])
        assert waits_for_lock(dsn)
        change.execute(
            "INSERT INTO voxtier.access_rule (source_id, path_prefix, group_name) "
            "SELECT source_id, '', 'staff' FROM voxtier.source"
        )
        for table in ("file", "claim"):
            change.execute(f"UPDATE voxtier.{table} SET allowed_groups = '{{staff}}'".encode())
        change.commit()
        assert pruned.result() == 1
    add_row(lakebase, path)
    assert seen_by(lakebase, path, "staff", "ward") == ["staff"]
