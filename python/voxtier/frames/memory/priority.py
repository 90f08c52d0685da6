"""Which files deserve memory: scores of many files, the exact best of them, the same formula as SQL.

The formula is written once, in the Rust core. This module checks arguments, converts times, and renders the
formula as SQL for *pre-selection*: the database narrows millions of rows down, the core scores and orders
what is left, because the last bits of two maths libraries differ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxtier import _core
from voxtier.frames.memory.priority_columns import (
    Moment,
    Tie,
    Times,
    ids_of,
    integers,
    microseconds,
    times_of,
)

#: Weights of the three terms.
WEIGHTS: Mapping[str, float] = {"last_used": 0.5, "inserted": 0.2, "access_count": 0.3}
#: True half-lives, in hours.
HALF_LIVES: Mapping[str, float] = {"last_used": 24.0, "inserted": 168.0}

_SKEW_TOLERATED_US = 300_000_000


class ClockSkewWarning(UserWarning):
    """Times lie more than five minutes in the future: a clock is wrong. Their age counts as 0."""


def score_many(
    last_used: Times,
    inserted: Times,
    count: ArrayLike,
    *,
    now: Moment | None = None,
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
    out: NDArray[np.float64] | None = None,
    assume_utc: bool = False,
) -> NDArray[np.float64]:
    """Compute the score of every file.

    Parameters
    ----------
    last_used, inserted : array_like, shape (N,)
        ``datetime64``, int64 microseconds since 1970 UTC, or aware datetimes; NaT, None and the
        smallest int64 are NULL and have recency 0.
    count : array_like of int, shape (N,)
        Accesses, >= 0.
    now : datetime, numpy.datetime64 or int, optional
        Moment of the scores; the clock's by default.
    weights, half_lives : mapping, optional
        Merged over `WEIGHTS` and `HALF_LIVES` (hours).
    out : ndarray of float64, shape (N,), optional
        Written and returned.
    assume_utc : bool
        Take naive datetimes as UTC instead of refusing them.

    Returns
    -------
    ndarray of float64, shape (N,)
        `out`, if given.

    Raises
    ------
    ValueError
        Negative or fractional counts, weights < 0, half-lives <= 0, columns that differ in length; names
        the first bad index.
    TypeError
        Naive datetimes without `assume_utc`.
    """
    batch = _batch(last_used, inserted, count, now, weights, half_lives, assume_utc=assume_utc)
    if out is None:
        out = np.empty(len(batch.count), np.float64)
    clamped, worst = _core.score_many(
        batch.last_used,
        batch.inserted,
        batch.count,
        now=batch.now,
        weights=batch.weights,
        half_lives=batch.half_lives,
        out=out,
    )
    _warn_of_skew(clamped, worst)
    return out


def top_n(
    last_used: Times,
    inserted: Times,
    count: ArrayLike,
    *,
    n: int,
    now: Moment | None = None,
    ids: ArrayLike | Sequence[str] | None = None,
    sizes: ArrayLike | None = None,
    budget: int | None = None,
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
    assume_utc: bool = False,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Find the best files, best first: exactly those of a full stable sort.

    Parameters
    ----------
    last_used, inserted, count : array_like, shape (N,)
        See `score_many`.
    n : int
        Files at most, >= 0.
    now : datetime, numpy.datetime64 or int, optional
        See `score_many`.
    ids : array_like of int64 or sequence of str, shape (N,), optional
        Names of the rows, returned, and deciding among equal scores (ascending; text by code points). Row
        numbers by default.
    sizes : array_like of int, shape (N,), optional
        Bytes of each file's entry; needed with `budget`.
    budget : int, optional
        Bytes: files are taken from the best on while they fit; one that does not fit is skipped.
    weights, half_lives : mapping, optional
        See `score_many`.
    assume_utc : bool
        See `score_many`.

    Returns
    -------
    ids : ndarray, shape (M,)
        Of the best files, M <= n.
    scores : ndarray of float64, shape (M,)
        Their scores.

    Raises
    ------
    ValueError
        As `score_many`; `n` < 0; `sizes` without `budget`, or the other way round.
    TypeError
        Naive datetimes without `assume_utc`.
    """
    batch = _batch(last_used, inserted, count, now, weights, half_lives, assume_utc=assume_utc)
    if n < 0:
        raise ValueError(f"n = {n}: must be >= 0")
    table, tie = ids_of(ids)
    if (sizes is None) != (budget is None):
        raise ValueError("sizes and budget go together")
    if sizes is None or budget is None:
        rows, scores = batch.best(n, tie)
    else:
        rows, scores = _fill(batch, n, tie, integers("sizes", sizes), budget)
    batch.warn_of_skew(rows)
    return (rows if table is None else table[rows]), scores


