"""QIDO-RS (PS3.18 10.6): answers searches by the search index, or by UIDs of the index and headers of files.

The frame index holds no attributes of patients. Without a search index, a search reads the header of one file
of each series or instance, and keeps in memory what was asked for. Both ways give the same answers. Bulk data
are no part of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice, takewhile
from pathlib import Path
from time import monotonic
from typing import Any

from voxtier.errors import UnfinishedError
from voxtier.frames.gateway.search.headers import File, KeptHeaders
from voxtier.frames.gateway.search.matching import Header, fits
from voxtier.frames.gateway.search.query import (
    COMPUTED_TAGS,
    COUNTED_TAGS,
    LAST,
    LEVELS,
    MODALITIES,
    RETRIEVE_URL,
    Query,
)
from voxtier.frames.gateway.search.results import (
    Row,
    computed,
    counts_of,
    element_of,
    modalities_of,
    result_of,
    within_limit,
)
from voxtier.frames.gateway.search.statements import (
    all_below,
    from_headers,
    from_search_index,
    is_below,
    next_files,
)
from voxtier.frames.indexing.headers import is_state, read_indexed
from voxtier.frames.serving.counters import Counters
from voxtier.frames.sources.address import is_address
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.search_index import (
    INDEXED_TAGS,
    INSTANCE,
    SERIES,
    SHARED_TAGS,
    STUDY,
    SearchIndex,
)
from voxtier.frames.store.store import FrameStore

# What is counted or comes from the index, whatever a file says of it.
_NEVER_OF_A_FILE = COMPUTED_TAGS["instance"]
# Files that are tried where the first one cannot be read: of a study, series or instance, and how many of
# these in a search. An archive that is away as a whole costs a search no more than this.
_MOST_TRIED = 10
_MOST_RESCUED = 50
# Seconds that a search reads headers: the server waits 30, and can say then how far the search came. One read
# of a silent store takes longer, and such a store must not hold a thread for each of its files.
_LONGEST = 25.0
# Files of a complete search index: seconds after which no further one is tried again, and the pause behind
# the tries, in the time that they took.
_LONGEST_TRY, _PAUSE = 1.0, 9


class Search:
    """Answers searches of one gateway; keeps the headers that it read.

    Parameters
    ----------
    roots : sequence of str
        Files, folders and prefixes of stores: nothing is told of files outside; empty for all. Of a file
        below whose link leads out, its UIDs are told alone; so it is with groups and a link to what they may
        not see.
    """

    def __init__(self, roots: Sequence[str] = ()) -> None:
        self.roots = tuple(roots)
        self.headers = KeptHeaders()
        self._next_try: dict[str, float] = {}
        # Of each source the completion of its search index for which was found out whether it may answer.
        self._is_all_below: dict[str, tuple[str, bool]] = {}
        self._is_bound: bool | None = None
        self._looking = threading.Lock()
        self._counters = Counters("index", "headers")

    def answer(
        self, store: FrameStore, source: str, query: Query, root: str, groups: Sequence[str] | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return the results of a search, in the order of their UIDs, and whether there are more.

        Parameters
        ----------
        store : FrameStore
            The index.
        source : str
            Name of the source.
        query : Query
            See `parse`.
        root : str
            Where DICOMweb's resources begin, for Retrieve URL.
        groups : sequence of str or None
            Groups of the user: only what the index shows to them is found, by headers alone. None: what
            the role of the store sees, by headers too where row security binds it.

        Returns
        -------
        list of dict
            A data set in the DICOM JSON model for each result.
        bool
            Whether there are results behind the last one.

        Raises
        ------
        UnfinishedError
            Headers take too long to read. Those that were read are kept: the next search goes on there.
        TooBroadError
            The headers of the results are too long for one answer.
        """
        wider = query._replace(limit=query.limit + 1)
        found: Iterable[tuple[Row, Header]] | None = None
        if groups is None and _is_indexed(query) and self._knows(SearchIndex(store), source):
            found = self._search_index(store, source, wider)
        self._counters.add("headers" if found is None else "index")
        if found is None:
            found = self._by_headers(store, source, wider, root, groups)
        results = [result_of(query, row, header, root) for row, header in found]
        return results[: query.limit], len(results) > query.limit

    def _by_headers(
        self, store: FrameStore, source: str, query: Query, root: str, groups: Sequence[str] | None
    ) -> Iterator[tuple[Row, Header]]:
        """Yield what headers tell; say what would make it faster where that takes too long."""
        try:
            yield from _HeaderSearch(self, store, source, groups).find(query, root)
        except UnfinishedError as error:
            may_use_index = groups is None and _is_indexed(query) and not self._is_bound_role(store)
            completion = SearchIndex(store).completion(source) if may_use_index else None
            if may_use_index and self._is_below_roots(store, source, completion or ""):
                raise UnfinishedError(f"{error}; voxtier index --search makes such searches fast") from None
            raise

    def counts(self) -> dict[str, int]:
        """Return how many searches the search index answered, and how many the headers of files."""
        return self._counters.read()

    def _is_bound_role(self, store: FrameStore) -> bool:
        """Return whether row security hides files from the role of the store.

        The search index is of all files: its studies and counts would tell of the hidden ones.
        """
        if self._is_bound is None:
            [(self._is_bound,)] = store.query("SELECT row_security_active('voxtier.file')", ())
        return bool(self._is_bound)

    def _knows(self, index: SearchIndex, source: str) -> bool:
        """Return whether the search index knows a source as well as headers tell it now.

        A file that was away when the search index was filled may be back: of those that could not be read
        some are tried again. While they still cannot be read, headers would say no more. Trying takes a tenth
        of the time at most, however long a store is silent.
        """
        completion = None if self._is_bound_role(index.store) else index.completion(source)
        if completion is None or not self._is_below_roots(index.store, source, completion):
            return False
        begun = monotonic()
        if begun < self._next_try.get(source, begun):
            return True
        unread = (each for each in index.unread(source, _MOST_TRIED) if is_below(each.path, self.roots))
        tried = takewhile(lambda _: monotonic() - begun <= _LONGEST_TRY, unread)
        is_back = any(read_indexed(each.path, each.study, each.series, each.instance)[0] for each in tried)
        self._next_try[source] = monotonic() + _PAUSE * (monotonic() - begun)
        return not is_back

    def _is_below_roots(self, store: FrameStore, source: str, completion: str) -> bool:
        """Return whether all files of a source are below the roots, by their names.

        The search index counts and matches what it holds: it answers as headers do only where these may be
        read of every file. All rows are looked at, but only once until files are added.
        """
        if not self.roots:
            return True
        with self._looking:  # one search looks, the others wait for what it finds
            known = self._is_all_below.get(source)
            if known is None or known[0] != completion:
                [(is_below_all,)] = store.query(*all_below(source, self.roots))
                known = self._is_all_below[source] = completion, is_below_all
        return known[1]

    def _search_index(self, store: FrameStore, source: str, query: Query) -> list[tuple[Row, Header]] | None:
        """Return what the search index finds; None where a link leads out of the roots, which SQL cannot see.

        From then on headers answer, so that pages of results fit together.
        """
        found = list(_search_index(store, source, query, with_files=bool(self.roots)))
        if all(is_below(path or "", self.roots) for _, _, path in found):
            return [(row, header) for row, header, _ in found]
        completion, _ = self._is_all_below[source]
        self._is_all_below[source] = completion, False
        return None


