"""Samplers and items: coverage, foreground, padding, alignment, MONAI and TorchIO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from volumes.support.images import code_of, nifti, pairs
from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import ClassSampler, LesionSampler, RadiObject, Volume, batches
from voxtier.volumes.training.datasets import (
    DatasetConfig,
    GridPatchDataset,
    LoadingMode,
    SegmentationDataset,
    VolumeCollectionDataset,
)
from voxtier.volumes.training.epochs import generator
from voxtier.volumes.training.nnunet.sampling import RegionSampler
from voxtier.volumes.training.sampling import ForegroundSampler, GridAggregator, WeightedSampler, grid_starts


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((20, 17, 9), (8, 8, 8), None), ((20, 17, 9), (8, 8, 8), (4, 5, 8)), ((3, 3, 3), (8, 8, 8), None)],
)
def test_a_grid_covers_every_voxel_and_goes_back(
    tmp_path: Path,
    shape: tuple[int, int, int],
    size: tuple[int, int, int],
    stride: tuple[int, int, int] | None,
) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volume = Volume.from_numpy(tmp_path / "v", data)
    dataset = GridPatchDataset(volume, size, stride)
    whole = GridAggregator(shape, channels=1)
    for item in dataset:
        whole.add(item["image"], item["patch_start"])
    assert np.allclose(whole.result()[0], data)
    with pytest.raises(ConfigError):
        grid_starts(shape, size, (9, 9, 9))
    with pytest.raises(ConfigError, match="covered by no patch"):
        GridAggregator(shape).result()


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(1, (4, 4, 4)), (3, (1, 4, 4, 4)), (3, (4, 4, 4)), (0, (1, 4, 4, 4)), (1, (1, 1, 4, 4, 4)), (0, (4, 4))],
)
def test_a_patch_with_other_channels_than_the_volume_is_refused(
    channels: int, shape: tuple[int, ...]
) -> None:
    whole = GridAggregator((4, 4, 4), channels)
    with pytest.raises(ConfigError, match=r"a patch of this volume is \(.*x, y, z\), got the shape"):
        whole.add(np.ones(shape), (0, 0, 0))
    whole.add(np.full((*[channels] * bool(channels), 4, 4, 4), 2.0), (0, 0, 0))
    assert (whole.result() == 2).all()


def make_segmented(
    tmp_path: Path, shape: tuple[int, ...] = (40, 36, 30), affine: Any = None
) -> tuple[RadiObject, NDArray[np.uint16]]:
    mask_file = tmp_path / "m.nii"
    import nibabel as nib

    mask = np.zeros(shape, np.uint16)
    mask[30:33, 2:4, 20:22] = 2
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 2, 3, 1]) if affine is None else affine), mask_file)
    image = nifti(tmp_path / "i.nii", "a", shape=shape)
    return RadiObject.from_niftis(
        tmp_path / "r", images={"CT": [(image, "a")], "seg": [(mask_file, "a")]}
    ), mask


def test_foreground_patches_hold_foreground_in_equal_shares(tmp_path: Path) -> None:
    radi, mask = make_segmented(tmp_path)
    config = DatasetConfig(LoadingMode.PATCH, (8, 8, 8), 60, ForegroundSampler(p_pos=1.0, label=2))
    items = list(SegmentationDataset(radi.CT, radi.seg, config))
    assert all((item["mask"] == 2).any() for item in items)
    assert len({tuple(item["patch_start"]) for item in items}) > 5
    for item in items[:5]:
        box = tuple(slice(int(s), int(s) + 8) for s in item["patch_start"])
        assert np.array_equal(item["mask"][0], mask[box])
        assert item["image"].shape == (1, 8, 8, 8)
        assert item["image"].flags.c_contiguous
        assert item["image"].flags.writeable
        assert item["affine"][:3, 3].tolist() == [b.start * s for b, s in zip(box, (1, 2, 3), strict=True)]


def test_a_weighted_draw_hits_its_voxel_and_small_volumes_are_padded(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.ones((5, 6, 7), np.int16))
    weights = np.zeros((5, 6, 7))
    weights[4, 5, 6] = 1
    assert WeightedSampler(weights).start(volume, None, (1, 1, 1), generator(0, 0, 0)) == (4, 5, 6)
    collection = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])}).T1w
    item = VolumeCollectionDataset(collection, DatasetConfig(LoadingMode.PATCH, (9, 6, 7), fill=-5))[0]
    assert item["patch_start"].tolist() == [-2, 0, 0]
    assert (item["image"][0, :2] == -5).all()
    assert (item["image"][0, 2:7] == item["image"][0, 2, 0, 0]).all()


def test_a_mask_beside_its_image_is_refused_at_construction(tmp_path: Path) -> None:
    radi, _ = make_segmented(
        tmp_path, affine=np.array([[1.0, 0, 0, 5], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    )
    with pytest.raises(FormatError, match="5 mm beside"):
        SegmentationDataset(radi.CT, radi.seg)


def test_slices_labels_and_channels_are_matched_by_subject(tmp_path: Path) -> None:
    images = {name: pairs(tmp_path / name, ["b", "a"], name) for name in ("T1w", "T2w")}
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    dataset = VolumeCollectionDataset(
        [radi.T1w, radi.T2w.iloc[::-1]], DatasetConfig("slice_2d"), labels={"a_T1w": 1, "b_T1w": 0}
    )
    assert len(dataset) == 14
    assert dataset[13]["image"].shape == (2, 5, 6)
    assert (dataset[13]["label"], dataset[0]["label"]) == (0, 1)
    assert dataset[0]["image"][1, 0, 0] == radi.get_volume("a_T2w")[0, 0, 0]
    with pytest.raises(ConfigError, match="no label for b_T1w"):
        VolumeCollectionDataset(radi.T1w, labels={"a_T1w": 1})
    radi.T1w.obs.add_column("grade", np.int32, [1, None])
    radi = RadiObject(radi.uri)
    table = {"obs_id": ["a_T1w", "b_T1w"], "grade": [1, None]}
    numpy_table, nan = {**table, "grade": np.array([1, np.nan])}, {"a_T1w": 1, "b_T1w": np.nan}
    for labels in ("grade", table, numpy_table, {"a_T1w": 1, "b_T1w": None}, {"a_T1w": 1}.get, nan, nan.get):
        with pytest.raises(ConfigError, match="no label for b_T1w"):
            VolumeCollectionDataset(radi.T1w, labels=labels)
    with pytest.raises(ConfigError, match="two labels for a_T1w"):
        VolumeCollectionDataset(radi.T1w, labels={"obs_id": ["a_T1w", "b_T1w", "a_T1w"], "grade": [0, 1, 1]})
    assert VolumeCollectionDataset(radi.T1w.filter("grade > 0"), labels="grade")[0]["label"] == 1
    with pytest.raises(ConfigError, match="lacks the subjects"):
        VolumeCollectionDataset([radi.T1w, radi.T2w.iloc[:1]])


def test_a_mask_is_matched_by_session_and_by_run_where_one_subject_has_several(tmp_path: Path) -> None:
    names = ("sub-a_ses-1_run-1", "sub-a_ses-1_run-2", "sub-a_ses-2", "sub-b", "sub-c_ses-1")
    for name in names:
        for series in ("T1w", "seg"):
            nifti(tmp_path / f"{name}_{series}.nii", name, series)
    radi = RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)
    for item in SegmentationDataset(radi.T1w, radi.seg.iloc[::-1]):
        name = item["obs_id"].removesuffix("_T1w")
        assert (item["image"][0, 0, 0, 0], item["mask"][0, 0, 0, 0]) == (
            code_of(name, "T1w"),
            code_of(name, "seg"),
        )
    later = radi.seg.filter("session == '2'")
    with pytest.raises(ConfigError, match=r"lacks the subjects sub-a \(session 1\)"):
        SegmentationDataset(radi.T1w.iloc[:1], later)
    other = RadiObject.from_niftis(tmp_path / "q", images={"CT": pairs(tmp_path / "in", ["sub-a"])})
    with pytest.raises(ConfigError, match="several volumes of 'sub-a'"):
        SegmentationDataset(other.CT, radi.seg)


@pytest.mark.parametrize(
    ("masks", "wanted"),
    [
        (["run-1"], None),
        (["run-1", "run-3"], None),
        (["run-1", "run-2"], ["run-1", "run-2"]),
        (["run-01", "run-02"], ["run-01", "run-02"]),
        (["acq-x"], ["acq-x", "acq-x"]),
        (["acq-x", "run-2"], ["acq-x", "run-2"]),
    ],
)
def test_a_mask_of_a_run_serves_that_run_and_one_of_no_run_serves_all(
    tmp_path: Path, masks: list[str], wanted: list[str] | None
) -> None:
    for run in ("run-1", "run-2"):
        nifti(tmp_path / f"sub-a_{run}_T1w.nii", run, "T1w")
    for name in masks:
        nifti(tmp_path / f"sub-a_{name}_seg.nii", name, "seg")
    radi = RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)
    if wanted is not None:
        dataset = SegmentationDataset(radi.T1w, radi.seg)
        found = {item["obs_id"]: item["mask"][0, 0, 0, 0] for item in dataset}
        assert found == {f"sub-a_run-{run}_T1w": code_of(name, "seg") for run, name in enumerate(wanted, 1)}
        return
    with pytest.raises(ConfigError, match=r"no volume of 'sub-a' of run 2, only of run \d: select .* drop"):
        SegmentationDataset(radi.T1w, radi.seg)
    assert len(SegmentationDataset(radi.T1w.filter("run == '1'"), radi.seg)) == 1
    radi.seg.obs.drop_column("run")
    if len(masks) == 1:
        radi = RadiObject(radi.uri)
        assert len(SegmentationDataset(radi.T1w, radi.seg)) == 2


@pytest.mark.filterwarnings("ignore")
def test_monai_and_torchio_get_the_voxels_and_the_affine_of_the_patch(tmp_path: Path) -> None:
    monai = pytest.importorskip("monai.transforms")
    from voxtier.volumes.training.loaders import ToMetaTensor, as_torchio_subject

    radi, _ = make_segmented(tmp_path)
    transform = monai.Compose([ToMetaTensor(), monai.RandFlipd(("image", "mask"), prob=1.0, spatial_axis=0)])
    item = SegmentationDataset(radi.CT, radi.seg, DatasetConfig("patch", (8, 8, 8)), transform)[0]
    plain = SegmentationDataset(radi.CT, radi.seg, DatasetConfig("patch", (8, 8, 8)))[0]
    assert np.allclose(np.asarray(item["image"])[:, ::-1], plain["image"])
    meta = ToMetaTensor()(dict(plain))["image"]
    assert np.allclose(np.asarray(meta.affine), plain["affine"])
    pytest.importorskip("torchio")
    subject = as_torchio_subject(plain)
    assert subject.image.spatial_shape == (8, 8, 8)
    assert np.allclose(subject.mask.affine, plain["affine"])


def test_classes_are_counted_at_ingest_and_counted_again_after_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtier.volumes.store import foreground

    rng = np.random.default_rng(0)
    truth = (rng.random((37, 20, 50)) < 0.1).astype(np.uint8) * rng.integers(
        1, 5, (37, 20, 50), dtype=np.uint8
    )
    import nibabel as nib

    nib.save(nib.Nifti1Image(truth, np.eye(4)), tmp_path / "m.nii")
    radi = RadiObject.from_niftis(tmp_path / "r", images={"seg": [(tmp_path / "m.nii", "a")]})
    mask = radi.seg.iloc[0]

    def naive(label: int | None) -> NDArray[np.int64]:
        inside = truth != 0 if label is None else truth == label
        places = np.argwhere(inside) // foreground.BLOCK
        counts = np.zeros((3, 2, 4), np.int64)
        np.add.at(counts, tuple(places.T), 1)
        return counts

    reads = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, *key, **kw: reads.append(key) or read(self, *key, **kw))
    for label in (None, 1, 4, 7):
        assert np.array_equal(ForegroundSampler(1.0, label)._block_counts(mask), naive(label))
    assert reads == []
    truth[3:9, 3:9, 3:9] = 4
    mask.update((3, 3, 3), truth[3:9, 3:9, 3:9])
    for label in (None, 1, 4, 0):
        assert np.array_equal(ForegroundSampler(1.0, label)._block_counts(mask), naive(label))
    assert reads


@pytest.mark.parametrize("spoilt", ["", "{}", '{"of": 1, "labels": [1], "counts": "AAAA"}', "[]", "\x00"])
def test_damaged_foreground_counts_are_ignored(tmp_path: Path, spoilt: Any) -> None:
    from voxtier.volumes.store import foreground
    from voxtier.volumes.tiledb.session import Session

    volume = Volume.from_numpy(tmp_path / "v", np.ones((5, 6, 7), np.uint8))
    meta = {foreground.COUNTS_KEY: spoilt}
    assert foreground.read_counts(volume.uri, meta, volume.shape, None, Session.of(None)) is None


def test_images_that_are_no_segmentations_are_not_counted(tmp_path: Path) -> None:
    from voxtier.volumes.store import foreground

    rng, shape = np.random.default_rng(0), (33, 33, 33)
    others = [rng.integers(0, 200, shape).astype(np.int16), rng.normal(size=shape), -np.ones(shape, np.int8)]
    others += [np.full(shape, 300, np.int16), np.zeros(shape, np.uint8), np.ones((33, 33, 33, 2), np.uint8)]
    for image in [*others, np.ones((4, 4, 4), np.uint8)]:
        assert foreground._labels(image) == []
    labels = np.zeros(shape, np.int16)
    labels[3, 4, 5:7] = 2, 255
    assert foreground._labels(labels) == [2, 255]


def save_scaled(path: Path, stored: NDArray[Any], inter: float) -> Path:
    """Write these stored numbers under a header with slope 1 and this intercept."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(stored, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([1, inter], "<f4").tobytes()
    path.write_bytes(content)
    return path


