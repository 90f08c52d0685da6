"""Reads, patches, writes and bytes of one volume against its rivals, in one run, answers checked.

`python -m benches.volumes [--quick]` prints one JSON object. RadiObject 0.1.1 runs in its own interpreter, named by
VOXTIER_RADIOBJECT_PYTHON (a virtual environment with `radiobject==0.1.1`); without it its rows are left out.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (240, 240, 155)
ROI = (slice(80, 144), slice(90, 154), slice(40, 104))


def mri() -> np.ndarray:
    """Return a float32 head: smooth tissue with noise inside an ellipsoid, zero outside."""
    rng = np.random.default_rng(7)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    radius = sum((axis / 0.75) ** 2 for axis in grid)
    tissue = 400 + 200 * np.sin(6 * grid[0]) * np.cos(5 * grid[1]) + 80 * grid[2]
    noisy = tissue + rng.normal(0, 20, SHAPE)
    return np.where(radius < 1, np.round(noisy), 0).astype(np.float32)


def ct() -> np.ndarray:
    """Return an int16 body: -1000 air, soft tissue with noise, bone."""
    rng = np.random.default_rng(8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    radius = (grid[0] / 0.9) ** 2 + (grid[1] / 0.8) ** 2
    body = np.where(radius < 1, 40 + rng.normal(0, 12, SHAPE), -1000)
    bone = (np.abs(grid[0]) < 0.08) & (np.abs(grid[1] + 0.5) < 0.1)
    return np.where(bone, 700 + rng.normal(0, 40, SHAPE), body).astype(np.int16)


def median_ms(read: Callable[[], Any], repeats: int) -> float:
    """Return the median of several reads in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        read()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


Reader = Callable[[tuple[Any, ...]], np.ndarray]


def peers(folder: Path, data: np.ndarray, chunk: tuple[int, ...]) -> dict[str, tuple[Reader, int]]:
    """Return reader and stored bytes of every rival that is installed, all with zstd-3 class compression."""
    import blosc2
    import h5py
    import tensorstore
    import zarr

    found: dict[str, tuple[Reader, int]] = {}
    size = lambda path: (  # noqa: E731
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.is_dir()
        else path.stat().st_size
    )
    path = folder / "peer.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "v", data=data, chunks=chunk, compression="gzip", compression_opts=1, shuffle=True
        )
    opened = h5py.File(path, "r", rdcc_nbytes=0)["v"]
    found["h5py"] = (lambda key: opened[key], size(path))
    path = folder / "peer.zarr"
    array = zarr.create_array(str(path), data=data, chunks=chunk)
    found["zarr"] = (lambda key: array[key], size(path))
    store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
    found["tensorstore"] = (lambda key: store[key].read().result(), size(path))
    path = folder / "peer.b2nd"
    blosc = blosc2.asarray(np.ascontiguousarray(data), urlpath=str(path), mode="w", chunks=chunk,
                           cparams={"codec": blosc2.Codec.ZSTD, "clevel": 3, "filters": [blosc2.Filter.SHUFFLE]})  # fmt: skip  # noqa: E501
    found["blosc2"] = (lambda key: blosc[key], size(path))
    return found


def voxtier_reader(
    folder: Path, data: np.ndarray, orientation: str, block: int | None = None
) -> tuple[Any, float]:
    """Store the volume; return it and the milliseconds of the write."""
    from voxtier.volumes import SliceOrientation, TileConfig, Volume, configure

    configure(tile=TileConfig(orientation=SliceOrientation(orientation), x=block, y=block, z=block))
    start = time.perf_counter()
    volume = Volume.from_numpy(folder / f"voxtier_{orientation}_{block}_{data.dtype}", data)
    return volume, (time.perf_counter() - start) * 1e3


def tiledb_reader(uri: str) -> Reader:
    """Return TileDB's own reader of the same array, opened once."""
    import tiledb

    array = tiledb.open(uri, config={"sm.mem.malloc_trim": "false"})
    names = [array.domain.dim(i).name for i in range(3)]
    back = np.argsort(["xyz".index(n) for n in names])

    def read(key: tuple[Any, ...]) -> np.ndarray:
        box = [slice(k, k + 1) if isinstance(k, int) else k for k in key]
        cells = array[tuple(box["xyz".index(n)] for n in names)]["voxels"].transpose(back)
        return cells[tuple(0 if isinstance(k, int) else slice(None) for k in key)]

    return read


RADIOBJECT = """
import json, statistics, sys, time
import numpy as np
from radiobject import configure
from radiobject.ctx import CompressionConfig, SliceOrientation, TileConfig
from radiobject.volume import Volume
data = np.load(sys.argv[1]); folder = sys.argv[2]; repeats = int(sys.argv[3]); out = {}
for orientation in ("axial", "sagittal", "coronal", "isotropic"):
    configure(tile=TileConfig(orientation=SliceOrientation(orientation)))
    start = time.perf_counter()
    volume = Volume.from_numpy(f"{folder}/radi_{orientation}", data)
    row = {"write": (time.perf_counter() - start) * 1e3}
    reads = {"axial": lambda i: volume.axial(70 + i), "sagittal": lambda i: volume.sagittal(110 + i),
             "coronal": lambda i: volume.coronal(110 + i), "roi": lambda i: volume[80:144, 90:154, 40:104],
             "full": lambda i: volume.to_numpy()}
    for name, read in reads.items():
        times = []
        for i in range(repeats if name != "full" else 5):
            start = time.perf_counter(); read(i); times.append((time.perf_counter() - start) * 1e3)
        row[name] = statistics.median(times)
    out[orientation] = row
print(json.dumps(out))
"""