class _HeaderSearch:
    """One search by headers: until when it may read, and what stands in for files that cannot be read."""

    def __init__(
        self, searches: Search, store: FrameStore, source: str, groups: Sequence[str] | None
    ) -> None:
        self._searches, self._source, self._for_groups = searches, source, groups is not None
        self._asked = store if groups is None else GroupStore(store, groups)
        self._deadline = monotonic() + _LONGEST
        self._number = next(searches.headers.numbers)
        # Whether the groups see a file, by path and instance; and where folders lie.
        self._seen: dict[tuple[str, str], bool] = {}
        self._folders: dict[str, str] = {}
        self._rescued: dict[tuple[File, Row, frozenset[str]], Header] = {}
        # Headers that the search needs, as far as it knows, and those that it is through with.
        self._needed = self._done = 0
        self._is_all_kept = True

    def find(self, query: Query, root: str) -> Iterator[tuple[Row, Header]]:
        """Yield what is found; of the levels above, the page alone is counted unless a count must match."""
        rows = self._own_rows(query)
        above = query.counted - COUNTED_TAGS[query.level]
        keys = {tags: wanted for tags, wanted in query.matches.items() if tags[0] in above}
        if keys:  # first, as they take one header of each series at most
            count = self._counts_above(query, None)
            fitting = (
                (row, {**counts, **count(row)}, files)
                for row, counts, files in rows
                if fits(count(row), keys)
            )
            yield from within_limit(_page(query, self._with_headers(query, fitting), root))
        elif page := list(within_limit(_page(query, self._with_headers(query, rows), root))):
            count = self._counts_above(query, [row for row, _ in page])
            yield from ((row, {**header, **count(row)}) for row, header in page)

    def _with_headers(
        self, query: Query, rows: Iterable[tuple[Row, Header, list[File]]]
    ) -> Iterator[tuple[Row, Header]]:
        """Yield rows with the headers of files and what is counted."""
        further = frozenset(("all",) if "all" in query.included else query.included - INDEXED_TAGS)
        for row, counts, files in rows:
            header = self._first_header(files[0], row, further - _NEVER_OF_A_FILE)
            modalities = self._modalities(files) if query.level == "study" else {}
            yield row, {**header, **counts, **modalities}

    def _counts_above(self, query: Query, page: list[Row] | None) -> Callable[[Row], Header]:
        """Return what tells the counts of the levels above a row: one of a page, or any that may match."""
        rows = {
            (row.study, row.series): (counts, files)
            for level in LEVELS[: LEVELS.index(query.level)]
            if query.counted & COUNTED_TAGS[level]
            for row, counts, files in self._rows(_above(query, level, page))
        }

        if MODALITIES in query.counted:
            self._needed += sum(len(files) for (_, series), (_, files) in rows.items() if series is None)

        @cache
        def count_of(study: str, series: str | None) -> Header:
            if (study, series) not in rows:
                return {}
            counts, files = rows[study, series]
            needs_modalities = series is None and MODALITIES in query.counted
            modalities = self._modalities(files) if needs_modalities else {}
            self._done += len(files) if needs_modalities else 0
            return {**counts, **modalities}

        return lambda row: {**count_of(row.study, None), **count_of(row.study, row.series)}

    def _own_rows(self, query: Query) -> Iterator[tuple[Row, Header, list[File]]]:
        """Yield the rows of a search: who asks for the next one is through with the headers of the last."""
        for row in self._rows(query, needs_headers=True):
            yield row
            self._done += len(row[2])

    def _rows(self, query: Query, *, needs_headers: bool = False) -> Iterator[tuple[Row, Header, list[File]]]:
        """Yield the rows of a level, what is counted of each, and the files whose headers it needs."""
        statement = from_headers(self._source, query, self._searches.roots, for_groups=self._for_groups)
        rows = self._asked.query(*statement)
        if isinstance(self._asked, GroupStore):
            self._ask_behind_links(
                [pair for *_, paths, _, _, uids in rows for pair in zip(paths, uids, strict=True)]
            )
        self._needed += sum(len(row[-1]) for row in rows) if needs_headers else 0
        for study, series, instance, of_study, instances, transfer_syntax, *of_files in rows:
            files = [
                File(path, tuple(state), study, of, uid)
                for path, state, of, uid in zip(*of_files, strict=True)
            ]
            counts = counts_of(query.level, of_study, instances)
            yield Row(study, series, instance, transfer_syntax), counts, files

    def _modalities(self, files: list[File]) -> Header:
        """Return the modalities of a study by a file of each of its series."""
        rows = (Row(file.study, file.series, None, None) for file in files)
        headers = map(partial(self._first_header, further=frozenset()), files, rows)
        return {MODALITIES: modalities_of(headers)}

    def _first_header(self, file: File, row: Row, further: frozenset[str]) -> Header:
        """Return the header of a file, or of the next one of a row that can be read."""
        header = self._header(file, further)
        if header:
            return header
        key = file, row, further
        if key not in self._rescued and len(self._rescued) < _MOST_RESCUED:
            uids = {tag: [uid] for tag, uid in zip((STUDY, SERIES, INSTANCE), row, strict=False) if uid}
            statement = next_files(
                self._source,
                uids,
                file.path,
                _MOST_TRIED,
                self._searches.roots,
                for_groups=self._for_groups,
            )
            found = self._asked.query(*statement)
            others = (File(path, tuple(state), *of) for path, state, *of in found)
            tried = (self._header(each, further) for each in others)
            self._rescued[key] = next(filter(None, tried), {})
        return self._rescued.get(key, {})

    def _header(self, file: File, further: frozenset[str]) -> Header:
        """Return what a file says of `INDEXED_TAGS` and further ones; nothing where it cannot be read.

        Of what is kept no tag is read again and again: it is kept with those that are asked for now.
        """
        if not self._may_see(file):
            return {}
        headers = self._searches.headers
        kept = headers.get(file, self._number)
        if not kept or not (further <= kept.keys() or "all" in kept):
            if not is_below(file.path, self._searches.roots):
                return {}
            self._check_time()
            asked = further | (kept.keys() - INDEXED_TAGS)
            tags = None if "all" in asked else INDEXED_TAGS | asked
            read, state = read_indexed(file.path, file.study, file.series, file.instance, tags)
            kept = {tag: each for tag, each in read.items() if tag not in _NEVER_OF_A_FILE}
            # What could not be looked at says nothing of the next time. An object may go back to the state of
            # its row, and would then have the header of another one.
            if kept and is_state(state, file.state):
                kept = {**dict.fromkeys(asked), **kept}
                self._is_all_kept &= headers.put(file, kept, self._number)
        is_wanted = (INDEXED_TAGS | further).__contains__
        return {tag: each for tag, each in kept.items() if each and ("all" in further or is_wanted(tag))}

    def _ask_behind_links(self, files: list[tuple[str, str]]) -> None:
        """Ask which files behind links the groups see under their own names too: the index knows no links."""
        assert isinstance(self._asked, GroupStore)
        led = {}
        for path, instance in files:
            if (path, instance) not in self._seen:
                self._check_time()
                name = self._own_name(path)
                self._seen[path, instance] = name == path
                if name != path:
                    led[path, instance] = name, instance
        if led:
            rights = self._asked.may_read_each(self._source, list(led.values()))
            self._seen |= zip(led, rights, strict=True)

    def _own_name(self, path: str) -> str:
        """Return the name of a file, its links resolved; each folder is looked at once a search."""
        if is_address(path):
            return path
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        own = Path(self._folders[folder], name)
        return os.path.realpath(own) if own.is_symlink() else str(own)

    def _may_see(self, file: File) -> bool:
        if not isinstance(self._asked, GroupStore):
            return True
        if (file.path, file.instance) not in self._seen:
            self._ask_behind_links([(file.path, file.instance)])
        return self._seen[file.path, file.instance]

    def _check_time(self) -> None:
        if monotonic() <= self._deadline:
            return
        kept = f"{KeptHeaders.most:,} headers of {KeptHeaders.most_bytes >> 20} MiB"
        goes_on = (
            "the next search goes on there"
            if self._is_all_kept
            else f"no more than {kept} are kept for the next search: name the studies or series by their UIDs"
        )
        raise UnfinishedError(
            f"{self._done:,} of {self._needed:,} headers were read in {_LONGEST:.0f} s, and {goes_on}"
        )


