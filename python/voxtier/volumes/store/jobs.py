"""What an ingest has to do: one job for each volume, from NIfTI files, DICOM series or voxels in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

from numpy.typing import NDArray

from voxtier.arguments import check_kind
from voxtier.errors import ConfigError, FormatError, IngestError, LeftOutWarning, NotFoundError, SourceError
from voxtier.system.text import is_unicode
from voxtier.volumes import geometry
from voxtier.volumes.config import get_config
from voxtier.volumes.formats.dicom import (
    DicomPath,
    OnGap,
    assemble,
    describe,
    files_of,
    find_series,
    volume_label,
)
from voxtier.volumes.formats.image import Image
from voxtier.volumes.formats.nifti import read_nifti
from voxtier.volumes.formats.nifti_files import locate
from voxtier.volumes.formats.sources import (
    SUBJECT_OF,
    ImageFormat,
    Images,
    OnError,
    Source,
    checked_pairs,
    drawn,
    find_scans,
    grouped_sources,
    named_sources,
)
from voxtier.volumes.geometry import OrientationInfo
from voxtier.volumes.store.names import checked_name
from voxtier.volumes.tiledb.tables.names import SHAPES

__all__ = [
    "Content",
    "Job",
    "OnError",
    "OnGap",
    "cohort_jobs",
    "collection_jobs",
    "dicom_content",
    "dicom_jobs",
    "nifti_content",
    "refuse_misaligned",
]


@dataclass(frozen=True, slots=True)
class Content:
    """What is stored of one image.

    Parameters
    ----------
    voxels : numpy.ndarray
        As they will be stored, (x, y, z[, t]).
    meta : dict
        Metadata of the array.
    row : dict
        Columns of its row of observations.
    """

    voxels: NDArray[Any]
    meta: dict[str, Any]
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One volume to write.

    Parameters
    ----------
    obs_id, subject : str
        Whose volume it is.
    load : callable
        Reads the image.
    fingerprint : tuple
        Equal for equal content: an array that a cut-off ingest finished is taken over by its fingerprint.
    label : str
        Name of the image in messages.
    extra : dict
        Further columns of its row.
    given : frozenset of str
        Those of them that the user gave: an image that states one of them itself is refused.
    read_state : callable
        Gives the rest of the fingerprint, for a source whose state costs a look: asked by the worker, just
        before it loads.
    """

    obs_id: str
    subject: str
    load: Callable[[], Content]
    fingerprint: tuple[object, ...]
    label: str
    extra: dict[str, Any]
    given: frozenset[str] = frozenset()
    read_state: Callable[[], tuple[object, ...]] = tuple


def nifti_content(path: str | PathLike[str], *, reorient: bool | None = None) -> Content:
    """Read a NIfTI file into what is stored of it."""
    return _content(read_nifti(path), reorient=reorient)


def dicom_content(path: DicomPath, *, reorient: bool | None = None, on_gap: OnGap = "error") -> Content:
    """Read the one volume of a folder into what is stored of it; warns of files that are left out.

    Parameters
    ----------
    path : path-like or sequence of path-like
        A folder of slices, a file, or files.
    reorient : bool, optional
        Flip and permute to the configured target; by default as configured.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices.

    Returns
    -------
    Content
        What is stored.

    Raises
    ------
    ConfigError
        When the folder holds several volumes; the message lists their series.
    FormatError
        When a series cannot become a volume without guessing.
    """
    path = drawn(path)
    found = find_series(path, on_gap=on_gap)
    for _, error in found.refused:
        raise error
    if len(found.volumes) != 1:
        uids = ", ".join(sorted({stacks[0].slices[0].kind.series for stacks in found.volumes}))
        raise ConfigError(
            f"{describe(path)} holds {len(found.volumes)} volumes (series {uids}): RadiObject.from_dicoms or"
            " VolumeCollection.from_dicoms stores them all"
        )
    found.warn()
    return _content(assemble(found.volumes[0]), reorient=reorient)


