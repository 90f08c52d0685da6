"""The tables of a store: columns and rows change as one commit, and what volumes need stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from volumes.support.images import pairs, series
from voxtier.errors import ConfigError, FormatError, IngestError, NotFoundError, ViewError
from voxtier.volumes import RadiObject, VolumeCollection
from voxtier.volumes.tiledb.tables.dataframe import Dataframe
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS


@pytest.fixture
def radi(tmp_path: Path) -> RadiObject:
    subjects = {"obs_subject_id": ["b", "a", "idle"], "age": [20, 10, 30]}
    return RadiObject.from_niftis(tmp_path / "r", pairs(tmp_path / "i", ["b", "a"]), obs_meta=subjects)


def test_columns_come_and_go_in_both_tables(radi: RadiObject) -> None:
    earlier = RadiObject(radi.uri)
    assert [row["age"] for row in earlier.obs_meta.read().rows()] == [10, 20, 30]
    for table, rows in ((radi.obs_meta, 3), (radi.T1w.obs, 2)):
        table.add_column("reviewed", np.bool_, fill=False)
        assert [row["reviewed"] for row in table.read().rows()] == [False] * rows
    radi = RadiObject(radi.uri)
    radi.obs_meta.drop_column("age")
    radi.T1w.obs.drop_column("reviewed")
    for found in (radi, RadiObject(radi.uri)):
        assert found.obs_meta.columns == ["reviewed"]
        assert "reviewed" not in found.T1w.obs.columns
        found.validate()
    assert [row["age"] for row in earlier.obs_meta.read().rows()] == [10, 20, 30]  # as of its commit


def test_rows_of_subjects_go_only_without_volumes(radi: RadiObject) -> None:
    with pytest.raises(ConfigError, match="volumes keep"):
        radi.obs_meta.delete("age >= 20")
    assert len(radi.obs_meta) == 3
    assert radi.obs_meta.delete("age > 20") == 1
    assert radi.obs_subject_ids == RadiObject(radi.uri).obs_subject_ids == ["a", "b"]
    assert radi.obs_meta.delete("age > 20") == 0
    radi.validate()


def test_what_a_collection_needs_and_what_views_show_stays(radi: RadiObject) -> None:
    for wrong in ("dimensions", "voxtier_array", "obs_id", "absent"):
        with pytest.raises(ConfigError):
            radi.T1w.obs.drop_column(wrong)
    for view in (radi.head(1).obs_meta, radi.head(1).T1w.obs):
        with pytest.raises(ViewError):
            view.drop_column("age")
        with pytest.raises(ViewError):
            view.add_column("n", int, fill=1)
    with pytest.raises(ViewError):
        radi.head(1).obs_meta.delete("age > 0")
    assert radi.T1w.shape == (5, 6, 7)


def test_shapes_are_not_overwritten_and_what_is_none_is_told(radi: RadiObject) -> None:
    rows = radi.T1w.obs.read().to_pandas()
    rows["reviewed"] = rows["dimensions"].str.len() > 0
    radi.T1w.obs.add_column("reviewed", bool)
    radi.T1w.obs.update(rows)  # with the shapes that the rows have
    for wrong in ("(9, 9, 9)", "x", None):
        with pytest.raises(ConfigError, match="shapes"):
            radi.T1w.obs.update({**{key: rows[key][:1] for key in INDEX_COLUMNS}, "dimensions": [wrong]})
    assert radi.T1w.obs.read()["reviewed"].all()
    assert RadiObject(radi.uri).T1w.shape == (5, 6, 7)


@pytest.mark.parametrize("wrong", ["x", None, "3", "(1, 'a')", "("])
def test_what_another_program_wrote_over_a_shape_is_told(radi: RadiObject, wrong: str | None) -> None:
    radi.obs_meta.update({"obs_subject_id": ["a"], "age": [11]})  # a commit that is later than the row
    commit = radi._cohort.snapshot.commit
    row = {**{key: radi.T1w.table[key][:1] for key in INDEX_COLUMNS}, "dimensions": [wrong]}
    Dataframe(f"{radi.uri}/collections/T1w/obs", timestamp=commit).update(row)
    damaged = RadiObject(radi.uri)
    for look in (lambda: damaged.T1w.shape, lambda: repr(damaged.T1w), damaged.validate):
        with pytest.raises(FormatError, match="no shape"):
            look()


def test_a_table_gives_ids_and_columns_to_the_files_of_a_collection(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["b", "a", "b"])
    table = {
        "obs_id": ["b_first", "a_only", "b_second"],
        "obs_subject_id": ["b", "a", "b"],
        "reader": ["ü", None, "w"],
    }
    found = VolumeCollection.from_niftis(tmp_path / "c", images, obs=table, name="T1w")
    assert [(row["obs_id"], row["reader"], row["series_type"]) for row in found.obs.read().rows()] == [
        ("a_only", None, "T1w"),
        ("b_first", "ü", "T1w"),
        ("b_second", "w", "T1w"),
    ]
    assert [volume.obs_id for volume in found] == found.obs_ids
    scans = [(series(tmp_path / name, [(0, 0, z) for z in range(3)]), name) for name in ("x", "y")]
    ids = {"obs_id": ["x1", "y1"], "obs_subject_id": ["x", "y"], "n": [1, 2]}
    scanned = VolumeCollection.from_dicoms(tmp_path / "d", scans, obs=ids)
    assert [(row["obs_id"], row["n"]) for row in scanned.obs.read().rows()] == [("x1", 1), ("y1", 2)]


@pytest.mark.parametrize(
    "change",
    [
        {"obs_id": None},
        {"obs_subject_id": None},
        {"obs_subject_id": ["a", "b"]},
        {"obs_id": ["same", "same"]},
        {"obs_id": ["b1", None]},
        {"obs_subject_id": ["b", None]},
        {"series_type": ["x", "y"]},
        {"voxtier_score": [1, 2]},
        {"voxel_spacing": ["x", "y"]},
        {"obs_id": ["1", "2", "3"], "obs_subject_id": ["b", "a", "c"]},
    ],
)
def test_a_table_that_does_not_fit_the_files_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    images = pairs(tmp_path / "i", ["b", "a"])
    table = {"obs_id": ["b1", "a1"], "obs_subject_id": ["b", "a"], **change}
    with pytest.raises((ConfigError, IngestError)):
        VolumeCollection.from_niftis(
            tmp_path / "c", images, obs={name: values for name, values in table.items() if values is not None}
        )
    assert len(VolumeCollection.from_niftis(tmp_path / "c", images)) == 2


def test_images_may_be_nifti_files_or_dicom_series(tmp_path: Path) -> None:
    scans = [series(tmp_path / "scans" / name, [(0, 0, z) for z in range(3)]) for name in ("b", "a")]
    images = {"CT": tmp_path / "scans", "seg": pairs(tmp_path / "s", ["a", "b"], "seg")}
    radi = RadiObject.from_images(tmp_path / "r", images, validate_alignment=True)
    assert radi.collection_names == ("CT", "seg")
    assert (radi.CT.obs_ids, radi.seg.obs_ids) == (["a_CT", "b_CT"], ["a_seg", "b_seg"])
    assert radi.CT.shape == (3, 4, 3)
    radi.append(images={"CT": [(scans[0], "c")]}, obs_meta={"obs_subject_id": ["c"]})
    radi.append(images={"PET": [(scans[0] / "001.dcm", "c")]}, format_hint={"PET": "dicom"})
    assert (radi.CT.obs_ids[-1], radi.PET.obs_ids) == ("c_CT", ["c_PET"])
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    for wrong, hint in (
        ({"CT": tmp_path / "bare"}, None),
        ({"CT": tmp_path / "absent"}, None),
        ({"CT": []}, None),
        ({"CT": tmp_path / "scans"}, {"CT": "nifti"}),
        ({"CT": tmp_path / "scans"}, {"CT": "zarr"}),
        ({"CT": tmp_path / "scans"}, {"MR": "dicom"}),
        ({"CT": tmp_path / "empty"}, None),
    ):
        with pytest.raises((ConfigError, NotFoundError, FormatError)):
            RadiObject.from_images(tmp_path / "wrong", wrong, format_hint=hint)
        assert not (tmp_path / "wrong" / "obs_meta").exists()


def types_of(table: Any) -> dict[str, np.dtype[Any]]:
    return {name: table[name].dtype for name in table.columns}


def test_the_type_of_a_column_does_not_depend_on_who_comes_first(tmp_path: Path) -> None:
    """The first subject has no value: its column is that of the numbers that come later, not text."""
    pandas = pytest.importorskip("pandas")
    images = pairs(tmp_path / "i", ["a", "b"])
    first = pandas.DataFrame(
        {"obs_subject_id": ["a"], "age": [np.nan], "visits": pandas.array([None], "Int64")}
    )
    radi = RadiObject.from_niftis(tmp_path / "r", images[:1], obs_meta=first, collection_name="T1w")
    radi.append(
        images[1:], obs_meta={"obs_subject_id": ["b"], "age": [52.0], "visits": [3]}, collection_name="T1w"
    )
    rows = [(row["age"], row["visits"]) for row in radi.obs_meta.read().rows()]
    assert rows == [(None, None), (52.0, 3)]
    assert radi.filter("age > 50 and visits == 3").obs_subject_ids == ["b"]
    alone = radi.loc[["a"]].materialize(tmp_path / "m")
    assert types_of(alone.obs_meta.read()) == types_of(radi.obs_meta.read())


def test_columns_of_a_series_have_the_type_of_their_attribute(tmp_path: Path) -> None:
    silent = series(tmp_path / "silent", [(0, 0, k) for k in range(3)])
    stated = series(tmp_path / "stated", [(0, 0, k) for k in range(3)], KVP=120, Exposure=250)
    for number, folders in enumerate(((silent, stated), (stated, silent))):
        radi = RadiObject.from_dicoms(tmp_path / f"r{number}", [(folders[0], "a")])
        radi.append(dicom_dirs=[(folders[1], "b")])
        found = {row["kvp"]: row["exposure"] for row in radi.CT.table.rows()}
        assert found == {None: None, 120.0: 250.0}
        assert radi.CT.filter("kvp > 100").obs_subject_ids == ["ba"[number]]
    # As an older version made it, whose stores still grow.
    radi.CT.obs.drop_column("kvp")
    radi.CT.obs.add_column("kvp", str, ["120.0", None])
    radi.append(dicom_dirs=[(stated, "c"), (silent, "d")])
    assert [row["kvp"] for row in radi.CT.table.rows()] == ["120.0", None, "120.0", None]


def test_copies_keep_the_types_of_columns_without_values(tmp_path: Path) -> None:
    obs = {
        "obs_id": ["x", "y"],
        "obs_subject_id": ["b", "a"],
        "score": [None, 1.5],
        "day": [None, np.datetime64("9999-12-31")],
        "ok": [None, True],
        "site": [None, "A"],
    }
    whole = VolumeCollection.from_niftis(tmp_path / "c", pairs(tmp_path / "i", ["b", "a"]), obs=obs)
    wanted = {
        name: whole.table[name].dtype for name in ("score", "day", "ok", "site", "datatype", "scl_slope")
    }
    view = whole.filter("obs_id == 'x'")
    copies = {
        "plain": view.materialize(tmp_path / "plain"),
        "lazy": view.lazy().map(lambda voxels: voxels + 1).materialize(tmp_path / "lazy"),
        "eager": view.map_batches(lambda batch: [voxels + 1 for voxels, _ in batch], 2).write(
            tmp_path / "eager"
        ),
    }
    for name, copy in copies.items():
        assert {column: copy.table[column].dtype for column in wanted} == wanted, name
        row = next(iter(copy.table.rows()))
        assert [row[column] for column in ("score", "day", "ok", "site")] == [None] * 4
    copies["lazy"].append(pairs(tmp_path / "j", ["c"]))  # of which the file tells the type of its voxels
    assert [row["datatype"] for row in copies["lazy"].table.rows()] == [None, 4]


def test_text_stays_text_and_a_number_in_it_is_refused(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a", "b"])
    subjects = {"obs_subject_id": ["a"], "age": [None]}  # which tells no type
    radi = RadiObject.from_niftis(tmp_path / "r", images[:1], obs_meta=subjects, collection_name="T1w")
    late = {"obs_subject_id": ["b"], "age": [52.0]}
    with pytest.raises(ConfigError, match="'age' holds text"):
        radi.append(images[1:], obs_meta=late, collection_name="T1w")
    assert RadiObject(radi.uri).obs_subject_ids == ["a"]
    radi.obs_meta.drop_column("age")  # as the message says
    radi.obs_meta.add_column("age", float)
    radi.append(images[1:], obs_meta=late, collection_name="T1w")
    assert radi.filter("age > 50").obs_subject_ids == ["b"]


def test_rows_that_come_back_from_a_file_of_text_are_equal(tmp_path: Path) -> None:
    """By default pandas reads about a third of the numbers that it wrote with an error of one place."""
    ids = [f"s{number}" for number in range(30)]
    images = [
        (path, name) for (path, _), name in zip(pairs(tmp_path / "i", ["a"]) * 31, [*ids, "new"], strict=True)
    ]
    told = {
        "volume": np.random.default_rng(1).normal(1500, 200, 30),
        "seen": np.full(30, "2026-01-02", "M8[D]"),
    }
    radi = RadiObject.from_niftis(
        tmp_path / "r", images={"T1w": images[:30]}, obs_meta={"obs_subject_id": ids, **told}
    )
    frame = radi.obs_meta.read().to_pandas()[["obs_subject_id", *told]]
    frame.to_csv(tmp_path / "table.csv", index=False)
    read = pd.read_csv(tmp_path / "table.csv")
    assert (read.volume != frame.volume).any()
    radi.append(images={"T2w": images[:30]}, obs_meta=read)
    read.loc[7, "volume"] *= 1 + 1e-12
    with pytest.raises(ConfigError, match="volume"):
        radi.append(images={"FLAIR": images[:30]}, obs_meta=read)


def test_rows_of_subjects_that_exist_are_equal_or_refused(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a", "b"])
    born = np.array(["1950-02-03", "NaT"], "M8[D]")
    held = {
        "age": np.array([50, 60], np.int16),
        "dose": np.array([0.1, 2], np.float32),
        "mrn": [2**53 + 1, None],
        "site": ["x", None],
        "seen": [True, False],
        "born": np.ma.MaskedArray(born, mask=[False, True]),
    }
    radi = RadiObject.from_niftis(
        tmp_path / "r", images={"T1w": images}, obs_meta={"obs_subject_id": ["a", "b"], **held}
    )
    before = list(radi.obs_meta.read().rows())
    differing = {
        "age": 51,
        "dose": 0.1001,
        "mrn": 2**53,
        "site": "y",
        "seen": False,
        "born": np.datetime64("1950-02-04"),
        "weight": 80.0,
        "obs_ids": "a",
    }
    for name, value in differing.items():
        for subjects, values in ((["a"], [value]), (["a", "c"], [value, None]), (["c", "a"], [None, value])):
            with pytest.raises(ConfigError, match=f"no column '{name}'|tells {name}=.* of 'a', whose row"):
                radi.append(
                    images={"T2w": [(images[0][0], subject) for subject in subjects]},
                    obs_meta={"obs_subject_id": subjects, name: values},
                )
    with pytest.raises(
        ConfigError, match=r"tells site='y' of 'b', whose row holds no value: obs_meta\.update"
    ):
        radi.append(images={"T2w": images}, obs_meta={"obs_subject_id": ["a", "b"], "site": ["x", "y"]})
    again = RadiObject(radi.uri)
    assert again.collection_names == ("T1w",)
    assert list(again.obs_meta.read().rows()) == before
    equal = {"age": [50.0, 60.0, 7.0], "dose": [0.1, np.nan, None], "mrn": [2**53 + 1, None, 5]}
    equal |= {"site": ["x", None, "z"], "born": [np.datetime64("1950-02-03T00"), None, None]}
    again.append(
        images={"T2w": [*images, (images[0][0], "c")]}, obs_meta={"obs_subject_id": ["a", "b", "c"], **equal}
    )
    rows = list(RadiObject(radi.uri).obs_meta.read().rows())
    assert rows[:2] == before
    wanted = {
        "obs_subject_id": "c",
        "age": 7,
        "dose": None,
        "mrn": 5,
        "site": "z",
        "seen": None,
        "born": None,
    }
    assert {name: rows[2][name] for name in wanted} == wanted


def test_an_append_reads_the_rows_of_the_subjects_once(
    radi: RadiObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an object store each reading is a set of requests, while every other writer waits."""
    read: list[str] = []
    original = Dataframe.read_all
    monkeypatch.setattr(RadiObject, "refresh", lambda _: None)
    monkeypatch.setattr(VolumeCollection, "refresh", lambda _: None)
    monkeypatch.setattr(Dataframe, "read_all", lambda table: read.append(table.uri) or original(table))
    told = {"obs_subject_id": ["a", "new"], "age": [10, 40]}
    radi.append(images={"T2w": pairs(tmp_path / "j", ["a", "new"], "T2w")}, obs_meta=told)
    assert read.count(f"{radi.uri}/obs_meta") == 1
    radi.T1w.append(pairs(tmp_path / "k", ["c"]))
    assert read.count(f"{radi.uri}/obs_meta") == 2
    rows = RadiObject(radi.uri).obs_meta.read().rows()
    assert {row["obs_subject_id"]: row["age"] for row in rows} == {
        "a": 10,
        "b": 20,
        "c": None,
        "idle": 30,
        "new": 40,
    }


