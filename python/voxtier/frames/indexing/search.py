"""Fills the search index: reads the header of every instance that it does not hold. Index runs call it."""

from __future__ import annotations

from collections.abc import Iterator

from voxtier.frames.dicom.moments import MOMENT_VRS
from voxtier.frames.indexing.headers import read_indexed, texts
from voxtier.frames.store.search_index import SHARED_TAGS, Searched, SearchIndex, Unsearched
from voxtier.system.workers import Workers


def fill_search_index(index: SearchIndex, source: str, *, threads: int = 4) -> Iterator[int]:
    """Read what is missing; what cannot be read is kept with its UIDs alone, and tried again next time.

    Parameters
    ----------
    index : SearchIndex
        Where it goes.
    source : str
        Name of a source that it holds.
    threads : int
        Reads in flight.

    Yields
    ------
    int
        Instances that were stored since the last one.
    """
    after = bytes(16)
    with Workers(threads, "voxtier-search") as pool:
        while missing := index.missing(source, after):
            stored = index.put(source, list(pool.map(_read, missing)))
            after = missing[-1].key
            yield stored
    index.complete(source)


def _read(wanted: Unsearched) -> Searched:
    header, _ = read_indexed(wanted.path, wanted.study, wanted.series, wanted.instance)
    shared = {tag: header[tag] for tag in sorted(SHARED_TAGS & header.keys())}
    own = {tag: each for tag, each in header.items() if tag not in shared}
    compared = {tag: texts(each) for tag, each in shared.items() if each["vr"] in ("PN", *MOMENT_VRS)}
    names = {tag: values for tag, values in compared.items() if values != shared[tag].get("Value", [])}
    return Searched(wanted, shared, names, own, is_read=bool(header))
