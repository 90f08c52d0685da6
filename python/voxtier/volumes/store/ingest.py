"""From jobs to arrays: read, check, write, verify; several volumes at once, each resumable.

An array's name is drawn from the observation, the file's fingerprint and the write options, and its metadata
(the last thing written) holds its row: an ingest that was cut off takes over what it finds finished.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier import __version__
from voxtier.errors import ConfigError, FormatError, IngestError, LeftOutWarning, VoxtierError
from voxtier.system.machine import usable_processors
from voxtier.system.progress import Progress
from voxtier.system.text import refuse_non_unicode
from voxtier.system.workers import Workers, finish
from voxtier.volumes.config import Config, configured, get_config
from voxtier.volumes.store.foreground import write_counts
from voxtier.volumes.store.jobs import Job, OnError
from voxtier.volumes.store.names import array_name
from voxtier.volumes.tiledb.arrays import VoxelArray, forget
from voxtier.volumes.tiledb.format.recovery import has_partial_metadata
from voxtier.volumes.tiledb.layout import Region
from voxtier.volumes.tiledb.places import remove_own
from voxtier.volumes.tiledb.replicas import write_volume
from voxtier.volumes.tiledb.session import Session, is_remote, list_folders, read_kind
from voxtier.volumes.tiledb.tables.names import ARRAYS

# Who reads: what another one left unfinished is made anew. Raise the number where files are read otherwise.
_READ_BY = (__version__, 2)


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How images are ingested.

    Parameters
    ----------
    on_error : {"raise", "skip"}
        Whether one bad image refuses all.
    progress : bool
        Report on stderr.
    """

    on_error: OnError = "raise"
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Parameters
    ----------
    label : str
        Name of the image.
    row : dict or None
        Its row of observations; None when the image was refused.
    detail : str
        Why it was refused.
    """

    label: str
    row: dict[str, Any] | None
    detail: str = ""


def write_volumes(jobs: Sequence[Job], group: str, session: Session, options: IngestOptions) -> list[Outcome]:
    """Write the arrays of some jobs below a group, several at a time; nothing becomes visible here.

    Parameters
    ----------
    jobs : sequence of Job
        The volumes.
    group : str
        Address of the group that will hold them.
    session : Session
        How it is reached.
    options : IngestOptions
        What bad images do, and whether to report.

    Returns
    -------
    list of Outcome
        One for each job, in their order.

    Raises
    ------
    IngestError
        Lists all bad images, after every job was tried; when bad images are skipped, only if all are bad.
    """
    config = get_config()
    # On an object store one listing answers for all volumes what costs five requests for each.
    present = frozenset(list_folders(group, session)) if is_remote(group) else None
    if present is None and _workers(jobs) >= usable_processors():
        session = session.single_threaded()  # the workers alone keep every core busy
    return _try_all(jobs, lambda job: _store(job, group, present, session, config), options)


def check_volumes(jobs: Sequence[Job], options: IngestOptions) -> list[Outcome]:
    """Read the images of some jobs as `write_volumes` does, and write nothing.

    Parameters
    ----------
    jobs : sequence of Job
        The volumes.
    options : IngestOptions
        What bad images do, and whether to report.

    Returns
    -------
    list of Outcome
        One for each job, in their order.

    Raises
    ------
    IngestError
        As `write_volumes` raises it.
    """
    config = get_config()

    def read(job: Job) -> dict[str, Any]:
        with configured(write=config.write, read=config.read, s3=config.s3):
            row = job.load().row
        _refuse_columns(job, row)
        return {**job.extra, **row, "obs_subject_id": job.subject, "obs_id": job.obs_id}

    return _try_all(jobs, read, options)


def _try_all(
    jobs: Sequence[Job], work: Callable[[Job], dict[str, Any]], options: IngestOptions
) -> list[Outcome]:
    """Return the outcome of each job, several at a time."""
    outcomes: list[Outcome] = []
    reports = Progress("volumes", len(jobs), quiet=not options.progress)
    failures: list[tuple[str, str]] = []

    def attempt(job: Job) -> Outcome:
        try:
            return Outcome(job.label, work(job))
        except (VoxtierError, OSError, MemoryError) as error:
            return Outcome(job.label, None, str(error))

    pool = Workers(_workers(jobs), "voxtier-ingest")

    def try_each() -> None:
        with pool:
            for outcome in pool.map(attempt, jobs):
                outcomes.append(outcome)
                if outcome.row is None:
                    failures.append((outcome.label, outcome.detail))
                reports.advance(note=f", {len(failures)} refused")

    finish(try_each, pool.stop)  # no thread may write any more when what was written is removed
    reports.close(f", {len(failures)} refused")
    if failures and (options.on_error == "raise" or len(failures) == len(outcomes)):
        raise IngestError(failures)
    for label, why in failures:
        warnings.warn(LeftOutWarning(label, why), stacklevel=3)
    return outcomes


def _workers(jobs: Sequence[Job]) -> int:
    return min(get_config().read.max_workers, max(1, len(jobs)))


def _store(
    job: Job, group: str, present: frozenset[str] | None, session: Session, config: Config
) -> dict[str, Any]:
    """Return the row of a job's array, which is written unless an earlier ingest finished it."""
    options = hashlib.blake2b(repr(config.write).encode(), digest_size=8).hexdigest()
    with configured(write=config.write, read=config.read, s3=config.s3):
        _refuse_text(job.extra)
        folder = array_name(job.obs_id, *_READ_BY, *job.fingerprint, *job.read_state(), options)
        uri = f"{group}/{folder}"
        exists = Path(uri).exists() if present is None else folder in present
        row = _take_over(uri, job, session) if exists else None
        if row is None:
            row = _write(uri, job, session, config)
        _refuse_columns(job, row)
    keys = {"obs_subject_id": job.subject, "obs_id": job.obs_id, ARRAYS: folder}
    return {**job.extra, **row, **keys}


