"""``voxtier cache stats | top``: what the readers that run on this machine report."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.options import AS_JSON
from voxtier.system.text import on_one_line

if TYPE_CHECKING:
    from voxtier.frames.serving.status_files import ReaderStatus

_HEAD = (
    f"{'pid':>8}  {'source':<14}{'requests':>13}{'/s':>9}{'memory':>9}{'index':>7}{'file':>7}  "
    f"{'tables in memory':<34}{'to write':>9}  state"
)
_BAR = 10
HOME = click.option(
    "--home", type=click.Path(path_type=Path), help="Folder of voxtier. Default: VOXTIER_HOME, or the user's."
)


@click.command()
@HOME
@AS_JSON
def stats(home: Path | None, as_json: bool) -> None:
    """Show what each running reader answered, from which tier, and how full its memory is.

    \b
    voxtier cache stats --json

    A FrameReader writes its counters every two seconds into voxtier's folder (VOXTIER_HOME), unless it was
    made with publish=False. Of its requests, `memory` says how many found their table there, `index` how
    many asked PostgreSQL, `file` how many had to read the file's headers. `to write` counts files whose
    accesses the index does not know yet. The state is `ready`, or `preload 12,000` (files so far),
    `no database` (memory and files go on serving), `silent 60 s` (stopped, or hanging).
    """
    found = _readers(home)
    if as_json:
        _echo_json(found)
    elif not found:
        click.echo(_nobody(home), err=True)
    else:
        click.echo("\n".join(_page(found, {})))


@click.command()
@HOME
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds between two pages.",
)
@click.option("--count", default=0, type=click.IntRange(0), help="Pages to show; 0 goes on until Ctrl-C.")
@AS_JSON
def top(home: Path | None, interval: float, count: int, as_json: bool) -> None:
    """Watch the running readers: requests a second, tiers, memory.

    \b
    voxtier top --interval 5

    The columns are those of `voxtier cache stats`. Without a terminal, page follows page, as for a log.
    """
    before: dict[str, ReaderStatus] = {}
    shown = 0
    while True:
        found = _readers(home)
        if as_json:
            _echo_json(found)
        else:
            clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
            page = _page(found, before) if found else [_nobody(home)]
            click.echo(clear + "\n".join([time.strftime("%Y-%m-%d %H:%M:%S"), *page, ""]))
        # A reader that has written nothing new keeps the rate of its last two words.
        before = {reader.name: reader for reader in found} if not before else {
            reader.name: _older(before.get(reader.name), reader) for reader in found
        }  # fmt: skip
        shown += 1
        if shown == count:
            return
        time.sleep(interval)


def _older(before: ReaderStatus | None, reader: ReaderStatus) -> ReaderStatus:
    return reader if before is None or before.content["written"] < reader.content["written"] else before


def _readers(home: Path | None) -> list[ReaderStatus]:
    from voxtier.frames.serving.status_files import read_statuses, readers_folder

    return list(read_statuses(readers_folder() if home is None else home / "readers"))


def _nobody(home: Path | None) -> str:
    from voxtier.frames.serving.status_files import readers_folder

    folder = readers_folder() if home is None else home / "readers"
    return (
        f"no reader runs that publishes itself in {folder}: one does from its first request on; one of "
        "another user, or with another VOXTIER_HOME, is found with --home"
    )


def _echo_json(found: list[ReaderStatus]) -> None:
    for reader in found:
        click.echo(json.dumps({"pid": reader.pid, "age": round(reader.age, 3), **reader.content}))


def _page(found: list[ReaderStatus], before: dict[str, ReaderStatus]) -> list[str]:
    return [_HEAD, *(_line(reader, before.get(reader.name)) for reader in found)]


def _line(reader: ReaderStatus, before: ReaderStatus | None) -> str:
    stats, cache = reader.content["stats"], reader.content["stats"]["cache"]
    requests = max(stats["requests"], 1)
    shares = [f"{stats[tier] / requests:.1%}" for tier in ("tier1", "tier2", "tier3")]
    full = cache["used"] / max(cache["budget"], 1)
    bar = "#" * round(full * _BAR)
    memory = f"[{bar:.<{_BAR}}] {_mebibytes(cache['used'])} of {_mebibytes(cache['budget'])} MiB"
    return (
        f"{reader.pid:>8}  {on_one_line(reader.content['source'])[:13]:<14}{stats['requests']:>13,}"
        f"{_rate(reader, before):>9}{shares[0]:>9}{shares[1]:>7}{shares[2]:>7}  {memory:<34}"
        f"{cache['dirty']:>9,}  {_state(reader)}"
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f}" if size >= 100 << 20 else f"{size / 2**20:.1f}"


def _rate(reader: ReaderStatus, before: ReaderStatus | None) -> str:
    """Requests a second since the word before, or since the start."""
    requests, since = reader.content["stats"]["requests"], reader.content["started"]
    if before is not None and before.content["written"] < reader.content["written"]:
        requests, since = requests - before.content["stats"]["requests"], before.content["written"]
    return f"{requests / max(reader.content['written'] - since, 0.001):,.0f}"


def _state(reader: ReaderStatus) -> str:
    from voxtier.frames.serving.status_files import SILENT_AFTER

    stats: dict[str, Any] = reader.content["stats"]
    preload = stats["preload"]
    words = []
    if reader.age > SILENT_AFTER:
        words.append(f"silent {reader.age:.0f} s")
    if stats["degraded"]:
        words.append("no database")
    if preload["state"] == "running":
        words.append(f"preload {preload['seen']:,}")
    if preload["state"] == "failed":
        words.append("preload failed")
    return ", ".join(words) or "ready"
