"""A viewer that scrolls through an object: fewer waits, hardly more bytes, and never other bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frames.gateway.serving import Client, instance_path
from frames.sources.conftest import Bucket
from frames.sources.images import slide, tile
from support.object_proxy import Fault, Request
from voxtier.errors import SourceError
from voxtier.frames import FileIndexer, FrameReader, Gateway, index_files
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.sources import stores
from voxtier.frames.sources.requests import read_ahead as module
from voxtier.frames.sources.requests.cost import Cost
from voxtier.frames.sources.requests.read_ahead import ReadAhead
from voxtier.frames.store.store import FrameStore

FRAMES, LENGTH = 100, 70_000  # longer than the first read of an object
UP, DOWN = list(range(FRAMES)), list(reversed(range(FRAMES)))


@pytest.fixture(autouse=True)
def _busy_machine_and_calm_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 3600.0)
    monkeypatch.setattr(module, "_LEAST_PATIENCE", 3600.0)
    monkeypatch.setattr(stores, "_stores", {})  # another test may have made this one ask for less


@pytest.fixture
def address(bucket: Bucket, request: pytest.FixtureRequest) -> str:
    return bucket.put(f"ahead/{request.node.name}.dcm", slide(FRAMES, LENGTH, "bot"))


def read(bucket: Bucket, address: str, order: list[int]) -> float:
    """Read frames one after another; return bytes moved by bytes read. The first one brings the table."""
    with FrameReader(publish=False) as reader:
        assert reader.frame(address, order[0]) == tile(order[0], LENGTH)
        bucket.proxy.forget()
        for index in order[1:]:
            assert reader.frame(address, index) == tile(index, LENGTH)
    return bucket.proxy.moved / (LENGTH * (len(order) - 1))


@pytest.mark.parametrize("order", [UP, DOWN], ids=["up", "down"])
def test_a_scroll_takes_fewer_requests_and_no_more_bytes(
    bucket: Bucket, address: str, order: list[int]
) -> None:
    assert read(bucket, address, order) < 1.02
    assert len(bucket.proxy.requests) < FRAMES / 3


@pytest.mark.parametrize("order", [UP[:60], DOWN[:60], UP[30:50]], ids=["up", "down", "short"])
def test_what_is_read_in_vain_stays_below_a_quarter(bucket: Bucket, address: str, order: list[int]) -> None:
    assert read(bucket, address, order) <= 1.25


@pytest.mark.parametrize(
    "order",
    [[7 * index % FRAMES for index in range(60)], UP[::2], UP[:4] + UP[40:44] + UP[80:84], [50] * 10],
    ids=["anywhere", "every other", "rows of tiles", "again"],
)
def test_who_does_not_scroll_takes_a_request_a_frame(bucket: Bucket, address: str, order: list[int]) -> None:
    assert read(bucket, address, order) < 1.02
    assert len(bucket.proxy.requests) == len(order) - 1


def test_viewers_of_one_object_and_frames_that_overtake_each_other(bucket: Bucket, address: str) -> None:
    with FrameReader(publish=False) as reader, ThreadPoolExecutor(6) as threads:
        reader.frame(address, 50)
        bucket.proxy.forget()
        orders = [UP, DOWN, UP[20:], DOWN[30:]]
        wanted = [order[at] for at in range(70) for order in orders]
        found = threads.map(lambda index: reader.frame(address, index), wanted)
        assert list(found) == [tile(index, LENGTH) for index in wanted]
    assert bucket.proxy.moved <= 1.35 * LENGTH * len(wanted)


def test_a_request_ahead_that_fails_harms_nobody(bucket: Bucket, address: str) -> None:
    def fault(request: Request) -> Fault | None:
        start, end = request.range or (0, 0)
        return Fault(403, "AccessDenied") if end - start > LENGTH + 64 else None

    with FrameReader(publish=False) as reader:
        reader.frame(address, 0)
        bucket.proxy.forget()
        bucket.proxy.fault = fault
        for index in UP:
            assert reader.frame(address, index) == tile(index, LENGTH)
        assert any(request.status == 403 for request in bucket.proxy.requests)


def test_a_replaced_object_is_given_out_for_two_seconds_at_most(
    bucket: Bucket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FrameReader(publish=False) as reader:
        for index in UP[:60]:
            assert reader.frame(address, index) == tile(index, LENGTH)
        bucket.put(address.removeprefix("s3://frames/"), slide(FRAMES, 50_000, "bot"))
        monkeypatch.setattr(module, "_FRESH_SECONDS", 0.0)
        assert reader.frame(address, 60) == tile(60, 50_000)
    monkeypatch.setattr(module, "_FRESH_SECONDS", 3600.0)
    with FrameReader(publish=False) as reader:
        for index in UP[:60]:
            reader.frame(address, index)
        bucket.put(address.removeprefix("s3://frames/"), slide(FRAMES, 60_000, "bot"))
        kinds = {len(reader.frame(address, index)) for index in UP[60:]}
        assert kinds <= {60_000, 50_000}
        assert reader.frame(address, 99) == tile(99, 60_000)


def test_a_deleted_object_is_an_error_behind_what_was_read_ahead(bucket: Bucket, address: str) -> None:
    with FrameReader(publish=False) as reader:
        for index in UP[:60]:
            reader.frame(address, index)
        bucket.client.delete(address.removeprefix("s3://frames/"))
        with pytest.raises(SourceError, match="no such object"):
            for index in UP[60:]:
                assert reader.frame(address, index) == tile(index, LENGTH)


def test_a_gateway_reads_ahead_too(bucket: Bucket, store: FrameStore) -> None:
    address = bucket.put("ahead-gateway/a.dcm", slide(FRAMES, LENGTH, "bot", "2.25.79"))
    for _ in index_files(FileIndexer(store), iter_files([address])):
        pass
    path = instance_path("2.25.2", "2.25.3", "2.25.79")
    with Gateway(store, port=0, roots=["s3://frames/ahead-gateway"], index_seconds=60) as gateway:
        client = Client(gateway)
        bucket.proxy.forget()
        for index in UP:
            assert client.frames(path, str(index + 1)).parts()[0][1] == tile(index, LENGTH)
        assert len(bucket.proxy.requests) < FRAMES / 3
        client.connection.close()


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(-1, 1)), max_size=8),
    st.sampled_from([0, 300, 1 << 20]),
)
@example([(12, 11, 1), (26, 1, 0)], 1 << 20)  # one scroll leaps over what it had fetched
@example([(53, 19, -1), (30, 1, 0)], 1 << 20)
@example([(12, 5, -1), (0, 6, 1)], 1 << 20)
def test_any_order_of_reads_gives_the_bytes_of_the_object(
    runs: list[tuple[int, int, int]], budget: int
) -> None:
    content = bytes(number % 251 for number in range(64 * 100))
    moved, asked, lock = 0, 0, threading.Lock()

    def get(start: int, end: int) -> bytes:
        nonlocal moved
        assert 0 <= start < end <= len(content)
        with lock:
            moved += end - start
        return content[start:end]

    ahead = ReadAhead(budget)
    for first, count, step in runs:
        for number in range(count):
            start = 100 * ((first + step * number) % 64)
            assert (
                bytes(ahead.get("object", len(content), start, start + 100, get, ahead=get))
                == content[start : start + 100]
            )
            asked += 100
            assert ahead.kept() <= budget
    assert moved <= 1.32 * asked


def nothing(start: int, end: int) -> bytes:
    return bytes(end - start)


class Clock:
    """A time that tests move, and threads that run at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def submit(self, work: Callable[[], object]) -> None:
        work()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_FRESH_SECONDS", 2.0)
    monkeypatch.setattr(module, "time", clock)
    return clock


