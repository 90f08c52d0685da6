"""The place of a volume: refused where files lie, and what fails, or is deleted, takes none of them along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.accounts import as_nobody, let_others_enter
from volumes.support.checks import check_identity, files_below
from volumes.support.command_line import run
from volumes.support.images import pairs
from volumes.support.kills import kill_ingest
from voxtier.errors import ConfigError, FormatError, SourceError
from voxtier.volumes import (
    CompressionConfig,
    RadiObject,
    TileConfig,
    Volume,
    VolumeCollection,
    configure,
)
from voxtier.volumes.compat.utils import delete_tiledb_uri, uri_exists
from voxtier.volumes.tiledb import arrays, replicas
from voxtier.volumes.tiledb.places import remove_own
from voxtier.volumes.tiledb.session import Session, holds_no_file

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def add_files(folder: Path) -> dict[str, bytes]:
    """Put files of a user's below a folder, and return them."""
    (folder / "scans").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "scans" / "a.nii").write_text("mine too")
    (folder / "scans" / "link").symlink_to(folder / "notes.txt")
    (folder / "empty").mkdir()
    return files_of_users(folder)


def files_of_users(folder: Path) -> dict[str, bytes]:
    found = files_below(folder) or {}
    return {name: content for name, content in found.items() if content and b"mine" in content}


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "from_numpy": lambda place, _: Volume.from_numpy(place, VOXELS),
    "from_nifti": lambda place, scan: Volume.from_nifti(place, scan),
    "create": lambda place, _: Volume.create(place, (3, 4, 5)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_folder_with_files_is_no_place_of_a_volume(tmp_path: Path, maker: str) -> None:
    (scan, _), *_ = pairs(tmp_path / "mine", ["b"])
    add_files(tmp_path / "mine" / "deeper")
    before = files_below(tmp_path)
    for place in (tmp_path / "mine", tmp_path / "mine" / "deeper", scan):
        with pytest.raises(ConfigError, match="choose another place"):
            MAKERS[maker](place, scan)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("tilings", [(), ("sagittal",)])
@pytest.mark.parametrize("before", ["nothing", "empty", "hidden"])
def test_a_volume_that_fails_leaves_its_place_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, tilings: tuple[str, ...]
) -> None:
    configure(tile=TileConfig(replicas=tilings))
    place = tmp_path / "v"
    if before != "nothing":
        place.mkdir()
    if before == "hidden":
        (place / ".DS_Store").write_text("mine")
    files = files_below(tmp_path)
    write = arrays._write

    def fail_late(*args: Any, **options: Any) -> None:
        write(*args, **options)
        raise KeyboardInterrupt

    for failing in (interrupt, fail_late):
        with monkeypatch.context() as patch:
            patch.setattr(arrays, "_write", failing)
            with pytest.raises(KeyboardInterrupt):
                Volume.from_numpy(place, VOXELS)
        assert files_below(tmp_path) == files
        assert place.exists() == (before != "nothing")
    assert np.array_equal(Volume.from_numpy(place, VOXELS).to_numpy(), VOXELS)


