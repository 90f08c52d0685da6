"""Lists around keys that the client cannot name: ``a//b``, ``a/./b``, ``a/../b``, and control codes.

obstore fails on the whole answer that holds one (1,000 keys). What lies before it in that answer is found by
way of the folders above it then, and the listing goes on behind all that begin with the same fault.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from voxtier.errors import KeyFaultError, SourceError
from voxtier.frames.sources.stores import Listed, Store
from voxtier.system.text import on_one_line

_log = logging.getLogger(__name__)
_MOST_WARNINGS = 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Fault(NamedTuple):
    """Why the client cannot name a key.

    Attributes
    ----------
    folder : str
        The folder in which it is found.
    start : str
        The key up to the end of the faulty name, with a slash behind ``.`` and ``..``.
    past : str
        The first key behind those.
    hides : bool
        Whether it hides more names of the folder than those that come before ``/``.
    """

    folder: str
    start: str
    past: str
    hides: bool


def fault_of(key: str) -> Fault | None:
    """Return the first fault of a key; None where it has none."""
    parts = key.split("/")
    for at, part in enumerate(parts):
        folder = "/".join(parts[:at])
        above = "/".join([*parts[:at], ""])
        control = _CONTROL.search(part)
        if part in ("", ".", ".."):
            return Fault(folder, f"{above}{part}/", f"{above}{part}0", hides=False)  # '0' is next to '/'
        if control:
            start = above + part[: control.end()]
            return Fault(folder, start, start[:-1] + ("\x80" if control[0] == "\x7f" else " "), hides=True)
    return None


class Unnamed(NamedTuple):
    """What all keys with the same fault begin with; or a key that may lie there, but cannot be looked at."""

    start: str


def list_around_faults(store: Store, prefix: str) -> Iterator[Listed | Unnamed]:
    """Yield the objects below a prefix in the order of their keys, and how those begin that cannot be named.

    Parameters
    ----------
    store : Store
        A store.
    prefix : str
        The folder; empty for all.

    Yields
    ------
    Listed or Unnamed
        In bounded memory where there is no fault; the entries of each folder above one are kept.

    Raises
    ------
    SourceError
        The store refuses. `KeyFaultError` where objects near a fault are missing, at the end where the others
        can be listed: there are faults in a folder and in one below it, keys have control codes or begin with
        a slash, or the store does not begin where it is asked to, or has no order.
    """
    last = newest = ""  # all keys up to the first are through; the second was yielded
    is_ordered = True
    work: list[str | Listed] = [prefix]
    entries: dict[str, list[tuple[str, str | Listed]] | None] = {}  # of folders in work, None where hidden
    met: set[tuple[str, str]] = set()
    unresolved: KeyFaultError | None = None
    told = 0
    while work:
        item = work.pop()
        if isinstance(item, Listed):
            if item.key > last:
                last = newest = item.key
                yield item
            continue
        try:
            is_inside = last.startswith(f"{item}/") or not item
            for each in store.list(item, after=last if is_inside else ""):
                is_ordered &= each.key >= last or last.startswith(each.key)  # a folder's own lost its slash
                last = max(last, each.key)
                if each.key != newest:  # such a one comes again where the listing goes on
                    newest = each.key
                    yield each
            entries.pop(item, None)
            continue
        except KeyFaultError as error:
            broken = error
        fault = fault_of(broken.key)
        if fault is None or not is_ordered:
            raise broken
        is_met = (item, fault.start) in met
        met.add((item, fault.start))
        if fault.folder != item:
            # On by the folders that come before the one with the fault, then that one, then behind it.
            if item not in entries:
                entries[item] = _entries(store, item)
            level, child = entries[item], _child(item, fault.folder)
            if is_met or level is None:
                unresolved = unresolved or broken
            if not is_met:
                work.append(item)
            if level is None:
                work.append(child)
                continue
            is_inside = (
                last.startswith(f"{item}/") or not item
            )  # then the entry that it lies in may hold more
            first = bisect_left(level, _child(item, last) if is_inside else last, key=itemgetter(0))
            past = len(level) if is_met else bisect_right(level, f"{child}/", key=itemgetter(0))
            work += [each for key, each in reversed(level[first:past]) if key > last or last.startswith(key)]
            continue
        if is_met or fault.hides:
            unresolved = unresolved or broken
        if is_met:
            continue
        told += 1
        if told <= _MOST_WARNINGS:
            _log.warning(
                "%s: the client cannot name keys that begin so. They are not listed, and nor are objects "
                "beside them in this folder %s: copy them to other keys",
                on_one_line(f"{store.root}/{fault.start}"),
                "that come before them"
                if fault.hides
                else "whose names begin with less than '/', such as '-'",
            )
        yield Unnamed(fault.start)
        work.append(item)
        last = fault.past  # if it is less, keys began with a slash, which the client drops
        try:
            found = store.find(fault.past)  # a listing goes on behind this key
        except SourceError:
            yield Unnamed(fault.past)
        else:
            if found is not None:
                yield found
    if told > _MOST_WARNINGS:
        _log.warning("%s/%s: %d more such faults", store.root, prefix, told - _MOST_WARNINGS)
    if unresolved is not None:
        raise KeyFaultError(unresolved.key, f"{unresolved.detail}. Objects near it may be missing")


def _entries(store: Store, folder: str) -> list[tuple[str, str | Listed]] | None:
    """Return what lies directly in a folder in the order of the keys; None where a fault hides it."""
    try:
        folders, objects = store.entries(folder)
    except KeyFaultError:
        return None
    if "" in folders:  # keys with a slash at their beginning, which the client drops
        return None
    found: list[tuple[str, str | Listed]] = [(each.key, each) for each in objects]
    found += [(f"{each}/", each) for each in folders]
    return sorted(found, key=lambda pair: pair[0])


def _child(folder: str, below: str) -> str:
    """Return the folder directly in another one in which something lies."""
    end = below.find("/", len(folder) + 1 if folder else 0)
    return below if end < 0 else below[:end]
