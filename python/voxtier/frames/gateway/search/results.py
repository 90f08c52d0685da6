"""Results of searches (PS3.18 10.6.3.3): what they hold of the index and of headers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from voxtier.errors import TooBroadError
from voxtier.frames.gateway.search.matching import Header
from voxtier.frames.gateway.search.query import (
    AVAILABILITY,
    INSTANCES_OF_SERIES,
    INSTANCES_OF_STUDY,
    LEVELS,
    RETRIEVE_URL,
    SERIES_OF_STUDY,
    TRANSFER_SYNTAX,
    Query,
)
from voxtier.frames.store.search_index import INSTANCE, SERIES, STUDY, TAGS

_MODALITY = "00080060"
# Characters of the headers of one answer, which lie in memory together.
_MOST_FOUND = 32 << 20


class Row(NamedTuple):
    """What the index says of a study, series or instance."""

    study: str
    series: str | None
    instance: str | None
    transfer_syntax: str | None


def result_of(query: Query, row: Row, header: Header, root: str) -> dict[str, Any]:
    """Return a result as a data set in the DICOM JSON model.

    Parameters
    ----------
    query : Query
        What was asked for.
    row : Row
        What the index says.
    header : mapping
        What the file says, as far as it was read, and what was counted.
    root : str
        Where DICOMweb's resources begin, for Retrieve URL.

    Returns
    -------
    dict
        Tags in ascending order.
    """
    levels = LEVELS[: LEVELS.index(query.level) + 1]
    wanted = {tag for level in levels for tag in TAGS[level]} | query.included
    if "all" in query.included:
        wanted |= header.keys()
    result = {tag: header[tag] for tag in wanted if tag in header}
    result |= computed(query, row, header, root)
    return dict(sorted(result.items()))


def within_limit(found: Iterable[tuple[Row, Header]]) -> Iterator[tuple[Row, Header]]:
    """Yield rows and their headers.

    Raises
    ------
    TooBroadError
        The headers are longer than one answer may be.
    """
    size = 0
    for row, header in found:
        size += len(json.dumps(header, ensure_ascii=False))
        if size > _MOST_FOUND:
            raise TooBroadError(
                f"the headers of the results have more than {_MOST_FOUND >> 20} MiB: ask for fewer at a time "
                "(limit and offset), or for fewer attributes (includefield)"
            )
        yield row, header


def computed(query: Query, row: Row, header: Header, root: str) -> dict[str, Any]:
    """Return what a result says that is not of one header: UIDs of the index, counts, `COMPUTED_TAGS`.

    Parameters
    ----------
    query : Query
        What was asked for.
    row : Row
        What the index says.
    header : mapping
        See `result_of`.
    root : str
        Where DICOMweb's resources begin.

    Returns
    -------
    dict
        Elements by their tag.
    """
    result = {tag: header[tag] for tag in query.counted & header.keys()}
    result |= {STUDY: _of("UI", row.study), AVAILABILITY: _of("CS", "ONLINE")}
    url = f"{root}/studies/{row.study}"
    if row.series is not None:
        url += f"/series/{row.series}"
        result[SERIES] = _of("UI", row.series)
    if row.instance is not None:
        url += f"/instances/{row.instance}"
        result[INSTANCE] = _of("UI", row.instance)
        if row.transfer_syntax:
            result[TRANSFER_SYNTAX] = _of("UI", row.transfer_syntax)
    result[RETRIEVE_URL] = _of("UR", url)
    return result


def counts_of(level: str, series: int, instances: int) -> Header:
    """Return the counts of a row as elements.

    Parameters
    ----------
    level : {"study", "series", "instance"}
        Level of the row.
    series, instances : int
        How many the index has of it.

    Returns
    -------
    mapping
        Elements by their tag; those of modalities are not among them.
    """
    if level == "study":
        return {SERIES_OF_STUDY: _of("IS", series), INSTANCES_OF_STUDY: _of("IS", instances)}
    return {INSTANCES_OF_SERIES: _of("IS", instances)} if level == "series" else {}


def modalities_of(headers: Iterable[Header]) -> dict[str, Any]:
    """Return the modalities of series, each by a header of it."""
    values = [(header.get(_MODALITY, {}).get("Value") or [None])[0] for header in headers]
    return element_of(sorted({str(value) for value in values if value}))


def element_of(counted: int | list[str]) -> dict[str, Any]:
    """Return a number, or the modalities of a study, as an element."""
    if isinstance(counted, int):
        return _of("IS", counted)
    return {"vr": "CS", "Value": counted} if counted else {"vr": "CS"}


def _of(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def to_json(results: list[dict[str, Any]]) -> bytes:
    """Return results as the body of a response."""
    return json.dumps(results, ensure_ascii=False, separators=(",", ":")).encode()
