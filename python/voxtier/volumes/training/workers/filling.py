"""What fills a batch: the core's threads, or the general reader for volumes that only TileDB can read."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import ConfigError, VoxtierError
from voxtier.volumes.config import ReadConfig
from voxtier.volumes.reading.parts import Part, read_part, scaling_of
from voxtier.volumes.store.foreground import BLOCK
from voxtier.volumes.tiledb.creation import cast_numbers
from voxtier.volumes.tiledb.format.direct import apply_budget, join_node, reserve
from voxtier.volumes.tiledb.scaling import refuse_fill
from voxtier.volumes.training.augmenting import Augmentation, View
from voxtier.volumes.training.datasets import VolumeCollectionDataset
from voxtier.volumes.training.epochs import EpochIndex, generator
from voxtier.volumes.training.sampling import ForegroundSampler, RandomSampler
from voxtier.volumes.training.workers.ring import Form, Slot
from voxtier.volumes.volume import Volume

Outcome = tuple[Sequence[int], BaseException | None]
"""First voxel of a patch, and why it could not be read."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A patch that could not be read.

    Parameters
    ----------
    obs_id : str
        Of the image.
    item : int
        Index in the dataset.
    epoch : int
        In which it was drawn.
    start : tuple of int
        First voxel along x, y, z.
    reason : str
        The error's words.
    """

    obs_id: str
    item: int
    epoch: int
    start: tuple[int, ...]
    reason: str

    @property
    def name(self) -> str:
        """Which patch."""
        return f"{self.obs_id}, patch at {self.start} (item {self.item}, epoch {self.epoch})"


class Filler(Protocol):
    """Fills batches; orders and outcomes are numbered by batch."""

    def submit(
        self, number: int, slot: Slot, items: Sequence[int], epoch: int, views: Sequence[View | None]
    ) -> None:
        """Begin to fill a slot.

        Parameters
        ----------
        number : int
            Of the batch; lower ones are filled first.
        slot : Slot
            Where the patches go.
        items : sequence of int
            What to read, row by row.
        epoch : int
            Decides the places of the patches.
        views : sequence of View
            How each is changed (`Wanted.view`).
        """

    def wait(self, number: int, milliseconds: int) -> Sequence[Outcome] | None:
        """Return what became of a batch; None when it is not finished in time."""

    def stop(self) -> None:
        """Drop what is not finished."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a training wants of its volumes.

    Parameters
    ----------
    dataset : VolumeCollectionDataset
        The items.
    form : Form
        Of the batches.
    is_stored : bool
        Whether images are the stored numbers.
    augment : Augmentation, optional
        Drawn for each item.
    """

    dataset: VolumeCollectionDataset
    form: Form
    is_stored: bool
    augment: Augmentation | None = None

    def view(self, item: int, epoch: int) -> View | None:
        """Draw how an item is changed."""
        if self.augment is None:
            return None
        return self.augment.draw(
            generator(self.dataset.config.seed, epoch, item, stream=2), self.form.channels
        )

    def change(self, view: View | None, item: EpochIndex, start: tuple[int, ...]) -> _core.PatchChange | None:
        """Return what the core does to an item that it does not read.

        Parameters
        ----------
        view : View or None
            How it is changed.
        item : EpochIndex
            Decides the noise.
        start : tuple of int
            First voxel of the patch.

        Returns
        -------
        PatchChange or None
            None without augmentation.
        """
        if view is None:
            return None
        config = self.dataset.config
        key = (config.seed & (2**64 - 1), item.epoch)
        steps, channels = self.form.steps, self.form.channels
        return _core.PatchChange(view, start, config.size, steps, channels, key, int(item))

    def part(self, volume: Volume, *, is_mask: bool) -> Part | str:
        """Return what the core needs to read patches of a volume, or why it cannot."""
        config = self.dataset.config
        dtype = self.form.mask_dtype if is_mask else self.form.dtype
        assert dtype is not None, "a dataset with masks has their type"
        return read_part(
            volume,
            config.size,
            dtype,
            config.outside_mask if is_mask else config.fill,
            None if is_mask else config.normalize,
            is_stored=self.is_stored and not is_mask,
        )

    def volumes(self, place: int) -> tuple[list[Volume], Volume | None]:
        """Return the channels and the mask of a place."""
        return self.dataset.volumes(place)

    def start(self, item: int, epoch: int) -> tuple[int, ...]:
        """Draw the first voxel of an item's patch."""
        config = self.dataset.config
        images, mask = self.volumes(self.dataset.place_of(item))
        return config.sampler.start(images[0], mask, config.size, generator(config.seed, epoch, item))


