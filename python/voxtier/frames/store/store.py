"""The frame index in PostgreSQL: one row per file, and questions about whole sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from voxtier._core import FrameTable, Refusal, decode_rows
from voxtier.arguments import as_several
from voxtier.errors import ConfigError
from voxtier.frames.dicom.table import Fingerprint, TableResult
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.store import statements
from voxtier.frames.store.adapters import Key, fetch
from voxtier.frames.store.file_rows import BATCH, FileRows, check_source
from voxtier.frames.store.row import FoundFile, FoundTable, RefusedFile, Summary, Tally, TruncatedFile
from voxtier.postgres.connection import Connection
from voxtier.system.html import rows_html
from voxtier.system.text import format_bytes


class FrameStore(FileRows):
    """The frame index of a database; one object serves all threads of a process, and survives a fork.

    Parameters
    ----------
    database : Database or str or None
        A database, or its connection string; None: ``VOXTIER_DSN``, else the embedded server.

    Notes
    -----
    A *source* is a name under which files are indexed (a table, a bucket, an archive); the same path in two
    sources is two rows. Methods raise `BackendError` when the database cannot be reached or fails, after
    trying again where that may help.
    """

    def _repr_html_(self) -> str:
        """Return what notebooks show: the sources and what they hold."""
        names = ("source", "files", "frames", "bytes", "of tables")
        rows = []
        for source in self.sources():
            total = self.summary(source).total
            sizes = format_bytes(total.file_bytes), format_bytes(total.table_bytes)
            rows.append((source, f"{total.files:,}", f"{total.frames:,}", *sizes))
        return rows_html(f"frame index, {self.database.describe()}", names, rows)

    def sources(self) -> list[str]:
        """Return the names of all sources."""
        return [name for (name,) in self.query(statements.SOURCES, ())]

    def source_of_table(self, name: str) -> str | None:
        """Return the source of a table of Unity Catalog, whose names have no case, or None.

        Raises
        ------
        ConfigError
            Several sources differ from the name by case alone.
        """
        return self.database.run(lambda connection: _source_in_any_case(connection, name))

    def add_source_of_table(self, name: str) -> str:
        """Return the source of a table of Unity Catalog, which is added where there is none in any case.

        Who writes asks this first: of two writers with two spellings, the later one gets the source of the
        other.

        Raises
        ------
        ConfigError
            Several sources differ from the name by case alone.
        """

        def work(connection: Connection) -> str:
            with connection.transaction():
                connection.execute(statements.LOCK_NAME.encode(), {"name": name})
                found = _source_in_any_case(connection, name)
                if found is None:
                    connection.execute(statements.ADD_SOURCE.encode(), {"name": name})
                return found or name

        check_source(name)
        return self.source_of_table(name) or self.database.run(work)

    def summary(self, source: str) -> Summary:
        """Return how many files, frames and bytes a source holds, in all and by its closed lists."""
        check_source(source)
        by: dict[str, dict[str, Tally]] = {name: {} for name in ("", *Summary._fields[1:])}
        for field, value, *tally in self.query(statements.SUMMARY, {"source": source}):
            by[f"by_{field}" if field else ""][value] = Tally(*tally)
        return Summary(by.pop("").get("", Tally(0, 0, 0, 0)), **by)

    def results(self, source: str) -> Iterator[TableResult]:
        """Iterate over all files of a source, in the order of their keys, as `read_tables` gives them.

        Rows of another version of the parser, and damaged ones, are left out.
        """
        return (result for result, _ in self.results_and_groups(source))

    def results_and_groups(self, source: str) -> Iterator[tuple[TableResult, list[str] | None]]:
        """Iterate as `results` does, with the groups that may see each file; None: everyone."""
        check_source(source)
        question: dict[str, Any] = {"source": source, "limit": BATCH, "after": Key(bytes(16))}
        while page := self.query(statements.ALL_ROWS, question):
            for _, row, groups in page:
                for path, found, _ in decode_rows(row):
                    if isinstance(found, FrameTable):
                        yield TableResult(path, found, None), groups
                    else:
                        yield TableResult(path, None, found.error, _state_of(found)), groups
            question["after"] = Key(page[-1][0].bytes)

    def by_sop_instance(self, uid: str, source: str | None = None) -> list[FoundTable]:
        """Return the tables of all files that hold a SOP Instance, in the order of their paths."""
        return _with_tables(self._by_uid(statements.BY_SOP_INSTANCE, uid, source))

    def copies_of(self, uid: str, source: str) -> list[FoundFile]:
        """Return all files that hold a SOP Instance, by path.

        Those that are cut off stand behind the others, and last those whose frames are refused.
        """

        def harm(file: FoundFile) -> int:
            return 2 if isinstance(file.found, Refusal) else int(file.found.status == "truncated")

        return sorted(self._by_uid(statements.BY_SOP_INSTANCE, uid, source), key=harm)

    def by_series(self, uid: str, source: str | None = None) -> list[FoundTable]:
        """Return the tables of all files of a series, in the order of their paths."""
        return _with_tables(self._by_uid(statements.BY_SERIES, uid, source))

    def _by_uid(self, statement: str, uid: str, source: str | None) -> list[FoundFile]:
        rows = self.query(statement, {"uid": uid, "source": source})
        decoded = ((name, *each) for name, row in rows for each in decode_rows(row))
        return [FoundFile(name, path, found) for name, path, found, _ in decoded]

    def refused_files(self, source: str) -> Iterator[RefusedFile]:
        """Iterate over the files without a table, in the order of their paths."""
        for path, kind, offset, detail in self._pages(statements.REFUSED_FILES, source):
            yield RefusedFile(path, kind, offset, detail or "")

    def truncated_files(self, source: str) -> Iterator[TruncatedFile]:
        """Iterate over the files that are cut off, in the order of their paths."""
        return map(TruncatedFile._make, self._pages(statements.TRUNCATED_FILES, source))

    def _pages(self, statement: str, source: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a statement that orders them by the path, which comes first."""
        check_source(source)
        after = ""
        while page := self.query(statement, {"source": source, "after": after, "limit": BATCH}):
            yield from page
            after = page[-1][0]

    def missing_files(
        self, source: str, *, under: str | Iterable[str] = (), is_gone: Callable[[str], bool] | None = None
    ) -> Iterator[str]:
        """Iterate over the indexed paths whose files certainly no longer exist.

        Parameters
        ----------
        source : str
            Name of the source.
        under : str or iterable of str
            Only files that are, or lie below, one of these; empty for all.
        is_gone : callable or None
            Takes a path and returns whether its file is gone, False where it cannot tell. None: asks the file
            system, or the store of an object.

        Yields
        ------
        str
            A path.
        """
        is_gone = is_gone or file_is_gone
        return (path for path, _ in self._paths(source, under) if is_gone(path))

    def prune(
        self,
        source: str,
        *,
        under: str | Iterable[str] = (),
        is_gone: Callable[[str], bool] | None = None,
        force: bool = False,
    ) -> int:
        """Delete the rows of the files that `missing_files` finds.

        A row that somebody wrote meanwhile stays: its file may be back.

        Parameters
        ----------
        source : str
            Name of the source.
        under : str or iterable of str
            Only files that are, or lie below, one of these; empty for all.
        is_gone : callable or None
            See `missing_files`.
        force : bool
            Also when not one of the files exists.

        Returns
        -------
        int
            Rows that were deleted.

        Raises
        ------
        ConfigError
            None of the files exists, as when a disk is not mounted, and `force` is not given.
        """
        is_gone = is_gone or file_is_gone
        missing, present = [], 0
        for path, writer in self._paths(source, under):
            if is_gone(path):
                missing.append((path, writer))
            else:
                present += 1
        if missing and not present and not force:
            raise ConfigError(
                f"all {len(missing)} indexed files are gone: is their disk mounted? Nothing was pruned; use "
                "force to prune them all the same"
            )
        return self._delete_rows(source, missing)

    def _paths(self, source: str, under: str | Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield paths, and the transaction that wrote the row of each last."""
        folders = list(map(os.fspath, as_several(under)))
        question: dict[str, Any] = {"source": source, "under": folders or None, "limit": 2 * BATCH}
        question["after"] = Key(bytes(16))
        while page := self.query(statements.PATHS, question):
            yield from ((path, writer) for _, path, writer in page)
            question["after"] = Key(page[-1][0].bytes)


def _source_in_any_case(connection: Connection, name: str) -> str | None:
    names = [each for (each,) in fetch(connection, statements.SOURCES_IN_ANY_CASE, (name,))]
    if name in names:
        return name
    if len(names) > 1:
        raise ConfigError(
            f"{name!r} names several sources, which differ by case alone: write one of {', '.join(names)}"
        )
    return names[0] if names else None


def _with_tables(files: list[FoundFile]) -> list[FoundTable]:
    return [FoundTable(source, path, found) for source, path, found in files if isinstance(found, FrameTable)]


def _state_of(refusal: Refusal) -> Fingerprint | None:
    if refusal.size is None:
        return None
    return refusal.size, refusal.mtime_ns, refusal.ctime_ns, refusal.inode, refusal.etag
