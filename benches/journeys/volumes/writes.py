"""Journey: volumes written: one write, bytes by compressor, twenty NIfTI files, fragments merged."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.journeys.volumes.reads import (
    EVERY,
    naive_store,
    naive_tiledb,
    reads,
    rival_process,
    stored,
    tile_of,
)
from benches.measure import Goal, Lap, Limit, Result, Way, race, timed
from benches.rivals.radiobject import Rival
from benches.rivals.volume_formats import ct, mri, peers, tiledb_reader
from voxtier.volumes import CompressionConfig, Compressor, RadiObject, TileConfig, Volume, configured

SUBJECTS = 20


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Run every race."""
    head, body = mri(), ct()
    with rival_process() as rival:
        yield write_race(folder, head, "whole numbers", rival, 2 if quick else 5)
        yield write_race(folder, mri(whole=False), "fractions", rival, 2 if quick else 5)
        yield bytes_race(folder, head, "head, float32")
        yield bytes_race(folder, body, "body, int16")
        yield ingest_race(folder, body, rival, 4 if quick else SUBJECTS, 1 if quick else 2)
        yield tiny_race(folder, rival, 50 if quick else 500)
        yield fragments_race(folder, head, 3 if quick else 5)


class Fresh:
    """A new folder for every lap; removing the one before is not timed.

    With ``keep`` it stays: ext4 reuses no inode that was freed in the last minute, and looks at each of
    thousands before it makes a file.
    """

    def __init__(self, folder: Path, name: str, *, keep: bool = False) -> None:
        self._folder, self._name, self._lap, self._keep = folder, name, 0, keep

    def __call__(self) -> Path:
        if not self._keep:
            shutil.rmtree(self.now, ignore_errors=True)
        self._lap += 1
        return self.now

    @property
    def now(self) -> Path:
        return self._folder / f"{self._name}-{self._lap}"


def each_time_new(fresh: Fresh, work: Callable[[Path], Any]) -> Callable[[], Lap]:
    lap = timed(lambda: work(fresh.now), before=fresh)

    def done() -> Lap:
        seconds, _ = lap()
        return seconds, None

    return done


def write_race(folder: Path, data: np.ndarray, content: str, rival: Rival | None, rounds: int) -> Result:
    """Race writing one volume from memory to disk."""
    import blosc2
    import h5py
    import zarr

    def h5(place: Path) -> None:
        with h5py.File(place, "w") as file:
            file.create_dataset("v", data=data, chunks=(240, 240, 1), compression="gzip", compression_opts=1)
        place.rename(place.with_suffix(".done"))

    def blosc(place: Path) -> None:
        zstd = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "filters": [blosc2.Filter.SHUFFLE]}
        blosc2.asarray(data, urlpath=str(place), mode="w", chunks=(240, 240, 1), cparams=zstd)
        place.rename(place.with_suffix(".done"))

    folder = folder / f"write {content}"
    folder.mkdir()
    np.save(folder / "write.npy", data)
    number = iter(range(10**6))

    def radiobject() -> Lap:
        place = folder / f"write-radiobject-{next(number)}"
        seconds, _ = rival.lap("store", place, source=folder / "write.npy")
        shutil.rmtree(place)
        return seconds, None

    new = {name: Fresh(folder, f"write-{name}") for name in ("ours", "naive", "zarr", "h5", "blosc", "save")}

    def ours(place: Path) -> None:
        with configured(tile=tile_of("axial")):
            Volume.from_numpy(place, data)

    ways = [
        Way("voxtier", each_time_new(new["ours"], ours), "voxtier"),
        Way(
            "TileDB-Py, as in its tutorials",
            each_time_new(new["naive"], lambda place: naive_store(place, data, (240, 240, 1))),
        ),
        Way(
            "zarr",
            each_time_new(new["zarr"], lambda p: zarr.create_array(str(p), data=data, chunks=(240, 240, 1))),
        ),
        Way("h5py", each_time_new(new["h5"], h5)),
        Way("blosc2", each_time_new(new["blosc"], blosc)),
        Way("np.save, uncompressed", each_time_new(new["save"], lambda place: np.save(place, data)), "floor"),
    ]
    if rival is not None:
        ways.append(Way("RadiObject 0.1.1", radiobject))
    title = f"Write a volume of 35.7 MB, float32, {content}"
    result = Result("volume_writes", title, "Axial tiles, from memory.", "volume", 1)
    return race(result, ways, [Goal("voxtier", "RadiObject 0.1.1", 1 / 0.8)], rounds=rounds)