def scaled_cohort(folder: Path, labels: NDArray[Any], stored: str, inter: float | None = None) -> RadiObject:
    """Store an image, and its mask in a type that makes nibabel (or ``inter``) state a scaling."""
    import nibabel as nib

    image, mask = folder / "p_CT.nii", folder / "p_seg.nii"
    if inter is None:
        scaled = nib.Nifti1Image(labels.astype(np.float64), np.eye(4))
        scaled.set_data_dtype(stored)
        nib.save(scaled, mask)
    else:
        save_scaled(mask, (labels - inter).astype(stored), inter)
    nib.save(nib.Nifti1Image(labels.astype(np.float32), np.eye(4)), image)
    return RadiObject.from_niftis(folder / "r", [image, mask])


@pytest.mark.parametrize("dtype", ["float32", None])
def test_air_outside_a_ct_is_the_same_however_it_is_read(tmp_path: Path, dtype: str | None) -> None:
    """No voxel of this CT is stored as 0, which is what lies outside of it: -1024."""
    pytest.importorskip("torch")
    stores = {}
    for name, shape in (("3-D", (6, 6, 6)), ("4-D", (6, 6, 6, 2))):
        path = save_scaled(tmp_path / f"{name}_CT.nii", np.full(shape, 1074, np.uint16), -1024)
        stores[name] = RadiObject.from_niftis(tmp_path / name, [path]).CT
    volume = stores["3-D"].iloc[0]
    for step in ("as ingested", "updated", "consolidated"):
        if step == "updated":
            volume.update((2, 2, 2), np.full((1, 1, 1), 1074, np.uint16))
        elif step == "consolidated":
            volume.consolidate()
        found: dict[str, Any] = {"grid": GridPatchDataset(volume, 8, dtype=dtype)[0]["image"]}
        for name, collection in stores.items():
            data = VolumeCollectionDataset(collection, DatasetConfig("patch", 8, 2, dtype=dtype))
            found[f"dataset {name}"] = data[0]["image"]
            found[f"batch {name}"] = next(iter(batches(data, 1)))["image"].numpy()
        for way, image in found.items():
            assert np.unique(image).tolist() == [-1024, 50], (step, way)
            assert image.dtype == (dtype or np.int16), (step, way)


