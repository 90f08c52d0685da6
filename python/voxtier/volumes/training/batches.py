"""Batches of patches for a training loop, filled by threads of the core: no DataLoader, no worker processes.

The caller's thread plans and hands out; the core's threads read, decode and convert into memory that is used
again when the tensors of a batch are gone. Items, their order and their patches are those of `data_loader`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal

import numpy as np

from voxtier.arguments import check_kind, whole_number
from voxtier.errors import ConfigError, FormatError, SourceError, VoxtierError
from voxtier.system.machine import usable_processors
from voxtier.volumes.config import as_dtype, get_config
from voxtier.volumes.tiledb.format.direct import join_node
from voxtier.volumes.training.augmenting import Augmentation, View
from voxtier.volumes.training.datasets import LoadingMode, VolumeCollectionDataset
from voxtier.volumes.training.epochs import EpochIndex, EpochSampler
from voxtier.volumes.training.workers.facts import Facts
from voxtier.volumes.training.workers.filling import (
    CoreFiller,
    Failure,
    Filler,
    GeneralFiller,
    Outcome,
    Wanted,
)
from voxtier.volumes.training.workers.handing import Device, collate, split
from voxtier.volumes.training.workers.ring import Form, Ring, Slot

Kind = Literal["tensors", "metatensor", "torchio"]

_MOST_THREADS, _MOST_BATCH = 256, 1 << 16
_WAIT_MS = 50  # between two looks for Ctrl-C
_STATE = 1


def batches(
    dataset: VolumeCollectionDataset,
    batch_size: int,
    *,
    threads: int | None = None,
    prefetch: int = 4,
    dtype: str | None = None,
    augment: Augmentation | None = None,
    device: Any = None,
    seed: int | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    even: bool = True,
    layout: Literal["view", "contiguous"] = "view",
    kind: Kind = "tensors",
    on_error: Literal["raise", "skip"] = "raise",
) -> Batches:
    """Return the batches of a training: iterate over it once for each epoch.

    A batch is what a DataLoader collates of the dataset's items: ``image`` (B, C, x, y, z), ``mask``,
    ``label``, ``idx``, ``obs_id``, ``obs_subject_id``, ``patch_start`` and ``affine``. With ``augment=``
    the affine is that of the changed patch, and ``patch_start`` the place that it was cut from.

    Parameters
    ----------
    dataset : VolumeCollectionDataset
        Of patches.
    batch_size : int
        Patches of a batch.
    threads : int, optional
        Threads that read and decode (256 at most), by default one for each processor that may be used.
    prefetch : int
        Batches that are filled ahead; fewer where the memory budget has no room.
    dtype : str, optional
        Type of ``image``, by default that of the dataset. An integer type hands out the stored numbers; the
        batch then holds ``slope`` and ``inter`` (B, C), which make them physical.
    augment : Augmentation, optional
        Rotation, scale, mirror and intensities, drawn for each item.
    device : torch.device or str, optional
        Where batches are copied to, from page-locked memory.
    seed : int, optional
        Of the order, by default that of the dataset, which also decides the places of patches.
    shuffle : bool
        Draw a new order each epoch.
    drop_last : bool
        Leave out what does not fill a batch on every rank.
    rank, world_size : int
        This process's part.
    even : bool
        Give all ranks equally many batches, as ranks that train together need: where items do not divide, the
        first of the order come once more (none with ``drop_last``). Without it ranks are always disjoint, and
        may differ by one item.
    layout : {"view", "contiguous"}
        Tensors are views with z as the slowest axis in memory, as volumes are stored, or C-contiguous.
    kind : {"tensors", "metatensor", "torchio"}
        A dict of tensors, one with MONAI's MetaTensors, or a list of TorchIO's Subjects.
    on_error : {"raise", "skip"}
        What a patch does that cannot be read: raise, or be left out of its batch (see `Batches.skipped`).

    Returns
    -------
    Batches
        The batches.

    Raises
    ------
    ConfigError
        For arguments outside their domain, and a memory budget that has no room for three batches.
    """
    made = "a dataset, such as SegmentationDataset(radi.CT, radi.seg, config)"
    check_kind("batches()", dataset, VolumeCollectionDataset, made)
    check_kind("augment", augment, (Augmentation, NoneType), "an Augmentation()")
    return Batches(
        dataset,
        _Options(
            batch_size=whole_number("batch_size", batch_size, 1, _MOST_BATCH),
            threads=whole_number(
                "threads",
                min(usable_processors(), _MOST_THREADS) if threads is None else threads,
                1,
                _MOST_THREADS,
            ),
            prefetch=whole_number("prefetch", prefetch, 1, _MOST_BATCH),
            dtype=dtype,
            augment=augment,
            device=device,
            seed=dataset.config.seed if seed is None else whole_number("seed", seed),
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            even=even,
            is_view=_choice("layout", layout, ("view", "contiguous")) == "view",
            kind=_choice("kind", kind, ("tensors", "metatensor", "torchio")),
            skips=_choice("on_error", on_error, ("raise", "skip")) == "skip",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """What was asked for, checked."""

    batch_size: int
    threads: int
    prefetch: int
    dtype: str | None
    augment: Augmentation | None
    device: Any
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world_size: int
    even: bool
    is_view: bool
    kind: str
    skips: bool


class Batches:
    """The batches of a training; made by `batches`.

    Each iteration is the next epoch; one that was broken off is over, unless its state is loaded again. It
    begins with its first batch: an iterator of which none was drawn changes nothing. Where several are drawn
    from in turns, the training stands where the one is that began last.

    Attributes
    ----------
    skipped : list of Failure
        Patches that could not be read, of all epochs so far (``on_error="skip"``).
    """

    def __init__(self, dataset: VolumeCollectionDataset, options: _Options) -> None:
        if dataset.config.loading_mode is not LoadingMode.PATCH:
            raise ConfigError("batches() reads patches: give the dataset DatasetConfig('patch', patch_size)")
        self._dataset, self._options = dataset, options
        self._sampler = EpochSampler(
            len(dataset),
            shuffle=options.shuffle,
            seed=options.seed,
            rank=options.rank,
            world_size=options.world_size,
            even=options.even,
        )
        self._device = Device(options.device)
        self._form, is_stored = _form(dataset, options)
        self._wanted = Wanted(dataset, self._form, is_stored, options.augment)
        self._read = get_config().read
        allocate = self._device.allocate if self._device.is_pinned else None
        self._ring = Ring(self._form, options.prefetch, self._read, allocate)
        self._stand(dataset.epoch, 0)
        self._facts = Facts(dataset, is_stored=is_stored)
        self.skipped: list[Failure] = []

    def __len__(self) -> int:
        items, each = len(self._sampler), self._options.batch_size
        if self._options.drop_last:
            return self._sampler.length // self._options.world_size // each
        return -(-items // each)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, also while another one goes on."""
        self._stand(whole_number("epoch", epoch, 0), 0)

    def _stand(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin here; those that have begun no longer move this."""
        self._epoch, self._next = epoch, batch
        self._current: object = None  # the iteration that began last, which moves it

    def state_dict(self) -> dict[str, int]:
        """Return where the training stands: the batch after the last one that was handed out.

        After the last batch of an epoch, while its loop goes on, what is left of the epoch is nothing: a loop
        that takes this up gets no batch first, then the next epoch. Once the loop is over, the next epoch is
        next.
        """
        options = self._options
        return {
            "version": _STATE,
            "epoch": self._epoch,
            "batch": self._next,
            "items": len(self._dataset),
            "batch_size": options.batch_size,
            "seed": options.seed,
            "patch_seed": self._dataset.config.seed,
            "shuffle": int(options.shuffle),
            "world_size": options.world_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the last batch that was handed out before `state_dict`.

        Raises
        ------
        ConfigError
            For the state of another dataset, seed, batch size or number of ranks: its batches differ.
        """
        check_kind("load_state_dict()", state, Mapping, "what state_dict() gave")
        own = self.state_dict()
        fixed = [name for name in own if name not in ("epoch", "batch")]
        other = [name for name in fixed if state.get(name) != own[name]]
        if other:
            differences = ", ".join(f"{name} {state.get(name)!r} instead of {own[name]!r}" for name in other)
            raise ConfigError(f"this state is of other batches: {differences}")
        batch = whole_number("the batch of a state", state["batch"], 0, len(self))
        self._stand(whole_number("the epoch of a state", state["epoch"], 0), batch)

    def explain(self) -> dict[str, Any]:
        """Return how batches are made: by which reader, in which memory, with what cost.

        Returns
        -------
        dict
            ``reader`` (``core``, ``general`` or ``mixed``), ``reasons`` (why volumes need the general
            reader: reason -> how many), ``threads``, ``prefetch``, ``batch_bytes``, ``ring_bytes``,
            ``spacings`` (how many different ones the images have: patches are voxels, not millimetres),
            ``cache_bytes``, ``cache`` (``node``: one for all processes of the user; or why not), ``layout``,
            ``pinned``, ``transform``.
        """
        filler = CoreFiller(self._wanted, 1, self._read)
        reasons: dict[str, int] = {}
        for place in range(len(self._dataset.obs_ids)):
            reason = filler.reason(place)
            if reason is not None:
                reasons[reason] = reasons.get(reason, 0) + 1
        general = sum(reasons.values())
        reader = "core" if not general else "general" if general == len(self._dataset.obs_ids) else "mixed"
        return {
            "reader": reader,
            "reasons": reasons,
            "threads": self._options.threads,
            "prefetch": self._ring.prefetch,
            "batch_bytes": self._form.bytes,
            "ring_bytes": self._ring.most_bytes,
            "spacings": self._count_spacings(),
            "cache_bytes": self._read.tile_cache_size_mb << 20,
            "cache": join_node(self._read) or "node",
            "layout": "view" if self._form.is_view else "contiguous",
            "pinned": self._device.is_pinned,
            "transform": "none" if self._dataset.transform is None else "Python, one item at a time",
        }

    def _count_spacings(self) -> int:
        places = range(len(self._dataset.obs_ids))
        spacings = (self._dataset.volumes(place)[0][0].spacing for place in places)
        return len({tuple(round(mm, 3) for mm in spacing) for spacing in spacings if spacing is not None})

    def _plan(self, epoch: int) -> list[list[int]]:
        self._sampler.set_epoch(epoch)
        items = [int(item) for item in self._sampler]
        each = self._options.batch_size
        return [items[at : at + each] for at in range(0, len(items), each)][: len(self)]

    def __iter__(self) -> Iterator[Any]:
        if self._current is not None:
            self._stand(self._epoch + 1, 0)
        epoch, first = self._epoch, self._next
        this = self._current = object()
        plan = self._plan(epoch)
        options = self._options
        core = CoreFiller(self._wanted, options.threads, self._read)
        general = GeneralFiller(self._wanted, options.threads)
        in_flight: deque[tuple[Filler, Slot, list[int], list[View | None]]] = deque()
        numbers = iter(range(first, len(plan)))

        def submit() -> None:
            number = next(numbers, None)
            if number is None:
                return
            items, slot = plan[number], self._ring.take()
            for item in items:  # before its store may be replaced
                with suppress(VoxtierError, OSError):
                    self._facts.geometry_of(self._dataset.place_of(item))
            filler: Filler = core if core.can_fill(items) else general
            views = [self._wanted.view(item, epoch) for item in items]
            filler.submit(number, slot, items, epoch, views)
            in_flight.append((filler, slot, items, views))

        try:
            for _ in range(self._ring.prefetch):
                submit()
            for number in range(first, len(plan)):
                filler, slot, items, views = in_flight.popleft()
                while (outcomes := filler.wait(number, _WAIT_MS)) is None:
                    pass
                submit()
                outcomes = [self._completed(*outcome) for outcome in zip(items, outcomes, strict=True)]
                rows = [row for row, (_, error) in enumerate(outcomes) if error is None]
                for row, (start, error) in enumerate(outcomes):
                    if error is not None:
                        self._fail(epoch, items[row], start, error)
                if self._current is this:
                    self._next = number + 1
                if rows:
                    starts = [start for start, _ in outcomes]
                    yield self._hand_out(epoch, slot, items, starts, views, rows)
            if self._current is this:
                self._stand(epoch + 1, 0)
        finally:
            core.stop()
            general.stop()

    def _completed(self, item: int, outcome: Outcome) -> Outcome:
        """Return an outcome that also says whether the facts beside the voxels are known."""
        start, error = outcome
        if error is None:
            try:
                self._facts.geometry_of(self._dataset.place_of(item))
            except (VoxtierError, OSError) as failed:
                error = failed
        return start, error

    def _fail(self, epoch: int, item: int, start: Sequence[int], error: BaseException) -> None:
        place = self._dataset.place_of(item)
        failure = Failure(self._dataset.obs_ids[place], item, epoch, tuple(start), str(error))
        if not self._options.skips or not isinstance(error, (VoxtierError, OSError)):
            if isinstance(error, FormatError):
                raise FormatError(error.kind, error.offset, f"{failure.name}: {error.detail}") from error
            if isinstance(error, SourceError):
                detail = f"{failure.name}: {error.detail}"
                raise SourceError(error.kind, error.offset, detail, error.errno) from error
            error.add_note(failure.name)
            raise error
        self.skipped.append(failure)

    def _hand_out(
        self,
        epoch: int,
        slot: Slot,
        items: Sequence[int],
        starts: Sequence[Sequence[int]],
        views: Sequence[View | None],
        rows: list[int],
    ) -> Any:
        dataset = self._dataset
        places = [dataset.place_of(items[row]) for row in rows]
        image, mask = slot.arrays(len(items))
        batch: dict[str, Any] = {"image": image}
        if mask is not None:
            batch["mask"] = mask
        if len(rows) < len(items):
            batch = {key: array[rows] for key, array in batch.items()}
        batch |= self._facts.of(places, [tuple(starts[row]) for row in rows], [views[row] for row in rows])
        if dataset.transform is not None:
            samples = split(batch)
            done = [
                dataset.apply(dataset.transform, sample, EpochIndex(items[row], epoch))
                for sample, row in zip(samples, rows, strict=True)
            ]
            return self._device.move(collate(done))
        return self._device.move(self._device.wrap(batch, self._options.kind))


def _form(dataset: VolumeCollectionDataset, options: _Options) -> tuple[Form, bool]:
    """Return the form of batches, and whether images are the stored numbers."""
    config = dataset.config
    images, _ = dataset.volumes(0)
    own = config.dtype or np.result_type(*(image.dtype for image in images))
    dtype = as_dtype("dtype", options.dtype or own)
    is_stored = options.dtype is not None and dtype.kind in "iu"
    if dtype.kind not in "iuf" or (config.normalize is not None and dtype != np.float32):
        raise ConfigError(f"dtype={dtype.name!r}: images are floats, or integers that are not normalised")
    if options.augment is not None and dtype != np.float32:
        raise ConfigError(f"augment= changes patches of float32, not of {dtype.name}")
    shape = (len(images), *config.size, *images[0].shape[3:])
    form = Form(options.batch_size, shape, dtype, dataset.mask_dtype, is_view=options.is_view)
    return form, is_stored


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}, got {value!r}")
    return value
