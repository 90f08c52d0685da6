"""Searches of QIDO-RS (PS3.18 8.3.4): what a query string asks for, and what matches it (PS3.4 C.2.2.2)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from voxtier.errors import ConfigError
from voxtier.frames.gateway.keywords import is_parameter, tag_of
from voxtier.frames.indexing.search import texts
from voxtier.frames.store.search_index import INSTANCE, SERIES, STUDY

Header = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2)."""

MOST_RESULTS = 1000
_UIDS = (STUDY, SERIES, INSTANCE)
AVAILABILITY, RETRIEVE_URL, MODALITIES = "00080056", "00081190", "00080061"
SERIES_OF_STUDY, INSTANCES_OF_STUDY, INSTANCES_OF_SERIES = "00201206", "00201208", "00201209"
TRANSFER_SYNTAX = "00083002"
COMPUTED_TAGS = {
    "study": {AVAILABILITY, RETRIEVE_URL, MODALITIES, SERIES_OF_STUDY, INSTANCES_OF_STUDY},
    "series": {AVAILABILITY, RETRIEVE_URL, INSTANCES_OF_SERIES},
    "instance": {AVAILABILITY, RETRIEVE_URL, TRANSFER_SYNTAX},
}
"""What results of a level say beside the header of a file."""

# Parameters of PS3.18 8.3.4 that change how values match; what is answered then, in its words.
_WAYS_OF_MATCHING = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_ONLY_LITERAL = "The {} parameter is not supported. Only literal matching has been performed."
_IGNORED = "Query parameters that are not supported have been ignored."
# Neither a comma nor a backslash is part of their values (PS3.5 6.2): there they stand between several.
_LISTED = ("UI", "CS")
_NUMBERS = ("IS", "DS", "US", "UL", "SS", "SL")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
# -1200 to +1400 (PS3.5 6.2); what else follows a hyphen ends a range.
_OFFSET = r"(?:-(?:0[0-9]|1[01])[0-5][0-9]|-1200|\+(?:0[0-9]|1[0-3])[0-5][0-9]|\+1400)"
_WITH_OFFSET = re.compile(rf"[0-9.]+{_OFFSET}")
_RANGE = {vr: re.compile(r"([^-]*)-(.*)", re.DOTALL) for vr in ("DA", "TM")}
_RANGE["DT"] = re.compile(rf"([0-9.]*{_OFFSET}?)-(.*)", re.DOTALL)


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
    warnings : tuple of str
        Sentences about what was asked for and is not done.
    """

    level: str
    uids: dict[str, list[str]]
    matches: dict[tuple[str, ...], str]
    included: set[str]
    limit: int
    offset: int
    warnings: tuple[str, ...]


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
        An attribute, a number or a UID is none, or an attribute is not known at this level.
    """
    parts = path.split("/")
    level = {"studies": "study", "series": "series", "instances": "instance"}[parts[-1]]
    uids: dict[str, list[str]] = {}
    matches: dict[tuple[str, ...], str] = {}
    included: set[str] = set()
    numbers = {"limit": MOST_RESULTS, "offset": 0}
    warnings = set()
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
        elif name in _WAYS_OF_MATCHING:
            warnings |= {_ONLY_LITERAL.format(name)} if value.lower() == "true" else set()
        elif name == "includefield":
            included |= {"all" if each == "all" else _path(each)[0] for each in value.split(",") if each}
        elif name in ("accept", "charset"):
            continue
        elif is_parameter(name):
            warnings.add(_IGNORED)
        else:
            tags = _path(name)
            if tags[0] in _UIDS and len(tags) == 1:
                _add_uids(uids, tags[0], [uid for uid in re.split(r"[,\\]", value) if uid])
            elif "\0" in value:
                raise ConfigError(f"{name}: a value has no NUL")
            elif value:
                _check_level(name, tags, level)
                matches[tags] = value
    limit = min(numbers["limit"], MOST_RESULTS)
    return Query(level, uids, matches, included, limit, numbers["offset"], tuple(sorted(warnings)))


def _add_uids(uids: dict[str, list[str]], tag: str, given: list[str]) -> None:
    if any(not re.fullmatch(r"[0-9.]{1,64}", uid) for uid in given):
        raise ConfigError("a UID has at most 64 digits and points")
    if given:
        uids[tag] = [uid for uid in given if tag not in uids or uid in uids[tag]]


def _check_level(name: str, tags: tuple[str, ...], level: str) -> None:
    """Refuse an attribute that is computed for another level: no file has it, so that nothing would match."""
    levels = [each for each, computed in COMPUTED_TAGS.items() if tags[0] in computed]
    if levels and level not in levels and len(tags) == 1:
        raise ConfigError(f"{name} is known of a {levels[0]} alone: search there, not for a {level}")


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
    sequence = header.get(tags[0], {})
    items = sequence.get("Value", []) if sequence.get("vr") == "SQ" else []
    return [found for item in items if item for found in elements(item, tags[1:])] or [None]


def matches(element: Mapping[str, Any] | None, wanted: str) -> bool:
    """Return whether an element matches a value (PS3.4 C.2.2.2): one of its values is enough.

    Parameters
    ----------
    element : mapping or None
        The element in the DICOM JSON model; None where the header has none.
    wanted : str
        A value, with wildcards ``*`` and ``?``; a range ``from-to`` for dates and times; UIDs or
        coded strings (CS) with commas or backslashes between them, of which one is enough. ``*`` alone matches whatever is there, and what has no value.

    Returns
    -------
    bool
        Names of persons match in any case, numbers by their value.
    """
    if wanted.strip("*") == "":
        return True
    vr = (element or {}).get("vr", "")
    values = texts(element)
    if vr in _RANGE:
        bounds = None if vr == "DT" and _WITH_OFFSET.fullmatch(wanted) else _RANGE[vr].fullmatch(wanted)
        if bounds is None:
            return wanted in values
        first, last = bounds.groups()
        return any((not first or value >= first) and (not last or value <= last + "~") for value in values)
    if vr in _NUMBERS:
        number = _number(wanted)
        return wanted in values or (number is not None and number in map(_number, values))
    given = re.split(r"[,\\]", wanted) if vr in _LISTED else [wanted.casefold() if vr == "PN" else wanted]
    patterns = [fnmatch.translate(each.replace("[", "[[]")) for each in given if each]
    return any(re.match(pattern, value) for pattern in patterns for value in values or [""])


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None
