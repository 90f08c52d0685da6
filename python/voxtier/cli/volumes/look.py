"""``voxtier volume info|slice|stats|export|bench``: what a store holds, to read and to look at."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.volumes.stores import JSON, OBS, emit, one_volume, opened, volumes_of
from voxtier.errors import ConfigError

if TYPE_CHECKING:
    from voxtier.volumes import Volume


@click.command()
@click.argument("uri")
@OBS
@JSON
def info(uri: str, obs_id: str | None, as_json: bool) -> None:
    """Say what a store or a volume holds; for a volume, draw its tiles."""
    from voxtier.cli.volumes.drawing import tile_map
    from voxtier.volumes import Volume

    store = opened(uri)
    if obs_id is None and not isinstance(store, Volume):
        for found in volumes_of(store) if as_json else []:
            emit(_facts(found), as_json=True)
        if not as_json:
            click.echo(store.describe() if hasattr(store, "describe") else repr(store))
        return
    chosen = one_volume(uri, obs_id)
    facts = _facts(chosen)
    if as_json:
        emit(facts, as_json=True)
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


@click.command("slice")
@click.argument("uri")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@OBS
@click.option(
    "--plane", type=click.Choice(["axial", "sagittal", "coronal"]), default="axial", show_default=True
)
@click.option(
    "--index", type=int, help="position along the axis that crosses the plane (default: the middle)"
)
@click.option("--time", "t", type=int, help="time point of a 4-D volume")
@click.option("--window", nargs=2, type=float, help="centre and width of the grey values")
@click.option("--mm", is_flag=True, help="stretch the picture so that its pixels are square in millimetres")
def slice_(
    uri: str,
    output: Path,
    obs_id: str | None,
    plane: str,
    index: int | None,
    t: int | None,
    window: tuple[float, float] | None,
    mm: bool,
) -> None:
    """Write one plane of a volume as a PNG picture.

    \b
    voxtier volume slice cohort middle.png --obs sub-1_T1w --plane coronal
    """
    from voxtier.cli.volumes.drawing import grey, png, stretched

    chosen = one_volume(uri, obs_id)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    place = chosen.shape[axis] // 2 if index is None else index
    try:
        cells = getattr(chosen, plane)(place, t if t is not None or chosen.ndim == 3 else 0)
    except IndexError as error:
        raise ConfigError(str(error)) from None
    picture = grey(cells, window or None)
    if mm and chosen.spacing is not None:
        across, up = (step for d, step in enumerate(chosen.spacing[:3]) if d != axis)
        picture = stretched(picture, across, up)
    output.write_bytes(png(picture))
    click.echo(f"{output}: {plane} plane {place} of {chosen.obs_id or uri}", err=True)


@click.command()
@click.argument("uri")
@OBS
@JSON
def stats(uri: str, obs_id: str | None, as_json: bool) -> None:
    """Mean, deviation and percentiles of one volume, or of all."""
    for chosen in volumes_of(opened(uri)) if obs_id is None else [one_volume(uri, obs_id)]:
        numbers = chosen.get_statistics([1, 25, 75, 99])
        emit(
            {"obs_id": chosen.obs_id, **{key: round(value, 4) for key, value in numbers.items()}},
            as_json=as_json,
        )


@click.command()
@click.argument("uri")
@click.argument("output", type=click.Path(path_type=Path))
@OBS
def export(uri: str, output: Path, obs_id: str | None) -> None:
    """Write one volume as NIfTI, or all volumes of a store into a folder."""
    if obs_id is not None or not output.suffix == "":  # noqa: SIM201
        click.echo(one_volume(uri, obs_id).to_nifti(output, compression=output.suffix != ".nii"))
        return
    output.mkdir(parents=True, exist_ok=True)
    for chosen in volumes_of(opened(uri)):
        name = (chosen.obs_id or Path(chosen.uri).name).replace("/", "-")
        click.echo(chosen.to_nifti(output / f"{name}.nii.gz"))


@click.command()
@click.argument("uri")
@OBS
@click.option("--repeats", default=20, show_default=True)
@JSON
def bench(uri: str, obs_id: str | None, repeats: int, as_json: bool) -> None:
    """Time slices, a 64-voxel cube and the whole of one volume of yours (medians, milliseconds)."""
    import statistics

    from voxtier.volumes import clear_cache

    chosen = one_volume(uri, obs_id)
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
    emit({"obs_id": chosen.obs_id, **row}, as_json=as_json)
