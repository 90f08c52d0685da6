"""A plain DataLoader draws other patches in each pass: those of the epoch, whatever process draws them."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import (  # noqa: E402
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

from volumes.support.images import nifti  # noqa: E402
from volumes.support.in_workers import Halves, draw_as_rank, keep  # noqa: E402
from voxtier.errors import ConfigError  # noqa: E402
from voxtier.volumes import (  # noqa: E402
    DatasetConfig,
    EpochSampler,
    RadiObject,
    TileConfig,
    VolumeCollectionDataset,
    configure,
)
from voxtier.volumes.training import epochs  # noqa: E402

Draws = list[tuple[Any, ...]]
"""Volume, first voxel and a number for the voxels of each patch."""

pytestmark = [
    pytest.mark.timeout(300),
    # The machine's, not ours: few cores, and Python 3.12 at every fork of a process with threads.
    # Tests that ran before in this process have used TileDB by its own contexts: that voxtier's bring no such
    # warning is shown in a process of its own, below.
    pytest.mark.filterwarnings(
        "ignore:This DataLoader will create",
        "ignore:.*multi-threaded.*fork:DeprecationWarning",
        "ignore:TileDB is a multithreading library",
    ),
]


@pytest.fixture
def radi(tmp_path: Path) -> RadiObject:
    import nibabel as nib

    configure(tile=TileConfig("isotropic", 16, 16, 16))
    rng = np.random.default_rng(0)
    for subject in "abcd":
        path = nifti(tmp_path / f"sub-{subject}_T1w.nii", subject)
        nib.save(nib.Nifti1Image(rng.integers(0, 1000, (40, 36, 30)).astype(np.int16), np.eye(4)), path)
    return RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)


def patches(radi: RadiObject, seed: int = 0, count: int = 3) -> VolumeCollectionDataset:
    return radi.T1w.to_dataset(patch_size=16, patches_per_volume=count, seed=seed)


def drawn(items: Any) -> Draws:
    return [(item["obs_id"], *item["patch_start"].tolist(), float(item["image"].sum())) for item in items]


def expected(dataset: VolumeCollectionDataset, epoch: int) -> Draws:
    """Return the draws of an epoch, by a loop over a dataset of its own in this process."""
    same = copy.copy(dataset)
    same.set_epoch(epoch)
    return drawn(same[item] for item in range(len(same)))


# Workers, how they are started, whether they stay; each start other than by fork takes seconds.
ALL = [*product([1, 3], ["fork", "spawn", "forkserver"], [False, True])]
NOW = [(1, "fork", True), (3, "fork", False), (3, "forkserver", False), (1, "spawn", True)]


def passes(loader: Any, count: int = 3) -> list[Draws]:
    return [drawn(item for batch in loader for item in batch) for _ in range(count)]


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [*NOW, *(pytest.param(*case, marks=pytest.mark.soak) for case in sorted(set(ALL) - set(NOW)))],
)
def test_passes_of_workers_are_the_epochs(
    radi: RadiObject, workers: int, method: str, persistent: bool
) -> None:
    dataset = patches(radi)
    dataset[0]  # the parent has read: its threads and handles exist
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=persistent,
        collate_fn=keep,
    )
    found = passes(loader)
    assert found == [expected(dataset, epoch) for epoch in range(3)]
    assert len({draw for each in found for draw in each}) == 3 * len(dataset)


def test_passes_in_this_process_are_the_epochs_and_shuffling_changes_only_the_order(radi: RadiObject) -> None:
    dataset = patches(radi)
    assert passes(DataLoader(dataset, batch_size=5, collate_fn=keep)) == [
        expected(dataset, epoch) for epoch in range(3)
    ]
    shuffled = DataLoader(patches(radi), batch_size=5, shuffle=True, collate_fn=keep)
    for epoch, found in enumerate(passes(shuffled)):
        assert found != expected(dataset, epoch)
        assert sorted(found) == sorted(expected(dataset, epoch))
    single = DataLoader(patches(radi), batch_size=None, shuffle=True)
    found = [drawn(single) for _ in range(2)]
    assert [sorted(each) for each in found] == [sorted(expected(dataset, epoch)) for epoch in range(2)]


def test_the_seed_of_the_dataset_decides_and_not_that_of_torch(radi: RadiObject) -> None:
    def run(seed: int, torch_seed: int) -> list[Draws]:
        torch.manual_seed(torch_seed)
        loader = DataLoader(patches(radi, seed), batch_size=4, num_workers=2, collate_fn=keep)
        return passes(loader, 2)

    assert run(7, 1) == run(7, 2)
    assert run(7, 1) != run(8, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_draws_of_several_ranks_are_together_those_of_the_epoch(radi: RadiObject, workers: int) -> None:
    ranks = []
    for rank in range(3):
        dataset = patches(radi)
        sampler = DistributedSampler(dataset, num_replicas=3, rank=rank, seed=4)
        options = {"persistent_workers": True} if workers else {}
        loader = DataLoader(
            dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=keep, **options
        )
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found += passes(loader, 1)
        ranks.append(found)
    for epoch in range(3):
        together = sorted(draw for rank in ranks for draw in rank[epoch])
        assert together == sorted(expected(dataset, epoch))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_pass_that_was_left_early_is_an_epoch_too(radi: RadiObject, persistent: bool) -> None:
    dataset = patches(radi)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=persistent, collate_fn=keep)
    next(iter(loader))
    assert passes(loader, 2) == [expected(dataset, 1), expected(dataset, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_of_one_seed_of_torch_differ(radi: RadiObject, workers: int) -> None:
    """The workers of such passes have equal seeds."""
    dataset = patches(radi)
    found = []
    for _ in range(3):
        torch.manual_seed(0)
        found += passes(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=keep), 1)
    assert found == [expected(dataset, epoch) for epoch in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_interleaved_passes_are_epochs_of_their_own(radi: RadiObject, workers: int) -> None:
    dataset = patches(radi)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=keep)
    pairs = list(zip(loader, loader, strict=True))
    found = {str(drawn(itertools.chain.from_iterable(pair[side] for pair in pairs))) for side in (0, 1)}
    assert found == {str(expected(dataset, 0)), str(expected(dataset, 1))}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_with_replacement_gets_another_patch_at_each_visit(radi: RadiObject, workers: int) -> None:
    dataset = patches(radi, count=1)
    for sampler in (
        WeightedRandomSampler([1.0, 0, 0, 1], 40),
        RandomSampler(dataset, replacement=True, num_samples=40),
    ):
        loader = DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=workers, collate_fn=keep)
        found = passes(loader, 2)
        assert all(len(set(each)) >= 39 for each in found)  # of 3375 starts two may be equal
        assert len({draw for each in found for draw in each}) >= 78


ORDER = [2, 2, 0, 2, 0, 0, 2, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_without_batches_are_visits_of_their_own(radi: RadiObject, workers: int) -> None:
    """Small numbers are one object in Python: two draws of an item look like one batch."""
    options = {"sampler": ORDER, "num_workers": workers}
    truth = passes(DataLoader(patches(radi, count=1), batch_size=1, collate_fn=keep, **options), 2)
    assert len({draw for each in truth for draw in each}) >= 2 * len(ORDER) - 1  # of 3375 starts
    single = DataLoader(patches(radi, count=1), batch_size=None, **options)
    assert [drawn(single) for _ in range(2)] == truth
    for one, other in DataLoader(Halves(patches(radi, count=1)), batch_size=None, **options):
        assert torch.equal(one, other)  # one call of the loader


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_loaders_that_take_turns_count_their_own_visits(
    radi: RadiObject, batch_size: int | None, count: int
) -> None:
    truth = passes(DataLoader(patches(radi, count=1), sampler=ORDER, collate_fn=keep), count)
    dataset = patches(radi, count=1)
    options = {"batch_size": batch_size, "sampler": ORDER, "collate_fn": keep if batch_size else None}
    turns = list(zip(*(DataLoader(dataset, **options) for _ in range(count)), strict=True))
    found = [[turn[number] for turn in turns] for number in range(count)]
    items = [[item for batch in each for item in batch] if batch_size else each for each in found]
    assert [drawn(each) for each in items] == truth


@pytest.mark.parametrize("workers", [0, 1])
def test_two_calls_for_an_item_of_a_batch_give_one_patch(radi: RadiObject, workers: int) -> None:
    loader = DataLoader(Halves(patches(radi)), batch_size=3, num_workers=workers, collate_fn=keep)
    for _ in range(2):
        assert all(np.array_equal(one, other) for batch in loader for one, other in batch)


def test_a_subset_and_a_concatenation_draw_the_epochs_too(radi: RadiObject) -> None:
    dataset = patches(radi)
    loader = DataLoader(Subset(dataset, [5, 1, 8]), batch_size=2, collate_fn=keep)
    assert passes(loader, 2) == [[expected(dataset, epoch)[item] for item in (5, 1, 8)] for epoch in range(2)]
    both: Dataset[Any] = torch.utils.data.ConcatDataset([patches(radi), patches(radi, seed=1)])
    found = passes(DataLoader(both, batch_size=5, num_workers=2, collate_fn=keep), 2)
    for epoch in range(2):
        assert found[epoch] == [*expected(patches(radi), epoch), *expected(patches(radi, seed=1), epoch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(radi: RadiObject, workers: int) -> None:
    dataset = patches(radi)
    options = {"persistent_workers": True} if workers else {}
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=keep, **options)
    assert passes(loader, 1) == [expected(dataset, 0)]
    dataset.set_epoch(20)  # workers that persist have copies of the dataset
    assert passes(loader, 2) == [expected(dataset, 20), expected(dataset, 21)]
    assert drawn([dataset[3]]) == [expected(dataset, 20)[3]]
    for epoch in (-1, 2**31):
        with pytest.raises(ConfigError, match="epoch"):
            dataset.set_epoch(epoch)


def test_items_without_a_loader_are_those_of_the_epoch_that_was_set(radi: RadiObject) -> None:
    dataset = patches(radi)
    assert drawn(dataset) == drawn(dataset) == expected(dataset, 0)
    assert drawn([dataset[-1]]) == expected(dataset, 0)[-1:]
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_copy_counts_for_itself_from_where_the_dataset_is(radi: RadiObject) -> None:
    dataset = patches(radi)
    passes(DataLoader(dataset, collate_fn=keep), 2)
    for other in (copy.copy(dataset), copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert passes(DataLoader(other, collate_fn=keep), 1) == [expected(dataset, 2)]
    assert passes(DataLoader(dataset, collate_fn=keep), 1) == [expected(dataset, 2)]


def test_the_epoch_of_a_sampler_comes_before_that_of_the_pass(radi: RadiObject) -> None:
    dataset = patches(radi)
    sampler = EpochSampler(len(dataset), shuffle=False)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=2, collate_fn=keep)
    passes(DataLoader(dataset, collate_fn=keep), 2)
    assert passes(loader, 2) == [expected(dataset, 0), expected(dataset, 1)]
    sampler.set_epoch(0)
    assert passes(loader, 1) == [expected(dataset, 0)]
    index = pickle.loads(pickle.dumps(next(iter(sampler))))
    assert (index, index.epoch, type(index)) == (0, 1, epochs.EpochIndex)


def test_many_workers_and_passes_keep_apart() -> None:
    """The counter alone, asked by more workers and loaders than a page of memory names."""

    class Worker:
        def __init__(self, number: int, seed: int) -> None:
            self.id, self.seed = number, seed + number

    counter = epochs.EpochCounter(items=1)
    counted: Counter[int] = Counter()
    for round_ in range(3):
        for seed in range(7):
            numbers = {counter._enter(Worker(n, seed * 10_000)) for n in range(200)}
            assert numbers == {round_ * 7 + seed}
            counted.update(numbers)
    assert set(counted.values()) == {1}
    assert counter._enter(Worker(5000, 2**63 - 5000)) == 21


def tree_of(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(folder)], capture_output=True, text=True
    )


PLAIN = """
import sys
from torch.utils.data import DataLoader
from voxtier.volumes import RadiObject
radi = RadiObject(sys.argv[1])
dataset = radi.T1w.to_dataset(patch_size=16)
first = dataset[0]
for _ in range(2):
    for batch in DataLoader(dataset, batch_size=2, num_workers=1):
        assert batch["image"].shape == (2, 1, 16, 16, 16)
