"""The bounds by which a large index is ranked: no file that scores enough is left out; equal lists."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frames.store.rows.index_rows import TABLE
from voxtier import _core
from voxtier.frames import FrameCache, TableResult
from voxtier.frames.databricks.lakebase import LakebaseUtils
from voxtier.frames.memory import ranking
from voxtier.frames.memory.bounds import bound_parameters, estimate_threshold
from voxtier.frames.memory.priority import ClockSkewWarning, score_many
from voxtier.frames.memory.priority_columns import times_of
from voxtier.frames.memory.scorer import CachePriorityScorer
from voxtier.frames.store.grants import grants
from voxtier.frames.store.store import FrameStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FORMULAS: list[dict[str, Any]] = [
    {},
    {"weights": {"last_used": 0}},
    {"weights": {"access_count": 0}},
    {"weights": {"inserted": 0}},
    {"weights": {"last_used": 1e-9, "inserted": 3, "access_count": 1e-12}},
    {"half_lives": {"inserted": 1e-3}},  # most recencies underflow to equal zeros
    {"half_lives": {"last_used": 1e5, "inserted": 1e5}},
]
# Of an archive that is new, of one that is old, of one that nobody reads: the bounds differ.
Rows = list[tuple[datetime | None, datetime, int]]
SAMPLES: list[Rows] = [
    [],
    [(NOW - timedelta(hours=n * 7), NOW, n % 9) for n in range(99)],
    [(NOW - timedelta(hours=n * 7), NOW - timedelta(days=n * 9), n % 9) for n in range(99)],
    [(None, NOW - timedelta(days=n), 0) for n in range(99)],
]
ages = st.one_of(st.integers(-(10**13), 10**15), st.integers(-(10**7), 10**7))
counts = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))


def columns(rows: Rows) -> tuple[Any, Any, Any]:
    """Rows as a sample."""
    used, inserted, numbers = zip(*rows, strict=True) if rows else ((), (), ())
    times = (times_of("", list(each), assume_utc=False) for each in (used, inserted))
    return (*times, np.array(numbers, np.int64))  # type: ignore[return-value]


def passes(parameters: dict[str, Any], used: datetime | None, inserted: datetime, count: int) -> bool:
    """What the conditions of the statement say of a file."""
    if inserted.timestamp() >= parameters["inserted_since"]:
        return True
    return used is not None and any(
        count >= parameters[f"count_{step}"] and used.timestamp() >= parameters[f"used_since_{step}"]
        for step in range(7)
    )


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
@settings(max_examples=100)
@given(st.one_of(st.none(), ages), ages, counts, st.sampled_from(FORMULAS), st.floats(0.05, 1))
def test_a_file_that_reaches_a_threshold_passes(
    used_age: int | None, age: int, count: int, formula: dict[str, Any], part: float
) -> None:
    used = None if used_age is None else NOW - used_age * MICROSECOND
    inserted = NOW - age * MICROSECOND
    count = 0 if used is None else count
    score = float(score_many([used], [inserted], [count], now=NOW, **formula)[0])
    for threshold in (score, score * part):
        if threshold > 1e-6:
            for sample in SAMPLES:
                parameters = bound_parameters(threshold, NOW, columns(sample), **formula)
                assert passes(parameters, used, inserted, count)


def test_a_bound_lets_few_files_pass() -> None:
    dice = random.Random(3)
    rows = [
        (
            NOW - timedelta(hours=dice.expovariate(1 / 1500)),
            NOW - timedelta(days=90),
            int(dice.expovariate(0.3)),
        )
        for _ in range(20_000)
    ]
    threshold = estimate_threshold(columns(rows), 1.0, 200, slack=1.0, now=NOW)
    assert threshold is not None
    parameters = bound_parameters(threshold, NOW, columns(rows))
    assert 200 <= sum(passes(parameters, *row) for row in rows) < 1000
    assert not any(passes(parameters, None, row[1], 0) for row in rows)


def test_no_threshold_where_most_files_are_wanted() -> None:
    for rows, limit in (
        ([(None, NOW, 0)] * 900, 400),  # too many are wanted
        ([], 1),
        ([(None, NOW - timedelta(days=9000), 0)] * 900, 9),  # none scores
    ):
        assert estimate_threshold(columns(rows), 1.0, limit, slack=1.2, now=NOW) is None


TIMES = ["now", "infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31"]
INSERT = """
INSERT INTO voxtier.file (key, path, source_id, inserted_at, frame_count, offsets_in, status, kind, method,
    verified, parser_version)