class _Ending:
    """What may be stopped when modules are gone: an iterator that is kept is closed last of all."""

    _is_process_over = staticmethod(sys.is_finalizing)  # here, since the names of this module may be gone too


class CoreFiller(_Ending):
    """Fills batches by threads of the core.

    Parameters
    ----------
    wanted : Wanted
        What to read.
    threads : int
        Threads that read and decode.
    read : ReadConfig
        Memory.

    Raises
    ------
    ConfigError
        For foreground patches of images without masks.
    """

    def __init__(self, wanted: Wanted, threads: int, read: ReadConfig) -> None:
        self._wanted, self._threads, self._read = wanted, threads, read
        self._subjects: dict[int, _core.PatchSubject | str] = {}
        self._engine: _core.BatchEngine | None = None
        self._reserved = 0  # bytes of the node's blocks, which are this process's too while it reads them
        sampler = wanted.dataset.config.sampler
        self._draws = type(sampler) in (RandomSampler, ForegroundSampler)
        self._scaled: set[int] = set()  # places of scaled masks: the core compares stored numbers
        self._p_pos = sampler.p_pos if isinstance(sampler, ForegroundSampler) else None
        if self._p_pos is not None and wanted.form.mask_dtype is None:
            raise ConfigError("foreground patches need a mask")

    def reason(self, place: int) -> str | None:
        """Return why the core cannot read the volumes of a place; None when it can."""
        subject = self._subject(place)
        return subject if isinstance(subject, str) else None

    def can_fill(self, items: Sequence[int]) -> bool:
        """Return whether the core can read all of these items."""
        place_of = self._wanted.dataset.place_of
        return all(self.reason(place_of(item)) is None for item in items)

    def _subject(self, place: int) -> _core.PatchSubject | str:
        found = self._subjects.get(place)
        if found is None:
            try:
                found = self._subjects[place] = self._open(place)
            except (VoxtierError, OSError) as error:
                return f"cannot be opened: {error}"  # the general reader says so item by item
        return found

    def _open(self, place: int) -> _core.PatchSubject | str:
        images, mask = self._wanted.volumes(place)
        parts = [self._wanted.part(image, is_mask=False) for image in images]
        parts += [] if mask is None else [self._wanted.part(mask, is_mask=True)]
        for part in parts:
            if isinstance(part, str):
                return part
        sampler = self._wanted.dataset.config.sampler
        foreground = None
        if isinstance(sampler, ForegroundSampler) and mask is not None and sampler.p_pos > 0:
            if mask.array.scaling.is_identity:
                counts = sampler.counts(mask)
                label = None if sampler.label is None else float(sampler.label)
                foreground = np.cumsum(counts.ravel()).astype(np.uint64), counts.shape, BLOCK, label
            else:
                self._scaled.add(place)
        return _core.PatchSubject([part for part in parts if not isinstance(part, str)], foreground)

    def submit(
        self, number: int, slot: Slot, items: Sequence[int], epoch: int, views: Sequence[View | None]
    ) -> None:
        """See `Filler`.

        Parameters
        ----------
        number : int
            Of the batch.
        slot : Slot
            Where the patches go.
        items : sequence of int
            What to read.
        epoch : int
            Decides places.
        views : sequence of View
            How each is changed.
        """
        if self._engine is None:
            keep, shares = self._read.tile_cache_size_mb > 0, join_node(self._read) is None
            self._engine = _core.BatchEngine(self._threads, keep, shared=shares)
            if shares:
                self._reserved = _core.tile_stats()["shared_budget"]
                reserve(self._reserved)
        apply_budget(self._read)
        config, form = self._wanted.dataset.config, slot.form
        orders = []
        for item, view in zip(items, views, strict=True):
            place = self._wanted.dataset.place_of(item)
            subject = self._subject(place)
            assert not isinstance(subject, str), "can_fill was asked before"
            is_drawn = self._draws and place not in self._scaled
            start = None if is_drawn else self._wanted.start(item, epoch)
            orders.append((subject, item, start, view))
        self._engine.submit(
            number,
            slot.memory,
            orders,
            size=config.size,
            steps=form.steps,
            channels=form.channels,
            image=0,
            mask=form.mask_offset,
            key=(config.seed & (2**64 - 1), epoch),
            foreground=self._p_pos,
        )

    def wait(self, number: int, milliseconds: int) -> Sequence[Outcome] | None:
        """See `Filler`."""
        assert self._engine is not None, "something was submitted before"
        return self._engine.wait(number, milliseconds)

    def stop(self) -> None:
        """See `Filler`."""
        if self._engine is not None:
            self._engine.stop()
            if not self._is_process_over():
                reserve(-self._reserved)
            self._reserved = 0


