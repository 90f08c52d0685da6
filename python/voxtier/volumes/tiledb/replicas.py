"""The same voxels in a second tiling: written beside the volume, used only while they are surely the same.

A replica is a stock array in a folder of the volume's own (``replica-sagittal``), so that it is moved, copied
and removed with it. The volume's metadata holds, for each replica, a digest of the names of all fragments of
both: whoever writes to either of them, with voxtier or without, changes a name, and the replica is passed
over until it is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import VoxtierError
from voxtier.volumes.config import SliceOrientation, WriteConfig
from voxtier.volumes.tiledb import arrays as voxels
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.arrays import META_KEY, VoxelArray
from voxtier.volumes.tiledb.session import Session

_PREFIX: Final = "replica-"


def address(uri: str, orientation: str) -> str:
    """Return where a replica of a volume lies."""
    return f"{uri}/{_PREFIX}{orientation}"


def digest(uri: str, orientation: str, session: Session) -> str:
    """Return what changes with every write to the volume or to the replica."""
    names = [
        name
        for place in (uri, address(uri, orientation))
        for name in ["|", *engine.subfolders(f"{place}/__fragments", session)]
    ]
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def listed(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the replicas that the metadata of a volume lists: orientation -> digest."""
    with suppress(ValueError):
        found = json.loads(str(meta.get(META_KEY, "{}")))
        if isinstance(found, dict):
            known = [orientation.value for orientation in SliceOrientation]
            return {name: str(value) for name, value in found.items() if name in known}
    return {}


def current(array: VoxelArray) -> dict[str, VoxelArray]:
    """Open the replicas of a volume that hold the same voxels; the others are passed over."""
    found: dict[str, VoxelArray] = {}
    for orientation, noted in listed(array.meta).items():
        with suppress(VoxtierError, OSError):
            if digest(array.uri, orientation, array.session) != noted:
                continue
            replica = VoxelArray(address(array.uri, orientation), array.session)
            if (replica.layout.shape, replica.layout.cell) == (array.layout.shape, array.layout.cell):
                found[orientation] = replica
    return found


def write_volume(
    uri: str,
    image: NDArray[Any],
    meta: Mapping[str, Any],
    write: WriteConfig,
    session: Session,
    *,
    free: bool = False,
) -> None:
    """Create a volume with the replicas that ``write`` asks for; its metadata is the last thing written."""
    voxels.create_array(uri, image.shape, image.dtype, write, session, free=free)
    names = [orientation.value for orientation in write.tile.replicas]
    try:
        voxels.write_all(uri, image, {} if names else meta, session)
        for name in names:
            _write(uri, name, image, session)
        if names:
            voxels.write_meta(uri, {**meta, META_KEY: _noted(uri, names, session)}, session)
    except BaseException:
        engine.remove_tree(uri, session)
        raise


def _write(uri: str, orientation: str, image: NDArray[Any], session: Session) -> None:
    place = address(uri, orientation)
    engine.remove_tree(place, session)
    voxels.create_like(place, uri, SliceOrientation(orientation), session)
    voxels.write_all(place, image, {"tile_orientation": orientation}, session)


def _noted(uri: str, orientations: Sequence[str], session: Session) -> str:
    return json.dumps({name: digest(uri, name, session) for name in orientations})


def renew(uri: str, session: Session, *, add: Sequence[SliceOrientation] = ()) -> list[str]:
    """Write the replicas again that are no longer the same, and those to add; returns which.

    A writer in between leaves a replica that is stale.
    """
    array = voxels.VoxelArray(uri, session)
    fresh = current(array)
    kept = list(dict.fromkeys([*listed(array.meta), *(orientation.value for orientation in add)]))
    missing = [name for name in kept if name not in fresh]
    if not missing:
        return []
    before = engine.subfolders(f"{uri}/__fragments", session)
    image = array.read(tuple((0, size, 1) for size in array.layout.shape))
    for name in missing:
        _write(uri, name, image, session)
    if engine.subfolders(f"{uri}/__fragments", session) == before:
        voxels.write_meta(uri, {META_KEY: _noted(uri, kept, session)}, session)
    return missing


def write_region(uri: str, start: Sequence[int], cells: NDArray[Any], session: Session) -> None:
    """Write a box into a volume and into its replicas, which are passed over until all is written."""
    array = voxels.open_array(uri, session)
    fresh = list(current(array)) if META_KEY in array.meta else []
    before = set(engine.subfolders(f"{uri}/__fragments", session)) if fresh else set()
    voxels.write_region(uri, start, cells, session)
    if not fresh:
        return
    for orientation in fresh:
        voxels.write_region(address(uri, orientation), start, cells, session)
    if (
        len(set(engine.subfolders(f"{uri}/__fragments", session)) - before) == 1
    ):  # nobody else wrote meanwhile
        voxels.write_meta(uri, {META_KEY: _noted(uri, fresh, session)}, session)


def consolidate(uri: str, session: Session, *, memory_mb: int | None = None) -> None:
    """Merge the fragments of a volume, then write the replicas again that this made stale."""
    voxels.consolidate(uri, session, memory_mb=memory_mb)
    if META_KEY in voxels.open_array(uri, session).meta:
        renew(uri, session)


def differing(uri: str, session: Session) -> list[str]:
    """Return what is wrong with the replicas of a volume: stale ones, and ones with other voxels."""
    array = voxels.open_array(uri, session)
    wanted, found = listed(array.meta), current(array)
    troubles = [f"replica {name} is stale" for name in wanted if name not in found]
    if found:
        every = tuple((0, size, 1) for size in array.layout.shape)
        cells = array.own_cells(every)
        for name, replica in found.items():
            if not np.array_equal(replica.own_cells(every), cells, equal_nan=cells.dtype.kind in "fc"):
                troubles.append(f"replica {name} holds other voxels")
    return troubles