SELECT %s, %s, source_id, %s, %s, %s::voxtier.offsets_in, 'ok', 'native', 'native', 'all', 1
FROM voxtier.source WHERE name = %s
"""


@pytest.fixture(scope="module")
def filled(postgres: str) -> Iterator[FrameStore]:
    """An index of 6,000 rows, half of them with statistics; many scores are equal."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bounds TEMPLATE template0")
    with FrameStore(psycopg.conninfo.make_conninfo(postgres, dbname="bounds")) as store:
        store.sources()
        dice = random.Random(11)
        files, touched = [], []
        for number in range(6000):
            source = "s" if number % 3 else "other"
            path = f"/{dice.choice('aäz')}/{number:05}"
            inserted = NOW - timedelta(hours=dice.choice([0, 1, 1, 30, 500.5, 90_000]))
            key = UUID(bytes=_core.file_key(source, path))
            frames, place = dice.choice([0, 1, 1, 1]), dice.choice(["file", "inflated"])
            files.append((key, path, inserted, frames, place, source))
            if number % 2:
                used = NOW - timedelta(hours=dice.choice([0, 5, 5.5, 200, 3000]))
                touched.append((key, used, dice.randrange(12)))
        with store.database.connection() as connection:
            connection.execute("INSERT INTO voxtier.source (name) VALUES ('s'), ('other')")
            connection.cursor().executemany(INSERT.encode(), files)
            connection.cursor().executemany("INSERT INTO voxtier.file_stats VALUES (%s, %s, %s)", touched)
            for number, moment in enumerate(TIMES):
                for table, column in (("file", "inserted_at"), ("file_stats", "last_used_at")):
                    connection.execute(
                        f"UPDATE voxtier.{table} SET {column} = '{moment}' WHERE key IN "
                        f"(SELECT key FROM voxtier.{table} ORDER BY key OFFSET {number * 7} LIMIT 3)".encode()
                    )
        yield store
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP DATABASE bounds WITH (FORCE)")


