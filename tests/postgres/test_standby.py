"""A hot standby: reads answer, writes end in a message that names the remedy, a promotion is noticed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask, ct, results
from support.servers.replication import Server
from voxtier import _core
from voxtier.errors import ConfigError
from voxtier.frames import FrameReader, FrameStore, LakebaseUtils, read_tables
from voxtier.frames.memory.ranking import preload_rows, ranked_files

SOURCE = "c.s.t"


class Pair(NamedTuple):
    primary: Server
    standby: Server
    path: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """An index on a primary, followed by a standby."""
    folder = tmp_path_factory.mktemp("pair")
    path = folder / "1.dcm"
    path.write_bytes(ct(uid="1.2.3", series="1.2"))
    primary, standby = Server(folder / "p"), Server(folder / "s")
    primary.initialise()
    primary.start()
    with FrameStore(primary.dsn()) as store:
        store.upsert(SOURCE, [*results(20), *read_tables([str(path)])])
        store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW])
    standby.copy_of(primary)
    standby.start()
    standby.wait_for(primary)
    yield Pair(primary, standby, str(path))
    standby.stop()
    primary.stop()


def test_every_read_answers(pair: Pair) -> None:
    with FrameStore(pair.standby.dsn()) as store:
        assert store.get(SOURCE, "/1") == TABLE
        assert store.get_many(SOURCE, ["/1", "/no"]) == [TABLE, None]
        assert store.recall(SOURCE, "/1", with_series=True) is not None
        assert [state is None for state in store.file_states(SOURCE, ["/1", "/no"])] == [False, True]
        assert [each.path for each in store.by_sop_instance("1.2.3", SOURCE)] == [pair.path]
        assert [each.path for each in store.by_series("1.2")] == [pair.path]
        assert store.sources() == [SOURCE]
        assert store.summary(SOURCE).total.files == 21
        assert list(store.refused_files(SOURCE)) == []
        assert len(list(store.missing_files(SOURCE))) == 20
        assert len(ranked_files(store, SOURCE)) == 21
        assert sum(map(len, preload_rows(store, SOURCE, 30)))
        store.probe()
    with LakebaseUtils(dsn=pair.standby.dsn(), uc_table_name=SOURCE) as lakebase:
        assert lakebase.retrieve_frame_range("/1", 0, user_groups=["a"]) is not None
        assert len(lakebase.get_preload_priority_list()) == 21
        assert lakebase.get_latest_metrics() == []


def writes(store: FrameStore, lakebase: LakebaseUtils) -> dict[str, Callable[[], Any]]:
    return {
        "upsert": lambda: store.upsert(SOURCE, results(1)),
        "upsert into a new source": lambda: store.upsert("new", results(1)),
        "touch": lambda: store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW]),
        "delete": lambda: store.delete(SOURCE, ["/1"]),
        "prune": lambda: store.prune(SOURCE, under=["/1"], force=True),
        "touch_frame_ranges": lambda: lakebase.touch_frame_ranges("/1"),
        "insert_frame_range": lambda: lakebase.insert_frame_range("/x", 0, 1, 2, 3),
        "insert_instance_paths_batch": lambda: lakebase.insert_instance_paths_batch([{"local_path": "/x"}]),
        "insert_metrics": lambda: lakebase.insert_metrics("x", {}),
        "upsert_access_rule": lambda: lakebase.upsert_access_rule(SOURCE, "a"),
        "reset_allowed_groups": lakebase.reset_allowed_groups,
        "create_frames_view": lakebase.create_frames_view,
    }


def test_every_write_ends_in_a_message_that_names_the_primary(pair: Pair) -> None:
    remedy = r"read-only transaction; this server is a standby.*target_session_attrs=read-write"
    with (
        FrameStore(pair.standby.dsn()) as store,
        LakebaseUtils(dsn=pair.standby.dsn(), uc_table_name=SOURCE) as lakebase,
    ):
        for write in writes(store, lakebase).values():
            with pytest.raises(ConfigError, match=remedy):
                write()
        assert store.get(SOURCE, "/1") == TABLE


def test_every_write_to_a_read_only_database_ends_in_a_message_that_names_the_setting(dsn: str) -> None:
    with FrameStore(dsn) as store:
        store.upsert(SOURCE, results(3))
    name = ask(dsn, "SELECT current_database()")[0][0]
    ask(dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with FrameStore(dsn) as store, LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        for write in writes(store, lakebase).values():
            with pytest.raises(ConfigError, match="set default_transaction_read_only = off"):
                write()
        assert store.get(SOURCE, "/1") == TABLE


def test_a_reader_serves_from_a_standby(pair: Pair) -> None:
    with (
        FrameStore(pair.standby.dsn()) as store,
        FrameReader(store, SOURCE, publish=False, index_seconds=60.0) as reader,
    ):
        assert len(reader.frame("1.2.3", 0)) == 16
        assert reader.stats()["tier2"] == 1
        reader.preload.start()
        reader.preload.wait()
        assert reader.preload.progress()["state"] == "done"
        assert reader.flush() == 0
        assert not reader.stats()["degraded"]


def test_a_standby_whose_index_is_older_than_this_version_is_told(pair: Pair) -> None:
    ask(pair.primary.dsn(), "CREATE DATABASE old")
    ask(pair.primary.dsn(dbname="old"), "CREATE SCHEMA voxtier")
    versions = "CREATE TABLE voxtier.schema_version AS SELECT 1 AS version"
    ask(pair.primary.dsn(dbname="old"), versions)
    ask(pair.primary.dsn(), "CREATE DATABASE empty")
    pair.standby.wait_for(pair.primary)
    with pytest.raises(
        ConfigError, match=r"has schema version 1, .*this server is a standby: run any command"
    ):
        FrameStore(pair.standby.dsn(dbname="old")).sources()
    with pytest.raises(ConfigError, match=r"this server is a standby, which only reads: name its primary"):
        FrameStore(pair.standby.dsn(dbname="empty")).sources()


def test_the_doctor_says_that_a_standby_only_reads(pair: Pair) -> None:
    command = [sys.executable, "-m", "voxtier", "doctor", "--dsn", pair.standby.dsn()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "this server is a standby: it only reads" in done.stdout


def test_a_promoted_standby_takes_what_waits(tmp_path: Path) -> None:
    primary, standby = Server(tmp_path / "p"), Server(tmp_path / "s")
    primary.initialise()
    primary.start()
    path = tmp_path / "1.dcm"
    path.write_bytes(ct())
    with FrameStore(primary.dsn()) as store:
        store.upsert(SOURCE, read_tables([str(path)]))
    standby.copy_of(primary)
    standby.start()
    standby.wait_for(primary)
    with (
        FrameStore(standby.dsn()) as store,
        FrameReader(store, SOURCE, publish=False, index_seconds=60.0) as reader,
    ):
        reader.frame(str(path), 0)
        assert reader.flush() == 0
        assert reader.stats()["flush_errors"] == 1
        primary.stop()
        standby.promote()
        assert reader.flush() == 1
        assert ask(standby.dsn(), "SELECT access_count FROM voxtier.file_stats") == [(1,)]
    standby.stop()


def test_connections_follow_a_hand_over_to_the_server_that_takes_writes(tmp_path: Path) -> None:
    primary, standby = Server(tmp_path / "p"), Server(tmp_path / "s")
    primary.initialise()
    primary.start()
    with FrameStore(primary.dsn()) as store:
        store.upsert(SOURCE, results(3))
    standby.copy_of(primary)
    standby.start()
    standby.wait_for(primary)
    attributes = {"host": f"{primary.folder},{standby.folder}", "target_session_attrs": "read-write"}
    barrier = threading.Barrier(3)

    def ask_whether_read_only(connection: psycopg.Connection[Any]) -> object:
        barrier.wait(60)
        return connection.execute("SELECT current_setting('transaction_read_only')").fetchone()

    with FrameStore(primary.dsn(**attributes)) as store, ThreadPoolExecutor(3) as threads:

        def are_read_only() -> set[object]:
            """Ask on three connections at once."""
            return set(threads.map(store.database.run, [ask_whether_read_only] * 3))

        assert are_read_only() == {("off",)}
        ask(primary.dsn(), "ALTER SYSTEM SET default_transaction_read_only = on")
        ask(primary.dsn(), "SELECT pg_reload_conf()")
        while are_read_only() != {("on",)}:
            pass
        with pytest.raises(ConfigError, match="read-only transaction"):  # nobody takes writes yet
            store.upsert(SOURCE, results(4))
        assert store.get(SOURCE, "/1") == TABLE
        standby.promote()
        assert store.upsert(SOURCE, results(4)).inserted == 1
        assert are_read_only() == {("off",)}
    with (
        FrameStore(primary.dsn()) as store,
        pytest.raises(ConfigError, match="set default_transaction_read_only = off"),
    ):
        store.upsert(SOURCE, results(5))
    standby.stop()
    primary.stop()
