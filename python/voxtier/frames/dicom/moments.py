"""Dates and times (DA, TM, DT of PS3.5 6.2) as text that sorts by what they mean, and ranges of them.

What cannot be read stays as it is written. Searches compare with these; the search index keeps the same text.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

MOMENT_VRS = ("DA", "TM", "DT")

_OLD_DATE = re.compile(r"([0-9]{4})\.([0-9]{2})\.([0-9]{2})")
_TIME = re.compile(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(\.[0-9]{1,6})?)?)?")
# -1200 to +1400 (PS3.5 6.2); what else follows a hyphen ends a range.
_OFFSET = r"(?:-(?:0[0-9]|1[01])[0-5][0-9]|-1200|\+(?:0[0-9]|1[0-3])[0-5][0-9]|\+1400)"
_WITH_OFFSET = re.compile(rf"[0-9.]+{_OFFSET}")
_MOMENT = re.compile(rf"([0-9]{{4}}(?:[0-9]{{2}}){{0,5}})((?<=[0-9]{{14}})\.[0-9]{{1,6}})?({_OFFSET})?")
_RANGE = {vr: re.compile(r"([^-]*)-(.*)", re.DOTALL) for vr in ("DA", "TM")}
_RANGE["DT"] = re.compile(rf"([0-9.]*{_OFFSET}?)-(.*)", re.DOTALL)
# Sorts behind all that begins with the text before it.
_END = "~"


class Bounds(NamedTuple):
    """First and last moment of a range, as text that sorts, and both in UTC where they have an offset."""

    first: str
    first_utc: str
    last: str
    last_utc: str

    def hold(self, value: str) -> bool:
        """Return whether a value, as `sortable` returns it, is in the range.

        By UTC where value and bound tell their offset (PS3.4 C.2.2.2.5.3 d); else their clocks are one.
        """
        local, utc = [*value.split("\t"), ""][:2]
        first, of_first = (self.first_utc, utc) if utc and self.first_utc else (self.first, local)
        last, of_last = (self.last_utc, utc) if utc and self.last_utc else (self.last, local)
        return (not first or of_first >= first) and (not last or of_last <= last)


def sortable(vr: str, text: str) -> str:
    """Return a date (DA), time (TM) or both (DT) as text that sorts.

    What is not written counts as its first moment: 10 is 10:00:00. Behind a DT with an offset stands a tab
    and the same moment in UTC.
    """
    return "\t".join(filter(None, _read(vr, text)))


@lru_cache(256)  # a search asks the same of every header
def bounds_of(vr: str, wanted: str) -> Bounds:
    """Return what a value or a range of a search asks for (PS3.4 C.2.2.2.5).

    The end of a range holds all that begins with it: 1800 ends with the minute, 2026 with the year.
    """
    found = _range(vr, wanted)
    if found is None:
        single = _read(vr, wanted)
        return Bounds(*single, *single)
    first, last = found
    return Bounds(*_read(vr, first), *_read(vr, last, is_end=True))


@lru_cache(256)
def span_of(date: str, time: str) -> Bounds | None:
    """Return a range of dates and one of times as one of moments (PS3.4 C.2.2.2.5.4).

    Parameters
    ----------
    date, time : str
        Values of a search: `from-to`, `from-` or `-to`, both of the same form.

    Returns
    -------
    Bounds or None
        For a date with the time behind it, each as `sortable` returns it. None where the two are no such
        pair: each matches for itself then.
    """
    dates, times = _range("DA", date), _range("TM", time)
    if dates is None or times is None or list(map(bool, dates)) != list(map(bool, times)):
        return None
    days = [_OLD_DATE.sub(r"\1\2\3", day) for day in dates]
    if any(day and not re.fullmatch(r"[0-9]{8}", day) for day in days):
        return None
    if any(moment and not _TIME.fullmatch(moment) for moment in times):
        return None
    clock = bounds_of("TM", time)
    return Bounds(days[0] + clock.first, "", days[1] + clock.last, "")


def _range(vr: str, wanted: str) -> tuple[str, str] | None:
    is_moment = vr == "DT" and _WITH_OFFSET.fullmatch(wanted)
    match = None if is_moment else _RANGE[vr].fullmatch(wanted)
    return None if match is None else (match[1], match[2])


def _read(vr: str, text: str, *, is_end: bool = False) -> tuple[str, str]:
    """Return a moment as text that sorts, and in UTC if it tells its offset; an end with all of it."""
    if not text:
        return "", ""
    mark = _END if is_end else ""
    if vr == "DA":
        return _OLD_DATE.sub(r"\1\2\3", text) + mark, ""
    if vr == "DT":
        local, utc = _read_date_and_time(text, is_end=is_end)
        return local + mark, utc and utc + mark
    match = _TIME.fullmatch(text)
    if match is None:
        return text + mark, ""
    digits, fraction = "".join(part or "" for part in match.groups()[:3]), match[4] or ""
    return (digits + fraction + mark, "") if is_end else (digits.ljust(6, "0") + _short(fraction), "")


def _read_date_and_time(text: str, *, is_end: bool) -> tuple[str, str]:
    match = _MOMENT.fullmatch(text)
    if match is None:
        return text, ""
    digits, fraction, offset = match[1], match[2] or "", match[3]
    fraction = fraction if is_end else _short(fraction)
    if is_end:
        digits += "12" if len(digits) == 4 else ""
        try:
            digits += f"{monthrange(int(digits[:4]), int(digits[4:6]))[1]}" if len(digits) < 8 else ""
        except ValueError:  # a month that is none
            return text, ""
    local = digits + ("00000000235959" if is_end else "00000101000000")[len(digits) :]
    try:
        if not offset:
            return local + fraction, ""
        minutes = int(f"{offset[0]}1") * (int(offset[1:3]) * 60 + int(offset[3:]))
        month, day, hour, minute = (int(local[at : at + 2]) for at in range(4, 12, 2))
        utc = datetime(int(local[:4]), month, day, hour, minute) - timedelta(minutes=minutes)
    except (ValueError, OverflowError):
        return local + fraction, ""
    # Whole minutes alone differ; %Y writes no zeros before a year.
    return local + fraction, f"{utc.year:04}{utc:%m%d%H%M}{local[12:]}{fraction}"


def _short(fraction: str) -> str:
    """Return a fraction of a second without the zeros that say nothing."""
    return fraction.rstrip("0").rstrip(".")