def bytes_race(folder: Path, data: np.ndarray, content: str) -> Result:
    """Measure the bytes of the volume on disk by compressor and tiling."""
    ways = []
    for tiling, algorithm in [
        *[(tiling, Compressor.ZSTD) for tiling in ("axial", "sagittal", "isotropic", "iso32")],
        *[("axial", algorithm) for algorithm in (Compressor.LZ4, Compressor.GZIP, Compressor.NONE)],
    ]:
        with configured(compression=CompressionConfig(algorithm)):
            volume = stored(folder / f"bytes-{data.dtype}-{tiling}-{algorithm.value}", data, tile_of(tiling))
        amount = volume.stored_bytes()
        name = f"voxtier, {tiling}, {algorithm.value}"
        ways.append(Way(name, lambda amount=amount: (amount, None), "voxtier"))
    place = folder / f"bytes-{data.dtype}"
    place.mkdir()
    for name, (_, amount) in peers(place, data, (240, 240, 1)).items():
        if name != "tensorstore":  # it reads the files of zarr
            ways.append(Way(f"{name}, axial", lambda amount=amount: (amount, None)))
    packed = len(gzip.compress(data.tobytes(order="F"), 6, mtime=0))
    ways.append(Way(".nii.gz", lambda: (packed, None)))
    ways.append(Way("numbers as they are", lambda: (data.nbytes, None), "floor"))
    result = Result(
        "volume_writes",
        f"Bytes on disk: {content}",
        "The same volume, 240 x 240 x 155.",
        "volume",
        1,
        quantity="bytes",
    )
    goals: list[Goal | Limit] = [Goal("voxtier, axial, zstd", "blosc2, axial", 1 / 1.05)]
    if data.dtype == np.int16:
        goals.append(Limit("voxtier, axial, zstd", data.nbytes / 2.85))
    return race(result, ways, goals, rounds=1)


def ingest_race(folder: Path, data: np.ndarray, rival: Rival | None, count: int, rounds: int) -> Result:
    """Race ingesting twenty compressed NIfTI files into a cohort."""
    import nibabel as nib

    source = folder / "nifti"
    source.mkdir()
    pairs = []
    for number in range(count):
        path = source / f"s{number:02d}_CT.nii.gz"
        nib.save(nib.Nifti1Image(np.roll(data, number, axis=2), np.diag([1.0, 1, 2, 1])), path)
        pairs.append((str(path), f"s{number:02d}"))

    def by_hand(place: Path) -> None:
        place.mkdir()
        for path, subject in pairs:
            naive_store(place / subject, np.asarray(nib.load(path).dataobj), (240, 240, 1))

    def with_zarr(place: Path) -> None:
        import zarr

        for path, subject in pairs:
            voxels = np.asarray(nib.load(path).dataobj)
            zarr.create_array(str(place / subject), data=voxels, chunks=(240, 240, 1))

    def inflate(_: Path) -> None:
        for path, _ in pairs:
            np.asarray(nib.load(path).dataobj)

    number = iter(range(10**6))

    def radiobject() -> Lap:
        place = folder / f"ingest-radiobject-{next(number)}"
        seconds, _ = rival.lap("ingest", place, pairs=pairs)
        shutil.rmtree(place)
        return seconds, None

    new = {name: Fresh(folder, f"ingest-{name}") for name in ("ours", "iso", "hand", "zarr", "floor")}

    def ours(tiling: str) -> Callable[[Path], None]:
        def work(place: Path) -> None:
            with configured(tile=tile_of(tiling)):
                RadiObject.from_niftis(place, images={"CT": pairs})

        return work

    ways = [
        Way("voxtier", each_time_new(new["ours"], ours("axial")), "voxtier"),
        Way("voxtier, isotropic", each_time_new(new["iso"], ours("isotropic")), "voxtier"),
        Way("nibabel and TileDB-Py, by hand", each_time_new(new["hand"], by_hand)),
        Way("nibabel and zarr, by hand", each_time_new(new["zarr"], with_zarr)),
        Way("nibabel reads them, nothing written", each_time_new(new["floor"], inflate), "floor"),
    ]
    if rival is not None:
        ways.append(Way("RadiObject 0.1.1", radiobject, rounds=1))
    result = Result(
        "volume_writes",
        f"Ingest {count} NIfTI files",
        "int16, .nii.gz, 357 MB of voxels for twenty.",
        "file",
        count,
    )
    goals = [
        Goal("voxtier", "RadiObject 0.1.1", 3.8 / 2),
        *[Limit(name, 2.0 / SUBJECTS) for name in ("voxtier", "voxtier, isotropic")],
    ]
    return race(result, ways, goals, rounds=rounds)


