"""What workers and other processes import: apart from the tests, so that these load little else."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from voxtier.errors import FormatError
from voxtier.volumes import RadiObject, cache_stats


def append_some(root: Path, folder: Path, first: int, together: Any) -> None:
    """Append three images, one after the other; the processes begin when all are there."""
    radi = RadiObject(root)
    together.wait(100)
    for number in range(first, first + 3):
        radi.append(images={"T1w": [(folder / f"{number:03d}_T1w.nii", f"s{number}")]})


def mean_in_process(uri: str) -> float:
    """Return the mean of a volume, as a process reads it that RadiObject's guide starts."""
    from voxtier.volumes.compat import Volume
    from voxtier.volumes.compat.parallel import ctx_for_process

    return float(Volume(uri, ctx=ctx_for_process()).to_numpy().mean())


def keep(items: list[Any]) -> list[Any]:
    """Collate: the items as they are."""
    return items


class Raises:
    """A transform that meets a bad volume."""

    def __call__(self, sample: Any) -> Any:
        raise FormatError("bad_tile", 7, "on purpose")


class Dies:
    """A transform whose process is killed."""

    def __call__(self, sample: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Budget:
    """A transform that tells the cache's budget in this process."""

    def __call__(self, sample: Any) -> Any:
        return cache_stats()["budget"]


class Number:
    """A transform that gives its seed, after two threads have set one."""

    barrier = threading.Barrier(2)

    def set_random_state(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, sample: Any) -> Any:
        self.barrier.wait(60)
        return {**sample, "number": self.seed}


class Halves:
    """A dataset that asks twice for an item, as one that returns images and masks apart may do."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]["image"], self.dataset[index]["image"]


def thread_loader(dataset: Any, num_workers: int, **options: Any) -> Any:
    """Return MONAI's loader whose workers are threads, each of which begins when all have been made."""
    from monai.data import ThreadDataLoader

    barrier = threading.Barrier(num_workers)
    return ThreadDataLoader(
        dataset,
        num_workers=num_workers,
        use_thread_workers=True,
        worker_init_fn=lambda _: barrier.wait(60),
        **{"collate_fn": keep, **options},
    )


def draw_as_rank(dataset: Any, rank: int, workers: int, queue: Any, *, threads: bool = False) -> None:
    """Draw two epochs of one rank of two, with a plain loader; torch has the same seed in all ranks."""
    import torch
    from torch.utils.data import DataLoader, DistributedSampler

    torch.manual_seed(0)
    sampler: Any = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
    options: Any = {"batch_size": 2, "sampler": sampler, "num_workers": workers, "collate_fn": keep}
    loader: Any = thread_loader(dataset, **options) if threads else DataLoader(dataset, **options)
    for epoch in range(2):
        items = [item for batch in loader for item in batch]
        queue.put((epoch, [(item["obs_id"], *item["patch_start"].tolist()) for item in items]))
