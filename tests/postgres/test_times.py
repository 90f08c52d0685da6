"""Times that Python has no number for, in every column of the index that holds a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask, results
from voxtier import _core
from voxtier.frames import FrameCache, FrameStore, LakebaseUtils
from voxtier.frames.databricks.lakebase import import_dicom_frames
from voxtier.frames.memory.ranking import preload_rows, ranked_files
from voxtier.postgres.database import Database

pytestmark = pytest.mark.usefixtures("template")
SOURCE = "c.s.t"
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
TIMES = {
    "infinity": LATEST,
    "-infinity": EARLIEST,
    "4713-11-24 00:00:00 BC": EARLIEST,
    "0044-03-15 12:00:00 BC": EARLIEST,
    "0001-12-31 23:59:59.999999 BC": EARLIEST,
    "0001-01-01 00:00:00": EARLIEST,
    "9999-12-31 23:59:59.999999": LATEST,
    "10000-01-01 00:00:00": LATEST,
    "294276-12-31 23:59:59": LATEST,
    "1999-12-31 23:59:59": datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
}
ZONES = ("UTC", "Pacific/Kiritimati", "America/Los_Angeles")
COLUMNS = [
    ("file", "inserted_at"),
    ("file_stats", "last_used_at"),
    ("claim", "inserted_at"),
    ("user_groups", "synced_at"),
    ("metric", "recorded_at"),
    ("schema_version", "applied_at"),
]


def in_utc(moment: str) -> str:
    """Return a time as PostgreSQL reads it, whatever the zone of the session."""
    if moment.endswith("infinity"):
        return moment
    return moment.replace(" BC", "+00 BC") if moment.endswith("BC") else f"{moment}+00"


def is_near(found: datetime | None, moment: str) -> bool:
    """Whether a time is what is expected; at the ends of time a zone may reach some hours further."""
    assert found is not None
    distance = abs((found - EARLIEST) - (TIMES[moment] - EARLIEST))
    return distance <= (timedelta(0) if "1999" in moment else timedelta(hours=15))


def test_every_time_of_the_index_is_in_the_list(dsn: str) -> None:
    with FrameStore(dsn) as store:
        store.sources()
    question = """
        SELECT c.relname, a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'voxtier'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
            AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
    """
    assert sorted(ask(dsn, question)) == sorted(COLUMNS)


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
@pytest.mark.parametrize("moment", TIMES)
def test_everything_is_answered_whatever_the_time(dsn: str, moment: str) -> None:
    [(name,)] = ask(dsn, "SELECT current_database()")
    with FrameStore(dsn) as store, LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        store.upsert(SOURCE, results(3))
        store.touch([_core.file_key(SOURCE, "/1"), _core.file_key(SOURCE, "/2")], [1, 1], [NOW, NOW])
        lakebase.insert_frame_range("/c", 0, 1, 2, 3)
        lakebase.insert_instance_paths_batch([{"local_path": "/i", "sop_instance_uid": "1.7"}])
        lakebase.insert_metrics("x", {"n": 1})
        ask(dsn, "INSERT INTO voxtier.user_groups VALUES ('u', '{a}', now())")
    for zone in ZONES:
        ask(dsn, f"ALTER DATABASE {name} SET TimeZone = '{zone}'")
        for table, column in COLUMNS:
            ask(dsn, f"UPDATE voxtier.{table} SET {column} = '{in_utc(moment)}'")
        check_that_everything_is_answered(dsn, moment)


def check_that_everything_is_answered(dsn: str, moment: str) -> None:
    with FrameStore(dsn) as store, LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        assert store.get(SOURCE, "/1") == TABLE
        assert store.recall(SOURCE, "/1", with_series=True) is not None
        ranked = {each.path: each for each in ranked_files(store, SOURCE)}
        assert is_near(ranked["/1"].last_used_at, moment)
        assert is_near(ranked["/1"].inserted_at, moment)
        assert ranked["/0"].last_used_at is None
        cache = FrameCache(1 << 20)
        assert cache.preload_rows(b"".join(preload_rows(store, SOURCE, 10)), 1 << 20)[0] == 3
        listed = {row["filename"]: row["last_used_at"] for row in lakebase.get_preload_priority_list()}
        assert is_near(listed["/1"], moment)
        assert listed["/0"] == datetime(1970, 1, 1, tzinfo=UTC)  # never: Spark can type it
        assert is_near(datetime.fromisoformat(lakebase.get_latest_metrics()[0]["recorded_at"]), moment)
        assert lakebase.get_user_groups("u") == ["a"]
        assert lakebase.retrieve_instance_path(None, None, "1.7") is not None
        assert set(lakebase.retrieve_instance_paths_for_preload()) == {"2.25.1", "1.7"}
        assert store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW]) == []
        assert lakebase.touch_frame_ranges("/c") == 1
        assert store.upsert(SOURCE, results(3), force=True).updated == 3
        assert store.summary(SOURCE).total.files == 3


@pytest.mark.parametrize("moment", TIMES)
def test_both_forms_of_a_time_are_read_alike(dsn: str, moment: str) -> None:
    database = Database(dsn)
    for zone in ZONES:
        with database.connection() as connection:
            connection.execute(f"SET TIME ZONE '{zone}'".encode())
            question = f"SELECT '{in_utc(moment)}'::timestamptz".encode()
            for binary in (False, True):
                [found] = connection.execute(question, binary=binary).fetchone() or [None]
                assert is_near(found, moment)
    database.close()


@pytest.mark.parametrize("moment", TIMES)
def test_a_table_of_others_is_imported_whatever_its_times(dsn: str, moment: str) -> None:
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        ask(
            dsn,
            f"""CREATE TABLE public.rows AS SELECT '/gone' AS filename, 0 AS frame, 10 AS start_pos,
            20 AS end_pos, '{SOURCE}' AS uc_table_name, '{in_utc(moment)}'::timestamptz AS inserted_at,
            '{in_utc(moment)}'::timestamptz AS last_used_at, 3 AS access_count""",
        )
        *_, report = import_dicom_frames(lakebase, "public.rows")
        assert report.unverified == 1
        assert lakebase.retrieve_frame_range("/gone", 0) is not None
