"""``voxtier volume ingest``: files and series into a store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.volumes.stores import JSON, emit
from voxtier.errors import ConfigError

if TYPE_CHECKING:
    from voxtier.volumes.store.ingest import OnError


@click.command()
@click.argument("uri")
@click.argument("sources", nargs=-1, required=True)
@click.option("--collection", help="name of the collection (default: the series that each file name states)")
@click.option("--subject", help="subject of DICOM folders, when there is one (default: the folder's name)")
@click.option(
    "--orientation",
    type=click.Choice(["axial", "sagittal", "coronal", "isotropic"]),
    default="axial",
    show_default=True,
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    type=click.Choice(["axial", "sagittal", "coronal", "isotropic"]),
    help="store the voxels in this tiling too, for fast reads of other planes (may be repeated)",
)
@click.option(
    "--compression", type=click.Choice(["zstd", "lz4", "gzip", "none"]), default="zstd", show_default=True
)
@click.option("--level", default=3, show_default=True, help="compression level")
@click.option("--reorient/--no-reorient", default=None, help="flip and permute the axes to RAS")
@click.option("--append", is_flag=True, help="add to a store that exists")
@click.option("--overwrite", is_flag=True, help="replace a store that exists, once the new one is complete")
@click.option(
    "--skip-errors",
    is_flag=True,
    help="leave out images that are refused (exit code 3) instead of refusing all",
)
@click.option("--dry-run", is_flag=True, help="say what would be ingested, write nothing")
@JSON
def ingest(
    uri: str, sources: tuple[str, ...], collection: str | None, subject: str | None, orientation: str,
    replicas: tuple[str, ...], compression: str, level: int, reorient: bool | None, append: bool,
    overwrite: bool, skip_errors: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Ingest NIfTI files, folders or globs of them, or folders of DICOM series, into the store URI.

    \b
    voxtier volume ingest cohort scans/*_T1w.nii.gz scans/*_FLAIR.nii.gz
    voxtier volume ingest cohort --append dicom/patient-7
    """
    from voxtier.volumes import (
        CompressionConfig,
        Compressor,
        RadiObject,
        SliceOrientation,
        TileConfig,
        configured,
    )
    from voxtier.volumes.formats.sources import pairs_of

    niftis: list[tuple[Any, str]] = []
    folders: list[tuple[Any, str]] = []
    for source in sources:
        path = Path(source)
        if path.is_dir() and not any(path.glob("*.nii*")):
            folders.append((path, subject or path.name))
        else:
            niftis += pairs_of(source)
    if niftis and folders:
        raise ConfigError("ingest NIfTI files and DICOM folders in two calls")
    for path, name in niftis + folders if dry_run else []:
        emit(
            {"status": "would ingest", "path": path, "subject": _subject(path, name, collection)},
            as_json=as_json,
        )
    if dry_run:
        return
    named = [(path, _subject(path, name, collection)) for path, name in niftis]
    before = 0
    with configured(
        tile=TileConfig(
            SliceOrientation(orientation), replicas=tuple(SliceOrientation(name) for name in replicas)
        ),
        compression=CompressionConfig(Compressor(compression), level),
    ):
        on_error: OnError = "skip" if skip_errors else "raise"
        started = time.monotonic()
        if append:
            radi = RadiObject(uri)
            before = len(radi.all_obs_ids)
            radi.append(
                niftis=named or None, dicom_dirs=folders or None, reorient=reorient, collection_name=collection,  # noqa: E501
                progress=True, on_error=on_error,
            )  # fmt: skip
        elif folders:
            radi = RadiObject.from_dicoms(
                uri,
                folders,
                reorient=reorient,
                collection_name=collection,
                progress=True,
                overwrite=overwrite,
                on_error=on_error,
            )
        else:
            radi = RadiObject.from_niftis(
                uri,
                named,
                collection_name=collection,
                reorient=reorient,
                progress=True,
                overwrite=overwrite,
                on_error=on_error,
            )
    added = len(radi.all_obs_ids) - before
    emit(
        {
            "store": uri,
            "volumes": added,
            "subjects": len(radi),
            "seconds": round(time.monotonic() - started, 2),
        },
        as_json=as_json,
    )
    if added < len(named):
        raise click.exceptions.Exit(3)


def _subject(path: Any, stem: str, collection: str | None) -> str:
    """Return the subject: the stem without the part that states its series."""
    from voxtier.volumes.formats.sources import series_of

    head, separator, tail = stem.rpartition("_")
    return head if separator and head and series_of(Path(tail)) != "unknown" and not collection else stem