def score_sql(
    *,
    stats: str = "s",
    file: str = "f",
    now: str = "%(now)s",
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
) -> str:
    """Render the score as a PostgreSQL expression, for pre-selection.

    Parameters
    ----------
    stats, file : str
        Table aliases of the access statistics and of the files.
    now : str
        Expression of type float8: seconds since 1970 UTC.
    weights, half_lives : mapping, optional
        See `score_many`.

    Returns
    -------
    str
        Total for every timestamp (NULL, infinity, 4713 BC): the exponent is clamped, because ``power``
        raises an *error* on underflow; ``date_part`` is float8 where ``EXTRACT`` is numeric and 20 times
        slower. Order by it ``DESC NULLS LAST``, then by the path ``COLLATE "C"``.
    """
    w, h = formula(weights, half_lives)

    def term(weight: float, column: str, half_life: float) -> str:
        age = f"(date_part('epoch',{column})-{now})/{half_life!r}::float8"
        power = f"power(2::float8,greatest(-1000,least(0,{age})))"
        return f"CASE WHEN {column} IS NULL THEN 0::float8 ELSE {weight!r}::float8*{power} END"

    return (
        f"({term(w[0], f'{stats}.last_used_at', h[0])}+{term(w[1], f'{file}.inserted_at', h[1])}"
        f"+{w[2]!r}::float8*log(1+coalesce({stats}.access_count,0)::float8))"
    )


class RankedRows(NamedTuple):
    """The best rows, best first, with the scores and the recencies that their labels are made of.

    Attributes
    ----------
    rows : ndarray of int64, shape (M,)
        Numbers of rows.
    scores, recency_used, recency_inserted : ndarray of float64, shape (M,)
        Of these rows; a recency is ``2^(-age / half_life)``, 0 for NULL.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    recency_used: NDArray[np.float64]
    recency_inserted: NDArray[np.float64]


def rank_rows(
    last_used: Times,
    inserted: Times,
    count: ArrayLike,
    names: list[str],
    *,
    n: int,
    now: Moment,
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
) -> RankedRows:
    """Find the best rows as `top_n` does, equal scores by name, and what their labels are made of.

    Parameters
    ----------
    last_used, inserted, count : array_like, shape (N,)
        See `score_many`.
    names : list of str
        Of the rows.
    n : int
        Rows at most.
    now : datetime, numpy.datetime64 or int
        See `score_many`.
    weights, half_lives : mapping, optional
        See `score_many`.

    Returns
    -------
    RankedRows
        M <= n rows.
    """
    batch = _batch(last_used, inserted, count, now, weights, half_lives, assume_utc=False)
    rows, scores = batch.best(n, Tie(names=names))
    batch.warn_of_skew(rows)
    used, new = (np.ascontiguousarray(times[rows]) for times in (batch.last_used, batch.inserted))
    recencies = []
    for term in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
        recencies.append(np.empty(len(rows), np.float64))
        _core.score_many(
            used,
            new,
            np.zeros(len(rows), np.int64),
            now=batch.now,
            weights=term,
            half_lives=batch.half_lives,
            out=recencies[-1],
        )
    return RankedRows(rows, scores, *recencies)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Arguments of the core: checked columns, one moment, one formula."""

    last_used: NDArray[np.int64]
    inserted: NDArray[np.int64]
    count: NDArray[np.int64]
    now: int
    weights: tuple[float, float, float]
    half_lives: tuple[float, float]

    def best(self, n: int, tie: Tie) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return _core.top_n(
            self.last_used,
            self.inserted,
            self.count,
            n=n,
            now=self.now,
            weights=self.weights,
            half_lives=self.half_lives,
            ids=tie.ids,
            names=tie.names,
        )

    def warn_of_skew(self, rows: NDArray[np.int64]) -> None:
        for times in (self.last_used, self.inserted):
            chosen = times[rows]
            late = chosen[chosen > self.now]
            if len(late):
                _warn_of_skew(len(late), int(late.max()) - self.now)


