"""The origin's training notebook and guide: loaders, datasets, MONAI, TorchIO; the imports are changed."""

from __future__ import annotations

import operator
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

import torch
from monai.transforms import NormalizeIntensityd, RandFlipd

from volumes.compat.conftest import SHAPE, SUBJECTS, voxels_of
from voxtier.errors import ConfigError
from voxtier.volumes.compat import RadiObject
from voxtier.volumes.compat.ml import (
    Compose,
    DatasetConfig,
    LoadingMode,
    SegmentationDataset,
    VolumeCollectionDataset,
    VolumeCollectionSubjectsDataset,
    create_inference_dataloader,
    create_segmentation_dataloader,
    create_training_dataloader,
    create_validation_dataloader,
)
from voxtier.volumes.compat.ml.cache import NoOpCache
from voxtier.volumes.compat.ml.datasets import GridPatchDataset, PatchVolumeDataset
from voxtier.volumes.compat.ml.datasets.multimodal import MultiModalDataset
from voxtier.volumes.compat.ml.datasets.volume_dataset import RadiObjectDataset
from voxtier.volumes.compat.ml.distributed import create_distributed_dataloader, set_epoch
from voxtier.volumes.compat.ml.utils import load_labels, worker_init_fn

SORTED = sorted(SUBJECTS)
IN_PROCESS = {"num_workers": 0, "pin_memory": False}


@pytest.fixture(scope="module")
def radi(brats_uri: str) -> RadiObject:
    return RadiObject(brats_uri)


