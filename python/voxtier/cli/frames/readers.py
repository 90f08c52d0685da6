"""``voxtier frames stats | top``: what the readers that run on this machine report."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, GivenPath, Seconds
from voxtier.system.text import format_bytes, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.serving.status_files import ReaderStatus

_HEAD = (
    f"{'pid':>8}  {'source':<14}{'requests':>13}{'/s':>9}{'memory':>9}{'index':>7}{'file':>7}  "
    f"{'tables in memory':<34}{'to write':>9}  state"
)
_GATEWAY_HEAD = (
    f"{'pid':>8}  {'gateway':<30}{'requests':>13}{'/s':>9}{'bytes/s':>11}{'refused':>9}{'clients':>9}"
    f"{'searches by index':>19}  slowest"
)
_BAR = 10
HOME = click.option(
    "--home", type=GivenPath(path_type=Path), help="Folder of voxtier. Default: VOXTIER_HOME, or the user's."
)


@click.command()
@HOME
@AS_JSON
def stats(home: Path | None, as_json: bool) -> int:
    """Show what each running reader and gateway answered, from which tier, and how full its memory is.

    \b
    voxtier frames stats --json

    A FrameReader writes its counters every two seconds into voxtier's folder (VOXTIER_HOME), unless it was
    made with publish=False. Of its requests, `memory` says how many found their table there, `index` how
    many asked PostgreSQL, `file` how many had to read the file's headers. `to write` counts files whose
    accesses the index does not know yet. The state is `ready`, or `preload 12,000` (files so far),
    `no database` (memory and files go on serving), `silent 60 s` (stopped, or hanging).

    A gateway (`voxtier serve`) has a second line: its address, requests of all resources, bytes of bodies,
    the share of requests that it refused (status 400 and above), open connections, searches answered by the
    search index of all searches, and the resource whose slowest answer took longest. Its tiers are those of
    the frame tables that it used. Exit code 1 when no reader runs.
    """
    statuses = _statuses(home)
    if not statuses:
        click.echo(_no_reader(home), err=True)
        return EXIT_FINDINGS
    if as_json:
        _echo_json(statuses)
    else:
        click.echo("\n".join(_lines(statuses, {})))
    return EXIT_OK


@click.command()
@HOME
@click.option("--interval", default=2.0, type=Seconds(0.1), help="Seconds between two pages.")
@click.option("--count", default=0, type=click.IntRange(0), help="Pages to show; 0 goes on until Ctrl-C.")
@AS_JSON
def top(home: Path | None, interval: float, count: int, as_json: bool) -> None:
    """Watch the running readers and gateways: requests a second, tiers, memory.

    \b
    voxtier frames top --interval 5

    The columns are those of `voxtier frames stats`. Without a terminal, page follows page, as for a log.
    """
    latest: dict[str, ReaderStatus] = {}
    previous: dict[str, ReaderStatus] = {}
    for page in itertools.count(1):
        statuses = _statuses(home)
        for status in statuses:
            last = latest.get(status.name)
            if last is None or last.content["written"] < status.content["written"]:
                latest[status.name] = status
                if last is not None:
                    previous[status.name] = last
        if as_json:
            _echo_json(statuses)
        else:
            clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
            lines = _lines(statuses, previous) if statuses else [_no_reader(home)]
            click.echo(clear + "\n".join([time.strftime("%Y-%m-%d %H:%M:%S"), *lines, ""]))
        if page == count:
            return
        time.sleep(interval)


def _statuses(home: Path | None) -> list[ReaderStatus]:
    from voxtier.frames.serving.status_files import read_statuses, readers_folder

    return list(read_statuses(readers_folder() if home is None else home / "readers"))


def _no_reader(home: Path | None) -> str:
    from voxtier.frames.serving.status_files import readers_folder

    folder = readers_folder() if home is None else home / "readers"
    return (
        f"no reader runs that has a status file in {folder}: it writes one from its first request on; use "
        "--home for readers of another user or with another VOXTIER_HOME"
    )


def _echo_json(statuses: list[ReaderStatus]) -> None:
    for reader in statuses:
        click.echo(json.dumps({"pid": reader.pid, "age": round(reader.age, 3), **reader.content}))


def _lines(statuses: list[ReaderStatus], previous: dict[str, ReaderStatus]) -> list[str]:
    lines = [_HEAD, *(_line(reader, previous.get(reader.name)) for reader in statuses)]
    gateways = [each for each in statuses if "gateway" in each.content["stats"]]
    if gateways:
        lines += ["", _GATEWAY_HEAD, *(_gateway_line(each, previous.get(each.name)) for each in gateways)]
    return lines


def _line(reader: ReaderStatus, previous: ReaderStatus | None) -> str:
    stats, cache = reader.content["stats"], reader.content["stats"]["cache"]
    tiers = [stats[tier] for tier in ("tier1", "tier2", "tier3")]
    shares = [f"{count / max(sum(tiers), 1):.1%}" for count in tiers]
    full = cache["used"] / max(cache["budget"], 1)
    bar = "#" * round(full * _BAR)
    used, budget = (format_bytes(cache[name], binary=True) for name in ("used", "budget"))
    memory = f"[{bar:.<{_BAR}}] {used} of {budget}"
    rate = _rate(reader, previous, lambda stats: stats["requests"])
    return (
        f"{reader.pid:>8}  {on_one_line(reader.content['source'])[:13]:<14}{stats['requests']:>13,}"
        f"{rate:>9,.0f}{shares[0]:>9}{shares[1]:>7}{shares[2]:>7}  {memory:<34}"
        f"{cache['dirty']:>9,}  {_state(reader)}"
    )


def _gateway_line(reader: ReaderStatus, previous: ReaderStatus | None) -> str:
    stats, gateway = reader.content["stats"], reader.content["stats"]["gateway"]
    searches, routes = stats["searches"], gateway["routes"]
    refused = sum(route["refused"] for route in routes.values()) / max(stats["requests"], 1)
    slowest, name = max(((route["slowest"], name) for name, route in routes.items()), default=(0, ""))
    by_index = f"{searches['index']:,} of {searches['index'] + searches['headers']:,}"
    throughput = format_bytes(_rate(reader, previous, lambda stats: stats["gateway"]["bytes"]), binary=True)
    return (
        f"{reader.pid:>8}  {on_one_line(gateway['url'])[:29]:<30}{stats['requests']:>13,}"
        f"{_rate(reader, previous, lambda stats: stats['requests']):>9,.0f}{throughput:>11}{refused:>9.1%}"
        f"{gateway['connections']:>9,}{by_index:>19}  {on_one_line(name)}, {slowest / 1000:,.1f} ms"
    )


def _rate(reader: ReaderStatus, previous: ReaderStatus | None, read: Callable[[Any], int]) -> float:
    """Return what a counter grew by a second since the previous status, or since the start."""
    count, since = read(reader.content["stats"]), reader.content["started"]
    if previous is not None:
        count, since = count - read(previous.content["stats"]), previous.content["written"]
    seconds: float = max(reader.content["written"] - since, 0.001)
    return count / seconds


def _state(reader: ReaderStatus) -> str:
    from voxtier.frames.serving.status_files import SILENT_AFTER

    stats: dict[str, Any] = reader.content["stats"]
    preload = stats["preload"]
    states = []
    if reader.age > SILENT_AFTER:
        states.append(f"silent {reader.age:.0f} s")
    if stats["degraded"]:
        states.append("no database")
    if preload["state"] == "running":
        states.append(f"preload {preload['seen']:,}")
    if preload["state"] == "failed":
        states.append("preload failed")
    return ", ".join(states) or "ready"