def _batch(
    last_used: Times,
    inserted: Times,
    count: ArrayLike,
    now: Moment | None,
    weights: Mapping[str, float] | None,
    half_lives: Mapping[str, float] | None,
    *,
    assume_utc: bool,
) -> _Batch:
    w, h = formula(weights, half_lives)
    moment = datetime.now(UTC) if now is None else now
    return _Batch(
        times_of("last_used", last_used, assume_utc=assume_utc),
        times_of("inserted", inserted, assume_utc=assume_utc),
        integers("access_count", count),
        microseconds("now", moment, assume_utc=assume_utc),
        w,
        h,
    )


def formula(
    weights: Mapping[str, float] | None, half_lives: Mapping[str, float] | None
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Merge weights and half-lives over the defaults; return the weights, and the half-lives in seconds.

    Raises
    ------
    ValueError
        An unknown name, a weight < 0 or a half-life <= 0.
    """
    w = {**WEIGHTS, **(weights or {})}
    h = {**HALF_LIVES, **(half_lives or {})}
    for given, known, what in ((w, WEIGHTS, "weight"), (h, HALF_LIVES, "half-life")):
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{what} {name!r}: must be one of {', '.join(known)}")
            if not math.isfinite(value) or value < 0 or (what == "half-life" and value == 0):
                raise ValueError(
                    f"{what} {name} = {value}: must be finite and {'> 0' if h is given else '>= 0'}"
                )
    return (
        (float(w["last_used"]), float(w["inserted"]), float(w["access_count"])),
        (h["last_used"] * 3600.0, h["inserted"] * 3600.0),
    )


def _fill(
    batch: _Batch, n: int, tie: Tie, sizes: NDArray[np.int64], budget: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Take at most n files that fit, best first; order a longer prefix while a further file may fit."""
    total = len(batch.count)
    if len(sizes) != total:
        raise ValueError(f"sizes holds {len(sizes)} values for {total} rows")
    if total and sizes.min() < 0:
        row = int(np.argmax(sizes < 0))
        raise ValueError(f"sizes[{row}] = {sizes[row]}: must be >= 0")
    if budget < 0:
        raise ValueError(f"budget = {budget}: must be >= 0")
    smallest = int(sizes.min()) if total else 0
    reach = min(n, total)
    while True:
        rows, scores = batch.best(reach, tie)
        left = budget
        kept: list[int] = []
        for position, size in enumerate(sizes[rows].tolist()):
            if len(kept) < n and size <= left:
                left -= size
                kept.append(position)
        if len(kept) == min(n, total) or reach == total or left < smallest:
            return rows[kept], scores[kept]
        reach = min(reach * 4, total)


def _warn_of_skew(clamped: int, worst_us: int) -> None:
    if clamped and worst_us > _SKEW_TOLERATED_US:
        warnings.warn(
            f"clock_skew_clamped: {clamped} times lie in the future, by up to {worst_us / 1e6:.0f} s; "
            "their age counts as 0. Check the clocks.",
            ClockSkewWarning,
            stacklevel=3,
        )