def test_a_fill_that_whole_numbers_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = save_scaled(tmp_path / "a_CT.nii", np.full((6, 6, 6), 1074, np.uint16), -1024)
    collection = RadiObject.from_niftis(tmp_path / "r", [path]).CT
    volume = collection.iloc[0]
    data = VolumeCollectionDataset(collection, DatasetConfig("patch", 8, 2, fill=60_000, dtype=None))
    assert data[0]["image"].max() == 58_976
    with pytest.raises(ConfigError, match="fill=60000 is 58976 after the scaling"):
        next(iter(batches(data, 1)))
    with pytest.raises(ConfigError, match="int16 cannot hold"):
        volume.read_patches_into([[-1, 0, 0]], np.zeros((1, 2, 2, 2), np.int16), fill=60_000)
    with pytest.raises(ConfigError, match="no number that cells of uint16 hold"):
        volume.read_patches([[-1, 0, 0]], (2, 2, 2), fill=-1)
    numbers = np.zeros((1, 2, 1, 1), np.float32)
    volume.read_patches_into([[-1, 0, 0]], numbers, fill=60_000)
    assert numbers.ravel().tolist() == [58_976, 50]


@pytest.mark.parametrize(
    ("most", "stored", "inter"),
    [
        (1, "u1", None),
        (7, "u1", None),
        (2, "i2", None),
        (1, "i4", None),
        (7, "i4", None),
        (2, "i1", 64),
        (7, "u2", -9),
    ],
)
def test_samplers_find_the_classes_of_a_mask_that_is_scaled(
    tmp_path: Path, most: int, stored: str, inter: float | None
) -> None:
    """The image holds the classes as they were before nibabel chose a slope for the mask."""
    pytest.importorskip("torch")
    labels = np.zeros((48, 40, 36))
    labels[40:44, 30:34, 30:33], labels[4:6, 4, 4] = most, 1
    radi = scaled_cohort(tmp_path, labels, stored, inter)
    for sampler, wanted in (
        (ForegroundSampler(1.0), {1, most}),
        (ForegroundSampler(1.0, most), {most}),
        (ClassSampler({1: 1.0, most: 1.0}), {1, most}),
        (LesionSampler(1.0), {1, most}),
        (LesionSampler(1.0, 1), {1}),
        (RegionSampler(1.0, [(most,)]), {most}),
    ):
        config = DatasetConfig("patch", 1, 60, sampler)
        data = SegmentationDataset(radi.CT, radi.seg, config)
        starts = [tuple(item["patch_start"]) for item in data]
        assert {labels[start] for start in starts} == wanted, sampler
        for layout in ("contiguous", "view"):
            found = [
                tuple(row)
                for batch in batches(data, 7, layout=layout)
                for row in batch["patch_start"].tolist()
            ]
            assert sorted(found) == sorted(starts), sampler


