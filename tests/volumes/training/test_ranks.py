"""Real processes: two gloo ranks train one model, one is interrupted, one is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")

from volumes.training.test_batches import cohort  # noqa: F401
from voxtier.volumes import ForegroundSampler, RadiObject, SegmentationDataset
from voxtier.volumes.training.datasets import DatasetConfig

TRAIN = """
import hashlib, json, sys
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
print(json.dumps([len(loader), seen, [float(p.sum()) for p in model.parameters()]]))
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


def test_a_process_that_ignores_ctrl_c_goes_on(cohort: Path) -> None:  # noqa: F811
    """As one in the background of a script does: TileDB's handler called the address of SIG_IGN."""
    command = [sys.executable, "-c", ENDLESS, str(cohort), "ignore"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "running"
        process.send_signal(signal.SIGINT)
        again = process.stdout.readline().strip()  # the next pass
        process.kill()
    assert again == "running"


def test_two_gloo_ranks_see_the_items_of_one_process_and_train_one_model(
    cohort: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    processes = [_start(cohort, tmp_path, rank) for rank in range(2)]
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
    first, second = [_answer(process) for process in processes]
    assert (first[0], second[0]) == (4, 4)  # 18 items: two are left out, so that no rank waits for the other
    both = Counter([*first[1], *second[1]])
    assert both.total() == 2 * 16
    assert both <= alone
    assert first[2] == second[2]


def _start(store: Path, folder: Path, rank: int) -> subprocess.Popen[str]:
    arguments = [str(store), str(folder / "meeting"), str(rank), "2"]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _answer(process: subprocess.Popen[str]) -> list:
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_ends_at_once_and_leaves_nothing(cohort: Path, end: signal.Signals) -> None:  # noqa: F811
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(cohort)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "running"
    process.send_signal(end)
    _, error = process.communicate(timeout=60)
    assert process.returncode == -end
    assert end is not signal.SIGINT or error.rstrip().endswith("KeyboardInterrupt")
    mine = {
        name for name in set(os.listdir("/dev/shm")) - before if str(process.pid) in name or "voxtier" in name
    }
    assert not mine
