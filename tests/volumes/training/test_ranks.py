"""Real processes: two gloo ranks train one model; ranks are interrupted and killed, in the soak for an hour.

`TRAINING_SOAK_SECONDS` makes it longer or shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from volumes.support.forks import Script, run_forks
from volumes.training.test_batches import cohort, dataset, save  # noqa: F401
from voxtier.volumes import (
    ForegroundSampler,
    RadiObject,
    SegmentationDataset,
    Volume,
    VolumeCollectionDataset,
    batches,
)
from voxtier.volumes.training.datasets import DatasetConfig, GridPatchDataset
from voxtier.volumes.training.epochs import EpochSampler
from voxtier.volumes.training.loaders import (
    create_distributed_dataloader,
    create_inference_dataloader,
    create_validation_dataloader,
)

# The ranks end at once: the end of an interpreter with these modules takes two seconds.
TRAIN = """
import hashlib, json, os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from voxtier.volumes import ForegroundSampler, RadiObject, SegmentationDataset, batches
from voxtier.volumes.training.datasets import DatasetConfig
store, meeting, rank, world = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
radi = RadiObject(store)
data = SegmentationDataset(radi.CT, radi.seg, DatasetConfig("patch", 12, 6, ForegroundSampler(0.5), seed=4))
loader = batches(data, 2, threads=2, rank=rank, world_size=world, drop_last=True)
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Conv3d(1, 3, 3, padding=1))
optimizer = torch.optim.SGD(model.parameters(), 1e-8)
seen = []
for epoch in range(2):
    for batch in loader:
        loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["mask"][:, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for image, start, name in zip(batch["image"], batch["patch_start"], batch["obs_id"], strict=True):
            digest = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
            seen.append(f"{epoch} {name} {start.tolist()} {digest}")
print(json.dumps([len(loader), seen, [float(p.sum()) for p in model.parameters()]]), flush=True)
os._exit(0)
"""

# Five volumes for two ranks, by each loader: every batch waits for the other rank's.
UNEVEN = """
import json, os, sys
from datetime import timedelta
import torch
from voxtier.volumes import RadiObject, VolumeCollectionDataset, batches
from voxtier.volumes.compat import RadiObject as Compat
from voxtier.volumes.compat.ml.distributed import create_distributed_dataloader as origin
from voxtier.volumes.training.datasets import DatasetConfig
from voxtier.volumes.training.loaders import create_distributed_dataloader
store, meeting, rank, world = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
)
ranks = {"rank": rank, "world_size": world}
patches = VolumeCollectionDataset(RadiObject(store).CT, DatasetConfig("patch", 12))
loaders = []
for size in (1, 2, 3):
    loaders += [
        create_distributed_dataloader(patches, batch_size=size, **ranks),
        create_distributed_dataloader(patches, batch_size=size, drop_last=True, **ranks),
        batches(patches, size, threads=1, **ranks),
        batches(patches, size, threads=1, drop_last=True, **ranks),
        origin(Compat(store).CT, rank, world, batch_size=size, num_workers=0),
    ]
found = []
for loader in loaders:
    items = []
    for batch in loader:
        waits = torch.ones(1)
        torch.distributed.all_reduce(waits)
        items.append(sorted(batch["idx"].tolist()))
    found.append([len(loader), items])
print(json.dumps(found), flush=True)
os._exit(0)
"""

# With what torch loads when it makes the first model of several ranks.
IMPORTS = ["torch._dynamo", "voxtier.volumes.compat.ml.distributed"]

SECONDS = float(os.environ.get("TRAINING_SOAK_SECONDS", "3600"))
EPOCHS, RANKS, BATCH = 4, 2, 2

# Of the soak: notes each batch, then where it stands; goes on from there when it is started again.
RANK = """
import hashlib, json, os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_DFL)  # initializers in C++ abort on KeyboardInterrupt
import tiledb, torch
from voxtier.volumes import ReadConfig, batches, configure
from volumes.training.test_batches import dataset
signal.signal(signal.SIGINT, signal.default_int_handler)
store, folder, rank, world, size, epochs = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
configure(read=ReadConfig(memory_budget_mb=256, tile_cache_size_mb=16))
loader = batches(dataset(store), size, threads=2, rank=rank, world_size=world, layout="contiguous")
state = folder / f"state{rank}"
if state.exists():
    loader.load_state_dict(json.loads(state.read_text()))
with open(folder / f"log{rank}", "a") as log:
    while True:
        if loader.state_dict()["epoch"] >= epochs:
            loader.set_epoch(0)
        for batch in loader:
            at = loader.state_dict()
            digest = hashlib.sha256(batch["image"].numpy().tobytes() + batch["mask"].numpy().tobytes())
            print(at["epoch"], at["batch"], digest.hexdigest(), file=log, flush=True)
            state.with_suffix(".new").write_text(json.dumps(at))
            os.replace(state.with_suffix(".new"), state)
