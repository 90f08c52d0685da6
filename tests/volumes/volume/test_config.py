"""Options: frozen, validated, unknown ones refused, each with its effect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiledb

from voxtier.errors import ConfigError
from voxtier.volumes import (
    CompressionConfig,
    Compressor,
    IOConfig,
    OrientationConfig,
    ReadConfig,
    S3Config,
    SliceOrientation,
    TileConfig,
    Volume,
    WriteConfig,
    cache_stats,
    configure,
    configured,
    get_config,
    reset_config,
)
from voxtier.volumes.tiledb.session import Session


def test_a_partial_update_keeps_the_rest() -> None:
    configure(io=IOConfig(concurrency=7), s3=S3Config(region="x"))
    configure(tile=TileConfig(orientation="coronal"))
    configure(compression=CompressionConfig(level=9))
    found = get_config()
    assert (found.io.concurrency, found.s3.region, found.tile.orientation, found.compression.level) == (
        7,
        "x",
        "coronal",
        9,
    )
    configure(write=WriteConfig())
    assert get_config().compression.level == 3
    assert get_config().read.concurrency == 7
    reset_config()
    assert get_config().read.concurrency == 4


def test_values_are_frozen_and_unknown_options_refused() -> None:
    with pytest.raises(AttributeError):
        get_config().tile.x = 3
    with pytest.raises(TypeError, match="no option 'tiles'"):
        configure(tiles=TileConfig())
    with pytest.raises(TypeError):
        TileConfig(w=3)
    with pytest.raises(TypeError, match="takes a TileConfig"):
        configure(tile={"x": 3})


@pytest.mark.parametrize(
    "make",
    [
        lambda: TileConfig(x=0),
        lambda: TileConfig(orientation="oblique"),
        lambda: ReadConfig(memory_budget_mb=63),
        lambda: ReadConfig(concurrency=65),
        lambda: ReadConfig(max_workers=0),
        lambda: ReadConfig(tile_cache_size_mb=9),
        lambda: S3Config(multipart_part_size_mb=4),
        lambda: S3Config(timeout=0),
        lambda: CompressionConfig(level=23),
        lambda: CompressionConfig(algorithm="brotli"),
        lambda: OrientationConfig(canonical_target="RSA"),
        lambda: TileConfig().extents_for_shape((3, 4)),
    ],
)
def test_values_outside_their_bounds_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(("algorithm", "highest"), [("zstd", 22), ("lz4", 16), ("gzip", 9), ("none", 0)])
def test_levels_are_clamped_at_every_entry_point(algorithm: str, highest: int) -> None:
    configure(compression=CompressionConfig(algorithm, 22))
    assert get_config().compression.level == highest
    configure(write=WriteConfig(compression=CompressionConfig(algorithm, 22)))
    assert get_config().write.compression.level == highest


def test_explicit_extents_and_time_replace_those_of_the_orientation() -> None:
    assert TileConfig(x=32, orientation="isotropic", t=2).extents_for_shape((100, 100, 100, 9)) == (
        32,
        64,
        64,
        2,
    )


def test_a_block_reaches_its_thread_alone() -> None:
    seen = []
    with configured(io=ReadConfig(concurrency=9)):
        other = threading.Thread(target=lambda: seen.append(get_config().io.concurrency))
        other.start()
        other.join()
        assert get_config().io.concurrency == 9
        configure(io=ReadConfig(concurrency=10))
        assert get_config().io.concurrency == 10
    assert seen == [4]
    assert get_config().io.concurrency == 4


def test_each_key_of_tiledb_exists_and_unknown_ones_are_refused() -> None:
    keys = Session.of(None).context().config().dict()
    assert keys["sm.mem.malloc_trim"] == "false"
    assert keys["sm.compute_concurrency_level"] == "4"
    with pytest.raises(ConfigError, match="sm.tile_cache_size"):  # noqa: RUF043
        Session.of({"sm.tile_cache_size": "10"})


def test_orientation_and_compressor_shape_the_array(tmp_path: Path) -> None:
    data = np.zeros((20, 30, 40), np.int16)
    for orientation, extents in [
        ("axial", (20, 30, 1)),
        ("sagittal", (1, 30, 40)),
        ("coronal", (20, 1, 40)),
        ("isotropic", (20, 30, 40)),
    ]:
        configure(tile=TileConfig(orientation=orientation))
        volume = Volume.from_numpy(tmp_path / orientation, data)
        assert volume.tile_extents == extents
        assert volume.tile_orientation is SliceOrientation(orientation)
    configure(compression=CompressionConfig(Compressor.NONE))
    assert Volume.from_numpy(tmp_path / "none", data).array.layout.filters == ()


@pytest.mark.parametrize("compressor", ["zstd", "none"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((512, 512, 700), "i2"), ((4096, 4096, 3), "f4"), ((2048, 2048, 9), "f8"), ((128, 128, 60, 300), "f4")],
)
def test_tiles_of_usual_sizes_are_whole_planes(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, compressor: str
) -> None:
    configure(compression=CompressionConfig(compressor))
    for orientation, thin in (("axial", 2), ("sagittal", 0), ("coronal", 1)):
        configure(tile=TileConfig(orientation))
        volume = Volume.create(tmp_path / orientation, shape, dtype)
        wanted = [1 if axis == thin else size for axis, size in enumerate(shape[:3])]
        assert volume.tile_extents == (*wanted, *(1 for _ in shape[3:]))


def test_a_volume_too_wide_for_whole_planes_is_written_by_the_piece(tmp_path: Path) -> None:
    size, middle = 100_000, (50_000, 49_999, 50_000)
    for orientation, replicas in (
        ("axial", ()),
        ("sagittal", ()),
        ("coronal", ()),
        ("isotropic", ("axial",)),
    ):
        configure(tile=TileConfig(orientation, replicas=replicas))
        volume = Volume.create(tmp_path / orientation, (size,) * 3, "i2")
        assert 2 * np.prod(volume.tile_extents, dtype=object) <= 64 << 20
        voxels = np.arange(1, 9, dtype=np.int16).reshape(2, 2, 2)
        volume.update(middle, voxels)
        found = volume[49_999:50_003, 49_999:50_003, 49_999:50_003]
        assert np.array_equal(found[1:3, 0:2, 1:3], voxels)
        assert (found[found < 0] == np.iinfo(np.int16).min).all()
        assert (found > 0).sum() == 8


@pytest.mark.parametrize("shape", [(4096, 4097, 3), (9_001, 3, 7_777), (2**31 - 2, 1, 2)])
@pytest.mark.parametrize("compressor", ["zstd", "none"])
def test_halved_tiles_keep_what_was_given(tmp_path: Path, shape: tuple[int, ...], compressor: str) -> None:
    configure(compression=CompressionConfig(compressor))
    for given in ({}, {"y": 1}, {"orientation": "coronal"}, {"orientation": "isotropic", "z": 7}):
        tile = TileConfig(**given)
        configure(tile=tile)
        extents = Volume.create(tmp_path / str(len(list(tmp_path.iterdir()))), shape, "f4").tile_extents
        assert 4 * np.prod(extents, dtype=object) <= 64 << 20
        for axis, name in enumerate("xyz"):
            assert given.get(name) in (None, extents[axis]) or extents[axis] == shape[axis]


def test_tiles_that_were_given_and_cannot_be_written_are_refused(tmp_path: Path) -> None:
    for tile, shape, words in (
        (TileConfig(x=100_000, y=100_000), (100_000,) * 3, "100000x100000x1 voxels of int16"),
        (TileConfig(x=1024, y=1024, z=1024), (2000,) * 3, "1024x1024x1024 voxels of int16 have 2147483648"),
        (TileConfig(x=1024, y=1024, z=1, t=1024), (2000, 2000, 20, 2000), "1024x1024x1x1024"),
    ):
        configure(tile=tile)
        with pytest.raises(ConfigError, match=f"tiles of {words} .* give smaller extents"):
            Volume.create(tmp_path / "v", shape, "i2")
        assert not (tmp_path / "v").exists()
    configure(tile=TileConfig(x=1024, y=1024, z=256))
    assert Volume.create(tmp_path / "v", (2000, 2000, 2000), "i2").tile_extents == (1024, 1024, 256)
    configure(tile=TileConfig(x=10**6, y=10**6, z=10**6))  # no longer than the volume
    assert Volume.create(tmp_path / "w", (20, 30, 40), "i2").tile_extents == (20, 30, 40)


def filters_of(uri: str) -> list[str]:
    with tiledb.open(uri) as array:
        return [type(step).__name__ for step in array.attr(0).filters]


@pytest.mark.parametrize("replicas", [(), ("sagittal",)])
def test_voxels_that_gzip_cannot_store_are_stored_with_zstd(
    tmp_path: Path, replicas: tuple[str, ...]
) -> None:
    """33600 bytes that do not shrink become three blocks of deflate, for two of which TileDB has room."""
    configure(tile=TileConfig("isotropic", replicas=replicas), compression=CompressionConfig("gzip"))
    noise = np.random.default_rng(0).integers(-(2**31), 2**31, (35, 12, 20), dtype="i4")
    volume = Volume.from_numpy(tmp_path / "noise", noise)
    assert np.array_equal(volume[:], noise)
    assert np.array_equal(volume.sagittal(3), noise[3])
    assert volume.replicas == list(replicas)
    assert filters_of(volume.uri) == ["ByteShuffleFilter", "ZstdFilter"]
    with tiledb.open(volume.uri) as array:  # stored as z, y, x
        assert np.array_equal(array[:]["voxels"].transpose(2, 1, 0), noise)
    plain = Volume.from_numpy(tmp_path / "plain", noise // 2**20)
    assert filters_of(plain.uri) == ["ByteShuffleFilter", "GzipFilter"]
    with pytest.raises(ConfigError, match=r"plain: a tile does not shrink.* nothing is damaged: .* zstd"):
        plain.update((0, 0, 0), noise)
    assert np.array_equal(plain[:], noise // 2**20)
    plain.update((0, 0, 0), noise[:2, :2, :2])
    plain.consolidate()
    assert np.array_equal(plain[:2, :2, :2], noise[:2, :2, :2])
    assert np.array_equal(plain[2:], noise[2:] // 2**20)
    with pytest.raises(ConfigError, match="already exists"):
        Volume.from_numpy(tmp_path / "plain", noise)
    assert np.array_equal(plain[2:], noise[2:] // 2**20)


def test_without_compression_edge_tiles_waste_little(tmp_path: Path) -> None:
    configure(tile=TileConfig("isotropic"), compression=CompressionConfig("none"))
    data = np.zeros((120, 120, 78), np.uint8)
    volume = Volume.from_numpy(tmp_path / "v", data)
    assert volume.stored_bytes() <= 1.05 * data.nbytes
    assert np.array_equal(volume.to_numpy(), data)


def test_the_budget_bounds_the_decoded_cache_and_zero_switches_it_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (160, 160, 160)).astype(np.int32)
    configure(
        tile=TileConfig("isotropic", 32, 32, 32), io=ReadConfig(memory_budget_mb=64, tile_cache_size_mb=10)
    )
    volume = Volume.from_numpy(tmp_path / "v", data)
    for _ in range(60):
        start = rng.integers(0, 96, 3)
        box = tuple(slice(s, s + 64) for s in start)
        assert np.array_equal(volume[box], data[box])
        assert cache_stats()["bytes_held"] <= cache_stats()["budget"] == 10 << 20
    stats = cache_stats()
    assert stats["evictions"] > 0
    assert stats["hits"] > 0
    assert stats["misses"] > 0
    configure(io=ReadConfig(tile_cache_size_mb=0))
    again = Volume(tmp_path / "v")
    before = cache_stats()["bytes_decoded"]
    _ = again[:64, :64, :64], again[:64, :64, :64]
    assert cache_stats()["bytes_held"] == 0
    assert cache_stats()["bytes_decoded"] - before == 2 * 64**3 * 4


def test_a_full_read_does_not_push_out_what_is_cached(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.arange(64**3, dtype=np.int32).reshape(64, 64, 64))
    volume.axial(3)
    held = cache_stats()["bytes_held"]
    volume.to_numpy()
    assert cache_stats()["bytes_held"] == held > 0
