"""`FrameCache` against an obvious model, under threads, across forks, and its refusals."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support.builders import Element, Fragments, dicom, element, image, pattern
from support.depth import depth
from voxtier._core import encode_rows
from voxtier.errors import FormatError
from voxtier.frames import FrameCache, FrameTable, TableResult, read_table
from voxtier.frames.memory.cache import LoadResult

OVERHEAD = 64


def u64(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def put(cache: FrameCache, key: str, frames: int = 1, **options: Any) -> bool:
    offsets = 1000 + np.arange(frames, dtype=np.uint64) * 108 + 8
    return cache.put(key, offsets, np.full(frames, 100, np.uint64), **options)


def a_table(frames: int = 2) -> FrameTable:
    pixels = element("PixelData", pattern(16 * frames))
    return read_table(dicom([*image(frames=frames), pixels]).content)


class Model(RuleBasedStateMachine):
    """Random operations beside a dict in order of use; one size, so that the order alone decides."""

    def __init__(self) -> None:
        super().__init__()
        probe = FrameCache(10_000)
        assert probe.put("k00", u64(1 << 22), u64(100))
        self.weight = probe.counters()["used"]
        self.room = 6
        self.cache = FrameCache(self.weight * self.room, max_entry_fraction=1.0, debounce_seconds=0.0)
        self.model: dict[str, int] = {}

    keys = st.integers(0, 15).map(lambda number: f"k{number:02}")

    @rule(key=keys, base=st.integers(1 << 22, 1 << 28))
    def put(self, key: str, base: int) -> None:
        assert self.cache.put(key, u64(base), u64(100))
        self.model.pop(key, None)
        while len(self.model) >= self.room:
            self.model.pop(next(iter(self.model)))
        self.model[key] = base

    @rule(key=keys)
    def locate(self, key: str) -> None:
        found = self.cache.locate(key, 0, scan=True)
        assert found == ((self.model[key], 100) if key in self.model else None)

    @rule(key=keys)
    def invalidate(self, key: str) -> None:
        assert self.cache.invalidate(key) == (self.model.pop(key, None) is not None)

    @rule(room=st.integers(0, 9))
    def resize(self, room: int) -> None:
        self.room = room
        self.cache.resize(self.weight * room)
        while len(self.model) > room:
            self.model.pop(next(iter(self.model)))

    @precondition(lambda self: self.room == 0)
    @rule()
    def grow_again(self) -> None:
        self.resize(4)

    @rule(key=keys)
    def put_with_no_room(self, key: str) -> None:
        if self.room == 0:
            assert not self.cache.put(key, u64(8), u64(1))

    @invariant()
    def agrees(self) -> None:
        self.cache.validate()
        assert self.cache.keys() == list(reversed(self.model))
        assert self.cache.counters()["used"] == self.weight * len(self.model)


Model.put = precondition(lambda self: self.room > 0)(Model.put)  # type: ignore[method-assign]
TestModel = Model.TestCase
TestModel.settings = settings(max_examples=depth(30, 300), stateful_step_count=40, deadline=None)


def test_locate_many_gives_the_ranges_of_each_frame() -> None:
    cache = FrameCache(1 << 20)
    lengths = np.array([10, 2000, 7, 31, 4], np.uint64)
    offsets = np.cumsum(np.concatenate(([np.uint64(508)], lengths[:-1] + np.uint64(8)))).astype(np.uint64)
    assert cache.put("k", offsets, lengths, ts_uid="1.2.840.10008.1.2.4.50", pixel_data_pos=480, etag='"x"')
    found = cache.locate_many("k", np.array([4, 0, 2]))
    assert found is not None
    assert found[0].tolist() == offsets[[4, 0, 2]].tolist()
    assert found[1].tolist() == lengths[[4, 0, 2]].tolist()
    assert cache.ranges("k", 1) == [(int(offsets[1]), int(offsets[1] + lengths[1]))]
    table = cache.table("k")
    assert table is not None
    assert (table.transfer_syntax_uid, table.pixel_data_pos) == ("1.2.840.10008.1.2.4.50", 480)
    assert cache.etag("k") == '"x"'
    for frame in (5, -1, 2**40):
        with pytest.raises(IndexError, match="of 5"):
            cache.locate("k", frame)
    assert cache.locate("absent", 99) is None


def test_a_fragmented_frame_has_no_single_range() -> None:

    payloads = [pattern(20, 1), pattern(30, 2)]
    layout = dicom(
        [*image(), Element(0x7FE00010, "OB", Fragments(payloads))], _syntax("1.2.840.10008.1.2.4.50")
    )
    table = read_table(layout.content, verify="all")
    cache = FrameCache(1 << 20)
    assert cache.put_table("k", table)
    assert cache.ranges("k", 0) == table.ranges(0)
    with pytest.raises(FormatError, match="2 fragments"):
        cache.locate("k", 0)
    assert cache.read("k", layout.content, [0]) == [b"".join(payloads)]


def _syntax(uid: str) -> Any:
    from support import builders

    return next(
        value for value in vars(builders).values() if isinstance(value, builders.Syntax) and value.uid == uid
    )


def test_a_budget_of_zero_keeps_nothing_and_a_negative_one_is_refused() -> None:
    with pytest.raises(ValueError, match="budget_bytes = -1"):
        FrameCache(-1)
    never = FrameCache(0)
    assert not put(never, "k")
    assert never.counters()["rejected_oversize"] == 1
    huge = FrameCache(2**62)
    assert put(huge, "k")
    with pytest.raises(ValueError, match="must be >= 0"):
        huge.resize(-5)
    with pytest.raises(ValueError, match="policy"):
        FrameCache(1, policy="magic")
    with pytest.raises(ValueError, match="max_entry_fraction"):
        FrameCache(1, max_entry_fraction=0)


def test_a_value_over_the_budget_drops_its_old_version_alone() -> None:
    cache = FrameCache(4000)
    put(cache, "small")
    put(cache, "k")
    offsets = np.cumsum(np.random.default_rng(0).integers(500, 90_000, 5000)).astype(np.uint64)
    assert not cache.put("k", offsets, np.full(5000, 3, np.uint64))
    assert cache.keys() == ["small"]


def test_pinned_and_scan_classes_keep_to_their_shares() -> None:
    probe = FrameCache(10_000)
    put(probe, "a")
    weight = probe.counters()["used"]
    cache = FrameCache(weight * 4, max_entry_fraction=0.5)
    assert put(cache, "p", klass="pinned")
    assert put(cache, "q", klass="pinned")
    assert not put(cache, "r", klass="pinned")
    assert put(cache, "s", klass="scan")
    assert put(cache, "t", klass="scan")
    assert not put(cache, "u", klass="scan")
    assert cache.touch("s", scan=True)
    assert put(cache, "n")
    assert cache.keys() == ["n", "t", "q", "p"]
    assert cache.touch("t")
    assert put(cache, "m")
    assert cache.keys() == ["m", "t", "q", "p"]
    stats = cache.stats()
    assert (stats["rejected_pinned"], stats["rejected_scan"]) == (1, 1)
    with pytest.raises(ValueError, match="klass"):
        put(cache, "x", klass="hot")


def test_accesses_count_file_loads_debounced() -> None:
    cache = FrameCache(1 << 20)
    put(cache, "k")
    for _ in range(50):
        cache.locate("k", 0)
    cache.touch("k", scan=True)
    keys, counts, times = cache.drain_access()
    assert (keys, counts.tolist()) == (["k"], [1])
    assert abs(times[0] / 1e6 - time.time()) < 60
    cache.touch("k")
    assert cache.drain_access()[1].tolist() == [0]
    cache.restore_access(["k", "gone"], [3, 4], [5, 6])
    cache.invalidate("k")
    keys, counts, _ = cache.drain_access()
    assert dict(zip(keys, counts.tolist(), strict=True)) == {"k": 3, "gone": 4}


def test_touch_many_counts_by_key_ids() -> None:
    cache = FrameCache(1 << 20, debounce_seconds=0.0)
    for number in range(1000):
        put(cache, f"k{number}")
    ids = [cache.key_id(f"k{number}") for number in range(1000)]
    array = np.array(ids, np.uint64)
    cache.invalidate("k7")
    put(cache, "new")
    assert cache.touch_many(array[::-1].copy()) == 999
    assert cache.keys()[:2] == ["k0", "k1"]
    assert cache.key_id("absent") is None
    assert cache.packed_bytes("absent") is None
    assert 0 < (cache.packed_bytes("k0") or 0) < cache.counters()["used"] / 1000


def test_evictions_are_logged() -> None:
    cache = FrameCache(1 << 20)
    put(cache, "k")
    key_id = cache.key_id("k")
    cache.invalidate("k")
    ids, weights, causes, classes, lost = cache.drain_evicted()
    assert (ids.tolist(), causes.tolist(), classes.tolist(), lost) == ([key_id], [2], [0], 0)
    assert weights[0] > OVERHEAD


@pytest.mark.parametrize("key", ["", "x" * 8192, "\ud800"])
def test_keys_that_are_no_paths_are_refused(key: str) -> None:
    with pytest.raises(ValueError):
        put(FrameCache(1 << 20), key)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not errors, errors[0]


def wait_for_waiters(cache: FrameCache, count: int) -> None:
    """Within a loader: return when so many others wait for what it loads."""
    deadline = time.monotonic() + 60
    while cache.stats()["load_waits"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_all_threads_share_one_load() -> None:
    cache, loads, table = FrameCache(1 << 20), [], a_table()

    def loader(key: str) -> FrameTable:
        loads.append(key)
        wait_for_waiters(cache, 15)
        return table

    in_threads(16, lambda _: cache.get_or_load("k", loader))
    assert loads == ["k"]
    stats = cache.stats()
    assert (stats["loads"], stats["load_waits"]) == (1, 15)


def test_a_loader_that_raises_fails_all_waiters_and_keeps_nothing() -> None:
    cache, seen = FrameCache(1 << 20), []

    def loader(key: str) -> FrameTable:
        wait_for_waiters(cache, 7)
        raise KeyboardInterrupt

    def ask(_: int) -> None:
        try:
            cache.get_or_load("k", loader)
        except KeyboardInterrupt:
            seen.append(1)

    in_threads(8, ask)
    assert len(seen) == 8
    assert cache.get_or_load("k", lambda _: a_table()).kind == "native"


def test_a_loader_that_asks_for_its_own_key_is_refused() -> None:
    cache = FrameCache(1 << 20)
    with pytest.raises(RuntimeError, match="loading"):
        cache.get_or_load("k", lambda key: cache.get_or_load(key, lambda _: a_table()))


def test_invalidated_during_its_load_a_table_is_returned_but_not_kept() -> None:
    cache = FrameCache(1 << 20)

    def loader(key: str) -> FrameTable:
        cache.invalidate(key)
        return a_table()

    assert len(cache.get_or_load("k", loader)) == 2
    assert "k" not in cache


def rows_of(keys: list[str], *, frames: int = 2) -> bytes:
    """The answer of the index to a look-up: the row of the first key, then those of its series."""
    table = a_table(frames)
    rows, refused = encode_rows("s", [TableResult(key, table, None) for key in keys])
    assert refused == []
    return rows


def test_a_load_brings_its_series_once() -> None:
    cache, claims = FrameCache(1 << 20), []

    def loader(key: str) -> LoadResult:
        claims.append(cache.claim_series(key))
        return LoadResult(a_table(), "tier2", rows_of(["s/c", "s/a", "s/b"] if claims[-1] else [key]))

    put(cache, "s/b", frames=7)
    assert cache.load("s/c", loader) == LoadResult(a_table(), "tier2", rows_of(["s/c", "s/a", "s/b"]))
    assert sorted(cache.keys()) == ["s/a", "s/b", "s/c"]
    assert cache.ranges("s/b", 6) is not None  # an entry that was there is left alone
    for key in ("s/c", "s/a", "s/b"):
        cache.load(key, loader)
    assert claims == [True, False, False, False]
    assert cache.stats()["primed"] == 1
    assert len(cache.drain_access()[0]) == 1  # that of the look-up above

    def broken(key: str) -> LoadResult:
        assert cache.claim_series(key)
        raise OSError

    with pytest.raises(OSError):
        cache.load("t/x", broken)
    assert cache.load("t/x", loader).table == a_table()
    assert claims[-1]


def test_one_load_at_a_time_brings_the_series_of_a_folder() -> None:
    cache, claims = FrameCache(1 << 20), {}
    first_claimed, others_done = threading.Event(), threading.Event()

    def first(key: str) -> FrameTable:
        claims[key] = cache.claim_series(key)
        first_claimed.set()
        assert others_done.wait(60)
        return a_table()

    def other(key: str) -> FrameTable:
        claims[key] = cache.claim_series(key)
        return a_table()

    thread = threading.Thread(target=cache.load, args=("f/1", first))
    thread.start()
    assert first_claimed.wait(60)
    for key in ("f/2", "g/1"):
        cache.load(key, other)
    others_done.set()
    thread.join()
    cache.load("f/3", other)
    assert claims == {"f/1": True, "f/2": False, "g/1": True, "f/3": True}


def test_a_series_fills_at_most_half_the_budget() -> None:
    probe = FrameCache(1 << 20)
    keys = [f"s/{number:03}" for number in range(100)]
    probe.load(keys[0], lambda _: LoadResult(a_table(), "tier2", rows_of(keys[:1])))
    weight = probe.counters()["used"]
    cache = FrameCache(weight * 20)
    for number in range(15):
        put(cache, f"old{number}")
    cache.load(keys[0], lambda _: LoadResult(a_table(), "tier2", rows_of(keys)))
    assert 9 <= cache.stats()["primed"] <= 10
    assert keys[0] in cache
    assert cache.keys()[0] == keys[cache.stats()["primed"]]
    cache.validate()


def test_arrivals_that_have_expired_are_forgotten() -> None:
    """Each holds a path, which no budget counts."""
    cache, now = FrameCache(100_000), 0.0
    cache.clock = lambda: now  # type: ignore[method-assign]
    for number in range(50):
        keys = [f"{number}/{slice_}" for slice_ in range(100)]
        cache.load(keys[0], lambda _, keys=keys: LoadResult(a_table(), "tier2", rows_of(keys)))
        assert not cache.claim_series(keys[-1])
        now += 30
    assert cache.claim_series("0/99")
    assert len(cache._flights._arrivals) == 2 * 100


def test_threads_never_see_a_wrong_answer_and_the_budget_holds() -> None:
    cache = FrameCache(40_000, debounce_seconds=0.0)
    stop = time.monotonic() + 3

    def work(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < stop:
            number = dice.randrange(600)
            key = f"k{number}"
            match dice.randrange(8):
                case 0 | 1:
                    cache.put(key, u64(number * 1000 + 8), u64(number + 1))
                case 2:
                    cache.invalidate(key)
                case 3:
                    cache.resize(dice.randrange(20_000, 60_000))
                case 4:
                    cache.restore_access(
                        *(list(map(int, part)) if i else part for i, part in enumerate(cache.drain_access()))
                    )
                case 5:
                    found = cache.key_id(key)
                    cache.touch_many(np.array([found or 0] * 300, np.uint64))
                case _:
                    assert cache.locate(key, 0) in (None, (number * 1000 + 8, number + 1))
            counters = cache.counters()
            assert counters["used"] <= counters["budget"]

    in_threads(6, work)
    cache.validate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_working_cache_of_its_own() -> None:
    cache = FrameCache(1 << 20, debounce_seconds=0.0)
    put(cache, "kept")
    cache.touch("kept")
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            put(cache, "hot", 300)
            cache.touch_many(np.zeros(5000, np.uint64))
            cache.locate("hot", 3)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            child = os.fork()
            if child == 0:
                good = cache.drain_access()[0] == [] and cache.locate("kept", 0) == (1008, 100)
                good = (
                    good and put(cache, "mine") and len(cache.get_or_load("mine", lambda _: a_table())) == 1
                )
                cache.validate()
                os._exit(0 if good else 1)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.002)
            else:
                os.kill(child, 9)
                pytest.fail("the child hangs")
            assert status == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "kept" in cache.drain_access()[0]


def test_put_packed_many_stores_the_good_and_counts_the_rest() -> None:
    cache = FrameCache(1 << 20)
    good = a_table(3).to_bytes()
    damaged = bytearray(good)
    damaged[-3] ^= 4
    assert cache.put_packed_many(["a", "b", ""], [good, bytes(damaged), good]) == (1, 0, 2)
    assert cache.keys() == ["a"]
    assert cache.table("a").ranges(2) == a_table(3).ranges(2)  # type: ignore[union-attr]
    assert FrameCache(10).put_packed_many(["a"], [good]) == (0, 1, 0)
    with pytest.raises(ValueError, match="2 keys and 1 tables"):
        cache.put_packed_many(["a", "b"], [good])
    with pytest.raises(ValueError, match="klass"):
        cache.put_packed_many([], [], klass="wild")  # type: ignore[arg-type]
    cache.validate()
