"""How many requests it takes to index an object and to read its frames, and how many bytes move."""

from __future__ import annotations

import time

import pytest

from frames.dicom.sources import Store
from frames.sources.conftest import Bucket
from frames.sources.images import ct, slide, tile
from support.object_proxy import Request
from voxtier.frames import FileIndexer, FrameReader, read_frame, read_frames, read_table, read_tables
from voxtier.frames.sources import stores
from voxtier.frames.store.store import FrameStore

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _a_store_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_stores", {})


def index(bucket: Bucket, address: str):
    bucket.proxy.forget()
    return read_table(address)


def test_a_ct_slice_takes_one_request_to_index_and_one_for_its_frame(bucket: Bucket) -> None:
    content = ct(7)
    address = bucket.put("requests/ct.dcm", content)
    table = index(bucket, address)
    assert len(bucket.proxy.requests) == 1
    assert bucket.proxy.moved <= 64 << 10
    bucket.proxy.forget()
    assert read_frame(address, table, 0) == read_frame(content, read_table(content), 0)
    assert len(bucket.proxy.requests) == 1
    assert bucket.proxy.moved <= 1.25 * 512 * 512 * 2


@pytest.mark.parametrize("kind", ["bot", "eot"])
@pytest.mark.parametrize(("frames", "length"), [(40, 90_000), (50_000, 100), (3, 3 << 20)])
def test_a_slide_with_a_table_takes_three_requests_to_index_and_one_a_frame(
    bucket: Bucket, kind: str, frames: int, length: int
) -> None:
    content = slide(frames, length, kind)
    address = bucket.put(f"requests/{kind}-{frames}.dcm", content)
    table = index(bucket, address)
    assert table.method == kind
    assert len(table) == frames
    assert len(bucket.proxy.requests) <= 3
    for number in (0, frames // 2, frames - 1):
        bucket.proxy.forget()
        assert read_frame(address, table, number) == tile(number, length)
        assert len(bucket.proxy.requests) == 1
        assert bucket.proxy.moved <= 1.25 * length + 64


def test_a_long_table_is_fetched_together_with_the_place_of_the_last_frame(bucket: Bucket) -> None:
    """So the first frame of a slide comes with the third answer: head, table and end, frame."""
    content = slide(50_000, 400, "bot")
    address = bucket.put("requests/long.dcm", content)
    bucket.proxy.latency = 0.2
    with FrameReader(publish=False) as reader:
        assert reader.frame(address, 30_000) == tile(30_000, 400)
    assert len(bucket.proxy.gets) <= 4
    assert bucket.proxy.most_in_flight == 2
    ends = sorted(each.range[1] for each in bucket.proxy.gets if each.range)
    assert ends[-1] == len(content)
    assert bucket.proxy.moved < 2 * MIB


@pytest.mark.parametrize("kind", ["bot", "eot"])
def test_a_last_frame_far_longer_than_the_others_takes_one_request_more(bucket: Bucket, kind: str) -> None:
    content = slide(50_000, 100, kind, last=300_000)
    address = bucket.put(f"requests/last-{kind}.dcm", content)
    table = index(bucket, address)
    assert (table.method, len(table)) == (kind, 50_000)
    assert len(bucket.proxy.requests) <= 4
    assert read_frame(address, table, 49_999) == tile(49_999, 300_000)


def test_nothing_is_fetched_beside_a_table_that_came_with_the_header(bucket: Bucket) -> None:
    content = slide(40, 90_000, "bot")
    index(bucket, bucket.put("requests/short.dcm", content))
    assert len(bucket.proxy.requests) == 2
    assert bucket.proxy.moved < (64 << 10) + 1.25 * 90_000


@pytest.mark.parametrize(
    ("frames", "length", "most"),
    [(300, 200_000, 12), (300, 200_000, 60_000_000 // (8 * MIB)), (50, 200_000, 3), (20_000, 1000, 3)],
)
def test_a_slide_without_a_table_is_read_in_large_pieces(
    bucket: Bucket, frames: int, length: int, most: int
) -> None:
    content = slide(frames, length)
    address = bucket.put(f"requests/none-{frames}.dcm", content)
    table = index(bucket, address)
    assert len(table) == frames
    assert len(bucket.proxy.requests) <= most
    assert bucket.proxy.moved <= 1.25 * len(content)


def test_large_fragments_are_walked_by_their_headers(bucket: Bucket) -> None:
    content = slide(12, 5 * MIB)
    address = bucket.put("requests/large.dcm", content)
    table = index(bucket, address)
    assert len(table) == 12
    assert len(bucket.proxy.requests) <= 14
    assert bucket.proxy.moved < MIB


def test_frames_asked_together_share_requests(bucket: Bucket) -> None:
    content = slide(200, 20_000, "bot")
    address = bucket.put("requests/together.dcm", content)
    table = index(bucket, address)
    bucket.proxy.forget()
    wanted = [*range(20, 60), 150, 3]
    assert read_frames(address, table, wanted) == [tile(number, 20_000) for number in wanted]
    assert len(bucket.proxy.requests) == 3
    assert bucket.proxy.moved <= 1.25 * len(wanted) * 20_000


def test_requests_of_one_read_are_in_flight_together(bucket: Bucket) -> None:
    content = slide(200, 20_000, "bot")
    address = bucket.put("requests/flight.dcm", content)
    table = index(bucket, address)
    bucket.proxy.forget()
    bucket.proxy.latency = 0.2
    read_frames(address, table, range(0, 200, 20))
    assert bucket.proxy.most_in_flight > 3


def test_a_slide_behind_a_function_takes_large_reads() -> None:
    content = slide(300, 20_000)
    store = Store(content)
    table = read_table(store.source)
    assert len(table) == 300
    assert len(store.requests) <= 5
    store.requests.clear()
    assert read_frame(store.source, table, 200) == tile(200, 20_000)
    assert len(store.requests) == 1


@pytest.mark.parametrize("way", ["index", "tables", "one by one"])
def test_headers_that_were_read_make_the_first_reads_of_others_smaller(
    bucket: Bucket, store: FrameStore, way: str
) -> None:
    addresses = [bucket.put(f"first/{number}.dcm", ct(number)) for number in range(24)]
    if way == "index":
        FileIndexer(store, threads=1).index_batch(addresses)
    elif way == "tables":
        assert all(result.table for result in read_tables(addresses, threads=1))
    else:
        assert all(map(read_table, addresses))
    sent = [each.sent for each in bucket.proxy.gets]
    assert len(sent) == 24
    assert (sent[0], sent[-1]) == (64 << 10, 16 << 10)


def test_the_first_read_grows_and_shrinks_with_the_headers_of_a_store(bucket: Bucket) -> None:
    from voxtier.frames.sources.requests.cost import Cost

    cost = Cost()
    for size, most in ((300 << 10, 512 << 10), (2000, 16 << 10)):
        for _ in range(64):
            cost.add_header(size)
        assert size <= cost.first_read <= most


def test_as_many_objects_are_read_at_once_as_there_are_threads(bucket: Bucket) -> None:
    addresses = [bucket.put(f"requests/many/{n}.dcm", ct(n, f"2.25.{n}")) for n in range(100)]
    bucket.proxy.forget()
    ends = time.monotonic() + 60

    def answer_together(_: Request) -> None:
        while bucket.proxy.most_in_flight < 90 and time.monotonic() < ends:
            time.sleep(0.01)

    bucket.proxy.fault = answer_together
    assert all(result.table for result in read_tables(addresses, threads=100))
    assert bucket.proxy.most_in_flight >= 90
