"""Map-style datasets: numpy in, numpy out, no torch needed; picklable, with the same items in any process.

An item is a dict: ``image`` (C, x, y, z), ``mask``, ``label``, ``idx``, ``obs_id``, ``obs_subject_id``,
``patch_start`` and ``affine`` (of the patch). Arrays are contiguous and writable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import geometry
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.tiledb.columns import as_table
from voxtier.volumes.tiledb.format.direct import share_budget
from voxtier.volumes.tiledb.tables import INDEX_COLUMNS
from voxtier.volumes.training.sampling import RandomSampler, Sampler, generator, grid_starts
from voxtier.volumes.volume import Volume

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""


class LoadingMode(str, Enum):  # noqa: UP042 -- prints as the origin's does
    """What one item holds."""

    FULL_VOLUME = "full_volume"
    PATCH = "patch"
    SLICE_2D = "slice_2d"


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """How volumes become items.

    Parameters
    ----------
    loading_mode : LoadingMode
        Whole volumes, patches or axial slices.
    patch_size : tuple of int, optional
        (x, y, z); needed for patches.
    patches_per_volume : int
        Items per volume and epoch (>= 1).
    sampler : Sampler
        Where patches begin.
    seed : int
        Of the random numbers.
    fill : float
        Stored number outside a volume that is smaller than the patch.
    dtype : str or None
        Type of ``image``; None keeps the volume's.
    """

    loading_mode: LoadingMode = LoadingMode.FULL_VOLUME
    patch_size: tuple[int, int, int] | None = None
    patches_per_volume: int = 1
    sampler: Sampler = RandomSampler()  # noqa: RUF009
    seed: int = 0
    fill: float = 0.0
    dtype: str | None = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loading_mode", LoadingMode(self.loading_mode))
        size = self.patch_size
        is_patch = size is not None and len(size) == 3 and min(size) >= 1
        if self.loading_mode is LoadingMode.PATCH and not is_patch:
            raise ConfigError(f"patches need patch_size=(x, y, z), each >= 1, got {size}")
        if self.patches_per_volume < 1:
            raise ConfigError(f"patches_per_volume must be >= 1, got {self.patches_per_volume}")


class VolumeCollectionDataset:
    """Items of one collection, or of several that become channels (matched by subject).

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        Collections or views; one that is given alone needs no match.
    config : DatasetConfig, optional
        How volumes become items, by default whole.
    labels : str, mapping, table or callable, optional
        Column of the rows, obs_id -> label, a table with ``obs_id`` and one more column, or a function of
        obs_id.
    transform : callable, optional
        Applied to the item (MONAI dictionary transforms work).
    mask : VolumeCollection, optional
        Segmentations, matched by subject and checked for shape and place.

    Raises
    ------
    ConfigError
        When there is no volume, or a subject has no volume, several or no label.
    FormatError
        When an image and its mask, or two channels, differ in shape or place.
    """

    def __init__(
        self,
        collections: VolumeCollection | Sequence[VolumeCollection],
        config: DatasetConfig | None = None,
        labels: object = None,
        transform: Transform | None = None,
        *,
        mask: VolumeCollection | None = None,
    ) -> None:
        self.config = config or DatasetConfig()
        self.transform = transform
        self.epoch = 0
        images = [collections] if isinstance(collections, VolumeCollection) else list(collections)
        if not images or not len(images[0]):
            raise ConfigError("a dataset needs at least one volume")
        self.obs_ids = images[0].obs_ids
        self.obs_subject_ids = images[0].obs_subject_ids
        self._channels = [list(images[0])] + [
            match_volumes(other, self.obs_subject_ids) for other in images[1:]
        ]
        self._masks = None if mask is None else match_volumes(mask, self.obs_subject_ids)
        self._labels = _labels(labels, images[0])
        others = [*self._channels[1:], *([self._masks] if self._masks is not None else [])]
        for volumes in others:
            for first, other in zip(self._channels[0], volumes, strict=True):
                _refuse_misplaced(first, other)
        self._depths: NDArray[np.int64] | None = None
        if self.config.loading_mode is LoadingMode.SLICE_2D:
            self._depths = np.cumsum([volume.shape[2] for volume in self._channels[0]])

    @property
    def n_channels(self) -> int:
        """Number of collections that are stacked."""
        return len(self._channels)

    def __len__(self) -> int:
        if self._depths is not None:
            return int(self._depths[-1])
        per = self.config.patches_per_volume if self.config.loading_mode is LoadingMode.PATCH else 1
        return len(self.obs_ids) * per

    def set_epoch(self, epoch: int) -> None:
        """Choose the patches of an epoch; in persistent workers use `sampling.EpochSampler` instead."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Any:
        _share_budget()
        count = len(self)
        epoch, item = self.epoch, int(index)
        if item >= count:  # the epoch travels in the index, see EpochSampler
            epoch, item = divmod(item, count)
        if item < -count or (item < 0 and index >= 0):
            raise IndexError(index)
        if item < 0:
            item += count
        if item < 0:
            raise IndexError(f"item {index} of {count}")
        sample = self._item(epoch, item)
        return sample if self.transform is None else self.transform(sample)

    def __iter__(self) -> Any:
        return (self[item] for item in range(len(self)))

    def _item(self, epoch: int, item: int) -> dict[str, Any]:
        mode = self.config.loading_mode
        if self._depths is not None:
            place = int(np.searchsorted(self._depths, item, side="right"))
            z = item - (int(self._depths[place - 1]) if place else 0)
            return self._sample(place, (0, 0, z), None, z=z)
        if mode is LoadingMode.FULL_VOLUME:
            return self._sample(item, (0, 0, 0), None)
        place = item // self.config.patches_per_volume
        assert self.config.patch_size is not None
        rng = generator(self.config.seed, epoch, item)
        mask = None if self._masks is None else self._masks[place]
        start = self.config.sampler.start(self._channels[0][place], mask, self.config.patch_size, rng)
        return self._sample(place, start, self.config.patch_size)

    def _sample(
        self, place: int, start: tuple[int, ...], size: tuple[int, ...] | None, z: int | None = None
    ) -> dict[str, Any]:
        image = np.stack([self._read(volumes[place], start, size, z) for volumes in self._channels])
        sample: dict[str, Any] = {
            "image": np.ascontiguousarray(image, dtype=self.config.dtype),
            "idx": place,
            "obs_id": self.obs_ids[place],
            "obs_subject_id": self.obs_subject_ids[place],
            "patch_start": np.array(start, dtype=np.int64),
        }
        affine = self._channels[0][place].affine
        if affine is not None:
            sample["affine"] = geometry.crop_affine(affine, start)
        if self._masks is not None:
            mask = self._read(self._masks[place], start, size, z)
            sample["mask"] = _signed(np.ascontiguousarray(mask[None]))
        if self._labels is not None:
            sample["label"] = self._labels[self.obs_ids[place]]
        return sample

    def _read(
        self, volume: Volume, start: tuple[int, ...], size: tuple[int, ...] | None, z: int | None
    ) -> NDArray[Any]:
        if z is not None:
            return volume.axial(z)
        if size is None:
            return volume.to_numpy()
        if volume.ndim == 4:
            start, size = (*start, 0), (*size, volume.shape[3])
        patches: NDArray[Any] = volume.read_patches(np.array([start]), size, fill=self.config.fill)
        return np.asarray(patches[0])