def test_a_probability_map_has_foreground_everywhere_and_its_class_where_it_is_whole(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20))
    labels[3:9, 3, 3] = 0.3, 0.5, 0.6, 0.99, 1, 0.01
    radi = scaled_cohort(tmp_path, labels, "u1")
    for label, wanted in ((None, set(range(3, 9))), (1, {7})):
        config = DatasetConfig("patch", 1, 60, ForegroundSampler(1.0, label))
        starts = {tuple(item["patch_start"]) for item in SegmentationDataset(radi.CT, radi.seg, config)}
        assert starts == {(x, 3, 3) for x in wanted}


def test_a_mask_that_is_written_to_is_counted_again_in_the_same_process(tmp_path: Path) -> None:
    mask = Volume.from_numpy(tmp_path / "v", np.zeros((40, 20, 20), np.uint8))
    mask.update((1, 1, 1), np.ones((2, 2, 2), np.uint8))
    samplers = [ForegroundSampler(1.0), ClassSampler({1: 1.0}), LesionSampler(1.0)]

    def drawn() -> list[Any]:
        return [s.start(mask, mask, (1, 1, 1), generator(0, 0, n)) for s in samplers for n in range(20)]

    assert all(max(start) < 3 for start in drawn())
    Volume(mask.uri).update((1, 1, 1), np.zeros((2, 2, 2), np.uint8))
    mask.update((35, 9, 9), np.ones((1, 1, 1), np.uint8))
    assert set(drawn()) == {(35, 9, 9)}
    mask.consolidate()
    assert set(drawn()) == {(35, 9, 9)}


