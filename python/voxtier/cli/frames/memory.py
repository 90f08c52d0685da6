"""``voxtier frames priority | preload``: what memory should hold, and what would fit."""

from __future__ import annotations

import json
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, DSN, SIZE, SOURCE, holds_source, open_store
from voxtier.errors import BackendError
from voxtier.system.progress import Progress
from voxtier.system.text import format_bytes, format_count, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.memory.ranking import RankedFile

_size = partial(format_bytes, binary=True)
_NOTHING = "source {!r} holds no file with frames: run `voxtier index` first"


@click.command()
@SOURCE
@DSN
@click.option("--limit", default=500, type=click.IntRange(0, 10**12), help="Files at most.")
@click.option("--budget", type=SIZE, help="Draw a line where this much memory is full.")
@AS_JSON
def priority(source: str, dsn: str | None, limit: int, budget: int | None, as_json: bool) -> int:
    """List the files that deserve memory most, best first.

    \b
    voxtier frames priority --limit 20 --budget 64MiB

    The band says where the score lies (critical > 1, high >= 0.3, medium >= 0.1, low); the label says why:
    frequent_recent, recent, fresh (new and unread), frequent_stale, cold. Exit code 1 when there is no file.
    """
    from voxtier.frames.memory.ranking import ranked_files

    with open_store(dsn) as store:
        is_known = holds_source(store, source)
        files = ranked_files(store, source, limit)
    if is_known and not files:
        click.echo(_NOTHING.format(source), err=True)
    if as_json:
        for file in files:
            click.echo(json.dumps(_as_json(file)))
    if as_json or not files:
        return EXIT_OK if files else EXIT_FINDINGS
    click.echo("  rank   score  band      label            frames  accesses     table  path")
    filled, cut = 0, False
    for rank, file in enumerate(files, 1):
        # What memory takes beside the table: key, slot, attributes; the compact form is never larger.
        filled += file.table_bytes + len(file.path.encode()) + 110
        if budget is not None and filled > budget and not cut:
            click.echo(f"  {'-' * 20} {_size(budget)} are full here {'-' * 20}")
            cut = True
        click.echo(
            f"{rank:6}  {file.score:6.3f}  {file.band:8}  {file.label:15}  {file.frame_count:6}  "
            f"{file.access_count:8}  {_size(file.table_bytes):>8}  {on_one_line(file.path)}"
        )
    click.echo("\nscores: " + _sparkline([file.score for file in files]) + "  best to last")
    return EXIT_OK


@click.command()
@SOURCE
@DSN
@click.option("--budget", default="2GiB", type=SIZE, help="Memory for frame tables.")
@click.option("--limit", default=1_000_000, type=click.IntRange(0, 10**12), help="Files at most.")
@click.option("--dry-run", is_flag=True, hidden=True, help="Accepted for clarity: this command only tries.")
@AS_JSON
def preload(source: str, dsn: str | None, budget: int, limit: int, dry_run: bool, as_json: bool) -> int:
    """Try out a preload: how many files a memory budget would hold, and how long the start would take.

    \b
    voxtier frames preload --budget 2GiB

    The tables are read and put into a cache of this process, which then ends; a service does the same when
    it starts. Exit code 1 when there is no table.
    """
    from voxtier.frames.memory.cache import FrameCache
    from voxtier.frames.memory.preload import Preload

    with open_store(dsn) as store:
        is_known = holds_source(store, source)
        cache = FrameCache(budget)
        run, start = Preload(cache, store, source), time.perf_counter()
        run.start(limit=limit)
        shown = Progress("tables", transient=True)
        while not run.wait(0.2):
            shown.advance(run.progress()["loaded"] - shown.count)
        shown.close()
        seconds = time.perf_counter() - start
    progress, used = run.progress(), cache.counters()["used"]
    if progress["state"] == "failed":
        raise BackendError(progress["error"])
    found = {**progress, "bytes": used, "budget": budget, "seconds": round(seconds, 3)}
    if is_known and not progress["seen"]:
        click.echo(_NOTHING.format(source), err=True)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"{format_count(progress['loaded'], 'table')} in {_size(used)} of {_size(budget)} "
            f"after {seconds:.2f} s; "
            f"did not fit: {progress['skipped']:,}, damaged: {progress['damaged']:,}"
        )
    return EXIT_OK if progress["seen"] else EXIT_FINDINGS


def _as_json(file: RankedFile) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in file._asdict().items()
    }


def _sparkline(values: list[float]) -> str:
    step = max(len(values) // 60, 1)
    top = max(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(int(value / top * 7.99), 7)] for value in values[::step])
