"""The same voxels in a second tiling: written beside the volume, used only while they are surely the same.

A replica is a stock array in a folder inside the volume's own (``replica-sagittal``), so that it is moved,
copied and removed with it. The volume's metadata holds, for each replica, a digest of the names of all
fragments of both: whoever writes to either of them, with voxtier or without, changes a name, and the replica
is not used until it is written again.

A digest is only made of names that were seen before the voxels were read or written, and of the names of our
own writes: what another process writes meanwhile is never part of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import ConfigError, FormatError, NotFoundError, VoxtierError
from voxtier.volumes.config import CompressionConfig, Compressor, SliceOrientation, WriteConfig
from voxtier.volumes.tiledb import arrays
from voxtier.volumes.tiledb.arrays import VoxelArray
from voxtier.volumes.tiledb.creation import array_meta, create_array, create_like
from voxtier.volumes.tiledb.format import fragments
from voxtier.volumes.tiledb.format.folders import fragment_names
from voxtier.volumes.tiledb.layout import Region
from voxtier.volumes.tiledb.places import REPLICA_PREFIX, remove_own
from voxtier.volumes.tiledb.scaling import Normalize, make_recipe, refuse_fill
from voxtier.volumes.tiledb.session import Session, is_remote

META_KEY = "voxtier_replicas"
_STALE = ""  # in place of a digest: such a replica is listed, and written again by `replicate`


def replica_uri(uri: str, orientation: str) -> str:
    """Return where a replica of a volume lies."""
    return f"{uri}/{REPLICA_PREFIX}{orientation}"


def replica_orientation(uri: str) -> str:
    """Return the orientation of the replica at an address."""
    return uri.rpartition(REPLICA_PREFIX)[2]


def _digest(own: Iterable[str], others: Iterable[str]) -> str:
    """Return what changes with every write to a volume or to its replica; given are their fragments."""
    names = ["|", *sorted(own), "|", *sorted(others)]
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def _digests(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the replicas that the metadata of a volume lists: orientation -> digest."""
    with suppress(ValueError):
        listing = json.loads(str(meta.get(META_KEY, "{}")))
        if isinstance(listing, dict):
            orientations = [orientation.value for orientation in SliceOrientation]
            return {name: str(value) for name, value in listing.items() if name in orientations}
    return {}


def _write_digests(uri: str, orientations: Sequence[str], meta: Mapping[str, Any], session: Session) -> None:
    """Write the metadata of a volume that was just made: it and each of its replicas in one write."""
    own = fragment_names(uri, session)
    digests = {}
    for name in orientations:
        others = fragment_names(replica_uri(uri, name), session)
        digests[name] = _digest(own, others) if len(own) == len(others) == 1 else _STALE
    arrays.write_meta(uri, {**meta, META_KEY: json.dumps(digests)}, session)


def _set_digests(uri: str, digests: Mapping[str, str], session: Session) -> None:
    """Replace the digests of some replicas in the metadata of a volume; the others keep theirs."""
    arrays.forget(uri)
    listed = _digests(arrays.open_array(uri, session).meta)
    arrays.write_meta(uri, {META_KEY: json.dumps({**listed, **digests})}, session)


def _names_of_valid(array: VoxelArray, own: Sequence[str]) -> dict[str, list[str]]:
    """Return the fragments of the replicas that hold the same voxels as these fragments of the volume."""
    valid: dict[str, list[str]] = {}
    for orientation, digest in _digests(array.meta).items():
        with suppress(VoxtierError, OSError):
            names = fragment_names(replica_uri(array.uri, orientation), array.session)
            if _digest(own, names) == digest:
                valid[orientation] = names
    return valid


def find_replicas(array: VoxelArray) -> dict[str, VoxelArray]:
    """Open the replicas of a volume that hold the same voxels; leave out all others."""
    valid: dict[str, VoxelArray] = {}
    if META_KEY not in array.meta:
        return valid
    with suppress(VoxtierError, OSError):
        own = fragment_names(array.uri, array.session)
        for orientation, names in _names_of_valid(array, own).items():
            with suppress(VoxtierError, OSError):
                place = replica_uri(array.uri, orientation)
                replica = VoxelArray(place, array.session, is_replica=True)
                if fragment_names(place, array.session) != names:
                    continue  # opened with what another process writes just now
                if (replica.layout.shape, replica.layout.cell) == (array.layout.shape, array.layout.cell):
                    valid[orientation] = replica
    return valid


