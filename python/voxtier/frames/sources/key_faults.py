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
    walk = _Walk(store, prefix)
    yield from walk.keys()
    if walk.told > _MOST_WARNINGS:
        _log.warning("%s/%s: %d more such faults", store.root, prefix, walk.told - _MOST_WARNINGS)
    if walk.unresolved is not None:
        fault = walk.unresolved
        raise KeyFaultError(fault.key, f"{fault.detail}. Objects near it may be missing")


class _Walk:
    """One listing: what is through, what is left, which faults were met.

    Attributes
    ----------
    told : int
        Faults that the user was, or is to be, told of.
    unresolved : KeyFaultError or None
        The first one near which objects may be missing.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.told = 0
        self.unresolved: KeyFaultError | None = None
        self._store = store
        self._left: list[str | Listed] = [prefix]  # folders and objects, the next one last
        self._last = ""  # all keys up to it are through
        self._newest = ""  # the key that was yielded last
        self._is_ordered = True
        self._entries: dict[str, list[tuple[str, str | Listed]] | None] = {}  # of folders; None where hidden
        self._met: set[tuple[str, str]] = set()

    def keys(self) -> Iterator[Listed | Unnamed]:
        """Yield what `list_around_faults` does."""
        while self._left:
            item = self._left.pop()
            if isinstance(item, Listed):
                if item.key > self._last:
                    self._last = self._newest = item.key
                    yield item
                continue
            try:
                yield from self._below(item)
                self._entries.pop(item, None)
                continue
            except KeyFaultError as error:
                broken = error
            fault = fault_of(broken.key)
            if fault is None or not self._is_ordered:
                raise broken
            is_met = (item, fault.start) in self._met  # it was to be behind us
            self._met.add((item, fault.start))
            if fault.folder != item:
                is_resolved = self._go_by_folders(item, _child(item, fault.folder), to_end=is_met)
            else:
                is_resolved = not fault.hides
                if not is_met:
                    yield from self._go_past(item, fault)
            if is_met or not is_resolved:
                self.unresolved = self.unresolved or broken

    def _below(self, folder: str) -> Iterator[Listed]:
        """Yield the objects below a folder that are not through."""
        for each in self._store.list(folder, after=self._last if self._is_in(folder) else ""):
            # A folder's own object lost its slash, and comes late.
            self._is_ordered &= each.key >= self._last or self._last.startswith(each.key)
            self._last = max(self._last, each.key)
            if each.key != self._newest:  # such a one comes again where the listing goes on
                self._newest = each.key
                yield each

    def _is_in(self, folder: str) -> bool:
        return self._last.startswith(f"{folder}/") or not folder

    def _go_by_folders(self, folder: str, child: str, *, to_end: bool) -> bool:
        """Go on by what comes before an inner folder that holds a fault, then in that one, then behind it.

        Parameters
        ----------
        folder, child : str
            The folder that cannot be listed at once, and the one directly in it that holds the fault.
        to_end : bool
            Whether to go by all entries to the end: the store does not begin behind the fault.

        Returns
        -------
        bool
            Whether the entries are known.
        """
        if folder not in self._entries:
            self._entries[folder] = _entries(self._store, folder)
        entries = self._entries[folder]
        if not to_end:
            self._left.append(folder)
        if entries is None:
            self._left.append(child)
            return False
        # The entry in which the last key lies may hold more.
        begin = _child(folder, self._last) if self._is_in(folder) else self._last
        first = bisect_left(entries, begin, key=itemgetter(0))
        past = len(entries) if to_end else bisect_right(entries, f"{child}/", key=itemgetter(0))
        self._left += [
            each
            for key, each in reversed(entries[first:past])
            if key > self._last or self._last.startswith(key)
        ]
        return True

    def _go_past(self, folder: str, fault: Fault) -> Iterator[Listed | Unnamed]:
        """Go on in a folder behind all keys with a fault that is directly in it."""
        self.told += 1
        if self.told <= _MOST_WARNINGS:
            hidden = "that come before them" if fault.hides else "whose names begin with less than '/'"
            _log.warning(
                "%s: the client cannot name keys that begin so. They are not listed, and nor are objects "
                "beside them in this folder %s: copy them to other keys",
                on_one_line(f"{self._store.root}/{fault.start}"),
                hidden,
            )
        yield Unnamed(fault.start)
        self._left.append(folder)
        self._last = fault.past  # if it is less, keys began with a slash, which the client drops
        try:
            found = self._store.find(fault.past)  # a listing goes on behind this key
        except SourceError:
            yield Unnamed(fault.past)
        else:
            if found is not None:
                yield found


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
