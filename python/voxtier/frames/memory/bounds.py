"""Which files of a large index may be among its best, said by comparisons of plain columns.

To score every row costs the database about a microsecond a row. As in the core (`top_n`), a sample of the
rows gives a score that about as many files reach as are wanted, and a bound that is never below a file's
score leaves few rows to score exactly. That the sample was good is checked afterwards; a bad one costs time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.frames.memory.priority import formula, score_many

#: Last use, insertion (both in microseconds since 1970, the smallest int64 for never) and access count.
Sample: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
Overrides: TypeAlias = Mapping[str, float] | None

# Pages of a sample, about 13,000 rows. An index of few times as many is ranked as a whole.
SAMPLE_PAGES = 512
WORTH_PAGES = 8 * SAMPLE_PAGES

# Steps of access counts in the bound; more of them let fewer rows pass and cost more comparisons a row.
_STEPS = 6
# Ages, in half-lives, from which on the term of the insertion may be taken as small.
_AGES = (0.5, 1, 2, 3, 4, 6, 8, 12)
_ROUNDING = 1e-9
_SECONDS_ROUNDING = 1.0
# The times that PostgreSQL knows, in seconds since 1970.
_EARLIEST, _LATEST = -210_866_803_200.0, 9_224_318_015_999.0

# A file passes if it was used often enough for its last use, or lately enough for its count.
USED_CONDITION = " OR ".join(
    f"(s.access_count >= %(count_{step})s AND s.last_used_at >= to_timestamp(%(used_since_{step})s))"
    for step in range(_STEPS + 1)
)


def estimate_threshold(
    sample: Sample,
    share: float,
    limit: int,
    *,
    slack: float,
    now: datetime,
    weights: Overrides = None,
    half_lives: Overrides = None,
) -> float | None:
    """Estimate a score that about `limit` files reach, from a sample of them.

    Parameters
    ----------
    sample : tuple of three ndarrays of int64, shape (N,)
        Last use and insertion in microseconds since 1970, the smallest number for never; access counts.
    share : float
        Share of all files that the sample is, in (0, 1].
    limit : int
        Files that are wanted.
    slack : float
        How many times `limit` should reach it, >= 1: the higher, the surer that enough do.
    now : datetime
        Moment of the scores.
    weights, half_lives : mapping, optional
        See `score_many`.

    Returns
    -------
    float or None
        A score above 0; None where so many files are wanted, or so few score, that all must be scored.
    """
    expected = limit * share
    place = int(slack * (expected + 3 * math.sqrt(expected)) + 8)
    if place >= len(sample[0]) / 3:
        return None
    moment = int(now.timestamp() * 1e6)
    # A time in the future counts as now; the list itself warns of it.
    used, inserted = np.minimum(sample[0], moment), np.minimum(sample[1], moment)
    scores = score_many(used, inserted, sample[2], now=moment, weights=weights, half_lives=half_lives)
    threshold = float(np.partition(scores, len(scores) - 1 - place)[len(scores) - 1 - place])
    return threshold if threshold > 1e-6 else None


def bound_parameters(
    threshold: float,
    now: datetime,
    sample: Sample,
    *,
    weights: Overrides = None,
    half_lives: Overrides = None,
) -> dict[str, Any]:
    """Return parameters with which every file passes whose score reaches a threshold, and few others.

    Parameters
    ----------
    threshold : float
        A score above 0.
    now : datetime
        Moment of the scores.
    sample : tuple of three ndarrays of int64, shape (N,)
        Files by which the parameters are chosen that let the fewest pass: see `estimate_threshold`.
    weights, half_lives : mapping, optional
        See `score_many`.

    Returns
    -------
    dict
        ``threshold``, lowered by what two maths libraries may differ by; ``inserted_since``: all newer files
        pass; ``count_N`` and ``used_since_N`` of `USED_CONDITION`, by which older ones pass that have
        statistics. Times are seconds since 1970.
    """
    weight, half_life = formula(weights, half_lives)
    threshold *= 1 - _ROUNDING
    moment = now.timestamp()
    # From here on a file passes by its insertion alone, as it must where it has no statistics.
    latest = _since(moment, threshold, weight[1], half_life[1])
    last, inserted, count = sample[0] / 1e6, sample[1] / 1e6, sample[2]
    best: tuple[int, dict[str, Any]] | None = None
    for since in (latest, *(moment - age * half_life[1] for age in _AGES)):
        if since > latest or (not _EARLIEST < since < _LATEST and since != latest):
            continue
        # Older files have at most this by their insertion; the other two terms must give the rest.
        share = min(1.0, 2.0 ** min((since + _SECONDS_ROUNDING - moment) / half_life[1], 0.0))
        rest = threshold - weight[1] * share * (1 + _ROUNDING)
        found = {"inserted_since": since, **_used_parameters(rest, moment, weight, half_life[0])}
        passes = inserted >= since
        for step in range(_STEPS + 1):
            passes |= (count >= found[f"count_{step}"]) & (last >= max(found[f"used_since_{step}"], -9e12))
        if best is None or passes.sum() < best[0]:
            best = int(passes.sum()), found
    assert best is not None  # the first is always taken
    return {"threshold": threshold, **best[1]}


def _used_parameters(
    rest: float, moment: float, weight: tuple[float, float, float], half_life: float
) -> dict[str, Any]:
    """Return what lets every file pass whose last use and count give `rest` of a score."""
    # With this count, and one more, a file passes whenever it was used.
    enough = 1.0 if rest <= 0 else 10 ** min(rest / weight[2], 18.0) if weight[2] > 0 else 1e18
    found: dict[str, Any] = {}
    for step in range(_STEPS + 1):
        lowest = math.floor(enough ** (step / _STEPS) * (1 - _ROUNDING))
        highest = enough ** ((step + 1) / _STEPS) * (1 + _ROUNDING)  # 1 + the count, below the next step
        missing = rest - weight[2] * math.log10(highest)
        found[f"count_{step}"] = max(lowest - 1, 0)
        found[f"used_since_{step}"] = (
            -math.inf if step == _STEPS else _since(moment, missing, weight[0], half_life)
        )
    return found


def _since(moment: float, score: float, weight: float, half_life: float) -> float:
    """Return the earliest time whose recency, with its weight, gives a score."""
    if score <= 0:
        return -math.inf
    if weight * (1 + _ROUNDING) < score:
        return math.inf
    since = moment - half_life * math.log2(weight * (1 + _ROUNDING) / score) - _SECONDS_ROUNDING
    return -math.inf if since <= _EARLIEST else math.inf if since >= _LATEST else since