def cheapest(array: VoxelArray, region: Region) -> VoxelArray:
    """Return the tiling that decodes the fewest cells for this region: the volume's own, or a replica's."""
    if META_KEY not in array.meta:
        return array
    if array.replicas is None:
        array.replicas = tuple(find_replicas(array).values())
    return min((array, *array.replicas), key=lambda tiling: tiling.layout.decoded_cells(region))


def read(array: VoxelArray, region: Region) -> NDArray[Any]:
    """Return the cells of a region (API order) from the cheapest tiling."""
    if META_KEY in array.meta:
        with suppress(VoxtierError):  # a replica that cannot be read costs time only: the volume answers
            return cheapest(array, region).read(region)
    return array.read(region)


def read_patches(
    array: VoxelArray, starts: NDArray[np.int64], size: tuple[int, ...], fill: float
) -> NDArray[Any]:
    """Read boxes of one size from the tiling that is cheapest for the first of them.

    Parameters
    ----------
    array : VoxelArray
        The volume.
    starts : numpy.ndarray of int64, (N, ndim)
        First voxels; they may be negative or reach past the end.
    size : tuple of int
        Voxels of a box along x, y, z[, t].
    fill : float
        Value of cells outside the volume.

    Returns
    -------
    numpy.ndarray
        (N, *size).
    """
    if META_KEY in array.meta and len(starts):
        with suppress(VoxtierError):
            return cheapest_for(array, starts[0].tolist(), size).read_patches(starts, size, fill)
    return array.read_patches(starts, size, fill)


def cheapest_for(array: VoxelArray, start: Sequence[int], size: Sequence[int]) -> VoxelArray:
    """Return the tiling that decodes the fewest cells for a box, which may reach out of the volume.

    Parameters
    ----------
    array : VoxelArray
        The volume.
    start, size : sequence of int
        First voxel, and voxels along x, y, z[, t].

    Returns
    -------
    VoxelArray
        The volume's own tiling, or a replica's.
    """
    box = zip(start, size, array.layout.shape, strict=True)
    return cheapest(array, tuple((min(max(0, int(s)), n - 1), min(c, n), 1) for s, c, n in box))


def read_into(
    array: VoxelArray,
    starts: NDArray[np.int64],
    out: NDArray[Any],
    fill: float,
    normalize: Normalize | None = None,
) -> bool:
    """Read boxes of one size as physical numbers into the caller's memory, in one pass.

    Parameters
    ----------
    array : VoxelArray
        The volume.
    starts : numpy.ndarray of int64, (N, ndim)
        First voxels; they may be negative or reach past the end.
    out : numpy.ndarray, (N, x, y, z[, t])
        C-contiguous.
    fill : float
        Stored number outside the volume.
    normalize : Normalize, optional
        Further step.

    Returns
    -------
    bool
        False, and nothing is written, where the core cannot do this for the volume and this type.

    Raises
    ------
    ConfigError
        For boxes that reach out of the volume, and a fill that ``out`` cannot hold once it is scaled.
    """
    if out.dtype.kind in "iu" and ((starts < 0) | (starts + out.shape[1:] > array.layout.shape)).any():
        refuse_fill(fill, array.scaling, out.dtype)
    if META_KEY in array.meta and len(starts):
        with suppress(VoxtierError):
            tiling = cheapest_for(array, starts[0].tolist(), out.shape[1:])
            steps = None if tiling is array else recipe(tiling, array, out.dtype, normalize)
            if steps is not None:
                tiling.read_boxes(starts, out, fill, steps)
                return True
    steps = recipe(array, array, out.dtype, normalize)
    if steps is not None:
        array.read_boxes(starts, out, fill, steps)
    return steps is not None


