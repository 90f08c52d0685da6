"""What an upsert changes: new, changed, healed and refused files, batches as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from frames.dicom.cases import CASES
from frames.store.rows.index_rows import ask, ct, result, table_of
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, pattern
from voxtier import _core
from voxtier._core import Refusal
from voxtier.errors import ENVIRONMENT_KINDS, BackendError, FormatError, SourceError
from voxtier.frames import FrameTable, read_table, read_tables
from voxtier.frames.store import store as store_module
from voxtier.frames.store.store import FrameStore


def test_a_replay_changes_nothing(store: FrameStore, dsn: str) -> None:
    results = [result(f"/{n}") for n in range(20)]
    assert store.upsert("s", results).inserted == 20
    before = ask(dsn, "SELECT xmin, f.* FROM voxtier.file f ORDER BY key")
    assert store.upsert("s", results) == (0, 0, 20, ())
    assert ask(dsn, "SELECT xmin, f.* FROM voxtier.file f ORDER BY key") == before


def test_force_writes_an_unchanged_row_again(store: FrameStore) -> None:
    store.upsert("s", [result("/a")])
    assert store.upsert("s", [result("/a")], force=True) == (0, 1, 0, ())


def test_a_rewritten_file_with_fewer_frames_replaces_the_table(store: FrameStore) -> None:
    store.upsert("s", [result("/a", table_of(ct(frames=5)))])
    assert store.upsert("s", [result("/a", table_of(ct(frames=2)))]) == (0, 1, 0, ())
    found = store.get("s", "/a")
    assert isinstance(found, FrameTable)
    assert found == table_of(ct(frames=2))


def test_a_refusal_that_replaces_a_table_clears_its_columns(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    store.upsert("s", [result("/a", error=FormatError("not_dicom", 0, "x"))])
    assert isinstance(store.get("s", "/a"), Refusal)
    row = ask(dsn, "SELECT frames, sop_instance_uid, rows, notes, frame_count FROM voxtier.file")
    assert row == [(None, None, None, None, 0)]


def test_a_table_replaces_a_refusal(store: FrameStore) -> None:
    store.upsert("s", [result("/a", error=FormatError("not_dicom", 0, "x"))])
    assert store.upsert("s", [result("/a")]).updated == 1
    assert isinstance(store.get("s", "/a"), FrameTable)
    assert list(store.refused_files("s")) == []


def test_a_table_verified_further_replaces_the_same_table(store: FrameStore) -> None:
    content = next(case for case in CASES if case.name == "e01_bot_1to1").content
    store.upsert("s", [result("/a", read_table(content, verify="ends"))])
    assert store.upsert("s", [result("/a", read_table(content, verify="all"))]).updated == 1


def test_inserted_at_moves_with_the_content_alone(store: FrameStore, dsn: str) -> None:
    moment = "SELECT inserted_at FROM voxtier.file"
    store.upsert("s", [result("/a")])
    first = ask(dsn, moment)
    store.upsert("s", [result("/a")], force=True)
    assert ask(dsn, moment) == first
    store.upsert("s", [result("/a", table_of(ct(frames=3)))])
    assert ask(dsn, moment) > first


def test_of_two_results_for_one_file_the_later_counts(store: FrameStore) -> None:
    older, newer = table_of(ct(frames=2)), table_of(ct(frames=3))
    assert store.upsert("s", [result("/a", older), result("/b"), result("/a", newer)]).inserted == 2
    assert store.get("s", "/a") == newer


def test_the_same_path_in_two_sources_is_two_rows(store: FrameStore) -> None:
    one, two = table_of(ct(frames=1)), table_of(ct(frames=2))
    store.upsert("one", [result("/a", one)])
    store.upsert("two", [result("/a", two)])
    assert (store.get("one", "/a"), store.get("two", "/a")) == (one, two)
    assert store.sources() == ["one", "two"]


def test_more_files_than_a_batch_are_all_written_found_and_deleted(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BATCH", 7)
    paths = [f"/{n}" for n in range(50)]
    assert store.upsert("s", (result(path) for path in paths)).inserted == 50
    assert None not in store.file_states("s", paths)
    assert store.file_states("s", ["/x", *paths, "/y"])[0::51] == [None, None]
    assert None not in store.get_many("s", paths)
    assert store.delete("s", paths) == 50


def test_a_batch_is_written_whole_or_not_at_all(store: FrameStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(ct())
    rows, _ = _core.Indexer("s", threads=1, verify="all").read([str(tmp_path / "a")])
    for broken in (rows + rows[:-20], rows + b"\0\3garbage", rows + bytes(100), b"\0\1\0\0\0\1x"):
        with pytest.raises(BackendError):
            store.upsert_rows("s", broken)
    assert store.summary("s").total.files == 0
    assert store.upsert_rows("s", rows).inserted == 1


def test_rows_that_are_not_as_new_as_thought_are_merged(store: FrameStore, tmp_path: Path) -> None:
    """Another run was faster with one of three files, and the rows of the other two go in all the same."""
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_bytes(ct())
    indexer = _core.Indexer("s", threads=1, verify="all")
    one, _ = indexer.read(paths[1:2])
    rows, _ = indexer.read(paths)
    assert store.upsert_rows("s", one, are_new=True) == (1, 0, 0, ())
    assert store.upsert_rows("s", rows, are_new=True) == (2, 0, 1, ())
    Path(paths[0]).write_bytes(ct() + bytes(2))
    changed, _ = indexer.read(paths[:1])
    assert store.upsert_rows("s", changed * 2, are_new=True) == (0, 1, 1, ())  # the later of two counts
    assert [state.size for state in store.file_states("s", paths)] == [len(ct()) + 2, len(ct()), len(ct())]


def test_a_table_of_a_hundred_thousand_frames_comes_back(store: FrameStore) -> None:
    payloads = [pattern(2 * (i % 5) + 2, i) for i in range(100_000)]
    elements = [*image(frames=len(payloads)), Element(PIXEL_DATA, "OB", Fragments(payloads))]
    table = table_of(dicom(elements, JPEG).content)
    store.upsert("s", [result("/slide", table)])
    assert store.get("s", "/slide") == table
    assert store.summary("s").total.table_bytes < 5 * len(payloads)


@pytest.fixture
def files(store: FrameStore, tmp_path: Path) -> list[str]:
    paths = [tmp_path / folder / f"{n}.dcm" for folder in ("a", "ab", "b") for n in range(3)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(ct())
    names = list(map(str, paths))
    store.upsert("s", read_tables(names))
    return names


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", sorted(ENVIRONMENT_KINDS))
@pytest.mark.parametrize("before", ["table", "not_dicom", "ambiguous_fragments"])
def test_what_could_not_be_read_takes_nothing_away(
    store: FrameStore, dsn: str, before: str, kind: str, *, force: bool
) -> None:
    """Nothing is known of the file then, whatever state it was met in."""
    row = "SELECT xmin, f.* FROM voxtier.file f"
    was = result("/a") if before == "table" else result("/a", error=FormatError(before, 0, "x"))
    store.upsert("s", [was])
    kept = ask(dsn, row)
    failed = result("/a", error=SourceError(kind, None, "x", 5))
    for fault in (failed, failed._replace(fingerprint=(1, 2, 3, 4, None))):
        assert store.upsert("s", [fault], force=force) == (0, 0, 1, ())
        assert ask(dsn, row) == kept
    [again] = [result("/a", table_of(ct(frames=4)))]
    assert store.upsert("s", [again, failed]) == (0, 1, 1, ()), "nor within a batch"
    assert store.get("s", "/a") == again.table


def test_a_file_that_was_never_read_says_why_and_then_why_today(store: FrameStore) -> None:
    for kind, counts in (("io_error", (1, 0, 0, ())), ("changed_during_read", (0, 1, 0, ()))):
        failed = result("/a", error=SourceError(kind, None, kind, 5))
        assert store.upsert("s", [failed]) == counts
        assert [(each.kind, each.detail) for each in store.refused_files("s")] == [(kind, kind)]
    assert store.upsert("s", [failed, result("/b"), failed], force=True) == (1, 1, 1, ())
    assert store.upsert("s", [result("/a", error=FormatError("not_dicom", 0, "x"))]).updated == 1
