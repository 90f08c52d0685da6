"""Volumes on a real S3 server that change: removed and made again, and written while they are open here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from volumes.store.s3_server import Server

pytest.importorskip("obstore")

from volumes.store.test_s3 import reachable, server  # noqa: F401
from volumes.support.images import code_of, pairs
from voxtier.errors import BackendError, ConfigError, NotFoundError
from voxtier.volumes import RadiObject, TileConfig, Volume, configure, get_config
from voxtier.volumes.compat.utils import delete_tiledb_uri
from voxtier.volumes.tiledb.session import Session, read_kind, remove_tree

pytestmark = pytest.mark.usefixtures("reachable")

OTHER = """
import sys
import numpy as np
from voxtier.volumes import S3Config, TileConfig, Volume, configure
from voxtier.volumes.tiledb.session import Session, remove_tree

endpoint, uri, what = sys.argv[1:]
configure(s3=S3Config(endpoint=endpoint, use_virtual_addressing=False))
volume = Volume(uri)
if what == "remove":
    remove_tree(uri, Session.of(None))
elif what == "replace":
    remove_tree(uri, Session.of(None))
    Volume.from_numpy(uri, np.zeros((9, 9, 9), np.int16))
else:
    noise = np.random.default_rng(int(what)).integers(20_000, 30_000, volume.shape)
    volume.update((0, 0, 0), noise.astype(volume.stored_dtype))
    volume.consolidate()