def test_a_mask_of_one_point_in_time_is_sampled_and_one_of_several_refused(tmp_path: Path) -> None:
    import nibabel as nib

    labels = np.zeros((40, 30, 20, 1), np.uint8)
    labels[33:36, 20, 7] = 1
    images: dict[str, list[tuple[Path, str]]] = {
        "CT": [(nifti(tmp_path / "i.nii", "a", shape=(40, 30, 20)), "a")]
    }
    for name, times in (("seg", 1), ("film", 3)):
        nib.save(nib.Nifti1Image(labels.repeat(times, 3), np.diag([1.0, 2, 3, 1])), tmp_path / f"{name}.nii")
        images[name] = [(tmp_path / f"{name}.nii", "a")]
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    samplers = (
        ForegroundSampler(1.0),
        ClassSampler({1: 1.0}),
        LesionSampler(1.0),
        RegionSampler(1.0, [(1,)]),
    )
    for sampler in samplers:
        config = DatasetConfig("patch", 3, 20, sampler)
        items = list(SegmentationDataset(radi.CT, radi.seg, config))
        assert all(item["mask"].any() for item in items)
        with pytest.raises(ConfigError, match="3 points in time"):
            SegmentationDataset(radi.CT, radi.film, config)
    film = SegmentationDataset(radi.CT, radi.film, DatasetConfig("patch", 3, 2))
    assert film[0]["mask"].shape == (1, 3, 3, 3, 3)


