"""The origin's published notebook on storage and configuration, with the import line changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from volumes.support.images import pairs
from voxtier.volumes import (
    CompressionConfig,
    Compressor,
    IOConfig,
    RadiObject,
    S3Config,
    SliceOrientation,
    TileConfig,
    Volume,
    configure,
    get_config,
)


def test_the_notebook_loads_a_cohort_and_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {
        name: pairs(tmp_path / name, ["s3", "s1", "s2"], name, shape=(24, 24, 15))
        for name in ("T2w", "T1gd", "T1w", "FLAIR")
    }
    RadiObject.from_niftis(str(tmp_path / "brats"), images=images)
    radi = RadiObject(str(tmp_path / "brats"))
    print(f"LoadResult: {radi}")
    print(f"Collections: {radi.collection_names}")
    vol = radi.FLAIR.iloc[0]
    print(f"\nSample volume shape: {vol.shape}")
    assert capsys.readouterr().out == (
        "LoadResult: RadiObject(3 subjects, 4 collections: [T2w, T1gd, T1w, FLAIR])\n"
        "Collections: ('T2w', 'T1gd', 'T1w', 'FLAIR')\n\nSample volume shape: (24, 24, 15)\n"
    )


def test_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    configure(
        tile=TileConfig(orientation=SliceOrientation.AXIAL),
        compression=CompressionConfig(algorithm=Compressor.ZSTD, level=3),
    )
    config = get_config()
    print(f"Tile orientation: {config.tile.orientation}")
    print(f"Compression: {config.compression.algorithm}, level={config.compression.level}")
    shape = (240, 240, 155)
    for orient in SliceOrientation:
        extents = TileConfig(orientation=orient).extents_for_shape(shape)
        print(f"{orient.value:10s} -> tile extents: {extents}")
    configure(io=IOConfig(memory_budget_mb=1024, concurrency=4))
    config = get_config()
    print(f"Memory budget: {config.io.memory_budget_mb} MB")
    print(f"I/O concurrency: {config.io.concurrency} threads")
    configure(s3=S3Config(region="us-east-2", max_parallel_ops=16, multipart_part_size_mb=50))
    print(f"  Region: {get_config().s3.region}")
    print(f"  Max parallel ops: {get_config().s3.max_parallel_ops}")
    print(f"  Multipart size: {get_config().s3.multipart_part_size_mb} MB")
    assert capsys.readouterr().out == (
        "Tile orientation: SliceOrientation.AXIAL\n"
        "Compression: Compressor.ZSTD, level=3\n"
        "axial      -> tile extents: (240, 240, 1)\n"
        "sagittal   -> tile extents: (1, 240, 155)\n"
        "coronal    -> tile extents: (240, 1, 155)\n"
        "isotropic  -> tile extents: (64, 64, 64)\n"
        "Memory budget: 1024 MB\n"
        "I/O concurrency: 4 threads\n"
        "  Region: us-east-2\n"
        "  Max parallel ops: 16\n"
        "  Multipart size: 50 MB\n"
    )


def test_the_notebook_reads_back_volumes_of_each_orientation(tmp_path: Path) -> None:
    test_data = np.random.default_rng(0).normal(size=(48, 44, 31)).astype(np.float32)
    volumes = {}
    for orient in [SliceOrientation.AXIAL, SliceOrientation.SAGITTAL, SliceOrientation.ISOTROPIC]:
        configure(tile=TileConfig(orientation=orient))
        volumes[orient.value] = Volume.from_numpy(str(tmp_path / f"vol_{orient.value}"), test_data)
        assert repr(volumes[orient.value]) == "Volume(shape=48x44x31, dtype=float32)"
    for vol in volumes.values():
        for z in range(0, 30, 3):
            assert np.array_equal(vol.axial(z), test_data[:, :, z])
        for x in range(0, 48, 5):
            assert np.array_equal(vol.sagittal(x), test_data[x])


def test_each_compressor_needs_no_more_bytes_than_in_the_notebook(tmp_path: Path) -> None:
    """It prints 3382.6, 3396.8, 3128.4 and 3143.7 KB; the byte shuffle makes ours smaller."""
    test_data = np.random.default_rng(1).normal(size=(120, 120, 60)).astype(np.float32)
    sizes = {}
    for compressor in [Compressor.NONE, Compressor.LZ4, Compressor.ZSTD, Compressor.GZIP]:
        configure(
            compression=CompressionConfig(algorithm=compressor, level=3),
            tile=TileConfig(orientation=SliceOrientation.AXIAL),
        )
        uri = str(Path(tmp_path) / f"vol_{compressor.value}")
        vol = Volume.from_numpy(uri, test_data)
        total = sum(os.path.getsize(os.path.join(dp, f)) for dp, _, names in os.walk(uri) for f in names)
        assert total == vol.stored_bytes()
        sizes[compressor.value] = total / 1024
    assert sizes["none"] == pytest.approx(3382.6, abs=3)
    assert sizes["lz4"] < 3396.8
    assert sizes["zstd"] < 3128.4
    assert sizes["gzip"] < 3143.7
