"""Rules of access that change, and what they leave alone: groups of writers, other instances."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from frames.dicom.catalogue import TABLE, native
from voxtier.frames import LakebaseUtils, read_table
from voxtier.frames.databricks.lakebase import groups as group_methods
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store.groups import restrict


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
    lakebase.store.upsert(TABLE, [TableResult(path, read_table(native(seed)), None)])


def seen_by(lakebase: LakebaseUtils, path: str, *groups: str) -> list[str]:
    """Return which of the groups, and of a group that nothing names, see frames of a file."""
    asked = [*groups, "a stranger"]
    return [each for each in asked if lakebase.retrieve_frame_range(path, 0, user_groups=[each]) is not None]


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
