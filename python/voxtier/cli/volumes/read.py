"""``voxtier volumes info | slice | stats | export | bench``: what a store holds."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_OK
from voxtier.cli.options import AS_JSON, NewFile, say
from voxtier.cli.volumes.stores import (
    OBS,
    chosen_volumes,
    emit,
    for_each,
    list_collections,
    list_volumes,
    name_of,
    open_uri,
    open_volume,
)
from voxtier.errors import ConfigError
from voxtier.system.durable import write_output

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.reading.reader import Plane

_CUBE = 64  # voxels along each edge of what `bench` reads


@click.command()
@click.argument("uri")
@OBS
@AS_JSON
def info(uri: str, obs_id: str | None, as_json: bool) -> int:
    """Describe a store and list its volumes; describe one volume and draw its tiles.

    \b
    voxtier volumes info cohort
    voxtier volumes info cohort --obs sub-1_T1w

    With --json, exit code 1 when no volume of several can be opened; 3 when some cannot.
    """
    from voxtier.volumes import RadiObject, Volume
    from voxtier.volumes.reading.pictures import draw_tiles

    store = open_uri(uri)
    if obs_id is None and not isinstance(store, Volume):
        if as_json:
            volumes = list_volumes(store)
            if not volumes:  # which is a description too
                return EXIT_OK
            return for_each(uri, volumes, lambda volume: emit(_facts(volume), as_json=True), as_json=True)
        click.echo(store.describe() if isinstance(store, RadiObject) else repr(store))
        click.echo()
        for row in _list_rows(store):
            emit(row, as_json=False)
        return EXIT_OK
    volume = open_volume(uri, obs_id)
    facts = _facts(volume)
    if as_json:
        emit(facts, as_json=True)
        return EXIT_OK
    for key, value in facts.items():
        say(f"{key:14s} {value}")
    click.echo()
    click.echo(draw_tiles(volume))
    return EXIT_OK


def _list_rows(store: RadiObject | VolumeCollection) -> Iterator[dict[str, Any]]:
    """Yield id, subject and shape of every volume, from the rows alone."""
    from voxtier.volumes.tiledb.tables.names import SHAPES

    for collection in list_collections(store):
        for row in collection.table.rows():
            shape = "x".join(re.findall(r"\d+", str(row.get(SHAPES, "")))) or None
            yield {"obs_id": row["obs_id"], "subject": row["obs_subject_id"], "shape": shape}


def _facts(volume: Volume) -> dict[str, Any]:
    orientation = volume.orientation_info
    stored_bytes = volume.stored_bytes()
    return {
        "obs_id": volume.obs_id,
        "uri": volume.uri,
        "shape": "x".join(map(str, volume.shape)),
        "dtype": str(volume.dtype),
        "stored_dtype": str(volume.stored_dtype),
        "spacing": volume.spacing,
        "axes": None if orientation is None else orientation.axcodes,
        "axes_from": None if orientation is None else f"{orientation.source} ({orientation.confidence})",
        "tiles": "x".join(map(str, volume.tile_extents)),
        "replicas": ", ".join(volume.replicas) or None,
        "fragments": len(volume.fragments()),
        "stored_bytes": stored_bytes,
        "ratio": round(volume.size * volume.stored_dtype.itemsize / max(stored_bytes, 1), 2),
    }


@click.command("slice")
@click.argument("uri")
@click.argument("output", type=NewFile("a PNG picture", ".png"))
@OBS
@click.option(
    "--plane",
    type=click.Choice(["axial", "sagittal", "coronal"]),
    default="axial",
    help="Plane of the patient; of the array (axial: across z) where the volume does not know how it lies.",
)
@click.option(
    "--index", type=int, help="Position along the array axis that crosses the plane. Default: the middle."
)
@click.option("--time", "time_point", type=int, help="Time point of a 4-D volume.")
@click.option("--window", nargs=2, type=float, help="Centre and width of the grey values.")
@click.option("--mm", is_flag=True, help="Stretch the picture so that its pixels are square in millimetres.")
def slice_(
    uri: str,
    output: Path,
    obs_id: str | None,
    plane: Plane,
    index: int | None,
    time_point: int | None,
    window: tuple[float, float] | None,
    mm: bool,
) -> None:
    """Write one plane of a volume as a PNG picture.

    \b
    voxtier volumes slice cohort middle.png --obs sub-1_T1w --plane coronal
    """
    from voxtier.volumes.geometry import axis_of_plane
    from voxtier.volumes.reading.pictures import encode_png, stretch_to_square, to_grey
    from voxtier.volumes.reading.reader import PLANES

    volume = open_volume(uri, obs_id)
    affine = volume.affine
    axis = PLANES[plane] if affine is None else axis_of_plane(affine, PLANES[plane])
    place = volume.shape[axis] // 2 if index is None else index
    time_point = time_point if time_point is not None or volume.ndim == 3 else 0
    try:
        if affine is None:
            voxels = getattr(volume, plane)(place, time_point)
        else:
            voxels = volume.plane(plane, place, time_point)
    except IndexError as error:
        raise ConfigError(str(error)) from None
    picture = to_grey(voxels, window or None)
    if mm and volume.spacing is not None:
        across, up = (step for d, step in enumerate(volume.spacing[:3]) if d != axis)
        picture = stretch_to_square(picture, across, up)
    content = encode_png(picture)
    write_output(output, lambda file: file.write(content))
    whose = "the array's" if affine is None else "the patient's"
    drawn = f"{whose} {plane} plane, {place} along {'xyz'[axis]}"
    say(f"{output}: {drawn}, of {volume.obs_id or uri}", err=True)


@click.command()
@click.argument("uri")
@OBS
@AS_JSON
def stats(uri: str, obs_id: str | None, as_json: bool) -> int:
    """Compute mean, deviation and percentiles of one volume, or of all.

    \b
    voxtier volumes stats cohort --obs sub-1_T1w

    Exit code 1 when the store holds no volume, or each of them failed; 3 when some did.
    """

    def compute(volume: Volume) -> None:
        numbers = volume.get_statistics([1, 25, 75, 99])
        shown = numbers if as_json else {key: _shorten(value) for key, value in numbers.items()}
        emit({"obs_id": volume.obs_id, **shown}, as_json=as_json)

    return for_each(uri, chosen_volumes(uri, obs_id), compute, as_json=as_json)


def _shorten(number: float) -> str:
    """Return the digits that count, not decimals: maps of diffusion have a mean of 0.0008."""
    return f"{number:.15g}" if number.is_integer() else f"{number:.7g}"


@click.command()
@click.argument("uri")
@click.argument("output", type=NewFile("NIfTI", ".nii.gz", ".nii", or_folder=True))
@OBS
@AS_JSON
def export(uri: str, output: Path, obs_id: str | None, as_json: bool) -> int:
    """Write one volume as a NIfTI file, or all volumes of a store into a folder.

    \b
    voxtier volumes export cohort t1w.nii.gz --obs sub-1_T1w
    voxtier volumes export cohort niftis

    Exit code 1 when the store holds no volume, or each of them failed; 3 when some did.
    """
    is_file = re.search(r"\.nii(\.gz)?$", output.name, re.IGNORECASE) or obs_id is not None
    if is_file and not output.is_dir():
        volume = open_volume(uri, obs_id)
        _emit_file(volume, volume.to_nifti(output, compression=output.suffix.lower() != ".nii"), as_json)
        return EXIT_OK
    chosen = chosen_volumes(uri, obs_id)
    if len({_file_name(volume) for volume in chosen}) < len(chosen):
        raise ConfigError(f"two volumes of {uri} would get one file name: export each with --obs")
    output.mkdir(parents=True, exist_ok=True)

    def write(volume: Volume) -> None:
        _emit_file(volume, volume.to_nifti(output / _file_name(volume)), as_json)

    return for_each(uri, chosen, write, as_json=as_json)


def _emit_file(volume: Volume, path: Path, as_json: bool) -> None:
    say(json.dumps({"obs_id": volume.obs_id, "path": str(path)}) if as_json else str(path))


def _file_name(volume: Volume) -> str:
    return name_of(volume).replace("/", "-").replace("\0", "-") + ".nii.gz"


@click.command()
@click.argument("uri")
@OBS
@click.option("--repeats", default=20, type=click.IntRange(min=1), help="Reads of each kind.")
@AS_JSON
def bench(uri: str, obs_id: str | None, repeats: int, as_json: bool) -> None:
    """Time slices, a 64-voxel cube and the whole of one volume (medians, milliseconds).

    \b
    voxtier volumes bench cohort --obs sub-1_T1w
    """
    from voxtier.volumes import clear_cache

    volume = open_volume(uri, obs_id)
    x, y, z = (size // 2 for size in volume.shape[:3])
    cube = tuple(slice(max(0, centre - _CUBE // 2), centre + _CUBE // 2) for centre in (x, y, z))
    reads: dict[str, Callable[[], object]] = {
        "axial": lambda: volume.axial(z),
        "sagittal": lambda: volume.sagittal(x),
        "coronal": lambda: volume.coronal(y),
        "cube": lambda: volume[cube],
        "full": volume.to_numpy,
    }
    row: dict[str, Any] = {"obs_id": volume.obs_id}
    for name, read in reads.items():
        times = []
        for _ in range(repeats if name != "full" else 3):
            clear_cache()
            started = time.perf_counter()
            read()
            times.append((time.perf_counter() - started) * 1e3)
        row[name] = round(statistics.median(times), 3)
    emit(row, as_json=as_json)