def test_files_that_come_while_a_volume_is_written_outlive_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, kept = tmp_path / "v", dict[str, bytes]()

    def fail(*_: Any) -> None:
        kept.update(add_files(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(arrays, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        Volume.from_numpy(place, VOXELS)
    assert files_of_users(place) == kept
    assert not list(place.rglob("__*"))
    assert not uri_exists(place)


def test_tiles_that_do_not_shrink_are_written_again_in_a_hidden_neighbourhood(tmp_path: Path) -> None:
    """With gzip TileDB has no room for such a tile: zstd has, and a hidden file stays where it is."""
    configure(compression=CompressionConfig("gzip", 3), tile=TileConfig(x=33600, y=1, z=1))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / ".keep").write_text("mine")
    noise = np.random.default_rng(0).integers(0, 256, (33600, 1, 1)).astype(np.uint8)
    assert np.array_equal(Volume.from_numpy(tmp_path / "v", noise).to_numpy(), noise)
    assert (tmp_path / "v" / ".keep").read_text() == "mine"


def test_what_a_killed_creation_left_is_a_free_place(tmp_path: Path) -> None:
    for name in ("__commits", "__fragments"):
        (tmp_path / "v" / name).mkdir(parents=True)
    assert np.array_equal(Volume.from_numpy(tmp_path / "v", VOXELS).to_numpy(), VOXELS)
    with pytest.raises(ConfigError, match="already exists"):
        Volume.from_numpy(tmp_path / "v", VOXELS)
    Volume(tmp_path / "v").replicate("sagittal")
    for schema in (tmp_path / "v" / "__schema").iterdir():
        schema.rmdir() if schema.is_dir() else schema.unlink()
    (tmp_path / "v" / "__schema").rmdir()
    with pytest.raises(ConfigError, match="no volume"):  # its fragments would be those of the new one
        Volume.from_numpy(tmp_path / "v", VOXELS)


def test_only_what_is_of_tiledb_is_deleted(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    configure(tile=TileConfig(replicas=("sagittal",)))
    volume, cohort, collection = tmp_path / "v", tmp_path / "r", tmp_path / "c"
    Volume.from_numpy(volume, VOXELS).consolidate()
    RadiObject.from_niftis(cohort, images={"T1w": images})
    VolumeCollection.from_niftis(collection, images)
    for made in (volume, cohort, collection):
        kept = add_files(made)
        for inside in (path for path in list(made.rglob("volumes/*-*")) if path.is_dir()):
            (inside / "reading.txt").write_text("mine")
            kept[str((inside / "reading.txt").relative_to(made))] = b"mine"
        nested = Volume.from_numpy(made / "scans" / "nested", VOXELS)  # below a folder that is no group
        delete_tiledb_uri(made)
        assert not uri_exists(made)
        assert np.array_equal(nested.to_numpy(), VOXELS)
        delete_tiledb_uri(nested.uri)
        assert files_of_users(made) == kept
        assert not list(made.rglob("__*"))
        assert (made / "empty").is_dir()


def test_what_holds_nothing_else_is_deleted_with_its_folder(tmp_path: Path) -> None:
    configure(tile=TileConfig(replicas=("sagittal",)))
    Volume.from_numpy(tmp_path / "v", VOXELS).consolidate()
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b"])})
    for name in ("v", "r"):
        delete_tiledb_uri(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_file_beside_an_array_that_was_cut_off_stays(tmp_path: Path) -> None:
    """The repeated ingest writes that array anew."""
    images = pairs(tmp_path / "in", ["b", "a"])
    kill_ingest(tmp_path / "r", images, at="a")
    (array,) = (tmp_path / "r" / "collections" / "T1w" / "volumes").glob("b_T1w-*")
    for file in (array / "__meta").iterdir():
        file.unlink()
    (array / "reading.txt").write_text("mine")
    check_identity(RadiObject.from_niftis(tmp_path / "r", images={"T1w": images}).T1w)
    assert (array / "reading.txt").read_text() == "mine"


def kill_creation(place: Path, monkeypatch: pytest.MonkeyPatch, *, in_replica: bool) -> None:
    """Leave what `Volume.from_nifti` leaves that is killed as it writes the voxels, or those of a replica."""
    (scan, _), *_ = pairs(place.with_name("in"), ["b"])
    write = arrays.write_voxels

    def die(uri: str, *rest: Any) -> None:
        if ("replica-" in uri) == in_replica:
            raise KeyboardInterrupt
        write(uri, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(arrays, "write_voxels", die)
        patch.setattr(replicas, "remove_own", lambda *_, **__: None)
        Volume.from_nifti(place, scan)


@pytest.mark.parametrize("in_replica", [False, True])
def test_a_volume_whose_maker_was_killed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_replica: bool
) -> None:
    """It reads as fill, or, with voxels and no metadata yet, as numbers without their scaling."""
    configure(tile=TileConfig(replicas=("sagittal",)))
    kill_creation(tmp_path / "v", monkeypatch, in_replica=in_replica)
    for look in (Volume.open, lambda place: Volume(place).to_numpy(), lambda place: Volume(place)[0, 0, 0]):
        with pytest.raises(FormatError, match="holds no voxel: who made it was killed") as caught:
            look(tmp_path / "v")
        assert caught.value.kind == "store_damaged"
    assert "holds no voxel" in run("verify", tmp_path / "v", code=1).err
    delete_tiledb_uri(tmp_path / "v")
    assert np.array_equal(Volume.from_numpy(tmp_path / "v", VOXELS).to_numpy(), VOXELS)


def test_a_volume_that_is_made_without_voxels_is_none_that_was_cut_off(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", (3, 4, 5), np.int16)
    assert np.unique(volume.to_numpy()).tolist() == [np.iinfo(np.int16).min]
    assert "0 findings" in run("verify", tmp_path / "v").err
    volume.update((0, 0, 0), VOXELS)
    assert np.array_equal(Volume(tmp_path / "v").to_numpy(), VOXELS)


@pytest.mark.parametrize("sub", ["private", "deeper/private"])
def test_a_folder_that_cannot_be_read_stays_where_a_volume_is_deleted(tmp_path: Path, sub: str) -> None:
    place = tmp_path / "v"
    Volume.from_numpy(place, VOXELS)
    private = place / sub
    private.mkdir(parents=True)
    (private / "scan.nii").write_text("mine")
    let_others_enter(tmp_path)
    for folder in (tmp_path, place, *(path for path in place.rglob("*") if path.is_dir())):
        folder.chmod(0o777)
    private.chmod(0)
    try:
        with as_nobody():
            assert not holds_no_file(place)
            delete_tiledb_uri(place)
    finally:
        private.chmod(0o700)
    assert [path.name for path in place.iterdir()] == [sub.split("/")[0]]
    assert (private / "scan.nii").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_file_is_no_place_to_remove_a_volume_from(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("mine")
    with pytest.raises(SourceError, match=f"look into {tmp_path}/v"):
        remove_own(f"{tmp_path}/v", Session.of())
    assert (tmp_path / "v").read_text() == "mine"


def test_the_place_of_a_new_volume_is_not_cleared_again_for_its_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known to be free, and an object store would be asked twice for each replica."""
    configure(tile=TileConfig(replicas=("sagittal", "coronal")))
    cleared: list[str] = []
    monkeypatch.setattr(replicas, "remove_own", lambda uri, *_, **__: cleared.append(uri))
    volume = Volume.from_numpy(tmp_path / "v", VOXELS)
    assert not cleared
    volume.replicate()
    assert not cleared
    assert np.array_equal(volume.to_numpy(), VOXELS)


def test_an_array_of_an_older_format_is_removed_without_what_else_lies_there(tmp_path: Path) -> None:
    """Its fragments lie at the top, and an ``.ok`` file beside each says that it is complete."""
    fragment = "__1_1_" + "a" * 32 + "_9"
    (tmp_path / "v" / fragment).mkdir(parents=True)
    (tmp_path / "v" / fragment / "a0.tdb").touch()
    for name in ("__array_schema.tdb", f"{fragment}.ok", f"{fragment}.vac", "__lock.tdb"):
        (tmp_path / "v" / name).touch()
    (tmp_path / "v" / "notes.txt").write_text("mine")
    remove_own(f"{tmp_path}/v", Session.of())
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_volume_behind_a_link_is_deleted_and_the_link_stays(tmp_path: Path) -> None:
    Volume.from_numpy(tmp_path / "v", VOXELS)
    (tmp_path / "link").symlink_to(tmp_path / "v")
    delete_tiledb_uri(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "v"]
    assert (tmp_path / "link").is_symlink()
    assert not list((tmp_path / "v").iterdir())
    assert np.array_equal(Volume.from_numpy(tmp_path / "link", VOXELS).to_numpy(), VOXELS)
