"""Journey: one volume read by slice, by cube, by patch and whole, in every tiling."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benches.measure import Goal, Lap, Limit, Result, Way, race, timed
from benches.rivals.radiobject import PYTHON, Rival
from benches.rivals.volume_formats import ct, mri, peers, tiledb_reader
from voxtier.volumes import (
    RadiObject,
    ReadConfig,
    SliceOrientation,
    TileConfig,
    Volume,
    clear_cache,
    configured,
)

Key = tuple[Any, ...]
EVERY = slice(None)
CUBE = 64
OURS, COLD = "voxtier", ReadConfig(tile_cache_size_mb=0, concurrency=2)

PLANES: dict[str, Callable[[int], Key]] = {
    "axial": lambda i: (EVERY, EVERY, i),
    "sagittal": lambda i: (i, EVERY, EVERY),
    "coronal": lambda i: (EVERY, i, EVERY),
}


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Run every race; a rival that returns other voxels gets no time."""
    head = mri()
    rounds = 3 if quick else max(rounds, 7)
    with rival_process() as rival:
        for tiling in ("axial", "sagittal", "coronal", "isotropic", "iso32"):
            place = folder / tiling
            place.mkdir()
            yield from tiling_races(place, head, tiling, rival, rounds)
        yield replica_race(folder, head, rounds)
        yield decoded_race(folder, head, rounds)
        yield threads_race(folder, head, rounds)
        yield patches_race(folder, ct(), rival, rounds)
        yield iloc_race(folder, rival, rounds)


@contextmanager
def rival_process() -> Iterator[Rival | None]:
    """Start RadiObject in a process of its own, where it is installed."""
    if PYTHON is None:
        yield None
        return
    with Rival() as rival:
        yield rival


def digests(arrays: list[np.ndarray]) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in arrays]


def reads(read: Callable[[Key], np.ndarray], keys: list[Key]) -> Callable[[], Lap]:
    """Return a lap of some reads; comparing the voxels is not timed."""
    lap = timed(lambda: [read(key) for key in keys])

    def checked() -> Lap:
        seconds, arrays = lap()
        return seconds, digests(arrays)

    return checked


def stored(place: Path, data: np.ndarray, tile: TileConfig, read: ReadConfig = COLD) -> Volume:
    with configured(tile=tile):
        Volume.from_numpy(place, data)
    with configured(read=read):
        return Volume(place)


def tile_of(tiling: str) -> TileConfig:
    if tiling == "iso32":
        return TileConfig(SliceOrientation.ISOTROPIC, 32, 32, 32)
    return TileConfig(SliceOrientation(tiling))


def naive_tiledb(uri: str) -> Callable[[Key], np.ndarray]:
    """Read with TileDB-Py as its tutorials do: open, read, close."""
    import tiledb

    def read(key: Key) -> np.ndarray:
        with tiledb.open(uri) as array:
            return array[key]["v"] if array.nattr > 1 else array[key]

    return read


def naive_store(place: Path, data: np.ndarray, extents: tuple[int, ...]) -> str:
    """Write the array as TileDB-Py's tutorials do: x, y, z, zstd, no shuffle."""
    import tiledb

    dims = [
        tiledb.Dim(name, (0, size - 1), extent, dtype=np.int32)
        for name, size, extent in zip("xyz", data.shape, extents, strict=True)
    ]
    attr = tiledb.Attr("", data.dtype, filters=tiledb.FilterList([tiledb.ZstdFilter(3)]))
    tiledb.Array.create(str(place), tiledb.ArraySchema(tiledb.Domain(*dims), [attr]))
    with tiledb.open(str(place), "w") as array:
        array[:] = data
    return str(place)


