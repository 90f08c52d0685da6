"""Loaders of torch, tensors of MONAI, subjects of TorchIO; each is imported in the function that needs it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from voxtier.arguments import whole_number
from voxtier.errors import MissingExtraError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.training.datasets import (
    DatasetConfig,
    GridPatchDataset,
    LoadingMode,
    SegmentationDataset,
    Transform,
    VolumeCollectionDataset,
)
from voxtier.volumes.training.epochs import EpochSampler
from voxtier.volumes.training.sampling import Size
from voxtier.volumes.volume import Volume

Collections = VolumeCollection | Iterable[VolumeCollection]
"""One collection, or several that become channels."""


def import_torch() -> Any:
    """Return the module torch.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    """
    try:
        import torch.utils.data  # noqa: F401 -- loads it; handed out untyped below
    except ImportError:
        raise MissingExtraError("torch", "tensors") from None
    return sys.modules["torch"]


def import_torchio() -> Any:
    """Return the module torchio.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    """
    try:
        import torchio
    except ImportError:
        raise MissingExtraError("torchio", "torchio") from None
    return torchio


def data_loader(
    dataset: Any,
    *,
    batch_size: int | None = 1,
    shuffle: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    even: bool = True,
    start_method: str | None = None,
    **options: Any,
) -> Any:
    """Return a torch DataLoader whose epochs differ, also in persistent workers.

    Parameters
    ----------
    dataset : VolumeCollectionDataset or GridPatchDataset
        What to load.
    batch_size : int or None
        Items of a batch; None loads items one by one, as they are.
    shuffle : bool
        Draw a new order each epoch.
    num_workers : int
        Processes that load; 0 loads in this one. Processes begin with the call of ``iter``, which is then an
        epoch even if nothing is drawn.
    seed, rank, world_size : int
        See `epochs.EpochSampler`, which is the loader's ``sampler`` (call its ``set_epoch`` to resume).
    even : bool
        Give all ranks equally many batches, as training needs: up to one item a rank comes once more. Without
        it each item comes once.
    start_method : {"fork", "spawn", "forkserver"}, optional
        How workers start.
    **options : Any
        Further arguments of the DataLoader.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    torch = import_torch()
    sampler = EpochSampler(
        len(dataset), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, even=even
    )
    workers = whole_number("num_workers", num_workers, 0)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    if start_method is not None and workers > 0:
        options["multiprocessing_context"] = start_method
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, **options
    )


def create_training_dataloader(
    collections: Collections,
    patch_size: Size | None = None,
    *,
    labels: object = None,
    transform: Transform | None = None,
    patches_per_volume: int = 1,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Return a shuffled loader of random patches (or whole volumes).

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
    patch_size : int or sequence of int, optional
        (x, y, z), or one number for a cube; by default items are whole volumes.
    labels : str, mapping, table or callable, optional
        See `VolumeCollectionDataset`.
    transform : callable, optional
        Applied to the item.
    patches_per_volume : int
        Items per volume and epoch.
    seed : int
        Of the order and of the patches.
    **options : Any
        Of `data_loader`.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    config = DatasetConfig(
        LoadingMode.FULL_VOLUME if patch_size is None else LoadingMode.PATCH,
        patch_size,
        patches_per_volume,
        seed=seed,
    )
    dataset = VolumeCollectionDataset(collections, config, labels, transform)
    return data_loader(dataset, shuffle=True, seed=seed, **options)


def create_validation_dataloader(
    collections: Collections, *, labels: object = None, transform: Transform | None = None, **options: Any
) -> Any:
    """Return a loader of whole volumes in order.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        The images; several become channels.
    labels : str, mapping, table or callable, optional
        See `VolumeCollectionDataset`.
    transform : callable, optional
        Applied to the item.
    **options : Any
        Of `data_loader`; ``even`` is False by default, so that a measure counts each volume once.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    dataset = VolumeCollectionDataset(collections, None, labels, transform)
    return data_loader(dataset, **{"even": False, **options})


def create_inference_dataloader(
    volume: Volume,
    patch_size: Size,
    stride: Size | None = None,
    **options: Any,
) -> Any:
    """Return a loader of the grid of patches of one volume.

    Parameters
    ----------
    volume : Volume
        The volume.
    patch_size : int or sequence of int
        (x, y, z), or one number for a cube.
    stride : int or sequence of int, optional
        Voxels from patch to patch, by default the size.
    **options : Any
        Of `data_loader`; ``even`` is False by default, so that each patch comes once.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    return data_loader(GridPatchDataset(volume, patch_size, stride), **{"even": False, **options})


def create_segmentation_dataloader(
    image: Collections,
    mask: VolumeCollection,
    config: DatasetConfig | None = None,
    *,
    transform: Transform | None = None,
    **options: Any,
) -> Any:
    """Return a shuffled loader of images with their masks.

    Parameters
    ----------
    image : VolumeCollection or sequence of them
        The images; several become channels.
    mask : VolumeCollection
        Their segmentations, matched by subject.
    config : DatasetConfig, optional
        How volumes become items, by default whole.
    transform : callable, optional
        Applied to the item.
    **options : Any
        Of `data_loader`.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    return data_loader(SegmentationDataset(image, mask, config, transform), shuffle=True, **options)


def create_distributed_dataloader(dataset: Any, *, rank: int, world_size: int, **options: Any) -> Any:
    """Return the shuffled loader of one rank: all ranks have equally many batches, their union is complete.

    Parameters
    ----------
    dataset : VolumeCollectionDataset or GridPatchDataset
        What to load.
    rank, world_size : int
        This process's part. Ranks are disjoint where items divide; else the first items of the order come
        once more.
    **options : Any
        Of `data_loader`; with ``even=False`` ranks are always disjoint, and may differ by one item.

    Returns
    -------
    torch.utils.data.DataLoader
        The loader.
    """
    return data_loader(dataset, shuffle=True, rank=rank, world_size=world_size, **options)


class ToMetaTensor:
    """Transform: ``image`` and ``mask`` become MONAI MetaTensors with the patch's RAS affine. Picklable."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the item with tensors."""
        try:
            from monai.data.meta_tensor import MetaTensor
        except ImportError:
            raise MissingExtraError("monai", "tensors") from None
        torch = import_torch()
        item = dict(sample)
        for key in ("image", "mask"):
            if key in item:
                tensor = torch.from_numpy(item[key])
                affine = sample.get("affine")
                item[key] = MetaTensor(tensor, affine=None if affine is None else torch.from_numpy(affine))
        return item


def as_torchio_subject(sample: dict[str, Any]) -> Any:
    """Return a TorchIO Subject: ``image`` as ScalarImage (C, x, y, z), ``mask`` as LabelMap, with affines."""
    torchio, torch = import_torchio(), import_torch()
    kinds: dict[str, Any] = {"image": torchio.ScalarImage, "mask": torchio.LabelMap}
    images = {
        key: kind(tensor=torch.from_numpy(sample[key]), affine=sample.get("affine"))
        for key, kind in kinds.items()
        if key in sample
    }
    rest = {key: sample[key] for key in ("obs_id", "obs_subject_id", "label", "location") if key in sample}
    return torchio.Subject(**images, **rest)
