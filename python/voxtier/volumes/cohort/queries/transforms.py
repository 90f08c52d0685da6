"""Functions of the user over volumes: how they are called, and what is stored of their results."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.store import foreground
from voxtier.volumes.store.jobs import Content, Job
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.creation import plain_voxels
from voxtier.volumes.tiledb.format.folders import fragment_names
from voxtier.volumes.tiledb.tables.columns import Table, typed
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS, SHAPES, refuse_own_names
from voxtier.volumes.volume import Volume

Transform: TypeAlias = Callable[..., Any]
"""``fn(voxels)`` or ``fn(voxels, row)``; gives voxels, or a pair: voxels and a dict of columns of the row."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# Metadata that belongs to an array rather than to its image.
_ARRAY_META = (
    "obs_id",
    "tile_orientation",
    "voxtier_row",
    "voxtier_dtype",
    "slice_orientation",
    replicas.META_KEY,
    *foreground.META_KEYS,
)
# Beginnings of metadata, and columns, that describe the numbers of the file that a volume came from, the grid
# that they lie on and its points in time: they say nothing of a transform's result.
_META_OF_NUMBERS = ("nifti_", "stored_m")
_META_OF_GRID = ("orientation_", "original_affine", "gantry_tilt", "slice_spacing", "missing_slices")
_META_OF_TIMES = ("time_",)
_COLUMNS_OF_NUMBERS = ("datatype", "bitpix", "scl_slope", "scl_inter")
_COLUMNS_OF_GRID = ("voxel_spacing", "axcodes", "affine_json", "orientation_source")


def split_result(result: Any) -> tuple[Any, dict[str, Any]]:
    """Return the value of a transform's result, and the columns that it sets (none, unless it is a pair)."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return result[0], {str(name): _plain(name, value) for name, value in result[1].items()}
    return result, {}


def _plain(name: object, value: Any) -> Any:
    refuse_own_names([str(name)])
    plain = value.item() if isinstance(value, np.generic) else value
    if name in (*INDEX_COLUMNS, SHAPES) or not (plain is None or isinstance(plain, (bool, int, float, str))):
        raise ConfigError(
            f"a transform set {name!r} to {type(value).__name__}: columns beside the keys and {SHAPES!r} take"
            " numbers, text, True, False or None"
        )
    return plain


def apply_transforms(fns: Sequence[Transform], value: Any, row: Any) -> tuple[Any, dict[str, Any]]:
    """Apply transforms one after the other; each sees the columns that those before it set.

    Parameters
    ----------
    fns : sequence of callable
        The transforms.
    value : Any
        What the first of them gets, as a rule voxels.
    row : mapping
        Row of the volume.

    Returns
    -------
    Any
        What the last of them gives.
    dict
        Columns that they set.
    """
    updates: dict[str, Any] = {}
    for fn in fns:
        value, changes = split_result(fn(value, row) if _takes_row(fn) else fn(value))
        if changes:
            updates |= changes
            row = row.copy()
            for name, change in changes.items():
                row[name] = change
    return value, updates


def _takes_row(fn: Transform) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:  # what is built in tells nothing; ``numpy.abs`` is one
        return False
    kinds = [each.kind for each in parameters if each.default is each.empty]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # a wrapper passes on what it gets
        return len(kinds) > 1
    return len([kind for kind in kinds if kind in _POSITIONAL]) > 1


def copy_jobs(collection: CollectionView, fns: Sequence[Transform]) -> list[Job]:
    """Return the jobs that copy the volumes of a view.

    Without transforms the stored numbers are copied as they are.
    """
    snapshot = collection._rows.snapshot
    # What transforms do cannot be told from their names: arrays that they left unfinished are made anew.
    run = uuid.uuid4().hex if fns else None
    fingerprint = (snapshot.meta.get("voxtier_store"), snapshot.commit, run)
    table = collection.table
    return [
        job_of(volume, row, table, fingerprint, partial(_copy, volume, row, fns), partial(_state, volume))
        for volume, row in collection.volume_rows()
    ]


def _state(volume: Volume) -> tuple[str, ...]:
    """Return the names of a volume's fragments: `Volume.update` changes voxels without a commit."""
    volume.refresh()  # a remote array that is open still shows what was there when it was opened
    return tuple(fragment_names(volume.uri, volume.session))


def job_of(
    volume: Volume,
    row: Mapping[str, Any],
    table: Table,
    fingerprint: tuple[object, ...],
    load: Callable[[], Content],
    read_state: Callable[[], tuple[object, ...]] = tuple,
) -> Job:
    """Return the job that stores what becomes of a volume, with the other columns of its row.

    Parameters
    ----------
    volume : Volume
        Where it comes from.
    row : mapping
        Its row.
    table : Table
        Which the row is of.
    fingerprint : tuple
        Equal for equal content.
    load : callable
        Gives what is stored.
    read_state : callable
        Gives the rest of the fingerprint.

    Returns
    -------
    Job
        To be written.
    """
    extra = {
        name: typed(value, table[name].dtype) if name in table else value
        for name, value in row.items()
        if name not in (*INDEX_COLUMNS, SHAPES)
    }
    return Job(
        row["obs_id"],
        row["obs_subject_id"],
        load,
        (volume.uri, *fingerprint),
        volume.uri,
        extra,
        read_state=read_state,
    )


def _copy(volume: Volume, row: Any, fns: Sequence[Transform]) -> Content:
    if not fns:
        return Content(volume.read(raw=True), _image_meta(volume), {SHAPES: str(volume.shape)})
    image, updates = apply_transforms(fns, volume.read(), row)
    return transformed_content(volume, row, image, updates)


def _image_meta(volume: Volume) -> dict[str, Any]:
    return {key: value for key, value in volume.meta.items() if key not in _ARRAY_META}


def transformed_content(
    volume: Volume, row: Mapping[str, Any], image: Any, updates: Mapping[str, Any]
) -> Content:
    """Return what is stored of a transformed volume: it keeps its place in the world only with its grid.

    Parameters
    ----------
    volume : Volume
        What was transformed.
    row : mapping
        Its row.
    image : array_like
        The result.
    updates : mapping
        Columns that the transform set.

    Returns
    -------
    Content
        The result, its metadata and what it changes in the row.

    Raises
    ------
    ConfigError
        When the result is no array of three or four dimensions, or has masked voxels.
    """
    voxels = plain_voxels(image, f"{row['obs_id']}: the result of a transform")
    if voxels.dtype.kind not in "biufc" or voxels.ndim not in (3, 4):
        raise ConfigError(
            f"{row['obs_id']}: a transform gave {type(image).__name__} of shape {voxels.shape},"
            " which is no volume of 3 or 4 dimensions"
        )
    has_grid, has_times = voxels.shape[:3] == volume.shape[:3], voxels.shape[3:] == volume.shape[3:]
    past = (*_META_OF_NUMBERS, *(() if has_grid else _META_OF_GRID), *(() if has_times else _META_OF_TIMES))
    outdated = _COLUMNS_OF_NUMBERS if has_grid else (*_COLUMNS_OF_NUMBERS, *_COLUMNS_OF_GRID)
    return Content(
        voxels,
        {key: value for key, value in _image_meta(volume).items() if not key.startswith(past)},
        {
            SHAPES: str(voxels.shape),
            **{name: None for name in outdated if name in row},
            **updates,
        },
    )