@pytest.mark.parametrize("dtype", ["float32", None])
def test_a_grid_of_a_4d_volume_gives_all_points_in_time(tmp_path: Path, dtype: str | None) -> None:
    data = np.random.default_rng(0).integers(0, 900, (9, 8, 5, 3)).astype(np.int16)
    volume = Volume.from_numpy(tmp_path / "v", data)
    whole = np.zeros(data.shape)
    for item in GridPatchDataset(volume, (4, 8, 6), dtype=dtype, fill=-3):
        x, y, z = item["patch_start"]
        assert item["image"].shape == (1, 4, 8, 6, 3)
        assert (item["image"][0, :, :, 5:] == -3).all()
        assert item["location"].tolist() == [x, y, z, x + 4, y + 8, z + 6]
        whole[x : x + 4, y : y + 8, z : z + 5] = item["image"][0, :, :, :5]
    assert np.array_equal(whole, data)


def test_weights_below_zero_are_refused() -> None:
    weights = np.ones((3, 3, 3))
    weights[1, 1, 1] = -0.5
    with pytest.raises(ConfigError, match=r"0 or more, got -0.5"):
        WeightedSampler(weights)


@pytest.mark.filterwarnings("ignore")
def test_torchio_puts_our_patches_back_into_the_volume(tmp_path: Path) -> None:
    torchio, torch = pytest.importorskip("torchio"), pytest.importorskip("torch")
    data = np.random.default_rng(0).normal(size=(24, 20, 16)).astype(np.float32)
    volume = Volume.from_numpy(tmp_path / "v", data)
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=torch.from_numpy(data[None])))
    aggregator = torchio.GridAggregator(torchio.GridSampler(subject, (8, 10, 8), 4), overlap_mode="average")
    for item in GridPatchDataset(volume, (8, 10, 8), (4, 6, 4)):
        aggregator.add_batch(torch.from_numpy(item["image"][None]), torch.from_numpy(item["location"][None]))
    assert np.allclose(aggregator.get_output_tensor()[0].numpy(), data, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_foreground_shares_are_those_of_monai(tmp_path: Path) -> None:
    """The centre of a patch is foreground as often as with RandCropByPosNegLabeld at the same ratio."""
    transforms = pytest.importorskip("monai.transforms")
    import nibabel as nib

    mask = np.zeros((40, 36, 30), np.uint8)
    mask[10:20, 12:20, 10:16] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 2, 3, 1])), tmp_path / "m.nii")
    image = nifti(tmp_path / "i.nii", "a", shape=mask.shape)
    images = {"CT": [(image, "a")], "seg": [(tmp_path / "m.nii", "a")]}
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    count = 400
    config = DatasetConfig(LoadingMode.PATCH, (9, 9, 9), count, ForegroundSampler(p_pos=0.75))
    ours = np.mean([item["mask"][0, 4, 4, 4] > 0 for item in SegmentationDataset(radi.CT, radi.seg, config)])
    crop = transforms.RandCropByPosNegLabeld(("mask",), "mask", (9, 9, 9), pos=3, neg=1, num_samples=count)
    crop.set_random_state(0)
    theirs = np.mean([np.asarray(item["mask"])[0, 4, 4, 4] > 0 for item in crop({"mask": mask[None]})])
    assert abs(ours - theirs) < 0.1
    assert abs(ours - 0.75) < 0.1


@pytest.mark.parametrize(
    ("of_images", "of_masks"),
    [
        ((np.float64, [1.0, None]), (np.int64, [1, None])),
        ((np.float32, [1.0, 2.0]), (np.uint8, [1, 2])),
        ((np.int64, [1, 2]), (str, ["01", "2"])),
        ((np.float64, [1.0, None]), (str, ["1", None])),
    ],
)
def test_a_run_is_a_number_however_it_is_written(
    tmp_path: Path, of_images: tuple[Any, list[Any]], of_masks: tuple[Any, list[Any]]
) -> None:
    """A table makes floats of runs where one is missing."""
    images = {name: pairs(tmp_path / name, "ab") for name in ("CT", "seg")}
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    radi.CT.obs.add_column("run", *of_images)
    radi.seg.obs.add_column("run", *of_masks)
    radi = RadiObject(radi.uri)
    assert len(SegmentationDataset(radi.CT, radi.seg)) == 2
