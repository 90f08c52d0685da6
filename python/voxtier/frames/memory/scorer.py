"""Scores of single files, with a band and a reason; the predecessor's class."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias

from voxtier.frames.memory.priority import HALF_LIVES, WEIGHTS, formula, score_many

Band: TypeAlias = Literal["critical", "high", "medium", "low"]
Label: TypeAlias = Literal["frequent_recent", "recent", "fresh", "frequent_stale", "cold"]
_FREQUENT = 9


class PriorityRows(Protocol):
    """Where ranked rows come from: `LakebaseUtils`."""

    def get_preload_priority_list(self, uc_table_name: str, limit: int = 10_000) -> list[dict[str, Any]]:
        """Return the rows of the best `limit` files, best first."""


def band(score: float) -> Band:
    """Return the band of a score by the published limits: > 1, [0.3, 1], [0.1, 0.3), below.

    A band tells the size of the *sum*, not the reason: nine accesses alone keep a file in ``high`` for ever.
    See `label`.
    """
    if score > 1.0:
        return "critical"
    if score >= 0.3:
        return "high"
    return "medium" if score >= 0.1 else "low"


def label(recency_used: float, recency_inserted: float, count: int, *, used: bool) -> Label:
    """Return why a file ranks where it does, from the terms of its score.

    Parameters
    ----------
    recency_used, recency_inserted : float
        ``2^(-age / half_life)``, in [0, 1].
    count : int
        Accesses.
    used : bool
        Whether there is a last use at all.

    Returns
    -------
    {"frequent_recent", "recent", "fresh", "frequent_stale", "cold"}
        The first that applies.
    """
    if recency_used >= 0.5:
        return "frequent_recent" if count >= _FREQUENT else "recent"
    if not used and recency_inserted >= 0.5:
        return "fresh"
    return "frequent_stale" if count >= _FREQUENT else "cold"


class CachePriorityScorer:
    """Scores single files and fetches the preload list; the predecessor's class, with true half-lives.

    Parameters
    ----------
    lb_utils : PriorityRows, optional
        Source of the rows of `get_preload_list`.
    weights, half_lives : mapping, optional
        Merged over `WEIGHTS` and `HALF_LIVES` (hours).
    """

    def __init__(
        self,
        lb_utils: PriorityRows | None = None,
        weights: Mapping[str, float] | None = None,
        half_lives: Mapping[str, float] | None = None,
    ) -> None:
        formula(weights, half_lives)
        self.lb_utils = lb_utils
        self.weights = {**WEIGHTS, **(weights or {})}
        self.half_lives = {**HALF_LIVES, **(half_lives or {})}

    def score(
        self,
        last_used_at: datetime | None,
        inserted_at: datetime | None,
        access_count: int | None,
        now: datetime | None = None,
    ) -> float:
        """Compute the score of one file.

        Parameters
        ----------
        last_used_at, inserted_at : datetime or None
            None: never. A naive datetime is UTC.
        access_count : int or None
            None and negative counts are 0.
        now : datetime or None
            Moment of the score; None: the clock's.

        Returns
        -------
        float
            0.0 or more.
        """
        scores = score_many(
            [last_used_at],
            [inserted_at],
            [max(access_count or 0, 0)],
            now=now,
            weights=self.weights,
            half_lives=self.half_lives,
            assume_utc=True,
        )
        return float(scores[0])

    def explain(
        self,
        last_used_at: datetime | None,
        inserted_at: datetime | None,
        access_count: int | None,
        now: datetime | None = None,
    ) -> tuple[float, Band, Label]:
        """Compute score, band and label of one file.

        Parameters
        ----------
        last_used_at, inserted_at : datetime or None
            See `score`.
        access_count : int or None
            See `score`.
        now : datetime or None
            See `score`.

        Returns
        -------
        tuple of (float, str, str)
            The score, its `band` and the `label` of its terms.
        """
        now = now or datetime.now(UTC)
        score = self.score(last_used_at, inserted_at, access_count, now)
        terms = []
        for name, moment in (("last_used", last_used_at), ("inserted", inserted_at)):
            alone = CachePriorityScorer(
                weights={key: float(key == name) for key in WEIGHTS}, half_lives=self.half_lives
            )
            terms.append(alone.score(moment, moment, 0, now))
        count = max(access_count or 0, 0)
        return score, band(score), label(terms[0], terms[1], count, used=last_used_at is not None)

    def get_preload_list(self, uc_table_name: str, limit: int = 10_000) -> list[dict[str, Any]]:
        """Return the rows of the best `limit` files of a source, best first.

        `lb_utils` ranks with the default formula; with other weights or half-lives its rows are scored and
        ordered again.

        Raises
        ------
        ValueError
            There is no `lb_utils`.
        """
        if self.lb_utils is None:
            raise ValueError("CachePriorityScorer has no lb_utils to ask: pass a LakebaseUtils")
        rows = self.lb_utils.get_preload_priority_list(uc_table_name, limit)
        if (self.weights, self.half_lives) != (dict(WEIGHTS), dict(HALF_LIVES)):
            now = datetime.now(UTC)
            for row in rows:
                times = row["last_used_at"], row["inserted_at"]
                row["priority_score"] = self.score(*times, row["access_count"], now)
            rows.sort(key=lambda row: (-row["priority_score"], row["filename"]))
        return rows