def _content(image: Image, *, reorient: bool | None) -> Content:
    voxels, orientation, meta = image.voxels, image.orientation, dict(image.meta)
    options = get_config().orientation
    wants_target = options.reorient_on_load if reorient is None else reorient
    if wants_target and orientation.axcodes != options.canonical_target:
        if options.store_original_affine:
            meta["original_affine"] = geometry.to_json(orientation.affine)
        voxels, affine = geometry.reorient(voxels, orientation.affine, options.canonical_target)
        orientation = OrientationInfo(affine, orientation.source, orientation.confidence)
    scaling = (meta.get("nifti_scl_slope", "1.0"), meta.get("nifti_scl_inter", "0.0"))
    if scaling != ("1.0", "0.0") and voxels.dtype.kind in "iu":
        meta |= {"stored_min": int(voxels.min()), "stored_max": int(voxels.max())}
    meta |= geometry.to_meta(orientation)
    row = {
        "voxel_spacing": str(tuple(float(step) for step in geometry.spacing(orientation.affine))),
        SHAPES: str(tuple(voxels.shape)),
        "axcodes": orientation.axcodes,
        "affine_json": geometry.to_json(orientation.affine),
        "orientation_source": orientation.source,
        **image.row,
    }
    return Content(voxels, meta, row)


def collection_jobs(
    name: str | None,
    niftis: Images | None,
    dicom_dirs: Iterable[tuple[Any, str]] | None,
    reorient: bool | None,  # noqa: FBT001
    on_gap: OnGap = "error",
    on_error: OnError = "raise",
) -> list[Job]:
    """Return the jobs of one collection.

    Parameters
    ----------
    name : str or None
        Name of the collection; None takes the series that the files state.
    niftis : pairs (path, subject), folder or glob, optional
        NIfTI files.
    dicom_dirs : sequence of (folder, subject), optional
        DICOM series, where ``niftis`` is None.
    reorient : bool or None
        Flip and permute to the configured target; None means as configured.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices of a DICOM series.
    on_error : {"raise", "skip"}
        Whether one bad series, or one name that does not tell the subject, refuses all.

    Returns
    -------
    list of Job
        One for each volume.
    """
    if niftis is not None:
        sources = grouped_sources(niftis, name, ask_for_series=False, on_error=on_error)
        return _nifti_jobs(sources, reorient=reorient)
    groups = dicom_jobs(dicom_dirs or (), name, reorient=reorient, on_gap=on_gap, on_error=on_error)
    return [job for group in groups.values() for job in group]


def cohort_jobs(
    niftis: Images | None,
    dicom_dirs: Iterable[tuple[Any, str]] | None,
    images: Mapping[str, Images] | None,
    collection_name: str | None,
    reorient: bool | None,  # noqa: FBT001
    on_gap: OnGap = "error",
    on_error: OnError = "raise",
    format_hint: Mapping[str, ImageFormat | str] | None = None,
) -> dict[str, list[Job]]:
    """Return the jobs of a cohort, from exactly one kind of source.

    Parameters
    ----------
    niftis : pairs (path, subject), folder or glob, optional
        NIfTI files of one collection, or of one for each series that their names state.
    dicom_dirs : sequence of (folder, subject), optional
        DICOM series.
    images : mapping, optional
        Collection name -> NIfTI files, or folders of DICOM series.
    collection_name : str or None
        Name for the collection of ``niftis`` or ``dicom_dirs``.
    reorient : bool or None
        Flip and permute to the configured target; None means as configured.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices of a DICOM series.
    on_error : {"raise", "skip"}
        Whether one bad series, or one name that does not tell subject or series, refuses all.
    format_hint : mapping, optional
        Collection name of ``images`` -> ``"nifti"`` or ``"dicom"``; for a collection that it does not name
        the files tell. None means NIfTI.

    Returns
    -------
    dict
        Collection name -> one job for each volume.

    Raises
    ------
    ConfigError
        When no source is given, or several, for images with a collection_name, and for a hint that names no
        collection or no format.
    """
    if sum(value is not None for value in (niftis, dicom_dirs, images)) != 1:
        raise ConfigError("give exactly one of niftis, dicom_dirs and images")
    kinds = "a mapping {collection: folder or glob}; the files of one collection are niftis="
    check_kind("images", images, (Mapping, NoneType), kinds)
    if images is not None and collection_name is not None:
        raise ConfigError("images names its collections: leave out collection_name")
    if dicom_dirs is not None:
        return dicom_jobs(dicom_dirs, collection_name, reorient=reorient, on_gap=on_gap, on_error=on_error)
    if images is not None:
        images = {name: drawn(group) for name, group in images.items()}
    scans = {} if format_hint is None else find_scans(images or {}, format_hint)
    if images is None:
        sources = grouped_sources(niftis or (), collection_name, on_error=on_error)
    else:
        niftis_of = {name: group for name, group in images.items() if name not in scans}
        sources = named_sources(niftis_of, on_error)
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.collection, []).append(source)
    jobs = {name: _nifti_jobs(group, reorient=reorient) for name, group in groups.items()}
    for name, pairs in scans.items():
        jobs |= dicom_jobs(pairs, name, reorient=reorient, on_gap=on_gap, on_error=on_error)
    return {name: jobs[name] for name in images or jobs if name in jobs}