def recipe(
    tiling: VoxelArray,
    array: VoxelArray,
    dtype: np.dtype[Any],
    normalize: Normalize | None = None,
    *,
    raw: bool = False,
) -> _core.Recipe | None:
    """Return how the core makes numbers of a type from the cells of a volume or of its replica.

    Parameters
    ----------
    tiling : VoxelArray
        Whose cells are read: the volume, or a replica.
    array : VoxelArray
        The volume, whose metadata holds the scaling.
    dtype : numpy.dtype
        Of the numbers wanted.
    normalize : Normalize, optional
        Further step.
    raw : bool
        Leave numbers as they are stored.

    Returns
    -------
    Recipe or None
        None where numpy has to make them.
    """
    if not tiling.is_direct or array.dtype != tiling.layout.cell:
        return None
    return make_recipe(tiling.layout.cell, dtype, None if raw else array.scaling, normalize)


def write_volume(
    uri: str,
    image: NDArray[Any],
    meta: Mapping[str, Any],
    write: WriteConfig,
    session: Session,
    *,
    is_free: bool = False,
) -> None:
    """Create a volume with the replicas that ``write`` asks for; its metadata is the last thing written.

    Parameters
    ----------
    uri : str
        Address of the new volume.
    image : numpy.ndarray
        Voxels as they are stored, (x, y, z[, t]).
    meta : mapping
        Metadata of the volume.
    write : WriteConfig
        Tiles, compression and replicas.
    session : Session
        How it is reached.
    is_free : bool
        Whether the caller knows that nothing lies at the address.
    """
    try:
        _write_volume(uri, image, meta, write, session, is_free=is_free)
    except ConfigError:
        if write.compression.algorithm is not Compressor.GZIP:
            raise
        # A tile that does not shrink, for which TileDB's gzip has no room (`messages`): zstd has.
        write = replace(write, compression=CompressionConfig(Compressor.ZSTD))
        _write_volume(uri, image, meta, write, session, is_free=is_free)


def _write_volume(
    uri: str,
    image: NDArray[Any],
    meta: Mapping[str, Any],
    write: WriteConfig,
    session: Session,
    *,
    is_free: bool,
) -> None:
    meta = {**array_meta(write, image.dtype), **meta}
    had_folder = not is_free and not is_remote(uri) and Path(uri).is_dir()
    create_array(uri, image.shape, image.dtype, write, session, is_free=is_free)
    names = [orientation.value for orientation in write.tile.replicas]
    try:
        # The replicas first: whoever finds voxels finds their scaling too, but for the moment of one write.
        for name in names:
            _write(uri, name, image, session)
        arrays.write_voxels(uri, image, {} if names else meta, session)
        if names:
            _write_digests(uri, names, meta, session)
    except BaseException:
        remove_own(uri, session, keep_folder=had_folder)
        raise


def _write(uri: str, orientation: str, image: NDArray[Any], session: Session) -> list[str]:
    """Write a replica where none lies, and return the name of its fragment."""
    place = replica_uri(uri, orientation)
    create_like(place, uri, SliceOrientation(orientation), session)
    return arrays.write_voxels(place, image, {"tile_orientation": orientation}, session)


def _write_anew(uri: str, orientation: str, image: NDArray[Any], session: Session) -> list[str]:
    remove_own(replica_uri(uri, orientation), session)
    return _write(uri, orientation, image, session)


def replicate(
    uri: str, session: Session, *, add: Sequence[SliceOrientation] = (), anew: Collection[str] = ()
) -> list[str]:
    """Write replicas that are new, and those again that no longer hold the volume's voxels.

    One process at a time does this to a local volume. A writer in between leaves a replica that is stale.

    Parameters
    ----------
    uri : str
        Address of the volume.
    session : Session
        How it is reached.
    add : sequence of SliceOrientation
        Tilings to add.
    anew : collection of str
        Orientations to write again whatever their digests say.

    Returns
    -------
    list of str
        Orientations that were written.
    """
    with fragments.only_merger(uri):
        own = fragment_names(uri, session)  # before it is opened: what is written later is in no digest
        array = VoxelArray(uri, session)
        valid = find_replicas(array)
        names = dict.fromkeys([*_digests(array.meta), *(orientation.value for orientation in add)])
        missing = [name for name in names if name not in valid or name in anew]
        if not missing:
            return []
        image = array.read(_everything(array))
        written = {name: _write_anew(uri, name, image, session) for name in missing}
        is_same = fragment_names(uri, session) == own
        digests = dict.fromkeys(missing, _STALE)
        for name, fragment in written.items():
            if is_same and fragment_names(replica_uri(uri, name), session) == fragment:
                digests[name] = _digest(own, fragment)
        _set_digests(uri, digests, session)
    return missing


