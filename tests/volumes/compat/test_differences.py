"""Where we differ from the origin on purpose: a test for each line of docs/differences-radiobject.md."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from volumes.compat.conftest import GRID, SHAPE, SUBJECTS, voxels_of
from volumes.support.images import old_store, pairs, series
from voxtier.errors import ConfigError, FormatError, NotFoundError, SourceError
from voxtier.volumes.compat import (
    CompressionConfig,
    Dataframe,
    Index,
    IngestError,
    OrientationConfig,
    RadiObject,
    TileConfig,
    TileDBStats,
    Volume,
    VolumeCollection,
    configure,
    delete_tiledb_uri,
    exceptions,
    get_config,
)
from voxtier.volumes.compat.imaging_metadata import extract_dicom_metadata, infer_series_type
from voxtier.volumes.compat.ingest import discover_nifti_pairs, resolve_nifti_source
from voxtier.volumes.compat.orientation import detect_dicom_orientation, detect_nifti_orientation

SORTED = sorted(SUBJECTS)
PAGE = Path(__file__).parents[3] / "docs" / "differences-radiobject.md"
TESTS = "tests/volumes/**/test_*.py"


@pytest.fixture(scope="module")
def radi(brats_uri: str) -> RadiObject:
    return RadiObject(brats_uri)


def test_the_page_names_every_test_of_this_file_and_only_tests() -> None:
    pattern = re.compile(r"^def (test_\w+)", re.MULTILINE)
    here, *others = (
        set(pattern.findall(p.read_text())) for p in (Path(__file__), *PAGE.parents[1].glob(TESTS))
    )
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert here - {"test_the_page_names_every_test_of_this_file_and_only_tests"} <= named
    assert named <= here.union(*others)


def test_voxels_belong_to_the_subject_of_their_row(radi: RadiObject) -> None:
    for place, subject in enumerate(SORTED):
        assert np.array_equal(radi.T1w.iloc[place].to_numpy(), voxels_of(subject, "T1w"))
        assert np.array_equal(radi.get_volume(f"{subject}_T2w").to_numpy(), voxels_of(subject, "T2w"))


def test_a_view_shows_nothing_that_it_excludes(radi: RadiObject) -> None:
    view = radi.filter("age > 50")
    kept = ["BRATS_003", "BRATS_004", "BRATS_005"]
    assert view.T1w.obs_subject_ids == view.obs_subject_ids == kept
    assert list(view.T1w.obs.read()["obs_subject_id"]) == kept
    assert len(view.all_obs_ids) == 12
    with pytest.raises(KeyError):
        view.get_volume("BRATS_001_T1w")


def test_lists_keep_their_order_and_what_stands_twice(radi: RadiObject) -> None:
    assert radi.T1w.iloc[[3, 0, 3]].obs_subject_ids == [SORTED[3], SORTED[0], SORTED[3]]
    assert radi.loc[["BRATS_005", "BRATS_001"]].obs_subject_ids == ["BRATS_005", "BRATS_001"]
    assert [v.obs_id[:9] for v in radi.T1w.lazy().iloc([2, 1]).iter_volumes()] == ["BRATS_003", "BRATS_002"]


def test_one_grammar_filters_stores_views_and_queries(radi: RadiObject) -> None:
    expression = "age in [37, 63] and not tumor_grade == 'LGG'"
    for each in (radi, radi.head(5), radi.lazy()):
        assert len(each.filter(expression)) == 2
    with pytest.raises(ConfigError):
        radi.head(5).filter("__import__('os').getpid() > 0")


def test_numbers_keep_their_type(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for slope, inter, dtype in ((1.0, -1024.0, np.int16), (0.5, 0.0, np.float32)):
        image = nib.Nifti1Image(voxels, GRID)
        image.header.set_slope_inter(slope, inter)
        nib.save(image, tmp_path / f"{slope}.nii")
        volume = Volume.from_nifti(str(tmp_path / f"v{slope}"), tmp_path / f"{slope}.nii")
        assert (volume.stored_dtype, volume.dtype) == (np.int16, dtype)
        assert np.array_equal(volume.to_numpy(), nib.load(tmp_path / f"{slope}.nii").get_fdata())


def test_options_are_frozen_and_a_part_leaves_the_rest() -> None:
    configure(compression=CompressionConfig(level=7), tile=TileConfig(x=8, y=8, z=8))
    configure(orientation=OrientationConfig(canonical_target="LPS"))
    assert (get_config().compression.level, get_config().tile.x) == (7, 8)
    with pytest.raises(AttributeError):
        get_config().compression.level = 1  # type: ignore[misc]
    with pytest.raises(ConfigError):
        CompressionConfig(level=99)
    with pytest.raises(TypeError):
        configure(tiles=TileConfig())  # type: ignore[call-arg]


def test_an_ingest_is_all_or_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a", "b"])
    broken = tmp_path / "i" / "broken.nii.gz"
    broken.write_bytes(gzip.compress(b"no image"))
    with pytest.raises(IngestError, match="broken"):
        RadiObject.from_niftis(str(tmp_path / "r"), niftis=[*images, (broken, "c")])
    with pytest.raises(NotFoundError):
        RadiObject(str(tmp_path / "r"))
    RadiObject.from_niftis(str(tmp_path / "r"), niftis=images)
    with pytest.raises(ConfigError, match="already exists"):
        RadiObject.from_niftis(str(tmp_path / "r"), niftis=images)


def test_a_second_image_of_one_observation_is_refused(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a"])
    radi = RadiObject.from_niftis(str(tmp_path / "r"), niftis=images)
    with pytest.raises(ConfigError, match="already in the store"):
        radi.append(niftis=images)
    twins = [(images[0][0], "b"), (images[0][0], "b")]
    with pytest.raises(ConfigError, match="two images"):
        RadiObject.from_niftis(str(tmp_path / "t"), niftis=twins, collection_name="all")
    ids = {"obs_id": ["b_1", "b_2"], "obs_subject_id": ["b", "b"]}
    assert VolumeCollection.from_niftis(str(tmp_path / "c"), twins, obs=ids).obs_ids == ["b_1", "b_2"]


def test_new_subjects_need_no_table_and_unknown_columns_are_refused(tmp_path: Path) -> None:
    images = pairs(tmp_path / "i", ["a", "b", "c"])
    radi = RadiObject.from_niftis(
        str(tmp_path / "r"), images[:1], obs_meta=pd.DataFrame({"obs_subject_id": ["a"], "age": [5]})
    )
    radi.append(niftis=images[1:2])
    assert [None if value != value else value for value in radi.obs_meta.read()["age"]] == [5, None]
    with pytest.raises(ConfigError, match="sex"):
        radi.append(niftis=images[2:], obs_meta=pd.DataFrame({"obs_subject_id": ["c"], "sex": ["F"]}))
    assert len(RadiObject(str(tmp_path / "r"))) == 2


def test_no_path_of_a_file_is_stored(radi: RadiObject, nifti_list: list[tuple[Path, str]]) -> None:
    folder = str(nifti_list[0][0].parent)
    assert "source_path" not in radi.T1w.obs.columns
    stored = b"".join(p.read_bytes() for p in Path(radi.uri or "").rglob("*") if p.is_file())
    assert folder.encode() not in stored


def test_subjects_have_no_list_of_observations(radi: RadiObject) -> None:
    from voxtier.volumes.compat.utils import merge_obs_ids

    assert "obs_ids" not in radi.obs_meta.columns
    merged = merge_obs_ids(radi.obs_meta.read(), [radi.T1w, radi.FLAIR])
    assert merged["obs_ids"].iloc[0] == '["BRATS_001_FLAIR", "BRATS_001_T1w"]'
    again = merge_obs_ids(merged, [radi.T1w])
    assert again.columns.equals(merged.columns)
    assert again["obs_ids"].iloc[0] == '["BRATS_001_T1w"]'


def test_a_row_of_a_volume_is_changed_and_never_made_up(radi: RadiObject, tmp_path: Path) -> None:
    mine = radi.head(2).write(str(tmp_path / "r"))
    with pytest.raises(NotFoundError):
        mine.T1w.obs.update(pd.DataFrame({"obs_subject_id": ["x"], "obs_id": ["x"], "series_type": ["T1w"]}))
    frame = Dataframe.from_pandas(
        str(tmp_path / "t"), pd.DataFrame({"obs_subject_id": ["a"], "obs_id": ["a"], "n": [1]})
    )
    frame.update(pd.DataFrame({"obs_subject_id": ["b", "a"], "obs_id": ["b", "a"], "n": [2, 3]}))
    assert frame.read()["n"].tolist() == [3, 2]  # a table of its own takes new rows, as the origin's does


def test_a_subject_with_volumes_keeps_its_row(radi: RadiObject, tmp_path: Path) -> None:
    mine = radi.head(2).write(str(tmp_path / "r"))
    with pytest.raises(ConfigError, match="volumes keep"):
        mine.obs_meta.delete("age > 0")
    assert len(RadiObject(str(tmp_path / "r"))) == 2


def test_rows_of_a_transform_tell_what_is_there(radi: RadiObject, tmp_path: Path) -> None:
    halved = radi.T1w.lazy().head(1).map(lambda voxels, obs: voxels[::2]).write(str(tmp_path / "h"))
    row = halved.obs.read().iloc[0]
    assert row["dimensions"] == str((SHAPE[0] // 2, *SHAPE[1:]))
    assert row["voxel_spacing"] is None
    assert halved.iloc[0].orientation_info is None


def test_writing_keeps_the_ids_of_volumes(radi: RadiObject, tmp_path: Path) -> None:
    assert radi.T1w.head(2).write(str(tmp_path / "w"), name="other").obs_ids == radi.T1w.obs_ids[:2]


def test_series_and_subjects_are_told_by_names_or_asked_for(tmp_path: Path) -> None:
    assert infer_series_type(Path("sub-01_ses-2_T1w.nii.gz")) == "T1w"
    assert infer_series_type(Path("p7_t1ce.nii.gz")) == "T1gd"
    assert infer_series_type(Path("lung_001.nii.gz")) == "unknown"
    image = pairs(tmp_path / "i", ["a"])[0][0]
    image.rename(tmp_path / "i" / "lung_001.nii")
    assert [s for _, s in resolve_nifti_source(tmp_path / "i")] == ["lung_001"]
    with pytest.raises(ConfigError, match="states no series"):
        RadiObject.from_niftis(str(tmp_path / "r"), image_dir=tmp_path / "i")
    RadiObject.from_niftis(str(tmp_path / "r"), image_dir=tmp_path / "i", collection_name="CT")


def test_what_is_not_known_is_an_error_and_no_identity(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for read in (detect_dicom_orientation, extract_dicom_metadata):
        with pytest.raises(NotFoundError):
            read(tmp_path / "empty")
    series(tmp_path / "odd", [(0, 0, 0), (0, 0, 1), (0, 0, 2.5), (0, 0, 9)])
    with pytest.raises(FormatError):
        extract_dicom_metadata(tmp_path / "odd")
    stated = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    assert (
        detect_nifti_orientation(stated).confidence == "header"
    )  # the identity, with a code that vouches for it
    stated.header["sform_code"] = 0
    assert detect_nifti_orientation(stated).confidence == "unknown"


def test_errors_are_ours_by_its_names(radi: RadiObject, tmp_path: Path) -> None:
    assert issubclass(exceptions.ViewError, (exceptions.RadiObjectError, TypeError))
    assert issubclass(exceptions.ShapeError, ValueError)
    assert all(
        issubclass(getattr(exceptions, name), exceptions.RadiObjectError) for name in exceptions.__all__
    )
    with pytest.raises(exceptions.IngestError):
        RadiObject.from_niftis(str(tmp_path / "r"), niftis=[(tmp_path / "absent.nii", "a")])
    with pytest.raises(exceptions.IngestError):
        discover_nifti_pairs(tmp_path / "absent")
    with pytest.raises(SourceError):
        Volume.from_nifti(str(tmp_path / "v"), tmp_path / "absent.nii")
    with pytest.raises(exceptions.StorageError):
        Volume(str(tmp_path / "v")).shape  # noqa: B018
    with pytest.raises(exceptions.AlignmentError):
        Index.build(["a", "a"])


def test_stores_of_the_origin_are_read_only(tmp_path: Path) -> None:
    radi = RadiObject(old_store(tmp_path / "old", ["b", "a"]))
    with pytest.raises(ConfigError, match="written by RadiObject"):
        radi.append(niftis=pairs(tmp_path / "i", ["c"]))
    assert radi.write(str(tmp_path / "new")).obs_subject_ids == ["a", "b"]


def test_only_stores_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.dcm").touch()
    with pytest.raises(ConfigError, match="by hand"):
        delete_tiledb_uri(str(tmp_path / "scans"))
    assert (tmp_path / "scans" / "a.dcm").exists()


def test_a_store_has_a_volume(tmp_path: Path) -> None:
    from voxtier.volumes.compat.streaming import RadiObjectWriter

    with pytest.raises(ConfigError, match="no volume"), RadiObjectWriter(str(tmp_path / "r")) as writer:
        writer.write_obs_meta(pd.DataFrame({"obs_subject_id": ["a"]}))
    with pytest.raises(ConfigError):
        RadiObject.from_niftis(str(tmp_path / "r"), niftis=[])


def test_counters_of_the_cache_are_counted(radi: RadiObject) -> None:
    volume = radi.T1gd.iloc[0]
    for hits in (False, True):
        with TileDBStats() as stats:
            volume.axial(3)
        found = stats.cache_stats()
        assert (found.cache_hits > 0, found.cache_misses > 0) == (hits, not hits)


def test_time_points_belong_to_the_shape_that_is_compared(tmp_path: Path) -> None:
    images: list[tuple[Path, str]] = []
    for count in (2, 3):
        voxels: NDArray[Any] = np.zeros((3, 4, 5, count), np.int16)
        images.append((tmp_path / f"s{count}_bold.nii", f"s{count}"))
        nib.save(nib.Nifti1Image(voxels, GRID), images[-1][0])
    with pytest.raises(ConfigError, match="differ in shape"):
        VolumeCollection.from_niftis(str(tmp_path / "c"), images)
    mixed = VolumeCollection.from_niftis(str(tmp_path / "c"), images, validate_dimensions=False)
    assert (mixed.shape, mixed.is_uniform) == ((3, 4, 5), True)
