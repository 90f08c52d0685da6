"""The score against `math`, the ranking against numpy's full stable sort, and the refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtier.frames.memory import priority
from voxtier.frames.memory.priority import score_many, top_n
from voxtier.frames.memory.scorer import CachePriorityScorer, band, label

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NULL = np.iinfo(np.int64).min
HOUR = 3_600_000_000
NOW_US = int(NOW.timestamp()) * 1_000_000

GOLDENS = [
    (0, 0, 0, 0.7),
    (0, 0, 1, 0.7903089986991944),
    (0, 0, 9, 1.0),
    (0, 0, 10, 1.0124178055474675),
    (24, 168, 0, 0.35),
    (24, 168, 1, 0.4403089986991943),
    (12, 72, 5, 0.7355981946220618),
    (None, 0, 0, 0.2),
    (None, 168, 0, 0.1),
    (None, 8760, 2, 0.14313637641589874),
    (None, 43800, 9, 0.3),
    (None, 87600, 2153, 0.9999737096885888),
    (None, 87600, 2154, 1.000034182349025),
    (26400, 26400, 0, 9.915540467466113e-49),
    (1, 1, 2**63 - 1, 6.374409413357706),
]


def oracle(used: int, inserted: int, count: int, now: int = NOW_US) -> float:
    def recency(time: int, half: float) -> float:
        return 0.0 if time == NULL else 2.0 ** -(max(now - time, 0) / half)

    return (
        0.5 * recency(used, 86_400e6)
        + 0.2 * recency(inserted, 604_800e6)
        + 0.3 * math.log10(float(count) + 1.0)
    )


def full_sort(used: Any, inserted: Any, count: Any, ids: Any, n: int) -> tuple[Any, Any]:
    scores = score_many(used, inserted, count, now=NOW_US)
    order = np.lexsort((ids, -scores))[:n]
    return ids[order], scores[order]


def ulps(a: float, b: float) -> int:
    return abs(int(np.float64(a).view(np.int64)) - int(np.float64(b).view(np.int64)))


@pytest.mark.parametrize(("used", "inserted", "count", "want"), GOLDENS)
def test_scores_of_known_files(used: float | None, inserted: float, count: int, want: float) -> None:
    def at(hours):
        return None if hours is None else NOW - timedelta(hours=hours)

    assert ulps(CachePriorityScorer().score(at(used), at(inserted), count, NOW), want) <= 2
    assert ulps(score_many([at(used)], [at(inserted)], [count], now=NOW)[0], want) <= 2


def test_future_times_have_age_zero_and_warn_beyond_five_minutes() -> None:
    soon, far = NOW + timedelta(minutes=4), NOW + timedelta(hours=5)
    assert score_many([soon], [soon], [0], now=NOW)[0] == 0.7
    with pytest.warns(priority.ClockSkewWarning, match="2 times"):
        assert score_many([far], [far], [0], now=NOW)[0] == 0.7
    with pytest.warns(priority.ClockSkewWarning):
        top_n([far], [NOW], [0], n=1, now=NOW)


times = st.one_of(st.just(NULL), st.integers(NOW_US - 10**15, NOW_US + 10**8), st.integers(NULL, 2**63 - 1))
rows = st.lists(st.tuples(times, times, st.integers(0, 2**63 - 1)), max_size=40)


@given(rows)
def test_score_is_the_formula(table: list[tuple[int, int, int]]) -> None:
    used, inserted, count = (
        np.array(column, np.int64) for column in (zip(*table, strict=True) if table else ((), (), ()))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", priority.ClockSkewWarning)
        got = score_many(used, inserted, count, now=NOW_US)
    for score, row in zip(got, table, strict=True):
        assert ulps(score, oracle(*row)) <= 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 17, 4000, 20_000, 70_001, 10**9]), st.booleans())
def test_top_n_equals_a_full_stable_sort(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    size = 70_001
    used = NOW_US - rng.integers(0, 60 * 24 * HOUR, size)
    used[rng.random(size) < 0.3] = NULL
    inserted = NOW_US - rng.integers(0, 600 * 24 * HOUR, size)
    count = rng.geometric(0.2, size) - 1
    if ties:
        used, inserted, count = (column[rng.integers(0, 50, size)] for column in (used, inserted, count))
    ids = rng.permutation(size)
    got, scores = top_n(used, inserted, count, n=n, ids=ids, now=NOW_US)
    want, want_scores = full_sort(used, inserted, count, ids, n)
    assert np.array_equal(got, want)
    assert scores.tobytes() == want_scores.tobytes()


def test_text_ids_break_ties_by_code_point() -> None:
    names = ["b", "a", "é", "Z", "\U0001f600", "\uffff"]
    got, _ = top_n([NULL] * 6, [NOW_US] * 6, [3] * 6, n=6, ids=names, now=NOW_US)
    assert got.tolist() == sorted(names)


def test_portable_body_gives_the_same_rows() -> None:
    code = (
        "import numpy as np; from voxtier.frames.memory.priority import top_n\n"
        "rng = np.random.default_rng(1); n = 80_000; now = 10**15\n"
        "t = now - rng.integers(0, 10**13, (2, n)); c = rng.integers(0, 99, n)\n"
        "rows, scores = top_n(t[0], t[1], c, n=999, now=now)\n"
        "print(rows.tolist(), scores.tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "VOXTIER_CPU": cpu},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for cpu in ("", "baseline")
    }
    assert len(outputs) == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=60),
    st.integers(0, 70),
    st.integers(0, 300),
)
def test_budget_skips_misfits_and_never_stops_at_one(
    table: list[tuple[int, int]], n: int, budget: int
) -> None:
    count = np.array([row[0] for row in table], np.int64)
    sizes = np.array([row[1] for row in table], np.int64)
    nulls = np.full(len(table), NULL)
    left, want = budget, []
    for row in np.lexsort((np.arange(len(table)), -count)):
        if len(want) < n and sizes[row] <= left:
            left -= sizes[row]
            want.append(row)
    got, _ = top_n(nulls, nulls, count, n=n, sizes=sizes, budget=budget, now=NOW_US)
    assert got.tolist() == want


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_datetime64_of_any_unit_is_taken(unit: str) -> None:
    moment = np.datetime64("2026-03-01T12", unit)
    assert score_many(np.array([moment, "NaT"], f"M8[{unit}]"), [NOW, None], [0, 0], now=NOW).tolist() == [
        0.7,
        0,
    ]


def test_out_is_written_and_returned() -> None:
    out = np.empty(1)
    assert score_many([NOW_US], [NOW_US], [0], now=NOW_US, out=out) is out
    assert out[0] == 0.7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": [0, -1, -2]}, r"access_count\[1\] = -1"),
        ({"count": [0.5, 1, 1]}, r"access_count\[0\] is float64"),
        ({"count": [0, 0]}, "row 2"),
        ({"count": np.array([0, 2**63, 0], np.uint64)}, r"access_count\[1\]"),
        ({"last_used": np.array([0, 2**62, 0], "M8[s]")}, r"last_used\[1\]"),
        ({"last_used": [1.5, 0, 0]}, "float64"),
        ({"weights": {"last_used": -1}}, "weight last_used"),
        ({"weights": {"inserted": math.nan}}, "weight inserted"),
        ({"weights": {"used": 1}}, "'used'"),
        ({"half_lives": {"inserted": 0}}, "half-life inserted"),
        ({"half_lives": {"inserted": math.inf}}, "half-life inserted"),
        ({"now": NULL}, "now is NULL"),
    ],
)
def test_bad_input_names_the_first_bad_place(change: dict[str, Any], words: str) -> None:
    columns = {"last_used": [NOW_US] * 3, "inserted": [NOW_US] * 3, "count": [0] * 3, "now": NOW_US}
    with pytest.raises(ValueError, match=words):
        score_many(**{**columns, **change})
    with pytest.raises(ValueError, match=words):
        top_n(**{**columns, **change}, n=1)


def test_naive_datetimes_are_refused_unless_said_to_be_utc() -> None:
    naive = NOW.replace(tzinfo=None)
    for columns in ([naive], [NOW]), ([NOW], [naive]):
        with pytest.raises(TypeError, match="naive"):
            score_many(*columns, [0], now=NOW)
    assert score_many([naive], [naive], [0], now=naive, assume_utc=True)[0] == 0.7


def test_no_rows_give_no_scores_and_n_is_clipped() -> None:
    assert len(score_many([], [], [], now=NOW)) == 0
    assert [len(part) for part in top_n([], [], [], n=5, now=NOW)] == [0, 0]
    assert len(top_n([NOW], [NOW], [0], n=99, now=NOW)[0]) == 1


def test_labels_follow_the_bands_of_scores() -> None:
    assert [band(s) for s in (1.0001, 1.0, 0.3, 0.2999, 0.1, 0.0999)] == [
        "critical", "high", "high", "medium", "medium", "low",
    ]  # fmt: skip
    assert label(0.5, 0, 9, used=True) == "frequent_recent"
    assert label(0.5, 0, 8, used=True) == "recent"
    assert label(0, 0.5, 50, used=False) == "fresh"
    assert label(0.4, 0.9, 9, used=True) == "frequent_stale"
    assert label(0.4, 0.9, 8, used=True) == "cold"
    scorer = CachePriorityScorer()
    assert scorer.explain(NOW - timedelta(hours=23), NOW, 20, NOW)[2] == "frequent_recent"
    assert scorer.explain(None, NOW - timedelta(hours=167), 0, NOW)[1:] == ("medium", "fresh")


def test_scorer_takes_naive_none_and_negative_as_the_predecessor_does() -> None:
    scorer = CachePriorityScorer(weights={"inserted": 0.4}, half_lives={"last_used": 12})
    assert scorer.score(None, None, None) == 0
    naive = NOW.replace(tzinfo=None)
    assert scorer.score(naive - timedelta(hours=12), naive, -5, now=naive) == pytest.approx(0.25 + 0.4)
    with pytest.raises(ValueError, match="lb_utils"):
        scorer.get_preload_list("c.s.t")
