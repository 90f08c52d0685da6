"""Which files of the index deserve memory: the ranked list for people, the ranked rows for the preload."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from voxtier.frames.memory.priority import score_sql, top_n
from voxtier.frames.memory.scorer import Band, CachePriorityScorer, Label
from voxtier.frames.store import statements
from voxtier.frames.store.store import FrameStore

# Rows beyond the limit that SQL returns, because its last bits and the core's differ at the cut.
_MARGIN = 64

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
    score = score_sql(now="%(now)s::float8", weights=weights, half_lives=half_lives)
    parameters = {"source": source, "now": now.timestamp(), "limit": limit + _MARGIN}
    parameters["has_ranges"] = has_ranges
    rows = (query or store.query)(statements.RANKED.format(score=score), parameters)
    if not rows:
        return []
    names, _, _, used, inserted, counts, _ = (list(column) for column in zip(*rows, strict=True))
    scorer = CachePriorityScorer(weights=weights, half_lives=half_lives)
    best, scores = top_n(
        used, inserted, counts, n=limit, now=now, ids=names, weights=weights, half_lives=half_lives
    )
    row_of = {row[0]: row for row in rows}
    files = []
    for name, score_of_file in zip(best.tolist(), scores.tolist(), strict=True):
        row = row_of[name]
        _, band, label = scorer.explain(row[3], row[4], row[5], now)
        files.append(RankedFile._make((*row, score_of_file, band, label)))
    return files


def preload_rows(
    store: FrameStore, source: str, limit: int, *, now: datetime | None = None
) -> Generator[bytes]:
    """Stream the best files of a source, best first, as rows for `FrameCache.preload_rows`.

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
    moment = (now or datetime.now(UTC)).timestamp()
    return store.best_rows(source, score_sql(now=f"{moment!r}::float8"), limit)
