"""An hour of training by two ranks that are killed and interrupted: equal bytes, nothing left behind.

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

import pytest

pytest.importorskip("torch")

from volumes.training.test_batches import cohort, dataset  # noqa: F401
from voxtier.volumes.training.sampling import EpochSampler

SECONDS = float(os.environ.get("TRAINING_SOAK_SECONDS", "3600"))
EPOCHS, RANKS, BATCH = 4, 2, 2

# Notes each batch, then where it stands; goes on from there when it is started again.
RANK = """
import hashlib, json, os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from voxtier.volumes import ReadConfig, batches, configure
from volumes.training.test_batches import dataset
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
