"""The frame index in PostgreSQL: what goes in comes out, nothing stale stays, nothing hostile gets in."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, pattern
from frames.dicom.cases import CASES, SPARSE, Case
from voxtier import _core
from voxtier._core import MAX_PATH_BYTES, Refusal
from voxtier.errors import BackendError, ConfigError, FormatError, SourceError
from voxtier.frames import FrameTable, TableResult, read_table, read_tables
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store import store as store_module
from voxtier.frames.store.row import FileState
from voxtier.frames.store.store import FrameStore

NOW = datetime.now(UTC)


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


@pytest.fixture(scope="module")
def case_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every reference case as a file, by path."""
    folder = tmp_path_factory.mktemp("cases")
    files = {str(folder / f"{case.name}.dcm"): case for case in CASES}
    for path, case in files.items():
        Path(path).write_bytes(case.content)
    return files


def ct(seed: int = 0, *, uid: str = "1.2.3", series: str = "1.2", frames: int = 1) -> bytes:
    """A small image."""
    uids = {"SOPInstanceUID": uid, "SeriesInstanceUID": series}
    own = {element(keyword, value).tag: element(keyword, value) for keyword, value in uids.items()}
    elements = [own.get(each.tag, each) for each in image(frames=frames)]
    return dicom([*elements, Element(PIXEL_DATA, "OW", pattern(16 * frames, seed))]).content


def table_of(content: bytes = b"") -> FrameTable:
    return read_table(content or ct(), verify="all")


def result(path: str, table: FrameTable | None = None, error: FormatError | None = None) -> TableResult:
    return TableResult(path, (table or table_of()) if error is None else None, error)


def ask(dsn: str, question: str, *values: object) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(question, values or None)
        return cursor.fetchall() if cursor.description else []


class TestRoundTrip:
    def test_the_key_is_a_hash_that_anybody_can_compute(self) -> None:
        path = "/datä/x.dcm"
        expected = hashlib.blake2b(b"s\xc3\xb6urce\0" + path.encode(), digest_size=16).digest()
        assert _core.file_key("söurce", path) == expected

    def test_every_case_read_in_python(self, store: FrameStore, case_files: dict[str, Case]) -> None:
        results = {str(r.path): r for r in read_tables(case_files, verify="all")}
        counts = store.upsert("python", results.values())
        assert counts == (len(CASES), 0, 0, ())
        self.check(store, "python", results)

    def test_every_case_written_by_the_core(self, store: FrameStore, case_files: dict[str, Case]) -> None:
        paths = list(case_files)
        rows = b"".join(rows for rows, _ in FileIndexer(store, source="core", threads=2).read(paths))
        assert store.upsert_rows("core", rows) == (len(CASES), 0, 0, ())
        results = {str(r.path): r for r in read_tables(case_files, verify="all")}
        self.check(store, "core", results)

    def test_both_write_the_same_rows(self, store: FrameStore, dsn: str, case_files: dict[str, Case]) -> None:
        paths = [path for path, case in case_files.items() if not case.error]
        FileIndexer(store, source="core", threads=2).index_batch(paths)
        store.upsert("python", read_tables(paths, verify="all"))
        names = ", ".join(name for name, _, _ in _core.ROW_COLUMNS if name != "key")
        of_source = f"""SELECT {names} FROM voxtier.file JOIN voxtier.source USING (source_id)
            WHERE name = %s ORDER BY path"""
        assert ask(dsn, of_source, "core") == ask(dsn, of_source, "python")

    def check(self, store: FrameStore, source: str, results: dict[str, TableResult]) -> None:
        many = store.get_many(source, list(results))
        known = store.file_states(source, list(results))
        for (path, expected), found, row in zip(results.items(), many, known, strict=True):
            one = store.get(source, path)
            assert isinstance(row, FileState)
            if expected.table is not None:
                assert one == found == expected.table
                assert isinstance(found, FrameTable)
                assert (row.size, row.mtime_ns) == (expected.table.size, expected.table.mtime_ns)
                assert (row.status, row.frame_count) == (found.status, len(found))
                frames = range(len(found))
                assert [found.ranges(i) for i in frames] == [expected.table.ranges(i) for i in frames]
            else:
                assert isinstance(one, Refusal)
                assert expected.error is not None
                for refusal in (one, found):
                    assert isinstance(refusal, Refusal)
                    assert type(refusal.error) is type(expected.error)
                    assert (refusal.error.kind, refusal.error.offset) == (
                        expected.error.kind, expected.error.offset
                    )  # fmt: skip
                    assert refusal.error.detail == expected.error.detail
                assert row.error_kind == expected.error.kind

    @pytest.mark.parametrize("case", SPARSE, ids=str)
    def test_positions_beyond_4_gib(self, store: FrameStore, tmp_path: Path, case: Case) -> None:
        path = tmp_path / "sparse"
        with path.open("wb") as file:
            case.write(file)
        [read] = read_tables([path])
        store.upsert("s", [read])
        found = store.get("s", str(path))
        assert found == read.table
        assert isinstance(found, FrameTable)
        assert int(found.offsets[-1]) > 1 << 31

    def test_a_refusal_of_the_surroundings_is_a_source_error(self, store: FrameStore) -> None:
        store.upsert("s", [TableResult("/gone", None, SourceError("io_error", None, "No such file", 2))])
        found = store.get("s", "/gone")
        assert isinstance(found, Refusal)
        assert isinstance(found.error, SourceError)

    def test_nothing_is_known(self, store: FrameStore) -> None:
        assert store.get("s", "/x") is None
        assert store.get_many("s", ["/x", "/y"]) == [None, None]
        assert store.file_states("s", []) == []
        assert store.sources() == []
        assert store.summary("s").total == (0, 0, 0, 0)
        assert list(store.refused_files("s")) == []
        assert store.prune("s") == 0


