"""``voxtier volume ingest``: files and series into a store."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON
from voxtier.cli.volumes.stores import emit
from voxtier.errors import ConfigError

if TYPE_CHECKING:
    from voxtier.volumes.formats.sources import Images
    from voxtier.volumes.store.ingest import OnError

_TILINGS = click.Choice(["axial", "sagittal", "coronal", "isotropic"])


@click.command()
@click.argument("uri")
@click.argument("sources", nargs=-1, required=True)
@click.option("--collection", help="Name of the collection. Default: the series that each file name states.")
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
    help="Leave out images that are refused (exit code 3) instead of refusing all.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be ingested, write nothing.")
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
    dry_run: bool,
    as_json: bool,
) -> int:
    """Ingest NIfTI files, folders or globs of them, or folders of DICOM series, into the store URI.

    \b
    voxtier volume ingest cohort scans/*_T1w.nii.gz scans/*_FLAIR.nii.gz
    voxtier volume ingest cohort --append dicom/patient-7

    A file name tells the subject, the series and, in BIDS, session and run: sub-1_ses-2_T1w.nii.gz and
    p7_T1w.nii.gz are sub-1_ses-2_T1w of sub-1 and p7_T1w of p7, in the collection T1w.
    """
    from voxtier.volumes import (
        CompressionConfig,
        Compressor,
        RadiObject,
        SliceOrientation,
        TileConfig,
        configured,
    )
    from voxtier.volumes.formats.sources import grouped_sources, paths_of

    niftis, folders = _sort_sources(sources, subject)
    images: Images = [(path, subject) for path in paths_of(niftis)] if subject else niftis
    named = grouped_sources(images, collection)
    if dry_run:
        for source in named:
            row = {"path": source.path, "subject": source.subject, "obs_id": source.obs_id}
            emit({"status": "would ingest", **row, "collection": source.collection}, as_json=as_json)
        for path, name in folders:
            emit({"status": "would ingest", "path": path, "subject": name}, as_json=as_json)
        return EXIT_OK
    tile = TileConfig(SliceOrientation(orientation), replicas=tuple(map(SliceOrientation, replicas)))
    on_error: OnError = "skip" if skip_errors else "raise"
    before = 0
    started = time.monotonic()
    with configured(tile=tile, compression=CompressionConfig(Compressor(compression), level)):
        if append:
            radi = RadiObject(uri)
            before = len(radi.all_obs_ids)
            radi.append(
                niftis=images or None,
                dicom_dirs=folders or None,
                reorient=reorient,
                collection_name=collection,
                progress=True,
                on_error=on_error,
            )
        else:
            options: dict[str, Any] = {
                "reorient": reorient,
                "collection_name": collection,
                "progress": True,
                "overwrite": overwrite,
                "on_error": on_error,
            }
            radi = (
                RadiObject.from_dicoms(uri, folders, **options)
                if folders
                else RadiObject.from_niftis(uri, images, **options)
            )
    added = len(radi.all_obs_ids) - before
    seconds = round(time.monotonic() - started, 2)
    emit({"store": uri, "volumes": added, "subjects": len(radi), "seconds": seconds}, as_json=as_json)
    return EXIT_PARTIAL if added < len(named) else EXIT_OK


def _sort_sources(sources: Iterable[str], subject: str | None) -> tuple[list[str], list[tuple[Path, str]]]:
    """Return the sources of NIfTI files, and the DICOM folders with their subjects; never both."""
    from voxtier.volumes.formats.sources import has_images

    niftis: list[str] = []
    folders: list[tuple[Path, str]] = []
    for source in sources:
        path = Path(source)
        if path.is_dir() and not has_images(path):
            folders.append((path, subject or path.absolute().name))
        else:
            niftis.append(source)
    if niftis and folders:
        raise ConfigError("NIfTI files and DICOM folders cannot be mixed: ingest them in two calls")
    return niftis, folders
