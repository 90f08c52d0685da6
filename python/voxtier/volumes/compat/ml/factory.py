"""The origin's loaders: torch's DataLoader over its datasets, whose patches and order differ each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.compat._types import LabelSource
from voxtier.volumes.compat.ml.config import DatasetConfig, LoadingMode
from voxtier.volumes.compat.ml.datasets import SegmentationDataset, VolumeCollectionDataset
from voxtier.volumes.training.loaders import data_loader

Collections = VolumeCollection | Sequence[VolumeCollection]
"""One collection, or several that become channels."""

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""

Size = tuple[int, int, int] | None
"""(x, y, z) of random patches, or whole volumes."""


def config_of(patch_size: Size, patches_per_volume: int = 1) -> DatasetConfig:
    """Return the options of random patches, or of whole volumes."""
    mode = LoadingMode.PATCH if patch_size else LoadingMode.FULL_VOLUME
    return DatasetConfig(mode, patch_size, patches_per_volume)


def load(dataset: Any, num_workers: int, *, pin_memory: bool, **options: Any) -> Any:
    """Return a loader; memory is pinned where there are workers and a device to send it to.

    Parameters
    ----------
    dataset : Dataset
        What to load.
    num_workers : int
        Processes that load.
    pin_memory : bool
        Whether to pin.
    **options : Any
        Of `voxtier.volumes.training.loaders.data_loader`.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    pins = pin_memory and num_workers > 0 and torch.cuda.is_available()
    if "persistent_workers" in options:
        options["persistent_workers"] = options["persistent_workers"] and num_workers > 0
    return data_loader(dataset, num_workers=num_workers, pin_memory=pins, **options)


def create_training_dataloader(
    collections: Collections,
    labels: LabelSource = None,
    batch_size: int = 4,
    patch_size: Size = None,
    num_workers: int = 4,
    pin_memory: bool = True,  # noqa: FBT001, FBT002
    persistent_workers: bool = True,  # noqa: FBT001, FBT002
    transform: Transform | None = None,
    patches_per_volume: int = 1,
) -> Any:
    """Return a shuffled loader of random patches (or whole volumes) without a last part of a batch.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
    labels : str, DataFrame, dict or callable, optional
        See `load_labels`.
    batch_size : int
        Items of a batch.
    patch_size : tuple of int, optional
        (x, y, z); by default items are whole volumes.
    num_workers : int
        Processes that load.
    pin_memory, persistent_workers : bool
        See torch's DataLoader.
    transform : callable, optional
        Applied to the item.
    patches_per_volume : int
        Items per volume and epoch.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    dataset = VolumeCollectionDataset(
        collections, config_of(patch_size, patches_per_volume), labels, transform
    )
    return load(
        dataset,
        num_workers,
        batch_size=batch_size,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers,
        shuffle=True,
        drop_last=True,
    )


def create_validation_dataloader(
    collections: Collections,
    labels: LabelSource = None,
    batch_size: int = 4,
    patch_size: Size = None,
    num_workers: int = 4,
    pin_memory: bool = True,  # noqa: FBT001, FBT002
    transform: Transform | None = None,
) -> Any:
    """Return a loader of every item in order.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
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
    return load(dataset, num_workers, batch_size=batch_size, pin_memory=pin_memory)


def create_inference_dataloader(
    collections: Collections,
    batch_size: int = 1,
    num_workers: int = 4,
    pin_memory: bool = True,  # noqa: FBT001, FBT002
    transform: Transform | None = None,
) -> Any:
    """Return a loader of whole volumes in order.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
    batch_size : int
        Items of a batch.
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
    dataset = VolumeCollectionDataset(collections, None, None, transform)
    return load(dataset, num_workers, batch_size=batch_size, pin_memory=pin_memory)


def create_segmentation_dataloader(
    image: VolumeCollection,
    mask: VolumeCollection,
    batch_size: int = 4,
    patch_size: Size = None,
    num_workers: int = 4,
    pin_memory: bool = True,  # noqa: FBT001, FBT002
    persistent_workers: bool = True,  # noqa: FBT001, FBT002
    image_transform: Transform | None = None,
    spatial_transform: Transform | None = None,
    foreground_sampling: bool = False,  # noqa: FBT001, FBT002
    foreground_threshold: float = 0.01,
    foreground_max_retries: int = 10,
    patches_per_volume: int = 1,
) -> Any:
    """Return a shuffled loader of images with their masks, without a last part of a batch.

    Parameters
    ----------
    image, mask : VolumeCollection
        The images, and their segmentations, matched by subject.
    batch_size : int
        Items of a batch.
    patch_size : tuple of int, optional
        (x, y, z); by default items are whole volumes.
    num_workers : int
        Processes that load.
    pin_memory, persistent_workers : bool
        See torch's DataLoader.
    image_transform, spatial_transform : callable, optional
        See `SegmentationDataset`, as for what follows.
    foreground_sampling : bool
        Take patches around voxels of the mask that are not 0.
    foreground_threshold : float
        Least part of a patch that is foreground.
    foreground_max_retries : int
        Patches that are looked at.
    patches_per_volume : int
        Items per volume and epoch.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    dataset = SegmentationDataset(
        image,
        mask,
        config_of(patch_size, patches_per_volume),
        image_transform,
        spatial_transform,
        foreground_sampling,
        foreground_threshold,
        foreground_max_retries,
    )
    return load(
        dataset,
        num_workers,
        batch_size=batch_size,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers,
        shuffle=True,
        drop_last=True,
    )