class TestUpsert:
    def test_a_replay_changes_nothing(self, store: FrameStore, dsn: str) -> None:
        results = [result(f"/{n}") for n in range(20)]
        assert store.upsert("s", results).inserted == 20
        before = ask(dsn, "SELECT xmin, f.* FROM voxtier.file f ORDER BY key")
        assert store.upsert("s", results) == (0, 0, 20, ())
        assert ask(dsn, "SELECT xmin, f.* FROM voxtier.file f ORDER BY key") == before

    def test_force_writes_it_again(self, store: FrameStore) -> None:
        store.upsert("s", [result("/a")])
        assert store.upsert("s", [result("/a")], force=True) == (0, 1, 0, ())

    def test_a_rewritten_file_with_fewer_frames(self, store: FrameStore) -> None:
        store.upsert("s", [result("/a", table_of(ct(frames=5)))])
        assert store.upsert("s", [result("/a", table_of(ct(frames=2)))]) == (0, 1, 0, ())
        found = store.get("s", "/a")
        assert isinstance(found, FrameTable)
        assert found == table_of(ct(frames=2))

    def test_a_table_that_turns_into_an_error_leaves_nothing_behind(
        self, store: FrameStore, dsn: str
    ) -> None:
        store.upsert("s", [result("/a")])
        store.upsert("s", [result("/a", error=FormatError("not_dicom", 0, "x"))])
        assert isinstance(store.get("s", "/a"), Refusal)
        row = ask(dsn, "SELECT frames, sop_instance_uid, rows, notes, frame_count FROM voxtier.file")
        assert row == [(None, None, None, None, 0)]

    def test_an_error_heals(self, store: FrameStore) -> None:
        store.upsert("s", [result("/a", error=FormatError("not_dicom", 0, "x"))])
        assert store.upsert("s", [result("/a")]).updated == 1
        assert isinstance(store.get("s", "/a"), FrameTable)
        assert list(store.refused_files("s")) == []

    def test_a_better_verified_table_replaces_the_same_one(self, store: FrameStore) -> None:
        content = next(case for case in CASES if case.name == "e01_bot_1to1").content
        store.upsert("s", [result("/a", read_table(content, verify="ends"))])
        assert store.upsert("s", [result("/a", read_table(content, verify="all"))]).updated == 1

    def test_inserted_at_moves_with_the_content_alone(self, store: FrameStore, dsn: str) -> None:
        moment = "SELECT inserted_at FROM voxtier.file"
        store.upsert("s", [result("/a")])
        first = ask(dsn, moment)
        store.upsert("s", [result("/a")], force=True)
        assert ask(dsn, moment) == first
        store.upsert("s", [result("/a", table_of(ct(frames=3)))])
        assert ask(dsn, moment) > first

    def test_of_two_results_for_one_file_the_later_counts(self, store: FrameStore) -> None:
        older, newer = table_of(ct(frames=2)), table_of(ct(frames=3))
        assert store.upsert("s", [result("/a", older), result("/b"), result("/a", newer)]).inserted == 2
        assert store.get("s", "/a") == newer

    def test_the_same_path_in_two_sources(self, store: FrameStore) -> None:
        one, two = table_of(ct(frames=1)), table_of(ct(frames=2))
        store.upsert("one", [result("/a", one)])
        store.upsert("two", [result("/a", two)])
        assert (store.get("one", "/a"), store.get("two", "/a")) == (one, two)
        assert store.sources() == ["one", "two"]

    def test_many_batches(self, store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "BATCH", 7)
        paths = [f"/{n}" for n in range(50)]
        assert store.upsert("s", (result(path) for path in paths)).inserted == 50
        assert None not in store.file_states("s", paths)
        assert store.file_states("s", ["/x", *paths, "/y"])[0::51] == [None, None]
        assert None not in store.get_many("s", paths)
        assert store.delete("s", paths) == 50

    def test_a_batch_is_written_whole_or_not_at_all(self, store: FrameStore, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(ct())
        rows, _ = _core.Indexer("s", threads=1, verify="all").read([str(tmp_path / "a")], [None])
        for broken in (rows + rows[:-20], rows + b"\0\3garbage", rows + bytes(100), b"\0\1\0\0\0\1x"):
            with pytest.raises(BackendError):
                store.upsert_rows("s", broken)
        assert store.summary("s").total.files == 0
        assert store.upsert_rows("s", rows).inserted == 1

    def test_frames_as_large_as_a_slide(self, store: FrameStore) -> None:
        payloads = [pattern(2 * (i % 5) + 2, i) for i in range(100_000)]
        elements = [*image(frames=len(payloads)), Element(PIXEL_DATA, "OB", Fragments(payloads))]
        table = table_of(dicom(elements, JPEG).content)
        store.upsert("s", [result("/slide", table)])
        assert store.get("s", "/slide") == table
        assert store.summary("s").total.table_bytes < 5 * len(payloads)


class TestHostile:
    PATHS = (
        "/quo'te",
        '/dou"ble',
        "/back\\slash",
        "/per%cent%s",
        "/ü/☃/𝄞",
        "/new\nline\ttab",
        "/;DROP TABLE x",
    )

    def test_paths_are_values(self, store: FrameStore) -> None:
        assert store.upsert("s", [result(path) for path in self.PATHS]).inserted == len(self.PATHS)
        for path in self.PATHS:
            assert isinstance(store.get("s", path), FrameTable)
        assert store.delete("s", self.PATHS) == len(self.PATHS)

    @pytest.mark.parametrize("path", ["", "/nul\0", "/not-utf8-\udcff", "/" + "x" * 5000])
    def test_questions_for_paths_that_cannot_be_rows(self, store: FrameStore, path: str) -> None:
        store.upsert("s", [result("/a")])
        assert store.get("s", path) is None
        assert store.get_many("s", [path, "/a"])[0] is None
        assert store.file_states("s", [path]) == [None]
        assert store.delete("s", [path]) == 0

    def test_paths_that_cannot_be_rows_do_not_fail_their_batch(self, store: FrameStore) -> None:
        longest = "/" + "x" * (MAX_PATH_BYTES - 1)
        bad = ["", "/nul\0", "/not-utf8-\udcff", longest + "x", "/" + "ü" * (MAX_PATH_BYTES // 2)]
        counts = store.upsert("s", [result(path) for path in ["/good", *bad, longest]])
        assert counts.inserted == 2
        assert [path for path, _ in counts.refused] == bad
        assert all(reason for _, reason in counts.refused)
        assert isinstance(store.get("s", longest), FrameTable)

    def test_an_error_at_the_longest_path(self, store: FrameStore) -> None:
        path = "/" + os.urandom(MAX_PATH_BYTES // 2).hex()[: MAX_PATH_BYTES - 1]
        store.upsert("s", [result(path, error=FormatError("not_dicom", None, "\0" + "x" * 10_000))])
        [found] = store.refused_files("s")
        assert found.path == path
        assert len(found.detail) == 500

    @pytest.mark.parametrize(
        "source", ['x"; DROP SCHEMA voxtier CASCADE; --', "cat.schema.täble", "%s", "x" * 300]
    )
    def test_sources_are_values(self, store: FrameStore, source: str) -> None:
        store.upsert(source, [result("/a")])
        assert store.sources() == [source]
        assert isinstance(store.get(source, "/a"), FrameTable)

    @pytest.mark.parametrize("source", ["", "x" * 301, "nul\0", "line\nbreak", "\udcff"])
    def test_sources_that_are_no_names(self, store: FrameStore, source: str) -> None:
        for work in (
            lambda: store.upsert(source, [result("/a")]),
            lambda: store.upsert_rows(source, b""),
            lambda: store.get(source, "/a"),
            lambda: store.file_states(source, ["/a"]),
        ):
            with pytest.raises(ConfigError, match="source"):
                work()

    def test_a_row_of_another_path_under_the_same_key(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a")])
        ask(dsn, "UPDATE voxtier.file SET path = '/b'")
        assert store.get("s", "/a") is None
        assert store.get_many("s", ["/a"]) == [None]
        assert store.file_states("s", ["/a"]) == [None]
        assert store.delete("s", ["/a"]) == 0

    @pytest.mark.parametrize(
        "damage",
        [
            "frames = set_byte(frames, 20, get_byte(frames, 20) # 1)",
            "frames = substring(frames for 31)",
            "frames = frames || '\\x00'",
            "frames = '\\xff'",
            "size = 10",  # the frames lie beyond that
            "parser_version = parser_version + 1",
            "notes = '{no_such_note}'",
            "bits_allocated = -1",
            "pixel_data_pos = -1",
        ],
    )
    def test_a_damaged_row_is_worth_nothing(self, store: FrameStore, dsn: str, damage: str) -> None:
        content = next(case for case in CASES if case.name == "e04_bot_multifrag").content
        store.upsert("s", [result("/a", table_of(content))])
        assert isinstance(store.get("s", "/a"), FrameTable)
        ask(dsn, f"UPDATE voxtier.file SET {damage}")
        assert store.get("s", "/a") is None

    def test_paths_and_values_stay_out_of_messages_and_logs(
        self, store: FrameStore, dsn: str, postgres: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        secret = "DOE^JANE-4711"
        ask(dsn, "SELECT 1")
        store.upsert("s", [result("/a")])
        ask(dsn, "ALTER TABLE voxtier.file ADD CHECK (path NOT LIKE '%JANE%')")
        with pytest.raises(BackendError) as raised:
            store.upsert("s", [result(f"/{secret}.dcm")])
        store.file_states("s", [f"/{secret}.dcm"])
        [(folder,)] = ask(postgres, "SHOW data_directory")
        log = Path(folder).parent / "server.log"
        assert "check constraint" in log.read_text()
        for text in (str(raised.value), caplog.text, log.read_text()):
            assert "JANE" not in text


class TestQuestions:
    def test_by_sop_instance_and_series(self, store: FrameStore) -> None:
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

    def test_the_uids_are_found_by_index(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result(f"/{n}", table_of(ct(uid=f"1.{n}"))) for n in range(300)])
        ask(dsn, "ANALYZE voxtier.file")
        plan = ask(
            dsn, "EXPLAIN SELECT 1 FROM voxtier.file WHERE hashtextextended(sop_instance_uid, 0) = "
            "hashtextextended('1.7', 0) AND sop_instance_uid = '1.7'",
        )  # fmt: skip
        assert "file_sop_instance" in str(plan)

    def test_summary(self, store: FrameStore, case_files: dict[str, Case]) -> None:
        results = list(read_tables(case_files, verify="all"))
        store.upsert("s", results)
        store.upsert("other", results[:3])
        summary = store.summary("s")
        tables = [r.table for r in results if r.table is not None]
        assert summary.total.files == len(results)
        assert summary.total.frames == sum(map(len, tables))
        assert summary.total.file_bytes == sum(table.size for table in tables)
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

    def test_errors_come_in_the_order_of_their_paths(
        self, store: FrameStore, case_files: dict[str, Case], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "BATCH", 4)
        store.upsert("s", read_tables(case_files, verify="all"))
        expected = {path: case.error for path, case in case_files.items() if case.error}
        found = list(store.refused_files("s"))
        assert [error.path for error in found] == sorted(expected)
        assert {error.path: error.kind for error in found} == expected
        assert all(error.detail for error in found)


class TestPrune:
    @pytest.fixture
    def files(self, store: FrameStore, tmp_path: Path) -> list[str]:
        paths = [tmp_path / folder / f"{n}.dcm" for folder in ("a", "ab", "b") for n in range(3)]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(ct())
        names = list(map(str, paths))
        store.upsert("s", read_tables(names))
        return names

    def test_what_is_gone_is_forgotten(self, store: FrameStore, files: list[str]) -> None:
        store.touch([_core.file_key("s", files[0])], [1], [NOW])
        for path in files[:2]:
            os.unlink(path)
        assert sorted(store.missing_files("s")) == files[:2]
        assert store.prune("s") == 2
        assert store.get("s", files[0]) is None
        assert store.get("s", files[2]) is not None
        assert store.prune("s") == 0

    def test_only_below_a_folder(self, store: FrameStore, files: list[str], tmp_path: Path) -> None:
        for path in files[0:1] + files[3:4]:
            os.unlink(path)
        assert store.prune("s", under=[f"{tmp_path}/a/"]) == 1  # not ab
        assert store.get("s", files[3]) is not None
        assert store.prune("s", under=[str(tmp_path / "ab"), "/elsewhere"]) == 1

    def test_a_disk_that_is_not_mounted(self, store: FrameStore, files: list[str]) -> None:
        for path in files:
            os.unlink(path)
        with pytest.raises(ConfigError, match="mounted"):
            store.prune("s")
        assert store.get("s", files[0]) is not None
        assert store.prune("s", force=True) == len(files)

    def test_what_cannot_be_looked_at_is_not_gone(self, store: FrameStore, tmp_path: Path) -> None:
        store.upsert("s", [result(f"{tmp_path}/{'x' * 300}/a"), result(f"{tmp_path}/gone")])
        assert list(store.missing_files("s")) == [f"{tmp_path}/gone"]  # ENAMETOOLONG says nothing

    def test_objects_elsewhere(self, store: FrameStore) -> None:
        store.upsert("s", [result("s3://b/1"), result("s3://b/2")])
        assert store.prune("s", is_gone=lambda path: path.endswith("1")) == 1
        assert store.get("s", "s3://b/2") is not None

    def test_another_source_is_left_alone(self, store: FrameStore, files: list[str]) -> None:
        store.upsert("other", [result("/gone"), result("/gone2")])
        os.unlink(files[0])
        assert store.prune("s") == 1
        assert store.get("other", "/gone") is not None


class TestStatistics:
    QUESTION = "SELECT access_count, last_used_at FROM voxtier.file_stats"

    def test_counts_add_up_and_the_latest_time_wins(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a")])
        key = _core.file_key("s", "/a")
        assert ask(dsn, self.QUESTION) == []  # rows are made by the first touch
        assert store.touch([key, key], [2, 3], [NOW - timedelta(hours=2), NOW - timedelta(hours=1)]) == []
        assert store.touch([key], [1], [NOW - timedelta(days=1)]) == []
        assert ask(dsn, self.QUESTION) == [(6, NOW - timedelta(hours=1))]

    def test_the_future_is_now(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a")])
        store.touch([_core.file_key("s", "/a")], [1], [NOW + timedelta(days=30)])
        [(_, last_used)] = ask(dsn, self.QUESTION)
        assert last_used <= datetime.now(UTC)

    def test_unknown_keys_are_told_and_ignored(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a")])
        known, unknown = _core.file_key("s", "/a"), bytes(16)
        assert store.touch([unknown, known], [1, 1], [NOW, NOW]) == [unknown]
        assert store.touch([], [], []) == []
        assert len(ask(dsn, self.QUESTION)) == 1

    def test_touches_stay_hot_and_leave_the_tables_alone(self, store: FrameStore, dsn: str) -> None:
        paths = [f"/{n}" for n in range(500)]
        store.upsert("s", [result(path) for path in paths])
        # The snapshot of a worker that comes just now would hold up the pruning that makes room.
        ask(dsn, "ALTER TABLE voxtier.file_stats SET (autovacuum_enabled = false)")
        ask(dsn, "ALTER TABLE voxtier.file SET (autovacuum_enabled = false)")
        keys = [_core.file_key("s", path) for path in paths]
        before = ask(dsn, "SELECT ctid, xmin, xmax FROM voxtier.file ORDER BY key")
        store.touch(keys, [1] * 500, [NOW] * 500)
        for start in range(10):
            store.touch(keys[start::10], [1] * 50, [NOW] * 50)
        store.close()  # its sessions report what they did when they end, which may take a moment
        counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'file_stats'"
        deadline = time.monotonic() + 60
        while ask(dsn, counted)[0][0] < 500 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ask(dsn, "SELECT ctid, xmin, xmax FROM voxtier.file ORDER BY key") == before
        [(updated, hot)] = ask(dsn, counted)
        assert updated == hot == 500

    def test_they_go_with_the_file(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a"), result("/b")])
        store.touch([_core.file_key("s", path) for path in ("/a", "/b")], [1, 1], [NOW, NOW])
        assert store.delete("s", ["/a", "/unknown"]) == 1
        assert len(ask(dsn, self.QUESTION)) == 1

    def test_a_changed_file_keeps_them(self, store: FrameStore, dsn: str) -> None:
        store.upsert("s", [result("/a")])
        store.touch([_core.file_key("s", "/a")], [7], [NOW])
        store.upsert("s", [result("/a", table_of(ct(frames=2)))])
        assert ask(dsn, self.QUESTION) == [(7, NOW)]


def test_bytes_on_disk(store: FrameStore, dsn: str) -> None:
    """0 bytes a frame for native files, at most 5 for encapsulated ones, beyond the fixed row."""
    empty = struct.calcsize("<32x")
    native = table_of(ct(frames=200))
    assert len(native.packed) == empty
    payloads = [pattern(2 * (i % 7) + 2, i) for i in range(1000)]
    elements = [*image(frames=len(payloads)), Element(PIXEL_DATA, "OB", Fragments(payloads))]
    slide = table_of(dicom(elements, JPEG).content)
    for n in range(200):
        store.upsert("s", [result(f"/{n}", slide)])
    [(size,)] = ask(dsn, "SELECT pg_total_relation_size('voxtier.file')")
    assert size / (200 * 1000) < 6  # with the fixed row and whole pages
