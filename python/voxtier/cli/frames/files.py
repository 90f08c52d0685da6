"""``voxtier frames table | read`` and ``voxtier explain``: what files hold, without a database."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier._core import local_path, refused_status
from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_USAGE, is_absent
from voxtier.cli.options import AS_JSON, WORKERS, GivenPath, reading_workers, refuse_empty_paths, say
from voxtier.system.durable import write_output
from voxtier.system.text import format_count, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.dicom.table import FrameTable, TableResult

PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...", callback=refuse_empty_paths)


def given_paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths that were given on the command line; ``-`` stands for paths on stdin, one a line."""
    for path in paths:
        if path != "-":
            yield path
        elif sys.stdin is None:
            raise click.UsageError("- reads paths from stdin, which is closed")
        else:
            for line in sys.stdin.buffer:  # bytes: a path need not be text
                if name := line.rstrip(b"\r\n"):
                    yield os.fsdecode(name)


@click.command()
@PATHS
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, with the ranges of all frames."
)
@WORKERS
def table(paths: tuple[str, ...], as_json: bool, workers: int | None) -> int:
    """Print the frame table of each file, without a database.

    \b
    voxtier frames table slide.dcm --json
    find /data -name '*.dcm' | voxtier frames table -

    PATH is a file, a folder (every file below it), an object or a prefix of a store (s3://bucket/prefix), or
    - for paths on stdin. Every entry of every offset table is checked against the file. With --json, frames
    is a list of frames, each a list of [offset, length] in payload bytes; bit_offsets is the bit of the first
    byte at which each frame begins where frames are no whole bytes (Bits Allocated 1), else null. Exit code 1
    when a file is refused or there is none, 2 when a PATH is not there.
    """
    from voxtier.frames.dicom.table import read_tables
    from voxtier.frames.indexing.paths import iter_files

    refused = count = absent = 0
    files = iter_files(given_paths(paths), extension=None)
    results = read_tables(files, threads=reading_workers(workers, paths), verify="all")
    for count, result in enumerate(results, 1):  # noqa: B007
        refused += result.error is not None
        absent += is_given(paths, result.path, result.error)
        click.echo(json.dumps(_as_json(result)) if as_json else _as_line(result))
    return files_exit_code(paths, count, refused, absent)


def files_exit_code(paths: Iterable[str], count: int, refused: int, absent: int) -> int:
    """Return the exit code of a command that goes through files; of none, it says so."""
    if not count:
        looked_in = ["stdin" if path == "-" else path for path in paths]
        say(f"voxtier: {', '.join(looked_in)}: there is no file", err=True)
    if absent:
        return EXIT_USAGE
    return EXIT_FINDINGS if refused or not count else EXIT_OK


def is_given(paths: Iterable[str], path: object, error: BaseException | None) -> bool:
    """Return whether a path that was given on the command line is not there."""
    return error is not None and is_absent(error) and str(path) in map(local_path, paths)


def _as_json(result: TableResult) -> dict[str, Any]:
    path, table, error, _ = result
    row: dict[str, Any] = {"path": str(path)}
    if table is None:
        assert error is not None
        row |= {"status": refused_status(error.kind), "kind": "error"}
        row |= dict.fromkeys(("transfer_syntax_uid", "number_of_frames", "offsets_in", "method", "verified"))
        refusal = {"kind": error.kind, "offset": error.offset, "detail": error.detail}
        return row | {"notes": [], "frames": [], "bit_offsets": None, "error": refusal}
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
        "bit_offsets": _bit_offsets(table),
        "error": None,
    }


def _bit_offsets(table: FrameTable) -> list[int] | None:
    if not (table.frame_bits or 0) % 8:
        return None
    return [table.bit_offset(index) for index in range(len(table))]


def _as_line(result: TableResult) -> str:
    path, table, error = on_one_line(str(result.path)), result.table, result.error
    if table is None:
        assert error is not None
        return f"{refused_status(error.kind):<10} {'':<13}{'':>9}  {path}: {error}"
    notes = f"  [{', '.join(table.notes)}]" if table.notes else ""
    return f"{table.status:<10} {table.kind:<13}{len(table):>9,}  {path}  {table.method}{notes}"


