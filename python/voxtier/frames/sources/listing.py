"""Lists the objects below a prefix, with their states: for an unchanged one nothing more is asked."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Iterator
from datetime import datetime

from voxtier.errors import SourceError
from voxtier.frames.sources.address import is_address, normal, parse
from voxtier.frames.sources.key_faults import Unnamed, fault_of, list_around_faults
from voxtier.frames.sources.stores import Listed, ObjectState, Store, store_at
from voxtier.system.s3_config import get_s3_config

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


def objects_below(address: str, extension: str | None, since: datetime | None = None) -> Iterator[str]:
    """Yield the addresses of the objects below a prefix as the store names them, in bounded memory.

    Parameters
    ----------
    address : str
        A prefix, such as ``s3://bucket/folder``, or one object, which is yielded whatever its extension. An
        ``https://`` address is one object: its server lists nothing.
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
    is_object = extension is not None and place.key.lower().endswith(extension.lower())
    if is_object or not place.can_list:
        yield address
        return
    store = store_at(place.root, get_s3_config())
    prefix = place.key.rstrip("/")
    count = 0
    for count, found in enumerate(_without_folders(_ahead(store, prefix)), 1):  # noqa: B007
        if isinstance(found, Unnamed):
            yield f"{place.root}/{found.start}"
            continue
        is_wanted = extension is None or found.key.lower().endswith(extension.lower())
        if is_wanted and (since is None or found.modified >= since):
            yield ListedObject(f"{place.root}/{found.key}", found.state)
    if not count and prefix and not place.key.endswith("/"):
        yield address


def file_is_gone(path: str) -> bool:
    """Return whether there certainly is no such file or object any more; False where nobody can tell."""
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
