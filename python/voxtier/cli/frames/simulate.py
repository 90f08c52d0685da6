"""``voxtier frames simulate``: a trace of requests replayed, and one curve of hits a policy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, SIZE, NewFile
from voxtier.errors import ConfigError
from voxtier.system.durable import write_output
from voxtier.system.text import format_bytes, format_count

_size = partial(format_bytes, binary=True)
_POLICIES = ("lru", "scan_aware", "fifo", "belady")
_STEPS = 8  # budgets of a curve that nobody chose: each twice the one before
_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"lru": "#888888", "scan_aware": "#0b6e99", "fifo": "#c77700", "belady": "#4c9a2a"}
_PAGE = """<!doctype html>
<meta charset="utf-8"><title>voxtier frames simulate</title>
<style>body {{ font: 14px sans-serif; margin: 2em }} td, th {{ padding: 2px 10px; text-align: right }}</style>
<h1>Hit ratio by budget</h1>
<p>{about}</p>
{chart}
<table><tr><th>policy</th>{head}</tr>
{rows}</table>
"""


@click.command()
@click.argument("trace", type=click.File("r", encoding="utf-8", errors="surrogateescape"))
@click.option(
    "--budgets", help="Sizes, separated by commas: 64MiB,256MiB,1GiB. Default: up to what holds everything."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(_POLICIES),
    help="Policy to replay; repeatable. Default: all.",
)
@click.option("--html", type=NewFile("a page", ".html"), help="Also write the curves to a page.")
@AS_JSON
def simulate(
    trace: Iterable[str], budgets: str | None, policies: tuple[str, ...], html: Path | None, as_json: bool
) -> int:
    """Replay TRACE (- for stdin), and draw the hit ratio of each policy over the budget of memory.

    \b
    voxtier frames simulate trace.txt
    voxtier frames simulate trace.txt --budgets 64MiB,256MiB,1GiB --html curves.html

    A trace has a line ``KEY BYTES`` or ``KEY BYTES scan``, separated by a tab or the last blanks, for each
    request to your server, in the order of its log. KEY is any name of the file that was asked for, such as
    its UID; BYTES is what its table takes in memory (`voxtier frames priority --json`); ``scan`` marks the
    requests of a program that reads everything once.

    The policy of voxtier's memory is scan_aware; belady knows the future and is the upper bound. Exit code 1
    when the trace is empty.
    """
    from voxtier._core import simulate as replay

    keys, weights, scans = _read_trace(trace)
    if not len(keys):
        click.echo("voxtier: there is no request in the trace", err=True)
        return EXIT_FINDINGS
    sizes = _default_sizes(keys, weights) if budgets is None else sorted(_parse_sizes(budgets))
    curves: dict[str, list[float]] = {}
    for policy in policies or _POLICIES:
        curves[policy] = []
        for size, (hits, clinical) in zip(sizes, replay(keys, weights, scans, policy, sizes), strict=True):
            curves[policy].append(hits / len(keys))
            if as_json:
                row = {"policy": policy, "budget": size, "requests": len(keys), "hit_ratio": hits / len(keys)}
                click.echo(
                    json.dumps({**row, "hit_ratio_without_scans": clinical / max(int((~scans).sum()), 1)})
                )
    about = f"{format_count(len(keys), 'request')} for {format_count(int(keys.max()) + 1, 'file')}"
    if not as_json:
        click.echo("\n".join(_lines(about, sizes, curves)))
    if html is not None:
        page = _page(about, sizes, curves).encode()
        write_output(html, lambda file: file.write(page))
    return EXIT_OK


def _parse_sizes(text: str) -> set[int]:
    return {SIZE.convert(size, None, None) for size in text.split(",")}


def _default_sizes(keys: Any, weights: Any) -> list[int]:
    """Return budgets up to the one that holds every file of a trace, each twice the one before."""
    import numpy as np

    largest = np.zeros(int(keys.max()) + 1, np.uint64)
    np.maximum.at(largest, keys, weights.astype(np.uint64))
    # What memory takes beside a table: key, slot, attributes.
    total = int(largest.sum()) + 128 * len(largest)
    return sorted({max(total >> step, 1) for step in range(_STEPS)})


def _lines(about: str, sizes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Iterator[str]:
    yield f"hit ratio of {about}"
    yield f"{'budget':<11}" + "".join(f"{_size(size):>10}" for size in sizes)
    for policy, ratios in curves.items():
        curve = "".join(_BLOCKS[round(ratio * (len(_BLOCKS) - 1))] * 2 for ratio in ratios)
        yield f"{policy:<11}" + "".join(f"{ratio:>10.1%}" for ratio in ratios) + f"  |{curve}|"


def _page(about: str, sizes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """Return a page without scripts: one polyline a policy, and the figures below."""
    width, height, left, top = 640, 320, 50, 20
    across = [left + width * place / max(len(sizes) - 1, 1) for place in range(len(sizes))]
    parts = [
        f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{_size(size)}</text>'
        for x, size in zip(across, sizes, strict=True)
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + height * (1 - share)
        parts.append(
            f'<path d="M{left} {y:.0f}h{width}" stroke="#ddd"/><text x="4" y="{y + 4:.0f}">{share:.0%}</text>'
        )
    for place, (policy, ratios) in enumerate(curves.items()):
        dots = " ".join(f"{x:.1f},{top + height * (1 - r):.1f}" for x, r in zip(across, ratios, strict=True))
        colour, y = _COLOURS[policy], top + 20 * place + 10
        parts.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + width + 50}" y="{y}" fill="{colour}">{policy}</text>')
    size = f'width="{left + width + 150}" height="{top + height + 30}"'
    rows = "".join(
        f"<tr><th>{policy}</th>" + "".join(f"<td>{ratio:.1%}</td>" for ratio in ratios) + "</tr>\n"
        for policy, ratios in curves.items()
    )
    head = "".join(f"<th>{_size(each)}</th>" for each in sizes)
    chart = f'<svg {size} font-size="12">{"".join(parts)}</svg>'
    return _PAGE.format(about=about, chart=chart, head=head, rows=rows)


def _read_trace(lines: Iterable[str]) -> tuple[Any, Any, Any]:
    import numpy as np

    numbers: dict[str, int] = {}
    keys, weights, scans = [], [], []
    for number, (key, weight, scan) in enumerate(_parsed(lines), 1):
        if weight >= 1 << 32:
            raise ConfigError(
                f"line {number} of the trace: a frame table has less than 4 GiB, not {weight:,} bytes"
            )
        keys.append(numbers.setdefault(key, len(numbers)))
        weights.append(weight)
        scans.append(scan)
    return np.array(keys, np.uint32), np.array(weights, np.uint32), np.array(scans, np.bool_)


def _parsed(lines: Iterable[str]) -> Iterator[tuple[str, int, bool]]:
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"(.+?)\s+([0-9]{1,20})(\s+scan)?\s*", line)
        if match is None:
            raise ConfigError(f"line {number} of the trace is not `KEY BYTES` or `KEY BYTES scan`")
        yield match[1], int(match[2]), match[3] is not None
