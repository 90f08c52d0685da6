"""DataLoader workers under fork, spawn, forkserver: no hang, equal bytes, epochs differ, ranks disjoint."""

from __future__ import annotations

import multiprocessing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtier.volumes import VolumeCollection

torch = pytest.importorskip("torch")

from volumes.support.images import nifti  # noqa: E402
from volumes.support.in_workers import Budget, Dies, Number, Raises, keep, thread_loader  # noqa: E402
from voxtier.errors import ConfigError  # noqa: E402
from voxtier.volumes import RadiObject, ReadConfig, TileConfig, Volume, configure  # noqa: E402
from voxtier.volumes.training.datasets import DatasetConfig, LoadingMode, VolumeCollectionDataset  # noqa: E402
from voxtier.volumes.training.loaders import (  # noqa: E402
    create_distributed_dataloader,
    create_training_dataloader,
    data_loader,
)
from voxtier.volumes.training.workers.handing import Device  # noqa: E402

# Other tests of this process use TileDB's default context, which makes tiledb-py warn at every fork; Python
# 3.12 warns too.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 4 worker",
    "ignore:TileDB is a multithreading library",
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
)


@pytest.fixture
def cohort(tmp_path: Path) -> RadiObject:
    configure(tile=TileConfig("isotropic", 16, 16, 16), io=ReadConfig(concurrency=2))
    images = []
    rng = np.random.default_rng(0)
    import nibabel as nib

    for subject in "dbca":
        path = nifti(tmp_path / f"{subject}.nii", subject)
        voxels = rng.integers(0, 1000, (40, 36, 30)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        images.append((path, subject))
    return RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})


# Workers, how they are started, whether they stay; each start other than by fork takes seconds.
ALL = [*product([1, 4], ["fork", "spawn", "forkserver"], [False, True])]
NOW = [
    (0, "fork", False),
    (1, "fork", True),
    (4, "fork", False),
    (1, "spawn", True),
    (4, "forkserver", False),
]


def patches(collection: VolumeCollection, **options: Any) -> VolumeCollectionDataset:
    return VolumeCollectionDataset(collection, DatasetConfig(LoadingMode.PATCH, (16, 16, 16), 3, **options))


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [*NOW, *(pytest.param(*case, marks=pytest.mark.soak) for case in sorted(set(ALL) - set(NOW)))],
)
@pytest.mark.timeout(240)
def test_workers_of_every_start_method_give_the_items_of_the_parent(
    cohort: RadiObject, workers: int, method: str, persistent: bool
) -> None:
    dataset = patches(cohort.T1w)
    expected = [dataset[i] for i in range(len(dataset))]  # the parent has read: its threads and handles exist
    loader = data_loader(
        dataset,
        batch_size=2,
        num_workers=workers,
        start_method=method if workers else None,
        collate_fn=keep,
        **({"persistent_workers": persistent} if workers else {}),
    )
    first = [item for batch in loader for item in batch]
    assert [item["obs_id"] for item in first] == [item["obs_id"] for item in expected]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, expected, strict=True))
    second = [item for batch in loader for item in batch]
    starts = [tuple(item["patch_start"]) for item in second]
    assert starts != [tuple(item["patch_start"]) for item in first]
    dataset.set_epoch(1)
    assert starts == [tuple(dataset[i]["patch_start"]) for i in range(len(dataset))]


def read_in_child(volume: Volume, wanted: NDArray[Any], queue: Any) -> None:
    queue.put(np.array_equal(volume.to_numpy(), wanted) and np.array_equal(volume.axial(3), wanted[:, :, 3]))


@pytest.mark.parametrize("direct", ["0", "1"])
@pytest.mark.timeout(240)
def test_a_forked_child_reads_after_its_parent(
    tmp_path: Path, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_DIRECT", direct)
    data = np.random.default_rng(0).integers(0, 99, (50, 60, 70)).astype(np.int16)
    volume = Volume.from_numpy(tmp_path / "v", data)
    assert np.array_equal(volume.to_numpy(), data)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(volume, data, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=200) for _ in children] == [True] * 3
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert np.array_equal(volume.to_numpy(), data)


def test_the_same_seed_gives_the_same_patches_whatever_the_workers(cohort: RadiObject) -> None:
    def starts(workers: int, seed: int) -> list[Any]:
        loader = create_training_dataloader(
            cohort.T1w,
            (16, 16, 16),
            patches_per_volume=2,
            seed=seed,
            num_workers=workers,
            collate_fn=keep,
            batch_size=3,
        )
        return [[(i["obs_id"], *i["patch_start"]) for batch in loader for i in batch] for _ in range(2)]

    assert starts(0, 1) == starts(2, 1)
    assert starts(0, 1) != starts(0, 2)
    one, two = starts(0, 1)
    assert one != two


def test_ranks_are_disjoint_and_complete(cohort: RadiObject) -> None:
    dataset = patches(cohort.T1w)
    seen = []
    for rank in range(3):
        loader = create_distributed_dataloader(dataset, rank=rank, world_size=3, collate_fn=keep)
        seen.append({(i["obs_id"], *i["patch_start"]) for batch in loader for i in batch})
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(dataset)


def test_exceptions_keep_their_type_and_text(cohort: RadiObject) -> None:
    dataset = VolumeCollectionDataset(cohort.T1w, transform=Raises())
    with pytest.raises(Exception, match="on purpose"):
        next(iter(data_loader(dataset, num_workers=1, collate_fn=keep)))


@pytest.mark.timeout(240)
def test_a_killed_worker_does_not_hang(cohort: RadiObject) -> None:
    dataset = VolumeCollectionDataset(cohort.T1w, transform=Dies())
    with pytest.raises(RuntimeError, match="worker"):
        next(iter(data_loader(dataset, num_workers=1, collate_fn=keep)))


def test_workers_share_the_budget(cohort: RadiObject) -> None:
    # Blocks lie in the memory of all; a worker's own are those that take none.
    for shares, part in ((False, 2), (True, 8)):
        configure(read=ReadConfig(concurrency=2, share_cache=shares))
        dataset = VolumeCollectionDataset(RadiObject(cohort.uri).T1w, transform=Budget())
        loader = data_loader(dataset, num_workers=2, collate_fn=lambda items: items[0])
        assert set(loader) == {(512 << 20) // part}


@pytest.mark.timeout(240)
def test_workers_that_are_threads_draw_one_epoch_in_a_pass(cohort: RadiObject) -> None:
    """Torch's answer to which worker asks is then one for all of them."""
    dataset = patches(cohort.T1w)
    dataset.transform = Number()
    loader = thread_loader(dataset, 2, batch_size=2)
    truth = patches(cohort.T1w)
    for epoch in range(3):
        found = [item for batch in loader for item in batch]
        truth.set_epoch(epoch)
        wanted = [truth[item]["patch_start"].tolist() for item in range(len(truth))]
        assert [item["patch_start"].tolist() for item in found] == wanted
        assert len({item["number"] for item in found}) == len(truth)


def test_workers_that_are_threads_leave_the_budget_of_their_process(cohort: RadiObject) -> None:
    configure(read=ReadConfig(concurrency=2, share_cache=False))
    dataset = VolumeCollectionDataset(RadiObject(cohort.uri).T1w, transform=Budget())
    assert [item for batch in thread_loader(dataset, 2) for item in batch] == [512 << 20] * 4


def test_a_device_that_is_refused_without_a_word_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "device", refuse)
    with pytest.raises(ConfigError, match=r"device='npu' cannot be used on this machine: AssertionError$"):
        Device("npu")
