"""Access counts and times: added up, kept apart from the tables, dropped with the file."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from frames.store.rows.index_rows import NOW, ask, ct, result, table_of
from voxtier import _core
from voxtier.frames.store.store import FrameStore

QUESTION = "SELECT access_count, last_used_at FROM voxtier.file_stats"


def test_counts_add_up_and_the_latest_time_wins(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    key = _core.file_key("s", "/a")
    assert ask(dsn, QUESTION) == []  # rows are made by the first touch
    assert store.touch([key, key], [2, 3], [NOW - timedelta(hours=2), NOW - timedelta(hours=1)]) == []
    assert store.touch([key], [1], [NOW - timedelta(days=1)]) == []
    assert ask(dsn, QUESTION) == [(6, NOW - timedelta(hours=1))]


def test_a_last_access_in_the_future_counts_as_now(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    store.touch([_core.file_key("s", "/a")], [1], [NOW + timedelta(days=30)])
    [(_, last_used)] = ask(dsn, QUESTION)
    assert last_used <= datetime.now(UTC)


def test_touches_of_unknown_keys_return_those_keys(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    known, unknown = _core.file_key("s", "/a"), bytes(16)
    assert store.touch([unknown, known], [1, 1], [NOW, NOW]) == [unknown]
    assert store.touch([], [], []) == []
    assert len(ask(dsn, QUESTION)) == 1


def test_touches_are_hot_updates_and_leave_the_file_rows_alone(store: FrameStore, dsn: str) -> None:
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


def test_deleting_a_file_drops_its_statistics(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a"), result("/b")])
    store.touch([_core.file_key("s", path) for path in ("/a", "/b")], [1, 1], [NOW, NOW])
    assert store.delete("s", ["/a", "/unknown"]) == 1
    assert len(ask(dsn, QUESTION)) == 1


def test_a_changed_file_keeps_its_statistics(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    store.touch([_core.file_key("s", "/a")], [7], [NOW])
    store.upsert("s", [result("/a", table_of(ct(frames=2)))])
    assert ask(dsn, QUESTION) == [(7, NOW)]
