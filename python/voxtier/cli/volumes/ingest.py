"""``voxtier volumes ingest``: files and series into a store."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON
from voxtier.cli.volumes.stores import emit
from voxtier.errors import ConfigError, LeftOutWarning

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject
    from voxtier.volumes.formats.sources import Images
    from voxtier.volumes.store.jobs import Job, OnError, OnGap

_TILINGS = click.Choice(["axial", "sagittal", "coronal", "isotropic"])


@click.command()
@click.argument("uri")
@click.argument("sources", nargs=-1, required=True)
@click.option(
    "--collection", help="The one collection of all sources. Default: the series that each file name states."
)
@click.option(
    "--subject",
    help="Subject of all sources. Default: what each file name tells; for DICOM the folder's name.",
)
@click.option("--orientation", type=_TILINGS, default="axial", help="Plane that is read fastest.")
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    type=_TILINGS,
    help="Store the voxels in this tiling too, for fast reads of other planes; repeatable.",
)
@click.option(
    "--compression",
    type=click.Choice(["zstd", "lz4", "gzip", "none"]),
    default="zstd",
    help="Compressor of the tiles.",
)
@click.option("--level", default=3, help="Compression level.")
@click.option("--reorient/--no-reorient", default=None, help="Flip and permute the axes to RAS.")
@click.option("--append", is_flag=True, help="Add to a store that exists.")
@click.option("--overwrite", is_flag=True, help="Replace a store that exists, once the new one is complete.")
@click.option(
    "--skip-errors",
    is_flag=True,
    help="Leave out images that are refused, or whose names do not tell subject or series (exit code 3),"
    " instead of refusing all.",
)
@click.option(
    "--on-gap",
    type=click.Choice(["error", "keep", "fill"]),
    default="error",
    help="Missing slices of a DICOM series: refuse it, close the gap, or fill in the least value.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read and check everything, say what would be ingested and exit as the ingest would; write nothing.",
)
@AS_JSON
def ingest(
    uri: str,
    sources: tuple[str, ...],
    collection: str | None,
    subject: str | None,
    orientation: str,
    replicas: tuple[str, ...],
    compression: str,
    level: int,
    reorient: bool | None,
    append: bool,
    overwrite: bool,
    skip_errors: bool,
    on_gap: OnGap,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Ingest NIfTI files, folders or globs of them, or DICOM files and folders of series, into the store URI.

    \b
    voxtier volumes ingest cohort scans/*_T1w.nii.gz scans/*_FLAIR.nii.gz
    voxtier volumes ingest cohort --append dicom/patient-7
    voxtier volumes ingest cohort --append dicom/patient-8/study-1/CT-2 --subject patient-8

    A file name tells the subject, the series and, in BIDS, session and run: sub-1_ses-2_T1w.nii.gz and
    p7_T1w.nii.gz are sub-1_ses-2_T1w of sub-1 and p7_T1w of p7, in the collection T1w.

    A DICOM folder holds the files themselves (folders below it are not read), and its name is the subject
    unless --subject says another one.

    Files of a DICOM folder that are no part of a scan (dose reports, secondary captures, localizers) are
    named and left out, and the exit code is 3.
    """
    from voxtier.volumes import CompressionConfig, Compressor, SliceOrientation, TileConfig, configured
    from voxtier.volumes.formats.sources import paths_of
    from voxtier.volumes.store.jobs import cohort_jobs

    niftis, series = _sort_sources(sources, subject)
    images: Images = [(path, subject) for path in paths_of(niftis)] if subject else niftis
    tile = TileConfig(SliceOrientation(orientation), replicas=tuple(map(SliceOrientation, replicas)))
    on_error: OnError = "skip" if skip_errors else "raise"
    started = time.monotonic()
    summary: dict[str, Any] = {}
    with (
        configured(tile=tile, compression=CompressionConfig(Compressor(compression), level)),
        _shown_warnings(as_json=as_json) as left_out,
    ):
        if dry_run:
            jobs = cohort_jobs(images or None, series or None, None, collection, reorient, on_gap, on_error)
            _check(uri, jobs, on_error, append=append, overwrite=overwrite, as_json=as_json)
        else:
            options: dict[str, Any] = {
                "reorient": reorient,
                "collection_name": collection,
                "progress": sys.stderr.isatty(),
                "on_error": on_error,
            }
            before, radi = _write(
                uri, images, series, on_gap, append=append, overwrite=overwrite, options=options
            )
            summary = {"store": uri, "volumes": len(radi.all_obs_ids) - before, "subjects": len(radi)}
    if summary:
        emit({**summary, "seconds": round(time.monotonic() - started, 2)}, as_json=as_json)
    return EXIT_PARTIAL if left_out else EXIT_OK