print("done", file=sys.stderr, flush=True)
import tiledb
tiledb.Ctx()
next(iter(DataLoader(dataset, batch_size=2, num_workers=1)))
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python itself warns at every fork with threads")
def test_a_plain_loader_warns_of_nothing_until_the_user_makes_a_context_of_tiledb(radi: RadiObject) -> None:
    told = tree_of(PLAIN, Path(str(radi.uri))).stderr
    assert told.startswith("done\n")
    assert "deadlocks are likely" in told


def test_asking_for_patches_loads_no_torch(radi: RadiObject) -> None:
    code = (
        "import sys\nimport voxtier.volumes as v\n"
        "assert not any('training' in name for name in sys.modules)\n"
        "d = v.VolumeCollectionDataset(v.RadiObject(sys.argv[1]).T1w, v.DatasetConfig('patch', 8))\n"
        "assert d[0]['image'].shape == (1, 8, 8, 8) and 'torch' not in sys.modules\n"
        "assert {'DatasetConfig', 'ForegroundSampler', 'data_loader'} <= set(dir(v)) & set(v.__all__)\n"
        "try:\n    v.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = tree_of(code, Path(str(radi.uri)))
    assert done.stdout == "module 'voxtier.volumes' has no attribute 'nothing'\n", done.stderr


def test_a_size_of_one_number_is_a_cube(radi: RadiObject) -> None:
    for size in (8, np.int64(8), [8, 8, 8], (8, 8, 8), np.array([8, 8, 8])):
        assert DatasetConfig("patch", size).patch_size == (8, 8, 8)
    for size in (0, -1, 8.0, "8", True, (8, 8), (8, 8, 0), None):
        with pytest.raises(ConfigError, match="patch"):
            DatasetConfig("patch", size)
    assert radi.T1w.to_dataset(patch_size=8)[0]["image"].shape == (1, 8, 8, 8)


@pytest.mark.parametrize(
    ("workers", "method", "threads"),
    [
        (0, "fork", False),
        (1, "fork", False),
        (2, "fork", True),
        (0, "forkserver", False),  # which pickles, as spawn does
        pytest.param(0, "spawn", False, marks=pytest.mark.soak),
        pytest.param(1, "spawn", False, marks=pytest.mark.soak),
    ],
)
def test_ranks_that_one_process_starts_count_each_for_itself(
    radi: RadiObject, method: str, workers: int, *, threads: bool
) -> None:
    if threads:
        pytest.importorskip("monai.data")  # here, once for both of them
    dataset = patches(radi)
    dataset.set_epoch(5)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    ranks = [
        context.Process(
            target=draw_as_rank, args=(dataset, rank, workers, queue), kwargs={"threads": threads}
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    found: dict[int, Draws] = {0: [], 1: []}
    for epoch, draws in (queue.get(timeout=200) for _ in range(4)):
        found[epoch] += draws
    for rank in ranks:
        rank.join(200)
        assert rank.exitcode == 0
    for epoch in range(2):
        assert sorted(found[epoch]) == sorted(draw[:-1] for draw in expected(dataset, 5 + epoch))
    assert passes(DataLoader(dataset, collate_fn=keep), 1) == [expected(dataset, 5)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "mode"), [(0, "full_volume"), (0, "patch"), (1, "full_volume"), (2, "patch")]
)
def test_random_transforms_of_monai_differ_from_pass_to_pass(
    radi: RadiObject, workers: int, mode: str
) -> None:
    """In a worker they are copies, whose numbers would begin anew in each pass; and `seed` decides them."""
    transforms = pytest.importorskip("monai.transforms")

    def run(seed: int, batch_size: int) -> list[list[float]]:
        transform = transforms.Compose(
            [
                transforms.RandGaussianNoised("image", prob=1),
                transforms.RandScaleIntensityd("image", 0.5, prob=1),
            ]
        )
        config = DatasetConfig(mode, 16 if mode == "patch" else None, seed=seed)
        dataset = VolumeCollectionDataset(radi.T1w, config, transform=transform)
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=keep)
        return [[float(item["image"].sum()) for batch in loader for item in batch] for _ in range(2)]

    found = run(1, 2)
    assert len({number for each in found for number in each}) == 8
    assert found == run(1, 3)  # another share for each worker
    assert found != run(2, 2)