class SegmentationDataset(VolumeCollectionDataset):
    """Images with their segmentations: one start for both, shape and place checked at construction.

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
    """

    def __init__(
        self,
        image: VolumeCollection | Sequence[VolumeCollection],
        mask: VolumeCollection,
        config: DatasetConfig | None = None,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(image, config, None, transform, mask=mask)


class GridPatchDataset:
    """Every patch of a regular grid over one volume, for inference.

    Items also hold ``location`` (i0, j0, k0, i1, j1, k1), as TorchIO's GridAggregator takes it.

    Parameters
    ----------
    volume : Volume
        The volume.
    patch_size : tuple of int
        (x, y, z).
    stride : tuple of int, optional
        Voxels from patch to patch, by default the size.
    fill : float
        Stored number outside a volume that is smaller than the patch.
    dtype : str or None
        Type of ``image``; None keeps the volume's.
    """

    def __init__(
        self,
        volume: Volume,
        patch_size: tuple[int, int, int],
        stride: tuple[int, int, int] | None = None,
        *,
        fill: float = 0.0,
        dtype: str | None = "float32",
    ) -> None:
        self.volume, self.patch_size, self.fill, self.dtype = volume, patch_size, fill, dtype
        self.starts = grid_starts(volume.shape[:3], patch_size, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _share_budget()
        start = self.starts[index]
        image = self.volume.read_patches(np.array([start]), self.patch_size, fill=self.fill)
        sample: dict[str, Any] = {
            "image": np.ascontiguousarray(image, dtype=self.dtype),
            "idx": index,
            "patch_start": np.array(start, dtype=np.int64),
            "location": np.array([*start, *(s + n for s, n in zip(start, self.patch_size, strict=True))]),
        }
        affine = self.volume.affine
        if affine is not None:
            sample["affine"] = geometry.crop_affine(affine, start)
        return sample


def _share_budget() -> None:
    """In a DataLoader's worker: take this worker's part of the byte budget."""
    torch_data = sys.modules.get("torch.utils.data")
    worker = None if torch_data is None else torch_data.get_worker_info()
    if worker is not None:
        share_budget(worker.num_workers)


def _signed(mask: NDArray[Any]) -> NDArray[Any]:
    """Return a mask in a type that torch has in all versions: 16 and 32 bit unsigned become signed."""
    signed = {"u2": np.int32, "u4": np.int64}.get(mask.dtype.str[1:])
    return mask if signed is None else mask.astype(signed)


def match_volumes(collection: VolumeCollection, subjects: Sequence[str]) -> list[Volume]:
    """Return one volume for each subject, found by subject.

    Raises
    ------
    ConfigError
        For a subject without a volume, and for one with several.
    """
    places: dict[str, int] = {}
    for place, subject in enumerate(collection.obs_subject_ids):
        if subject in places and subject in subjects:
            raise ConfigError(
                f"collection {collection.name!r} has several volumes of {subject!r}: select one first"
            )
        places[subject] = place
    missing = [subject for subject in subjects if subject not in places]
    if missing:
        raise ConfigError(f"collection {collection.name!r} lacks the subjects {', '.join(missing[:5])}")
    return [collection.iloc[places[subject]] for subject in subjects]


def _refuse_misplaced(first: Volume, other: Volume) -> None:
    if first.shape[:3] != other.shape[:3]:
        raise FormatError(
            "bad_geometry", None, f"{other.obs_id} has shape {other.shape}, {first.obs_id} has {first.shape}"
        )
    here, there = first.affine, other.affine
    if here is not None and there is not None and not np.allclose(here, there, atol=1e-3):
        error = geometry.corner_error(here, there, first.shape)
        raise FormatError(
            "bad_geometry", None, f"{other.obs_id} lies up to {error:.3g} mm beside {first.obs_id}"
        )


def _labels(labels: object, collection: VolumeCollection) -> dict[str, Any] | None:
    if labels is None:
        return None
    ids = collection.obs_ids
    if callable(labels):
        return {obs_id: labels(obs_id) for obs_id in ids}
    if isinstance(labels, str):
        table = collection.table
        if labels not in table:
            raise ConfigError(f"no column {labels!r}; there are {', '.join(table.columns)}")
        by_id = dict(zip(ids, [row[labels] for row in table.rows()], strict=True))
    elif isinstance(labels, Mapping) and "obs_id" not in labels:
        by_id = {str(key): value for key, value in labels.items()}
    else:
        table = as_table(labels)
        values = [name for name in table.columns if name not in INDEX_COLUMNS]
        if "obs_id" not in table or len(values) != 1:
            raise ConfigError("a table of labels has the columns obs_id and one more")
        by_id = {row["obs_id"]: row[values[0]] for row in table.rows()}
    missing = [obs_id for obs_id in ids if obs_id not in by_id]
    if missing:
        raise ConfigError(f"no label for {', '.join(missing[:5])}")
    return {obs_id: by_id[obs_id] for obs_id in ids}
