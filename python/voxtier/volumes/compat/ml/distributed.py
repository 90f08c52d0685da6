"""The origin's loader of one rank of several."""

from __future__ import annotations

from typing import Any

from voxtier.volumes.compat._types import LabelSource
from voxtier.volumes.compat.ml.datasets import VolumeCollectionDataset
from voxtier.volumes.compat.ml.factory import Collections, Size, Transform, config_of, load


def create_distributed_dataloader(
    collections: Collections,
    rank: int,
    world_size: int,
    labels: LabelSource = None,
    batch_size: int = 4,
    patch_size: Size = None,
    num_workers: int = 4,
    pin_memory: bool = True,  # noqa: FBT001, FBT002
    transform: Transform | None = None,
) -> Any:
    """Return the shuffled loader of one rank: all ranks have equally many batches.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
    rank, world_size : int
        This process's part. Ranks are disjoint where volumes divide; else the first of the order come once
        more, as torch's DistributedSampler does.
    labels : str, DataFrame, dict or callable, optional
        See `load_labels`.
    batch_size : int
        Items of a batch.
    patch_size : tuple of int, optional
        (x, y, z); by default items are whole volumes.
    num_workers : int
        Processes that load.
    pin_memory : bool
        See torch's DataLoader.
    transform : callable, optional
        Applied to the item.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    dataset = VolumeCollectionDataset(collections, config_of(patch_size), labels, transform)
    return load(
        dataset,
        num_workers,
        batch_size=batch_size,
        pin_memory=pin_memory,
        shuffle=True,
        drop_last=True,
        rank=rank,
        world_size=world_size,
    )


def set_epoch(dataloader: Any, epoch: int) -> None:
    """Fix the epoch of a loader's next pass; without it each pass is the next epoch."""
    if hasattr(dataloader.sampler, "set_epoch"):
        dataloader.sampler.set_epoch(epoch)
