"""Callbacks around ``fork``: locks, threads and connections of a process must not be used by its child.

Caches, readers, databases and locks register here when they are made. The interpreter is told once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Callback = Callable[[], object]
_log = logging.getLogger(__name__)


class _Hooks(NamedTuple):
    """Three functions that return a callback, or None when there is none or its object is gone."""

    before: Callable[[], Callback | None]
    in_parent: Callable[[], Callback | None]
    in_child: Callable[[], Callback | None]


_registered: dict[int, _Hooks] = {}
_numbers = itertools.count()
_abandoned: list[object] = []
# Held by who begins a program; so long a fork waits at most.
_apart = threading.RLock()
_PATIENCE = 60.0
# Each thread its own: several may fork at once. The child's only thread is a copy of the one that forked.
_forking = threading.local()


def at_fork(
    *,
    before: Callback | None = None,
    after_in_parent: Callback | None = None,
    after_in_child: Callback | None = None,
) -> None:
    """Register callbacks, as ``os.register_at_fork`` does; where there is no fork, nothing happens.

    A method does not keep its object alive; with the object its callbacks go.

    Parameters
    ----------
    before : callable or None
        Called in the parent before it forks, in reverse order of registration.
    after_in_parent : callable or None
        Called in the parent after the fork, for objects whose ``before`` was called.
    after_in_child : callable or None
        Called in the child.
    """
    callbacks = (before, after_in_parent, after_in_child)
    number = next(_numbers)
    _registered[number] = _Hooks(*map(_reference, callbacks))
    for owner in {id(each): each for each in map(_owner, callbacks) if each is not None}.values():
        weakref.finalize(owner, _registered.pop, number, None).atexit = False


def after_fork_in_child(callback: Callback) -> None:
    """Register a callback for the child alone; see `at_fork`."""
    at_fork(after_in_child=callback)


@contextlib.contextmanager
def apart_from_forks() -> Iterator[None]:
    """Let forks of other threads wait while a program is started.

    A child that is forked meanwhile has a copy of the pipes to it, and who reads from these to their end
    waits until that child has ended too.
    """
    with _apart:
        yield


def abandon(inherited: object) -> None:
    """Keep what a child inherited until it ends: its destructor would act on what is the parent's."""
    _abandoned.append(inherited)


def _owner(callback: Callback | None) -> object:
    return getattr(callback, "__self__", None)


def _reference(callback: Callback | None) -> Callable[[], Callback | None]:
    owner = _owner(callback)
    if callback is None or owner is None:
        return lambda: callback
    alive, name = weakref.ref(owner), callback.__name__  # no WeakMethod: it refuses those of extension types
    return lambda: getattr(alive(), name, None)


def _before() -> None:
    # First: who holds it asks for none of the locks that others take before a fork.
    _forking.is_apart = _apart.acquire(timeout=_PATIENCE)
    hooks = list(_registered.values())
    # Strong references: what was called before the fork is called after it.
    _forking.in_parent = [each.in_parent() for each in hooks]
    _call(each.before() for each in reversed(hooks))


def _in_parent() -> None:
    _call(_forking.__dict__.pop("in_parent", ()))
    if _forking.__dict__.pop("is_apart", False):
        _apart.release()


def _in_child() -> None:
    global _apart
    _apart = threading.RLock()
    _forking.__dict__.clear()
    _call([each.in_child() for each in list(_registered.values())])


def _call(callbacks: Iterable[Callback | None]) -> None:
    for callback in callbacks:
        try:
            if callback is not None:
                callback()
        except Exception:
            _log.exception("a callback around fork failed")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