def _refuse_columns(job: Job, row: dict[str, Any]) -> None:
    _refuse_text(row)
    if both := sorted(job.given & row.keys()):
        raise ConfigError(f"obs has a column {both[0]!r}, which the image fills itself: rename it")


def _refuse_text(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, str):
            refuse_non_unicode(value, f"column {name!r}")


def _take_over(uri: str, job: Job, session: Session) -> dict[str, Any] | None:
    """Return the row of an array that an earlier, unfinished ingest completed; remove an incomplete one.

    One whose removal was cut off may hold its metadata and no voxels: both its ends have to be there.
    """
    array: VoxelArray | None = None
    with suppress(VoxtierError):  # an array that does not open was cut off
        is_partial = not is_remote(uri) and has_partial_metadata(uri)
        if not is_partial and read_kind(uri, session) == "array":
            array = VoxelArray(uri, session)
    if array is not None:
        if array.meta.get("obs_id") == job.obs_id and "voxtier_row" in array.meta and _is_complete(array):
            row: dict[str, Any] = json.loads(str(array.meta["voxtier_row"]))
            return row
        forget(uri)
    remove_own(uri, session)
    return None


def _is_complete(array: VoxelArray) -> bool:
    """Return whether all cells of an array were written, and both its ends can still be read."""
    if not array.layout.covers(array.domain):
        return False
    with suppress(VoxtierError):
        for corner in _corners(array):
            array.read(corner)
        return True
    return False


def _corners(array: VoxelArray) -> tuple[Region, Region]:
    shape = array.layout.shape
    return tuple((0, 1, 1) for _ in shape), tuple((size - 1, 1, 1) for size in shape)


def _write(uri: str, job: Job, session: Session, config: Config) -> dict[str, Any]:
    content = job.load()
    image = content.voxels
    meta = {**content.meta, "obs_id": job.obs_id, "voxtier_row": json.dumps(content.row)}
    try:
        write_volume(uri, image, meta, config.write, session, is_free=True)
        write_counts(uri, image, session)
        _verify_corners(uri, image, session)
    except BaseException:
        remove_own(uri, session)
        raise
    return content.row


def _verify_corners(uri: str, image: NDArray[Any], session: Session) -> None:
    """Read the first and the last voxel back: the array opens, has this shape and holds this image."""
    array = VoxelArray(uri, session)
    for region in _corners(array):
        corner = tuple(start for start, _, _ in region)
        cell = array.read(region).reshape(())
        expected = image[corner].astype(array.layout.cell)
        if cell.tobytes() != np.asarray(expected).tobytes():
            raise FormatError(
                "store_damaged", None, f"{uri}: the voxel {corner} that was written reads back differently"
            )
