"""What matches a search (PS3.4 C.2.2.2); `search_index.sql` has the same rules for `rule_of`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from voxtier.frames.dicom.moments import MOMENT_VRS, bounds_of
from voxtier.frames.indexing.search import texts

Header = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2)."""

# Neither a comma nor a backslash is part of their values (PS3.5 6.2): there they stand between several.
_LISTED = ("UI", "CS")
_NUMBERS = ("IS", "DS", "US", "UL", "SS", "SL")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")


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
        number = _number(wanted)
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
    return rule | {"text": wanted, "number": None if _number(wanted) is None else wanted}


def _is_any(wanted: str) -> bool:
    return not wanted.strip("*")


def _patterns(vr: str, wanted: str) -> list[str]:
    """Return patterns of DICOM, with * and ?, of which one must match."""
    if vr in _LISTED:
        return [each for each in re.split(r"[,\\]", wanted) if each]
    return [wanted.casefold() if vr == "PN" else wanted]


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _like(pattern: str) -> str:
    """Return a pattern of DICOM as one of LIKE."""
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