def write_region(uri: str, start: Sequence[int], cells: NDArray[Any], session: Session) -> None:
    """Write a box into a volume and into its replicas, which are not used until all is written.

    A replica that cannot be written, or that another process writes too, is left stale: the box is in the
    volume, and an error would say that it is not.

    Parameters
    ----------
    uri : str
        Address of the volume.
    start : sequence of int
        First voxel along x, y, z[, t].
    cells : numpy.ndarray
        Voxels as they are stored, (x, y, z[, t]).
    session : Session
        How it is reached.
    """
    array = arrays.open_array(uri, session)
    if META_KEY not in array.meta:
        arrays.write_region(uri, start, cells, session)
        return
    own = fragment_names(uri, session)
    valid = _names_of_valid(array, own)
    own = sorted([*own, *arrays.write_region(uri, start, cells, session)])
    digests: dict[str, str] = {}
    for orientation, names in valid.items():
        place = replica_uri(uri, orientation)
        with suppress(VoxtierError, OSError):
            names = sorted([*names, *arrays.write_region(place, start, cells, session)])
            if fragment_names(place, session) == names:
                digests[orientation] = _digest(own, names)
    # Without waiting: who holds the lock merges what is digested here, or writes the replicas anew.
    with suppress(VoxtierError, OSError), fragments.only_merger(uri, patience=0):
        if digests and fragment_names(uri, session) == own:
            _set_digests(uri, digests, session)


def consolidate(uri: str, session: Session, *, memory_mb: int | None = None) -> None:
    """Merge the fragments of a volume, then write the replicas again that this made stale.

    Parameters
    ----------
    uri : str
        Address of the volume.
    session : Session
        How it is reached.
    memory_mb : int, optional
        Bound of the buffers in MiB, by default the memory budget.
    """
    fragments.consolidate(uri, session, memory_mb=memory_mb)
    if META_KEY in arrays.open_array(uri, session).meta:
        replicate(uri, session)


def find_differences(uri: str, session: Session) -> list[str]:
    """Return what is wrong with the replicas of a volume: stale, damaged, or with other voxels."""
    return list(_differences(uri, session).values())


def renew(uri: str, session: Session) -> list[str]:
    """Write the replicas again with which something is wrong, and return what it was."""
    found = _differences(uri, session)
    if found:
        replicate(uri, session, anew=found)
    return list(found.values())


def _differences(uri: str, session: Session) -> dict[str, str]:
    array = arrays.open_array(uri, session)
    valid = find_replicas(array)
    found = {name: f"replica {name} is stale" for name in _digests(array.meta) if name not in valid}
    if valid:
        every = _everything(array)
        cells = array.read(every)
        differing = {n: trouble for n, r in valid.items() if (trouble := _compare(r, every, cells))}
        # What another process wrote meanwhile makes both differ, and says nothing of the replica.
        still_valid = _names_of_valid(array, fragment_names(uri, session)) if differing else {}
        found |= {n: f"replica {n} {trouble}" for n, trouble in differing.items() if n in still_valid}
    return found


def _compare(replica: VoxelArray, every: Region, cells: NDArray[Any]) -> str | None:
    """Return what is wrong with a replica of these cells, None for nothing."""
    try:
        others = replica.read(every)
    except (FormatError, NotFoundError) as error:
        return f"cannot be read: {error}"
    is_same = np.array_equal(others, cells, equal_nan=cells.dtype.kind in "fc")
    return None if is_same else "holds other voxels"


def _everything(array: VoxelArray) -> Region:
    return tuple((0, size, 1) for size in array.layout.shape)