def scroll(
    ahead: ReadAhead, clock: Clock, frames: range, seconds: float, length: int = 1000
) -> tuple[int, int]:
    """Read frames at a pace; return requests and bytes."""
    requests: list[int] = []

    def get(start: int, end: int) -> bytes:
        requests.append(end - start)
        return bytes(end - start)

    for index in frames:
        clock.now += seconds
        ahead.get("object", 10**9, index * 1000, (index + 1) * 1000, get, ahead=get)
    return len(requests), sum(requests)


def inline(clock: Clock) -> ReadAhead:
    ahead = ReadAhead()
    ahead._threads = clock  # type: ignore[assignment]
    return ahead


@pytest.mark.parametrize(
    "paces",
    [[(20, 0.1), (12, 2.5)], [(80, 0.05), (40, 2.5)], [(200, 0.02), (80, 2.1)], [(100, 0.05), (90, 1.5)]],
)
def test_a_scroll_that_slows_down_wastes_no_more_than_a_quarter(
    clock: Clock, paces: list[tuple[int, float]]
) -> None:
    ahead, first, moved = inline(clock), 0, 0
    for count, seconds in paces:
        moved += scroll(ahead, clock, range(first, first + count), seconds)[1]
        first += count
    assert moved <= 1.25 * 1000 * first


