"""``voxtier volume``: stores of radiology volumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.errors import BackendError, ConfigError, NotFoundError, SourceError, VoxtierError

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.ingest import OnError

_JSON = click.option("--json", "as_json", is_flag=True, help="one JSON object a line, for machines")
_OBS = click.option("--obs", "obs_id", help="observation of a store (not needed for a single volume)")


@click.group()
def volume() -> None:
    """Radiology volumes in TileDB: read by the slice, patch or whole, local or on s3://."""


def _emit(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row, default=str))
    else:
        click.echo("  ".join(f"{key}={value}" for key, value in row.items()))


def _opened(uri: str) -> Volume | VolumeCollection | RadiObject:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.engine import Session, as_uri, group_members, object_kind

    address, session = as_uri(uri), Session.of(None)
    kind = object_kind(address, session)
    if kind == "array":
        return Volume.open(address)
    if kind is None:
        raise NotFoundError(f"there is no store at {uri}")
    return (
        RadiObject(address) if "collections" in group_members(address, session) else VolumeCollection(address)
    )


def _volumes(store: Volume | VolumeCollection | RadiObject) -> list[Volume]:
    from voxtier.volumes import RadiObject, Volume

    if isinstance(store, Volume):
        return [store]
    if isinstance(store, RadiObject):
        return [volume for name in store.collection_names for volume in store.collection(name)]
    return list(store)


def _one(uri: str, obs_id: str | None) -> Volume:
    from voxtier.volumes import RadiObject, Volume

    store = _opened(uri)
    if isinstance(store, Volume):
        return store
    if obs_id is None:
        raise ConfigError(f"{uri} holds several volumes: choose one with --obs")
    try:
        found: Volume = store.get_volume(obs_id) if isinstance(store, RadiObject) else store.loc[obs_id]
    except KeyError as error:
        raise NotFoundError(str(error.args[0])) from None
    return found


