"""``voxtier index --search`` and ``voxtier frames forget``: make and remove the search index of patients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, DSN, open_store
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.frames.store.store import FrameStore

DETACHED = "the index of frames does not keep it right since a dump was restored or triggers were disabled"


def switch_search_on(store: FrameStore, source: str) -> None:
    """Have the search index hold a source, and say what that means."""
    from voxtier.frames.store.search_index import SearchIndex

    click.echo(
        f"--search: the database will hold names, identifiers and dates of patients of source {source!r}, in "
        "the schema voxtier_search, from now on. `voxtier frames forget --search` removes them.",
        err=True,
    )
    SearchIndex(store).switch_on(source)


def fill_search(store: FrameStore, source: str, threads: int) -> None:
    """Read what the search index lacks of a source, if it holds this one."""
    from voxtier.frames.indexing.search import fill_search_index
    from voxtier.frames.store.search_index import Making, SearchIndex

    index = SearchIndex(store)
    made = index.making()
    if made in (Making.OLDER, Making.NEWER):
        click.echo(
            "search index: another version of voxtier made it, and searches read headers instead: "
            f"{made.remedy}",
            err=True,
        )
    elif made is Making.DETACHED:
        click.echo(
            f"search index: {DETACHED}, and searches read headers instead: `voxtier index --search` makes it "
            "anew, each source by a run of its own",
            err=True,
        )
    elif made is Making.CURRENT and index.holds(source):
        tried = sum(fill_search_index(index, source, threads=threads))
        [(is_complete, unread)] = [
            (each.is_complete, each.unread) for each in index.sources() if each.source == source
        ]
        click.echo(f"search index: {format_count(tried - unread, 'header')} read", err=True)
        if unread:
            click.echo(
                f"search index: {format_count(unread, 'header')} could not be read: searches find them by "
                "their UIDs alone; the next run tries again, and --prune forgets files that are gone",
                err=True,
            )
        if not is_complete:
            click.echo(
                "search index: files came or changed meanwhile: searches read headers until the next run",
                err=True,
            )


@click.command()
@click.option("--search", is_flag=True, help="Names and dates of patients, of all sources.")
@DSN
@AS_JSON
def forget(dsn: str | None, search: bool, as_json: bool) -> int:
    """Remove what was kept on request: the search index.

    \b
    voxtier frames forget --search

    The index of frames stays; searches read the files' headers again. Exit code 1 when there was nothing.
    """
    from voxtier.frames.store.search_index import SearchIndex

    if not search:
        raise click.UsageError("what is to be forgotten? Give --search")
    with open_store(dsn) as store:
        is_gone = SearchIndex(store).drop()
    if as_json:
        click.echo(json.dumps({"removed": is_gone}))
    click.echo("the search index is removed" if is_gone else "there is no search index", err=True)
    return EXIT_OK if is_gone else EXIT_FINDINGS