def tiling_races(
    place: Path, data: np.ndarray, tiling: str, rival: Rival | None, rounds: int
) -> list[Result]:
    """Race planes, a cube and the whole volume in one tiling."""
    volume = stored(place / "voxtier", data, tile_of(tiling))
    extents = volume.tile_extents
    others = {name: read for name, (read, _) in peers(place, data, extents).items()}
    others["TileDB-Py, opened once, our array"] = tiledb_reader(volume.uri)
    others["TileDB-Py, as in its tutorials"] = naive_tiledb(naive_store(place / "naive", data, extents))
    if tiling == "axial":
        others |= plain_files(place, data)
    if rival is not None:
        np.save(place / "data.npy", data)
        like_ours = (
            {"orientation": "isotropic", "tile": extents} if tiling == "iso32" else {"orientation": tiling}
        )
        rival.lap("store", place / "radiobject", source=place / "data.npy", **like_ours)

    def one(title: str, keys: list[Key], calls: list[Any], goals: list[Goal]) -> Result:
        ways = [Way(OURS, reads(volume.__getitem__, keys), OURS)]
        ways += [Way(name, reads(read, keys)) for name, read in others.items()]
        if rival is not None:
            ways.append(
                Way("RadiObject 0.1.1", lambda: rival.lap("read", place / "radiobject", keys=calls), rounds=3)
            )
        result = Result("volume_reads", title, STORY, "read", len(keys))
        return race(result, ways, goals, rounds=rounds)

    results = []
    for plane in PLANES if tiling == "isotropic" else [tiling] if tiling in PLANES else []:
        places = list(range(70, 76))
        goals = [Goal(OURS, "RadiObject 0.1.1", 25 if plane == "axial" else 20)]
        if tiling in PLANES:
            limit = 1 / 1.2 if plane == "axial" else 1 / 1.3
            goals += [Goal(OURS, name, limit) for name in ("h5py", "tensorstore", "blosc2")]
        else:
            goals = [Goal(OURS, "tensorstore", 2.5 if plane == "axial" else 2)]
        title = f"{plane.capitalize()} slices, {tiling} tiles"
        results.append(one(title, [PLANES[plane](i) for i in places], [(plane, i) for i in places], goals))
    if tiling in ("isotropic", "iso32"):
        corners = [(80, 90, 40), (20, 100, 60), (130, 40, 80)]
        keys = [tuple(slice(c, c + CUBE) for c in corner) for corner in corners]
        calls = [("box", [[c, c + CUBE] for c in corner]) for corner in corners]
        goals = [Goal(OURS, name, 1 / 0.7) for name in ("h5py", "tensorstore", "blosc2")]
        goals += [Goal(OURS, "RadiObject 0.1.1", 7)] if tiling == "iso32" else []
        results.append(one(f"Cubes of 64, cold, tiles {size(extents)}", keys, calls, goals))
    goals = [Goal(OURS, name, 1 / 0.7) for name in ("h5py", "tensorstore", "blosc2")]
    results.append(one(f"The whole volume, tiles {size(extents)}", [(EVERY,) * 3], [("full", None)], goals))
    return results


STORY = (
    "240 x 240 x 155 float32, compressed, files in the page cache, two threads where a reader has them,"
    " nothing decoded beforehand."
)


def size(extents: tuple[int, ...]) -> str:
    return "x".join(map(str, extents))


def plain_files(place: Path, data: np.ndarray) -> dict[str, Callable[[Key], np.ndarray]]:
    """Race nibabel on both kinds of files and a memory map: what people use without a store."""
    import nibabel as nib

    image = nib.Nifti1Image(data, np.eye(4))
    for name in ("v.nii", "v.nii.gz"):
        nib.save(image, place / name)
    mapped = np.memmap(place / "raw", data.dtype, "w+", shape=data.shape, order="F")
    mapped[:] = data
    mapped.flush()
    return {
        "nibabel .nii": lambda key: np.asarray(nib.load(place / "v.nii").dataobj[key]),
        "nibabel .nii.gz": lambda key: np.asarray(nib.load(place / "v.nii.gz").dataobj[key]),
        "np.memmap, uncompressed": lambda key: np.array(mapped[key]),
    }


