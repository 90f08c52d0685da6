"""Lists around keys that the client cannot name: ``a//b``, ``a/./b``, ``a/../b``.

obstore fails on the whole answer that holds one (1,000 keys). The listing goes on folder by folder then,
and past the fault: what begins like the key up to its fault is left out, and the key itself is named, to
be refused where it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from voxtier.frames.sources.refusals import KeyFaultError
from voxtier.frames.sources.stores import Listed, Store

_log = logging.getLogger(__name__)


class Unnamed(NamedTuple):
    """The first of the keys that begin with the same fault; the others are not known."""

    key: str


def list_around_faults(store: Store, prefix: str) -> Iterator[Listed | Unnamed]:
    """Yield the objects below a prefix in the order of their keys, and the first key of each fault.

    Parameters
    ----------
    store : Store
        A store that lists in the order of keys.
    prefix : str
        The folder; empty for all.

    Yields
    ------
    Listed or Unnamed
        In bounded memory where there is no fault; else all entries of each folder above one.

    Raises
    ------
    SourceError
        The store refuses. `KeyFaultError` at the end, when all else was yielded, where objects near a
        fault are missing: a store lists from the beginning each time (Azure), or there are faults in a
        folder and in one below it.
    """
    last = ""  # all keys up to it are through
    work: list[str | Listed] = [prefix]
    unresolved: dict[tuple[str, str], KeyFaultError] = {}
    while work:
        item = work.pop()
        if isinstance(item, Listed):
            if item.key > last:
                last = item.key
                yield item
            continue
        try:
            is_inside = last.startswith(f"{item}/") or not item
            for each in store.list(item, after=last if is_inside else ""):
                last = each.key
                yield each
            continue
        except KeyFaultError as error:
            fault = error
        folder, past = _around(fault.key)
        if folder != item:
            try:
                work += reversed(_not_through(*store.entries(item), last))
                continue
            except KeyFaultError as error:
                folder, past = _around(error.key)
                if folder == item and past > last:
                    fault = error  # directly in this folder: it comes first
                elif (item, fault.key) not in unresolved:
                    # A fault that is behind us hides the entries of this folder: on in the next one.
                    unresolved[item, fault.key] = fault
                    work += [item, _child(item, fault.key)]
                    continue
        if folder != item or past <= last:
            unresolved[item, fault.key] = fault
            continue
        yield Unnamed(fault.key)
        _log.warning(
            "%s/%s: the client cannot name keys that begin so. They are not listed, and nor are objects "
            "beside them in this folder whose names begin with a character before '/', such as '-': copy "
            "them to other keys",
            store.root,
            f"{past[:-1]}/",
        )
        work.append(item)
        found = store.find(past)  # a listing goes on behind this key
        if found is not None:
            yield found
        last = past
    for fault in unresolved.values():
        raise fault


def _child(folder: str, key: str) -> str:
    """Return the folder directly in another one that a key lies in."""
    start = len(folder) + 1 if folder else 0
    return key[: key.index("/", start)]


def _around(key: str) -> tuple[str, str]:
    """Return the folder of a key's first fault, and the first key behind all that begin so."""
    parts = key.split("/")
    at = next(at for at, part in enumerate(parts) if part in ("", ".", ".."))
    # '0' comes behind '/'.
    return "/".join(parts[:at]), "/".join([*parts[:at], f"{parts[at]}0"])


def _not_through(folders: list[str], objects: list[Listed], last: str) -> list[str | Listed]:
    """Return the entries of a folder that may hold keys behind the last one, in the order of the keys."""
    left: list[tuple[str, str | Listed]] = [(each.key, each) for each in objects if each.key > last]
    left += [(f"{each}/", each) for each in folders if f"{each}/" > last or last.startswith(f"{each}/")]
    return [item for _, item in sorted(left, key=lambda pair: pair[0])]
