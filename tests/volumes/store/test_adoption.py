"""What lies in a store and is not its own: collections are taken in as they lie, and nothing is removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volumes.support.checks import check_identity
from volumes.support.command_line import run
from volumes.support.images import pairs
from volumes.support.kills import kill_ingest
from voxtier.errors import ConfigError, IngestError, ViewError
from voxtier.volumes import RadiObject, RadiObjectWriter, Volume, VolumeCollection
from voxtier.volumes.store.commits import Change
from voxtier.volumes.store.leftovers import Leftovers
from voxtier.volumes.tiledb.format.groups import create_group

SUBJECTS = ["m", "z", "a"]


def collection(folder: Path, at: Path, series: str, subjects: list[str] | None = None) -> VolumeCollection:
    images = pairs(folder / f"{at.name}-{series}", subjects or SUBJECTS, series)
    return VolumeCollection.from_niftis(at, images, name=series)


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_collections_in_place_become_a_store_without_a_copy(tmp_path: Path) -> None:
    root = tmp_path / "store"
    own = {name: collection(tmp_path, root / "collections" / name, name) for name in ("T1w", "seg")}
    voxels = files_of(root)
    radi = RadiObject.from_collections(root, own, {"obs_subject_id": SUBJECTS, "age": [1, 2, 3]})
    assert radi.collection_names == ("T1w", "seg")
    assert {path.name for path in files_of(root) - voxels if "volumes" in path.parts} == set()
    for found in (radi, RadiObject(root)):
        check_identity(found.T1w)
        check_identity(found.seg, "seg")
        found.validate()
        assert found.repair() == []
        assert [row["age"] for row in found.obs_meta.read().rows()] == [3, 1, 2]
    part = VolumeCollection(root / "collections" / "T1w")
    assert not part.stands_alone
    radi.append(
        images={"T1w": pairs(tmp_path / "more", ["new"], "T1w")},
        obs_meta={"obs_subject_id": ["new"], "age": [4]},
    )
    check_identity(RadiObject(root).T1w)
    assert len(RadiObject(root).T1w) == 4


def test_a_handle_from_before_changes_nothing_afterwards(tmp_path: Path) -> None:
    own = collection(tmp_path, tmp_path / "store" / "collections" / "T1w", "T1w")
    RadiObject.from_collections(tmp_path / "store", {"T1w": own})
    with pytest.raises(ConfigError, match="a part of the store"):
        own.append(pairs(tmp_path / "late", ["late"], "T1w"))
    assert own.obs_ids == [f"{subject}_T1w" for subject in sorted(SUBJECTS)]


def test_a_collection_is_added_by_copy_from_elsewhere_and_in_place_from_below(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "store", images={"T1w": pairs(tmp_path / "i", SUBJECTS)})
    copied = collection(tmp_path, tmp_path / "elsewhere", "seg", ["z", "only"])
    radi.add_collection("seg", copied.uri)
    inside = collection(tmp_path, tmp_path / "store" / "collections" / "FLAIR", "FLAIR", ["a"])
    assert inside.stands_alone
    assert radi.repair() == []  # nobody's leftover
    assert RadiObject(radi.uri).collection_names == ("T1w", "seg")
    radi.add_collection("FLAIR", inside)
    for found in (radi, RadiObject(radi.uri)):
        assert found.collection_names == ("T1w", "seg", "FLAIR")
        assert found.obs_subject_ids == ["a", "m", "only", "z"]
        check_identity(found.seg, "seg")
        check_identity(found.FLAIR, "FLAIR")
        found.validate()
    assert copied.stands_alone
    for wrong in ("seg", "FLAIR"):
        with pytest.raises(ConfigError, match="already is"):
            radi.add_collection(wrong, copied)
    with pytest.raises(ConfigError, match="already in the store"):
        radi.add_collection("again", copied)
    with pytest.raises(ViewError):
        radi.head(1).add_collection("more", copied)


def test_a_view_is_copied_also_from_below(tmp_path: Path) -> None:
    own = collection(tmp_path, tmp_path / "store" / "collections" / "T1w", "T1w")
    radi = RadiObject.from_collections(tmp_path / "store", {"T1w": own.head(2)})
    assert radi.T1w.obs_ids == ["a_T1w", "m_T1w"]
    check_identity(radi.T1w)
    assert len(own) == 3
    assert own.stands_alone
    check_identity(VolumeCollection(own.uri))


def test_a_new_collection_keeps_out_of_the_folder_of_somebody_elses(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "store", images={"T1w": pairs(tmp_path / "i", SUBJECTS)})
    own = collection(tmp_path, tmp_path / "store" / "collections" / "seg", "seg", ["x"])
    store = radi._cohort.store
    create_group(store.collection_uri("cut-off"), {"name": "cut-off"}, store.session)
    left = Leftovers.find(store, store.own_snapshot())
    assert (left.collections, left.foreign) == (("cut-off",), {"seg"})
    radi.append(images={"seg": pairs(tmp_path / "s", ["a"], "seg")})
    check_identity(RadiObject(radi.uri).seg, "seg")
    assert RadiObject(radi.uri).seg.obs_ids == ["a_seg"]
    assert VolumeCollection(own.uri).obs_ids == ["x_seg"]
    overwritten = RadiObject.from_niftis(
        radi.uri, images={"seg": pairs(tmp_path / "o", ["b"], "seg")}, overwrite=True
    )
    assert overwritten.seg.obs_ids == ["b_seg"]
    assert VolumeCollection(own.uri).obs_ids == ["x_seg"]


def test_what_cannot_be_taken_in_leaves_no_store(tmp_path: Path) -> None:
    own = collection(tmp_path, tmp_path / "store" / "collections" / "T1w", "T1w")
    twin = collection(tmp_path, tmp_path / "twin", "T1w")
    for wrong, table in (
        ({"T1w": own, "other": twin}, None),
        ({"T1w": own}, {"obs_subject_id": ["m", "z"]}),
        ({"T1w": own}, {"name": ["m"]}),
        ({}, None),
    ):
        with pytest.raises(ConfigError):
            RadiObject.from_collections(tmp_path / "store", wrong, table)
        assert VolumeCollection(own.uri).stands_alone
        check_identity(VolumeCollection(own.uri))
    check_identity(RadiObject.from_collections(tmp_path / "store", {"T1w": own}).T1w)


def test_rows_after_a_clock_that_ran_ahead_stay_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    ahead = time.time_ns() + 3600 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr("voxtier.volumes.store.commits.time.time_ns", lambda: ahead)
        own = collection(tmp_path, tmp_path / "store" / "collections" / "T1w", "T1w")
    radi = RadiObject.from_collections(tmp_path / "store", {"T1w": own})
    check_identity(RadiObject(radi.uri).T1w)
    assert len(RadiObject(radi.uri).T1w) == 3


def volumes_in(folder: Path) -> set[str]:
    return {path.parents[2].name for path in folder.rglob("volumes/*/__fragments/*/a0.tdb")}


FOLDERS = (
    *("obs", "volumes", "notes", "obs_meta_backup", "obs_meta-2024", ".gone-fishing"),
    *("collections/obs", "collections/notes", "collections/notes/obs", "collections/notes/volumes"),
    *("collections/T1w/notes", "collections/T1w/volumes/notes"),
)


def put_own_things(root: Path) -> dict[Path, bytes]:
    """Put files, copies and a volume of somebody's own wherever a store has folders; return their bytes."""
    for name in FOLDERS:
        (root / name).mkdir()
        (root / name / "table.csv").write_text(f"the only copy of {name}")
    (root / "collections" / "T1w" / "read.me").write_text("mine")
    volume = next((root / "collections" / "T1w" / "volumes").glob("a_T1w-*"))
    (volume / "mask.csv").write_text("mine too")
    copies = {
        "obs_meta_copy": "obs_meta",
        "collections/T1w-0": "collections/T1w",
        "collections/T1w backup": "collections/T1w",
        "collections/notes/table": "collections/T1w/obs",
    }
    for copy, original in copies.items():
        shutil.copytree(root / original, root / copy)
    Volume.from_numpy(root / "collections" / "T1w" / "volumes" / "mine", np.ones((8, 8, 8)))
    places = [root / name for name in (*FOLDERS, *copies, "collections/T1w/volumes/mine")]
    files = {file for place in places for file in files_of(place)}
    files |= {volume / "mask.csv", root / "collections" / "T1w" / "read.me"}
    return {file: file.read_bytes() for file in files}