def replica_race(folder: Path, data: np.ndarray, rounds: int) -> Result:
    """Race all three planes of one volume: what scrolling in three windows reads."""
    keys = [PLANES[plane](i) for plane in PLANES for i in (70, 71)]
    tilings = {
        "voxtier, axial tiles and two replicas": TileConfig(
            SliceOrientation.AXIAL, replicas=(SliceOrientation.SAGITTAL, SliceOrientation.CORONAL)
        ),
        "voxtier, axial tiles": tile_of("axial"),
        "voxtier, 64-voxel cubes": tile_of("isotropic"),
        "voxtier, 32-voxel cubes": tile_of("iso32"),
    }
    ways, facts = [], []
    for number, (name, tile) in enumerate(tilings.items()):
        volume = stored(folder / f"planes{number}", data, tile)
        ways.append(Way(name, reads(volume.__getitem__, keys), OURS))
        facts.append(f"{name}: {volume.stored_bytes() / 1e6:.1f} MB")
    place = folder / "planes_h5"
    place.mkdir()
    for name, (read, stored_size) in peers(place, data, (64, 64, 64)).items():
        ways.append(Way(f"{name}, 64-voxel cubes", reads(read, keys)))
        facts.append(f"{name}: {stored_size / 1e6:.1f} MB")
    result = Result(
        "volume_reads",
        "Two slices of each plane",
        "Three windows of a viewer; replicas cost bytes on disk.",
        "slice",
        len(keys),
        facts=facts,
    )
    goals = [Goal("voxtier, axial tiles and two replicas", "voxtier, 64-voxel cubes", 5)]
    return race(result, ways, goals, rounds=rounds)


def again(read: Callable[[], np.ndarray], times: int) -> Callable[[], Lap]:
    """Return a lap of one read, repeated into the same memory (new pages cost more than the copy)."""

    def work() -> np.ndarray:
        for _ in range(times):
            found = read()
        return found

    lap = timed(work)

    def checked() -> Lap:
        seconds, found = lap()
        return seconds, digests([found])

    return checked


def decoded_race(folder: Path, data: np.ndarray, rounds: int) -> Result:
    """Race reading the same cube again, from decoded tiles."""
    volume = stored(folder / "decoded", data, tile_of("iso32"), ReadConfig(concurrency=2))
    key = tuple(slice(c, c + CUBE) for c in (80, 90, 40))
    clear_cache()
    volume[key]
    crop = np.ascontiguousarray(data[key])
    by_rows = np.ascontiguousarray(data.T)  # as it is stored: runs of 64 voxels along x
    result = Result(
        "volume_reads",
        "A cube of 64, decoded before",
        "From the decoded cache: tiles of 32 cubed, rows of 16 and 32 voxels. A cube that lies elsewhere is"
        " copied row by row, at best (second floor); one that lies by itself in one piece (first floor).",
        "read",
        20,
    )
    ways = [
        Way(OURS, again(lambda: volume[key], 20), OURS),
        Way("memcpy of the cube", again(crop.copy, 20), "floor"),
        Way(
            "the cube copied out of the volume in memory",
            again(lambda: by_rows[key[::-1]].copy().T, 20),
            "floor",
        ),
    ]
    goals = [Goal(OURS, way.name, 0.5) for way in ways[1:]]
    return race(result, ways, goals, rounds=rounds)


def threads_race(folder: Path, data: np.ndarray, rounds: int) -> Result:
    """Race cubes at random from one, two and four Python threads, each decoding by itself."""
    rng = np.random.default_rng(3)
    corners = rng.integers(0, np.array(data.shape) - CUBE, (24, 3))
    keys = [tuple(slice(int(c), int(c) + CUBE) for c in corner) for corner in corners]
    alone = ReadConfig(tile_cache_size_mb=0, concurrency=1)
    volume = stored(folder / "threads", data, tile_of("iso32"), alone)
    naive = naive_tiledb(naive_store(folder / "naive_threads", data, (32, 32, 32)))

    def lap(read: Callable[[Key], np.ndarray], threads: int) -> Callable[[], Lap]:
        def work() -> list[np.ndarray]:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(read, keys))

        run_timed = timed(work)

        def checked() -> Lap:
            seconds, arrays = run_timed()
            return seconds, digests(arrays)

        return checked

    ways = [Way(f"voxtier, {count} threads", lap(volume.__getitem__, count), OURS) for count in (2, 1, 4)] + [
        Way(f"TileDB-Py, {count} threads", lap(naive, count), rounds=2) for count in (1, 2)
    ]
    result = Result(
        "volume_reads", "24 cubes of 64 from several threads", "Tiles of 32 cubed, cold.", "cube", len(keys)
    )
    return race(result, ways, [Goal("voxtier, 2 threads", "voxtier, 1 threads", 1.2)], rounds=rounds)


