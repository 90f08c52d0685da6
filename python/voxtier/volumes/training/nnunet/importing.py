"""Preprocessed cases of nnU-Net v2 (``.b2nd`` files of blosc2) into a store.

Axes x, y, z of the store are axes 1, 2, 3 of nnU-Net's arrays. The pickles beside the cases are not loaded:
where classes lie is counted at ingest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError, MissingExtraError, SourceError
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.config import TileConfig, configured, get_config
from voxtier.volumes.store.append import create_cohort
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import Content, Job, OnError
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables.names import SHAPES

MASK = "seg"
SUFFIX = ".b2nd"
_MASK_SUFFIX = f"_seg{SUFFIX}"
_TILES = TileConfig("isotropic", 32, 32, 32)


def import_nnunet(
    folder: str | Path,
    uri: Uri,
    *,
    on_error: OnError = "raise",
    progress: bool = False,
    overwrite: bool = False,
    ctx: object = None,
) -> RadiObject:
    """Create a store from the preprocessed cases of one configuration.

    Collections are ``image_0000``, ``image_0001``... for the channels and ``seg``; subjects are the cases.
    Tiles are cubes of 32 voxels unless tiles are configured.

    Parameters
    ----------
    folder : path
        Such as ``nnUNet_preprocessed/Dataset001_X/nnUNetPlans_3d_fullres``.
    uri : path or URI
        Place of the new store. After a cut-off import the same call takes over what is finished.
    on_error : {"raise", "skip"}
        Whether one bad case refuses all.
    progress : bool
        Report on stderr.
    overwrite : bool
        Replace a store that exists.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.

    Returns
    -------
    RadiObject
        The new store.

    Raises
    ------
    ConfigError
        For a folder without cases, and when something else lies at the address.
    IngestError
        Lists the files of the first collection that has bad ones; nothing became visible.
    MissingExtraError
        Without blosc2.
    """
    cases = find_cases(folder)
    channels = _count_channels(cases, on_error)
    jobs: dict[str, list[Job]] = {name: [] for name in [*map(channel_name, range(channels)), MASK]}
    for case, image in cases.items():
        mask = mask_of(image)
        for channel in range(channels):
            jobs[channel_name(channel)].append(_job(case, image, channel, channels, on_error))
        jobs[MASK].append(_job(case, mask, None, channels, on_error))
    store = Store(as_uri(uri), Session.of(ctx), "radi_object")
    write = get_config().write
    tile = _TILES if write.tile == TileConfig() else write.tile
    with configured(tile=tile):
        create_cohort(store, jobs, None, IngestOptions(on_error, progress), overwrite=overwrite)
    return RadiObject(store.root, store.session)


def find_cases(folder: str | Path) -> Mapping[str, Path]:
    """Return the file of each preprocessed case, by name.

    Raises
    ------
    ConfigError
        When there is none.
    """
    found = {
        path.name.removesuffix(SUFFIX): path
        for path in sorted(Path(folder).glob(f"*{SUFFIX}"))
        if not path.name.endswith(_MASK_SUFFIX)
    }
    if not found:
        raise ConfigError(
            f"{folder} holds no {SUFFIX} files: give the folder of one configuration of"
            " nnUNet_preprocessed, written by nnU-Net >= 2.6"
        )
    return found


def mask_of(image: Path) -> Path:
    """Return the file of a case's segmentation."""
    return image.with_name(image.name.removesuffix(SUFFIX) + _MASK_SUFFIX)


def channel_name(channel: int) -> str:
    """Return the collection of a channel, numbered as nnU-Net's files are."""
    return f"image_{channel:04d}"


def state_of(path: Path) -> tuple[int, int]:
    """Return length and modification time of a file, which change when a case is preprocessed again."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _count_channels(cases: Mapping[str, Path], on_error: OnError) -> int:
    """Return the number of channels of the first case, or of the first that can be opened."""
    failure: Exception | None = None
    for image in cases.values():
        try:
            return int(_open(image).shape[0])
        except (FormatError, SourceError) as error:
            if on_error == "raise":
                raise
            failure = failure or error
    assert failure is not None
    raise failure


def _job(case: str, path: Path, channel: int | None, channels: int, on_error: OnError) -> Job:
    size, modified = 0, 0
    try:
        size, modified = state_of(path)
    except OSError as error:
        if on_error == "raise":
            raise ConfigError(f"case {case!r} has no {path.name}: preprocess it again") from error
    name = MASK if channel is None else channel_name(channel)
    return Job(
        f"{case}_{name}",
        case,
        lambda: _load(path, channel, channels),
        (path.name, size, modified, channel),
        path.name,
        {"source_bytes": size, "source_mtime_ns": modified},
    )


def _load(path: Path, channel: int | None, channels: int) -> Content:
    array = _open(path)
    wanted = 1 if channel is None else channels
    if array.shape[0] != wanted:
        raise FormatError("unsupported_image", None, f"{path} has {array.shape[0]} channels, not {wanted}")
    voxels = _read(path, array, channel or 0)
    if voxels.dtype.kind not in ("iu" if channel is None else "iuf"):
        raise FormatError("unsupported_image", None, f"{path} holds numbers of {voxels.dtype}")
    return Content(voxels, {}, {SHAPES: str(voxels.shape)})


def _open(path: Path) -> Any:
    try:
        import blosc2
    except ImportError:
        raise MissingExtraError("blosc2", "nnunet") from None
    try:
        array = blosc2.open(str(path), mode="r")
    except FileNotFoundError as error:
        raise SourceError.from_os(error, path) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise FormatError("unsupported_image", None, f"{path} is no array of blosc2: {error}") from error
    if len(getattr(array, "shape", ())) != 4:
        detail = f"{path} has the shape {getattr(array, 'shape', None)}, not (channel, x, y, z)"
        raise FormatError("unsupported_image", None, detail)
    return array


def _read(path: Path, array: Any, channel: int) -> NDArray[Any]:
    try:
        return np.ascontiguousarray(array[channel])
    except (RuntimeError, ValueError) as error:
        detail = f"{path}: channel {channel} cannot be decompressed: {error}"
        raise FormatError("undecodable_pixels", None, detail) from error
