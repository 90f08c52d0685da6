"""The calls of the origin's notebooks 00 to 03 and 05, with the import lines changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from volumes.compat.conftest import GRID, MODALITIES, SHAPE, SUBJECTS, voxels_of
from voxtier.volumes.compat.ctx import (
    CompressionConfig,
    Compressor,
    S3Config,
    SliceOrientation,
    TileConfig,
    configure,
    ctx,
)
from voxtier.volumes.compat.radi_object import RadiObject
from voxtier.volumes.compat.volume import Volume
from voxtier.volumes.compat.volume_collection import VolumeCollection

SORTED = sorted(SUBJECTS)


@pytest.fixture(scope="module")
def radi(brats_uri: str) -> RadiObject:
    return RadiObject(brats_uri)


def test_00_ingest_brats(
    tmp_path: Path, nifti_list: list[tuple[Path, str]], obs_meta_df: pd.DataFrame
) -> None:
    configure(s3=S3Config(region="us-east-2"))
    configure(
        tile=TileConfig(orientation=SliceOrientation.AXIAL),
        compression=CompressionConfig(algorithm=Compressor.ZSTD, level=3),
    )
    uri = str(tmp_path / "brats")
    with pytest.raises(Exception, match="brats"):
        _ = RadiObject(uri).collection_names
    radi = RadiObject.from_niftis(uri=uri, niftis=nifti_list, obs_meta=obs_meta_df)
    assert str(radi) == f"RadiObject(5 subjects, 4 collections: [{', '.join(MODALITIES)}])"
    radi.validate()
    assert radi.obs_subject_ids == SORTED
    meta = radi.obs_meta.read()
    assert isinstance(meta, pd.DataFrame)
    assert dict(zip(meta["obs_subject_id"], meta["age"], strict=True)) == dict(
        zip(SUBJECTS, obs_meta_df["age"], strict=True)
    )
    assert RadiObject(uri).FLAIR.iloc[0].axial(z=7).shape == SHAPE[:2]


def test_01_subject_metadata(radi: RadiObject) -> None:
    assert "RadiObject(5 subjects" in radi.describe()
    columns = radi.obs_meta.read(columns=["obs_subject_id", "tumor_grade", "age"])
    assert list(columns.columns) == ["obs_subject_id", "tumor_grade", "age"]
    assert set(radi.obs_meta.read(value_filter="tumor_grade == 'HGG'")["tumor_grade"]) == {"HGG"}
    assert radi.n_collections == 4
    assert radi.FLAIR.obs_ids == radi.collection("FLAIR").obs_ids
    assert [radi.collection(name).name for name in radi] == MODALITIES  # iterates over collections


def test_01_indexing_filtering_and_views(radi: RadiObject, tmp_path: Path) -> None:
    assert radi.iloc[0].obs_subject_ids == SORTED[:1]
    assert radi.iloc[0:3].obs_subject_ids == SORTED[:3]
    assert radi.iloc[[0, 2, 4]].obs_subject_ids == SORTED[::2]
    assert radi.loc["BRATS_001"].obs_subject_ids == radi["BRATS_001"].obs_subject_ids == ["BRATS_001"]
    assert radi.loc[["BRATS_001", "BRATS_003"]].obs_subject_ids == ["BRATS_001", "BRATS_003"]
    meta = radi.obs_meta.read()
    mask = (meta["age"] > 40).values
    assert radi.iloc[mask].obs_subject_ids == [s for s in SORTED if s != "BRATS_002"]
    assert len(radi.filter("tumor_grade == 'HGG' and age > 40")) == 2
    assert radi.head(2).obs_subject_ids == SORTED[:2]
    assert radi.tail(2).obs_subject_ids == SORTED[-2:]
    assert len(radi.sample(n=3, seed=42)) == 3
    chained = radi.iloc[0:3].select_collections(["FLAIR", "T1w"])
    assert chained.collection_names == ("FLAIR", "T1w")
    view = radi.iloc[0:2]
    assert (type(view).__name__, view.is_view, view.uri) == ("RadiObject", True, None)
    assert list(view.obs_meta["obs_subject_id"]) == SORTED[:2]  # of a view, a DataFrame at once
    subset = view.select_collections(["FLAIR"]).materialize(str(tmp_path / "subset"))
    assert np.allclose(radi.FLAIR.iloc[0].axial(z=7), subset.FLAIR.iloc[0].axial(z=7))
    assert isinstance(subset.FLAIR, VolumeCollection)


def test_01_lazy_queries(radi: RadiObject, tmp_path: Path) -> None:
    filtered = radi.lazy().filter("tumor_grade == 'HGG'").select_collections(["FLAIR", "T1w"]).head(3)
    count = filtered.count()
    assert (count.n_subjects, count.n_volumes) == (3, {"FLAIR": 3, "T1w": 3})
    assert [vol.shape for vol in filtered.iter_volumes()] == [SHAPE] * 6
    batch = next(iter(filtered.iter_batches(batch_size=2)))
    assert batch.subject_ids == ("BRATS_002", "BRATS_003")
    assert {name: arr.shape for name, arr in batch.volumes.items()} == dict.fromkeys(
        ("FLAIR", "T1w"), (2, *SHAPE)
    )
    assert batch.obs_ids["T1w"] == ("BRATS_002_T1w", "BRATS_003_T1w")
    exported = filtered.materialize(str(tmp_path / "query_subset"), streaming=True)
    assert exported.obs_subject_ids == ["BRATS_002", "BRATS_003", "BRATS_005"]
    assert list(filtered.to_obs_meta()["tumor_grade"]) == ["HGG"] * 3


def test_02_volume_collections(radi: RadiObject) -> None:
    flair = radi.FLAIR
    assert (flair.shape, len(flair), flair.obs_ids) == (SHAPE, 5, [f"{s}_FLAIR" for s in SORTED])
    columns = ["obs_id", "obs_subject_id", "series_type", "dimensions", "voxel_spacing"]
    frame = flair.obs.read(columns=columns)
    assert set(frame.columns) == set(columns)
    assert set(frame["voxel_spacing"]) == {"(1.0, 1.5, 2.0)"}
    assert "voxel_spacing" in flair.obs.columns
    assert len(flair.iloc[0:3]) == 3
    assert flair[0].obs_id == flair.loc[flair.obs_ids[0]].obs_id == flair.iloc[0].obs_id
    mask = np.array([True, False, True, False, True])
    assert [v.obs_id for v in flair.iloc[mask]] == flair.obs_ids[::2]
    stats = pd.DataFrame([{"obs_id": vol.obs_id, "mean": vol.to_numpy().mean()} for vol in flair])
    assert np.allclose(stats["mean"], [voxels_of(s, "FLAIR").mean() for s in SORTED])
    for modality in MODALITIES:
        vol = radi.collection(modality).loc[f"{SORTED[0]}_{modality}"]
        assert np.array_equal(vol.axial(7).T, voxels_of(SORTED[0], modality)[:, :, 7].T)
    assert flair.index.get_index(flair.obs_ids[1]) == 1
    assert flair.index.get_key(2) == flair.obs_ids[2]
    row = flair.get_obs_row_by_obs_id(flair.obs_ids[0])
    assert (len(row), row["obs_subject_id"].iloc[0]) == (1, SORTED[0])
    assert flair.head(3).is_view
    query = flair.lazy().head(3)
    assert (query.count(), query.to_numpy_stack().shape) == (3, (3, *SHAPE))
    flair.validate()


def test_02_a_collection_of_its_own(tmp_path: Path, nifti_list: list[tuple[Path, str]]) -> None:
    flair = [(path, subject) for path, subject in nifti_list if "FLAIR" in path.name]
    collection = VolumeCollection.from_niftis(uri=str(tmp_path / "my_collection"), niftis=flair)
    assert collection.obs_ids == [f"{s}_FLAIR" for s in SORTED]


def test_03_volume(radi: RadiObject, tmp_path: Path) -> None:
    vol = radi.FLAIR.iloc[0]
    data = voxels_of(SORTED[0], "FLAIR")
    assert (vol.shape, vol.ndim, vol.dtype, vol.obs_id) == (SHAPE, 3, np.float32, f"{SORTED[0]}_FLAIR")
    info = vol.orientation_info
    assert info is not None
    assert (info.axcodes, info.is_canonical, info.source) == (("L", "P", "S"), False, "nifti_sform")
    assert np.array_equal(info.affine, GRID)
    assert np.array_equal(vol.axial(z=7), data[:, :, 7])
    assert np.array_equal(vol.sagittal(x=12), data[12])
    assert np.array_equal(vol.coronal(y=10), data[:, 10])
    roi = vol[5:15, 5:15, 3:9]
    assert np.array_equal(roi, data[5:15, 5:15, 3:9])
    assert np.array_equal(vol.slice(slice(5, 15), slice(5, 15), slice(3, 9)), roi)
    stats = vol.get_statistics(percentiles=[5, 50, 95])
    assert stats["mean"] == pytest.approx(data.mean(dtype=np.float64))
    assert stats["p95"] == pytest.approx(np.percentile(data, 95))
    counts, edges = vol.compute_histogram(bins=50, value_range=(0, 200))
    assert (len(counts), len(edges)) == (50, 51)
    for name, compression in (("scan.nii.gz", True), ("scan.nii", False)):
        vol.to_nifti(file_path=str(tmp_path / name), compression=compression)
        image = nib.load(tmp_path / name)
        assert np.array_equal(image.get_fdata(dtype=np.float32), data)
        assert np.array_equal(image.affine, GRID)
    again = Volume.from_nifti(str(tmp_path / "v"), tmp_path / "scan.nii.gz", reorient=True)
    assert again.orientation_info is not None
    assert again.orientation_info.axcodes == ("R", "A", "S")
    assert Volume.from_numpy(str(tmp_path / "n"), data).to_numpy().shape == SHAPE


def halve(volume: np.ndarray) -> np.ndarray:
    return volume[::2, ::2, ::2]


def test_05_ingest_msd(lung_dir: Path, tmp_path: Path) -> None:
    import tiledb

    raw, done = str(tmp_path / "raw"), str(tmp_path / "normalized")
    configure(tile=TileConfig(orientation=SliceOrientation.ISOTROPIC))
    radi_raw = RadiObject.from_niftis(
        uri=raw, images={"CT": lung_dir / "imagesTr", "seg": lung_dir / "labelsTr"}, validate_alignment=True
    )
    assert radi_raw.CT.shape == radi_raw.seg.shape == SHAPE
    ct_vc = radi_raw.CT.lazy().map(halve).materialize(uri=f"{done}/collections/CT")
    seg_vc = radi_raw.seg.lazy().map(halve).materialize(uri=f"{done}/collections/seg")
    before = sorted(path for path in Path(done).rglob("*.tdb"))
    radi = RadiObject.from_collections(uri=done, collections={"CT": ct_vc, "seg": seg_vc})
    assert set(before) <= set(Path(done).rglob("*.tdb"))
    assert not [p for p in set(Path(done).rglob("*.tdb")) - set(before) if "volumes" in p.parts]
    radi = RadiObject(done)
    assert (len(radi), radi.collection_names) == (4, ("CT", "seg"))
    assert radi.CT.shape == tuple(n // 2 for n in SHAPE)
    subject_id = next(iter(radi.obs_subject_ids))
    seg = radi.loc[subject_id].seg.iloc[0].to_numpy()
    ct = radi.loc[subject_id].CT.iloc[0].to_numpy()
    assert ct[seg > 0].mean() > ct[seg == 0].mean() + 500  # the mask of the same subject
    vfs = tiledb.VFS(ctx=ctx())
    assert vfs.is_dir(done)
    vfs.remove_dir(done)
    shutil.rmtree(raw)
