"""``voxtier table | frame | explain``: one file at a time, no database."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli import EXIT_FINDINGS

if TYPE_CHECKING:
    from voxtier.frames.table import TableResult

PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...")


def given_paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths of the command line; ``-`` stands for paths on stdin, one a line."""
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            yield path


@click.command()
@PATHS
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every range.")
@click.option("--threads", default=16, show_default=True, type=click.IntRange(1, 1024))
def table(paths: tuple[str, ...], as_json: bool, threads: int) -> int:
    """Print the frame table of each file, without a database.

    PATH is a file, a folder (walked, every file) or - for paths on stdin. Every entry of every offset
    table is held against the file. With --json, frames is a list of frames, each a list of
    [offset, length] in payload bytes. Exit code 1 when a file is refused.
    """
    from voxtier.frames.paths import iter_files
    from voxtier.frames.table import read_tables

    refused = 0
    files = iter_files(given_paths(paths), extension=None)
    for result in read_tables(files, threads=threads, verify="all"):
        refused += result.error is not None
        click.echo(json.dumps(_as_json(result)) if as_json else _as_line(result))
    return EXIT_FINDINGS if refused else 0


def _as_json(result: TableResult) -> dict[str, Any]:
    path, table, error = result
    row: dict[str, Any] = {"path": str(path)}
    if table is None:
        assert error is not None
        refusal = {"kind": error.kind, "offset": error.offset, "detail": error.detail}
        status = "ambiguous" if error.kind in _GROUPING else "error"
        empty = dict.fromkeys(("transfer_syntax_uid", "number_of_frames", "offsets_in", "method", "verified"))
        return row | {"status": status, "kind": "error", **empty, "notes": [], "frames": [], "error": refusal}
    frames = [[[start, end - start] for start, end in table.ranges(i)] for i in range(len(table))]
    return row | {
        "status": table.status,
        "kind": table.kind,
        "transfer_syntax_uid": table.transfer_syntax_uid,
        "number_of_frames": table.number_of_frames,
        "offsets_in": table.offsets_in,
        "method": table.method,
        "verified": table.verified,
        "notes": list(table.notes),
        "frames": frames,
        "error": None,
    }


_GROUPING = ("ambiguous_fragments", "fewer_fragments_than_frames")


def _as_line(result: TableResult) -> str:
    path, table, error = result
    if table is None:
        return f"{'error':<10} {'':<13}{'':>9}  {path}: {error}"
    notes = f"  [{', '.join(table.notes)}]" if table.notes else ""
    return f"{table.status:<10} {table.kind:<13}{len(table):>9,}  {path}  {table.method}{notes}"


@click.command()
@click.argument("path")
@click.argument("number", type=click.IntRange(min=1))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout."
)
def frame(path: str, number: int, output: Path | None) -> int:
    """Write the bytes of frame NUMBER (from 1) of a file: fragments joined, item headers stripped."""
    from voxtier.frames.table import read_frame, read_table

    if output is None and sys.stdout.isatty():
        raise click.UsageError("a frame is not for terminals: name a file with -o, or pipe the output")
    frame_table = read_table(path)
    if number > len(frame_table):
        count = len(frame_table)
        holds = "no frame" if count == 0 else "1 frame" if count == 1 else f"{count:,} frames"
        raise click.UsageError(f"{path} holds {holds}")
    content = read_frame(path, frame_table, number - 1)
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        output.write_bytes(content)
        click.echo(f"{len(content):,} bytes of frame {number} in {output}", err=True)
    return 0


@click.command()
@click.argument("path")
def explain(path: str) -> int:
    """Explain one file on one page: how its frames are stored, which table was believed, what is odd."""
    from voxtier.errors import FormatError, SourceError
    from voxtier.frames.explain import explain as page
    from voxtier.frames.explain import explain_refusal
    from voxtier.frames.table import read_table

    try:
        frame_table = read_table(path, verify="all")
    except (FormatError, SourceError) as error:
        click.echo(explain_refusal(path, error))
        return EXIT_FINDINGS
    click.echo(page(path, frame_table))
    return 0
