"""Searches of QIDO-RS (PS3.18 8.3.4): what a query string asks for."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from voxtier.errors import ConfigError
from voxtier.frames.gateway.search.keywords import is_parameter, tag_of
from voxtier.frames.store.search_index import INSTANCE, SERIES, STUDY

MOST_RESULTS = 1000
# No index has so many rows, and the database knows no much larger number; Python reads no digits without end.
LAST = 10**18
_UIDS = (STUDY, SERIES, INSTANCE)
AVAILABILITY, RETRIEVE_URL, MODALITIES = "00080056", "00081190", "00080061"
SERIES_OF_STUDY, INSTANCES_OF_STUDY, INSTANCES_OF_SERIES = "00201206", "00201208", "00201209"
TRANSFER_SYNTAX = "00083002"
LEVELS = ("study", "series", "instance")
COUNTED_TAGS = {
    "study": frozenset((MODALITIES, SERIES_OF_STUDY, INSTANCES_OF_STUDY)),
    "series": frozenset((INSTANCES_OF_SERIES,)),
    "instance": frozenset[str](),
}
"""What is found out of each study and series by all of its rows."""
_COMPUTED_OF_EACH = {AVAILABILITY, RETRIEVE_URL}
COMPUTED_TAGS = {
    "study": _COMPUTED_OF_EACH | COUNTED_TAGS["study"],
    "series": _COMPUTED_OF_EACH | COUNTED_TAGS["study"] | COUNTED_TAGS["series"],
    "instance": _COMPUTED_OF_EACH | COUNTED_TAGS["study"] | COUNTED_TAGS["series"] | {TRANSFER_SYNTAX},
}
"""What results of a level may say beside the header of a file."""

# Specific Character Set and Timezone Offset From UTC say how the other keys are meant (PS3.4 C.2.2.2).
_NEVER_MATCHED = (("00080005",), ("00080201",))
# Parameters of PS3.18 8.3.4 that change how values match; what is answered then, in its words.
_WAYS_OF_MATCHING = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_ONLY_LITERAL = "The {} parameter is not supported. Only literal matching has been performed."
_IGNORED = "Query parameters that are not supported have been ignored."


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
        Further tags to return, those of `matches` among them; ``all`` for every attribute of the header.
    counted : set of str
        Those of `COUNTED_TAGS` to return: of the levels that the path does not name, and what is included,
        which ``all`` are. No file says them.
    limit, offset : int
        Window of the results.
    warnings : tuple of str
        Sentences about what was asked for and is not done.
    """

    level: str
    uids: dict[str, list[str]]
    matches: dict[tuple[str, ...], str]
    included: set[str]
    counted: set[str]
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
            if not re.fullmatch(r"[0-9]+", value):
                raise ConfigError(f"{name}={value[:40]!r} is no number")
            digits = value.lstrip("0") or "0"
            numbers[name] = int(digits) if len(digits) < 19 else LAST
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
            if tags in _NEVER_MATCHED:
                included.add(tags[0])
            elif tags[0] in _UIDS and len(tags) == 1:
                _add_uids(uids, tags[0], [uid for uid in re.split(r"[,\\]", value) if uid])
            elif "\0" in value:
                raise ConfigError(f"{name}: a value has no NUL")
            elif value:
                _check_level(name, tags, level)
                matches[tags] = value
                included |= _returned(tags)
            elif _is_of_level(tags, level):
                included |= _returned(tags)
    limit = min(numbers["limit"], MOST_RESULTS)
    counted = _counted(level, len(parts) // 2, included)
    return Query(level, uids, matches, included, counted, limit, numbers["offset"], tuple(sorted(warnings)))


def _counted(level: str, named: int, included: set[str]) -> set[str]:
    """Return what is counted: of levels that the path names what is asked for (PS3.18 10.6.3.3.2, .3)."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    told = {tag for each in levels[named:] for tag in COUNTED_TAGS[each]}
    known = {tag for each in levels for tag in COUNTED_TAGS[each]}
    return told | (known if "all" in included else known & included)


def _add_uids(uids: dict[str, list[str]], tag: str, given: list[str]) -> None:
    if any(not re.fullmatch(r"[0-9.]{1,64}", uid) for uid in given):
        raise ConfigError("a UID has at most 64 digits and points")
    if given:
        uids[tag] = [uid for uid in given if tag not in uids or uid in uids[tag]]


def _is_of_level(tags: tuple[str, ...], level: str) -> bool:
    """Return whether an attribute is none that is computed, but for lower levels."""
    levels = [each for each, computed in COMPUTED_TAGS.items() if tags[0] in computed]
    return not levels or level in levels or len(tags) > 1


def _check_level(name: str, tags: tuple[str, ...], level: str) -> None:
    """Refuse an attribute that is computed for lower levels: no file has it, so that nothing would match."""
    if not _is_of_level(tags, level):
        known = " or ".join(each for each, computed in COMPUTED_TAGS.items() if tags[0] in computed)
        raise ConfigError(f"{name} is known of a {known} alone: search there, not for a {level}")


def _returned(tags: tuple[str, ...]) -> set[str]:
    """Return what results hold of an attribute by which was searched (PS3.18 10.6.3.3).

    Of a private one also the element that tells its creator (PS3.5 7.8.1).
    """
    group, block = tags[0][:4], tags[0][4:6]
    is_private = int(group, 16) % 2 == 1 and block >= "10"
    return {tags[0], f"{group}00{block}"} if is_private else {tags[0]}


def _path(name: str) -> tuple[str, ...]:
    """Return the tags of an attribute: the sequences that it stands in, then its own."""
    tags = tuple(tag_of(part) or "" for part in name.split("."))
    if not all(tags):
        raise ConfigError(f"{name[:80]!r} is neither a tag (8 hexadecimal digits) nor a keyword of DICOM")
    return tags
