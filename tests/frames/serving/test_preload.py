"""The preload of a reader, and the order in which the index ranks its files."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from frames.serving.images import frame_of, write_images
from voxtier import _core
from voxtier.frames import read_table, read_tables
from voxtier.frames.databricks.lakebase import LakebaseUtils
from voxtier.frames.memory.priority import score_many
from voxtier.frames.memory.ranking import preload_rows, ranked_files
from voxtier.frames.memory.scorer import CachePriorityScorer
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.store.store import FrameStore


def inserted_together(dsn: str) -> None:
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE voxtier.file SET inserted_at = now()")


def test_a_last_access_at_infinity_harms_neither_reading_nor_preload(
    tmp_path: Path, store: FrameStore, dsn: str
) -> None:
    import psycopg

    paths = write_images(tmp_path, 3)
    store.upsert("s", read_tables(paths))
    store.touch([_core.file_key("s", path) for path in paths], [1] * 3, [datetime.now(UTC)] * 3)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for path, time_ in zip(paths, ["infinity", "-infinity", "294276-12-31"], strict=True):
            key = _core.file_key("s", path).hex()
            connection.execute(
                "UPDATE voxtier.file_stats SET last_used_at = %s WHERE key = %s::uuid", (time_, key)
            )
    with FrameReader(store, "s") as reader:
        assert [reader.frame(path, 1) for path in paths] == [frame_of(1, 3, n) for n in range(3)]
        assert reader.stats()["store_errors"] == 0
        reader.preload.start()
        assert reader.preload.wait(30)
        assert reader.preload.progress()["state"] == "done"


def test_preload_takes_the_best_until_the_share_is_full(tmp_path: Path, store: FrameStore, dsn: str) -> None:
    paths = write_images(tmp_path, 200)
    store.upsert("s", read_tables(paths))
    inserted_together(dsn)
    now = datetime.now(UTC)
    keys = [_core.file_key("s", path) for path in paths]
    store.touch(keys[:50], list(range(1, 51)), [now - timedelta(hours=1)] * 50)
    ranked = [file.path for file in ranked_files(store, "s", 200)]
    assert ranked[0] == paths[49]
    assert ranked[50:] == paths[50:]
    with FrameReader(store, "s") as reader:
        assert not reader.preload.ready
        reader.preload.start()
        assert reader.preload.wait(30)
        assert reader.preload.ready
        progress = reader.preload.progress()
        assert (progress["state"], progress["loaded"]) == ("done", 200)
        assert reader.cache.keys() == ranked
        assert reader.cache.counters()["dirty"] == 0
        assert reader.frame(paths[3], 1) == frame_of(1, seed=3)
        assert reader.stats()["tier1"] == 1
        weight = reader.cache.counters()["used"] // 200
    with FrameReader(store, "s", budget_bytes=weight * 20) as reader:
        reader.frame(paths[150], 0, scan=True)
        reader.cache.touch(paths[150])
        reader.preload.start(fraction=0.5)
        reader.preload.wait(30)
        assert 8 <= len(reader.cache) <= 10
        assert reader.cache.keys() == [paths[150], *ranked[: len(reader.cache) - 1]]


def test_preload_skips_a_misfit_and_survives_a_damaged_row(tmp_path: Path, store: FrameStore) -> None:
    import psycopg

    paths = write_images(tmp_path, 5)
    store.upsert("s", read_tables(paths))
    with psycopg.connect(store.database._conninfo()) as connection:
        connection.execute(
            "UPDATE voxtier.file SET frames = set_byte(frames, 20, 99) WHERE path = %s", (paths[1],)
        )
    with FrameReader(store, "s") as reader:
        reader.preload.start()
        reader.preload.wait(30)
        progress = reader.preload.progress()
        assert (progress["loaded"], progress["damaged"]) == (4, 1)
        assert reader.frame(paths[1], 2) == frame_of(2, seed=1)


def test_a_preload_without_its_database_fails_and_frames_are_read() -> None:
    with FrameReader(FrameStore("host=127.0.0.1 port=1 dbname=x connect_timeout=1"), "s") as reader:
        reader.preload.start()
        reader.preload.wait(60)
        assert reader.preload.progress()["state"] == "failed"
        assert reader.preload.ready


def test_priority_list_has_the_predecessors_rows(tmp_path: Path, store: FrameStore, dsn: str) -> None:
    paths = write_images(tmp_path, 3)
    store.upsert("s", read_tables(paths))
    inserted_together(dsn)
    with LakebaseUtils(dsn=dsn) as lakebase:
        rows = lakebase.get_preload_priority_list("s", 2)
        same = CachePriorityScorer(lakebase).get_preload_list("s", 2)
        doubled = CachePriorityScorer(lakebase, weights={"inserted": 0.4}).get_preload_list("s", 2)
    assert [row["frames"] for row in same] == [row["frames"] for row in rows]
    assert [row["priority_score"] for row in doubled] == pytest.approx([0.4, 0.4], rel=1e-3)
    assert [row["filename"] for row in rows] == paths[:2]
    table = read_table(paths[0])
    first = rows[0]
    assert set(first) == {
        "filename", "frame_count", "transfer_syntax_uid", "last_used_at", "inserted_at", "access_count",
        "priority_score", "frames",
    }  # fmt: skip
    start, end = table.ranges(2)[0]
    assert first["frames"][2] == {
        "frame_number": 2, "start_pos": start, "end_pos": end - 1, "pixel_data_pos": table.pixel_data_pos,
    }  # fmt: skip
    assert list(preload_rows(store, "unknown source", 5)) == []


def test_sql_score_is_the_cores_score_for_any_timestamp(dsn: str) -> None:
    import psycopg

    from voxtier.frames.memory.priority import score_sql

    now = datetime(2026, 3, 1, tzinfo=UTC)
    times = ["'-infinity'", "'infinity'", "'4713-01-01 BC'", "'90000-01-01'", "NULL"]
    times += [f"'{now - timedelta(hours=hours)}'" for hours in (-720, -1, 0, 1, 24, 168, 8_760, 876_000)]
    values = ", ".join(
        f"({a}::timestamptz, {b}::timestamptz, {n}::bigint)"
        for a in times
        for b in times
        if b != "NULL"
        for n in (0, 1, 9, 2**63 - 1)
    )
    query = (
        f"SELECT u, i, n, {score_sql(stats='t', file='t', now=f'{now.timestamp()}::float8')} FROM "
        f"(SELECT last_used_at AS u, inserted_at AS i, access_count AS n, * FROM (VALUES {values}) "
        "AS v (last_used_at, inserted_at, access_count)) AS t"
    )
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT CASE WHEN isfinite(u) THEN (date_part('epoch', u) * 1e6)::int8 "
            "WHEN u > 'now' THEN 9223372036854775807 WHEN u IS NOT NULL THEN -9223372036854775807 END, "
            "CASE WHEN isfinite(i) THEN (date_part('epoch', i) * 1e6)::int8 "
            "WHEN i > 'now' THEN 9223372036854775807 ELSE -9223372036854775807 END, n, score "
            f"FROM ({query}) AS q (u, i, n, score)"
        ).fetchall()
    null = -(2**63)
    columns = [[null if row[at] is None else row[at] for row in rows] for at in range(3)]
    with pytest.warns(UserWarning, match="clock_skew"):
        exact = score_many(*columns, now=now)
    assert len(rows) > 500
    for row, score in zip(rows, exact, strict=True):
        assert row[3] == pytest.approx(score, rel=1e-12, abs=1e-200), row


@pytest.mark.parametrize("name", ["voxtier-write-back", "voxtier-status", "voxtier-preload"])
def test_a_thread_that_the_system_did_not_give_is_asked_for_again(
    tmp_path: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    [path] = write_images(tmp_path, 1)
    store.upsert("s", read_tables([path]))
    begin = threading.Thread.start

    def begin_or_fail(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        begin(thread)

    def work(reader: FrameReader) -> None:
        reader.preload.start()
        reader.frame(path, 0)

    for is_tried_again in (False, True):
        with FrameReader(store, "s") as reader:
            with monkeypatch.context() as short:
                short.setattr(threading.Thread, "start", begin_or_fail)
                with pytest.raises(RuntimeError, match="new thread"):
                    work(reader)
            if is_tried_again:
                work(reader)
                assert reader.preload.wait(60)
                assert reader.preload.progress()["state"] == "done"
                assert reader.flush() == 1
