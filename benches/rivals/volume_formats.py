"""The volumes of the benchmarks, and readers of rival formats over the same voxels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (240, 240, 155)


def mri(*, whole: bool = True) -> np.ndarray:
    """Return a float32 head: smooth tissue with noise inside an ellipsoid, zero outside."""
    rng = np.random.default_rng(7)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    radius = sum((axis / 0.75) ** 2 for axis in grid)
    tissue = 400 + 200 * np.sin(6 * grid[0]) * np.cos(5 * grid[1]) + 80 * grid[2]
    noisy = tissue + rng.normal(0, 20, SHAPE)
    return np.where(radius < 1, np.round(noisy) if whole else noisy, 0).astype(np.float32)


def ct() -> np.ndarray:
    """Return an int16 body: -1000 air, soft tissue with noise, bone."""
    rng = np.random.default_rng(8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    radius = (grid[0] / 0.9) ** 2 + (grid[1] / 0.8) ** 2
    body = np.where(radius < 1, 40 + rng.normal(0, 12, SHAPE), -1000)
    bone = (np.abs(grid[0]) < 0.08) & (np.abs(grid[1] + 0.5) < 0.1)
    return np.where(bone, 700 + rng.normal(0, 40, SHAPE), body).astype(np.int16)


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
