"""The origin's helpers for threads and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from voxtier.system.progress import Progress
from voxtier.system.workers import Workers
from voxtier.volumes.config import get_config
from voxtier.volumes.tiledb.session import Session

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of one volume.

    Parameters
    ----------
    index : int
        Its place.
    uri, obs_id : str
        Its address and its id.
    success : bool
        Whether it was written.
    error : Exception, optional
        Why not.
    """

    index: int
    uri: str
    obs_id: str
    success: bool
    error: Exception | None = None


def ctx_for_threads(ctx: Any = None) -> Any:
    """Return a context of TileDB that threads may share: the given one, else this process's."""
    return Session.of().context() if ctx is None else ctx


def ctx_for_process(base_ctx: Any = None) -> Any:
    """Return this process's context of TileDB; never one that a fork inherited."""
    return Session.of(base_ctx).context()


create_worker_ctx = ctx_for_process


def map_on_threads(
    fn: Callable[[T], R],
    items: Iterable[T],
    max_workers: int | None = None,
    progress: bool = False,  # noqa: FBT001, FBT002
    desc: str | None = None,
) -> list[R]:
    """Call a function with each item on several threads.

    Parameters
    ----------
    fn : callable
        Called with one item.
    items : iterable
        The items.
    max_workers : int, optional
        Threads, by default as configured.
    progress : bool
        Report on stderr.
    desc : str, optional
        What is counted.

    Returns
    -------
    list
        The results, in the order of the items.
    """
    every = list(items)
    report = Progress(desc or "items", len(every), quiet=not progress)
    results: list[R] = []
    with Workers(max_workers or get_config().read.max_workers, "voxtier-map") as pool:
        for result in pool.map(fn, every):
            results.append(result)
            report.advance()
    report.close()
    return results
