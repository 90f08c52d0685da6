"""Look-ups by UID, the summary of a source, the list of refused files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from frames.dicom.cases import Case
from frames.store.rows.index_rows import ask, ct, result, table_of
from voxtier.frames import read_tables
from voxtier.frames.store import store as store_module
from voxtier.frames.store.store import FrameStore


def test_files_are_found_by_sop_instance_and_series(store: FrameStore) -> None:
    first, second = table_of(ct(uid="1.1", series="9")), table_of(ct(uid="1.2", series="9"))
    store.upsert("s", [result("/b", second), result("/a", first), result("/copy", first)])
    store.upsert("t", [result("/elsewhere", first)])
    assert [(f.source, f.path) for f in store.by_sop_instance("1.1")] == [
        ("s", "/a"), ("s", "/copy"), ("t", "/elsewhere")
    ]  # fmt: skip
    assert [f.path for f in store.by_sop_instance("1.1", "t")] == ["/elsewhere"]
    assert [f.path for f in store.by_series("9", "s")] == ["/a", "/b", "/copy"]
    assert store.by_series("9", "s")[1].table == second
    assert store.by_sop_instance("1.1'; --") == []
    assert store.by_series("") == []


def test_a_look_up_by_uid_uses_the_index(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result(f"/{n}", table_of(ct(uid=f"1.{n}"))) for n in range(300)])
    ask(dsn, "ANALYZE voxtier.file")
    plan = ask(
        dsn, "EXPLAIN SELECT 1 FROM voxtier.file WHERE hashtextextended(sop_instance_uid, 0) = "
        "hashtextextended('1.7', 0) AND sop_instance_uid = '1.7'",
    )  # fmt: skip
    assert "file_sop_instance" in str(plan)


def test_summary_counts_files_frames_and_bytes_by_each_closed_list(
    store: FrameStore, case_files: dict[str, Case]
) -> None:
    results = list(read_tables(case_files, verify="all"))
    store.upsert("s", results)
    store.upsert("other", results[:3])
    summary = store.summary("s")
    tables = [r.table for r in results if r.table is not None]
    assert summary.total.files == len(results)
    assert summary.total.frames == sum(map(len, tables))
    assert summary.total.file_bytes == sum(len(case.content) for case in case_files.values())
    assert summary.total.table_bytes == sum(len(table.packed) for table in tables)
    for attribute in ("kind", "method", "transfer_syntax_uid"):
        expected = Counter(getattr(table, attribute) for table in tables)
        counted = getattr(summary, f"by_{attribute}")
        assert {name: counted[name].files for name in expected if name not in {"", "none"}} == {
            name: count for name, count in expected.items() if name not in {"", "none"}
        }
    refused = Counter(case.error for case in case_files.values() if case.error)
    ambiguous = refused["ambiguous_fragments"] + refused["fewer_fragments_than_frames"]
    assert summary.by_status["ambiguous"].files == ambiguous
    assert summary.by_status["error"].files == sum(refused.values()) - ambiguous
    assert sum(tally.files for tally in summary.by_status.values()) == len(results)


def test_refused_files_come_in_the_order_of_their_paths(
    store: FrameStore, case_files: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BATCH", 4)
    store.upsert("s", read_tables(case_files, verify="all"))
    expected = {path: case.error for path, case in case_files.items() if case.error}
    found = list(store.refused_files("s"))
    assert [error.path for error in found] == sorted(expected)
    assert {error.path: error.kind for error in found} == expected
    assert all(error.detail for error in found)


@pytest.fixture
def files(store: FrameStore, tmp_path: Path) -> list[str]:
    paths = [tmp_path / folder / f"{n}.dcm" for folder in ("a", "ab", "b") for n in range(3)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(ct())
    names = list(map(str, paths))
    store.upsert("s", read_tables(names))
    return names
