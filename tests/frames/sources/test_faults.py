"""Stores that fail: what heals by itself, what is said of the rest, and that nothing wrong is returned."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from frames.sources.conftest import Bucket
from frames.sources.images import ct, slide, tile
from support.object_proxy import Fault, Request
from voxtier.errors import SourceError
from voxtier.frames import FrameTable, read_frame, read_frames, read_table
from voxtier.frames.dicom.table import state_of
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.sources import stores
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.stores import store_at
from voxtier.system.s3_config import configure_s3, get_s3_config

CONTENT = slide(40, 90_000, "bot")


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    before = get_s3_config()
    configure_s3(replace(before, timeout=seconds))
    yield
    configure_s3(before)


def first(count: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """Fail the first `count` requests."""
    left = iter(range(count))
    return lambda request: fault if next(left, None) is not None else None


@pytest.fixture
def slide_address(bucket: Bucket) -> str:
    return bucket.put("faults/slide.dcm", CONTENT)


@pytest.fixture
def table() -> FrameTable:
    return read_table(CONTENT, verify="all")


HEALED = {
    "slow down": Fault(503, "SlowDown"),
    "too many requests": Fault(429, "TooManyRequests"),
    "internal error": Fault(500, "InternalError"),
    "reset in mid body": Fault(cut=5000),
    "reset before the body": Fault(cut=0),
    "short body": Fault(shorten=100),
    "wrong range": Fault(headers={"content-range": "bytes 5-89994/3700000"}),
}


@pytest.mark.parametrize("name", HEALED)
def test_what_may_pass_is_tried_again(bucket: Bucket, slide_address: str, name: str) -> None:
    bucket.proxy.fault = first(2, HEALED[name])
    table = read_table(slide_address)
    assert len(table) == 40
    bucket.proxy.fault = first(1, HEALED[name])
    assert read_frame(slide_address, table, 7) == tile(7, 90_000)


@pytest.mark.parametrize(
    ("status", "code", "words", "number"),
    [
        (403, "AccessDenied", "credentials may not read it", 13),
        (401, "Unauthorized", "does not know who asks", 13),
        (404, "NoSuchKey", "no such object", 2),
        (400, "InvalidRequest", "endpoint", None),
    ],
)
def test_what_does_not_pass_is_said_at_once(
    bucket: Bucket, slide_address: str, status: int, code: str, words: str, number: int | None
) -> None:
    bucket.proxy.fault = lambda request: Fault(status, code)
    with pytest.raises(SourceError, match=words) as caught:
        read_table(slide_address)
    assert slide_address in caught.value.detail
    assert caught.value.errno == number
    assert len(bucket.proxy.requests) == 1


@pytest.mark.parametrize(
    "moved",
    [
        Fault(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-north-1"}),
        Fault(400, "AuthorizationHeaderMalformed", region="eu-north-1"),
    ],
    ids=["redirect", "named"],
)
def test_a_bucket_of_another_region_is_read_there(bucket: Bucket, slide_address: str, moved: Fault) -> None:
    """Requests are signed for a region: their signature says which."""
    bucket.proxy.fault = lambda request: (
        None if "/eu-north-1/" in request.headers.get("authorization", "") else moved
    )
    table = read_table(slide_address)
    asked = len(bucket.proxy.requests)
    assert read_frame(slide_address, table, 7) == tile(7, 90_000)
    assert len(bucket.proxy.requests) == asked + 1


@pytest.mark.parametrize("reason", ["region", "credentials"])
def test_threads_that_fail_together_all_go_on(
    bucket: Bucket, slide_address: str, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """One of them makes the client anew; the others use it."""
    from volumes.store.s3_server import KEY, NEXT_KEY, NEXT_SECRET

    table = read_table(slide_address)
    together = threading.Barrier(8)
    old, fault = {
        "region": ("/us-east-1/", Fault(400, "AuthorizationHeaderMalformed", region="ap-south-1")),
        "credentials": (KEY, Fault(400, "ExpiredToken")),
    }[reason]

    def refuse(request: Request) -> Fault | None:
        if old not in request.headers["authorization"]:
            return None
        together.wait(60)  # all eight have asked with the old client
        return fault

    with timeout(91.0 if reason == "region" else 92.0), ThreadPoolExecutor(8) as pool:  # a store of its own
        read_frame(slide_address, table, 0)
        bucket.proxy.fault = refuse
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", NEXT_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NEXT_SECRET)
        found = list(pool.map(lambda number: read_frame(slide_address, table, number), range(8)))
    assert found == [tile(number, 90_000) for number in range(8)]


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket) -> None:
    with pytest.raises(SourceError, match=r"s3://none-of-these/a.dcm.*no such bucket"):
        read_table("s3://none-of-these/a.dcm")
    assert not file_is_gone("s3://none-of-these/a.dcm")  # nobody can tell: the endpoint may be another one
    assert file_is_gone("s3://frames/none-of-these/a.dcm")
    with pytest.raises(SourceError, match=r"s3://none-of-these.*no such bucket"):
        list(iter_files(["s3://none-of-these/ct"]))


@pytest.mark.parametrize("region", ["", "eu-north-1", "x.example.org/", "a" * 50])
def test_a_redirect_that_leads_nowhere_is_said(bucket: Bucket, slide_address: str, region: str) -> None:
    bucket.proxy.fault = lambda _: Fault(
        301, "PermanentRedirect", headers={"x-amz-bucket-region": region} if region else {}
    )
    with pytest.raises(SourceError, match="AWS_REGION"):
        read_table(slide_address)
    assert len(bucket.proxy.requests) <= 3


def test_expired_credentials_are_read_again(
    bucket: Bucket, slide_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volumes.store.s3_server import KEY, NEXT_KEY, NEXT_SECRET

    def expired(request: Request) -> Fault | None:
        return Fault(400, "ExpiredToken") if KEY in request.headers["authorization"] else None

    read_table(slide_address)
    bucket.proxy.fault = expired
    with pytest.raises(SourceError, match="have expired"):
        read_table(slide_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", NEXT_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NEXT_SECRET)
    store, key = store_at("s3://frames", get_s3_config()), slide_address.removeprefix("s3://frames/")
    with pytest.raises(SourceError, match="have expired"):  # by its last try, which is the first one here
        store.get(key, 0, 10, None, tries=1)
    assert len(store.get(key, 0, 10, None, tries=1)[1]) == 10
    assert len(read_table(slide_address)) == 40


def test_a_store_that_asks_for_less_gets_less_from_all_threads(
    bucket: Bucket, slide_address: str, table: FrameTable
) -> None:
    bucket.proxy.latency = 0.02
    bucket.proxy.fault = lambda request: Fault(503, "SlowDown") if bucket.proxy.in_flight > 4 else None
    found = read_frames(slide_address, read_table(slide_address), range(0, 40, 2))
    assert found == [tile(number, 90_000) for number in range(0, 40, 2)]


def test_a_store_that_is_silent_is_given_up(bucket: Bucket, slide_address: str) -> None:
    bucket.proxy.fault = lambda request: Fault(hang=60)
    with timeout(0.3), pytest.raises(SourceError, match="did not answer in time") as caught:
        read_table(slide_address)
    assert caught.value.errno == 110


def test_a_store_that_is_not_there_is_named(bucket: Bucket) -> None:
    before = get_s3_config()
    configure_s3(replace(before, endpoint="http://127.0.0.1:9"))
    with pytest.raises(SourceError, match=r"s3://frames/faults/x\.dcm: the store could not be reached"):
        read_table("s3://frames/faults/x.dcm")
    configure_s3(before)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_object_that_is_replaced_is_never_mixed(bucket: Bucket, at: int) -> None:
    """It is replaced between two requests of one walk."""
    old, new = slide(3, 3 << 20), slide(3, 2 << 20)
    address = bucket.put("faults/replaced.dcm", old)

    def replace_at(request: Request) -> None:
        if len(bucket.proxy.requests) == at + 1:
            bucket.put("faults/replaced.dcm", new)

    bucket.proxy.fault = replace_at
    try:
        table = read_table(address)
    except SourceError as error:
        assert error.kind == "changed_during_read"
        assert "replaced" in error.detail
    else:
        assert table.size in (len(old), len(new))
        right = read_table(old if table.size == len(old) else new)
        assert [table.ranges(i) for i in range(3)] == [right.ranges(i) for i in range(3)]


def test_a_table_of_another_state_reads_nothing(bucket: Bucket) -> None:
    address = bucket.put("faults/state.dcm", ct(1))
    table = read_table(address)
    bucket.put("faults/state.dcm", ct(2))  # of the same size
    with pytest.raises(SourceError, match="read its table again") as caught:
        read_frame(address, table, 0)
    assert caught.value.kind == "changed_during_read"


def test_a_store_that_ignores_the_condition_is_found_out(bucket: Bucket) -> None:
    address = bucket.put("faults/ignored.dcm", ct(1))
    table = read_table(address)
    assert table.etag
    bucket.proxy.fault = lambda request: Fault(headers={"etag": '"another"'})
    with pytest.raises(SourceError, match="replaced") as caught:
        read_frame(address, table, 0)
    assert caught.value.kind == "changed_during_read"


def test_a_store_without_entity_tags_is_told_and_kept_to_size_and_time(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.put("faults/untagged.dcm", ct(1))
    with timeout(19.0):  # a store of its own, which has told nobody
        bucket.proxy.fault = lambda request: Fault(headers={"etag": None})
        table = read_table(address)
        assert table.etag is None
        assert table.mtime_ns is not None
        assert "gives no entity tags" in caplog.text
        assert len(read_frame(address, table, 0)) == 512 * 512 * 2
        bucket.proxy.fault = lambda request: Fault(
            headers={"etag": None, "last-modified": "Fri, 27 Nov 2020 00:00:00 GMT"}
        )
        with pytest.raises(SourceError, match="replaced"):
            read_frame(address, table, 0)


# What a server says of an object: two kinds of it tell nothing of whether the bytes are the same.
SAYS: dict[str, dict[str, str | None]] = {
    "tag": {"etag": '"1"', "last-modified": None},
    "tag and time": {"etag": '"1"', "last-modified": "Fri, 27 Nov 2020 00:00:00 GMT"},
    "time": {"etag": None, "last-modified": "Fri, 27 Nov 2020 00:00:00 GMT"},
    "weak tag and time": {"etag": 'W/"1"', "last-modified": "Fri, 27 Nov 2020 00:00:00 GMT"},
    "nothing": {"etag": None, "last-modified": None},
}


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(SAYS, 2)))
def test_an_object_of_which_another_kind_of_state_is_told_may_be_another_one(
    bucket: Bucket, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket.proxy, "drop", ("if-match", "if-none-match"))  # the server knows other tags
    is_same = {before, after} in ({"tag", "tag and time"}, {"time", "weak tag and time"})
    place = bucket.public.put("faults/told.dcm", old := ct(1)).removeprefix("s3://")
    address = f"http://127.0.0.1:{bucket.proxy.port}/{place}"
    bucket.proxy.fault = lambda _: Fault(headers=SAYS[before])
    table = read_table(address)
    opened = RemoteObject(address)
    opened.open_ranges()
    if not is_same:
        bucket.public.put("faults/told.dcm", ct(2))  # of the same size
    bucket.proxy.fault = lambda _: Fault(headers=SAYS[after])
    is_known = before != "nothing"  # else by the size alone, as is said once
    if is_same or not is_known:
        assert len(read_frame(address, table, 0)) == 512 * 512 * 2
    else:
        for read in (lambda: read_frame(address, table, 0), lambda: read_frames(address, table, [0])):
            with pytest.raises(SourceError) as caught:
                read()
            assert caught.value.kind == "changed_during_read"
    assert opened.is_current() == (is_same or not is_known)
    assert RemoteObject(address).is_still(state_of(table)) == is_same
    assert len(old) == table.size


def test_a_gzip_encoded_object_is_refused(bucket: Bucket) -> None:
    address = bucket.put("faults/gzip.dcm", ct(1))
    bucket.proxy.fault = lambda request: Fault(headers={"content-encoding": "gzip"})
    with pytest.raises(SourceError, match=r"Content-Encoding gzip.*store it without"):
        read_table(address)


def test_a_server_without_ranges_is_refused(bucket: Bucket) -> None:
    address = bucket.public.put("noranges.dcm", ct(1)).removeprefix("s3://")
    bucket.proxy.drop = ("range",)
    try:
        with pytest.raises(SourceError, match="no ranges"):
            read_table(f"http://127.0.0.1:{bucket.proxy.port}/{address}")
    finally:
        bucket.proxy.drop = ()


@pytest.mark.filterwarnings("ignore:TileDB is a multithreading library")  # the server's
def test_a_forked_child_is_refused_and_not_left_waiting(bucket: Bucket, slide_address: str) -> None:
    import os

    read_table(slide_address)
    inherited = [weakref.ref(each) for each in stores._stores.values()]
    assert inherited
    child = os.fork()
    if not child:
        code = 1
        try:
            read_table(slide_address)
        except SourceError as error:
            code = 0 if "spawn" in error.detail else 2
            if None in [each() for each in inherited]:  # dropping one may wait for a thread
                code = 3
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(found[1]) == 0


def test_a_listing_is_tried_no_longer_than_any_other_request(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent store takes 30 s a try: what waits for it must end, also after Ctrl-C."""
    address = bucket.put("faults-of-lists/slide.dcm", CONTENT)
    folder = f"{address.rpartition('/')[0]}/"
    assert list(iter_files([folder])) == [address]
    bucket.proxy.forget()
    bucket.proxy.fault = lambda request: Fault(503, "SlowDown")
    monkeypatch.setattr(stores, "_PATIENCE", 0.0)
    with pytest.raises(SourceError):
        list(iter_files([folder]))
    assert len(bucket.proxy.requests) == 1