"""

ENDLESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignore" in sys.argv else signal.default_int_handler)
from voxtier.volumes import RadiObject, VolumeCollectionDataset, batches
from voxtier.volumes.training.datasets import DatasetConfig
data = VolumeCollectionDataset(RadiObject(sys.argv[1]).CT, DatasetConfig("patch", 12, 50))
loader = batches(data, 2, threads=2)
while True:
    for number, batch in enumerate(loader):
        if number == 5:
            print("running", flush=True)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_share_the_grid_of_a_volume(tmp_path: Path, workers: int) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.arange(9 * 8 * 4, dtype=np.int16).reshape(9, 8, 4))
    grid = GridPatchDataset(volume, 4)
    options = {"num_workers": workers, "start_method": "forkserver"}
    shares = []
    for rank in range(2):
        loader = create_distributed_dataloader(grid, rank=rank, world_size=2, batch_size=2, **options)
        shares.append([tuple(start) for batch in loader for start in batch["patch_start"].tolist()])
    assert len(shares[0]) == len(shares[1]) == 3
    assert sorted(shares[0] + shares[1]) == sorted(grid.starts)
    assert shares[0] + shares[1] != grid.starts  # shuffled
    alone = [i for batch in create_inference_dataloader(volume, 4, **options) for i in batch["idx"]]
    assert alone == list(range(len(grid)))


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five")
    voxels = np.random.default_rng(3).integers(-900, 900, (16, 16, 16)).astype(np.int16)
    images = {"CT": [(save(folder / f"{n}.nii", voxels), f"s{n}") for n in range(5)]}
    RadiObject.from_niftis(folder / "store", images=images)
    return folder / "store"


@pytest.fixture(scope="module")
def of_ranks(cohort: Path, five: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Script]]:  # noqa: F811
    """What two gloo ranks say of each script; all are forks of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    scripts = [
        [code, str(store), str(folder / f"meeting{len(code)}"), str(rank), "2"]
        for code, store in ((TRAIN, cohort), (UNEVEN, five))
        for rank in range(2)
    ]
    found = run_forks(folder / "forks", IMPORTS, scripts)
    return {TRAIN: found[:2], UNEVEN: found[2:]}


def _answers(scripts: list[Script]) -> list[Any]:
    assert [script.code for script in scripts] == [0, 0], [script.err for script in scripts]
    return [json.loads(script.out.splitlines()[-1]) for script in scripts]


def test_two_gloo_ranks_see_the_items_of_one_process_and_train_one_model(
    cohort: Path,  # noqa: F811
    of_ranks: dict[str, list[Script]],
) -> None:
    radi = RadiObject(cohort)
    data = SegmentationDataset(
        radi.CT, radi.seg, DatasetConfig("patch", 12, 6, ForegroundSampler(0.5), seed=4)
    )
    alone: Counter[str] = Counter()
    for epoch in range(2):
        data.set_epoch(epoch)
        for item in data:
            digest = hashlib.sha256(item["image"].tobytes()).hexdigest()
            alone[f"{epoch} {item['obs_id']} {item['patch_start'].tolist()} {digest}"] += 1
    first, second = _answers(of_ranks[TRAIN])
    assert (first[0], second[0]) == (4, 4)  # 18 items: two are left out, so that no rank waits for the other
    both = Counter([*first[1], *second[1]])
    assert both.total() == 2 * 16
    assert both <= alone
    assert first[2] == second[2]


def test_gloo_ranks_never_wait_where_items_do_not_divide(of_ranks: dict[str, list[Script]]) -> None:
    found = _answers(of_ranks[UNEVEN])
    count = 0
    for size in (1, 2, 3):
        for drops in (False, True, False, None, True):
            (length, first), (other, second) = (answers[count] for answers in found)
            assert length == other == len(first) == len(second)
            # Of torch's sampler each rank has 3; `batches` with drop_last repeats nothing.
            wanted = 2 // size if drops is None else 3 // size if drops else -(-3 // size)
            assert length == wanted
            items = [item for batch in [*first, *second] for item in batch]
            if drops is False:
                assert sorted(set(items)) == [0, 1, 2, 3, 4]
                assert len(items) == 6
            assert drops is not None or len(set(items)) == len(items)
            count += 1