@pytest.fixture(scope="module")
def lung(lung_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RadiObject:
    uri = str(tmp_path_factory.mktemp("lung") / "store")
    return RadiObject.from_niftis(uri, images={"CT": lung_dir / "imagesTr", "seg": lung_dir / "labelsTr"})


def starts_of(loader: Any) -> list[tuple[int, ...]]:
    """Return where the patches of one pass begin, in the order of the volumes."""
    found = [
        (int(idx), tuple(int(axis[n]) for axis in batch["patch_start"]))
        for batch in loader
        for n, idx in enumerate(batch["idx"])
    ]
    return [start for _, start in sorted(found)]


def test_06_segmentation_loaders(lung: RadiObject) -> None:
    radi_train, radi_val = lung.loc[lung.obs_subject_ids[:3]], lung.loc[lung.obs_subject_ids[3:]]
    train_loader = create_segmentation_dataloader(
        image=radi_train.CT,
        mask=radi_train.seg,
        batch_size=2,
        patch_size=(8, 8, 8),
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
        image_transform=NormalizeIntensityd(keys="image"),
        spatial_transform=RandFlipd(keys=["image", "mask"], prob=0.5, spatial_axis=[0, 1, 2]),
        foreground_sampling=True,
        foreground_threshold=0.0001,
        foreground_max_retries=50,
        patches_per_volume=2,
    )
    val_loader = create_segmentation_dataloader(
        image=radi_val.CT,
        mask=radi_val.seg,
        batch_size=1,
        patch_size=(8, 8, 8),
        persistent_workers=False,
        image_transform=NormalizeIntensityd(keys="image"),
        **IN_PROCESS,
    )
    assert (len(train_loader), len(val_loader)) == (3, 1)
    for batch in train_loader:
        assert batch["image"].shape == batch["mask"].shape == (2, 1, 8, 8, 8)
        assert batch["image"].dtype == torch.float32
        assert abs(float(batch["image"][0].mean())) < 1e-3
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            assert torch.unique(mask).tolist() == [0, 1]  # tumour in every patch
            assert image[mask > 0].mean() > image[mask == 0].mean() + 2  # and at the same place
        assert set(batch["obs_subject_id"]) <= set(radi_train.obs_subject_ids)
    first, second = starts_of(train_loader), starts_of(train_loader)
    assert first != second  # patches differ each epoch
    for batch in val_loader:
        assert set(batch["obs_subject_id"]) == set(radi_val.obs_subject_ids)


def test_training_loader_of_a_guide(radi: RadiObject) -> None:
    transform = Compose(
        [NormalizeIntensityd(keys="image"), RandFlipd(keys="image", prob=0.5, spatial_axis=[0, 1, 2])]
    )
    grades = {f"{s}_T1w": n for n, s in enumerate(SORTED)}
    loader = create_training_dataloader(
        collections=[radi.T1w, radi.FLAIR], labels=grades, batch_size=2, transform=transform, **IN_PROCESS
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 2  # without the last part of a batch
    for batch in batches:
        assert batch["image"].shape == (2, 2, *SHAPE)
        assert torch.equal(batch["label"], batch["idx"])
    patched = create_training_dataloader(radi.T1w, patch_size=(4, 5, 6), batch_size=5, **IN_PROCESS)
    assert starts_of(patched) != starts_of(patched)


@pytest.mark.filterwarnings("ignore:TileDB is a multithreading library")
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_and_inference_loaders_give_every_volume_in_order(radi: RadiObject, workers: int) -> None:
    loader = create_validation_dataloader(
        collections=radi.T1w, labels=lambda obs_id: len(obs_id), batch_size=3, num_workers=workers
    )
    seen = [image for batch in loader for image in batch["image"]]
    assert all(np.array_equal(image[0], voxels_of(s, "T1w")) for image, s in zip(seen, SORTED, strict=True))
    images = [batch["image"] for batch in create_inference_dataloader(radi.FLAIR, num_workers=workers)]
    assert [image.shape for image in images] == [(1, 1, *SHAPE)] * 5


def test_distributed_ranks_have_equally_many_and_epochs_can_be_set(radi: RadiObject) -> None:
    def pass_of(rank: int, epoch: int) -> list[int]:
        loader = create_distributed_dataloader(radi.T1w, rank, 2, batch_size=1, **IN_PROCESS)
        set_epoch(loader, epoch)
        return [int(batch["idx"][0]) for batch in loader]

    for epoch in range(3):
        ranks = [pass_of(rank, epoch) for rank in (0, 1)]
        assert [len(rank) for rank in ranks] == [3, 3]  # as with torch's DistributedSampler
        assert set(ranks[0]) | set(ranks[1]) == set(range(5))
        assert ranks[1][-1] == ranks[0][0]
    assert pass_of(0, 1) == pass_of(0, 1)
    assert len({tuple(pass_of(0, epoch)) for epoch in range(6)}) > 1
    set_epoch(torch.utils.data.DataLoader([1, 2]), 3)


@pytest.mark.parametrize(
    ("config", "count", "shape", "extra"),
    [
        (None, 5, (1, *SHAPE), set()),
        (DatasetConfig(loading_mode=LoadingMode.SLICE_2D), 5 * SHAPE[2], (1, *SHAPE[:2]), {"slice_idx"}),
        (
            DatasetConfig(loading_mode="patch", patch_size=(4, 5, 6), patches_per_volume=3),
            15,
            (1, 4, 5, 6),
            {"patch_idx", "patch_start"},
        ),
    ],
)
def test_items_of_each_mode(
    radi: RadiObject, config: DatasetConfig | None, count: int, shape: tuple[int, ...], extra: set[str]
) -> None:
    dataset = VolumeCollectionDataset(radi.T1w, config, labels="series_type")
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert (len(dataset), dataset.n_channels, dataset.collection_names) == (count, 1, ["T1w"])
    assert dataset.volume_shape == SHAPE
    per = count // 5
    for number in (0, 1, per, count - 1, -1):
        item = dataset[number]
        place, within = divmod(number % count, per)
        assert (item["idx"], item["obs_subject_id"], item["label"]) == (place, SORTED[place], "T1w")
        assert extra <= set(item)
        data = voxels_of(SORTED[place], "T1w")
        if "slice_idx" in extra:
            assert item["slice_idx"] == within
            data = data[:, :, within]
        elif "patch_idx" in extra:
            assert item["patch_idx"] == within
            x, y, z = item["patch_start"]
            data = data[x : x + 4, y : y + 5, z : z + 6]
        assert isinstance(item["image"], torch.Tensor)
        assert item["image"].shape == shape
        assert np.array_equal(item["image"][0], data)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2]["image"], dataset[2]["image"])


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({f"{s}_T1w": n for n, s in enumerate(SORTED)}, [0, 1, 2, 3, 4]),
        ({f"{SORTED[1]}_T1w": 7}, [None, 7, None, None, None]),
        ({f"{SORTED[1]}_T1w": 7, f"{SORTED[0]}_T1w": None}, [None, 7, None, None, None]),
        (
            pd.DataFrame({"grade": [3, None]}, index=[f"{s}_T1w" for s in SORTED[:2]]),
            [3, None, None, None, None],
        ),
        (lambda obs_id: float("nan") if obs_id[8] == "1" else 1, [None, 1, 1, 1, 1]),
        (pd.DataFrame({"obs_id": [f"{s}_T1w" for s in SUBJECTS], "grade": [3, 1, 5, 2, 4]}), [1, 2, 3, 4, 5]),
        (pd.DataFrame({"grade": [3, 1, 5, 2, 4]}, index=[f"{s}_T1w" for s in SUBJECTS]), [1, 2, 3, 4, 5]),
        ("dimensions", [str(SHAPE)] * 5),
        (lambda obs_id: int(obs_id[8]), [1, 2, 3, 4, 5]),
        ({}, [None] * 5),
        (None, [None] * 5),
    ],
)
def test_labels_follow_the_ids_whatever_their_order(radi: RadiObject, labels: Any, wanted: list[Any]) -> None:
    dataset = VolumeCollectionDataset(radi.T1w, labels=labels)
    found = [item.get("label") for item in (dataset[n] for n in range(5))]
    assert [label.item() if isinstance(label, torch.Tensor) else label for label in found] == wanted
    by_place = load_labels(radi.T1w, labels) or {}
    assert [by_place.get(n) for n in range(5)] == wanted


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ("nope", ConfigError),
        (pd.DataFrame({"obs_id": ["x"]}), ConfigError),
        (pd.DataFrame({"grade": [1]}), ConfigError),
        (pd.DataFrame({"obs_id": [f"{SORTED[0]}_T1w"] * 2, "grade": [0, 1]}), ConfigError),
        (pd.DataFrame({"grade": [0, 1]}, index=[f"{SORTED[0]}_T1w"] * 2), ConfigError),
        (3, TypeError),
    ],
)
def test_labels_that_tell_nothing_are_refused(radi: RadiObject, labels: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        VolumeCollectionDataset(radi.T1w, labels=labels)


def test_collections_that_do_not_go_together_are_refused(radi: RadiObject, tmp_path: Path) -> None:
    cut = radi.T1w.lazy().iloc([0]).map(lambda v: v[:, :, 1:]).write(str(tmp_path / "cut"), name="cut")
    both = radi.T1w.lazy().head(2).write(str(tmp_path / "both"), name="both")
    t1w, flair = radi.T1w, radi.FLAIR
    for wrong in ([], [t1w, flair.head(2)], [t1w.head(1), flair.tail(1)], [t1w, t1w]):
        with pytest.raises(ConfigError):
            VolumeCollectionDataset(wrong)
    with pytest.raises(ConfigError, match="shape"):
        VolumeCollectionDataset([radi.T1w.head(1), cut])
    with pytest.raises(ConfigError):
        SegmentationDataset(radi.T1w, both)
    with pytest.raises(ConfigError, match="larger"):
        PatchVolumeDataset(radi.T1w, patch_size=(99, 4, 4))
    for options in ({"foreground_threshold": 2.0}, {"foreground_max_retries": 0}):
        with pytest.raises(ConfigError, match="foreground"):
            SegmentationDataset(radi.T1w, radi.FLAIR, foreground_sampling=True, **options)


def test_foreground_patches_are_the_best_of_those_looked_at(lung: RadiObject) -> None:
    config = DatasetConfig(loading_mode=LoadingMode.PATCH, patch_size=(4, 4, 3), patches_per_volume=4)
    for threshold, retries in ((0.5, 200), (1.0, 3)):
        dataset = SegmentationDataset(
            lung.CT,
            lung.seg,
            config,
            foreground_sampling=True,
            foreground_threshold=threshold,
            foreground_max_retries=retries,
        )
        parts = [float((dataset[n]["mask"] > 0).float().mean()) for n in range(len(dataset))]
        assert min(parts) > 0
        if retries == 200:
            assert min(parts) >= threshold
    assert (dataset.n_volumes, dataset.volume_shape) == (4, SHAPE)
    assert dataset[3]["image"].dtype == torch.float32
    assert dataset[3]["mask"].dtype == torch.uint8


def test_grid_patches_cover_every_voxel_of_every_volume(radi: RadiObject) -> None:
    dataset = GridPatchDataset(radi.T1w, patch_size=(10, 9, 7), stride=(7, 9, 5))
    patched = np.full((5, *SHAPE), np.nan, np.float32)
    for n in range(len(dataset)):
        item = dataset[n]
        x, y, z = item["patch_start"]
        assert item["patch_start"] == dataset.grid_positions[item["patch_idx"]]
        assert item["obs_id"] == f"{SORTED[item['idx']]}_T1w"
        patched[item["idx"], x : x + 10, y : y + 9, z : z + 7] = item["image"][0]
    assert np.array_equal(patched, np.stack([voxels_of(s, "T1w") for s in SORTED]))
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    random = PatchVolumeDataset(radi.T1w, patch_size=(4, 4, 4), patches_per_volume=2)
    assert (random.patch_size, len(random), random[3]["patch_idx"]) == ((4, 4, 4), 10, 1)


def test_datasets_of_a_cohort_take_labels_from_its_subjects(radi: RadiObject) -> None:
    config = DatasetConfig(modalities=["T1w", "FLAIR"], label_column="age", value_filter="age > 50")
    whole = RadiObjectDataset(radi, config)
    multi = MultiModalDataset(radi, ["T1w", "FLAIR"], label_column="age", value_filter="age > 50")
    for dataset in (whole, multi):
        assert dataset.modalities == ["T1w", "FLAIR"]
        assert [dataset[n].get("label", torch.tensor(0)).item() for n in range(5)] == [0, 0, 63, 58, 52]
        assert np.array_equal(dataset[1]["image"][1], voxels_of(SORTED[1], "FLAIR"))
    assert len(RadiObjectDataset(radi, DatasetConfig()).modalities) == 4
    assert len(RadiObjectDataset(radi.head(2), config)) == 2
    for wrong in (
        lambda: MultiModalDataset(radi, []),
        lambda: MultiModalDataset(radi, ["T1w"], label_column="nope"),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_to_dataset_and_what_stays_for_the_name(radi: RadiObject) -> None:
    label_of = operator.itemgetter("label")
    dataset = radi.T1w.to_dataset(patch_size=(4, 4, 4), labels="series_type", transform=label_of)
    assert dataset[0] == "T1w"
    assert radi.T1w.head(2).to_dataset()[1]["image"].shape == (1, *SHAPE)
    assert worker_init_fn(0) is None
    cache = NoOpCache()
    cache.set(1, "x")
    assert (cache.get(1), cache.hits, cache.misses) == (None, 0, 1)
    cache.clear()


def test_torchio_subjects_and_queue(radi: RadiObject) -> None:
    tio = pytest.importorskip("torchio")
    dataset = VolumeCollectionSubjectsDataset([radi.T1w, radi.T2w], labels=lambda obs_id: obs_id)
    assert (len(dataset), dataset.collection_names) == (5, ["T1w", "T2w"])
    subject = dataset[2]
    assert np.array_equal(subject["T2w"].data[0], voxels_of(SORTED[2], "T2w"))
    assert np.allclose(subject["T1w"].affine, radi.T1w.iloc[2].affine)
    assert subject["label"] == f"{SORTED[2]}_T1w"
    flipped = VolumeCollectionSubjectsDataset(radi.T1w, transform=tio.Compose([tio.ZNormalization()]))
    assert abs(float(flipped[0]["T1w"].data.mean())) < 1e-4
    loader = tio.SubjectsLoader(tio.Queue(dataset, 10, 2, tio.UniformSampler(8), num_workers=0), batch_size=2)
    assert next(iter(loader))["T1w"]["data"].shape == (2, 1, 8, 8, 8)


class Draws:
    """A transform like MONAI's random ones, which notes what it draws."""

    def __init__(self, name: str) -> None:
        self.name = name

    def set_random_state(self, seed: int) -> None:
        self.rng = np.random.RandomState(seed)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, self.name: float(self.rng.random_sample())}


def test_both_transforms_of_a_segmentation_draw_numbers_of_their_own(lung: RadiObject) -> None:
    from monai.data.utils import set_rnd

    from voxtier.volumes.compat.ml.datasets.segmentation_dataset import SegmentationDataset

    dataset = SegmentationDataset(
        lung.CT, lung.seg, image_transform=Draws("image_drawn"), spatial_transform=Draws("spatial_drawn")
    )
    for batch in torch.utils.data.DataLoader(dataset):
        assert float(batch["image_drawn"]) != float(batch["spatial_drawn"])
    set_rnd(dataset, seed=1)
    item = dataset[0]  # outside of a loader: the states that MONAI has set
    assert item["image_drawn"] != item["spatial_drawn"]


def test_monai_is_imported_with_the_first_of_its_names_alone() -> None:
    code = (
        "import sys\nimport voxtier.volumes.compat.ml as ml\n"
        "assert 'Compose' in dir(ml) and 'monai' not in sys.modules\n"
        "from voxtier.volumes.compat.ml.compat import Compose\n"
        "assert Compose is ml.Compose is sys.modules['monai.transforms'].Compose\n"
        "try:\n    ml.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "module 'voxtier.volumes.compat.ml' has no attribute 'nothing'\n", done.stderr