def test_a_scroll_goes_on_behind_a_pause(clock: Clock) -> None:
    ahead = inline(clock)
    requests, _ = scroll(ahead, clock, range(250), 0.1)
    clock.now += 600
    later, moved = scroll(ahead, clock, range(250, 500), 0.1)
    assert later <= requests + 5 < 80
    assert moved <= 1.25 * 1000 * 250


def test_what_came_ahead_is_given_out_while_nothing_more_is_asked_ahead(clock: Clock) -> None:
    ahead = inline(clock)
    scroll(ahead, clock, range(100), 0.001)
    kept = ahead.kept()
    assert kept > 0
    asked: list[tuple[int, int]] = []

    def get(start: int, end: int) -> bytes:
        asked.append((start, end))
        return bytes(end - start)

    ahead.get("object", 10**9, 100_000, 101_000, get)
    assert asked == []


def test_no_thread_is_no_reason_to_fail(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(work: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(clock, "submit", submit)
    ahead = inline(clock)
    assert scroll(ahead, clock, range(50), 0.01) == (50, 50_000)
    assert ahead.kept() == 0


def test_a_piece_that_does_not_come_is_waited_for_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.2)
    released = threading.Event()

    def late(start: int, end: int) -> bytes:
        if threading.current_thread().name.startswith("voxtier-ahead"):
            released.wait(200)
        return bytes(end - start)

    ahead = ReadAhead()
    for start in range(0, 60_000, 1000):
        assert len(ahead.get("object", 10**6, start, start + 1000, nothing, ahead=late)) == 1000
    assert not released.is_set()
    released.set()


def test_a_piece_that_takes_far_longer_than_usual_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fresh for an hour; what comes late is given out all the same."""
    monkeypatch.setattr(module, "_LEAST_PATIENCE", 0.1)
    released = threading.Event()

    def late(start: int, end: int) -> bytes:
        released.wait(200)
        return bytes(end - start)

    ahead, asked = ReadAhead(), list[int]()

    def get(start: int, end: int) -> bytes:
        asked.append(start)
        return bytes(end - start)

    def read(start: int) -> None:
        body = ahead.get("object", 10**6, start, start + 1000, get, ahead=late, usual=lambda _: 0.001)
        assert len(body) == 1000

    for start in range(0, 8_000, 1000):
        read(start)
        while not all(piece._lock.locked() for piece in ahead._scrolls["object"][0].pieces):
            time.sleep(0.001)  # until its thread has begun
    assert asked == list(range(0, 8_000, 1000)), "nobody waited for the thread"
    [scroll] = ahead._scrolls["object"]
    piece = scroll.pieces[-1]
    released.set()
    with piece._lock:
        assert piece._body is not None
    read(piece.start)
    assert len(asked) == 8


def test_the_usual_time_is_latency_and_transfer() -> None:
    cost = Cost()
    assert cost.usual_seconds(1) is None
    for _ in range(8):
        cost.add_request(1000, 0.02)
    assert cost.usual_seconds(0) == pytest.approx(0.02)
    assert cost.usual_seconds(1 << 20) == pytest.approx(0.04)  # in a latency comes a MiB, until more is known
    for _ in range(8):
        cost.add_request(8 << 20, 0.02 + 1.6)
    assert cost.usual_seconds(8 << 20) == pytest.approx(0.02 + 1.6)


def test_memory_is_that_of_the_newest_scrolls() -> None:
    ahead = ReadAhead(5_000)
    for name in range(600):
        for start in range(0, 4000, 100):
            ahead.get(name, 100_000, start, start + 100, nothing, ahead=nothing)
        assert 0 < ahead.kept() <= 5_000
    assert len(ahead._scrolls) <= 256