def _above(query: Query, level: str, page: list[Row] | None) -> Query:
    """Return a search for the studies or series of a page; without one, of all that may match."""
    if page is None:
        return query._replace(level=level)
    uids = {row.study for row in page} if level == "study" else {row.series or "" for row in page}
    tag = STUDY if level == "study" else SERIES
    return query._replace(level=level, uids={tag: sorted(uids)}, matches={}, limit=LAST, offset=0)


def _page(query: Query, found: Iterable[tuple[Row, Header]], root: str) -> Iterator[tuple[Row, Header]]:
    """Yield what matches, in the window of a search; without matches that is part of its statement."""
    matching = (
        (row, header)
        for row, header in found
        if fits({**header, **computed(query, row, header, root)}, query.matches)
    )
    begin = query.offset if query.matches else 0
    yield from islice(matching, begin, begin + query.limit)


def _search_index(
    store: FrameStore, source: str, query: Query, *, with_files: bool
) -> Iterator[tuple[Row, Header, str | None]]:
    """Yield results, and the path of a file that has the attributes of each."""
    statement, parameters = from_search_index(source, query, with_files=with_files)
    tags = sorted(query.counted)
    for study, series, instance, transfer_syntax, path, shared, own, *counted in store.query(
        statement, parameters
    ):
        counts = dict(zip(tags, map(element_of, counted), strict=True))
        yield Row(study, series, instance, transfer_syntax), {**shared, **(own or {}), **counts}, path


def _is_indexed(query: Query) -> bool:
    """Return whether the search index has everything that a search asks for."""
    known = SHARED_TAGS | COMPUTED_TAGS[query.level] - {RETRIEVE_URL}
    known |= INDEXED_TAGS if query.level == "instance" else set()
    below = {"study": {SERIES, INSTANCE}, "series": {INSTANCE}, "instance": set()}[query.level]
    is_flat = all(len(tags) == 1 for tags in query.matches)
    return is_flat and query.included <= known and not below & query.uids.keys()