def _write(
    uri: str,
    images: Images,
    series: Sequence[tuple[Any, str]],
    on_gap: OnGap,
    *,
    append: bool,
    overwrite: bool,
    options: dict[str, Any],
) -> tuple[int, RadiObject]:
    """Ingest, and return the volumes that the store held before, and the store."""
    from voxtier.volumes import RadiObject

    if append:
        radi = RadiObject(uri)
        before = len(radi.all_obs_ids)
        radi.append(niftis=images or None, dicom_dirs=series or None, on_gap=on_gap, **options)
        return before, radi
    if series:
        return 0, RadiObject.from_dicoms(uri, series, overwrite=overwrite, on_gap=on_gap, **options)
    return 0, RadiObject.from_niftis(uri, images, overwrite=overwrite, **options)


def _check(
    uri: str,
    jobs: Mapping[str, Sequence[Job]],
    on_error: OnError,
    *,
    append: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Print a row for each volume that an ingest would store; raise what the ingest would raise."""
    from voxtier.volumes import RadiObject
    from voxtier.volumes.store.ingest import IngestOptions, check_volumes
    from voxtier.volumes.store.names import refuse_duplicates
    from voxtier.volumes.store.snapshots import Store, refuse_occupied_root
    from voxtier.volumes.tiledb.session import Session, as_uri
    from voxtier.volumes.tiledb.tables.names import SHAPES

    present: list[str] = []
    if append:
        present = RadiObject(uri).all_obs_ids
    else:
        refuse_occupied_root(Store(as_uri(uri), Session.of(None), "radi_object"), overwrite=overwrite)
    every = [job for group in jobs.values() for job in group]
    refuse_duplicates([job.obs_id for job in every], present, labels=[job.label for job in every])
    checked = [
        (name, job, outcome.row)
        for name, group in jobs.items()
        for job, outcome in zip(group, check_volumes(group, IngestOptions(on_error)), strict=True)
    ]
    for name, job, row in checked:
        if row is not None:
            names = {"subject": job.subject, "obs_id": job.obs_id, "collection": name}
            found = {"path": job.label, **names, "shape": row[SHAPES]}
            emit({"status": "would ingest", **found}, as_json=as_json)


@contextmanager
def _shown_warnings(*, as_json: bool) -> Iterator[list[LeftOutWarning]]:
    """Print what is warned of as rows, also when an error follows; yield the list of what is left out."""
    left_out: list[LeftOutWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield left_out
        finally:
            for warning in caught:
                if isinstance(warning.message, LeftOutWarning):
                    left_out.append(warning.message)
                    row = {"path": warning.message.what, "reason": warning.message.reason}
                    emit({"status": "left out", **row}, as_json=as_json)
                elif issubclass(warning.category, UserWarning):
                    emit({"status": "warning", "reason": str(warning.message)}, as_json=as_json)


def _sort_sources(
    sources: Iterable[str], subject: str | None
) -> tuple[list[str], list[tuple[Path | list[Path], str]]]:
    """Return the sources of NIfTI files, and DICOM folders and files with their subjects; never both."""
    from voxtier.volumes.formats.dicom import expand_files, is_dicom
    from voxtier.volumes.formats.identity import stem_of
    from voxtier.volumes.formats.sources import has_images

    niftis: list[str] = []
    series: list[tuple[Path | list[Path], str]] = []
    files: dict[Path, list[Path]] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            has_dicom = any(map(is_dicom, path.iterdir()))
            if not has_images(path):
                series.append((path, subject or path.absolute().name))
                continue
            if has_dicom:
                raise ConfigError(
                    f"{source} holds NIfTI files and DICOM files: name the ones to ingest, with a glob"
                )
            niftis.append(source)
        elif found := expand_files(source):
            for file in found:
                files.setdefault(file.absolute().parent, []).append(file)
        else:
            niftis.append(source)
    for parent, group in files.items():
        only = group[0] if len(group) == 1 else None
        series.append((only or group, subject or (parent.name if only is None else stem_of(only))))
    if niftis and series:
        raise ConfigError("NIfTI files and DICOM folders cannot be mixed: ingest them in two calls")
    return niftis, series
