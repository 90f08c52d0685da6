"""Which files of the index deserve memory: the ranked list for people, the ranked rows for the preload."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.frames.memory.bounds import (
    SAMPLE_PAGES,
    USED_CONDITION,
    WORTH_PAGES,
    bound_parameters,
    estimate_threshold,
)
from voxtier.frames.memory.priority import rank_rows, score_sql
from voxtier.frames.memory.scorer import Band, Label, band, label
from voxtier.frames.store import statements
from voxtier.frames.store.adapters import sent_times
from voxtier.frames.store.store import FrameStore

# Rows beyond the limit that SQL returns, because its last bits and the core's differ at the cut.
_MARGIN = 64
# How many times as many files as wanted should reach the estimated score: a second try is surer.
_SLACKS = (1.05, 4.0)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Runs a statement with bound parameters and returns its rows.
Query: TypeAlias = Callable[[str, Any], list[Any]]


class RankedFile(NamedTuple):
    """A file of the index with its score, its band (of the sum) and its label (of the terms)."""

    path: str
    frame_count: int
    transfer_syntax_uid: str | None
    last_used_at: datetime | None
    inserted_at: datetime
    access_count: int
    table_bytes: int
    score: float
    band: Band
    label: Label


# As `RankedFile._make`, at half of what that costs for each of 10^5 files.
_file = partial(tuple.__new__, RankedFile)


def ranked_files(
    store: FrameStore,
    source: str,
    limit: int = 500,
    *,
    now: datetime | None = None,
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
    has_ranges: bool = False,
    query: Query | None = None,
) -> list[RankedFile]:
    """Return the best files of a source, best first, ties by path.

    SQL narrows the rows down, the core scores and orders them: the last bits of two maths libraries differ.

    Parameters
    ----------
    store : FrameStore
        The index.
    source : str
        Name of the source.
    limit : int
        Files at most, >= 0.
    now : datetime or None
        Moment of the scores, with time zone; None: the clock's.
    weights, half_lives : mapping or None
        See `score_many`.
    has_ranges : bool
        Only files of which a frame is a range of their bytes.
    query : callable or None
        Runs the statement instead of the store, for a user who is in some groups for instance.

    Returns
    -------
    list of RankedFile
        Files with frames only.

    Raises
    ------
    ValueError
        `limit` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit = {limit}: must be >= 0")
    now = now or datetime.now(UTC)
    ask = query or store.query
    given = {"weights": weights, "half_lives": half_lives}
    score = score_sql(now="%(now)s::float8", weights=weights, half_lives=half_lives)
    parameters: dict[str, Any] = {"source": source, "now": now.timestamp(), "has_ranges": has_ranges}
    if files := _best_by_bounds(ask, parameters, limit, now, given):
        return files
    rows = ask(statements.RANKED.format(score=score), {**parameters, "limit": limit + _MARGIN})
    return _ranked(rows, limit, now, given)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's collector from walking through 10^5 rows, which hold no circle, again and again.

    Not while the database is asked: it may be slow or dead, and the pause is the whole process's.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _best_by_bounds(
    ask: Query, parameters: dict[str, Any], limit: int, now: datetime, given: dict[str, Any]
) -> list[RankedFile]:
    """Return the best files of a large index without scoring all; empty where that is not possible."""
    score = score_sql(stats="f", now="%(now)s::float8", **given)
    statement = statements.RANKED_ABOVE.format(used=USED_CONDITION, score=score)
    for threshold, bounds in _bounds(ask, parameters, limit, now, given):
        rows = ask(statement, parameters | bounds)
        files = _ranked(rows, limit, now, given)
        # Every file that scores as much is among the rows: if there are enough, no other is better.
        if len(files) == limit and files[-1].score >= threshold:
            return files
    return []


def _bounds(
    ask: Query, parameters: dict[str, Any], limit: int, now: datetime, given: dict[str, Any]
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield a score that `limit` files of a large index probably reach, and one that they surely do.

    With each its `bound_parameters`; nothing where all files must be scored.
    """
    [(pages,)] = ask(statements.FILE_PAGES, None)
    if pages < WORTH_PAGES or not limit:
        return
    share = min(SAMPLE_PAGES / pages, 1.0)
    rows = ask(statements.RANKED_SAMPLE, {**parameters, "percent": 100 * share})
    used, inserted, counts = zip(*rows, strict=True) if rows else ((), (), ())
    sample = sent_times(used), sent_times(inserted), np.array(counts, np.int64)
    for slack in _SLACKS:
        threshold = estimate_threshold(sample, share, limit, slack=slack, now=now, **given)
        if threshold is None:
            return
        yield threshold, bound_parameters(threshold, now, sample, **given)


@_collector_paused()
def _ranked(
    rows: list[tuple[Any, ...]], limit: int, now: datetime, given: dict[str, Any]
) -> list[RankedFile]:
    if not rows:
        return []
    paths, frames, syntaxes, used, inserted, counts, sizes = (list(each) for each in zip(*rows, strict=True))
    times = sent_times(used), sent_times(inserted)
    best = rank_rows(*times, counts, paths, n=limit, now=now, **given)
    numbers, scores = best.rows.tolist(), best.scores.tolist()
    paths, frames, syntaxes, counts, sizes = (
        [column[number] for number in numbers] for column in (paths, frames, syntaxes, counts, sizes)
    )
    used, inserted = (_datetimes(column[best.rows]) for column in times)
    terms = zip(best.recency_used.tolist(), best.recency_inserted.tolist(), counts, used, strict=True)
    labels = [label(recent, fresh, count, used=last is not None) for recent, fresh, count, last in terms]
    columns = paths, frames, syntaxes, used, inserted, counts, sizes, scores, map(band, scores), labels
    return list(map(_file, zip(*columns, strict=True)))


def _datetimes(times: NDArray[np.int64]) -> list[Any]:
    """Return microseconds since 1970 as datetimes, None for NULL; the files of a batch share one."""
    different, places = np.unique(times, return_inverse=True)
    ages = different.astype("timedelta64[us]").tolist()
    moments = [None if age is None else _EPOCH + age for age in ages]
    return [moments[place] for place in places.tolist()]


def preload_rows(
    store: FrameStore, source: str, limit: int, *, now: datetime | None = None
) -> Generator[bytes]:
    """Stream the best files of a source, best first, as rows for `FrameCache.preload_rows`.

    Of a large index those come first whose scores reach a threshold, then the rest, by a statement each.

    Parameters
    ----------
    store : FrameStore
        The index.
    source : str
        Name of the source.
    limit : int
        Files at most.
    now : datetime or None
        Moment of the scores, with time zone; None: the clock's.

    Yields
    ------
    bytes
        Whole rows, about a MiB of them.
    """
    now = now or datetime.now(UTC)
    parameters: dict[str, Any] = {"source": source, "now": now.timestamp(), "has_ranges": False}
    score = score_sql(now="%(now)s::float8")
    rest = "true"
    for _, bounds in islice(_bounds(store.query, parameters, limit, now, {}), 1):
        parameters |= bounds
        best = score_sql(stats="f", now="%(now)s::float8")
        statement = statements.PRELOAD_ABOVE.format(used=USED_CONDITION, score=best)
        limit -= yield from store.stream_rows(statement, {**parameters, "limit": limit})
        rest = f"{score} < %(threshold)s"
    if limit:
        statement = statements.PRELOAD.format(score=score, rest=rest)
        yield from store.stream_rows(statement, {**parameters, "limit": limit})