def refused(change: Callable[[], object]) -> None:
    with pytest.raises(IngestError):
        change()


def make_kept(folder: Path, root: Path, way: str) -> None:
    """Change a store, or try to, in one of the ways that clean up after a writer."""
    bad = folder / "p9_T1w.nii"
    bad.write_bytes(b"no image")
    more = {"T1w": pairs(folder / "more", ["new"]), "notes": pairs(folder / "notes", ["a"], "notes")}
    if way == "add_column":
        RadiObject(root).obs_meta.add_column("age", "i4", [1, 2, 3])
    elif way == "append":
        RadiObject(root).append(images=more)
    elif way == "refused append":
        refused(lambda: RadiObject(root).append(images={**more, "T2w": [(bad, "x")]}))
    elif way == "overwrite":
        RadiObject.from_niftis(root, images={"T2w": pairs(folder / "t2", ["a"], "T2w")}, overwrite=True)
    elif way == "refused overwrite":
        refused(lambda: RadiObject.from_niftis(root, images={**more, "obs": [(bad, "x")]}, overwrite=True))
    elif way == "killed append":
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Change, "discard", lambda _: None)
            patch.setattr(Change, "commit", lambda _: 1 / 0)
            RadiObject(root).append(images=more)
        assert len(RadiObject(root).repair()) == 2  # the volume, and the collection that is new
    assert RadiObject(root).repair() == []


