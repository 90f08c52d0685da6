"""What matches a search (PS3.4 C.2.2.2); `search_index.sql` has the same rules for `rule_of`."""

from __future__ import annotations

import fnmatch
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from itertools import zip_longest
from math import isfinite
from typing import Any

from voxtier.frames.dicom.moments import MOMENT_VRS, Bounds, bounds_of, span_of
from voxtier.frames.gateway.search.keywords import TIMES
from voxtier.frames.indexing.headers import texts

Header = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2)."""

# Neither a comma nor a backslash is part of their values (PS3.5 6.2): there they stand between several.
_LISTED = ("UI", "CS")
_NUMBERS = ("IS", "DS", "US", "UL", "SS", "SL", "SV", "UV", "FL", "FD")
_MIDNIGHT = "000000"
_PRECISION = {"FL": "<f", "FD": "<d"}
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")


def fits(header: Header, keys: Mapping[tuple[str, ...], str]) -> bool:
    """Return whether a data set matches keys, each of which is a path of tags and a value.

    Those of one sequence must match in one of its Items (PS3.4 C.2.2.2.6).
    """
    own: dict[str, str] = {}
    below: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    for tags, wanted in keys.items():
        if len(tags) == 1:
            own[tags[0]] = wanted
        else:
            below[tags[0]][tags[1:]] = wanted
    return (
        all(_is_between(header, *pair, span) for pair, span in take_spans(own).items())
        and all(matches(header.get(tag), wanted) for tag, wanted in own.items())
        and all(any(fits(item, each) for item in _items(header, tag)) for tag, each in below.items())
    )


def take_spans(keys: dict[str, str]) -> dict[tuple[str, str], Bounds]:
    """Remove ranges of a date and its time from the keys of one level; return them as one range for both."""
    spans = {}
    for date in keys.keys() & TIMES.keys():
        time = TIMES[date]
        span = span_of(keys[date], keys[time]) if time in keys else None
        if span is not None:
            spans[date, time] = span
            del keys[date], keys[time]
    return spans


def _is_between(header: Header, date: str, time: str, span: Bounds) -> bool:
    """Return whether a date with its time is in a range; one without a time counts as its first moment."""
    pairs = zip_longest(texts(header.get(date)), texts(header.get(time)), fillvalue="")
    return any(day and span.hold(day + (clock or _MIDNIGHT)) for day, clock in pairs)


def _items(header: Header, tag: str) -> list[Header]:
    """Return the Items of a sequence; where it has none, an empty one, in which * matches."""
    sequence = header.get(tag, {})
    items = sequence.get("Value", []) if sequence.get("vr") == "SQ" else []
    return list(filter(None, items)) or [{}]


def matches(element: Mapping[str, Any] | None, wanted: str) -> bool:
    """Return whether an element matches a value (PS3.4 C.2.2.2): one of its values is enough.

    Parameters
    ----------
    element : mapping or None
        The element in the DICOM JSON model; None where the header has none.
    wanted : str
        A value, with wildcards ``*`` and ``?``; a range ``from-to`` for dates and times; UIDs or coded
        strings (CS) with commas or backslashes between them, of which one is enough. ``*`` alone matches
        whatever is there, and what has no value.

    Returns
    -------
    bool
        Names of persons match in any case, numbers, dates and times by what they mean.
    """
    if _is_any(wanted):
        return True
    vr = (element or {}).get("vr", "")
    values = texts(element)
    if vr in MOMENT_VRS:
        return any(map(bounds_of(vr, wanted).hold, values))
    if vr in _NUMBERS:
        number = _number(_rounded(vr, wanted))
        return wanted in values or (number is not None and number in map(_number, values))
    patterns = [fnmatch.translate(each.replace("[", "[[]")) for each in _patterns(vr, wanted)]
    return any(re.match(pattern, value) for pattern in patterns for value in values or [""])


def rule_of(wanted: str) -> dict[str, Any]:
    """Return what a value asks for, for the search index: by VR, that of all others under no name.

    Nothing where anything matches; moments as `Bounds`, patterns as those of LIKE.
    """
    if _is_any(wanted):
        return {}
    rule: dict[str, Any] = {vr: bounds_of(vr, wanted) for vr in MOMENT_VRS}
    rule |= {vr: list(map(_like, _patterns(vr, wanted))) for vr in (*_LISTED, "PN", "")}
    return (
        rule | {"text": wanted} | {vr: _rounded(vr, wanted) for vr in _NUMBERS if _number(wanted) is not None}
    )


def _is_any(wanted: str) -> bool:
    return not wanted.strip("*")


def _patterns(vr: str, wanted: str) -> list[str]:
    """Return patterns of DICOM, with * and ?, of which one must match."""
    if vr in _LISTED:
        return [each for each in re.split(r"[,\\]", wanted) if each]
    return [wanted.casefold() if vr == "PN" else wanted]


def _rounded(vr: str, text: str) -> str:
    """Return a number as an element holds it: FL in single, FD in double precision, all others as it is."""
    if vr not in _PRECISION or not _NUMBER.fullmatch(text):
        return text
    try:
        [value] = struct.unpack(_PRECISION[vr], struct.pack(_PRECISION[vr], float(text)))
    except OverflowError:
        return text
    return repr(value) if isfinite(value) else text


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _like(pattern: str) -> str:
    """Return a pattern of DICOM as one of LIKE."""
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
