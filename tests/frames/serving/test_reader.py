"""The resolver: every tier gives identical bytes, changed files are rebuilt, a database may fail."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frames.dicom.cases import CASES
from frames.serving.images import frame_of, native, write_images
from voxtier import _core
from voxtier.errors import FormatError, NotFoundError, SourceError, VoxtierError
from voxtier.frames import FrameCache, read_frame, read_frames, read_many, read_table, read_tables
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.memory.ranking import ranked_files
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.store import file_rows
from voxtier.frames.store.grants import grants
from voxtier.frames.store.store import FrameStore


def test_every_reference_case_gives_equal_bytes_from_every_tier(tmp_path: Path, store: FrameStore) -> None:
    paths = {}
    for case in CASES:
        if len(case.content) < 1_000_000:
            path = tmp_path / case.name
            path.write_bytes(case.content)
            paths[str(path)] = case
    store.upsert("s", read_tables(paths, verify="all"))
    with (
        FrameReader(None, "s") as computed,
        FrameReader(None, "s", budget_bytes=0) as without_memory,
        FrameReader(store, "s", verify="all") as stored,
    ):
        answered = 0
        for path, case in paths.items():
            try:
                table = read_table(case.content, verify="all")
                wanted = [_or_error(read_frame, case.content, table, i) for i in range(len(table))]
            except VoxtierError as error:
                for reader in (computed, without_memory, stored):
                    # A table checked at its ends serves what lies before the fault, and refuses there.
                    with pytest.raises(FormatError) as caught:
                        for index in itertools.count():
                            reader.frame(path, index)
                    assert caught.value.kind == error.kind, case.name
                continue
            for reader in (computed, without_memory, stored, stored):
                got = [_or_error(reader.frame, path, index) for index in range(len(table))]
                assert got == wanted, case.name
                good = [i for i, bytes_ in enumerate(wanted) if isinstance(bytes_, bytes)]
                assert reader.frames(path, good[::-1]) == [wanted[i] for i in good[::-1]]
                with pytest.raises(IndexError):
                    reader.frame(path, len(table))
            answered += bool(wanted)
        assert answered > 80
        assert stored.stats()["tier2"] + stored.stats()["cache"]["primed"] > 80
        assert stored.stats()["tier3"] == 0
        stored.cache.validate()


def _or_error(read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except FormatError as error:
        return error.kind


def test_a_computed_table_is_written_back_and_found_by_the_next_reader(
    tmp_path: Path, store: FrameStore
) -> None:
    [path] = write_images(tmp_path, 1)
    with FrameReader(store, "s") as reader:
        for index in (2, 0, 1):
            assert reader.frame(path, index) == frame_of(index)
        stats = reader.stats()
        assert (stats["tier3"], stats["tier1"], stats["requests"]) == (1, 2, 3)
    with FrameReader(store, "s") as second:
        assert second.frames(path, [1, 2, 0, 0]) == [frame_of(i) for i in (1, 2, 0, 0)]
        assert (second.stats()["tier2"], second.stats()["tier3"]) == (1, 0)
        assert second.frame("2.25.1000", 1) == frame_of(1)
        with pytest.raises(NotFoundError):
            second.frame("2.25.999999", 0)
    [file] = ranked_files(store, "s")
    # The second reader learns from the index that the file was read a moment ago.
    assert (file.access_count, file.label) == (1, "recent")


def test_one_file_under_many_spellings_is_one_row_and_one_entry(
    tmp_path: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = write_images(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    spellings = ["00000.dcm", "./00000.dcm", f"{tmp_path}//00000.dcm", f"{tmp_path}/x/../00000.dcm", path]
    with FrameReader(store, "s") as reader:
        for spelling in spellings:
            assert reader.frame(spelling, 1) == frame_of(1)
        assert reader.cache.keys() == [path]
        with pytest.raises(SourceError, match="null"):
            reader.frame("00000.dcm\0", 1)
    assert [file.path for file in ranked_files(store, "s")] == [path]
    for reports in index_files(FileIndexer(store, source="s"), spellings):
        assert [(report.path, report.status) for report in reports] == [(path, "unchanged")]


def test_a_file_that_comes_back_from_the_index_soon_counts_once(tmp_path: Path, store: FrameStore) -> None:
    paths = write_images(tmp_path, 2)
    store.upsert("s", read_tables(paths))
    with FrameReader(store, "s") as reader:
        for _ in range(3):
            reader.frame(paths[0], 0)
            reader.flush()
            reader.cache.invalidate(paths[0])
    counts = {file.path: file.access_count for file in ranked_files(store, "s")}
    assert counts == {paths[0]: 1, paths[1]: 0}


@pytest.mark.parametrize("how", ["in_place", "renamed"])
def test_a_changed_file_is_rebuilt_once_and_never_mixed(how: str, tmp_path: Path, store: FrameStore) -> None:
    [path] = write_images(tmp_path, 1)
    with FrameReader(store, "s") as reader:
        assert reader.frame(path, 1) == frame_of(1)
        reader.flush()
        new = native(5, 77)
        if how == "in_place":
            Path(path).write_bytes(new)
        else:
            (tmp_path / "new").write_bytes(new)
            os.replace(tmp_path / "new", path)
            time.sleep(1.1)
        assert reader.frames(path, [0, 4]) == [frame_of(0, 5, 77), frame_of(4, 5, 77)]
        assert reader.stats()["stale_misses"] >= 1
        reader.flush()
        again = store.get("s", path)
        assert again is not None
        assert len(again) == 5  # type: ignore[arg-type]
        assert reader.stats()["tier3"] == 2


def test_sixteen_threads_look_one_file_up_once(tmp_path: Path, store: FrameStore) -> None:
    [path] = write_images(tmp_path, 1)
    asked: list[str] = []
    recall = store.recall

    def slow(source: str, path: str, **options: Any) -> Any:
        asked.append(path)
        time.sleep(0.2)
        return recall(source, path, **options)

    store.recall = slow  # type: ignore[method-assign]
    with FrameReader(store, "s") as reader, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: reader.frame(path, 2), range(64))) == {frame_of(2)}
    assert asked == [path]


def test_without_its_database_a_reader_computes_and_later_flushes(tmp_path: Path, dsn: str) -> None:
    import psycopg

    paths = write_images(tmp_path, 3)
    with FrameReader(FrameStore("host=127.0.0.1 port=1 dbname=x connect_timeout=1"), "s") as reader:
        for path in paths:
            assert reader.frame(path, 0) == frame_of(0, seed=int(Path(path).stem))
        stats = reader.stats()
        assert stats["degraded"]
        assert (stats["tier3"], stats["store_errors"]) == (3, 1)
        assert reader.flush() == 0
        assert reader.stats()["cache"]["dirty"] == 3
    with FrameStore(dsn) as store, FrameReader(store, "s") as reader:
        reader.frame(paths[0], 0)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert reader.frame(paths[1], 0) == frame_of(0, seed=1)
        reader.flush()
        reader.flush()
        assert {file.path for file in ranked_files(store, "s")} == set(paths[:2])


def test_a_role_that_may_not_write_tables_still_counts_accesses(
    tmp_path: Path, store: FrameStore, dsn: str, postgres: str
) -> None:
    import psycopg

    def ask(conninfo: str, *statements: str) -> None:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    indexed, foreign, later = write_images(tmp_path, 3)
    store.upsert("s", read_tables([indexed]))
    ask(postgres, "CREATE ROLE onlooker LOGIN")
    try:
        ask(dsn, *grants("onlooker", "reader"))
        with FrameStore(psycopg.conninfo.make_conninfo(dsn, user="onlooker")) as theirs:
            with FrameReader(theirs, "s") as reader:
                assert reader.frame(foreign, 0) == frame_of(0, seed=1)
                reader.flush()
                assert reader.frame(indexed, 0) == frame_of(0, seed=0)
                assert reader.frame(later, 0) == frame_of(0, seed=2)
            stats = reader.stats()
        assert (stats["flush_errors"], stats["flushed"], stats["written_back"]) == (1, 1, 0)
        assert [(file.path, file.access_count) for file in ranked_files(store, "s")] == [(indexed, 1)]
    finally:
        ask(dsn, "DROP OWNED BY onlooker")
        ask(postgres, "DROP ROLE onlooker")


def test_two_readers_flush_the_same_files_and_nothing_is_lost(tmp_path: Path, store: FrameStore) -> None:
    paths = write_images(tmp_path, 50)
    store.upsert("s", read_tables(paths))
    caches = [FrameCache(1 << 20, debounce_seconds=0.0) for _ in range(4)]
    readers = [FrameReader(store, "s", flush_seconds=0.05, cache=cache) for cache in caches]

    def work(reader: FrameReader) -> None:
        for _ in range(20):
            for path in paths:
                reader.frame(path, 1)

    threads = [threading.Thread(target=work, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reader in readers:
        reader.close()
    counted = [file.access_count for file in ranked_files(store, "s")]
    # Each frame is one look-up, and one more after a miss; the coarse clock merges those of one tick.
    flushed = sum(reader.stats()["flush_errors"] for reader in readers)
    assert flushed == 0
    assert len(counted) == 50
    assert min(counted) >= 4


def test_the_first_slice_of_a_series_brings_the_others(tmp_path: Path, store: FrameStore) -> None:
    paths = write_images(tmp_path, 60)
    store.upsert("s", read_tables(paths))
    with FrameReader(store, "s") as reader:
        for number, path in enumerate(paths):
            assert reader.frame(path, 2) == frame_of(2, seed=number)
        stats = reader.stats()
        assert (stats["tier2"], stats["tier1"], stats["cache"]["primed"]) == (1, 59, 59)
        reader.flush()
    assert [file.access_count for file in ranked_files(store, "s")] == [1] * 60
    with FrameReader(store, "s") as training:
        training.frame(paths[0], 0, scan=True)
        assert len(training.cache) == 1


def test_a_series_costs_one_round_trip_and_brings_no_more_than_it_may(
    tmp_path: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, 30)
    store.upsert("s", read_tables(paths))
    store.upsert("other", read_tables(paths))
    asked: list[bool] = []
    recall = store.recall

    def counted(source: str, path: str, *, with_series: bool = False) -> Any:
        asked.append(with_series)
        return recall(source, path, with_series=with_series)

    monkeypatch.setattr(store, "recall", counted)
    with FrameReader(store, "s") as reader:
        for path in paths[20:] + paths[:20]:
            reader.frame(path, 0)
        assert asked == [True]
        reader.cache.invalidate(paths[3])
        reader.frame(paths[3], 0)
        assert asked == [True, False]
        reader.cache.clock = lambda: time.monotonic() + 61
        reader.cache.invalidate(paths[4])
        reader.frame(paths[4], 0)
        assert asked == [True, False, True]
    monkeypatch.setattr(file_rows, "_MOST_NEIGHBOURS", 4)

    def paths_in(recalled: Any) -> list[str]:
        return [path for path, _, _ in _core.decode_rows(recalled.rows)]

    assert paths_in(recall("s", paths[27], with_series=True)) == [*paths[27:], *paths[:2]]
    bytes_of_one = len(read_table(paths[0]).packed)
    monkeypatch.setattr(file_rows, "_MOST_NEIGHBOUR_BYTES", 3 * bytes_of_one)
    assert paths_in(recall("s", paths[5], with_series=True)) == paths[5:9]
    assert recall("s", "/unknown", with_series=True) is recall("s", "/unknown") is None


def test_access_counts_files_not_frames(tmp_path: Path, store: FrameStore) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(native(1))
    large.write_bytes(native(1000, 1))
    with FrameReader(store, "s") as reader:
        reader.frame(str(small), 0)
        reader.frames(str(large), range(1000))
        for index in range(1000):
            reader.frame(str(large), index)
    counts = {Path(file.path).name: file.access_count for file in ranked_files(store, "s")}
    assert counts == {"small": 1, "large": 1}


def test_aframe_never_blocks_the_event_loop(tmp_path: Path) -> None:
    """Files are read only once the loop has said so: a loop that waited for one could never say it."""
    paths = write_images(tmp_path, 8)

    async def ask() -> None:
        with FrameReader(None, "s") as reader:
            load, said = reader._tables._compute, threading.Event()

            def compute(*arguments: Any) -> Any:
                assert said.wait(60), "the loop waits for a file"
                return load(*arguments)

            reader._tables._compute = compute  # type: ignore[method-assign]
            waiting = [asyncio.create_task(reader.aframe(path, 1)) for path in paths]
            cancelled = asyncio.create_task(reader.aframe(paths[0], 0))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
            said.set()
            assert await asyncio.gather(*waiting) == [frame_of(1, seed=i) for i in range(8)]

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_reader_works_in_a_forked_child(tmp_path: Path, store: FrameStore) -> None:
    paths = write_images(tmp_path, 2)
    with FrameReader(store, "s") as reader:
        reader.frame(paths[0], 0)
        child = os.fork()
        if child == 0:
            good = reader.frame(paths[0], 1) == frame_of(1) and reader.frame(paths[1], 0) == frame_of(
                0, seed=1
            )
            good = good and reader.flush() >= 1
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert reader.frame(paths[1], 2) == frame_of(2, seed=1)
    assert {file.path for file in ranked_files(store, "s")} == set(paths)


@pytest.mark.parametrize("index", [3, -4, 2**31, 2**32, 2**63, 2**70, -(2**63) - 1])
def test_a_frame_that_a_table_has_not_is_an_index_error(index: int) -> None:
    content = native(3)
    table = read_table(content)
    cache = FrameCache(1 << 20)
    cache.put_table("a", table)
    why = "of 3, counted from 0" if abs(index) < 2**63 else ": frames count from 0, and no file has so many"
    for read in (
        partial(read_frame, content, table),
        lambda wanted: read_frames(content, table, [wanted]),
        table.ranges,
        table.bit_offset,
        partial(cache.locate, "a"),
        partial(cache.ranges, "a"),
    ):
        with pytest.raises(IndexError, match=rf"frame \[?{index}\]? ?{why}"):
            read(index)
    with pytest.raises(TypeError, match="as an integer"):
        read_frame(content, table, str(index))  # type: ignore[call-overload]
    assert read_frames(content, table, [np.int64(-1), np.uint8(2)]) == [read_frame(content, table, 2)] * 2


@pytest.mark.parametrize("index", [-1, 3, 2**31, 2**32, 2**63, 2**70])
def test_a_frame_that_no_file_has_is_an_index_error(tmp_path: Path, index: int) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(native(3))
    with FrameReader(publish=False) as reader:
        with pytest.raises(IndexError):
            reader.frame(str(path), index)
        with pytest.raises(IndexError):
            asyncio.run(reader.aframe(str(path), index))
        with pytest.raises(IndexError, match=f"frame {index}"):
            reader.frame_in_state(str(path), index, lambda _: True)
        assert len(reader.frame(str(path), 2)) == 16


@pytest.mark.parametrize("budget", [0, 1, 16, 1000])
def test_a_small_budget_slows_down_and_loses_nothing(tmp_path: Path, budget: int) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(native(3))
    requests = [(str(path), frame) for frame in (2, 0, 1, 2)]
    with FrameReader(publish=False) as reader:
        found = list(read_many(reader, requests, budget_bytes=budget))
        assert found == [(each, reader.frame(*each)) for each in requests]
