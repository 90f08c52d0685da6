"""The fragments of an array: listed, merged into one, removed once merged, and missed where they are gone.

One process at a time merges the fragments of a local volume, under a lock of the kernel's; an object store
has no such lock. So no step here names, in a file that stays, a fragment that another process may remove:
lists of commits, which do, are never made.
"""

from __future__ import annotations

import math
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiledb

from voxtier.errors import BackendError, FormatError
from voxtier.system.locks import hold_lock
from voxtier.volumes.tiledb.arrays import forget, open_array
from voxtier.volumes.tiledb.format import VERSION
from voxtier.volumes.tiledb.format.folders import fragment_bytes
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.names import COMMITS, FRAGMENTS
from voxtier.volumes.tiledb.format.recovery import recover_volume
from voxtier.volumes.tiledb.layout import Layout
from voxtier.volumes.tiledb.session import (
    LOCK_NAME,
    Session,
    is_remote,
    list_entries,
    read_file,
    stamps_of,
    write_file,
)

_PATIENCE_SECONDS = 300.0  # for another process that merges the same volume
_COMMIT = re.compile(rb"__commits/(__\d+_\d+_[0-9a-f]{32}_\d+)\.wrt\n")
_REPLACED = re.compile(rb"[^\n]*__fragments/(__\d+_\d+_[0-9a-f]{32}_\d+)\n")
_MARK = "__fragment_metadata.tdb"  # what opening an array reads of each of its fragments


@dataclass(frozen=True, slots=True)
class Fragment:
    """One write of an array.

    Parameters
    ----------
    name : str
        Folder of the fragment.
    first_ms, last_ms : int
        Time stamps of the writes in it, in milliseconds since 1970.
    bytes : int
        Of its files; 0 for a remote array.
    box : tuple of (int, int)
        First and last voxel along x, y, z[, t].
    to_vacuum : bool
        Whether a consolidation has replaced it (then only the name is known).
    """

    name: str
    first_ms: int
    last_ms: int
    bytes: int
    box: tuple[tuple[int, int], ...]
    to_vacuum: bool


def list_fragments(uri: str, session: Session) -> list[Fragment]:
    """Return the fragments of an array, those that a consolidation has replaced last."""
    with translate_errors(f"list the fragments of {uri}"):
        order = open_array(uri, session).layout.order
        listing = tiledb.array_fragments(uri, ctx=session.context())
        boxes = {_name(f.uri): f.nonempty_domain for f in listing}
        replaced = {_name(path) for path in listing.to_vacuum}
        # TileDB lists what was written until now, by this machine's clock.
        commits = _Commits.read(uri, session)
        for name in sorted(commits.visible - boxes.keys() - replaced, key=stamps_of):
            with tiledb.open(uri, ctx=session.context(), timestamp=stamps_of(name)) as array:
                boxes[name] = array.nonempty_domain()
        replaced |= commits.replaced - boxes.keys()
    current = [_fragment(uri, name, box, order) for name, box in boxes.items()]
    return current + [Fragment(name, 0, 0, 0, (), to_vacuum=True) for name in sorted(replaced)]


def _name(fragment_uri: str) -> str:
    return fragment_uri.rsplit("/", 1)[-1]


def _fragment(uri: str, name: str, box: Any, order: tuple[int, ...]) -> Fragment:
    size = 0 if is_remote(uri) else fragment_bytes(uri, name)
    by_axis = tuple((int(box[order.index(a)][0]), int(box[order.index(a)][1])) for a in range(len(order)))
    return Fragment(name, *stamps_of(name), size, by_axis, to_vacuum=False)


@dataclass(frozen=True, slots=True)
class _Commits:
    """What the commits of an array say of its fragments.

    Parameters
    ----------
    visible : frozenset of str
        Fragments that count, and are there.
    replaced : frozenset of str
        Fragments that are there, and count no more since a consolidation.
    lost : frozenset of str
        Fragments that a list of commits names and that are gone: the array cannot be opened.
    """

    visible: frozenset[str]
    replaced: frozenset[str]
    lost: frozenset[str]

    @staticmethod
    def read(uri: str, session: Session) -> _Commits:
        """Read the commits of an array; none of what is no array."""
        files = list_entries(f"{uri}/{COMMITS}", session)

        def names(suffix: str, line: re.Pattern[bytes]) -> set[str]:
            texts = [read_file(f"{uri}/{COMMITS}/{f}", session) for f in files if f.endswith(suffix)]
            return {name.decode() for text in texts for name in line.findall(text)}

        single = {file.removesuffix(".wrt") for file in files if file.endswith(".wrt")}
        listed = names(".con", _COMMIT) - names(".ign", _COMMIT)
        replaced = names(".vac", _REPLACED)
        present = set(list_entries(f"{uri}/{FRAGMENTS}", session))
        # One that is being removed may have lost its files, and not its folder.
        gone = {
            name
            for name in listed
            if name not in present or _MARK not in list_entries(f"{uri}/{FRAGMENTS}/{name}", session)
        }
        there = (present & (single | listed)) - gone
        return _Commits(frozenset(there - replaced), frozenset(there & replaced), frozenset(gone))


