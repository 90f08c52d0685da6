"""The tables of a store: columns and rows change as one commit, and what volumes need stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volumes.support.images import pairs, series
from voxtier.errors import ConfigError, FormatError, IngestError, NotFoundError, ViewError
from voxtier.volumes import RadiObject, VolumeCollection


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
        {"series_type": ["x", "y"]},
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