@pytest.fixture
def every_page(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rank small indexes like large ones; returns a list for the statements that are asked."""
    monkeypatch.setattr(ranking, "WORTH_PAGES", 0)
    monkeypatch.setattr(ranking, "SAMPLE_PAGES", 10)
    return []


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("limit", [1, 30, 700])
def test_a_list_by_bounds_is_the_list_of_all_scores(
    filled: FrameStore,
    every_page: list[str],
    monkeypatch: pytest.MonkeyPatch,
    formula: dict[str, Any],
    limit: int,
) -> None:
    def ask(statement: str, parameters: Any) -> list[Any]:
        every_page.append(statement)
        return filled.query(statement, parameters)

    given = {"now": NOW, "has_ranges": limit == 30, **formula}
    by_bounds = ranking.ranked_files(filled, "s", limit, query=ask, **given)
    monkeypatch.setattr(ranking, "WORTH_PAGES", math.inf)
    assert ranking.ranked_files(filled, "s", limit, **given) == by_bounds
    # All of it, by the core alone.
    everything = ranking.ranked_files(filled, "s", 10_000, **given)
    scored = score_many(
        [file.last_used_at for file in everything],
        [file.inserted_at for file in everything],
        [file.access_count for file in everything],
        now=NOW,
        **formula,
    )
    order = sorted(zip((-scored).tolist(), (file.path for file in everything), strict=True))
    assert [(-score, path) for score, path in order[:limit]] == [
        (file.score, file.path) for file in by_bounds
    ]
    scorer = CachePriorityScorer(**formula)
    for file in by_bounds[:: max(limit // 50, 1)]:
        explained = scorer.explain(file.last_used_at, file.inserted_at, file.access_count, NOW)
        assert (file.score, file.band, file.label) == explained
    if not formula and limit <= 30:
        assert any("access_count >=" in statement for statement in every_page)
        assert not any("NULLS LAST" in statement for statement in every_page)


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
def test_a_sample_that_misleads_costs_time_only(
    filled: FrameStore, every_page: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ranking.ranked_files(filled, "s", 50, now=NOW)
    assert len(want) == 50
    for lie in (99.0, None):
        monkeypatch.setattr(ranking, "estimate_threshold", lambda *_, lie=lie, **__: lie)
        assert ranking.ranked_files(filled, "s", 50, now=NOW) == want


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
@pytest.mark.parametrize("lie", [None, 0.0])
def test_a_preload_by_bounds_streams_every_row_once(
    store: FrameStore,
    every_page: list[str],
    monkeypatch: pytest.MonkeyPatch,
    lie: float | None,
) -> None:
    paths = [f"/{number:04}" for number in range(400)]
    store.upsert("s", (TableResult(path, TABLE, None) for path in paths))
    keys = [_core.file_key("s", path) for path in paths[::3]]
    store.touch(keys, list(range(1, len(keys) + 1)), [NOW - timedelta(hours=n) for n in range(len(keys))])
    monkeypatch.setattr(ranking, "SAMPLE_PAGES", 10**6)
    if lie is not None:
        monkeypatch.setattr(ranking, "estimate_threshold", lambda *_, **__: 99.0)
    statements = []
    stream = store.stream_rows

    def listen(statement: str, parameters: Any) -> Any:
        statements.append(statement)
        return stream(statement, parameters)

    monkeypatch.setattr(store, "stream_rows", listen)
    ranked = [file.path for file in ranking.ranked_files(store, "s", 400)]
    for limit in (0, 5, 60, 390, 400, 1000):
        cache = FrameCache(1 << 24)
        for rows in ranking.preload_rows(store, "s", limit):
            loaded, skipped, damaged = cache.preload_rows(rows, 1 << 23)
            assert (skipped, damaged) == (0, 0)
            assert loaded
        assert cache.keys() == ranked[:limit]
    assert any("access_count >=" in statement for statement in statements)


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
def test_groups_see_their_files_in_a_list_by_bounds(
    filled: FrameStore, every_page: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed() -> list[str]:
        with LakebaseUtils(dsn=filled.database._conninfo()) as lakebase:
            ask = lambda query, parameters: lakebase.rows(query, parameters, ["g"])  # noqa: E731
            return [file.path for file in ranking.ranked_files(filled, "s", 40, now=NOW, query=ask)]

    filled.query("UPDATE voxtier.file SET allowed_groups = '{h}' WHERE path LIKE '/a/%%' RETURNING 1", ())
    try:
        found = listed()
        assert len(found) == 40
        assert not any(path.startswith("/a/") for path in found)
        monkeypatch.setattr(ranking, "WORTH_PAGES", math.inf)
        assert listed() == found
    finally:
        filled.query("UPDATE voxtier.file SET allowed_groups = NULL RETURNING 1", ())


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
def test_a_role_under_row_security_gets_the_same_list(
    filled: FrameStore, every_page: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = filled.database._conninfo()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE ranks LOGIN")
        for statement in grants("ranks", "reader"):
            connection.execute(statement.encode())
        connection.execute("UPDATE voxtier.file SET allowed_groups = '{h}' WHERE path LIKE '/a/%'")
        try:
            with FrameStore(psycopg.conninfo.make_conninfo(dsn, user="ranks")) as store:
                found = ranking.ranked_files(store, "s", 40, now=NOW)
                assert not any(file.path.startswith("/a/") for file in found)
                monkeypatch.setattr(ranking, "WORTH_PAGES", math.inf)
                assert ranking.ranked_files(store, "s", 40, now=NOW) == found
        finally:
            connection.execute("UPDATE voxtier.file SET allowed_groups = NULL")
            connection.execute("DROP OWNED BY ranks; DROP ROLE ranks")


def test_a_clock_that_is_wrong_is_told_once(store: FrameStore) -> None:
    store.upsert("s", (TableResult(f"/{number}", TABLE, None) for number in range(5)))
    with pytest.warns(ClockSkewWarning) as warned:
        assert len(ranking.ranked_files(store, "s", now=NOW)) == 5
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore::voxtier.frames.memory.priority.ClockSkewWarning")
def test_the_collector_is_left_as_it_was(filled: FrameStore) -> None:
    """It waits while rows are built, and not while the database is asked, which may be dead."""

    def ask(statement: str, parameters: Any) -> list[Any]:
        assert gc.isenabled() == expected
        return filled.query(statement, parameters)

    try:
        for expected in (False, True):
            (gc.enable if expected else gc.disable)()
            assert ranking.ranked_files(filled, "s", 50, now=NOW, query=ask)
            assert gc.isenabled() == expected
    finally:
        gc.enable()