WAYS = ("add_column", "append", "refused append", "overwrite", "refused overwrite", "killed append")


@pytest.mark.parametrize("way", WAYS)
def test_no_change_removes_what_is_somebodys(tmp_path: Path, way: str) -> None:
    root = tmp_path / "store"
    RadiObject.from_niftis(root, images={"T1w": pairs(tmp_path / "i", SUBJECTS)})
    voxels = volumes_in(root)
    own = put_own_things(root)
    make_kept(tmp_path, root, way)
    assert {path: path.read_bytes() for path in own if path.is_file()} == own
    found = RadiObject(root)
    found.validate()
    for name in found.collection_names:
        check_identity(found.collection(name), name)
    left = volumes_in(root / "collections" / "T1w") - {"mine"}
    kept = {name for name in voxels if name.startswith("a_T1w")} if way == "overwrite" else voxels
    assert (left > kept) if way == "append" else (left == kept)


@pytest.mark.parametrize("name", ["obs", "volumes", "collections"])
def test_a_collection_may_have_the_name_of_a_folder_of_voxtiers(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    images = {"T1w": pairs(tmp_path / "i", SUBJECTS), name: pairs(tmp_path / "o", SUBJECTS, name)}
    RadiObject.from_niftis(root, images=images)
    RadiObject(root).obs_meta.add_column("age", "i4", [1, 2, 3])
    RadiObject(root).append(images={"T1w": pairs(tmp_path / "more", ["new"])})
    assert RadiObject(root).repair() == []
    check_identity(RadiObject(root).collection(name), name)
    check_identity(RadiObject(root).T1w)
    with pytest.raises(ConfigError, match="cannot name a folder"):
        RadiObject(root).append(images={f".gone-{'0' * 32}": pairs(tmp_path / "gone", ["a"])})


@pytest.mark.parametrize("way", ["repeated and refused", "repair"])
def test_a_first_ingest_that_was_cut_off_goes_and_what_was_put_there_stays(tmp_path: Path, way: str) -> None:
    root = tmp_path / "store"
    images = pairs(tmp_path / "in", ["b", "a"])
    kill_ingest(root, images, at="a")
    (root / "notes").mkdir()
    files = {root / "notes" / "table.csv", root / "collections" / "read.me"}
    for file in files:
        file.write_text("mine")
    if way == "repair":
        run("verify", root, "--fix")
    else:
        bad = tmp_path / "p9_T1w.nii"
        bad.write_bytes(b"no image")
        refused(lambda: RadiObject.from_niftis(root, images={"T1w": [*images, (bad, "x")]}))
    assert files_of(root) == files


def test_what_a_killed_writer_of_single_volumes_left_is_known_as_its_own(tmp_path: Path) -> None:
    root = tmp_path / "store"
    voxels = np.ones((8, 8, 8), np.int16)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Change, "discard", lambda _: None)
        with RadiObjectWriter(root) as writer, writer.add_collection("T1w") as collection:
            collection.write_volume(voxels, "a_T1w", "a")
            raise ZeroDivisionError
    with RadiObjectWriter(root) as writer, writer.add_collection("T1w") as collection:
        collection.write_volume(voxels, "a_T1w", "a")
    assert len(volumes_in(root)) == 2
    assert len(RadiObject(root).repair()) == 1
    assert [path.name for path in (root / "collections").iterdir() if path.name[0] != "_"] == ["T1w"]


def test_a_copy_of_what_the_store_has_is_refused_by_its_ids(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "i", SUBJECTS)})
    doubled = radi.T1w.map(lambda voxels: voxels * 2).materialize(tmp_path / "doubled")
    with pytest.raises(ConfigError, match=r"already in the store: a_T1w, m_T1w, z_T1w$"):
        radi.add_collection("twice", doubled)
    assert RadiObject(radi.uri).collection_names == ("T1w",)
