"""Items of collections: images, their masks and labels, matched by subject."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from copy import copy, deepcopy
from types import NoneType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from voxtier.arguments import check_kind, several
from voxtier.errors import ConfigError
from voxtier.volumes import geometry
from voxtier.volumes.cohort.cohort_view import CohortView
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.tiledb.creation import cast_numbers
from voxtier.volumes.tiledb.format.direct import share_budget
from voxtier.volumes.tiledb.scaling import Normalize
from voxtier.volumes.training.datasets.config import DatasetConfig, LoadingMode
from voxtier.volumes.training.epochs import (
    Draw,
    EpochCounter,
    EpochIndex,
    generator,
    worker_process,
    worker_thread,
)
from voxtier.volumes.training.matching import match_volumes, read_labels, refuse_misplaced, refuse_times
from voxtier.volumes.volume import Volume

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""


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
        When there is no volume, or a subject has no volume, several or no label, and for masks of several
        points in time in which the sampler would look for classes.
    FormatError
        When an image and its mask, or two channels, differ in shape or place.
    """

    def __init__(
        self,
        collections: VolumeCollection | Iterable[VolumeCollection],
        config: DatasetConfig | None = None,
        labels: object = None,
        transform: Transform | None = None,
        *,
        mask: VolumeCollection | None = None,
    ) -> None:
        check_kind("config", config, (DatasetConfig, NoneType), "a DatasetConfig")
        self.config = config or DatasetConfig()
        self.transform = transform
        self.epoch = 0
        # A collection, and a cohort given by mistake, can be iterated over too.
        is_one = isinstance(collections, VolumeCollection | CohortView) or not isinstance(
            collections, Iterable
        )
        images: list[Any] = [collections] if is_one else several(collections)
        for image in images:
            check_kind("a dataset's images", image, VolumeCollection, "collections, such as radi.CT")
        check_kind("mask", mask, (VolumeCollection, NoneType), "a collection, such as radi.seg")
        if not images or not len(images[0]):
            raise ConfigError("a dataset needs at least one volume")
        self.obs_ids = images[0].obs_ids
        self.obs_subject_ids = images[0].obs_subject_ids
        self._channels = [list(images[0])] + [match_volumes(other, images[0]) for other in images[1:]]
        self._masks = None if mask is None else match_volumes(mask, images[0])
        self._labels = read_labels(labels, images[0])
        for volumes in self._channels[1:]:
            for first, other in zip(self._channels[0], volumes, strict=True):
                refuse_misplaced(first, other)
        mask_dtypes: set[np.dtype[Any]] = set()
        for first, other in zip(self._channels[0], self._masks or (), strict=self._masks is not None):
            refuse_misplaced(first, other)
            mask_dtypes.add(other.dtype)
            if self.config.loading_mode is LoadingMode.PATCH and getattr(
                self.config.sampler, "reads_mask", False
            ):
                refuse_times(other)
        self.mask_dtype = np.result_type(*map(signed_dtype, mask_dtypes)) if mask_dtypes else None
        self._depths: NDArray[np.int64] | None = None
        if self.config.loading_mode is LoadingMode.SLICE_2D:
            self._depths = np.cumsum([volume.shape[2] for volume in self._channels[0]])
        self._epochs = EpochCounter(len(self))

    @property
    def n_channels(self) -> int:
        """Number of collections that are stacked."""
        return len(self._channels)

    @property
    def _items_of_each(self) -> int:
        return self.config.patches_per_volume if self.config.loading_mode is LoadingMode.PATCH else 1

    def place_of(self, item: int) -> int:
        """Return the observation of an item, of a dataset of patches or of whole volumes."""
        return item // self._items_of_each

    def volumes(self, place: int) -> tuple[list[Volume], Volume | None]:
        """Return the channels of an observation, and its mask."""
        mask = None if self._masks is None else self._masks[place]
        return [channel[place] for channel in self._channels], mask

    def labels_of(self, places: Sequence[int]) -> list[Any] | None:
        """Return the labels of observations; None without labels."""
        return None if self._labels is None else [self._labels[self.obs_ids[place]] for place in places]

    def __len__(self) -> int:
        if self._depths is not None:
            return int(self._depths[-1])
        return len(self.obs_ids) * self._items_of_each

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__ |= {**self.__dict__, "_epochs": copy(self._epochs)}
        return made

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass of a DataLoader, and of items that are asked for without one.

        Each pass is the next epoch by itself; a run that is resumed sets where it goes on. Workers that
        persist hear of it.
        """
        self._epochs.set_next(epoch)
        self.epoch = operator.index(epoch)

    def __getitem__(self, index: int) -> Any:
        share_budget_of_worker()
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"item {index} of {count}")
        sample = self._item(index, operator.index(index) % count)
        return sample if self.transform is None else self.apply(self.transform, sample, index)

    def apply(self, transform: Transform, sample: dict[str, Any], index: int, *, stream: int = 1) -> Any:
        """Apply a transform to an item; one of MONAI's gets random numbers of the draw.

        In a worker it is a copy, whose own random numbers would be the same in each pass. A worker that is a
        thread, as those of MONAI's ThreadDataLoader can be, copies it for each item.

        Parameters
        ----------
        transform : callable
            Takes an item and gives one.
        sample : dict
            The item.
        index : int
            Of the item.
        stream : int
            Of random numbers: another one for each transform of an item.

        Returns
        -------
        Any
            What the transform gives.
        """
        item = operator.index(index) % len(self)
        if hasattr(transform, "set_random_state") and (draw := self._draw(index, item)) is not None:
            rng = generator(self.config.seed, draw.epoch, item, draw.visit, stream=stream)
            if worker_thread() is not None:  # other threads use the transform now
                transform = deepcopy(transform)
            transform.set_random_state(seed=int(rng.integers(2**32)))
        return transform(sample)

    def __iter__(self) -> Any:
        return (self[item] for item in range(len(self)))

    def _draw(self, index: int, item: int) -> Draw | None:
        return Draw(index.epoch) if isinstance(index, EpochIndex) else self._epochs.count(item)

    def _item(self, index: int, item: int) -> dict[str, Any]:
        mode = self.config.loading_mode
        if self._depths is not None:
            place = int(np.searchsorted(self._depths, item, side="right"))
            z = item - (int(self._depths[place - 1]) if place else 0)
            return self._sample(place, (0, 0, z), None, z=z)
        if mode is LoadingMode.FULL_VOLUME:
            return self._sample(item, (0, 0, 0), None)
        place = self.place_of(item)
        draw = self._draw(index, item) or Draw(self.epoch)
        rng = generator(self.config.seed, draw.epoch, item, draw.visit)
        mask = None if self._masks is None else self._masks[place]
        size = self.config.size
        start = self.config.sampler.start(self._channels[0][place], mask, size, rng)
        return self._sample(place, start, size)

    def _sample(
        self, place: int, start: tuple[int, ...], size: tuple[int, ...] | None, z: int | None = None
    ) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "image": self._image(place, start, size, z),
            "idx": place,
            "obs_id": self.obs_ids[place],
            "obs_subject_id": self.obs_subject_ids[place],
            "patch_start": np.array(start, dtype=np.int64),
        }
        affine = self._channels[0][place].affine
        if affine is not None:
            sample["affine"] = geometry.crop_affine(affine, start)
        if self._masks is not None:
            volume = self._masks[place]
            dtype = signed_dtype(volume.dtype)
            if size is None:
                sample["mask"] = np.ascontiguousarray(_whole(volume, z)[None], dtype=dtype)
            else:
                sample["mask"] = read_patches([volume], start, size, dtype, self.config.outside_mask)
        if self._labels is not None:
            sample["label"] = self._labels[self.obs_ids[place]]
        return sample

    def _image(
        self, place: int, start: tuple[int, ...], size: tuple[int, ...] | None, z: int | None
    ) -> NDArray[Any]:
        volumes, config = [channel[place] for channel in self._channels], self.config
        if size is not None:
            return read_patches(volumes, start, size, config.dtype, config.fill, config.normalize)
        channels = [_whole(volume, z) for volume in volumes]
        if config.normalize is not None:
            channels = [config.normalize.apply(channel) for channel in channels]
        if config.dtype is not None:
            dtype, pairs = np.dtype(config.dtype), zip(channels, volumes, strict=True)
            # In order before they are wider: turning them afterwards takes up to three times as long.
            channels = [
                cast_numbers(np.ascontiguousarray(channel), dtype, volume.uri) for channel, volume in pairs
            ]
        return np.ascontiguousarray(np.stack(channels))


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
        image: VolumeCollection | Iterable[VolumeCollection],
        mask: VolumeCollection,
        config: DatasetConfig | None = None,
        transform: Transform | None = None,
    ) -> None:
        check_kind("mask", mask, VolumeCollection, "a collection, such as radi.seg")
        super().__init__(image, config, None, transform, mask=mask)


def _whole(volume: Volume, z: int | None) -> NDArray[Any]:
    return volume.to_numpy() if z is None else volume.axial(z)


def read_patches(
    volumes: Sequence[Volume],
    start: Sequence[int],
    size: Sequence[int],
    dtype: DTypeLike | None,
    fill: float,
    normalize: Normalize | None = None,
) -> NDArray[Any]:
    """Read the same patch of volumes of one shape, with all points in time.

    Parameters
    ----------
    volumes : sequence of Volume
        Each becomes a channel.
    start, size : sequence of int
        First voxel and size along x, y and z.
    dtype : data-type or None
        Of the result; None keeps that of the volumes.
    fill : float
        Stored number outside a volume.
    normalize : Normalize, optional
        For results of float32.

    Returns
    -------
    numpy.ndarray, (C, x, y, z[, t])
        C-contiguous and writable.
    """
    times = volumes[0].shape[3:]
    corner = np.array([[*start, *(0 for _ in times)]])
    if dtype is None:
        parts = [volume.read_patches(corner, (*size, *times), fill=fill) for volume in volumes]
        return np.ascontiguousarray(np.concatenate(parts))
    image = np.empty((len(volumes), *size, *times), dtype)
    for channel, volume in zip(image, volumes, strict=True):
        volume.read_patches_into(corner, channel[None], fill=fill, normalize=normalize)
    return image


def share_budget_of_worker() -> None:
    """In a DataLoader's worker: take this worker's part of the byte budget."""
    worker = worker_process()
    if worker is not None:
        share_budget(worker.num_workers)


def signed_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type that torch has in all versions: 16 and 32 bit unsigned become signed."""
    return np.dtype({"u2": np.int32, "u4": np.int64}.get(dtype.str[1:], dtype))