def radiobject(folder: Path, data: np.ndarray, repeats: int) -> dict[str, Any]:
    """Run RadiObject 0.1.1 in its own interpreter."""
    python = os.environ.get("VOXTIER_RADIOBJECT_PYTHON")
    if not python:
        return {}
    np.save(folder / "data.npy", data)
    done = subprocess.run(
        [python, "-c", RADIOBJECT, str(folder / "data.npy"), str(folder), str(repeats)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def reads_of(data: np.ndarray, repeats: int) -> dict[str, tuple[Callable[[int], tuple[Any, ...]], int]]:
    """Return the kinds of reads: key by repetition, and how often."""
    every = slice(None)
    return {
        "axial": (lambda i: (every, every, 70 + i % 60), repeats),
        "sagittal": (lambda i: (110 + i % 60, every, every), repeats),
        "coronal": (lambda i: (every, 110 + i % 60, every), repeats),
        "roi": (lambda i: ROI, repeats),
        "full": (lambda i: (every, every, every), 7),
    }


def compare(folder: Path, data: np.ndarray, repeats: int) -> dict[str, Any]:
    """Time every reader on every tiling; a read that gives other voxels fails the run."""
    from voxtier.volumes import ReadConfig, clear_cache, configure

    report: dict[str, Any] = {}
    tilings = {"axial": None, "sagittal": None, "coronal": None, "isotropic": None, "iso32": 32}
    for name, block in tilings.items():
        orientation = "isotropic" if name == "iso32" else name
        volume, wrote = voxtier_reader(folder, data, orientation, block)
        work = folder / f"peers_{name}"
        work.mkdir()
        chunk = tuple(min(e, s) for e, s in zip(volume.tile_extents, data.shape, strict=True))
        readers: dict[str, tuple[Reader, int]] = {
            "voxtier": (volume.__getitem__, volume.stored_bytes()),
            "tiledb": (tiledb_reader(volume.uri), volume.stored_bytes()),
            **peers(work, data, chunk),
        }
        rows: dict[str, dict[str, float]] = {reader: {} for reader in readers}
        configure(read=ReadConfig(tile_cache_size_mb=0, concurrency=2))
        volume = type(volume)(volume.uri)
        readers["voxtier"] = (volume.__getitem__, volume.stored_bytes())
        for kind, (key, count) in reads_of(data, repeats).items():
            times: dict[str, list[float]] = {reader: [] for reader in readers}
            for i in range(count):  # interleaved, so that noise meets all alike
                for reader, (read, _) in readers.items():
                    start = time.perf_counter()
                    got = read(key(i))
                    times[reader].append((time.perf_counter() - start) * 1e3)
                    if i == 0 and not np.array_equal(got, data[key(i)]):
                        raise AssertionError(f"{reader} gives other voxels for {kind} on {name}")
            for reader, found in times.items():
                rows[reader][kind] = statistics.median(found)
        configure(read=ReadConfig(concurrency=2))
        warm = type(volume)(volume.uri)
        clear_cache()
        warm[ROI]
        rows["voxtier"]["roi_decoded"] = median_ms(lambda w=warm: w[ROI], repeats)
        crop = np.ascontiguousarray(data[ROI])
        rows["memcpy"] = {"roi_decoded": median_ms(crop.copy, repeats)}
        rows["voxtier"]["write"] = wrote
        for reader, (_, size) in readers.items():
            rows[reader]["mb"] = size / 1e6
        report[name] = rows
        shutil.rmtree(work)
    return report


def patches(folder: Path, data: np.ndarray) -> dict[str, float]:
    """Return 64^3 patches per second: one call of many, cold and decoded."""
    from voxtier.volumes import ReadConfig, clear_cache, configure

    volume, _ = voxtier_reader(folder, data, "isotropic", 32)
    rng = np.random.default_rng(1)
    starts = rng.integers(0, np.array(SHAPE) - 64, (64, 3))
    found = {}
    configure(read=ReadConfig(tile_cache_size_mb=0, concurrency=2))
    cold = type(volume)(volume.uri)
    found["cold_single"] = (
        1e3 / median_ms(lambda: [cold[tuple(slice(a, a + 64) for a in s)] for s in starts], 3) * 64
    )
    found["cold_fused"] = 1e3 / median_ms(lambda: cold.read_patches(starts, (64, 64, 64)), 3) * 64
    configure(read=ReadConfig(concurrency=2))
    clear_cache()
    warm = type(volume)(volume.uri)
    warm.read_patches(starts, (64, 64, 64))
    found["decoded_single"] = (
        1e3 / median_ms(lambda: [warm[tuple(slice(a, a + 64) for a in s)] for s in starts], 3) * 64
    )
    found["decoded_fused"] = 1e3 / median_ms(lambda: warm.read_patches(starts, (64, 64, 64)), 3) * 64
    for patch, start in zip(warm.read_patches(starts, (64, 64, 64)), starts, strict=True):
        if not np.array_equal(patch, data[tuple(slice(a, a + 64) for a in start)]):
            raise AssertionError("a patch differs")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the JSON of one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--ct", action="store_true", help="int16 CT instead of float32 MRI")
    options = parser.parse_args(arguments)
    repeats = 9 if options.quick else 25
    data = ct() if options.ct else mri()
    folder = Path(tempfile.mkdtemp(prefix="voxtier-bench-"))
    try:
        result = {
            "content": "ct" if options.ct else "mri",
            "reads": compare(folder, data, repeats),
            "patches": patches(folder, ct()),
            "radiobject": radiobject(folder, data, repeats),
        }
    finally:
        shutil.rmtree(folder)
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
