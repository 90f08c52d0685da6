"""The direct reader against TileDB's own, over everything that it claims to read; and hostile bytes."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb

from support.depth import depth
from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.volumes import CompressionConfig, ReadConfig, TileConfig, Volume, cache_stats, configure
from voxtier.volumes.tiledb import arrays
from voxtier.volumes.tiledb.format import direct
from voxtier.volumes.tiledb.session import Session

SHAPES = [(37, 70, 65), (5, 4, 3), (20, 9, 33, 4), (1, 1, 1)]


def through_tiledb(uri: Path | str, monkeypatch: pytest.MonkeyPatch) -> arrays.VoxelArray:
    monkeypatch.setenv("VOXTIER_DIRECT", "0")
    array = arrays.VoxelArray(str(uri), Session.of(None))
    monkeypatch.delenv("VOXTIER_DIRECT")
    assert not array.is_direct
    return array


ALGORITHMS = ["zstd", "lz4", "gzip", "none"]
ORIENTATIONS = ["axial", "sagittal", "coronal", "isotropic"]


@pytest.mark.deep
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_direct_reads_give_the_cells_of_tiledb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """Of an algorithm, a type and a shape, `make test` takes one of four orientations, the next at each step.

    So it takes any three of the four things together, and the soak all four.
    """
    rng = np.random.default_rng(0)
    turn = ALGORITHMS.index(algorithm)
    for number, dtype in enumerate(("u1", "i2", "u4", "f4", "f8")):
        places = product(range(depth(1, 4)), enumerate(SHAPES))
        for orientation, shape in [(ORIENTATIONS[(turn + number + n + k) % 4], s) for k, (n, s) in places]:
            configure(
                tile=TileConfig(orientation, y=rng.choice([None, 7])),
                compression=CompressionConfig(algorithm),
                io=ReadConfig(
                    concurrency=int(rng.choice([1, 3])), tile_cache_size_mb=int(rng.choice([0, 10]))
                ),
            )
            uri = tmp_path / "v"
            data = (rng.normal(size=shape) * 60).astype(dtype)
            data[:, shape[1] // 3 :, shape[2] // 2 :] = data[0, 0, 0]  # background, whole tiles of it
            Volume.from_numpy(uri, data)
            ours, oracle = arrays.VoxelArray(str(uri), Session.of(None)), through_tiledb(uri, monkeypatch)
            assert ours.is_direct
            for _ in range(8):
                region = []
                for size in shape:
                    start = int(rng.integers(size))
                    step = int(rng.integers(1, 4))
                    region.append((start, int(rng.integers(1, (size - start - 1) // step + 2)), step))
                assert np.array_equal(ours.read(tuple(region)), oracle.read(tuple(region))), region
            starts = rng.integers(-4, 40, (6, len(shape)))
            size = tuple(int(n) for n in rng.integers(1, 9, len(shape)))
            assert np.array_equal(ours.read_patches(starts, size, 3), oracle.read_patches(starts, size, 3))
            shutil.rmtree(uri)


def make(tmp_path: Path, shape: tuple[int, ...] = (40, 40, 40), **tile: Any) -> tuple[Volume, np.ndarray]:
    configure(tile=TileConfig("isotropic", 16, 16, 16), **tile)
    data = np.random.default_rng(1).integers(0, 500, shape).astype(np.int16)
    return Volume.from_numpy(tmp_path / "v", data), data


@pytest.mark.parametrize(("asked", "cut"), [(0, 2 * 32 * 32 * 70), (1 << 10, 64 << 10), (1 << 20, 64 << 10)])
def test_chunks_of_another_size_that_somebody_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, cut: int
) -> None:
    shape, extents = (70, 64, 33), (70, 32, 32)
    data = np.random.default_rng(1).integers(0, 900, shape).astype(np.int16)
    dims = [
        tiledb.Dim(name=name, domain=(0, size - 1), tile=extent, dtype=np.int32)
        for name, size, extent in zip("zyx", shape, extents, strict=True)
    ]
    filters = tiledb.FilterList([tiledb.ByteShuffleFilter(), tiledb.ZstdFilter(3)], chunksize=asked)
    attributes = [tiledb.Attr("voxels", dtype=data.dtype, filters=filters)]
    tiledb.Array.create(str(tmp_path / "v"), tiledb.ArraySchema(tiledb.Domain(*dims), attributes))
    with tiledb.open(str(tmp_path / "v"), "w") as array:
        array[:] = data
    ours = arrays.VoxelArray(str(tmp_path / "v"), Session.of(None))
    assert ours.is_direct
    assert ours.layout.chunk_bytes == cut
    tile = 2 * int(np.prod(extents))
    (path,) = (tmp_path / "v").glob("__fragments/*/a0.tdb")
    found = _core.TileFile(str(path), list(shape), list(extents), 2, ["byteshuffle", "zstd"]).chunks
    assert found == 4 * -(-tile // cut)
    oracle = through_tiledb(tmp_path / "v", monkeypatch)
    for region in (((3, 20, 1), (9, 25, 2), (0, 70, 1)), ((0, 33, 1), (7, 1, 1), (60, 10, 1))):
        assert np.array_equal(ours.read(region), oracle.read(region))


def test_a_rewrite_never_serves_old_voxels(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    for round_ in range(8):
        assert np.array_equal(volume.axial(3), data[:, :, 3])
        box = np.full((5, 5, 5), 1000 + round_, np.int16)
        Volume(volume.uri).update((2, 2, 2), box)
        data[2:7, 2:7, 2:7] = box
        assert np.array_equal(volume.to_numpy(), data)
        assert not volume.array.is_direct
        volume.consolidate()
        assert volume.array.is_direct or volume.fragments()
        assert np.array_equal(volume[:, :, 3], data[:, :, 3])


def test_another_volume_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    volume, _ = make(tmp_path)
    volume.axial(0)
    shutil.rmtree(volume.uri)
    Volume.from_numpy(volume.uri, np.full((40, 40, 40), 9, np.int16))
    assert (volume.axial(0) == 9).all()


@pytest.mark.parametrize("change", ["delete", "partial", "foreign_filter", "delta", "column_major"])
def test_arrays_of_another_form_go_through_tiledb(tmp_path: Path, change: str) -> None:
    uri = str(tmp_path / "v")
    filters = {
        "foreign_filter": [tiledb.BitShuffleFilter()],
        "delta": [tiledb.DeltaFilter(), tiledb.ZstdFilter()],
    }
    order = "col-major" if change == "column_major" else "row-major"
    dims = [tiledb.Dim(name=n, domain=(0, 9), tile=5, dtype=np.int32) for n in "zyx"]
    attr = tiledb.Attr("voxels", "int16", filters=filters.get(change))
    tiledb.Array.create(uri, tiledb.ArraySchema(domain=tiledb.Domain(*dims), attrs=[attr], cell_order=order))
    data = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    with tiledb.open(uri, "w") as array:
        if change == "partial":
            array[0:5, 0:5, 0:5] = data[:5, :5, :5]
        else:
            array[:] = data
    if change == "delete":
        (commit,) = Path(uri, "__commits").iterdir()
        (Path(uri, "__commits") / "__1_1_0123456789abcdef0123456789abcdef_22.ign").write_text("")
        assert commit.exists()
    volume = Volume(uri)
    assert not volume.array.is_direct
    if change != "partial":
        assert np.array_equal(volume.to_numpy(), data.transpose())
    else:
        assert np.array_equal(volume[:5, :5, :5], data[:5, :5, :5].transpose())


def tile_file(volume: Volume) -> Path:
    (path,) = Path(volume.uri).glob("__fragments/*/a0.tdb")
    return path


def open_core(
    path: Path, shape: tuple[int, ...] = (40, 40, 40), filters: tuple[str, ...] = ("byteshuffle", "zstd")
) -> _core.TileFile:
    return _core.TileFile(path, list(shape), [16] * 3, 2, list(filters))


@pytest.mark.parametrize("algorithm", ["zstd", "lz4", "gzip", "none"])
def test_hostile_bytes_are_refused_or_harmless(tmp_path: Path, algorithm: str) -> None:
    volume, data = make(tmp_path, (33, 20, 17), compression=CompressionConfig(algorithm))
    good = tile_file(volume).read_bytes()
    filters = [direct.FILTERS[name] for name in volume.array.layout.filters]
    shape = [17, 20, 33]
    rng = np.random.default_rng(2)
    refused = 0
    for case in range(600):
        bad = bytearray(good)
        if case % 3 == 0:
            bad = bad[: rng.integers(0, len(bad))]
        elif case % 3 == 1:
            for at in rng.integers(0, len(bad), rng.integers(1, 4)):
                bad[at] = rng.integers(256)
        else:
            at = (
                int(rng.integers(0, min(64, len(bad))))
                if rng.random() < 0.5
                else int(rng.integers(0, len(bad) - 8))
            )
            bad[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\1\0\0\0", b"\0\0\0\x80"])
        path = tmp_path / "a0.tdb"
        path.write_bytes(bad)
        out = np.zeros(17 * 20 * 33 * 2, np.uint8)
        try:
            tiles = _core.TileFile(path, shape, [16] * 3, 2, filters)
            tiles.read([(0, n, 1) for n in shape], out, threads=2, keep=False)
        except FormatError as error:
            assert error.kind == "bad_tile"
            refused += 1
        except SourceError:
            refused += 1
    assert refused > 150
    assert data.shape == volume.shape


def test_lies_about_sizes_allocate_nothing(tmp_path: Path) -> None:
    volume, _ = make(tmp_path)
    path = tile_file(volume)
    for shape in ([2**40, 1, 1], [2**31] * 3, [2**62] * 3):
        with pytest.raises(FormatError):
            _core.TileFile(path, shape, [16, 16, 16], 2, ["byteshuffle", "zstd"])
    with pytest.raises(FormatError, match="filters"):
        open_core(path, filters=("rle",))
    with pytest.raises(FormatError):
        open_core(path, filters=("zstd",)).read([(0, 40, 1)] * 3, np.zeros(128000, np.uint8))
    tiles = open_core(path)
    for ranges, size in (
        ([(0, 41, 1)] * 3, 41**3),
        ([(39, 2, 1)] + [(0, 1, 1)] * 2, 2),
        ([(0, 1, 0)] * 3, 1),
        ([(0, 1, 1)] * 2, 1),
        ([(0, 2, 2**63)] * 3, 8),
    ):
        with pytest.raises(FormatError):
            tiles.read(ranges, np.zeros(size * 2, np.uint8))
    with pytest.raises(FormatError, match="bytes for"):
        tiles.read([(0, 1, 1)] * 3, np.zeros(3, np.uint8))


def test_a_truncated_fragment_is_left_to_tiledb_which_refuses_it(tmp_path: Path) -> None:
    volume, _ = make(tmp_path)
    path = tile_file(volume)
    path.write_bytes(path.read_bytes()[:-10])
    arrays.forget(volume.uri)
    with pytest.raises((FormatError, SourceError)):
        volume.to_numpy()


def test_counters_tell_hits_misses_and_bytes(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    configure(io=ReadConfig(concurrency=1))
    volume = Volume(volume.uri)
    assert np.array_equal(volume[:16, :16, :16], data[:16, :16, :16])
    first = cache_stats()
    assert (first["misses"], first["hits"], first["entries"], first["bytes_decoded"]) == (1, 0, 1, 16**3 * 2)
    _ = volume[:16, :16, :16]
    second = cache_stats()
    assert (second["misses"], second["hits"], second["bytes_decoded"]) == (1, 1, first["bytes_decoded"])
    volume.read_patches([[0, 0, 0], [8, 8, 8], [4, 4, 4]], (16, 16, 16))
    assert cache_stats()["bytes_decoded"] == 8 * 16**3 * 2


def test_many_threads_that_read_the_same_chunks_decode_each_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    volume, data = make(tmp_path, (96, 96, 96))
    rng = np.random.default_rng(5)
    boxes = [tuple(slice(int(s), int(s) + 40) for s in rng.integers(0, 56, 3)) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(boxes, pool.map(volume.__getitem__, boxes), strict=True):
            assert np.array_equal(found, data[box])
    assert cache_stats()["bytes_decoded"] <= 96**3 * 2 * 1.3
