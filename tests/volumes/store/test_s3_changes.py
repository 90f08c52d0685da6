"""Volumes on a real S3 server that change: removed and made again, and written while they are open here."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("obstore")

from volumes.store.test_s3 import reachable, server  # noqa: F401
from voxtier.volumes import TileConfig, Volume, configure
from voxtier.volumes.tiledb.session import Session, read_kind, remove_tree

pytestmark = pytest.mark.usefixtures("reachable")

def make(name: str, **tile: object) -> tuple[Volume, np.ndarray]:
    """Return a volume of one tile a plane, and its voxels: planes far apart are never read ahead."""
    configure(tile=TileConfig(x=256, y=256, z=1, **tile))
    data = noise(0)
    return Volume.from_numpy(f"s3://vox/{name}", data), data


def noise(seed: int) -> np.ndarray:
    """Return the voxels that another process writes for a number: no tile of them is small."""
    return np.random.default_rng(seed).integers(20_000, 30_000, (256, 256, 40)).astype(np.int32)


def test_replicas_on_s3_are_written_again() -> None:
    """This server keeps the folders of objects that are gone, which look like an array."""
    volume, data = make("again", replicas=("sagittal",))
    for number in (5, 6):
        volume.update((0, 0, 0), np.full((9, 9, 9), number, np.int32))
        data[:9, :9, :9] = number
        volume.consolidate()
        assert volume.replicas == ["sagittal"]
        assert np.array_equal(volume.sagittal(3), data[3])
    assert volume.replicate("coronal") == ["coronal"]
    assert np.array_equal(volume.coronal(3), data[:, 3])
    assert volume.replicas == ["sagittal", "coronal"]


def test_a_volume_is_made_where_one_was_removed() -> None:
    volume, data = make("place")
    session = Session.of(None)
    remove_tree(volume.uri, session)
    assert read_kind(volume.uri, session) is None
    assert np.array_equal(Volume.from_numpy(volume.uri, data + 1)[:], data + 1)
    remove_tree(f"{volume.uri}/__nothing", session)
    assert np.array_equal(Volume(volume.uri)[:], data + 1)
