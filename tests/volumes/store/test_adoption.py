"""Collections of their own below a store: taken in as they lie, never mixed with others and never removed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from volumes.support.checks import check_identity
from volumes.support.images import pairs
from voxtier.errors import ConfigError, ViewError
from voxtier.volumes import RadiObject, VolumeCollection

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
