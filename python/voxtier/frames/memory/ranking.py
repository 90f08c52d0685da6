"""Which files of the index deserve memory: the ranked list for people, the ranked stream for the preload."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from voxtier._core import PARSER_VERSION, PRELOAD_COLUMNS, FrameTable
from voxtier.frames.databricks.frame_dicts import frame_ranges
from voxtier.frames.memory import priority
from voxtier.frames.store.row import STORED_COLUMNS, stored
from voxtier.frames.store.statements import LAST_USED_US, stored_columns
from voxtier.frames.store.store import FrameStore

__all__ = ["RankedFile", "preload_priority_list", "preload_rows", "ranked_files"]

# Rows beyond the limit that SQL hands over, because its last bits and the core's differ at the cut.
_MARGIN = 64
_COPY_HEAD = 19

_RANKED = """
SELECT f.path, f.frame_count, f.transfer_syntax_uid, s.last_used_at, f.inserted_at,
    coalesce(s.access_count, 0), coalesce(octet_length(f.frames), 0){more}
FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key)
WHERE f.frame_count > 0 AND ((SELECT voxtier.sees_all()) OR voxtier.may_see(f.allowed_groups))
    AND f.source_id = (SELECT source_id FROM voxtier.source WHERE name = %(source)s)
ORDER BY {score} DESC NULLS LAST, f.path COLLATE "C" LIMIT %(limit)s
"""

Ask = Callable[[str, Any], list[Any]]

_TEXT = {"path", "etag", "transfer_syntax_uid", "photometric_interpretation"}
_LABELS = {"status", "kind", "method", "verified", "offsets_in"}


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
    band: priority.Band
    label: priority.Label
    table: FrameTable | None = None


def ranked_files(
    store: FrameStore,
    source: str,
    limit: int = 500,
    *,
    now: datetime | None = None,
    weights: Mapping[str, float] | None = None,
    half_lives: Mapping[str, float] | None = None,
    with_tables: bool = False,
    ask: Ask | None = None,
) -> list[RankedFile]:
    """Return the best `limit` files of a source, best first, ties by path.

    SQL narrows the rows down, the core scores and orders them: the last bits of two maths libraries differ.
    """
    if limit < 0:
        raise ValueError(f"limit = {limit}: must be >= 0")
    now = now or datetime.now(UTC)
    query = _RANKED.format(
        score=priority.score_sql(now="%(now)s::float8", weights=weights, half_lives=half_lives),
        more=f", {stored_columns}" if with_tables else "",
    )
    parameters = {"source": source, "now": now.timestamp(), "limit": limit + _MARGIN}
    rows = (ask or store._rows)(query, parameters)
    if not rows:
        return []
    names, _, _, used, inserted, counts, *_ = (list(column) for column in zip(*rows, strict=True))
    scorer = priority.CachePriorityScorer(weights=weights, half_lives=half_lives)
    best, scores = priority.top_n(
        used, inserted, counts, n=limit, now=now, ids=names, weights=weights, half_lives=half_lives
    )
    row_of = {name: row for row, name in enumerate(names)}
    files = []
    for name, score in zip(best.tolist(), scores.tolist(), strict=True):
        row = row_of[name]
        _, band, label = scorer.explain(used[row], inserted[row], counts[row], now)
        table = stored(rows[row][7:]) if with_tables else None
        files.append(
            RankedFile._make(
                (*rows[row][:7], score, band, label, table if isinstance(table, FrameTable) else None)
            )
        )
    return files


def preload_priority_list(
    store: FrameStore, source: str, limit: int = 10_000, *, ask: Ask | None = None
) -> list[dict[str, Any]]:
    """Return the predecessor's rows of the best `limit` files, each with the ranges of its frames.

    `ask` puts the question to the database instead of the store: for a user in some groups, for instance.
    """
    return [
        {
            "filename": file.path,
            "frame_count": file.frame_count,
            "transfer_syntax_uid": file.transfer_syntax_uid,
            "last_used_at": file.last_used_at,
            "inserted_at": file.inserted_at,
            "access_count": file.access_count,
            "priority_score": file.score,
            "frames": [] if file.table is None else frame_ranges(file.table),
        }
        for file in ranked_files(store, source, limit, with_tables=True, ask=ask)
    ]


def preload_rows(
    store: FrameStore, source: str, limit: int, *, now: datetime | None = None, batch: int = 1 << 20
) -> Generator[bytes]:
    """Stream the best `limit` files, best first, as rows for `FrameCache.preload_copy`: one statement.

    Yields
    ------
    bytes
        Whole rows, about `batch` bytes of them.
    """
    moment = (now or datetime.now(UTC)).timestamp()
    # COPY binds no parameters: only numbers that are formatted here, and a number looked up before.
    found = store._rows("SELECT source_id FROM voxtier.source WHERE name = %s", (source,))
    if not found:
        return
    query = (
        f"COPY (SELECT {', '.join(map(_preload_column, PRELOAD_COLUMNS))} FROM voxtier.file AS f "
        "LEFT JOIN voxtier.file_stats AS s USING (key) "
        f"WHERE f.frame_count > 0 AND f.source_id = {int(found[0][0])} "
        f"AND f.parser_version = {PARSER_VERSION} "
        f'ORDER BY {priority.score_sql(now=f"{moment!r}::float8")} DESC NULLS LAST, f.path COLLATE "C" '
        f"LIMIT {int(limit)}) TO STDOUT (FORMAT binary)"
    )
    with store.database.connection() as connection, connection.transaction(), connection.cursor() as cursor:
        # The rows are sorted with their tables: in memory, not through files.
        cursor.execute(b"SET LOCAL work_mem = '256MB'")
        with cursor.copy(query.encode()) as copy:
            yield from _batches(copy, batch)


def _batches(copy: Iterable[Any], batch: int) -> Generator[bytes]:
    rows: list[bytes] = []
    size, head = 0, _COPY_HEAD
    for message in copy:
        row = bytes(message)[head:]
        head = 0
        rows.append(row)
        size += len(row)
        if size >= batch:
            yield b"".join(rows)
            rows, size = [], 0
    yield b"".join(rows)


def _preload_column(name: str) -> str:
    if name == "last_used_us":
        return LAST_USED_US
    if name == "frames" or name in _TEXT:
        return f"f.{name}"
    return f"f.{name}::{'text' if name in _LABELS else 'int8'}"


assert set(PRELOAD_COLUMNS) - {"last_used_us"} <= {*STORED_COLUMNS, "path", "etag"}