@pytest.mark.parametrize(("length", "ranks"), [(5, 2), (1, 4), (7, 3), (6, 3), (0, 2), (3, 1)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_have_as_many_items_as_torch_gives_them(length: int, ranks: int, *, shuffle: bool) -> None:
    from torch.utils.data import DistributedSampler

    def items(rank: int, **options: Any) -> list[int]:
        sampler = EpochSampler(length, shuffle=shuffle, seed=3, rank=rank, world_size=ranks, **options)
        sampler.set_epoch(4)
        found = [int(item) for item in sampler]
        assert len(found) == len(sampler)
        return found

    order = EpochSampler(length, shuffle=shuffle, seed=3)
    order.set_epoch(4)
    truth = list(order)
    once = [items(rank, even=False) for rank in range(ranks)]
    assert sorted(item for each in once for item in each) == list(range(length))
    even = [items(rank) for rank in range(ranks)]
    for rank, each in enumerate(even):
        of_torch = DistributedSampler(range(length), ranks, rank, shuffle=False)
        assert each == [truth[place] for place in of_torch]
        assert each[: len(once[rank])] == once[rank]  # a state of an epoch holds for both


def test_a_rank_goes_on_within_an_epoch_that_does_not_divide(five: Path) -> None:
    data = VolumeCollectionDataset(RadiObject(five).CT, DatasetConfig("patch", 12))
    options = {"rank": 1, "world_size": 2}
    whole = [batch["idx"].tolist() for batch in batches(data, 2, threads=1, **options)]
    assert [len(batch) for batch in whole] == [2, 1]
    for even in (True, False):  # a state of one is a state of the other
        loader = batches(data, 2, threads=1, even=even, **options)
        next(iter(loader))
        again = batches(data, 2, threads=1, **options)
        again.load_state_dict(loader.state_dict())
        assert [batch["idx"].tolist() for batch in again] == whole[1:]
    for loader in (create_distributed_dataloader(data, batch_size=2, **options) for _ in range(2)):
        loader.sampler.set_epoch(0)
        assert [batch["idx"].tolist() for batch in loader][1:] == whole[1:]
    for maker in (create_validation_dataloader, create_distributed_dataloader):
        once = {} if maker is create_validation_dataloader else {"even": False}
        source = RadiObject(five).CT if maker is create_validation_dataloader else data
        loaders = [maker(source, rank=rank, world_size=2, **once) for rank in range(2)]
        assert [len(loader) for loader in loaders] == [3, 2]
        assert sorted(int(item) for loader in loaders for batch in loader for item in batch["idx"]) == [
            *range(5)
        ]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_ends_at_once_and_leaves_nothing(cohort: Path, end: signal.Signals) -> None:  # noqa: F811
    """The one that is killed ignores Ctrl-C before, as one in the background of a script does.

    TileDB's handler called the address of SIG_IGN.
    """
    before = set(os.listdir("/dev/shm"))
    ignores = [] if end is signal.SIGINT else ["ignore"]
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(cohort), *ignores],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "running"
    if ignores:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().strip() == "running"  # the next pass
    process.send_signal(end)
    _, error = process.communicate(timeout=60)
    assert process.returncode == -end
    assert end is not signal.SIGINT or error.rstrip().endswith("KeyboardInterrupt")
    mine = {
        name for name in set(os.listdir("/dev/shm")) - before if str(process.pid) in name or "voxtier" in name
    }
    assert not mine


def expected(store: Path, rank: int) -> dict[tuple[int, int], str]:
    """Return the digest of each batch, made item by item from the dataset."""
    items, found = dataset(store), {}
    sampler = EpochSampler(len(items), shuffle=True, seed=items.config.seed, rank=rank, world_size=RANKS)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        indexes = list(sampler)
        for number, first in enumerate(range(0, len(indexes), BATCH), 1):
            samples = [items[index] for index in indexes[first : first + BATCH]]
            data = b"".join(sample[key].tobytes() for key in ("image", "mask") for sample in samples)
            found[epoch, number] = hashlib.sha256(data).hexdigest()
    return found


def heed() -> None:
    """Die of Ctrl-C from the first moment on, also where this process ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 600)
def test_ranks_that_are_killed_and_interrupted_read_equal_bytes(cohort: Path, tmp_path: Path) -> None:  # noqa: F811
    before = set(os.listdir("/dev/shm"))
    truth = [expected(cohort, rank) for rank in range(RANKS)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    numbers = [str(number) for number in (RANKS, BATCH, EPOCHS)]

    def start(rank: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RANK, str(cohort), str(tmp_path), str(rank), *numbers]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, preexec_fn=heed)

    rng, ends = random.Random(1), Counter[int]()
    ranks = [start(rank) for rank in range(RANKS)]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0, 15))  # some die while they begin
        for rank in rng.sample(range(RANKS), rng.choice((1, 1, 2))):
            end = rng.choice((signal.SIGKILL, signal.SIGINT))
            ranks[rank].send_signal(end)
            _, error = ranks[rank].communicate(timeout=120)
            assert ranks[rank].returncode == -end, error.decode()
            ends[end] += 1
            ranks[rank] = start(rank)
    for process in ranks:
        process.kill()
        process.communicate(timeout=120)
    seen = 0
    for rank in range(RANKS):
        state = json.loads((tmp_path / f"state{rank}").read_text())
        assert state["world_size"] == RANKS
        for line in (tmp_path / f"log{rank}").read_text().splitlines():
            epoch, number, digest = line.split()
            assert truth[rank][int(epoch), int(number)] == digest, line
            seen += 1
    assert seen > SECONDS  # far more than one a second
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "voxtier" in name}
    print(f"{seen} batches of {RANKS} ranks, ended by signals {dict(ends)}")