def dicom_jobs(
    pairs: Iterable[tuple[Any, str]],
    collection: str | None,
    *,
    reorient: bool | None,
    on_gap: OnGap = "error",
    on_error: OnError = "raise",
) -> dict[str, list[Job]]:
    """Return the jobs of DICOM folders: one for each volume; warns of what is left out.

    The volume with the most slices has the plain name, a localizer the last.

    Parameters
    ----------
    pairs : iterable of (folder, subject)
        Folders of slices, files, or lists of files; each with the name of a subject.
    collection : str or None
        Name of the collection of all; None collects by modality.
    reorient : bool or None
        Flip and permute to the configured target; None means as configured.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices.
    on_error : {"raise", "skip"}
        Whether one bad series refuses all.

    Returns
    -------
    dict
        Collection name -> one job for each volume.

    Raises
    ------
    ConfigError
        For what is no pair.
    IngestError
        Lists the series and folders that are refused, once all were looked at; also those whose subject, as
        the name of a folder, is no UTF-8 text.
    """
    jobs: dict[str, list[Job]] = {}
    failures: list[tuple[str, str]] = []
    for path, subject in checked_pairs(pairs):
        if not is_unicode(subject):
            failures.append((describe(path), f"the subject {subject!r} is no UTF-8 text: {SUBJECT_OF}"))
            continue
        try:
            found = find_series(path, on_gap=on_gap)
        except (FormatError, SourceError, NotFoundError) as error:
            failures.append((describe(path), str(error)))
            continue
        failures += [(label, str(error)) for label, error in found.refused]
        found.warn()
        counts: dict[str, int] = {}
        for stacks in found.volumes:
            first = stacks[0].slices[0]
            name = checked_name("collection", collection or first.modality)
            counts[name] = counts.get(name, 0) + 1
            suffix = f"_acq-{counts[name]}" if counts[name] > 1 else ""
            job = Job(
                obs_id=f"{subject}_{name}{suffix}",
                subject=subject,
                load=lambda stacks=stacks: _content(assemble(stacks), reorient=reorient),  # type: ignore[misc]
                fingerprint=(
                    *_dicom_fingerprint(path),
                    first.sop_instance_uid,
                    counts[name],
                    on_gap,
                    reorient,
                ),
                label=describe(path) + (f" ({volume_label(stacks)})" if len(found.volumes) > 1 else ""),
                extra={},
            )
            jobs.setdefault(name, []).append(job)
    if failures and (on_error == "raise" or not jobs):
        raise IngestError(failures)
    for label, why in failures:
        warnings.warn(LeftOutWarning(label, why), stacklevel=3)
    return jobs


def _nifti_jobs(sources: Sequence[Source], *, reorient: bool | None) -> list[Job]:
    for source in sources:
        checked_name("collection", source.collection)
    return [
        Job(
            obs_id=source.obs_id,
            subject=source.subject,
            load=lambda path=source.path: nifti_content(path, reorient=reorient),  # type: ignore[misc]
            fingerprint=(*_file_fingerprint(source.path), reorient),
            label=str(source.path),
            extra=source.columns,
            read_state=partial(_voxels_fingerprint, source.path),
        )
        for source in sources
    ]


def _dicom_fingerprint(path: DicomPath) -> tuple[object, ...]:
    """Return what tells one state of the files of a folder from another."""
    return tuple(part for file in files_of(path) for part in _file_fingerprint(file))


def _voxels_fingerprint(path: Path) -> tuple[object, ...]:
    """Return what tells one state of the voxels of a .hdr/.img pair from another; for one file nothing."""
    try:
        files = locate(path)
    except (FormatError, SourceError):  # told when it is read
        return ()
    return _file_fingerprint(files.voxels) if files.is_pair else ()


def _file_fingerprint(path: Path) -> tuple[object, ...]:
    """Return what tells one state of a file from another."""
    try:
        state = path.stat()
    except OSError:
        return (str(path.absolute()), "missing")
    return str(path.absolute()), state.st_size, state.st_mtime_ns


def refuse_misaligned(jobs: Mapping[str, Sequence[Job]]) -> None:
    """Refuse collections whose subjects differ.

    Raises
    ------
    ConfigError
        Names a collection and the subjects that it lacks.
    """
    everyone = {job.subject for group in jobs.values() for job in group}
    for name, group in jobs.items():
        missing = sorted(everyone - {job.subject for job in group})
        if missing:
            raise ConfigError(f"collection {name!r} lacks the subjects {', '.join(missing[:5])}")