@click.command()
@click.argument("path", callback=refuse_empty_paths)
@click.argument("number", type=click.IntRange(min=1))
@click.option(
    "-o", "--output", type=GivenPath(dir_okay=False, path_type=Path), help="File to write instead of stdout."
)
@click.option(
    "--align", is_flag=True, help="Move a frame that begins within a byte (Bits Allocated 1) to bit 0."
)
def read(path: str, number: int, output: Path | None, align: bool) -> int:
    """Write the bytes of frame NUMBER (from 1) of a file: fragments joined, item headers stripped.

    \b
    voxtier frames read slide.dcm 17 -o tile.jpg
    voxtier frames read s3://bucket/slide.dcm 17 -o tile.jpg

    Frames of 1-bit pixels may share bytes with the frames beside them (PS3.5 8.1.1): a message then names the
    bit, and --align writes the pixels of this frame alone, from the least significant bit on.
    The file named by -o is written completely or not at all. Exit code 1 when PATH is refused or the frame
    lies behind the end of a truncated file, 2 when there is no such file or frame.
    """
    from voxtier.errors import FormatError, SourceError
    from voxtier.frames.dicom.table import read_frame, read_table

    path = local_path(path)
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a frame is binary: name a file with -o, or pipe the output")
    try:
        frame_table = read_table(path)
        if number > len(frame_table):
            holds = format_count(len(frame_table), "frame") if len(frame_table) else "no frame"
            raise click.UsageError(f"{on_one_line(path)} holds {holds}")
        content = read_frame(path, frame_table, number - 1, align=align)
    except (FormatError, SourceError) as error:
        # Frames count from 0 in the core, and from 1 for who asks here.
        text = re.sub(r"\bframe (\d+) \(from 0\)", lambda found: f"frame {int(found[1]) + 1}", str(error))
        click.echo(f"voxtier: {on_one_line(path)}: {text}", err=True)
        return EXIT_USAGE if is_absent(error) else EXIT_FINDINGS
    if not align and (frame_table.frame_bits or 0) % 8:
        bit = frame_table.bit_offset(number - 1)
        click.echo(
            f"frame {number:,} has {frame_table.frame_bits:,} bits, from bit {bit} of the first byte on: "
            "--align moves them to bit 0",
            err=True,
        )
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        _write_output(output, content, source=path)
        click.echo(
            f"{format_count(len(content), 'byte')} of frame {number:,} in {on_one_line(str(output))}",
            err=True,
        )
    return 0


def _write_output(output: Path, content: bytes, *, source: str) -> None:
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise click.UsageError("-o names the image itself, which voxtier never writes: name another file")
    write_output(output, lambda file: file.write(content))


@click.command()
@click.argument("path", callback=refuse_empty_paths)
@AS_JSON
def explain(path: str, as_json: bool) -> int:
    """Explain one file on one page: how its frames are stored, which table was used, what is odd.

    \b
    voxtier explain slide.dcm

    Of a slide, the page also draws where its tiles are. With --json, the facts of the page; `voxtier frames
    table --json` has the ranges of the frames. Exit code 1 when the file is refused, and the page says why
    and where; 2 when it is not there.
    """
    from voxtier.errors import FormatError, SourceError
    from voxtier.frames.dicom.explain import explain as page
    from voxtier.frames.dicom.explain import explain_refusal, list_facts
    from voxtier.frames.dicom.table import TableResult, read_table

    try:
        found = TableResult(path, read_table(path, verify="all"), None)
    except (FormatError, SourceError) as error:
        found = TableResult(path, None, error)
    if as_json:
        row = _as_json(found)
        del row["frames"], row["bit_offsets"]
        notes = {} if found.table is None else list_facts(found.table)
        click.echo(json.dumps(row | notes))
    elif found.table is None:
        assert found.error is not None
        click.echo(explain_refusal(on_one_line(path), found.error))
    else:
        click.echo("\n".join([page(on_one_line(path), found.table), *_slide_lines(path)]))
    if found.error is None:
        return EXIT_OK
    return EXIT_USAGE if is_absent(found.error) else EXIT_FINDINGS


def _slide_lines(path: str) -> list[str]:
    """Return the level of a slide that a file holds, its size and a drawing; nothing for other images."""
    from voxtier.errors import FormatError, SourceError
    from voxtier.frames.slides import Slide
    from voxtier.frames.sources.address import is_address

    if is_address(path):  # a drawing is not worth further requests
        return []
    try:
        slide = Slide(path)
    except (FormatError, SourceError):  # no slide, or one whose tiles contradict each other
        return []
    [level] = slide.levels
    return ["", f"  {slide.describe()}", *(f"    {line}" for line in level.draw().splitlines())]
