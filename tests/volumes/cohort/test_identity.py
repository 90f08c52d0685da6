"""The right patient's voxels, whatever the order; and views that see nothing else, through every exit."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volumes.support.checks import check_identity, first_voxel
from volumes.support.images import code_of, nifti, old_store, pairs
from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import RadiObject, Volume, VolumeCollection
from voxtier.volumes.cohort import snapshot_rows
from voxtier.volumes.tiledb import session


@pytest.mark.parametrize(
    "order", [["z", "m", "a"], ["a-b", "a", "a_b"], ["b", "B", "10", "9"], ["ü", "u", "日本", "a/b c"]]
)
def test_an_ingest_in_any_order_gives_each_subject_its_own_voxels(tmp_path: Path, order: list[str]) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", order)})
    check_identity(radi.T1w)
    assert sorted(radi.obs_subject_ids) == sorted(order)
    for subject in order:
        assert first_voxel(radi.get_volume(f"{subject}_T1w")) == code_of(subject, "T1w")
        assert first_voxel(radi.loc[subject].T1w.iloc[0]) == code_of(subject, "T1w")


def test_append_of_an_earlier_id_and_rename_keep_subjects_and_voxels_together(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["z", "m", "a"])})
    radi.append(images={"T1w": pairs(tmp_path / "more", ["AAA", "zz", "k"])})
    check_identity(radi.T1w)
    radi.rename_collection("T1w", "anat")
    assert radi.collection_names == ("anat",)
    check_identity(RadiObject(tmp_path / "r").anat)
    radi.anat.append(niftis=pairs(tmp_path / "third", ["0"]))
    assert first_voxel(RadiObject(tmp_path / "r").get_volume("0_anat")) == code_of("0", "T1w")


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_unicode_ids_find_their_own_voxels(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    check_identity(VolumeCollection.from_niftis(folder / "c", pairs(folder / "in", order), name="T1w"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("key", ["tile_orientation", "slice_orientation"])
def test_stores_of_the_origin_give_the_right_patient(tmp_path: Path, key: str) -> None:
    radi = RadiObject(old_store(tmp_path / "old", ["z", "m", "a", "a-b"], ("T1w", "FLAIR"), key))
    for series in ("T1w", "FLAIR"):
        check_identity(radi.collection(series), series)
    assert radi.T1w.iloc[0].tile_orientation == "axial"
    assert radi.T1w.shape == (4, 4, 4)
    with pytest.raises(ConfigError, match="materialize it first"):
        radi.append(images={"T1w": pairs(tmp_path / "in", ["q"])})
    check_identity(radi.materialize(tmp_path / "new").T1w)


def test_an_array_without_an_id_in_an_old_store_is_refused(tmp_path: Path) -> None:
    import tiledb

    root = old_store(tmp_path / "old", ["b", "a"])
    with tiledb.open(str(root / "collections/T1w/volumes/0"), "w") as array:
        array.meta["obs_id"] = "a_T1w"
    with pytest.raises(FormatError, match="claims 'a_T1w'"):
        RadiObject(root).T1w.iloc[0][0, 0, 0]


def test_an_array_that_holds_another_id_than_its_row_is_refused(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a", "b"])})
    volume = radi.T1w.loc["a_T1w"]
    Volume(volume.uri).set_obs_id("b_T1w")
    with pytest.raises(FormatError, match="holds 'b_T1w', not 'a_T1w'"):
        volume.axial(0)


def cohort(tmp_path: Path) -> RadiObject:
    order = ["s5", "s1", "s4", "s2", "s3"]
    images = {name: pairs(tmp_path / name, order, name) for name in ("T1w", "FLAIR")}
    meta = {"obs_subject_id": order, "fold": [0, 1, 0, 1, 1], "sex": ["F", "M", "M", None, "F"]}
    return RadiObject.from_niftis(tmp_path / "r", images=images, obs_meta=meta)


VIEWS = {
    "filter": lambda radi: radi.filter("fold == 0"),
    "loc": lambda radi: radi.loc[["s5", "s4"]],
    "iloc": lambda radi: radi.iloc[[4, 3]],
    "mask": lambda radi: radi.iloc[np.array([False, False, False, True, True])],
    "tail": lambda radi: radi.tail(2),
    "sel": lambda radi: radi.sel(subject=["s4", "s5"]),
    "select_then_filter": lambda radi: radi.select(["T1w", "FLAIR"]).filter("fold == 0"),
    "pickled": lambda radi: pickle.loads(pickle.dumps(radi.filter("fold == 0"))),
    "lazy": lambda radi: radi.lazy().filter("fold == 0")._radi,
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_leaks_through_no_exit(tmp_path: Path, kind: str) -> None:
    radi = cohort(tmp_path)
    view = VIEWS[kind](radi)
    inside, outside = {"s4", "s5"}, {"s1", "s2", "s3"}
    assert view.is_view
    assert set(view) == inside
    assert {obs_id.split("_")[0] for obs_id in view.all_obs_ids} == inside
    assert "2 subjects" in view.describe()
    for series in view.collection_names:
        collection = view.collection(series)
        check_identity(collection, series)
        assert set(collection.obs_subject_ids) == inside == set(collection.obs.read()["obs_subject_id"])
        assert len(collection) == len(list(collection)) == 2
        assert {v.obs_id.split("_")[0] for v in collection.lazy().iter_volumes()} == inside
        assert len(collection.filter("dimensions != ''")) == 2
        for subject in outside:
            for way in (collection.loc.__getitem__, view.get_volume):
                with pytest.raises(KeyError):
                    way(f"{subject}_{series}")
            with pytest.raises(KeyError):
                collection.sel(subject=subject)
    for subject in outside:
        with pytest.raises(KeyError):
            view.loc[subject]
    for verb in (lambda: view.append(niftis=[]), lambda: view.T1w.append(niftis=[]), view.repair):
        with pytest.raises((TypeError, ConfigError)):
            verb()
    copied = view.materialize(tmp_path / f"copy_{kind}")
    assert set(copied) == inside
    check_identity(copied.T1w)
    assert set(RadiObject(tmp_path / f"copy_{kind}").all_obs_ids) == set(view.all_obs_ids)


def test_order_and_duplicates_are_kept(tmp_path: Path) -> None:
    radi = cohort(tmp_path)
    assert list(radi.iloc[[3, 0, 3]]) == ["s4", "s1", "s4"]
    assert radi.iloc[[3, 0, 3]].T1w.obs_ids == ["s4_T1w", "s1_T1w", "s4_T1w"]
    collection = radi.T1w
    assert collection.iloc[[2, 0, 2]].obs_ids == ["s3_T1w", "s1_T1w", "s3_T1w"]
    assert collection.iloc[::-2].obs_ids == ["s5_T1w", "s3_T1w", "s1_T1w"]
    assert collection.iloc[np.int64(-1)].obs_id == "s5_T1w"
    assert pickle.loads(pickle.dumps(collection.iloc[[2, 0, 2]])).obs_ids == ["s3_T1w", "s1_T1w", "s3_T1w"]
    with pytest.raises(IndexError):
        collection.iloc[5]
    with pytest.raises(IndexError):
        collection.iloc[np.array([True])]
    with pytest.raises(AttributeError, match="no collection 'PET'"):
        radi.PET  # noqa: B018


def test_samples_are_disjoint_subsets(tmp_path: Path) -> None:
    radi = cohort(tmp_path)
    train = radi.sample(3, seed=1)
    rest = radi.loc[list(radi.index - train.index)]
    assert set(train.all_obs_ids).isdisjoint(rest.all_obs_ids)
    assert list(radi.sample(3, seed=1)) == list(train)


def test_duplicates_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["a", "b"])
    with pytest.raises(ConfigError, match="same observation: a_T1w"):
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": [*images, (images[1][0], "a")]})
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    with pytest.raises(ConfigError, match="already in the store: a_T1w"):
        radi.append(images={"T1w": images[:1]})
    assert len(RadiObject(tmp_path / "r").T1w) == 2


def test_a_collection_reads_its_rows_once_and_shares_one_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radi = cohort(tmp_path)
    calls: list[str] = []

    def note_calls(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.append(name) or function(*args))

    note_calls(session, "_make_context")
    note_calls(snapshot_rows, "_read_table")
    collection = RadiObject(tmp_path / "r").T1w
    for volume in collection:
        volume.axial(0)
    for place in range(5):
        collection.iloc[place].axial(1)
    assert collection.filter("dimensions != ''")._rows is collection._rows
    assert calls == ["_read_table"]
    assert radi.T1w.iloc[0] == collection.iloc[0]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "__meta", "."])
def test_names_that_would_leave_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        RadiObject.from_niftis(tmp_path / "r", images={name: [(nifti(tmp_path / "a.nii", "a"), "a")]})


def test_series_are_found_in_file_names_and_mixed_shapes_refused_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, shape in (("p1_T1w", (4, 5, 6)), ("p2_T1w", (5, 5, 5)), ("p1_flair", (4, 4, 4))):
        nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), folder / f"{name}.nii.gz")
    radi = RadiObject.from_niftis(tmp_path / "r", image_dir=folder)
    assert set(radi.collection_names) == {"T1w", "FLAIR"}
    assert radi.T1w.shape is None
    assert radi.FLAIR.shape == (4, 4, 4)
    assert (
        len(RadiObject.from_images(tmp_path / "g", images={"all": str(folder / "*_T1w.nii.gz")}).all_obs_ids)
        == 2
    )
    with pytest.raises(ConfigError, match="differ in shape"):
        VolumeCollection.from_niftis(tmp_path / "c", folder, name="x")