@volume.command()
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
@_JSON
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
    from voxtier.volumes.sources import pairs_of

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
        _emit(
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
    _emit(
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
    from voxtier.volumes.sources import series_of

    head, separator, tail = stem.rpartition("_")
    return head if separator and head and series_of(Path(tail)) != "unknown" and not collection else stem


@volume.command()
@click.argument("uri")
@_OBS
@_JSON
def info(uri: str, obs_id: str | None, as_json: bool) -> None:
    """Say what a store or a volume holds; for a volume, draw its tiles."""
    from voxtier.volumes import Volume
    from voxtier.volumes.drawing import tile_map

    store = _opened(uri)
    if obs_id is None and not isinstance(store, Volume):
        for found in _volumes(store) if as_json else []:
            _emit(_facts(found), as_json=True)
        if not as_json:
            click.echo(store.describe() if hasattr(store, "describe") else repr(store))
        return
    chosen = _one(uri, obs_id)
    facts = _facts(chosen)
    if as_json:
        _emit(facts, as_json=True)
        return
    for key, value in facts.items():
        click.echo(f"{key:14s} {value}")
    click.echo()
    click.echo(tile_map(chosen))


def _facts(found: Volume) -> dict[str, Any]:
    orientation = found.orientation_info
    stored = found.stored_bytes()
    raw = found.size * found.stored_dtype.itemsize
    return {
        "obs_id": found.obs_id,
        "uri": found.uri,
        "shape": "x".join(map(str, found.shape)),
        "dtype": str(found.dtype),
        "stored_dtype": str(found.stored_dtype),
        "spacing": found.spacing,
        "axes": None if orientation is None else orientation.axcodes,
        "axes_from": None if orientation is None else f"{orientation.source} ({orientation.confidence})",
        "tiles": "x".join(map(str, found.tile_extents)),
        "replicas": ", ".join(found.replicas) or None,
        "fragments": len(found.fragments()),
        "stored_bytes": stored,
        "ratio": round(raw / max(stored, 1), 2),
    }


@volume.command("slice")
@click.argument("uri")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@_OBS
@click.option(
    "--plane", type=click.Choice(["axial", "sagittal", "coronal"]), default="axial", show_default=True
)
@click.option(
    "--index", type=int, help="position along the axis that crosses the plane (default: the middle)"
)
@click.option("--time", "t", type=int, help="time point of a 4-D volume")
@click.option("--window", nargs=2, type=float, help="centre and width of the grey values")
def slice_(
    uri: str,
    output: Path,
    obs_id: str | None,
    plane: str,
    index: int | None,
    t: int | None,
    window: tuple[float, float] | None,
) -> None:
    """Write one plane of a volume as a PNG picture.

    \b
    voxtier volume slice cohort middle.png --obs sub-1_T1w --plane coronal
    """
    from voxtier.volumes.drawing import grey, png

    chosen = _one(uri, obs_id)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    place = chosen.shape[axis] // 2 if index is None else index
    try:
        cells = getattr(chosen, plane)(place, t if t is not None or chosen.ndim == 3 else 0)
    except IndexError as error:
        raise ConfigError(str(error)) from None
    output.write_bytes(png(grey(cells, window or None)))
    click.echo(f"{output}: {plane} plane {place} of {chosen.obs_id or uri}", err=True)


@volume.command()
@click.argument("uri")
@_OBS
@_JSON
def stats(uri: str, obs_id: str | None, as_json: bool) -> None:
    """Mean, deviation and percentiles of one volume, or of all."""
    for chosen in _volumes(_opened(uri)) if obs_id is None else [_one(uri, obs_id)]:
        numbers = chosen.get_statistics([1, 25, 75, 99])
        _emit(
            {"obs_id": chosen.obs_id, **{key: round(value, 4) for key, value in numbers.items()}},
            as_json=as_json,
        )


@volume.command()
@click.argument("uri")
@_OBS
@click.option("--dry-run", is_flag=True, help="only say what would be merged")
@_JSON
def consolidate(uri: str, obs_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Merge the fragments that updates left, then remove what they replace."""
    for chosen in _volumes(_opened(uri)) if obs_id is None else [_one(uri, obs_id)]:
        count = len(chosen.fragments())
        if count > 1 and not dry_run:
            chosen.consolidate()
        _emit(
            {"obs_id": chosen.obs_id, "fragments": count, "merged": count > 1 and not dry_run},
            as_json=as_json,
        )


@volume.command()
@click.argument("uri")
@_OBS
def vacuum(uri: str, obs_id: str | None) -> None:
    """Remove what earlier consolidations have replaced."""
    for chosen in _volumes(_opened(uri)) if obs_id is None else [_one(uri, obs_id)]:
        chosen.vacuum()


@volume.command()
@click.argument("uri")
@click.option(
    "--repair", is_flag=True, help="remove arrays that no commit refers to (left by a killed ingest)"
)
@_JSON
def verify(uri: str, repair: bool, as_json: bool) -> None:
    """Read every volume and check that it is the one that its row names; exit code 1 when one is not."""
    from voxtier.volumes import RadiObject, Volume, replicas
    from voxtier.volumes.engine import Session

    store = _opened(uri)
    findings = 0
    for chosen in _volumes(store):
        row: dict[str, Any] = {"uri": chosen.uri, "status": "ok"}
        try:
            chosen.to_numpy(raw=True)
            row["obs_id"] = chosen.obs_id
            troubles = replicas.differing(chosen.uri, Session.of(None))
            if troubles and repair:
                chosen.replicate()
                row["renewed"] = "; ".join(troubles)
            elif troubles:
                findings += 1
                row |= {"status": "bad", "detail": "; ".join(troubles)}
        except VoxtierError as error:
            findings += 1
            row |= {"status": "bad", "detail": str(error)}
        if as_json or row["status"] != "ok":
            _emit(row, as_json=as_json)
    whole = isinstance(store, RadiObject) or (not isinstance(store, Volume) and store.stands_alone)
    try:
        orphans = store.repair(dry_run=not repair) if whole and not isinstance(store, Volume) else []
    except (BackendError, SourceError, ConfigError) as error:
        if repair:
            raise
        click.echo(f"left-over arrays were not looked for: {error}", err=True)
        orphans = []
    for orphan in orphans:
        findings += not repair
        _emit({"uri": orphan, "status": "removed" if repair else "orphan"}, as_json=as_json)
    click.echo(f"{findings} findings", err=True)
    if findings:
        raise click.exceptions.Exit(1)


@volume.command()
@click.argument("uri")
@click.argument("output", type=click.Path(path_type=Path))
@_OBS
def export(uri: str, output: Path, obs_id: str | None) -> None:
    """Write one volume as NIfTI, or all volumes of a store into a folder."""
    if obs_id is not None or not output.suffix == "":  # noqa: SIM201
        click.echo(_one(uri, obs_id).to_nifti(output, compression=output.suffix != ".nii"))
        return
    output.mkdir(parents=True, exist_ok=True)
    for chosen in _volumes(_opened(uri)):
        name = (chosen.obs_id or Path(chosen.uri).name).replace("/", "-")
        click.echo(chosen.to_nifti(output / f"{name}.nii.gz"))


@volume.command()
@click.argument("uri")
@_OBS
@click.option("--repeats", default=20, show_default=True)
@_JSON
def bench(uri: str, obs_id: str | None, repeats: int, as_json: bool) -> None:
    """Time slices, a 64-voxel cube and the whole of one volume of yours (medians, milliseconds)."""
    import statistics

    from voxtier.volumes import clear_cache

    chosen = _one(uri, obs_id)
    x, y, z = (size // 2 for size in chosen.shape[:3])
    cube = tuple(slice(max(0, c - 32), c + 32) for c in (x, y, z))
    reads: dict[str, Callable[[], Any]] = {
        "axial": lambda: chosen.axial(z), "sagittal": lambda: chosen.sagittal(x), "coronal": lambda: chosen.coronal(y),  # noqa: E501
        "cube": lambda: chosen[cube], "full": lambda: chosen.to_numpy(),
    }  # fmt: skip
    row: dict[str, Any] = {}
    for name, read in reads.items():
        times = []
        for _ in range(repeats if name != "full" else 3):
            clear_cache()
            started = time.perf_counter()
            read()
            times.append((time.perf_counter() - started) * 1e3)
        row[name] = round(statistics.median(times), 3)
    _emit({"obs_id": chosen.obs_id, **row}, as_json=as_json)