def tiny_race(folder: Path, rival: Rival | None, count: int) -> Result:
    """Race many small volumes: what every volume costs in addition to its voxels."""
    import nibabel as nib

    source = folder / "tiny"
    source.mkdir()
    pairs = []
    for number in range(count):
        path = source / f"t{number:03d}_CT.nii"
        nib.save(nib.Nifti1Image(np.full((8, 8, 8), number, np.int16), np.eye(4)), path)
        pairs.append((str(path), f"t{number:03d}"))
    number = iter(range(10**6))

    def radiobject() -> Lap:
        place = folder / f"tiny-radiobject-{next(number)}"
        seconds, _ = rival.lap("ingest", place, pairs=pairs)
        return seconds, None

    fresh = Fresh(folder, "tiny-ours", keep=True)
    ways = [
        Way(
            "voxtier",
            each_time_new(fresh, lambda place: RadiObject.from_niftis(place, images={"CT": pairs})),
            "voxtier",
        )
    ]
    if rival is not None:
        ways.append(Way("RadiObject 0.1.1", radiobject, rounds=1))
    result = Result(
        "volume_writes", f"Ingest {count} tiny volumes", "8 x 8 x 8 voxels each.", "volume", count
    )
    goals = [Goal("voxtier", "RadiObject 0.1.1", 20.7 / 4), Limit("voxtier", 4 / 500)]
    return race(result, ways, goals, rounds=2)


def fragments_race(folder: Path, data: np.ndarray, rounds: int) -> Result:
    """Race reads of one write, of 155 writes of a plane each, and of these after consolidation."""
    volumes: dict[str, Volume] = {"one fragment": stored(folder / "whole", data, tile_of("axial"))}
    seconds = {}
    for name in ("155 fragments", "155 fragments, consolidated"):
        with configured(tile=TileConfig()):
            volume = Volume.create(folder / name.replace(" ", "-"), data.shape, data.dtype)
        for z in range(data.shape[2]):
            volume.update((0, 0, z), data[:, :, z : z + 1])
        volumes[name] = volume
    seconds, _ = timed(volumes["155 fragments, consolidated"].consolidate)()
    cold = stored(folder / "unused", data[:8, :8, :8], tile_of("axial"))._session
    volumes = {name: Volume(volume.uri, cold) for name, volume in volumes.items()}
    keys = [(EVERY, EVERY, 70), (EVERY, EVERY, 71), (EVERY, EVERY, EVERY)]
    ways = [
        Way(f"voxtier, {name}", reads(volume.__getitem__, keys), "voxtier")
        for name, volume in volumes.items()
    ]
    ways += [
        Way(f"TileDB-Py opened once, {name}", reads(tiledb_reader(volume.uri), keys))
        for name, volume in volumes.items()
    ]
    ways.append(
        Way(
            "TileDB-Py as in its tutorials, one fragment",
            reads(naive_tiledb(naive_store(folder / "naive-one", data, (240, 240, 1))), keys),
        )
    )
    result = Result(
        "volume_writes",
        "Reads before and after consolidation",
        "Two axial slices and the whole.",
        "read",
        3,
        facts=[f"consolidating 155 fragments took {seconds:.2f} s"],
    )
    goals = [
        Goal("voxtier, 155 fragments, consolidated", "voxtier, one fragment", 1 / 1.2),
        Goal("voxtier, 155 fragments, consolidated", "voxtier, 155 fragments", 2),
    ]
    return race(result, ways, goals, rounds=rounds)
