"""The examples of the origin's README and of its guides, with the import lines changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from volumes.compat.conftest import GRID, SHAPE, SUBJECTS, voxels_of
from volumes.support.images import series
from volumes.support.in_workers import mean_in_process
from voxtier.volumes.compat import (
    CacheStats,
    CompressionConfig,
    Compressor,
    EagerQuery,
    LazyQuery,
    OrientationConfig,
    RadiObject,
    ReadConfig,
    S3Config,
    S3Stats,
    SliceOrientation,
    TileConfig,
    TileDBStats,
    ViewError,
    Volume,
    VolumeCollection,
    WriteConfig,
    align,
    configure,
    delete_tiledb_uri,
    get_radiobject_config,
    get_tiledb_config,
    get_tiledb_ctx,
    reset_radiobject_config,
    uri_exists,
)
from voxtier.volumes.compat.parallel import ctx_for_threads, map_on_threads
from voxtier.volumes.compat.streaming import RadiObjectWriter, StreamingWriter
from voxtier.volumes.compat.writers import VolumeCollectionWriter

SORTED = sorted(SUBJECTS)


@pytest.fixture(scope="module")
def radi(brats_uri: str) -> RadiObject:
    return RadiObject(brats_uri)


def test_readme_quick_start(lung_dir: Path, tmp_path: Path) -> None:
    configure(
        write=WriteConfig(
            tile=TileConfig(orientation=SliceOrientation.AXIAL),
            compression=CompressionConfig(algorithm=Compressor.ZSTD, level=3),
        )
    )
    subjects = [f"lung_{n:03d}" for n in range(4)]
    metadata_df = pd.DataFrame({"obs_subject_id": subjects, "age": [30, 41, 52, 63]})
    radi = RadiObject.from_niftis(
        uri=str(tmp_path / "my-dataset"),
        images={"CT": f"{lung_dir}/imagesTr/*.nii.gz", "seg": f"{lung_dir}/labelsTr"},
        validate_alignment=True,
        obs_meta=metadata_df,
    )
    vol = radi.CT.iloc[0]
    assert vol[10:20, :, :].shape == (10, *SHAPE[1:])
    assert len(radi.filter("age > 40")) == 3
    subset = radi.head(10)
    subset.materialize(str(tmp_path / "subset"))
    assert RadiObject(str(tmp_path / "subset")).collection_names == ("CT", "seg")


def test_configuration_reference() -> None:
    configure(
        write=WriteConfig(
            tile=TileConfig(orientation=SliceOrientation.ISOTROPIC), compression=CompressionConfig(level=5)
        )
    )
    configure(read=ReadConfig(memory_budget_mb=2048, concurrency=8))
    configure(s3=S3Config(max_parallel_ops=16, multipart_part_size_mb=100), compression=None)
    configure(write=WriteConfig(orientation=OrientationConfig(reorient_on_load=True, auto_detect=True)))
    config = get_radiobject_config()
    assert config.write.orientation.reorient_on_load
    assert (config.read.memory_budget_mb, config.s3.max_parallel_ops, config.io.concurrency) == (2048, 16, 8)
    assert config.write.compression.as_filter().level == 3
    assert CompressionConfig(algorithm=Compressor.NONE).as_filter() is None
    assert get_tiledb_config()["sm.compute_concurrency_level"] == "8"
    assert get_tiledb_ctx().config()["vfs.s3.multipart_part_size"] == str(100 << 20)
    assert config.to_tiledb_config()["vfs.s3.region"] == "us-east-1"
    assert config.s3.region == "us-east-1"
    reset_radiobject_config()
    assert get_radiobject_config().read.concurrency == 4


def test_access_data_editing_metadata(brats_uri: str, tmp_path: Path) -> None:
    radi = RadiObject(brats_uri).write(str(tmp_path / "copy"))
    radi.obs_meta.add_column("reviewed", np.bool_, fill=False)
    annotations = pd.DataFrame({"obs_subject_id": [SORTED[1]], "obs_id": [SORTED[1]], "reviewed": [True]})
    radi.obs_meta.update(annotations)
    assert radi.obs_meta.read()["reviewed"].tolist() == [False, True, False, False, False]
    radi.obs_meta.drop_column("dataset")
    assert "dataset" not in RadiObject(str(tmp_path / "copy")).obs_meta.columns
    radi.T1w.obs.add_column("quality", np.float32, fill=0.5)
    assert set(radi.T1w.obs.read(columns=["quality"])["quality"]) == {np.float32(0.5)}
    assert radi.T1w.obs.index_columns == ("obs_subject_id", "obs_id")
    assert radi.T1w.obs.dtypes["quality"] == np.float32
    with pytest.raises(ViewError):
        radi.head(2).T1w.obs.drop_column("quality")


def test_access_data_joining_and_counting(radi: RadiObject) -> None:
    merged = radi.T1w.obs.read().merge(radi.obs_meta.read(), on="obs_subject_id", how="left")
    assert merged["age"].tolist() == radi.obs_meta.read()["age"].tolist()
    assert radi.obs_meta.read()["tumor_grade"].value_counts().to_dict() == {"HGG": 3, "LGG": 2}
    assert radi.get_obs_row_by_obs_subject_id(SORTED[0])["age"].tolist() == [41]
    assert radi.T1w.to_obs()["obs_id"].tolist() == radi.T1w.obs_ids


def test_access_data_selection_and_alignment(radi: RadiObject) -> None:
    vol = radi.T1w.sel(subject="BRATS_001")
    assert isinstance(vol, Volume)
    assert np.array_equal(vol.to_numpy(), voxels_of("BRATS_001", "T1w"))
    assert len(radi.T1w.sel(subject=["BRATS_001", "BRATS_002"])) == 2
    assert radi.sel(subject="BRATS_001").is_view
    with pytest.raises(KeyError):
        radi.T1w.sel(subject="nobody")
    assert radi.T1w.subjects.is_aligned(radi.T2w.subjects)
    part = radi.T1w.head(2)
    assert (radi.T1w.subjects & part.subjects).to_list() == SORTED[:2]
    assert (radi.T1w.subjects - part.subjects).to_list() == SORTED[2:]
    assert align(radi.T1w.subjects, part.subjects, radi.index).to_list() == SORTED[:2]
    for subject_id, vols in radi.T1w.groupby_subject():
        assert [np.array_equal(v.to_numpy(), voxels_of(subject_id, "T1w")) for v in vols] == [True]


def normalize(volume: np.ndarray, obs: pd.Series) -> np.ndarray:
    assert isinstance(obs, pd.Series)
    return (volume - volume.mean()) / volume.std()


def compute_stats(volume: np.ndarray, obs: pd.Series) -> tuple[np.ndarray, dict[str, Any]]:
    spacing = tuple(float(s) for s in obs["voxel_spacing"].strip("()").split(","))
    return volume, {"mean_intensity": float(volume.mean()), "slice_mm": spacing[2]}


def test_pipelines_eager(radi: RadiObject, tmp_path: Path) -> None:
    results = radi.T1w.map(normalize).map(lambda v, obs: v[2:-2])
    assert isinstance(results, EagerQuery)
    assert [(v.shape, obs["obs_id"]) for v, obs in results.to_list()] == [
        ((20, *SHAPE[1:]), f"{s}_T1w") for s in SORTED
    ]
    written = radi.T1w.map(compute_stats).map(normalize).write(str(tmp_path / "norm"))
    assert isinstance(written, VolumeCollection)
    frame = written.obs.read()
    assert np.allclose(frame["mean_intensity"], [voxels_of(s, "T1w").mean() for s in SORTED])
    assert set(frame["slice_mm"]) == {2.0}
    assert np.allclose(written.iloc[3].to_numpy().std(), 1, atol=1e-5)
    stats = radi.T1w.map(lambda v, obs: {"mean": v.mean()}).to_list()
    means = [voxels_of(s, "T1w").mean() for s in SORTED]
    assert np.allclose([value["mean"] for value, _ in stats], means)
    batches = radi.T1w.map_batches(lambda batch: [v * 2 for v, obs in batch], batch_size=2)
    assert np.array_equal(batches.to_numpy_stack()[4], voxels_of(SORTED[4], "T1w") * 2)
    assert list(batches.to_dataframe(["obs_id"]).columns) == ["obs_id"]
    # of the release, whose transforms take the voxels alone and whose map() is written by materialize()
    doubled = radi.T1w.map(lambda v: v * 2).materialize(str(tmp_path / "doubled"), name="T1w")
    assert np.array_equal(doubled.iloc[0].to_numpy(), voxels_of(SORTED[0], "T1w") * 2)


def test_pipelines_lazy(radi: RadiObject, tmp_path: Path) -> None:
    query = radi.T1w.lazy().filter("voxel_spacing == '(1.0, 1.5, 2.0)'").head(3).map(normalize)
    assert isinstance(query, LazyQuery)
    written = query.write(str(tmp_path / "output"), name="T1n")
    assert (written.name, written.obs_ids) == ("T1n", [f"{s}_T1w" for s in SORTED[:3]])
    assert [vol.obs_id for vol in query.iter_volumes()] == written.obs_ids
    assert query.to_numpy_stack().shape == (3, *SHAPE)
    assert query.to_obs()["obs_id"].tolist() == written.obs_ids
    beside = written.lazy().map(normalize).write()
    assert beside.uri == f"{tmp_path}/output_normalize"
    assert written.write().uri == f"{tmp_path}/output_written"
    assert written.write(name="again").name == "again"


def test_pipelines_end_to_end(radi: RadiObject, tmp_path: Path) -> None:
    uri = str(tmp_path / "study_2mm")
    for name in ("FLAIR", "T1w"):
        radi.collection(name).lazy().map(lambda v, obs: v[::2]).write(f"{uri}/collections/{name}", name=name)
    parts = {name: VolumeCollection(f"{uri}/collections/{name}") for name in ("FLAIR", "T1w")}
    study = RadiObject.from_collections(uri, collections=parts)
    study.add_collection("T2w", radi.T2w.write(str(tmp_path / "t2")))
    assert RadiObject(uri).collection_names == ("FLAIR", "T1w", "T2w")
    study.validate()


def test_lazy_queries_of_a_cohort(radi: RadiObject, tmp_path: Path) -> None:
    query = (
        radi.lazy()
        .filter("age > 40")
        .filter("tumor_grade == 'HGG'")
        .select_collections(["T1w", "FLAIR"])
        .sample(100, seed=42)
        .map(lambda volume: volume + 1)
    )
    assert query.count().n_volumes == {"FLAIR": 2, "T1w": 2}
    made = query.materialize(str(tmp_path / "subset"), streaming=True)
    assert isinstance(made, RadiObject)
    assert np.allclose(made.T1w.sel(subject="BRATS_005").to_numpy(), voxels_of("BRATS_005", "T1w") + 1)


def test_streaming_writes(tmp_path: Path) -> None:
    source = {subject: voxels_of(subject, "T1w") for subject in SUBJECTS}
    for kind, name in ((StreamingWriter, "a"), (VolumeCollectionWriter, "b")):
        with kind(str(tmp_path / name), name="CT") as writer:
            for subject_id, data in source.items():
                writer.write_volume(
                    data=data,
                    obs_id=f"{subject_id}_CT",
                    obs_subject_id=subject_id,
                    voxel_spacing=(1.0, 1.0, 1.0),
                )
            writer.write_batch([(source[SORTED[0]], "extra", "sub", {"voxel_spacing": (1.0, 1.0, 1.0)})])
        found = VolumeCollection(str(tmp_path / name))
        assert np.array_equal(found.loc["BRATS_002_CT"].to_numpy(), source["BRATS_002"])
        assert len(found) == writer.n_written == 6
        assert type(writer.close()) is VolumeCollection
    with RadiObjectWriter(str(tmp_path / "large-dataset")) as writer:
        writer.write_obs_meta(pd.DataFrame({"obs_subject_id": SUBJECTS, "age": range(5)}))
        with writer.add_collection("T1w") as t1_writer:
            for subject_id, data in source.items():
                t1_writer.write_volume(data, obs_id=f"{subject_id}_T1w", obs_subject_id=subject_id)
    radi = writer.finalize()
    assert isinstance(radi, RadiObject)
    assert radi.obs_meta.read()["age"].tolist() == [SUBJECTS.index(s) for s in SORTED]


def test_append_data(radi: RadiObject, nifti_list: list[tuple[Path, str]], tmp_path: Path) -> None:
    mine = radi.head(3).write(str(tmp_path / "my-dataset"))
    new = [(path, "sub-100") for path, subject in nifti_list if subject == SUBJECTS[0]]
    new_obs_meta = pd.DataFrame({"obs_subject_id": ["sub-100"], "age": [38], "tumor_grade": ["HGG"]})
    mine.append(niftis=new, obs_meta=new_obs_meta, progress=False)
    assert (len(mine), len(mine.T1w)) == (4, 4)
    assert np.array_equal(mine.FLAIR.sel(subject="sub-100").to_numpy(), voxels_of(SUBJECTS[0], "FLAIR"))
    t1w = mine.T1w
    t1w.append(niftis=[(new[1][0], "sub-102")])
    assert (len(t1w), len(mine.T1w)) == (5, 5)


def test_ingest_data(tmp_path: Path) -> None:
    positions = [(0, 0, z) for z in range(3)]
    scans = [(series(tmp_path / "dicom" / name, positions), name) for name in ("sub-01", "sub-02")]
    radi = RadiObject.from_dicoms(uri=str(tmp_path / "d"), dicom_dirs=scans, progress=False)
    assert (radi.collection_names, radi.CT.obs_ids) == (("CT",), ["sub-01_CT", "sub-02_CT"])
    bold = np.arange(4 * 4 * 3 * 6, dtype=np.int16).reshape(4, 4, 3, 6)
    (tmp_path / "func").mkdir()
    nib.save(nib.Nifti1Image(bold, GRID), tmp_path / "func" / "sub-01_task-rest_bold.nii.gz")
    images = {"bold": f"{tmp_path}/func/*_bold.nii.gz"}
    study = RadiObject.from_niftis(uri=str(tmp_path / "fmri"), images=images)
    vol = study.bold.iloc[0]
    assert (vol.shape, vol.ndim, study.bold.shape) == ((4, 4, 3, 6), 4, (4, 4, 3))
    assert np.array_equal(vol.axial(z=1, t=2), bold[:, :, 1, 2])
    mixed = RadiObject.from_images(
        str(tmp_path / "mixed"), images={"CT": str(tmp_path / "dicom"), "bold": str(tmp_path / "func")}
    )
    assert set(mixed.collection_names) == {"CT", "bold"}
    assert uri_exists(str(tmp_path / "fmri"))
    delete_tiledb_uri(str(tmp_path / "fmri"))
    delete_tiledb_uri(str(tmp_path / "fmri"))
    assert not uri_exists(str(tmp_path / "fmri"))


def test_profiling(radi: RadiObject) -> None:
    vol = radi.T1w.iloc[0]
    with TileDBStats() as stats:
        for _ in range(5):
            data = vol[4:8, 4:8, 4:8]
    cache = stats.cache_stats()
    assert isinstance(cache, CacheStats)
    assert cache.cache_misses > 0
    assert cache.cache_hits == 4 * cache.cache_misses
    assert cache.hit_rate == pytest.approx(0.8)
    assert cache.miss_rate == pytest.approx(0.2)
    assert cache.tile_bytes_read >= data.nbytes
    assert isinstance(stats.s3_stats(), S3Stats)
    assert stats.s3_stats().parallelization_rate == 0.0
    with TileDBStats() as stats:
        VolumeCollection(radi.T1w.uri).obs.read()
    assert stats.all_counters()
    assert sum(stats.counters().values()) == sum(int(value) for value in stats.all_counters().values())
    assert stats.s3_stats().read_ops > 0
    assert stats.raw_json().startswith("{")
    with TileDBStats() as stats:
        pass
    assert (stats.all_counters(), stats.cache_stats().hit_rate) == ({}, 0.0)


def test_tuning_concurrency(radi: RadiObject) -> None:
    shared = get_tiledb_ctx()
    uris = [vol.uri for vol in radi.T1w]
    means = [voxels_of(s, "T1w").mean() for s in SORTED]
    found = map_on_threads(lambda uri: Volume(uri, ctx=ctx_for_threads(shared)).to_numpy().mean(), uris)
    assert np.allclose(found, means)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert np.allclose(list(pool.map(mean_in_process, uris)), means, rtol=1e-5)
