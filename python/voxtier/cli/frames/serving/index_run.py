"""The index run of ``voxtier serve``: what is new below its folders, in the background."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import is_absent
from voxtier.cli.options import say
from voxtier.errors import MissingExtraError, VoxtierError
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.frames.store.store import FrameStore

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds, between two tries


class IndexRun(threading.Thread):
    """Indexes what is new below folders, in the background; again while the database or a store fails.

    Parameters
    ----------
    store : FrameStore
        Where the rows go.
    source : str
        Name of the source.
    folders : tuple of str
        Folders, files and prefixes of stores.
    extension : str or None
        How names end of files that are taken; None takes all.
    stopping : threading.Event
        Ends the run. Set by the run itself where something is not installed: that ends the gateway.

    Attributes
    ----------
    missing : MissingExtraError or None
        What is not installed.
    """

    def __init__(
        self,
        store: FrameStore,
        source: str,
        folders: tuple[str, ...],
        extension: str | None,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="voxtier-index-run", daemon=True)
        self._store, self._source, self._folders, self._extension = store, source, folders, extension
        self._stopping = stopping
        self._new = 0
        self.missing: MissingExtraError | None = None

    def run(self) -> None:
        """Index until all is done."""
        pause, has_said = _FIRST_PAUSE, False
        while not self._stopping.is_set():
            try:
                return self._index()
            except MissingExtraError as error:
                self.missing = error
                self._stopping.set()
            except VoxtierError as error:
                # Others mend what the index lacks: a schema that its owner has not upgraded yet, rights.
                if is_absent(error):
                    click.echo(f"voxtier: indexing stopped: {error}", err=True)
                    return None
                if not has_said:
                    text = f"indexing was broken off and is tried again until it succeeds: {error}"
                    click.echo(f"voxtier: {text}", err=True)
                has_said = True
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return None

    def _index(self) -> None:
        from voxtier.frames.indexing.paths import iter_files, without_absent
        from voxtier.frames.indexing.run import FileIndexer, index_files
        from voxtier.frames.indexing.search import fill_search_index
        from voxtier.frames.sources.address import is_address
        from voxtier.frames.store.search_index import Making, SearchIndex

        absent: list[str] = []
        files = refused = 0
        threads = 32 if any(map(is_address, self._folders)) else 4
        for reports in index_files(
            FileIndexer(self._store, source=self._source, threads=threads),
            without_absent(iter_files(self._folders, extension=self._extension), self._folders, absent),
        ):
            files += len(reports)
            # A refused file is tried again by each run, and is new in none.
            self._new += sum(report.status != "unchanged" and not report.failed for report in reports)
            refused += sum(report.failed for report in reports)
            if self._stopping.is_set():
                return
        search = SearchIndex(self._store)
        if search.making() is Making.CURRENT and search.holds(self._source):
            for _ in fill_search_index(search, self._source):
                if self._stopping.is_set():
                    return
        counts = f"{format_count(files, 'file')}, {self._new:,} new, {refused:,} refused"
        click.echo(f"indexed: {counts} (see `voxtier frames errors`)", err=True)
        if absent:
            say(f"voxtier: {', '.join(absent)}: there is no such object, and none below it", err=True)
        elif not files and self._extension is not None:
            text = f"no name ends in {self._extension}; --all-files takes every file"
            click.echo(f"voxtier: {text}", err=True)
