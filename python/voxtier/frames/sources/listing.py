"""Lists the objects below a prefix, with their states: for an unchanged one nothing more is asked."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial

from voxtier.errors import KeyFaultError, SourceError
from voxtier.frames.sources.address import is_address, is_misread, normal, parse
from voxtier.frames.sources.key_faults import Unnamed, fault_of, list_around_faults
from voxtier.frames.sources.requests.fetching import ask_ahead
from voxtier.frames.sources.stores import Listed, ObjectState, Store, store_at
from voxtier.system.s3_config import S3Config, get_s3_config

# Objects that wait for who takes them: the next answer of the store comes meanwhile.
_AHEAD = 5000


class ListedObject(str):
    """The address of an object, and the state that the listing of its store gave."""

    __slots__ = ("state",)

    def __new__(cls, address: str, state: ObjectState) -> ListedObject:
        """Make an address that knows the state of its object."""
        made = super().__new__(cls, address)
        made.state = state
        return made

    state: ObjectState


def objects_named(
    addresses: Iterable[str], extension: str | None, since: datetime | None = None
) -> Iterator[str]:
    """Yield the objects that addresses name: each is one, or a prefix of others.

    What the store has to be asked of single objects is asked a little ahead, of many at a time.

    Parameters
    ----------
    addresses : iterable of str
        Objects and prefixes.
    extension, since : str or None, datetime or None
        See `objects_below`.

    Yields
    ------
    str
        See `objects_below`, whose errors are raised.
    """
    config = get_s3_config()  # threads have no context of their own
    ask = partial(_as_object, extension=extension, since=since, config=config)
    for address, named in ask_ahead(ask, addresses):
        yield from objects_below(address, extension, since) if named is None else named


def objects_below(address: str, extension: str | None, since: datetime | None = None) -> Iterator[str]:
    """Yield the addresses of the objects below a prefix as the store names them, in bounded memory.

    Parameters
    ----------
    address : str
        A prefix, such as ``s3://bucket/folder``.
    extension : str or None
        End of the keys, in any case; None takes all. Keys that end with a slash stand for folders.
    since : datetime or None
        Take only what was written then or later.

    Yields
    ------
    str
        A `ListedObject`; the address itself where nothing lies below it, and the beginning of keys that the
        client cannot name, whatever their extension: reading them gives the reason.

    Raises
    ------
    SourceError
        The store refuses to list, or the address is of no store that is read.
    """
    address = normal(address)
    place = parse(address)
    store = store_at(place.root, get_s3_config())
    may_be_object = bool(place.key) and not place.key.endswith("/")
    count = 0
    for count, found in enumerate(_without_folders(_ahead(store, place.key.rstrip("/"))), 1):
        if count == 1 and may_be_object and _ends(place.key, extension):
            yield from _beside_others(store, address, place.key, since)
        if isinstance(found, Unnamed):
            yield f"{place.root}/{found.start}"
        elif _ends(found.key, extension) and (since is None or found.modified >= since):
            yield ListedObject(f"{place.root}/{found.key}", found.state)
    if not count and may_be_object and _may_be_newer(store, place.key, since):
        yield address


def _as_object(
    address: str, extension: str | None, since: datetime | None, config: S3Config
) -> list[str] | None:
    """Return the object that an address names, or nothing if it is too old; None for a prefix."""
    address = normal(address)
    place = parse(address)
    store = store_at(place.root, config)
    if place.can_list:
        is_named_so = extension is not None and _ends(place.key, extension)
        if not is_named_so or (fault_of(place.key) is None and _has_below(store, place.key)):
            return None
    return [address] if _may_be_newer(store, place.key, since) else []


def _has_below(store: Store, key: str) -> bool:
    """Return whether objects lie below a key; False where the store does not say: it may be an object."""
    try:
        return next(store.list(key), None) is not None
    except KeyFaultError:
        return True
    except SourceError:
        return False


def _beside_others(store: Store, address: str, key: str, since: datetime | None) -> Iterator[str]:
    """Yield an object that is named as the folder of others is, unless it is empty and stands for it."""
    try:
        found = store.find(key)
    except SourceError:
        yield address  # reading it gives the reason
        return
    if found is not None and found.state.size and (since is None or found.modified >= since):
        yield ListedObject(address, found.state)


def _may_be_newer(store: Store, key: str, since: datetime | None) -> bool:
    """Return whether an object was written since then, or nobody can tell: reading it gives the reason."""
    if since is None:
        return True
    try:
        found = store.find(key)
    except SourceError:
        return True
    # A server that names no time has written all in 1970.
    return found is None or found.modified >= since or not found.modified.timestamp()


def _ends(key: str, extension: str | None) -> bool:
    return extension is None or key.lower().endswith(extension.lower())


def file_is_gone(path: str) -> bool:
    """Return whether there certainly is no such file or object any more; False where nobody can tell."""
    if is_misread(path):
        return False
    try:
        if is_address(path):
            return _object_is_gone(path)
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # no permission, for instance: it may well be there
        return False
    return False


def _object_is_gone(address: str) -> bool:
    try:
        place = parse(address)
        store = store_at(place.root, get_s3_config())
        fault = fault_of(place.key)
        if fault is not None and place.can_list:  # it shows where its folder is listed
            return "" not in store.entries(fault.folder)[0]
        store.head(place.key)
        return False
    except SourceError as error:
        if error.errno != errno.ENOENT:
            return False
    if not place.can_list:
        return True
    try:  # the same answer comes from a wrong endpoint or account, which has no such bucket: a listing tells
        next(store.list(place.key), None)
    except SourceError:
        return False
    return True


def _without_folders(listed: Iterator[Listed | Unnamed]) -> Iterator[Listed | Unnamed]:
    """Leave out the empty objects that stand for folders: the client drops the slash at their ends."""
    folder: Listed | None = None
    for each in listed:
        name = each.start if isinstance(each, Unnamed) else each.key
        if folder is not None and not name.startswith(f"{folder.key}/"):
            yield folder
        folder = None
        if isinstance(each, Unnamed) or each.state.size:
            yield each
        else:
            folder = each
    if folder is not None:
        yield folder


def _ahead(store: Store, prefix: str) -> Iterator[Listed | Unnamed]:
    """List on another thread, a little ahead of who takes the objects."""
    waiting: queue.Queue[Listed | Unnamed | BaseException | None] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def put(each: Listed | Unnamed | BaseException | None) -> None:
        while not ended.is_set():
            try:
                waiting.put(each, timeout=0.2)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            for each in list_around_faults(store, prefix):
                put(each)
                if ended.is_set():
                    return
        except BaseException as error:
            put(error)
        else:
            put(None)

    threading.Thread(target=run, name="voxtier-list", daemon=True).start()
    try:
        while (each := waiting.get()) is not None:
            if isinstance(each, BaseException):
                raise each
            yield each
    finally:
        ended.set()
