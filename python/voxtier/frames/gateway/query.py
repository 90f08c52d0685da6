"""Searches of QIDO-RS (PS3.18 8.3.4): what a query string asks for, and what matches it (PS3.4 C.2.2.2)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from voxtier.errors import ConfigError
from voxtier.frames.gateway.keywords import tag_of
from voxtier.frames.indexing.search import texts
from voxtier.frames.store.search_index import INSTANCE, SERIES, STUDY

Header = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2)."""

MOST_RESULTS = 1000
_UIDS = (STUDY, SERIES, INSTANCE)


class Query(NamedTuple):
    """A search: its level, what must match, what is returned.

    Attributes
    ----------
    level : {"study", "series", "instance"}
        What is searched for.
    uids : dict
        UIDs by the tag of their attribute.
    matches : dict
        Values of other attributes, by their tag behind those of the sequences that they stand in.
    included : set of str
        Further tags to return; ``all`` for every attribute of the header.
    limit, offset : int
        Window of the results.
    is_fuzzy : bool
        Whether the client asked for fuzzy matching, which is answered literally.
    """

    level: str
    uids: dict[str, list[str]]
    matches: dict[tuple[str, ...], str]
    included: set[str]
    limit: int
    offset: int
    is_fuzzy: bool


def parse(path: str, query: str) -> Query:
    """Read a search.

    Parameters
    ----------
    path : str
        Path below the root, such as ``studies/1.2/series``.
    query : str
        The query string as it was sent.

    Returns
    -------
    Query
        The search.

    Raises
    ------
    ConfigError
        An attribute, a number or a UID is none.
    """
    parts = path.split("/")
    level = {"studies": "study", "series": "series", "instances": "instance"}[parts[-1]]
    uids: dict[str, list[str]] = {}
    matches: dict[tuple[str, ...], str] = {}
    included: set[str] = set()
    numbers = {"limit": MOST_RESULTS, "offset": 0}
    is_fuzzy = False
    for tag, uid in zip((STUDY, SERIES), parts[1:-1:2], strict=False):
        _add_uids(uids, tag, [uid])
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=200, errors="strict")
    except ValueError:
        raise ConfigError("the query is not UTF-8, or has more than 200 parameters") from None
    for name, value in fields:
        if name in numbers:
            if not re.fullmatch(r"[0-9]{1,9}", value):
                raise ConfigError(f"{name}={value[:40]!r} is no number")
            numbers[name] = int(value)
        elif name == "fuzzymatching":
            is_fuzzy = value.lower() == "true"
        elif name == "includefield":
            included |= {"all" if each == "all" else _path(each)[0] for each in value.split(",") if each}
        elif name in ("emptyvaluematching", "multiplevaluematching", "accept"):
            continue
        else:
            tags = _path(name)
            if tags[0] in _UIDS and len(tags) == 1:
                _add_uids(uids, tags[0], [uid for uid in re.split(r"[,\\]", value) if uid])
            elif "\0" in value:
                raise ConfigError(f"{name}: a value has no NUL")
            elif value:
                matches[tags] = value
    limit = min(numbers["limit"], MOST_RESULTS)
    return Query(level, uids, matches, included, limit, numbers["offset"], is_fuzzy)


def _add_uids(uids: dict[str, list[str]], tag: str, given: list[str]) -> None:
    if any(not re.fullmatch(r"[0-9.]{1,64}", uid) for uid in given):
        raise ConfigError("a UID has at most 64 digits and points")
    if given:
        uids[tag] = [uid for uid in given if tag not in uids or uid in uids[tag]]


def _path(name: str) -> tuple[str, ...]:
    """Return the tags of an attribute: the sequences that it stands in, then its own."""
    tags = tuple(tag_of(part) or "" for part in name.split("."))
    if not all(tags):
        raise ConfigError(f"{name[:80]!r} is neither a tag (8 hexadecimal digits) nor a keyword of DICOM")
    return tags


def elements(header: Header, tags: Sequence[str]) -> list[Mapping[str, Any] | None]:
    """Return the elements at a path, one for each Item of the sequences around it; None for an absent one."""
    if len(tags) == 1:
        return [header.get(tags[0])]
    items = header.get(tags[0], {}).get("Value", [])
    return [found for item in items if item for found in elements(item, tags[1:])] or [None]


def matches(element: Mapping[str, Any] | None, wanted: str) -> bool:
    """Return whether an element matches a value (PS3.4 C.2.2.2): one of its values is enough.

    Parameters
    ----------
    element : mapping or None
        The element in the DICOM JSON model; None where the header has none.
    wanted : str
        A value, with wildcards ``*`` and ``?``; a range ``from-to`` for dates and times.

    Returns
    -------
    bool
        Names of persons match in any case.
    """
    vr = (element or {}).get("vr", "")
    values = texts(element)
    has_offset = vr == "DT" and re.search(r"[+-][0-9]{4}$", wanted)  # of a time zone
    if vr in ("DA", "TM", "DT") and "-" in wanted and not has_offset:
        first, _, last = wanted.partition("-")
        return any((not first or value >= first) and (not last or value <= last + "~") for value in values)
    if vr in ("DA", "TM", "DT", "IS", "DS", "US", "UL", "SS", "SL"):
        return wanted in values
    if wanted.strip("*") == "":
        return True
    pattern = fnmatch.translate((wanted.casefold() if vr == "PN" else wanted).replace("[", "[[]"))
    return any(re.match(pattern, value) for value in values or [""])