class GeneralFiller(_Ending):
    """Fills batches by `Volume.read_patches`: any volume, the same numbers, slower.

    Parameters
    ----------
    wanted : Wanted
        What to read.
    threads : int
        Threads that read.
    """

    def __init__(self, wanted: Wanted, threads: int) -> None:
        self._wanted, self._threads = wanted, threads
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[int, list[Future[Outcome]]] = {}
        self._lock = threading.Lock()  # samplers remember what they counted
        self._is_stopped = False

    def submit(
        self, number: int, slot: Slot, items: Sequence[int], epoch: int, views: Sequence[View | None]
    ) -> None:
        """See `Filler`.

        Parameters
        ----------
        number : int
            Of the batch.
        slot : Slot
            Where the patches go.
        items : sequence of int
            What to read.
        epoch : int
            Decides places.
        views : sequence of View
            How each is changed.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "voxtier-general")
        self._futures[number] = [
            self._pool.submit(self._fill, slot, row, EpochIndex(item, epoch), view)
            for row, (item, view) in enumerate(zip(items, views, strict=True))
        ]

    def _fill(self, slot: Slot, row: int, item: EpochIndex, view: View | None) -> Outcome:
        start: tuple[int, ...] = (0, 0, 0)
        try:
            with self._lock:
                start = self._wanted.start(item, item.epoch)
            form = slot.form
            images, mask = self._wanted.volumes(self._wanted.dataset.place_of(item))
            image, labels = form.arrays(slot.memory, row + 1)
            change = self._wanted.change(view, item, start)
            for channel, volume in enumerate(images):
                self._read(volume, start, image[row, channel], channel, change)
            if mask is not None and labels is not None:
                self._read(mask, start, labels[row, 0], form.channels, change)
        except Exception as error:  # handed to the caller with the batch
            return start, error
        return start, None

    def _read(
        self,
        volume: Volume,
        start: tuple[int, ...],
        out: NDArray[Any],
        part: int,
        change: _core.PatchChange | None,
    ) -> None:
        """Read one part of an item: a channel of its image, or its mask, which comes after them."""
        config, is_mask = self._wanted.dataset.config, part == self._wanted.form.channels
        is_stored = self._wanted.is_stored and not is_mask
        times = volume.shape[3:]
        if out.shape != (*config.size, *times):
            raise ConfigError(f"{volume.uri} has the shape {volume.shape}, others fit {out.shape}")
        touched = None if change is None else change.touched
        low, size = touched or (start, config.size)
        fill = config.outside_mask if is_mask else config.fill
        ends = zip(low, size, volume.shape[:3], strict=True)
        if not is_stored and any(first < 0 or first + count > length for first, count, length in ends):
            refuse_fill(fill, volume.array.scaling, out.dtype)
        patches = volume.read_patches(
            np.array([[*low, *(0 for _ in times)]]), (*size, *times), fill=fill, raw=is_stored
        )
        if config.normalize is not None and not is_mask:
            patches = config.normalize.apply(patches)
        patches = cast_numbers(patches, out.dtype, volume.uri)
        if change is None:
            out[...] = patches[0]
            return
        for time in np.ndindex(times):  # each point in time is changed alike
            voxels = patches[(0, ..., *time)]
            if self._wanted.form.is_view:  # noise and sums follow the order of memory
                out.T[...] = _changed(change, part, voxels.T, out.T)
            else:
                out[(..., *time)] = _changed(change, part, voxels, out[(..., *time)])

    def wait(self, number: int, milliseconds: int) -> Sequence[Outcome] | None:
        """See `Filler`."""
        futures = self._futures[number]
        if wait(futures, milliseconds / 1000).not_done:
            return None
        return [future.result() for future in self._futures.pop(number)]

    def stop(self) -> None:
        """See `Filler`."""
        if self._pool is not None and not self._is_process_over():  # Python has ended its threads then
            self._pool.shutdown(cancel_futures=True)


def _changed(change: _core.PatchChange, part: int, voxels: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Return a part of a patch, of the form of another array, from the voxels that it touches."""
    source = np.ascontiguousarray(voxels, like.dtype)
    if change.touched is None:
        change.finish(part, like.dtype.name, None, _bytes(source))
        return source
    patch: NDArray[Any] = np.empty(like.shape, like.dtype)
    change.finish(part, like.dtype.name, _bytes(source), _bytes(patch))
    return patch


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def scales(volumes: Sequence[Volume]) -> list[tuple[float, float]]:
    """Return slope and intercept of each volume."""
    return [scaling_of(volume) for volume in volumes]