"""


def run_elsewhere(uri: str, what: str) -> None:
    """Change a volume in another process."""
    command = [sys.executable, "-c", OTHER, get_config().s3.endpoint, uri, what]
    subprocess.run(command, check=True, timeout=100)


def make(name: str, **tile: object) -> tuple[Volume, np.ndarray]:
    """Return a volume of one tile a plane, and its voxels: planes far apart are never read ahead."""
    configure(tile=TileConfig(x=256, y=256, z=1, **tile))
    data = noise(0)
    return Volume.from_numpy(f"s3://vox/{name}", data), data


def noise(seed: int) -> np.ndarray:
    """Return the voxels that another process writes for a number: no tile of them is small."""
    return np.random.default_rng(seed).integers(20_000, 30_000, (256, 256, 16)).astype(np.int32)


@pytest.mark.parametrize("replicas", [(), ("sagittal",)])
def test_a_volume_that_another_process_consolidates_is_read_on(replicas: tuple[str, ...]) -> None:
    volume, data = make(f"open{len(replicas)}", replicas=replicas)
    held = Volume(volume.uri)
    assert np.array_equal(volume.axial(0), data[:, :, 0])
    assert np.array_equal(volume.sagittal(0), data[0])
    run_elsewhere(volume.uri, "7")
    for number in (7, 8):
        now = noise(number)
        assert np.array_equal(volume.axial(8), now[:, :, 8])
        assert np.array_equal(held.sagittal(200), now[200])
        boxes = held.read_patches([[0, 0, 12], [200, 200, 5], [-4, 3, 13]], (4, 4, 4), fill=number)
        assert np.array_equal(boxes[1], now[200:204, 200:204, 5:9])
        assert np.unique(boxes[2]).tolist() == [number]
        assert np.array_equal(Volume(volume.uri)[3:9, ::7, ::5], now[3:9, ::7, ::5])
        if number == 7:
            run_elsewhere(volume.uri, "8")


def test_patches_of_one_call_are_of_one_state() -> None:
    """The first box lies in a plane that was read already, the second in one that has to be asked for."""
    volume, data = make("patches")
    assert np.array_equal(volume.axial(0), data[:, :, 0])
    run_elsewhere(volume.uri, "9")
    boxes = volume.read_patches([[0, 0, 0], [0, 0, 12]], (4, 4, 1))
    assert np.array_equal(boxes, [noise(9)[:4, :4, :1], noise(9)[:4, :4, 12:13]])


def test_the_type_of_scaled_reads_follows_what_was_written_elsewhere() -> None:
    """It is that of the greatest stored number times the slope, which the write raises."""
    make("scaled")
    volume = Volume._store(
        "s3://vox/scaled-too",
        np.random.default_rng(0).integers(0, 30, (256, 256, 16)).astype(np.int16),
        {"nifti_scl_slope": "1000.0", "nifti_scl_inter": "0.0", "stored_min": 0, "stored_max": 30},
        None,
    )
    assert volume.dtype == np.int16
    assert volume.axial(0).max() == 29_000
    run_elsewhere(volume.uri, "5")
    assert np.array_equal(volume.axial(8), noise(5)[:, :, 8] * 1000)
    assert volume.dtype == np.int32


@pytest.mark.parametrize(("what", "error"), [("remove", NotFoundError), ("replace", BackendError)])
def test_a_volume_that_is_gone_or_another_is_told(what: str, error: type[Exception]) -> None:
    volume, _ = make(f"gone-{what}")
    volume.axial(0)
    run_elsewhere(volume.uri, what)
    with pytest.raises(error, match=r"not exist|was replaced while it was read: read it again"):
        volume.axial(8)
    if what == "replace":
        assert volume.shape == (9, 9, 9)
        assert not volume[:].any()


def test_a_fragment_that_is_lost_for_good_is_told_soon(server: Server) -> None:  # noqa: F811
    volume, _ = make("lost")
    volume.axial(0)
    import tiledb

    vfs = tiledb.VFS(ctx=Session.of(None).context())
    (fragment,) = [uri for uri in vfs.ls(f"{volume.uri}/__fragments") if uri.rstrip("/")[-3:] == "_22"]
    vfs.remove_file(f"{fragment.rstrip('/')}/a0.tdb")
    server.proxy.forget()
    with pytest.raises(BackendError, match="404"):
        volume.axial(8)
    assert len(server.proxy.requests) < 60


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


def test_a_prefix_with_objects_is_no_place_of_a_volume_and_loses_none() -> None:
    import tiledb

    data = noise(1)
    vfs = tiledb.VFS(ctx=Session.of(None).context())
    for name in ("mine/notes.txt", "mine/scans/a.nii"):
        with vfs.open(f"s3://vox/{name}", "wb") as file:
            file.write(b"the only copy")
    with pytest.raises(ConfigError, match="choose another place"):
        Volume.from_numpy("s3://vox/mine", data)
    volume, _ = make("deleted", replicas=("sagittal",))
    with pytest.raises(ConfigError, match="already exists"):
        Volume.from_numpy(volume.uri, data)
    with vfs.open(f"{volume.uri}/scans/a.nii", "wb") as file:
        file.write(b"the only copy")
    delete_tiledb_uri(volume.uri)
    for place in ("mine", "deleted"):
        assert read_kind(f"s3://vox/{place}", Session.of(None)) is None
        assert vfs.is_file(f"s3://vox/{place}/scans/a.nii")
        assert not any("/__" in key for key in vfs.ls_recursive(f"s3://vox/{place}"))


def test_a_copy_holds_what_another_process_wrote_since_the_volume_was_opened(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    radi = RadiObject.from_niftis("s3://vox/copied", images={"T1w": images})
    volume = radi.get_volume("b_T1w")
    assert np.unique(volume[:]).tolist() == [code_of("b", "T1w")]
    run_elsewhere(volume.uri, "7")
    copy = radi.materialize(tmp_path / "copy")
    wanted = np.random.default_rng(7).integers(20_000, 30_000, (5, 6, 7))
    assert np.array_equal(copy.get_volume("b_T1w")[:], wanted)
    assert np.unique(copy.get_volume("a_T1w")[:]).tolist() == [code_of("a", "T1w")]


def test_objects_of_somebodys_stay_where_a_store_is_overwritten(tmp_path: Path) -> None:
    import tiledb

    root = "s3://vox/shared"
    RadiObject.from_niftis(root, images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    vfs = tiledb.VFS(ctx=Session.of(None).context())
    names = ("obs_meta_old", "collections/notes", "collections/T1w", "collections/T1w/volumes")
    for name in names:
        with vfs.open(f"{root}/{name}/table.csv", "wb") as file:
            file.write(b"the only copy")
    radi = RadiObject.from_niftis(root, images={"T2w": pairs(tmp_path / "t2", ["a"], "T2w")}, overwrite=True)
    radi.obs_meta.add_column("age", "i4", [1])
    assert radi.repair() == []
    assert all(vfs.is_file(f"{root}/{name}/table.csv") for name in names)
    left = {uri.rpartition(root)[2] for uri in vfs.ls_recursive(f"{root}/collections/T1w")}
    assert {uri for uri in left if not uri.endswith("/")} == {
        "/collections/T1w/table.csv",
        "/collections/T1w/volumes/table.csv",
    }
    assert np.unique(RadiObject(root).get_volume("a_T2w")[:]).tolist() == [code_of("a", "T2w")]