def patches_race(folder: Path, data: np.ndarray, rival: Rival | None, rounds: int) -> Result:
    """Race training patches of one int16 volume, cold and decoded."""
    rng = np.random.default_rng(1)
    starts = rng.integers(0, np.array(data.shape) - CUBE, (48, 3))
    keys = [tuple(slice(int(s), int(s) + CUBE) for s in start) for start in starts]
    cold = stored(folder / "patches", data, tile_of("iso32"))
    with configured(read=ReadConfig(concurrency=2)):
        warm = Volume(folder / "patches")
    mapped = np.memmap(folder / "patches.raw", data.dtype, "w+", shape=data.shape, order="F")
    mapped[:] = data
    mapped.flush()

    def fused(volume: Volume) -> Callable[[], Lap]:
        lap = timed(lambda: volume.read_patches(starts, (CUBE,) * 3))

        def checked() -> Lap:
            seconds, found = lap()
            return seconds, digests(list(found))

        return checked

    ways = [
        Way("voxtier, decoded, one call", fused(warm), OURS),
        Way("voxtier, cold, one call", fused(cold), OURS),
        Way("voxtier, cold, patch by patch", reads(cold.__getitem__, keys), OURS),
        Way("np.memmap, uncompressed", reads(lambda key: np.array(mapped[key]), keys)),
    ]
    if rival is not None:
        np.save(folder / "ct.npy", data)
        rival.lap("store", folder / "ct_radiobject", orientation="isotropic", source=folder / "ct.npy")
        calls = [("box", [[int(s), int(s) + CUBE] for s in start]) for start in starts]
        ways.append(
            Way("RadiObject 0.1.1", lambda: rival.lap("read", folder / "ct_radiobject", keys=calls), rounds=2)
        )
    result = Result(
        "volume_reads", "48 patches of 64 cubed, int16", "Random places in one volume.", "cube", len(keys)
    )
    goals = [
        Goal("voxtier, cold, one call", "RadiObject 0.1.1", 6),
        Goal("voxtier, decoded, one call", "RadiObject 0.1.1", 20),
        Limit("voxtier, cold, one call", 1 / 600),
        Limit("voxtier, decoded, one call", 1 / 2000),
    ]
    return race(result, ways, goals, rounds=rounds)


def iloc_race(folder: Path, rival: Rival | None, rounds: int) -> Result:
    """Race opening volumes of an open cohort by position."""
    import nibabel as nib

    pairs = []
    for number in range(20):
        path = folder / f"i{number:02d}_CT.nii"
        nib.save(nib.Nifti1Image(np.full((8, 8, 8), number, np.int16), np.eye(4)), path)
        pairs.append((str(path), f"i{number:02d}"))
    RadiObject.from_niftis(folder / "iloc", images={"CT": pairs})
    radi, places = RadiObject(folder / "iloc"), list(range(len(pairs)))
    lap = timed(lambda: [radi.CT.iloc[place] for place in places])

    def checked() -> Lap:
        seconds, volumes = lap()
        return seconds, digests([volume.to_numpy() for volume in volumes])

    ways = [Way(OURS, checked, OURS)]
    if rival is not None:
        rival.lap("ingest", folder / "iloc_radiobject", pairs=pairs)
        ways.append(
            Way("RadiObject 0.1.1", lambda: rival.lap("iloc", folder / "iloc_radiobject", keys=places))
        )
    result = Result(
        "volume_reads", "A volume of an open cohort", "`radi.CT.iloc[i]`, warm.", "volume", len(places)
    )
    return race(result, ways, [Limit(OURS, 50e-6)], rounds=rounds)
