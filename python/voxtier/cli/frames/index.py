"""``voxtier index``: make the index of a source."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from voxtier._core import ENVIRONMENT_KINDS, local_path
from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, discard_stdout
from voxtier.cli.frames.files import PATHS, given_paths
from voxtier.cli.frames.indexed import status_word
from voxtier.cli.frames.search import fill_search, switch_search_on
from voxtier.cli.options import (
    DSN,
    SOURCE,
    WORKERS,
    open_store,
    reading_workers,
    say,
)
from voxtier.system.progress import Progress
from voxtier.system.text import format_count, format_duration, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.indexing.run import FileReport

_MEANING = {
    "ok": "every frame can be read",
    "unchanged": "indexed before, same size and time (or entity tag): not read again",
    "truncated": "the file is cut off, see `voxtier frames errors`: the frames before the cut can be read",
    "no_pixels": "a report, plan or the like: there are no frames",
    "ambiguous": "nothing says which fragment belongs to which frame: refused",
    "refused": "no image, damaged or unreadable: see `voxtier frames errors`; tried again on the next run",
}
_REFUSED_SHOWN = 20


@click.command()
@PATHS
@SOURCE
@DSN
@click.option("--ext", "extension", default=".dcm", help="Take files whose names end so.")
@click.option("--all-files", is_flag=True, help="Take every file, whatever its name.")
@WORKERS
@click.option(
    "--since",
    metavar="DATE",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]),
    help="Take only what was written then or later: 2026-11-01, or 2026-11-01T06:00:00 in UTC.",
)
@click.option("--force", is_flag=True, help="Also read unchanged files again.")
@click.option("--prune", is_flag=True, help="Forget indexed files below PATH that no longer exist.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N shares: N runs index a source together.")
@click.option(
    "--search",
    is_flag=True,
    help="From now on also keep what searches return: names and dates of patients, in a schema of its own.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: each file, then a summary.")
def index(
    paths: tuple[str, ...],
    source: str,
    dsn: str | None,
    extension: str,
    all_files: bool,
    workers: int | None,
    since: datetime | None,
    force: bool,
    prune: bool,
    shard: str | None,
    search: bool,
    as_json: bool,
) -> int:
    """Index the frames of every DICOM file below PATH.

    \b
    voxtier index /data/dicom
    voxtier index /data/dicom --prune
    voxtier index /data/dicom --shard 2/4
    voxtier index /data/dicom --search
    voxtier index s3://bucket/prefix --since 2026-11-01

    PATH is a file, a folder, a prefix of a store (s3://bucket/prefix), or - for paths on stdin. A second run
    reads only new and changed files. A refused file is kept in the index with its reason: see
    `voxtier frames errors`. One that cannot be read now, as without a valid key, keeps what was read of it
    before. Only said, not kept, is a path that is not UTF-8, longer than 2,600 bytes, or a folder that cannot
    be read. A run may be interrupted at any time: what was read is kept, the next run does
    the rest. With --shard, N runs on any machines share the work by the paths: each file is in exactly one
    share. Exit code 0, also when nothing was written --since then; 1 when there is no file, 2 when a PATH is
    not there, 3 when some files were refused.
    """
    from voxtier.frames.indexing.paths import Shard, absolute, iter_files, without_absent
    from voxtier.frames.indexing.run import FileIndexer, index_files
    from voxtier.frames.sources.address import is_address

    share = None if shard is None else Shard.parse(shard)
    if share is not None and prune:
        raise click.UsageError("--prune looks at all files: run it once, without --shard")
    wanted = None if all_files else extension
    paths = tuple(map(local_path, paths))
    _check_roots(paths, prune=prune)
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    walked = [path for path in paths if not prune or is_address(path) or os.path.lexists(path)]
    absent = [path for path in paths if path not in walked]
    files = iter_files(given_paths(walked), extension=wanted, since=since)
    files = without_absent(files, paths, absent)
    threads = reading_workers(workers, paths)
    found = _Taken(files, keeps=prune)
    pruned = 0
    started = time.monotonic()
    with open_store(dsn) as store:
        if search:
            switch_search_on(store, source)
        indexer = FileIndexer(store, source=source, threads=threads, force=force)
        progress = Progress("files", transient=True)
        try:
            with _count_in_background(progress, paths, wanted, share.shares if share else 1):
                counts, frames = _report_each(
                    index_files(indexer, found, shard=share), progress, as_json=as_json
                )
        except BrokenPipeError:
            discard_stdout()
            return EXIT_PARTIAL
        except (KeyboardInterrupt, SystemExit):
            click.echo("\ninterrupted: what was read is kept, run again for the rest", err=True)
            raise
        finally:
            progress.close()
        if prune:
            pruned = store.prune(source, under=[*map(absolute, paths)], is_gone=found.is_gone, force=force)
        fill_search(store, source, threads)
        place = store.database.describe()
    seconds = time.monotonic() - started
    if as_json:
        run = {"statuses": dict(counts), "num_frames": frames, "pruned": pruned, "seconds": round(seconds, 3)}
        click.echo(json.dumps({"summary": run}))
    else:
        click.echo(_run_summary(counts, frames, pruned, seconds, source, place))
    if share is not None and found.count and not counts:
        count = format_count(found.count, "file")
        click.echo(f"voxtier: share {shard} is empty: {count} in other shares", err=True)
    elif not counts and not pruned and not absent:
        return _say_nothing_found(paths, wanted, since)
    if absent and not pruned:
        say(f"voxtier: {', '.join(absent)}: there is no such file, and none below it", err=True)
        return EXIT_USAGE
    return EXIT_PARTIAL if _count_refused(counts) else EXIT_OK


def _report_each(
    batches: Iterator[list[FileReport]], progress: Progress, *, as_json: bool
) -> tuple[Counter[str], int]:
    """Say what came of each file, as it comes; return how many there are of each status, and their frames."""
    counts: Counter[str] = Counter()
    frames = said = 0
    for reports in batches:
        counts.update(status_word(report.status) for report in reports)
        frames += sum(report.frames for report in reports)
        progress.advance(len(reports), _refused_note(counts))
        if as_json:
            click.echo("\n".join(json.dumps(_report_json(report)) for report in reports))
        else:
            said += _echo_refused(reports, _REFUSED_SHOWN - said)
    return counts, frames


def _say_nothing_found(paths: tuple[str, ...], extension: str | None, since: datetime | None) -> int:
    """Say that there was nothing to index; return the exit code: that nothing is newer is no error."""
    time = "" if since is None else f" of {since:%Y-%m-%d %H:%M:%S %Z} or later"
    hint = "" if extension is None else f" whose name ends in {extension} (--all-files takes every file)"
    say(f"voxtier: {', '.join(paths)}: there is no file{time}{hint}", err=True)
    return EXIT_FINDINGS if since is None else EXIT_OK


def _check_roots(paths: tuple[str, ...], *, prune: bool) -> None:
    """Refuse a path that does not exist, unless the files below it are to be pruned."""
    from voxtier.frames.sources.address import is_address

    if prune:
        if "-" in paths:
            raise click.UsageError("--prune forgets what is gone below a PATH, which cannot be -")
        return
    for path in paths:
        try:
            if path != "-" and not is_address(path):
                os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise click.UsageError(f"{on_one_line(path)} does not exist") from None
        except OSError:  # reading it gives the reason
            continue


class _Taken:
    """Paths, how many of them were taken, and which a store has just named."""

    def __init__(self, paths: Iterator[str], *, keeps: bool) -> None:
        self._paths, self._keeps, self.count = paths, keeps, 0
        self._named: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        from voxtier.frames.sources.listing import ListedObject

        for path in self._paths:
            self.count += 1
            if self._keeps and isinstance(path, ListedObject):
                self._named.add(hash(path))
            yield path

    def is_gone(self, path: str) -> bool:
        """Return whether a file is gone; of what a store has just named, nothing is asked."""
        from voxtier.frames.sources.listing import file_is_gone

        return hash(path) not in self._named and file_is_gone(path)


@contextlib.contextmanager
def _count_in_background(
    progress: Progress, paths: tuple[str, ...], extension: str | None, shares: int
) -> Iterator[None]:
    """Count the files of one share on another thread, for the time left, if stderr is a terminal."""
    from voxtier.frames.sources.address import is_address

    if not sys.stderr.isatty() or "-" in paths or any(map(is_address, paths)):
        yield
        return
    stop = threading.Event()

    def count() -> None:
        from voxtier.frames.indexing.paths import iter_files

        total = 0
        for total, _ in enumerate(iter_files(paths, extension=extension), 1):  # noqa: B007
            if stop.is_set():
                return
        progress.total = total // shares

    threading.Thread(target=count, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _count_refused(counts: Counter[str]) -> int:
    return counts["ambiguous"] + counts["refused"]


def _refused_note(counts: Counter[str]) -> str:
    failed = _count_refused(counts)
    return f", {failed:,} refused" if failed else ""


def _echo_refused(reports: list[FileReport], room: int) -> int:
    """Print the first `room` paths that `voxtier frames errors` need not list; return how many there are."""
    refused = [each for each in reports if each.status == "refused" or each.error_kind in ENVIRONMENT_KINDS]
    for report in refused[: max(room, 0)]:
        click.echo(f"refused: {on_one_line(report.path)}: {report.error_detail}", err=True)
    return len(refused)


def _report_json(report: FileReport) -> dict[str, object]:
    error = {"kind": report.error_kind, "offset": report.error_offset, "detail": report.error_detail}
    return {
        "path": report.path,
        "status": status_word(report.status),
        "num_frames": report.frames,
        "truncated_from": report.truncated_from,
        "error": error if report.failed else None,
    }


def _run_summary(
    counts: Counter[str], frames: int, pruned: int, seconds: float, source: str, place: str
) -> str:
    total = counts.total()
    rate = total / seconds if seconds > 0 else 0.0
    lines = [
        f"{format_count(total, 'file')}, {format_count(frames, 'frame')} in {format_duration(seconds)} "
        f"({rate:,.0f} files/s)",
        f"source {source}, {place}",
    ]
    lines += [
        f"  {status:<10}{counts[status]:>12,}  {_MEANING[status]}" for status in _MEANING if counts[status]
    ]
    if pruned:
        lines.append(f"  {'pruned':<10}{pruned:>12,}  no longer on disk, removed from the index")
    return "\n".join(lines)
