"""Updates, consolidation and vacuum: values compared in every order, while others read."""

import itertools

import numpy as np
import pytest
import tiledb

from voxtier.volumes import TileConfig, Volume, configure


def updated(tmp_path, name="v"):
    configure(tile=TileConfig("axial"))
    data = np.zeros((12, 10, 8), np.int16)
    volume = Volume.from_numpy(tmp_path / name, data)
    for z in range(8):
        data[:, :, z] = z + 1
        volume.update((0, 0, z), data[:, :, z : z + 1])
    return volume, data


def test_consolidation_leaves_one_fragment_and_the_same_voxels(tmp_path):
    volume, data = updated(tmp_path)
    assert len(volume.fragments()) == 9
    reader = Volume(volume.uri)
    assert np.array_equal(reader.to_numpy(), data)
    volume.consolidate()
    assert [f.to_vacuum for f in volume.fragments()] == [False]
    assert volume.fragments()[0].box == ((0, 11), (0, 9), (0, 7))
    assert np.array_equal(reader.to_numpy(), data)
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    assert volume._array.is_direct  # a merged list of commits would send every later read through TileDB


@pytest.mark.parametrize("order", list(itertools.permutations(["fragments", "fragment_meta", "commits"])))
def test_other_tools_orders_are_readable_too(tmp_path, order):
    volume, data = updated(tmp_path)
    for mode in order:
        config = tiledb.Config({"sm.consolidation.mode": mode, "sm.vacuum.mode": mode})
        tiledb.consolidate(volume.uri, config=config)
        assert np.array_equal(volume.to_numpy(), data)
        tiledb.vacuum(volume.uri, config=config)
        assert np.array_equal(Volume(volume.uri).to_numpy(), data)
        assert np.array_equal(volume.to_numpy(), data)
    volume.vacuum()
    assert np.array_equal(volume.to_numpy(), data)


def test_bulk_write_is_one_fragment(tmp_path):
    assert len(Volume.from_numpy(tmp_path / "v", np.zeros((30, 30, 30))).fragments()) == 1
