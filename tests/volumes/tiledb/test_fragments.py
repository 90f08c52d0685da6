"""Updates, consolidation and vacuum: values compared in every order, while others read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from voxtier.errors import NotFoundError
from voxtier.volumes import TileConfig, Volume, configure
from voxtier.volumes.tiledb import arrays
from voxtier.volumes.tiledb.format import direct
from voxtier.volumes.tiledb.session import Session


def make_updated(tmp_path: Path, name: str = "v") -> tuple[Volume, NDArray[np.int16]]:
    configure(tile=TileConfig("axial"))
    data = np.zeros((12, 10, 8), np.int16)
    volume = Volume.from_numpy(tmp_path / name, data)
    for z in range(8):
        data[:, :, z] = z + 1
        volume.update((0, 0, z), data[:, :, z : z + 1])
    return volume, data


def test_consolidation_leaves_one_fragment_and_the_same_voxels(tmp_path: Path) -> None:
    volume, data = make_updated(tmp_path)
    assert len(volume.fragments()) == 9
    reader = Volume(volume.uri)
    assert np.array_equal(reader.to_numpy(), data)
    volume.consolidate()
    assert [f.to_vacuum for f in volume.fragments()] == [False]
    assert volume.fragments()[0].box == ((0, 11), (0, 9), (0, 7))
    assert np.array_equal(reader.to_numpy(), data)
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    assert volume._array.is_direct  # a merged list of commits would send every later read through TileDB


@pytest.mark.parametrize(
    ("shape", "tile", "dtype"),
    [
        ((150, 130, 70), TileConfig("isotropic"), np.float32),
        ((3, 700, 5), TileConfig("sagittal"), np.uint8),
        ((70, 50, 90), TileConfig("axial"), np.int16),
        ((40, 30, 50, 9), TileConfig("isotropic"), np.int16),
        ((1, 1, 4000), TileConfig("coronal"), np.float64),
    ],
)
@pytest.mark.parametrize("memory_mb", [None, 64])
def test_volumes_of_any_shape_are_merged_within_the_budget_that_they_are_worth(
    tmp_path: Path, shape: tuple[int, ...], tile: TileConfig, dtype: type, memory_mb: int | None
) -> None:
    configure(tile=tile)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 200, shape).astype(dtype)
    volume = Volume.from_numpy(tmp_path / "v", data)
    for _ in range(5):
        low = [int(rng.integers(size)) for size in shape]
        part = rng.integers(
            0, 200, [int(rng.integers(1, size - at + 1)) for size, at in zip(shape, low, strict=True)]
        )
        data[tuple(slice(at, at + n) for at, n in zip(low, part.shape, strict=True))] = part
        volume.update(tuple(low), part.astype(dtype))
    volume.consolidate(memory_mb=memory_mb)
    assert len(volume.fragments()) == 1
    assert np.array_equal(volume.to_numpy(), data)
    with tiledb.open(volume.uri) as array:  # what TileDB itself reads
        stored = array[:]
        stored = next(iter(stored.values())) if isinstance(stored, dict) else stored
    order = volume._array.layout.order
    assert np.array_equal(stored, data.transpose(order))


@pytest.mark.parametrize("order", list(itertools.permutations(["fragments", "fragment_meta", "commits"])))
def test_every_order_of_consolidation_keeps_the_voxels_readable(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    volume, data = make_updated(tmp_path)
    for mode in order:
        config = tiledb.Config(
            {"sm.consolidation.mode": mode, "sm.vacuum.mode": mode, "sm.mem.total_budget": str(64 << 20)}
        )
        tiledb.consolidate(volume.uri, config=config)
        assert np.array_equal(volume.to_numpy(), data)
        tiledb.vacuum(volume.uri, config=config)
        assert np.array_equal(Volume(volume.uri).to_numpy(), data)
        assert np.array_equal(volume.to_numpy(), data)
    volume.vacuum()
    assert np.array_equal(volume.to_numpy(), data)


def test_bulk_write_is_one_fragment(tmp_path: Path) -> None:
    assert len(Volume.from_numpy(tmp_path / "v", np.zeros((30, 30, 30))).fragments()) == 1


def test_a_consolidated_commit_counts_only_when_it_lists_the_one_fragment(tmp_path: Path) -> None:
    data = np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8)
    volume = Volume.from_numpy(tmp_path / "v", data)
    config = tiledb.Config({"sm.consolidation.mode": "commits", "sm.vacuum.mode": "commits"})
    tiledb.consolidate(volume.uri, config=config)
    tiledb.vacuum(volume.uri, config=config)
    (commit,) = (tmp_path / "v" / "__commits").iterdir()
    assert commit.suffix == ".con" and volume._array.is_direct
    assert np.array_equal(volume.to_numpy(), data)
    commit.write_bytes(commit.read_bytes() + b"__commits/__1_1_0123456789abcdef0123456789abcdef_22.wrt\n")
    assert direct._single_fragment(volume.uri) is None


def test_a_read_goes_on_where_another_process_removes_what_it_has_consolidated(tmp_path: Path) -> None:
    volume, data = make_updated(tmp_path)
    array = volume.array
    assert not array.is_direct
    for step in (tiledb.consolidate, tiledb.vacuum):  # between the look at the folders and the read
        step(volume.uri)
    box = tuple((0, size, 1) for size in data.shape)
    assert np.array_equal(array.read(box), data)


def test_a_volume_opens_while_files_that_were_listed_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make_updated(tmp_path)
    # Listed, and gone when it is read: what a vacuum does between the two.
    listed = tmp_path / "v" / "__commits" / f"__1_2_{'a' * 32}_22.vac"
    listed.symlink_to("gone")
    arrays.forget(volume.uri)
    with pytest.raises(NotFoundError, match="vac"):
        Volume(volume.uri).to_numpy()  # not for ever
    opened, attempts = arrays._opened, []

    def open_once_more(uri: str, session: Session) -> object:
        attempts.append(uri)
        if len(attempts) == 3:
            listed.unlink()
        return opened(uri, session)

    monkeypatch.setattr(arrays, "_opened", open_once_more)
    assert np.array_equal(Volume(volume.uri).to_numpy(), data)
    assert len(attempts) == 3
    with pytest.raises(NotFoundError, match="no volume"):
        Volume(tmp_path / "absent").to_numpy()
    assert len(attempts) == 3
