"""The origin's statistics: TileDB's counters beside those of our cache of decoded blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from voxtier.volumes.tiledb.format.direct import cache_stats
from voxtier.volumes.tiledb.session import start_counting, stop_counting


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How often a decoded block was at hand.

    Parameters
    ----------
    cache_hits, cache_misses : int
        Blocks that were in the cache, and blocks that were decoded.
    tile_bytes_read : int
        Decoded bytes.
    vfs_read_bytes : int
        Bytes read from files and object stores.
    """

    cache_hits: int
    cache_misses: int
    tile_bytes_read: int
    vfs_read_bytes: int

    @property
    def hit_rate(self) -> float:
        """Hits of all blocks, 0 to 1; 0 without any."""
        blocks = self.cache_hits + self.cache_misses
        return self.cache_hits / blocks if blocks else 0.0

    @property
    def miss_rate(self) -> float:
        """One minus the hit rate."""
        return 1.0 - self.hit_rate


@dataclass(frozen=True, slots=True)
class S3Stats:
    """What TileDB read and wrote through its file system.

    Parameters
    ----------
    read_ops, parallelized_reads, write_ops : int
        Reads, those of them that were split over threads, and writes.
    total_bytes_read, total_bytes_written : int
        Their bytes.
    """

    read_ops: int
    parallelized_reads: int
    write_ops: int
    total_bytes_read: int
    total_bytes_written: int

    @property
    def parallelization_rate(self) -> float:
        """Split reads of all reads, 0 to 1; 0 without any."""
        return self.parallelized_reads / self.read_ops if self.read_ops else 0.0


class TileDBStats:
    """Counts what is read and written in a ``with`` block, in this process.

    Examples
    --------
    >>> with TileDBStats() as stats:  # doctest: +SKIP
    ...     volume.to_numpy()
    >>> stats.cache_stats().hit_rate  # doctest: +SKIP
    0.0
    """

    def __init__(self) -> None:
        self._json = "{}"
        self._before: dict[str, int] = {}
        self._blocks: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._before = cache_stats()
        start_counting()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._json = stop_counting()
        self._blocks = {name: count - self._before.get(name, 0) for name, count in cache_stats().items()}

    def raw_json(self) -> str:
        """Return TileDB's counters and timers as JSON."""
        return self._json

    def all_counters(self) -> dict[str, Any]:
        """Return TileDB's counters by their full names."""
        counters: dict[str, Any] = json.loads(self._json).get("counters", {})
        return counters

    def counters(self) -> dict[str, int]:
        """Return TileDB's counters by the last part of their names, added where several share it."""
        short: dict[str, int] = {}
        for name, count in self.all_counters().items():
            last = name.rpartition(".")[2]
            short[last] = short.get(last, 0) + int(count)
        return short

    def cache_stats(self) -> CacheStats:
        """Return how often a decoded block was at hand."""
        blocks, counters = self._blocks, self.all_counters()
        return CacheStats(
            blocks.get("hits", 0),
            blocks.get("misses", 0),
            blocks.get("bytes_decoded", 0)
            + int(counters.get("Context.Query.Reader.read_unfiltered_byte_num", 0)),
            blocks.get("bytes_read", 0) + int(counters.get("Context.VFS.read_byte_num", 0)),
        )

    def s3_stats(self) -> S3Stats:
        """Return what TileDB read and wrote through its file system."""
        counters = self.all_counters()
        return S3Stats(
            *(
                int(counters.get(f"Context.VFS.{name}", 0))
                for name in (
                    "read_ops_num",
                    "read_all_par_ops_num",
                    "write_ops_num",
                    "read_byte_num",
                    "write_byte_num",
                )
            )
        )