def test_a_row_of_no_subject_is_refused(tmp_path: Path) -> None:
    images, nobody = pairs(tmp_path / "i", ["a", "b"]), {"obs_subject_id": ["a", "b", None], "age": [1, 2, 3]}
    with pytest.raises(ConfigError, match="row 2 of the table has no obs_subject_id"):
        RadiObject.from_niftis(tmp_path / "r", images, obs_meta=nobody)
    radi = RadiObject.from_niftis(tmp_path / "r", images[:1], obs_meta={"obs_subject_id": ["a"], "age": [1]})
    with pytest.raises(ConfigError, match="no obs_subject_id"):
        radi.append(images[1:], obs_meta=nobody)
    with pytest.raises(ConfigError, match="no obs_subject_id"):
        radi.obs_meta.update(nobody)
    assert RadiObject(tmp_path / "r").obs_subject_ids == ["a"]


def test_a_column_that_would_be_hidden_is_refused(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a", "b"])
    table = {"obs_subject_id": ["a", "b"], "voxtier_age": [1, 2]}
    with pytest.raises(ConfigError, match=r"'voxtier_age'.*rename it"):
        RadiObject.from_niftis(tmp_path / "r", images, obs_meta=table)
    radi = RadiObject.from_niftis(tmp_path / "r", images[:1])
    for change in (
        lambda: radi.append(images[1:], obs_meta=table),
        lambda: radi.obs_meta.add_column("voxtier_age", int),
        lambda: radi.collection(radi.collection_names[0]).obs.add_column("voxtier_nulls", str),
        lambda: RadiObject.from_collections(tmp_path / "c", {"T1w": radi.T1w}, obs_meta=table),
        lambda: Dataframe.from_pandas(tmp_path / "t", {**table, "obs_id": ["a", "b"]}),
        lambda: Dataframe.create(tmp_path / "t", {"voxtier_age": int}),
    ):
        with pytest.raises(ConfigError, match=r"'voxtier_.*rename it"):
            change()


def test_a_table_that_names_no_subjects_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a"])
    images[0][0].write_bytes(b"nothing")
    for told, why in (({"age": [1]}, "needs a column"), ({"obs_subject_id": ["a", "a"]}, "two rows")):
        with pytest.raises(ConfigError, match=why):
            RadiObject.from_niftis(tmp_path / "r", images, obs_meta=told, on_error="skip")
