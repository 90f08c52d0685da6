"""``voxtier frames summary | errors``: look into the index of a source."""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, DSN, SOURCE, holds_source, open_store
from voxtier.system.text import format_bytes, format_count, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.store.row import Summary, Tally

# The status of a row for people.
_WORDS = {"error": "refused"}


def status_word(status: str) -> str:
    """Return the word for the status of a row or of a report, in all that commands print."""
    return _WORDS.get(status, status)


@click.command()
@SOURCE
@DSN
@AS_JSON
def summary(source: str, dsn: str | None, as_json: bool) -> int:
    """Count the files, frames and bytes of a source by status, kind, transfer syntax and method.

    \b
    voxtier frames summary --json

    Exit code 1 when there is no file.
    """
    with open_store(dsn) as store:
        is_known = holds_source(store, source)
        found = store.summary(source)
        others = [name for name in store.sources() if name != source]
    if is_known and not found.total.files:
        click.echo(f"voxtier: source {source!r} holds no file: run `voxtier index`", err=True)
    code = EXIT_OK if found.total.files else EXIT_FINDINGS
    if as_json:
        click.echo(json.dumps({"source": source, **_summary_json(found)}))
        return code
    click.echo(f"source {source}: {_total_line(found.total)}")
    for title, tallies in (
        ("status", found.by_status),
        ("stored as", found.by_kind),
        ("transfer syntax", found.by_transfer_syntax_uid),
        ("found by", found.by_method),
    ):
        click.echo(f"\n{title}")
        for name, tally in tallies.items():
            files, each = format_count(tally.files, "file"), format_count(tally.frames, "frame")
            click.echo(f"  {_label(title, name):<58}{files:>18} {each:>21}")
    if others:
        click.echo(f"\nother sources: {', '.join(others)}")
    return code


def _label(title: str, name: str) -> str:
    from voxtier.frames.dicom.explain import transfer_syntax_name

    if title == "status":
        return status_word(name)
    if title == "transfer syntax":
        return f"{name} {transfer_syntax_name(name)}" if name else "(none)"
    return name or "(none)"


def _total_line(tally: Tally) -> str:
    each = tally.table_bytes / tally.frames if tally.frames else 0.0
    return (
        f"{format_count(tally.files, 'file')}, {format_count(tally.frames, 'frame')}, "
        f"{format_bytes(tally.file_bytes)} indexed by "
        f"{format_bytes(tally.table_bytes)} of tables ({each:.1f} bytes a frame)"
    )


def _summary_json(found: Summary) -> dict[str, object]:
    _, *groups = found._asdict().items()
    return {"total": found.total._asdict()} | {
        title: {
            status_word(name) if title == "by_status" else name: tally._asdict()
            for name, tally in tallies.items()
        }
        for title, tallies in groups
    }


@click.command()
@SOURCE
@DSN
@AS_JSON
def errors(source: str, dsn: str | None, as_json: bool) -> int:
    """List the files that were refused or are cut off, each with its reason.

    \b
    voxtier frames errors --json

    Exit code 1 when there are any, or nothing is indexed; 2 when --source names no source of the index.
    """
    from voxtier.frames.store.row import RefusedFile

    count = 0
    with open_store(dsn) as store:
        if not holds_source(store, source):
            return EXIT_FINDINGS
        cut = (
            RefusedFile(file.path, "truncated", None, _cut_note(file.truncated_from, file.frame_count))
            for file in store.truncated_files(source)
        )
        for error in heapq.merge(store.refused_files(source), cut, key=lambda error: error.path):
            count += 1
            if as_json:
                click.echo(json.dumps(error._asdict()))
            else:
                place = "" if error.offset is None else f" at byte {error.offset:,}"
                click.echo(f"{on_one_line(error.path)}\n    {error.kind}{place}: {error.detail}")
    if not count:
        click.echo(f"no file of source {source!r} was refused or is cut off", err=True)
    return EXIT_FINDINGS if count else EXIT_OK


def _cut_note(whole: int, frames: int) -> str:
    return f"the file is cut off, whole frames: {whole:,} of {frames:,}"
