"""Where a training with batches() stands: epochs, iterators that are left, states that are loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.utils.data import DataLoader

from volumes.training.test_batches import cohort, dataset, drained, same  # noqa: F401
from voxtier.errors import ConfigError
from voxtier.volumes import DatasetConfig, EpochSampler, RadiObject, VolumeCollectionDataset, batches

Place = tuple[int, int]
"""Epoch and number of a batch."""


def test_an_epoch_goes_on_after_any_batch(cohort: Path) -> None:  # noqa: F811
    whole = batches(dataset(cohort), 4)
    wanted = [drained(whole), drained(whole)]
    assert not torch.equal(wanted[0][0]["image"], wanted[1][0]["image"])
    for stop in (1, 3, 4):
        first = batches(dataset(cohort), 4)
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        state = first.state_dict()
        del iterator
        second = batches(dataset(cohort), 4)
        second.load_state_dict(state)
        same(drained(second), wanted[0][stop:])
        same(drained(second), wanted[1])
    with pytest.raises(ConfigError, match="batch_size 4 instead of 2"):
        batches(dataset(cohort), 2).load_state_dict(state)
    with pytest.raises(ConfigError, match="from 0 to 4, got 9"):
        batches(dataset(cohort), 4).load_state_dict({**state, "batch": 9})


def test_an_epoch_that_is_broken_off_is_over(cohort: Path) -> None:  # noqa: F811
    loader = batches(dataset(cohort), 4)
    epochs = [drained(loader), drained(loader)]
    loader = batches(dataset(cohort), 4)
    for _ in loader:
        break
    same(drained(loader), epochs[1])


def test_an_iterator_of_which_nothing_is_drawn_changes_nothing(cohort: Path) -> None:  # noqa: F811
    loader = batches(dataset(cohort), 4)
    epochs = [drained(loader) for _ in range(3)]
    loader = batches(dataset(cohort), 4)
    left = iter(loader)
    same(drained(loader), epochs[0])
    same(drained(left), epochs[1])  # its turn is when it is drawn from
    state = {**loader.state_dict(), "epoch": 1, "batch": 2}
    loader.load_state_dict(state)
    iter(loader)
    assert loader.state_dict() == state
    same(drained(loader), epochs[1][2:])
    iter(loader)
    same(drained(loader), epochs[2])
    loader.set_epoch(1)
    iter(loader)
    same([next(iter(loader))], epochs[1][:1])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_iterator_of_a_data_loader_that_is_left_changes_nothing(
    cohort: Path,  # noqa: F811
    batch_size: int | None,
) -> None:
    made = dataset(cohort)
    for sampler in (None, EpochSampler(len(made))):
        loader: Any = DataLoader(made, batch_size, sampler=sampler, collate_fn=lambda items: items)
        iter(loader)
        iter(loader)
        items = next(iter(loader))
        place = items["patch_start"] if batch_size is None else items[0]["patch_start"]
        found = int(next(iter(EpochSampler(len(made))))) if sampler else 0
        assert place.tolist() == made[found]["patch_start"].tolist()


class Naive:
    """A loop over epochs and batches, as simple as can be said: what `batches` is held against."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch, self.batch = count, 0, 0
        self.latest: Naive.Iteration | None = None

    def stand(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch, self.latest = epoch, batch, None

    class Iteration:
        def __init__(self, loop: Naive) -> None:
            self.loop, self.has_begun, self.is_over = loop, False, False

        def draw(self) -> Place | None:
            """Return what is drawn next; None when the epoch is over."""
            loop = self.loop
            if self.is_over:
                return None
            if not self.has_begun:
                if loop.latest is not None:
                    loop.stand(loop.epoch + 1)
                self.has_begun, self.epoch, self.batch, loop.latest = True, loop.epoch, loop.batch, self
            if self.batch == loop.count:
                self.is_over = True
                if loop.latest is self:
                    loop.stand(self.epoch + 1)
                return None
            self.batch += 1
            if loop.latest is self:
                loop.batch = self.batch
            return self.epoch, self.batch - 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_calls_draws_what_a_naive_loop_would(cohort: Path, seed: int, rank: int) -> None:  # noqa: F811
    def made() -> Any:
        patches = VolumeCollectionDataset(RadiObject(cohort).CT, DatasetConfig("patch", 4, 4))
        return batches(patches, 2, threads=2, prefetch=2, rank=rank, world_size=2)

    truth: dict[tuple[Any, ...], Place] = {}

    def name(batch: Any) -> tuple[Any, ...]:
        return (*batch["obs_id"], *batch["patch_start"].flatten().tolist())

    every = made()
    for epoch in range(60):
        every.set_epoch(epoch)
        truth |= {name(batch): (epoch, number) for number, batch in enumerate(every)}
    assert len(truth) == 60 * len(every)

    rng = random.Random(seed)
    loader, naive = made(), Naive(len(every))
    open_now: list[tuple[Iterator[Any], Naive.Iteration]] = []
    states = [loader.state_dict()]
    for _ in range(150):
        call = rng.choice(["iter", "iter", "next", "next", "next", "rest", "leave", "save", "load", "set"])
        if call == "iter":
            open_now.append((iter(loader), naive.Iteration(naive)))
        elif call in ("next", "rest", "leave") and open_now:
            found, wanted = open_now[rng.randrange(len(open_now))]
            for _ in range({"next": 1, "rest": 9, "leave": 0}[call]):
                batch = next(found, None)
                assert (batch if batch is None else truth[name(batch)]) == wanted.draw()
            if call == "leave":
                open_now.remove((found, wanted))
        elif call == "save":
            states.append(loader.state_dict())
        elif call == "load":
            state = rng.choice(states)
            if rng.random() < 0.5:  # in a run that goes on; iterators of the other loader stay its own
                loader, naive = made(), Naive(len(every))
            loader.load_state_dict(state)
            naive.stand(state["epoch"], state["batch"])
        elif call == "set":
            epoch = rng.randrange(40)
            loader.set_epoch(epoch)
            naive.stand(epoch)
        state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == (naive.epoch, naive.batch)
        assert len(loader) == naive.count
