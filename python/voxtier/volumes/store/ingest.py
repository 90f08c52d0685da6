"""From files to arrays: read, check, write, verify; several volumes at once, each resumable.

An array's name is drawn from the observation, the file's fingerprint and the write options, and its
metadata (the
last thing written) holds its row: an ingest that was cut off takes over what it finds finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError, IngestError, VoxtierError
from voxtier.volumes import geometry
from voxtier.volumes.config import Config, get_config
from voxtier.volumes.geometry import OrientationInfo
from voxtier.volumes.store import foreground
from voxtier.volumes.tiledb import arrays as voxels
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.format import recovery as mending
from voxtier.volumes.tiledb.layout import Region
from voxtier.volumes.tiledb.session import Session

OnError = Literal["raise", "skip"]
OnGap = Literal["error", "keep", "fill"]

_SMALL: Final = 1 << 20  # bytes of an image that one thread writes sooner than several


@dataclass(frozen=True, slots=True)
class Content:
    """Voxels as they will be stored, metadata of the array, columns of the row."""

    voxels: NDArray[Any]
    meta: dict[str, Any]
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One volume to write."""

    obs_id: str
    subject: str
    load: Callable[[], Content]
    fingerprint: tuple[object, ...]
    label: str  # for messages
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job."""

    obs_id: str
    label: str
    status: str  # written | resumed | error
    detail: str
    row: dict[str, Any]
    folder: str
    seconds: float


def nifti_content(path: str | PathLike[str], *, reorient: bool | None = None) -> Content:
    """Read a NIfTI file into what is stored of it."""
    from voxtier.volumes.formats.nifti import read_nifti

    image = read_nifti(path)
    return _content(image.voxels, image.orientation, dict(image.meta), image.row, reorient)


def dicom_content(
    path: str | PathLike[str],
    *,
    reorient: bool | None = None,
    on_gap: OnGap = "error",
    series: str | None = None,
) -> Content:
    """Read the one series of a folder (or the named one) into what is stored of it."""
    from voxtier.volumes.formats.dicom import read_series

    images = [item for item in read_series(path, on_gap=on_gap) if series in (None, item.series_instance_uid)]
    if len(images) != 1:
        uids = ", ".join(item.series_instance_uid for item in images)
        raise ConfigError(
            f"{path} holds {len(images)} volumes ({uids}): ingest them as a collection, or name one series"
        )
    return _dicom(images[0], reorient)


def dicom_jobs(
    pairs: Iterable[tuple[Any, str]],
    collection: str | None,
    *,
    reorient: bool | None,
    on_gap: OnGap = "error",
) -> dict[str, list[Job]]:
    """Return the jobs of DICOM folders.

    One volume for each series, collected by modality unless a name is given.
    """
    from voxtier.volumes.formats.dicom import assemble, find_series

    jobs: dict[str, list[Job]] = {}
    for folder, subject in pairs:
        path = Path(folder)
        taken: dict[str, int] = {}
        for slices in find_series(path):
            name = engine.checked_name(
                "collection", collection or str(slices[0].header.get("Modality", "")) or "unknown"
            )
            taken[name] = taken.get(name, 0) + 1
            suffix = f"_acq-{taken[name]}" if taken[name] > 1 else ""
            jobs.setdefault(name, []).append(
                Job(
                    f"{subject}_{name}{suffix}", subject,
                    lambda slices=slices: _dicom(assemble(slices, on_gap=on_gap), reorient),  # type: ignore[misc]
                    (*file_fingerprint(path), slices[0].group, on_gap, reorient), str(path), {},
                )
            )  # fmt: skip
    return jobs


def _dicom(image: Any, reorient: bool | None) -> Content:  # noqa: FBT001
    return _content(image.voxels, image.orientation, dict(image.meta), image.row, reorient)


def _content(
    image: NDArray[Any],
    orientation: OrientationInfo,
    meta: dict[str, Any],
    row: dict[str, Any],
    reorient: bool | None,  # noqa: FBT001
) -> Content:
    options = get_config().orientation
    if (
        options.reorient_on_load if reorient is None else reorient
    ) and orientation.axcodes != options.canonical_target:
        if options.store_original_affine:
            meta["original_affine"] = geometry.to_json(orientation.affine)
        image, affine = geometry.reorient(image, orientation.affine, options.canonical_target)
        orientation = OrientationInfo(
            geometry.axcodes(affine), affine, orientation.source, orientation.confidence
        )
    if (meta.get("nifti_scl_slope", "1.0"), meta.get("nifti_scl_inter", "0.0")) != (
        "1.0",
        "0.0",
    ) and image.dtype.kind in "iu":
        meta |= {"stored_min": int(image.min()), "stored_max": int(image.max())}
    meta |= geometry.to_meta(orientation)
    row = {
        "voxel_spacing": str(tuple(float(step) for step in geometry.spacing(orientation.affine))),
        "dimensions": str(tuple(image.shape)),
        "axcodes": orientation.axcodes,
        "affine_json": geometry.to_json(orientation.affine),
        "orientation_source": orientation.source,
        **row,
    }
    return Content(image, meta, row)


def file_fingerprint(path: Path) -> tuple[object, ...]:
    """Return what tells one state of a file (or folder of slices) from another."""
    if path.is_dir():
        entries = [entry.stat() for entry in sorted(path.iterdir()) if entry.is_file()]
        return (str(path.absolute()), len(entries), *(f"{e.st_size}.{e.st_mtime_ns}" for e in entries))
    try:
        state = path.stat()
    except OSError:
        return (str(path.absolute()), "missing")
    return str(path.absolute()), state.st_size, state.st_mtime_ns


def write_volumes(
    jobs: Sequence[Job],
    group: str,
    session: Session,
    *,
    on_error: OnError = "raise",
    progress: bool = False,
) -> list[Outcome]:
    """Write the arrays of some jobs below a group, several at a time; nothing becomes visible here.

    Raises
    ------
    IngestError
        With ``on_error="raise"``, after every job was tried: the user sees all bad files at once.
    """
    config = get_config()
    workers = min(config.read.max_workers, max(1, len(jobs)))
    started = time.monotonic()
    outcomes: list[Outcome] = []
    # on an object store one listing answers for all volumes what costs five requests for each
    listed = frozenset(engine.subfolders(group, session)) if engine.is_remote(group) else None
    if listed is None and workers >= _cores():
        session = session.serial()  # the workers alone keep every core busy
    with ThreadPoolExecutor(workers, thread_name_prefix="voxtier-ingest") as pool:
        # submitted here, so that the workers see the caller's configuration
        for outcome in pool.map(lambda job: _write_one(job, group, listed, session, config), jobs):
            outcomes.append(outcome)
            if progress:
                _report(outcomes, len(jobs), started)
    failures = [(item.label, item.detail) for item in outcomes if item.status == "error"]
    if failures and (on_error == "raise" or len(failures) == len(outcomes)):
        raise IngestError(failures)
    return outcomes


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(outcomes: Sequence[Outcome], total: int, started: float) -> None:
    bad = sum(item.status == "error" for item in outcomes)
    text = f"\r{len(outcomes)}/{total} volumes, {bad} refused, {time.monotonic() - started:.1f} s"
    sys.stderr.write(text + ("\n" if len(outcomes) == total else ""))
    sys.stderr.flush()


def _write_one(
    job: Job, group: str, listed: frozenset[str] | None, session: Session, config: Config
) -> Outcome:
    from voxtier.volumes.config import configured

    started = time.monotonic()
    options = hashlib.blake2b(repr(config.write).encode(), digest_size=8).hexdigest()
    folder = engine.array_name(job.obs_id, *job.fingerprint, options)
    uri = f"{group}/{folder}"
    try:
        with configured(write=config.write, read=config.read, s3=config.s3):
            row, status = None, "resumed"
            if Path(uri).exists() if listed is None else folder in listed:
                row = _taken_over(uri, job, session)
            if row is None:
                row, status = _written(uri, job, session, config), "written"
        row = {
            **row,
            **job.extra,
            "obs_subject_id": job.subject,
            "obs_id": job.obs_id,
            "voxtier_array": folder,
        }
        return Outcome(job.obs_id, job.label, status, "", row, folder, time.monotonic() - started)
    except (VoxtierError, OSError, MemoryError) as error:
        return Outcome(job.obs_id, job.label, "error", str(error), {}, folder, time.monotonic() - started)


def _taken_over(uri: str, job: Job, session: Session) -> dict[str, Any] | None:
    """Return the row of an array that an earlier, unfinished ingest completed; remove an incomplete one.

    One whose removal was cut off may hold its metadata and no voxels: both its ends have to be there.
    """
    found: voxels.VoxelArray | None = None
    with suppress(VoxtierError):  # an array that does not open was cut off
        torn = not engine.is_remote(uri) and mending.torn_below(Path(uri, "__meta"))
        if not torn and engine.object_kind(uri, session) == "array":
            found = voxels.VoxelArray(uri, session)
    if found is not None:
        if found.meta.get("obs_id") == job.obs_id and "voxtier_row" in found.meta and _is_whole(found):
            row: dict[str, Any] = json.loads(str(found.meta["voxtier_row"]))
            return row
        voxels.forget(uri)
    engine.remove_tree(uri, session)
    return None


def _is_whole(array: voxels.VoxelArray) -> bool:
    """Return whether all cells of an array were written, and both its ends can still be read."""
    every = tuple((0, size - 1) for size in array.layout.stored_shape)
    if array.domain is None or tuple((int(low), int(high)) for low, high in array.domain) != every:
        return False
    with suppress(VoxtierError):
        for corner in _corners(array):
            array.own_cells(corner)
        return True
    return False


def _corners(array: voxels.VoxelArray) -> tuple[Region, Region]:
    shape = array.layout.shape
    return tuple((0, 1, 1) for _ in shape), tuple((size - 1, 1, 1) for size in shape)


def _written(uri: str, job: Job, session: Session, config: Config) -> dict[str, Any]:
    content = job.load()
    image = content.voxels
    if image.nbytes <= _SMALL and not engine.is_remote(uri):
        session = session.serial()
    meta = {
        "tile_orientation": config.write.tile.orientation.value,
        **content.meta,
        "obs_id": job.obs_id,
        "voxtier_row": json.dumps(content.row),
    }
    if voxels.stored_dtype(image.dtype) != image.dtype.newbyteorder("<"):
        meta["voxtier_dtype"] = image.dtype.newbyteorder("=").str
    try:
        replicas.write_volume(uri, image, meta, config.write, session, free=True)
        foreground.note(uri, image, session)
        _verify_corners(uri, image, session)
    except BaseException:
        engine.remove_tree(uri, session)
        raise
    return content.row


def _verify_corners(uri: str, image: NDArray[Any], session: Session) -> None:
    """Read the first and the last voxel back: the array is open-able, of this shape, and holds this image."""
    array = voxels.VoxelArray(uri, session)
    for region in _corners(array):
        corner = tuple(start for start, _, _ in region)
        found = array.read(region).reshape(())
        wanted = image[corner].astype(array.layout.cell)
        if found.tobytes() != np.asarray(wanted).tobytes():
            raise FormatError(
                "changed_during_read",
                None,
                f"{uri}: the voxel {corner} read back differs from what was written",
            )


def jobs_of(
    sources: Iterable[Any],
    load: Callable[[Path], Content],
    *,
    keep_paths: bool = False,
    options: tuple[object, ...] = (),
) -> list[Job]:
    """Return the jobs of some sources (see `sources.Source`)."""
    from voxtier.volumes.formats.sources import series_of

    return [
        Job(
            source.obs_id,
            source.subject,
            lambda path=source.path: load(path),  # type: ignore[misc]
            (*file_fingerprint(source.path), *options),
            str(source.path),
            {
                "series_type": series_of(source.path),
                **({"source_path": str(source.path.absolute())} if keep_paths else {}),
            },
        )
        for source in sources
    ]
