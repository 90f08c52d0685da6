"""Samplers and items: coverage, foreground, padding, alignment, MONAI and TorchIO."""

import numpy as np
import pytest

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import RadiObject, Volume
from voxtier.volumes.datasets import (
    DatasetConfig,
    GridPatchDataset,
    LoadingMode,
    SegmentationDataset,
    VolumeCollectionDataset,
)
from voxtier.volumes.sampling import (
    ForegroundSampler,
    GridAggregator,
    WeightedSampler,
    generator,
    grid_starts,
)

from .images import nifti, pairs


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((20, 17, 9), (8, 8, 8), None), ((20, 17, 9), (8, 8, 8), (4, 5, 8)), ((3, 3, 3), (8, 8, 8), None)],
)
def test_a_grid_covers_every_voxel_and_goes_back(tmp_path, shape, size, stride):
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


def segmented(tmp_path, shape=(40, 36, 30), affine=None):
    mask_file = tmp_path / "m.nii"
    import nibabel as nib

    mask = np.zeros(shape, np.uint16)
    mask[30:33, 2:4, 20:22] = 2
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 2, 3, 1]) if affine is None else affine), mask_file)
    image = nifti(tmp_path / "i.nii", "a", shape=shape)
    return RadiObject.from_niftis(
        tmp_path / "r", images={"CT": [(image, "a")], "seg": [(mask_file, "a")]}
    ), mask


def test_foreground_patches_hold_foreground_in_equal_shares(tmp_path):
    radi, mask = segmented(tmp_path)
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


def test_weighted_and_small_volumes(tmp_path):
    volume = Volume.from_numpy(tmp_path / "v", np.ones((5, 6, 7), np.int16))
    weights = np.zeros((5, 6, 7))
    weights[4, 5, 6] = 1
    assert WeightedSampler(weights).start(volume, None, (1, 1, 1), generator(0, 0, 0)) == (4, 5, 6)
    collection = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])}).T1w
    item = VolumeCollectionDataset(collection, DatasetConfig(LoadingMode.PATCH, (9, 6, 7), fill=-5))[0]
    assert item["patch_start"].tolist() == [-2, 0, 0]
    assert (item["image"][0, :2] == -5).all()
    assert (item["image"][0, 2:7] == item["image"][0, 2, 0, 0]).all()


def test_a_mask_beside_its_image_is_refused_at_construction(tmp_path):
    radi, _ = segmented(tmp_path, affine=np.array([[1.0, 0, 0, 5], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))
    with pytest.raises(FormatError, match="5 mm beside"):
        SegmentationDataset(radi.CT, radi.seg)


def test_slices_labels_and_channels(tmp_path):
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
    with pytest.raises(ConfigError, match="lacks the subjects"):
        VolumeCollectionDataset([radi.T1w, radi.T2w.iloc[:1]])


@pytest.mark.filterwarnings("ignore")
def test_monai_and_torchio(tmp_path):
    monai = pytest.importorskip("monai.transforms")
    from voxtier.volumes.loaders import ToMetaTensor, as_torchio_subject

    radi, _ = segmented(tmp_path)
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