def find_lost(uri: str, session: Session) -> list[str]:
    """Return the fragments that a list of commits names and that are gone, so that an array cannot be opened.

    Two processes that merged the fragments of one volume at a time left this in version 0.1.
    """
    return sorted(_Commits.read(uri, session).lost)


def ignore_lost(uri: str, session: Session) -> None:
    """Let TileDB open an array again whose lists of commits name fragments that are gone.

    Raises
    ------
    FormatError
        When one of them is not covered by a merged fragment that is there: its voxels are lost.
    """
    commits = _Commits.read(uri, session)
    merged = [span for span in map(stamps_of, commits.visible) if span[0] < span[1]]
    for name in sorted(commits.lost):
        first, last = stamps_of(name)
        if not any(start <= first and last <= end for start, end in merged):
            raise FormatError(
                "store_damaged", None, f"{uri}: the fragment {name} is gone, and no other holds its voxels"
            )
    if commits.lost:
        spans = [stamps_of(name) for name in commits.lost]
        name = f"__{min(spans)[0]}_{max(last for _, last in spans)}_{uuid.uuid4().hex}_{VERSION}.ign"
        lines = "".join(f"{COMMITS}/{lost}.wrt\n" for lost in sorted(commits.lost))
        write_file(f"{uri}/{COMMITS}/{name}", lines, session)
    forget(uri)


def consolidate(uri: str, session: Session, *, memory_mb: int | None = None) -> None:
    """Merge all fragments into one and remove what it replaces, in the order that is safe at every step.

    Fragments are merged and vacuumed first, then the small files (fragment metadata, array metadata). Commits
    are not merged: a list of them that is written while another process removes fragments names some that are
    gone, and the array cannot be opened any more.

    Parameters
    ----------
    uri : str
        Address of the array.
    session : Session
        How it is reached.
    memory_mb : int, optional
        Bound of the buffers in MiB, by default the memory budget.
    """
    recover_volume(uri)
    budget = (memory_mb or session.config.read.memory_budget_mb) << 20
    with translate_errors(f"consolidate {uri}"):
        budget = min(budget, _worth_merging_with(open_array(uri, session).layout))
    with only_merger(uri):
        _merge(uri, session, ("fragments",), {"sm.mem.total_budget": str(budget)})
        _merge(uri, session, ("fragment_meta", "array_meta"), {})
    forget(uri)


@contextmanager
def only_merger(uri: str, patience: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the lock of a local volume, where its file system has locks.

    Parameters
    ----------
    uri : str
        Address of the volume.
    patience : float
        Seconds to wait for another process.

    Raises
    ------
    BackendError
        When another process merges its fragments, or writes its replicas, for longer than that.
    """
    with ExitStack() as stack:
        if not is_remote(uri):
            try:
                stack.enter_context(hold_lock(Path(uri, LOCK_NAME), patience, mode=0o666))
            except TimeoutError:
                raise BackendError(
                    f"another process consolidates {uri} or writes its replicas: try later"
                ) from None
            except OSError:  # no locks there: then two that merge may refuse each other, and damage nothing
                pass
        yield


def _worth_merging_with(layout: Layout) -> int:
    """Return the bytes of buffers beyond which merging the fragments of an array gains nothing.

    TileDB fills its copy buffer with zeros first, a sixth of its budget; the tiles that it reads get a half.
    Twelve times the cells fill the buffer once: 20 ms instead of 110 for a volume of 96 x 96 x 96 voxels.
    """
    if layout.filters == ("not-plain",):  # it may have further attributes, and so larger cells
        return sys.maxsize
    tiles = (
        -(-size // extent) * extent for size, extent in zip(layout.stored_shape, layout.extents, strict=True)
    )
    return (32 << 20) + 12 * math.prod(tiles) * layout.cell.itemsize


def _merge(uri: str, session: Session, modes: tuple[str, ...], keys: dict[str, str]) -> None:
    for step in (tiledb.consolidate, tiledb.vacuum):
        for mode in modes:
            _maintain(step, uri, session, {**keys, "sm.consolidation.mode": mode}, mode)


def vacuum(uri: str, session: Session) -> None:
    """Remove what earlier consolidations have replaced."""
    with only_merger(uri):
        for mode in ("fragments", "fragment_meta", "commits", "array_meta"):
            _maintain(tiledb.vacuum, uri, session, {}, mode)
    forget(uri)


def _maintain(step: Any, uri: str, session: Session, keys: dict[str, str], mode: str) -> None:
    context = session.context()
    config = tiledb.Config({**context.config().dict(), **keys, "sm.vacuum.mode": mode})
    with translate_errors(f"{step.__name__} the {mode} of {uri}"):
        step(uri, config=config, ctx=context)
